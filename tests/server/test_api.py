"""The HTTP API against the real application: what it answers."""

import gzip
import io
import json
import time

import numpy as np
import pytest

for package in ("fastapi", "python_multipart", "prometheus_client", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="needs ddfm[server]")

import PIL.Image
from conftest import made_image
from fastapi.testclient import TestClient
from server.forms import BASE, FORM, png, problem, sources, wait_for

from ddfm.io.images import Image
from ddfm.palettes import painted
from ddfm.registration import from_matrix
from ddfm.runs.reading import FIELDS
from ddfm.runs.scene import Scene
from ddfm.server import Limits, create_app, worker
from ddfm.settings import FusionSettings


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


def test_where_only_the_frame_sees_the_result_is_what_the_library_gives(tiny_prior):
    narrow = from_matrix(np.array([[0.5, 0, -5.0], [0, 0.5, -5]]), (20, 24), (60, 80))
    pair = [Image(made_image(60, 80, seed=k) / np.float32(255)) for k in range(2)]
    scene, settings = Scene(pair, frame=1, registrations=[narrow, None]), FusionSettings(num_inference_steps=1)
    fused, _ = worker.fuse_scenes(tiny_prior, [scene], [settings], lambda *_: None)
    np.testing.assert_array_equal(fused[0], scene.fuse(tiny_prior, settings))
    np.testing.assert_allclose(fused[0][~narrow.inside], pair[1].pixels[~narrow.inside], atol=1e-6)


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


def test_nifti_with_extensions_and_nifti_2_are_taken(client):
    nibabel = pytest.importorskip("nibabel", reason="needs ddfm[medical]")
    extended, second = (
        kind(np.arange(1440.0).reshape(24, 20, 3), np.eye(4)) for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image)
    )
    extended.header.extensions.append(nibabel.nifti1.Nifti1Extension(4, bytes(100)))
    files = sources(extended.to_bytes(), second.to_bytes(), names=("mri.nii", "pet.nii"))
    assert client.post("/v1/fuse", files=files).status_code == 200


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
        return Scene([Image(made_image(33, 46, seed=k) / np.float32(255)) for k in range(2)], ["It holds two."])

    monkeypatch.setattr(Scene, "read", read)
    assert [s["name"] for s in client.post("/v1/preview", files=FORM[:1]).json()["sources"]] == [
        "infrared.png (1)",
        "infrared.png (2)",
    ]
    job = client.post("/v1/jobs", files=FORM[:1]).json()
    assert len(job["names"]) == 2 and job["findings"] == ["It holds two."]
    wait_for(client, job["id"], "done")
