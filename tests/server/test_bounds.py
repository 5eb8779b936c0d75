"""The HTTP API against the real application: what it refuses, and what it leaves behind."""

import asyncio
import errno
import io
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

for package in ("fastapi", "python_multipart", "prometheus_client", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="needs ddfm[server]")

import PIL.Image
from fastapi.testclient import TestClient
from server.forms import BASE, FORM, png, problem, sources, wait_for

from ddfm.errors import InputError
from ddfm.server import Limits, app, create_app


def test_a_full_queue_is_refused_and_says_when(tiny_prior, gate):
    with TestClient(create_app(tiny_prior, Limits(queue=2)), base_url=BASE) as client:
        first = client.post("/v1/jobs", files=FORM).json()["id"]
        wait_for(client, first, "running")
        waiting = [client.post("/v1/jobs", files=FORM).json() for _ in range(2)]
        assert [job["position"] for job in waiting] == [1, 2]
        refused = client.post("/v1/jobs", files=FORM)
        assert "queue is full" in problem(refused, 429) and int(refused.headers["retry-after"]) >= 1
        gate.set()
        for job in (first, *(job["id"] for job in waiting)):
            assert wait_for(client, job, "done")


def test_a_stopping_server_finishes_what_runs_and_refuses_the_rest(client, gate):
    running, waiting = (client.post("/v1/jobs", files=FORM).json()["id"] for _ in range(2))
    wait_for(client, running, "running")
    client.app.state.service.queue.drain()
    assert wait_for(client, waiting, "failed")["problem"]["status"] == 503
    problem(client.post("/v1/jobs", files=FORM), 503)
    problem(client.get("/readyz"), 503)
    assert client.head("/readyz").status_code == 503
    assert [client.head(path).status_code for path in ("/", "/healthz")] == [200, 200]
    assert client.get("/healthz").status_code == 200
    gate.set()
    wait_for(client, running, "done")
    assert client.get(f"/v1/jobs/{running}/result").status_code == 200


def test_a_request_that_a_stopping_server_cuts_off_is_told_so(client, monkeypatch):
    async def cut_off(*_, **__):
        raise asyncio.CancelledError

    monkeypatch.setattr(client.app.state.service, "submit", cut_off)
    assert "is stopping" in problem(client.post("/v1/jobs", files=FORM), 503)


def test_a_job_that_takes_too_long_is_stopped(tiny_prior, gate):
    with TestClient(create_app(tiny_prior, Limits(job_seconds=0.05)), base_url=BASE) as client:
        assert "longer than 0.05 s" in problem(client.post("/v1/fuse", files=FORM), 503)


def test_limits_come_before_decoding(tiny_prior, monkeypatch):
    monkeypatch.setattr("ddfm.server.service._read", lambda *_: pytest.fail("decoded"))
    with TestClient(create_app(tiny_prior, Limits(pixels=1000)), base_url=BASE) as client:
        assert "3,036 pixels together" in problem(client.post("/v1/fuse", files=FORM), 413)
    with TestClient(create_app(tiny_prior, Limits(upload_bytes=1000)), base_url=BASE) as client:
        problem(client.post("/v1/fuse", files=FORM), 413)


def test_a_photo_inside_a_small_file_counts(client):
    """A radiometric JPEG claims the size of its preview; the photo inside may be any."""
    preview, photo = io.BytesIO(), io.BytesIO()
    PIL.Image.new("L", (32, 24)).save(preview, "JPEG")
    PIL.Image.new("1", (9000, 9000)).save(photo, "PNG")
    data, flir = preview.getvalue(), b"FLIR\0\x01\0\0" + photo.getvalue()
    file = data[:2] + b"\xff\xe1" + (len(flir) + 2).to_bytes(2, "big") + flir + data[2:]
    assert "162,000,000 pixels" in problem(client.post("/v1/fuse", files=sources(file)), 413)
    many = data[:2] + b"\xff\xe1\x00\x6f" + b"FLIR\0\x01\0\0" + b"\xff\xd8\xff" * 33 + b"\0\0" + data[2:]
    assert "infrared.png holds more images than any" in problem(client.post("/v1/fuse", files=sources(many)), 422)


@pytest.mark.parametrize(
    ("files", "data", "status", "part"),
    [
        (FORM[:1], {}, 422, "two or more sources, not 1"),
        (FORM[:1] * 9, {}, 422, "two to 8 sources, not 9"),
        ([FORM[0], ("sources", ("a/notes.txt", b"hello"))], {}, 415, "notes.txt is not an image"),
        ([FORM[0], ("sources", ("cut.png", png()[:300]))], {}, 422, "cut.png is truncated"),
        ([FORM[0], ("sources", ("none.png", b""))], {}, 422, "none.png is empty"),
        (sources(png(), png(40, 40)), {}, 422, "aligned with confidence"),
        (FORM, {"prior": "/etc/passwd"}, 422, "'prior' is not a field of this form; its fields are sources, align"),
        (FORM, {"seed": "-1"}, 422, "seed"),
        (FORM, {"num_samples": "33"}, 422, "at most 32"),
        (FORM, {"align": "perhaps"}, 422, "align must be auto, dense, force or skip"),
        (FORM, {"crop": "perhaps"}, 422, "crop must be true or false"),
        (FORM, {"value_range": "1"}, 422, "value_range must be"),
        (FORM, {"value_range": "1 nan"}, 422, "lower to a higher"),
        (FORM, {"palette": "rainbow"}, 422, "palette must be one of none, ironbow"),
        (sources(*[png(seed=k, colour=True) for k in range(2)]), {"palette": "hot"}, 422, "needs a grey image"),
        ([*FORM, ("other", ("x.png", png()))], {}, 422, "'other'"),
    ],
)
def test_what_cannot_be_fused_is_said_in_a_sentence(client, files, data, status, part):
    sentence = problem(client.post("/v1/fuse", files=files, data=data), status)
    assert part in sentence and "ddfm-server" not in sentence  # no path of this machine


def test_what_is_no_form(client):
    problem(client.post("/v1/fuse", content=b"{}", headers={"Content-Type": "application/json"}), 415)
    problem(client.post("/v1/fuse", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)
    cut = b'--b\r\nContent-Disposition: form-data; name="sources"; filename="a.png"\r\n\r\nx'
    problem(client.post("/v1/fuse", content=cut, headers={"Content-Type": "multipart/form-data; boundary=b"}), 400)
    problem(client.post("/v1/fuse", files=FORM, headers={"Accept": "text/html"}), 406)
    problem(client.get("/nothing"), 404)
    problem(client.put("/v1/fuse"), 405)


def test_half_a_character_is_answered_in_a_sentence(client):
    """UTF-7 and its like may spell surrogates, which no JSON can hold."""
    body = b'--b\r\nContent-Disposition: form-data; name="sources"; filename="a.png"\r\n\r\n' + png() + b"\r\n"
    body += b'--b\r\nContent-Disposition: form-data; name="frame"\r\n\r\n+2AA-\r\n--b--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b; charset=utf-7"}
    assert "frame must be auto" in problem(client.post("/v1/fuse", content=body, headers=kind), 422)


def _malformed(client, requests):
    rng = random.Random(0)
    body = client.build_request("POST", "/v1/fuse", files=FORM)
    whole, kind = body.read(), body.headers["content-type"]
    for k in range(requests):
        broken = bytearray(whole)
        if k % 2:
            del broken[rng.randrange(20, len(broken) - 60) :]
        else:
            broken[: rng.randrange(60, 400)] = rng.randbytes(rng.randrange(60))
        start = time.monotonic()
        answer = client.post("/v1/fuse", content=bytes(broken), headers={"Content-Type": kind})
        assert 400 <= answer.status_code < 500, (k, answer.text)
        problem(answer, answer.status_code)
        assert time.monotonic() - start < 2


def test_malformed_requests(client):
    _malformed(client, 40)


@pytest.mark.slow
def test_a_thousand_malformed_requests(client):
    _malformed(client, 1000)


def test_token_origin_and_host(tiny_prior):
    with TestClient(create_app(tiny_prior, token="secret", hosts=["127.0.0.1"]), base_url=BASE) as client:
        problem(client.get("/v1/about"), 401)
        problem(client.get("/v1/about", headers={"Authorization": "Bearer wrong"}), 401)
        problem(client.get("/metrics"), 401)
        allowed = {"Authorization": "Bearer secret"}
        assert client.get("/v1/about", headers=allowed).status_code == 200
        assert client.get("/healthz").status_code == 200
        problem(client.get("/v1/about", headers=allowed | {"Origin": "https://example.org"}), 403)
        problem(client.get("/healthz", headers={"Host": "example.org:8000"}), 403)
        assert "access-control-allow-origin" not in client.get("/healthz").headers


def test_pages_of_an_origin_that_was_asked_for(tiny_prior):
    origin = {"Origin": "https://example.org"}
    with TestClient(create_app(tiny_prior, token="secret", origins=[origin["Origin"]]), base_url=BASE) as client:
        asked = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert client.options("/v1/fuse", headers=asked).status_code == 200
        answer = client.get("/v1/about", headers=origin | {"Authorization": "Bearer secret"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin["Origin"]
        problem(client.get("/v1/about", headers={"Origin": "https://example.com"}), 403)
        refused = client.get("/v1/about", headers=origin)
        problem(refused, 401)
        assert refused.headers["access-control-allow-origin"] == origin["Origin"]  # so that the page can ask for it


def test_a_port_that_is_taken_is_said():
    with app._listening("127.0.0.1", 0) as taken, pytest.raises(InputError, match=r"Cannot listen on 127.0.0.1, port"):
        app._listening("127.0.0.1", taken.getsockname()[1])


def test_a_result_is_measured_once_and_only_so_large(tiny_prior, monkeypatch):
    with TestClient(create_app(tiny_prior, Limits(measured_pixels=1000)), base_url=BASE) as client:
        job = wait_for(client, client.post("/v1/jobs", files=FORM).json()["id"], "done")["id"]
        assert "1,518 pixels" in problem(client.get(f"/v1/jobs/{job}/metrics"), 413)
    with TestClient(create_app(tiny_prior), base_url=BASE) as client:
        job = wait_for(client, client.post("/v1/jobs", files=FORM).json()["id"], "done")["id"]
        first = client.get(f"/v1/jobs/{job}/metrics").json()
        monkeypatch.setattr("ddfm.server.views.metrics", lambda *_: pytest.fail("measured again"))
        assert client.get(f"/v1/jobs/{job}/metrics").json() == first


def test_what_is_kept_is_bounded_in_pixels(tiny_prior):
    with TestClient(create_app(tiny_prior, Limits(kept_pixels=5000)), base_url=BASE) as client:  # one has 3,036
        jobs = [client.post("/v1/jobs", files=FORM).json()["id"] for _ in range(3)]
        wait_for(client, jobs[-1], "done")
        client.app.state.service.queue.expire()
        assert [client.get(f"/v1/jobs/{job}").status_code for job in jobs] == [404, 404, 200]


def test_finished_jobs_keep_no_maps(client):
    """Where the sources lay is a matrix; the maps made of it are as large as images."""
    files = sources(png(120, 160), png(60, 80))
    data = {"align": "skip", "palette": "hot"}
    job = wait_for(client, client.post("/v1/jobs", files=files, data=data).json()["id"], "done")["id"]
    client.get(f"/v1/jobs/{job}/result")
    places = [place for place in client.app.state.service.queue.find(job).scene.registrations if place]
    assert places and not any({"map", "inside", "coverage"} & set(vars(place)) for place in places)


def test_nothing_stays_behind(tiny_prior):
    with TestClient(create_app(tiny_prior, replace(Limits(), kept=2)), base_url=BASE) as client:
        service = client.app.state.service
        folder: Path = service._folder
        for _ in range(3):
            client.post("/v1/fuse", files=FORM)
            client.post("/v1/preview", files=FORM)
            problem(client.post("/v1/fuse", files=FORM[:1]), 422)
        assert not list(folder.iterdir())
        for _ in range(4):
            wait_for(client, client.post("/v1/jobs", files=FORM).json()["id"], "done")
        service.queue.expire()
        assert len(list(folder.iterdir())) == 2
    assert not folder.exists()


def test_a_result_forgotten_while_it_is_made_into_a_file_is_still_given(client, monkeypatch):
    job = wait_for(client, client.post("/v1/jobs", files=FORM).json()["id"], "done")["id"]
    found = client.app.state.service.queue.find(job)
    monkeypatch.setattr(client.app.state.service.queue, "find", lambda _: found)
    found.remove()
    assert client.get(f"/v1/jobs/{job}/result").content.startswith(b"\x89PNG")


def test_an_image_has_one_slice(client):
    job = wait_for(client, client.post("/v1/jobs", files=FORM).json()["id"], "done")["id"]
    for what in ("layers/fused", "metrics"):
        assert client.get(f"/v1/jobs/{job}/{what}?slice=0").status_code == 200
        assert "slices 0 to 0, not 7" in problem(client.get(f"/v1/jobs/{job}/{what}?slice=7"), 404)


def test_a_failed_job_takes_neither_disk_nor_memory(client):
    job = wait_for(client, client.post("/v1/jobs", files=FORM, data={"roles": "thermal"}).json()["id"], "failed")
    service = client.app.state.service
    assert (job["width"], job["height"]) == (46, 33) and not list(service._folder.iterdir())
    assert not any(any(source.pixels.strides) for source in service.queue.find(job["id"]).scene.sources)


@pytest.mark.parametrize("at", ["ddfm.server.uploads._save", "ddfm.io.files.os.replace", "ddfm.server.jobs.np.save"])
def test_a_full_disk_is_said(tiny_prior, monkeypatch, at):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(at, full)
    with TestClient(create_app(tiny_prior), base_url=BASE, raise_server_exceptions=False) as client:
        if at.endswith("np.save"):
            job = client.post("/v1/jobs", files=FORM).json()["id"]
            assert "disk is full" in wait_for(client, job, "failed")["problem"]["detail"]
        else:
            assert "disk is full" in problem(client.post("/v1/fuse", files=FORM), 503)
        assert not list(client.app.state.service._folder.iterdir())
