"""Folders: what is written, and what does not depend on what."""

import inspect
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import made_image
from runs.folders import QUICK, lines, make_pair

import ddfm.runs.execution
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.pipeline import DDFMPipeline
from ddfm.registration import from_matrix
from ddfm.runs.batch import MANIFEST, batch
from ddfm.runs.execution import image_generator
from ddfm.runs.manifest import Manifest


def test_a_folder_is_fused(scenes, prior, tmp_path):
    out = tmp_path / "new" / "out"
    result = batch(scenes, out, prior=prior, **QUICK)
    assert sorted(path.name for path in result.fused) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "c.png", "d.png", "e.png", MANIFEST]
    assert (result.skipped, result.failed, result.unmatched) == ([], {}, [])
    assert images.read(out / "b.png").pixels.shape == (17, 41)
    assert 0 < result.network_share <= 1
    assert result.seconds > 0


def test_a_picture_is_what_the_pipeline_gives_with_its_own_generator(scenes, prior, tmp_path):
    batch(scenes, tmp_path / "out", prior=prior, seed=3, depth=32, format="tif", batch_size=3, **QUICK)
    pipe = DDFMPipeline.from_prior(prior)
    pipe.set_progress_bar_config(disable=True)
    alone = pipe([folder / "c.png" for folder in scenes], generator=image_generator(3, "c"), **QUICK).images[0]
    np.testing.assert_allclose(images.read(tmp_path / "out" / "c.tif").pixels, alone, atol=1e-5, rtol=0)


def test_the_manifest_says_how_it_was_made(scenes, prior, tmp_path):
    batch(scenes, tmp_path / "out", prior=prior, seed=5, **QUICK)
    header, *pictures = lines(tmp_path / "out")
    assert header["settings"]["settings"]["seed"] == 5
    assert header["settings"]["settings"]["num_inference_steps"] == 3
    assert header["settings"]["settings"]["likelihood"].startswith("Paper(")
    assert header["settings"]["settings"]["sampler"] is None  # the registered scheduler, which is named beside
    assert header["settings"]["scheduler"] == "DPMSolverMultistepScheduler"
    assert {"python", "torch", "diffusers"} <= header["versions"].keys()
    assert sorted(line["name"] for line in pictures) == ["a", "b", "c", "d", "e"]
    for line in pictures:
        assert [source["path"] for source in line["sources"]] == [str(f / f"{line['name']}.png") for f in scenes]
        assert all(len(source["sha256"]) == 64 for source in line["sources"])
        assert line["seconds"] > 0


def test_what_reads_no_further_is_listed_and_the_rest_goes_on(scenes, prior, tmp_path):
    (scenes[0] / "c.png").write_bytes(b"not an image")
    make_pair(tmp_path, "small", (12, 30))
    images.write(scenes[1] / "d.png", made_image(40, 25) / np.float32(255))
    images.write(scenes[1] / "lonely.png", made_image(24, 32) / np.float32(255))
    result = batch(scenes, tmp_path / "out", prior=prior, batch_size=2, **QUICK)
    assert sorted(path.stem for path in result.fused) == ["a", "b", "e"]
    assert result.failed.keys() == {"c", "d", "small"}
    assert "c.png" in result.failed["c"]
    assert "25x40" in result.failed["d"] and "24x40" in result.failed["d"]
    assert "16x16" in result.failed["small"]
    assert [path.name for path in result.unmatched] == ["lonely.png"]
    assert {line["name"]: line["error"] for line in lines(tmp_path / "out") if "error" in line} == result.failed


@pytest.mark.parametrize(
    "where", ["ddfm.io.images.read_any", "ddfm.io.images.write", "ddfm.runs.execution.fuse_images"]
)
@pytest.mark.parametrize("error", [MemoryError(), KeyError("NumberOfFrames"), RuntimeError("out of memory")])
def test_any_exception_of_a_pair_is_listed_and_the_rest_goes_on(scenes, prior, tmp_path, monkeypatch, where, error):
    folder, name = where.rsplit(".", 1)
    original, seen = getattr(__import__(folder, fromlist=[name]), name), []

    def broken(*args, **kwargs):
        seen.append(1)
        if len(seen) == 1:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(where, broken)
    result = batch(scenes, tmp_path / "out", prior=prior, **QUICK)
    assert len(result.fused) == 4
    (sentence,) = result.failed.values()
    assert ("unexpected" if isinstance(error, KeyError) else "not enough memory") in sentence


@pytest.mark.parametrize(
    "change",
    [
        *({"kind": kind} for kind in (None, {}, [1], ["a", 1, 2], [0, 0, 2, 2], [True, 2, 2], [2**40, 2, 2])),
        *({"output": output} for output in (None, 3, "a\0b", [])),
        *({"sources": sources} for sources in (None, {}, [1], [{}], [{"sha256": 1}])),
        {"sha256": None},
    ],
)
def test_a_damaged_line_of_the_manifest_does_not_count(scenes, prior, tmp_path, change):
    out = tmp_path / "out"
    out.mkdir()
    whole = {"name": "a", "output": "a.png", "sha256": "", "sources": [], "settings": "", "kind": [2, 2, 2, 2]}
    (out / MANIFEST).write_text("[" * 100_000 + "\n\0\n3\n" + json.dumps(whole | change) + "\n")
    manifest = Manifest(out / MANIFEST, {}, resume=True)
    assert not manifest.lines and not manifest.begun


def test_an_output_that_links_to_any_source_is_refused_before_the_work(scenes, prior, tmp_path, calls):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(scenes[1] / "b.png")
    before = (scenes[1] / "b.png").read_bytes()
    with pytest.raises(InputError, match="one of the sources"):
        batch(scenes, tmp_path / "out", prior=prior, **QUICK)
    assert not calls and (scenes[1] / "b.png").read_bytes() == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(scenes, prior, tmp_path, calls):
    (scenes[0] / "c.png").write_bytes(b"not an image")
    images.write(scenes[1] / "lonely.png", made_image(24, 32) / np.float32(255))
    out = tmp_path / "new" / "out"
    before, seen = sorted(tmp_path.rglob("*")), []
    common = {"prior": prior, "progress": lambda done, total: seen.append((done, total))} | QUICK
    rehearsed = batch(scenes, out, dry_run=True, **common)
    assert sorted(tmp_path.rglob("*")) == before and not calls and seen[-1] == (4, 5)
    result = batch(scenes, out, **common)
    assert sorted(rehearsed.fused) == sorted(result.fused)
    assert (rehearsed.failed, rehearsed.unmatched) == (result.failed, result.unmatched)
    assert [pair.name for pair in rehearsed.pairs] == ["a", "b", "c", "d", "e"]
    again = batch(scenes, out, dry_run=True, resume=True, **common)
    assert (again.fused, len(again.skipped), again.failed) == ([], 4, result.failed)
    with pytest.raises(InputError, match="--resume"):
        batch(scenes, out, dry_run=True, **common)


def test_what_was_assumed_is_in_the_manifest(scenes, prior, tmp_path, monkeypatch):
    read = images.read_any

    def assuming(path, *args):
        image = read(path, *args)
        return replace(image, findings=(f"{path.name} was stretched.",)) if path.match("ir/b.png") else image

    monkeypatch.setattr(images, "read_any", assuming)
    result = batch(scenes, tmp_path / "out", prior=prior, **QUICK)
    assert result.findings == {"b": ["b.png was stretched."]}
    assert {
        line["name"]: line["findings"] for line in lines(tmp_path / "out")[1:] if line["findings"]
    } == result.findings


def test_files_of_one_folder_are_paired_and_keep_their_subfolders(prior, tmp_path):
    make_pair(tmp_path, "x")
    for k, name in enumerate(("day 1/FLIR_0001_T.png", "day 1/FLIR_0001.png", "day 2/FLIR_0001_T.png")):
        (tmp_path / "flight" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / ("ir", "vi")[k % 2] / "x.png", tmp_path / "flight" / name)
    out = tmp_path / "flight" / "fused"
    for resume in (False, True):  # the results, within the folder, are not taken for sources
        result = batch(tmp_path / "flight", out, prior=prior, resume=resume, **QUICK)
        assert [path.name for path in result.unmatched] == ["FLIR_0001_T.png"]
    assert result.skipped == [out / "day 1" / "FLIR_0001.png"]


def test_another_run_in_the_folder_is_refused(scenes, prior, tmp_path):
    out, refused = tmp_path / "out", []

    def again(done, total):
        if not refused:
            with pytest.raises(InputError, match=r"Another run is writing to .*out: wait for its end") as error:
                batch(scenes, out, prior=prior, resume=True, **QUICK)
            refused.append(error)

    assert not batch(scenes, out, prior=prior, progress=again, **QUICK).failed
    assert refused and sorted(path.suffix for path in out.iterdir()) == [".jsonl", *[".png"] * 5]


def test_the_same_folder_twice_is_refused(scenes, prior, tmp_path):
    with pytest.raises(InputError, match="twice"):
        batch([scenes[0], scenes[1] / ".." / "ir"], tmp_path / "out", prior=prior)


def test_what_cannot_be_written_is_listed_and_the_rest_goes_on(scenes, prior, tmp_path):
    (tmp_path / "out" / "b.png").mkdir(parents=True)
    result = batch(scenes, tmp_path / "out", prior=prior, **QUICK)
    assert sorted(path.stem for path in result.fused) == ["a", "c", "d", "e"]
    assert "folder" in result.failed["b"]


def test_a_manifest_that_cannot_be_written_ends_the_run(scenes, prior, tmp_path, monkeypatch):
    monkeypatch.setattr("ddfm.runs.manifest.os.write", lambda file, data: len(data) // 2)  # as on a full disk
    with pytest.raises(InputError, match="manifest"):
        batch(scenes, tmp_path / "out", prior=prior, **QUICK)


def test_a_failure_of_writing_itself_is_listed(scenes, prior, tmp_path, monkeypatch):
    original = images.write

    def full(path, *args, **kwargs):
        if path.stem == "c":
            raise InputError("Cannot write c.png: the disk is full; free some space.")
        original(path, *args, **kwargs)

    monkeypatch.setattr(images, "write", full)
    result = batch(scenes, tmp_path / "out", prior=prior, **QUICK)
    assert result.failed.keys() == {"c"}
    assert len(result.fused) == 4


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 16),
        ({"depth": 8}, 8),
        ({"format": "jpg"}, 8),
        ({"format": "TIF"}, 16),
        ({"depth": 32, "format": ".tif"}, 32),
    ],
)
def test_depth_and_format(prior, tmp_path, options, bits):
    make_pair(tmp_path, "deep", dtype=np.uint16)
    result = batch([tmp_path / "ir", tmp_path / "vi"], tmp_path / "out", prior=prior, **options, **QUICK)
    assert images.read(result.fused[0]).bits == bits


def test_grey_pictures_stay_grey_beside_coloured_ones(prior, tmp_path):
    make_pair(tmp_path, "grey")
    make_pair(tmp_path, "colour", colour=True)
    batch([tmp_path / "ir", tmp_path / "vi"], tmp_path / "out", prior=prior, batch_size=2, **QUICK)
    assert images.read(tmp_path / "out" / "grey.png").pixels.ndim == 2
    assert images.read(tmp_path / "out" / "colour.png").pixels.ndim == 3


def test_geometry_comes_from_the_source_that_has_it(prior, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    make_pair(tmp_path, "head", (30, 20))
    (tmp_path / "ir" / "head.png").unlink()
    values = made_image(30, 20).T[..., None].astype(np.int16)
    nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(tmp_path / "ir" / "head.nii")
    result = batch([tmp_path / "ir", tmp_path / "vi"], tmp_path / "out", prior=prior, format="nii.gz", **QUICK)
    assert result.failed == {}
    assert nibabel.load(result.fused[0]).header.get_zooms()[:2] == (2.0, 3.0)


def test_sources_are_aligned_where_asked(scenes, prior, tmp_path, monkeypatch):
    def unsure(moving, fixed):
        moved = from_matrix(np.array([[1, 0, 5.0], [0, 1, 0]]), moving.shape, fixed.shape, "It was off.")
        return replace(moved, confident=fixed.shape[:2] != (17, 41))

    monkeypatch.setattr("ddfm.registration.frame.register", unsure)
    result = batch(scenes, tmp_path / "out", prior=prior, align=True, **QUICK)
    assert list(result.failed) == ["b"] and "align=force" in result.failed["b"]
    line = next(x for x in map(json.loads, result.manifest.read_text().splitlines()) if x.get("name") == "a")
    assert line["registrations"][0] is None and line["registrations"][1]["matrix"][0] == [1, 0, 5]
    batch(scenes, tmp_path / "plain", prior=prior, **QUICK)
    assert (tmp_path / "out" / "a.png").read_bytes() != (tmp_path / "plain" / "a.png").read_bytes()


def test_progress_rises_to_the_end(scenes, prior, tmp_path):
    (scenes[0] / "c.png").write_bytes(b"not an image")
    seen = []
    options = QUICK | {"num_samples": 2}
    batch(scenes, tmp_path / "out", prior=prior, progress=lambda done, total: seen.append((done, total)), **options)
    assert {total for _, total in seen} == {5}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (5, 5)
    assert any(0 < done < 1 for done, _ in seen)  # within an image


def test_progress_goes_tile_by_tile(prior, tmp_path):
    make_pair(tmp_path, "a", (33, 46))
    seen = []
    options = {"tile": 24, "tile_overlap": 8, "progress": lambda done, total: seen.append(done)} | QUICK
    batch([tmp_path / "ir", tmp_path / "vi"], tmp_path / "out", prior=prior, **options)
    np.testing.assert_allclose(seen[:18], np.arange(1, 19) / 18)  # six tiles, three steps


def test_one_size_goes_through_the_network_together(scenes, prior, tmp_path, calls):
    batch(scenes, tmp_path / "out", prior=prior, batch_size=2, **QUICK)
    assert sorted(calls) == [(2, 1, 17, 41), (2, 1, 24, 32), (2, 1, 40, 24), (2, 2, 24, 32)]


def test_few_large_pictures_go_together_and_few_wait(scenes, prior, tmp_path, calls, monkeypatch):
    monkeypatch.setattr(ddfm.runs.execution, "GROUP_PIXELS", 2100)
    batch(scenes, tmp_path / "out", prior=prior, batch_size=8, **QUICK)
    # a and b wait, c makes a and c full; then d, e and b are one too many and b, who waited longest, goes
    assert calls == [(2, 2, 24, 32), (2, 1, 17, 41), (2, 1, 40, 24), (2, 1, 24, 32)]


@pytest.mark.parametrize("options", [QUICK, {"num_inference_steps": 3}, QUICK | {"sampler": "ddpm"}])
def test_a_picture_does_not_depend_on_its_batch(scenes, prior, tmp_path, options):
    common = {"prior": prior, "depth": 32, "format": "tif"} | options
    batch(scenes, tmp_path / "together", batch_size=3, **common)
    batch(scenes, tmp_path / "alone", batch_size=1, **common)
    for folder in scenes:
        (folder / "a.png").unlink()
    batch(scenes, tmp_path / "fewer", batch_size=3, **common)
    for name in ("a", "b", "c", "d", "e"):
        together = images.read(tmp_path / "together" / f"{name}.tif").pixels
        for other in ("alone", "fewer"):
            if (other, name) != ("fewer", "a"):
                pixels = images.read(tmp_path / other / f"{name}.tif").pixels
                np.testing.assert_allclose(pixels, together, atol=1e-5, rtol=0)


def test_noise_is_of_the_seed_and_the_name():
    def draw(seed, name):
        return torch.randn(4, generator=image_generator(seed, name)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("a", "b", "ü", "a b\n")}) == 8


def test_reading_goes_on_beside_the_network(scenes, prior, tmp_path, monkeypatch):
    read, call = images.read_any, DDFMPipeline.__call__
    begun, calls = {stem: threading.Event() for stem in "abcde"}, iter("bcde")

    def noted_read(path, *args, **kwargs):
        begun[path.stem].set()
        return read(path, *args, **kwargs)

    def waiting_call(self, *args, **kwargs):
        coming = next(calls, None)
        assert coming is None or begun[coming].wait(60), "the next pair is not read before this one is fused"
        return call(self, *args, **kwargs)

    waiting_call.__signature__ = inspect.signature(call)
    monkeypatch.setattr(images, "read_any", noted_read)
    monkeypatch.setattr(DDFMPipeline, "__call__", waiting_call)
    result = batch(scenes, tmp_path / "out", prior=prior, batch_size=1, **QUICK)
    assert len(result.fused) == 5 and result.failed == {}
