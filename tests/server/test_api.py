"""The HTTP API against the real application: what it answers, what it refuses, and what it leaves behind."""

import gzip
import io
import json
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "python_multipart", "prometheus_client", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="needs ddfm[server]")

import PIL.Image
from conftest import made_picture
from fastapi.testclient import TestClient

from ddfm.errors import InputError
from ddfm.io.images import Image
from ddfm.palettes import painted
from ddfm.runs.reading import FIELDS
from ddfm.runs.scene import Scene
from ddfm.server import Limits, app, create_app, worker
from ddfm.settings import FusionSettings

BASE = "http://127.0.0.1:8000"


def png(height=33, width=46, seed=0, colour=False):
    """A made image as the bytes of a PNG file of 300 dpi."""
    pixels = made_picture(height, width, seed=seed)
    if colour:
        pixels = np.stack([pixels, pixels // 2 + 40, 255 - pixels // 2], axis=-1)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", dpi=(300, 300))
    return buffer.getvalue()


def sources(*files, names=("infrared.png", "visible.png", "third.png")):
    """The form field `sources`."""
    return [("sources", (name, data, "image/png")) for name, data in zip(names, files, strict=False)]


FORM = sources(png(seed=1), png(seed=2, colour=True))


@pytest.fixture
def client(tiny_prior):
    with TestClient(create_app(tiny_prior), base_url=BASE) as client:
        yield client


@pytest.fixture
def gate(monkeypatch):
    """Fusions that go on, evaluation by evaluation, until the gate is set."""
    gate = threading.Event()

    def slow(pipe, scenes, settings, progress):
        for k in range(1, 1001):
            progress(float(k), 1000)
            if gate.wait(0.01):
                break
        return np.stack([scene.sources[0].pixels for scene in scenes]), None

    monkeypatch.setattr(worker, "fuse_scenes", slow)
    yield gate
    gate.set()


def wait_for(client, job, *states):
    for _ in range(500):
        status = client.get(f"/v1/jobs/{job}").json()
        if status["state"] in states:
            return status
        time.sleep(0.01)
    raise AssertionError(status)


def problem(response, status):
    """The sentence of a problem, which is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["detail"][-1] == "." and body["title"]
    return body["detail"]


def test_fuse_gives_what_the_library_gives(client, tiny_prior):
    answer = client.post("/v1/fuse", files=FORM, data={"seed": "3"}, headers={"Accept": "image/png"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    image = PIL.Image.open(io.BytesIO(answer.content))
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)  # the sources' metadata
    pixels = [np.asarray(PIL.Image.open(io.BytesIO(data))) / np.float32(255) for _, (_, data, _) in FORM]
    fused, _ = worker.fuse_scenes(
        tiny_prior, [Scene([Image(p) for p in pixels])], [FusionSettings(seed=3)], lambda *_: None
    )
    np.testing.assert_allclose(np.asarray(image) / 255, fused[0], atol=0.003)


@pytest.mark.parametrize(
    ("accept", "magic"), [("image/tiff", b"II*\0"), ("image/jpeg", b"\xff\xd8"), ("*/*", b"\x89PNG")]
)
def test_accept_chooses_the_format(client, accept, magic):
    assert client.post("/v1/fuse", files=FORM, headers={"Accept": accept}).content.startswith(magic)


def test_a_palette_is_laid_over_the_result_and_can_be_changed_after_the_fusion(client):
    job = wait_for(
        client, client.post("/v1/jobs", files=FORM, data={"palette": "hot", "blend": "1"}).json()["id"], "done"
    )
    at = f"/v1/jobs/{job['id']}"

    def pixels(address):
        return np.asarray(PIL.Image.open(io.BytesIO(client.get(address).content)))

    own, without = pixels(f"{at}/result"), pixels(f"{at}/result?palette=none")
    thermal = np.asarray(PIL.Image.open(io.BytesIO(FORM[0][1][1]))) / np.float32(255)
    np.testing.assert_allclose(own / 255, painted(thermal, "hot"), atol=0.003)
    assert np.abs(own.astype(int) - without).mean() > 5
    np.testing.assert_array_equal(pixels(f"{at}/layers/fused"), own)
    half = pixels(f"{at}/layers/fused?palette=hot&blend=0.5")
    np.testing.assert_allclose(half, (own + without.astype(float)) / 2, atol=1)
    problem(client.get(f"{at}/result?palette=rainbow"), 422)


def test_finished_jobs_keep_no_maps(client):
    """Where the sources lay is a matrix; the maps made of it are as large as images."""
    files = sources(png(120, 160), png(60, 80))
    data = {"align": "skip", "palette": "hot"}
    job = wait_for(client, client.post("/v1/jobs", files=files, data=data).json()["id"], "done")["id"]
    client.get(f"/v1/jobs/{job}/result")
    places = [place for place in client.app.state.service.queue.find(job).scene.registrations if place]
    assert places and not any({"map", "inside", "coverage"} & set(vars(place)) for place in places)


def test_a_job_from_upload_to_removal(client):
    answer = client.post("/v1/jobs", files=FORM, data={"num_samples": "2"})
    assert answer.status_code == 202
    at = answer.headers["location"]
    with client.stream("GET", f"{at}/events") as events:
        lines = list(events.iter_lines())
    assert [line for line in lines if line.startswith("event:")][-1] == "event: done"
    status = json.loads([line for line in lines if line.startswith("data:")][-1][5:])
    assert status["done"] == status["total"] > 0 and status["uncertainty"] > 0
    for layer in ("fused", "uncertainty", "source-1", "source-2"):
        shown = PIL.Image.open(io.BytesIO(client.get(f"{at}/layers/{layer}").content))
        assert shown.size == (46, 33)
    measures = {m["name"]: m for m in client.get(f"{at}/metrics").json()}
    assert measures["EN"]["value"] > 0 and measures["EN"]["average"] > 0
    assert client.get(f"{at}/result").status_code == 200
    [folder] = [job.folder for job in client.app.state.service.queue._jobs.values()]
    assert client.delete(at).status_code == 204
    assert not folder.exists()
    problem(client.get(at), 404)


def test_volumes_go_in_and_out_as_nifti(client):
    nibabel = pytest.importorskip("nibabel", reason="needs ddfm[medical]")
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    rng = np.random.default_rng(0)
    volumes = [nibabel.Nifti1Image(rng.random((24, 20, 3), np.float32), affine).to_bytes() for _ in range(2)]
    files = sources(*volumes, names=("mri.nii", "pet.nii"))
    job = wait_for(client, client.post("/v1/jobs", files=files).json()["id"], "done")
    assert job["slices"] == 3 and set(job["formats"]) <= {"application/x-nifti", "application/dicom"}
    fused = client.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": "application/x-nifti"})
    assert fused.headers["content-type"] == "application/x-nifti"
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(fused.content))
    assert image.shape == (24, 20, 3)
    np.testing.assert_allclose(image.affine, affine)
    assert client.get(f"/v1/jobs/{job['id']}/layers/fused?slice=2").content.startswith(b"\x89PNG")
    problem(client.get(f"/v1/jobs/{job['id']}/layers/fused?slice=3"), 404)
    problem(client.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": "image/png"}), 406)
    problem(client.post("/v1/jobs", files=files, data={"palette": "hot"}), 422)


def test_a_worker_for_each_device(tiny_prior, gate):
    with TestClient(create_app([tiny_prior, tiny_prior]), base_url=BASE) as client:
        jobs = [client.post("/v1/jobs", files=FORM).json()["id"] for _ in range(2)]
        for job in jobs:
            wait_for(client, job, "running")


def test_cancel_stops_the_loop(client, gate):
    job = client.post("/v1/jobs", files=FORM).json()["id"]
    wait_for(client, job, "running")
    problem(client.get(f"/v1/jobs/{job}/result"), 409)
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    until = time.monotonic() + 2
    while not client.app.state.service.queue.is_idle:
        assert time.monotonic() < until
        time.sleep(0.01)


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


def test_equal_sizes_go_together_and_alone_give_the_same(tiny_prior, gate, monkeypatch):
    with TestClient(create_app(tiny_prior, Limits(batch_size=4)), base_url=BASE) as client:
        first = client.post("/v1/jobs", files=FORM).json()["id"]
        wait_for(client, first, "running")
        monkeypatch.undo()  # the first is slow, the others are fused
        jobs = [client.post("/v1/jobs", files=FORM, data={"seed": str(k)}).json()["id"] for k in range(3)]
        gate.set()
        for job in jobs:
            wait_for(client, job, "done")
        assert 'ddfm_batch_size_bucket{le="4.0"} 2.0' in client.get("/metrics").text
        assert 'ddfm_batch_size_bucket{le="2.0"} 1.0' in client.get("/metrics").text
        together = client.get(f"/v1/jobs/{jobs[2]}/result").content
        assert client.post("/v1/fuse", files=FORM, data={"seed": "2"}).content == together


def test_a_stopping_server_finishes_what_runs_and_refuses_the_rest(client, gate):
    running, waiting = (client.post("/v1/jobs", files=FORM).json()["id"] for _ in range(2))
    wait_for(client, running, "running")
    client.app.state.service.queue.drain()
    assert wait_for(client, waiting, "failed")["problem"]["status"] == 503
    problem(client.post("/v1/jobs", files=FORM), 503)
    problem(client.get("/readyz"), 503)
    assert client.get("/healthz").status_code == 200
    gate.set()
    wait_for(client, running, "done")
    assert client.get(f"/v1/jobs/{running}/result").status_code == 200


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
    assert "infrared.png holds more images than a camera" in problem(client.post("/v1/fuse", files=sources(many)), 422)


@pytest.mark.parametrize(
    ("files", "data", "status", "part"),
    [
        (FORM[:1], {}, 422, "two or more sources, not 1"),
        (FORM[:1] * 9, {}, 422, "two to 8 sources, not 9"),
        ([FORM[0], ("sources", ("a/notes.txt", b"hello"))], {}, 415, "notes.txt is not an image"),
        ([FORM[0], ("sources", ("cut.png", png()[:300]))], {}, 422, "cut.png is truncated"),
        ([FORM[0], ("sources", ("none.png", b""))], {}, 422, "none.png is empty"),
        (sources(png(), png(40, 40)), {}, 422, "aligned with confidence"),
        (FORM, {"prior": "/etc/passwd"}, 422, "'prior' is no setting"),
        (FORM, {"seed": "-1"}, 422, "seed"),
        (FORM, {"num_samples": "33"}, 422, "at most 32"),
        (FORM, {"align": "perhaps"}, 422, "align is auto, force or skip"),
        (FORM, {"crop": "perhaps"}, 422, "crop is true or false"),
        (FORM, {"value_range": "1"}, 422, "value_range is"),
        (FORM, {"value_range": "1 nan"}, 422, "lower to a higher"),
        (FORM, {"palette": "rainbow"}, 422, "palette is one of none, ironbow"),
        (sources(*[png(seed=k, colour=True) for k in range(2)]), {"palette": "hot"}, 422, "first grey image"),
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


def test_preview_shows_sources_of_different_sizes(client):
    shown = client.post("/v1/preview", files=sources(png(), png(40, 50, colour=True))).json()
    assert [(s["width"], s["height"], s["coloured"]) for s in shown["sources"]] == [(50, 40, False), (50, 40, True)]
    assert "infrared.png" in shown["findings"][0]  # where it lies is said before the button is pressed
    assert not client.post("/v1/preview", files=sources(png())).json()["findings"]


def test_every_setting_and_the_examples_are_described(client):
    about = client.get("/v1/about").json()
    names = {setting["name"] for setting in about["settings"]}
    assert names == set(FusionSettings().as_dict()) | {"palette", "blend"} | (set(FIELDS) - {"rig"})
    for example in about["examples"]:
        for address in example["sources"]:
            assert client.get(address).content.startswith(b"\x89PNG")
    problem(client.get("/v1/examples/night_street/..%2Fscenes.png"), 404)
    document = client.get("/openapi.json").json()
    form = document["paths"]["/v1/fuse"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["schema"]["properties"]) == names | {"sources"} and form["example"]


def test_one_file_that_holds_two_sources(client, monkeypatch):
    def read(paths, reading):
        assert len(paths) == 1
        return Scene([Image(made_picture(33, 46, seed=k) / np.float32(255)) for k in range(2)], ["It holds two."])

    monkeypatch.setattr(Scene, "read", read)
    assert [s["name"] for s in client.post("/v1/preview", files=FORM[:1]).json()["sources"]] == [
        "infrared.png (1)",
        "infrared.png (2)",
    ]
    job = client.post("/v1/jobs", files=FORM[:1]).json()
    assert len(job["names"]) == 2 and job["findings"] == ["It holds two."]
    wait_for(client, job["id"], "done")


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
