"""Folders: what is written, what does not depend on what, what is skipped, and what a kill leaves."""

import functools
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import made_picture, tiny_unet
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

import ddfm.runs.execution
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.pipeline import DDFMPipeline
from ddfm.registration import from_matrix
from ddfm.runs.batch import MANIFEST, batch
from ddfm.runs.execution import image_generator
from ddfm.runs.manifest import Manifest
from ddfm.runs.scene import Scene

QUICK = {"num_inference_steps": 3, "likelihood": "paper"}


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """A tiny random prior in a folder, as `load_prior` takes it."""
    folder = tmp_path_factory.mktemp("prior")
    tiny_unet().save_pretrained(folder / "unet")
    DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type="epsilon").save_pretrained(folder / "scheduler")
    return folder


def make_pair(root, stem, size=(24, 32), suffix=".png", dtype=np.uint8, colour=False):
    """One image for each of root/ir and root/vi."""
    for k, sensor in enumerate(("ir", "vi")):
        (root / sensor).mkdir(exist_ok=True)
        picture = made_picture(*size, seed=sum(map(ord, stem)) + k)
        if colour and k:
            picture = np.stack([picture, picture // 2, 255 - picture], axis=-1)
        bits = 8 * np.dtype(dtype).itemsize
        images.write(root / sensor / f"{stem}{suffix}", picture.astype(np.float32) / 255, bits)


@pytest.fixture
def scenes(tmp_path):
    """Five pairs, three of them of one size; [ir, vi]."""
    for stem in ("a", "c", "e"):
        make_pair(tmp_path, stem)
    make_pair(tmp_path, "b", (17, 41))
    make_pair(tmp_path, "d", (40, 24))
    return [tmp_path / "ir", tmp_path / "vi"]


def files(folder):
    """{name: bytes} of the images in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".tif")}


def lines(folder):
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


@pytest.fixture
def calls(monkeypatch):
    """The shape of the sources of each call of the pipeline, (sensors, batch, height, width)."""
    seen = []
    original = DDFMPipeline.__call__

    def spy(self, sources, *args, **kwargs):
        seen.append((len(sources), len(sources[0]), *sources[0][0].shape[:2]))
        return original(self, sources, *args, **kwargs)

    monkeypatch.setattr(DDFMPipeline, "__call__", spy)
    spy.__signature__ = inspect.signature(original)
    return seen


# ------------------------------------------------------------------------------------------------------ what is written


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
    images.write(scenes[1] / "d.png", made_picture(40, 25) / np.float32(255))
    images.write(scenes[1] / "lonely.png", made_picture(24, 32) / np.float32(255))
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
    images.write(scenes[1] / "lonely.png", made_picture(24, 32) / np.float32(255))
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
    values = made_picture(30, 20).T[..., None].astype(np.int16)
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


# ----------------------------------------------------------------------------------------------- volumes, three sensors


def make_volumes(root, stem, suffix=".nii.gz", shape=(17, 20, 3), seed=0):
    """One volume for each of root/ir and root/vi, of shape (X, Y, Z)."""
    nibabel = pytest.importorskip("nibabel")
    for k, sensor in enumerate(("ir", "vi")):
        (root / sensor).mkdir(exist_ok=True)
        values = np.stack([made_picture(*shape[:2], seed=seed + 9 * k + z) for z in range(shape[2])], axis=-1)
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.int16), np.diag([2, 3, 4, 1])), root / sensor / (stem + suffix)
        )


def test_volumes_are_scenes_beside_pictures(scenes, prior, tmp_path, calls):
    nibabel = pytest.importorskip("nibabel")
    make_volumes(tmp_path, "head")
    make_volumes(tmp_path, "knee", ".nii", seed=30)
    out, seen = tmp_path / "out", []
    common = {"prior": prior, "seed": 4, "batch_size": 2} | QUICK
    result = batch(scenes, out, progress=lambda done, total: seen.append(done), **common)
    assert result.failed == {}
    pictures = {f"{stem}.png" for stem in "abcde"}
    assert {path.name for path in result.fused} == pictures | {"head.nii.gz", "knee.nii"}
    assert calls.count((2, 1, 20, 17)) == 6  # slice by slice
    assert seen == sorted(seen) and seen[-1] == 7
    fused = nibabel.load(out / "head.nii.gz")
    assert fused.header.get_zooms() == (2, 3, 4) and fused.get_fdata().max() > 100
    scene = Scene.read([folder / "head.nii.gz" for folder in scenes])
    pipe = DDFMPipeline.from_prior(prior)
    pipe.set_progress_bar_config(disable=True)
    alone = scene.fuse(pipe, seed=image_generator(4, "head").initial_seed(), **QUICK)
    np.testing.assert_allclose(fused.get_fdata(), scene.sources[0].restore(alone).transpose(2, 1, 0), atol=0.01)

    before = (out / "knee.nii").read_bytes()
    (out / "knee.nii").write_bytes(before[:-2])
    calls.clear()
    again = batch(scenes, out, resume=True, overwrite=True, **common)
    assert [path.name for path in again.fused] == ["knee.nii"] and len(again.skipped) == 6
    assert len(calls) == 3 and (out / "knee.nii").read_bytes() == before
    assert len(batch(scenes, out, resume=True, **common).skipped) == 7


def test_volumes_that_do_not_fit_are_listed_and_the_rest_goes_on(prior, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for stem in ("beside an image", "elsewhere", "whole"):
        make_volumes(tmp_path, stem)
    (tmp_path / "vi" / "beside an image.nii.gz").unlink()
    images.write(tmp_path / "vi" / "beside an image.png", made_picture(20, 17) / np.float32(255))
    away = np.eye(4)
    away[:3, 3] = 900
    nibabel.save(nibabel.Nifti1Image(np.zeros((17, 20, 2)), away), tmp_path / "vi" / "elsewhere.nii.gz")
    result = batch([tmp_path / "ir", tmp_path / "vi"], tmp_path / "out", prior=prior, **QUICK)
    assert [path.name for path in result.fused] == ["whole.nii.gz"]
    assert "volume of 3 slices" in result.failed["beside an image"]
    assert "do not overlap" in result.failed["elsewhere"]


def test_a_format_of_volumes_holds_for_volumes(prior, tmp_path):
    make_volumes(tmp_path, "head")
    folders = [tmp_path / "ir", tmp_path / "vi"]
    result = batch(folders, tmp_path / "out", prior=prior, format="nii", **QUICK)
    assert [path.name for path in result.fused] == ["head.nii"]
    result = batch(folders, tmp_path / "dicom", prior=prior, format="dcm", **QUICK)
    assert "DICOM source" in result.failed["head"]


def test_rows_of_volumes(prior, tmp_path):
    make_volumes(tmp_path, "head")
    rows = table(
        tmp_path,
        "ir,vi,output\nir/head.nii.gz,vi/head.nii.gz,\nir/head.nii.gz,vi/head.nii.gz,sub/x.nii\n"
        "ir/head.nii.gz,vi/head.nii.gz,y.png\n",
    )
    out = tmp_path / "out"
    result = batch(rows, out, prior=prior, **QUICK)
    assert {path.relative_to(out).as_posix() for path in result.fused} == {"head.nii.gz", "sub/x.nii"}
    assert result.failed.keys() == {"y"} and "volumes" in result.failed["y"]
    with pytest.raises(InputError, match="one of the sources"):
        batch(table(tmp_path / "ir", "a,b\nhead.nii.gz,../vi/head.nii.gz\n"), tmp_path / "ir", prior=prior, **QUICK)


def make_third(root, stem, colour):
    (root / "third").mkdir(exist_ok=True)
    picture = made_picture(24, 32, seed=7)
    images.write(root / "third" / f"{stem}.png", (np.stack([picture] * 2 + [255 - picture], -1) if colour else picture))


def test_three_folders_and_three_columns(prior, tmp_path, calls):
    for stem, colours in (("none", (0, 0)), ("one", (0, 1)), ("two", (1, 1))):
        make_pair(tmp_path, stem, colour=colours[0])
        make_third(tmp_path, stem, colours[1])
    folders = [tmp_path / name for name in ("ir", "vi", "third")]
    quick = {"prior": prior, "num_inference_steps": 2}
    result = batch(folders, tmp_path / "out", **quick)
    assert result.failed == {} and set(calls) == {(3, 1, 24, 32)}
    pixels = {path.stem: images.read(path).pixels for path in result.fused}
    assert {stem: picture.ndim for stem, picture in pixels.items()} == {"none": 2, "one": 3, "two": 3}
    rows = "".join(f"ir/{stem}.png,vi/{stem}.png,third/{stem}.png\n" for stem in ("none", "one", "two"))
    by_table = batch(table(tmp_path, "a,b,c\n" + rows), tmp_path / "table", **quick)
    assert files(tmp_path / "table") == files(tmp_path / "out") and len(by_table.fused) == 3
    with pytest.raises(InputError, match="two sources"):
        batch(folders, tmp_path / "paper", **QUICK | quick)


# -------------------------------------------------------------------------------------------------- what goes together


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


# ------------------------------------------------------------------------------------------------------------- resuming


def test_what_is_complete_is_skipped(scenes, prior, tmp_path, calls):
    out = tmp_path / "out"
    batch(scenes, out, prior=prior, **QUICK)
    before, done = files(out), len(calls)
    result = batch(scenes, out, prior=prior, resume=True, **QUICK)
    assert (result.fused, len(result.skipped), len(calls)) == ([], 5, done)
    assert files(out) == before
    assert len(lines(out)) == 6
    with pytest.raises(InputError, match=r"earlier run.*--resume.*--overwrite"):
        batch(scenes, out, prior=prior, **QUICK)
    batch(scenes, out, prior=prior, overwrite=True, **QUICK)  # all is done again
    assert len(calls) == 2 * done
    assert files(out) == before


def test_a_changed_setting_is_not_complete(prior, tmp_path):
    make_pair(tmp_path, "a")
    scenes, out = [tmp_path / "ir", tmp_path / "vi"], tmp_path / "out"
    settings = dict(QUICK)
    before = batch(scenes, out, prior=prior, **settings).fused[0].read_bytes()
    for change in (
        {"seed": 1},
        {"num_inference_steps": 4},
        {"normalise": True},
        {"likelihood": "released"},
        {"depth": 16},
    ):
        settings |= change
        result = batch(scenes, out, prior=prior, resume=True, **settings)
        assert (len(result.fused), result.skipped) == (1, [])
        assert result.fused[0].read_bytes() != before
        before = result.fused[0].read_bytes()
        assert len(batch(scenes, out, prior=prior, resume=True, **settings).skipped) == 1


def test_another_prior_of_the_same_name_is_not_complete(scenes, tmp_path):
    folder = tmp_path / "prior"
    DDPMScheduler().save_pretrained(folder / "scheduler")
    for seed, skipped in ((0, 0), (0, 5), (1, 0)):
        tiny_unet(seed=seed).save_pretrained(folder / "unet")
        result = batch(scenes, tmp_path / "out", prior=folder, resume=True, **QUICK)
        assert len(result.skipped) == skipped


def test_what_was_changed_since_is_not_complete(scenes, prior, tmp_path):
    out = tmp_path / "out"
    batch(scenes, out, prior=prior, **QUICK)
    before = files(out)
    (out / "a.png").write_bytes(before["a.png"][:-20])  # cut short
    (out / "b.png").unlink()
    images.write(scenes[0] / "c.png", made_picture(24, 32, "random") / np.float32(255))  # another source
    manifest = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    of_d = next(line for line in manifest if b'"name": "d"' in line)
    cut = [line for line in manifest if line != of_d] + [of_d[: len(of_d) // 2]]  # a kill within the last line
    (out / MANIFEST).write_bytes(b"".join(cut))
    result = batch(scenes, out, prior=prior, resume=True, **QUICK)
    assert sorted(path.stem for path in result.fused) == ["b", "c"]
    assert result.failed.keys() == {"a", "d"}  # perhaps somebody's work: not lost unasked
    assert all("changed since" in sentence for sentence in result.failed.values())
    result = batch(scenes, out, prior=prior, resume=True, overwrite=True, **QUICK)
    assert sorted(path.stem for path in result.fused) == ["a", "d"]
    assert [path.stem for path in result.skipped] == ["b", "c", "e"]
    after = files(out)
    assert after.pop("c.png") != before.pop("c.png")
    assert after == before
    assert len({line["name"] for line in lines(out)[1:]}) == 5


def test_the_rest_of_a_group_is_made_in_the_same_group(scenes, prior, tmp_path, calls):
    out = tmp_path / "out"
    common = {"prior": prior, "depth": 32, "format": "tif", "batch_size": 3} | QUICK
    batch(scenes, out, **common)
    before = files(out)
    (out / "c.tif").unlink()
    calls.clear()
    result = batch(scenes, out, resume=True, **common)
    assert calls == [(2, 3, 24, 32)]
    assert [path.name for path in result.fused] == ["c.tif"]
    assert files(out) == before  # to the last bit of a float


def test_a_run_that_fails_at_once_leaves_the_record_of_the_last(scenes, prior, tmp_path):
    out = tmp_path / "out"
    batch(scenes, out, prior=prior, **QUICK)
    before = (out / MANIFEST).read_bytes()
    for resume in (False, True):
        with pytest.raises(InputError):
            batch(scenes, out, prior=prior, resume=resume, overwrite=not resume, likelihood="none such")
    assert (out / MANIFEST).read_bytes() == before


def test_what_a_killed_run_left_half_written_is_removed(scenes, prior, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".ddfm-0123456789abcdef.part").write_bytes(b"half")
    batch(scenes, tmp_path / "out", prior=prior, **QUICK)
    assert not list((tmp_path / "out").glob(".*"))


# --------------------------------------------------------------------------------------------------- a table of scenes


def table(tmp_path, text):
    (tmp_path / "scenes.csv").write_text(text, encoding="utf-8")
    return tmp_path / "scenes.csv"


def test_a_csv_names_scenes(scenes, prior, tmp_path):
    rows = table(tmp_path, 'infrared,visible,output\nir/a.png,vi/a.png,\nir/b.png,vi/b.png,"day 1/ü, b.tif"\n')
    out = tmp_path / "out"
    result = batch(rows, out, prior=prior, **QUICK)
    assert {path.relative_to(out).as_posix() for path in result.fused} == {"a.png", "day 1/ü, b.tif"}
    assert images.read(out / "day 1" / "ü, b.tif").pixels.shape == (17, 41)
    assert len(batch(rows, out, prior=prior, resume=True, **QUICK).skipped) == 2
    assert (out / "a.png").read_bytes() == files(batch(scenes, tmp_path / "o", prior=prior, **QUICK).fused[0].parent)[
        "a.png"
    ]


def test_rows_that_cannot_be_used_are_listed(scenes, prior, tmp_path):
    rows = table(
        tmp_path,
        "infrared,visible,output\nir/a.png,vi/a.png\nir/b.png,,\n,,\nir/c.png,vi/c.png,../c.png\n"
        f"ir/d.png,vi/d.png,{tmp_path}/d.png\nir/e.png,vi/absent.png,\nir/e.png,vi/e.png,x.png,more\n",
    )
    result = batch(rows, tmp_path / "out", prior=prior, **QUICK)
    assert [path.name for path in result.fused] == ["a.png"]
    assert len(result.failed) == 6
    assert sum("outside" in sentence for sentence in result.failed.values()) == 2
    assert sum("needs 2 sources" in sentence for sentence in result.failed.values()) == 3
    assert sum("absent.png" in sentence for sentence in result.failed.values()) == 1
    assert not (tmp_path / "c.png").exists() and not (tmp_path / "d.png").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n", "header"),
        ("infrared,visible\n", "header"),
        ("infrared,output\nir/a.png,a.png\n", "header"),
        ("ir/a.png,vi/a.png\nir/b.png,vi/b.png\n", "no header"),
        ("some/a.xyz,vi/a.png\nir/b.png,vi/b.png\n", "no header"),
        ("a,a\nir/a.png,vi/a.png\n", "two columns"),
        ("a,b\nir/a.png,vi/a.png\0\n", "NUL"),
        ("a,b\nir/a.png,vi/a.png\nir/a.png,vi/b.png\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,x\nir/a.png,vi/b.png,./x\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,s/x\nir/a.png,vi/b.png,s//x\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,a.png\nir/a.png,vi/b.png,a.tif\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,ir/b.png\nir/b.png,vi/b.png,x\n", "one of the sources"),
        ('a,b\n"ir/a.png,vi/a.png\n', "CSV"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused(scenes, prior, tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        batch(table(tmp_path, text), tmp_path, prior=prior, **QUICK)


def test_a_csv_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "scenes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="UTF-8"):
        batch(tmp_path / "scenes.csv", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch size"),
        ({"format": "xyz"}, "must end in"),
        ({"format": "jpg", "depth": 16}, "16 bits"),
        ({"likelihood": "none such"}, "likelihood"),
        ({"generator": None}, "generator is no setting"),
        ({"step": 3}, "step is no setting"),
        ({"prior": "/none/such"}, "prior"),
        ({"tile": 7}, "tile"),
    ],
)
def test_what_concerns_all_pairs_is_raised(scenes, prior, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        batch(scenes, tmp_path / "out", **({"prior": prior} | QUICK | options))


def test_folders_that_cannot_be_used_are_refused(scenes, prior, tmp_path):
    for pairs, sentence in (
        (scenes[:1], "tell two sensors apart"),
        ([], "none was given"),
        (tmp_path / "absent.csv", "does not exist"),
        ([scenes[0], tmp_path / "absent"], "not a folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            batch(pairs, tmp_path / "out", prior=prior)
    with pytest.raises(InputError, match="folder of sources"):
        batch(scenes, scenes[1] / ".." / "vi", prior=prior)


def test_an_output_folder_that_is_a_file_is_refused(scenes, prior, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        batch(scenes, tmp_path / "file", prior=prior)


# ---------------------------------------------------------------------------------------------------------------- kills

FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork to be quick")


@pytest.fixture
def one_thread():
    """A forked process has not the threads of OpenMP's pool and would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STEPS = ("os.write", "os.fsync", "os.replace", "ddfm.runs.execution.fuse_images", "ddfm.io.images.read_any")


def in_a_process(*args, killed_at=0, **kwargs):
    """A process that runs `batch`, and is killed when it is about to take its n-th step."""
    process = multiprocessing.get_context("fork").Process(target=_batch_until, args=(killed_at, args, kwargs))
    process.start()
    return process


def _batch_until(killed_at, args, kwargs):
    torch.set_num_threads(1)
    count = itertools.count(1)
    for where in STEPS if killed_at else ():
        folder, name = where.rsplit(".", 1)
        module = importlib.import_module(folder)
        setattr(module, name, functools.partial(_step, getattr(module, name), count, killed_at))
    batch(*args, **kwargs)


def _step(original, count, killed_at, *args, **kwargs):
    if next(count) == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


def killed_at_steps(scenes, prior, tmp_path, steps):
    """Kill runs that resume one another, each at its step; every file is whole, and in the end the same."""
    common = {"prior": prior, "batch_size": 2, "depth": 32, "format": "tif", "resume": True} | QUICK
    batch(scenes, tmp_path / "whole", **common)
    whole, hits, out = files(tmp_path / "whole"), 0, tmp_path / "out0"
    for k, step in enumerate(steps):
        process = in_a_process(scenes, out, killed_at=step, **common)
        process.join(300)
        hits += process.exitcode == -signal.SIGKILL
        left = files(out) if out.exists() else {}
        assert left.items() <= whole.items()  # whole, and the right ones
        if left == whole:
            out = tmp_path / f"out{k + 1}"
    assert batch(scenes, out, **common).failed == {}
    assert files(out) == whole
    assert not list(out.glob(".*"))
    assert (
        len({line["name"] for line in lines(out)[1:]}) == len(lines(out)) - 1
    )  # one row per scene, no trace of a kill
    assert hits > len(steps) / 3


@FORK
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("steps", [(1, 2, 3), (9, 8, 9), (12, 5, 20, 4)])
def test_killed_at_any_step_it_resumes_to_the_same(scenes, prior, tmp_path, steps):
    killed_at_steps(scenes, prior, tmp_path, steps)


@FORK
@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_killed_at_every_step_it_resumes_to_the_same(scenes, prior, tmp_path):
    for k in range(12):
        make_pair(tmp_path, f"more {k}", (24, 32) if k % 3 else (32, 24))
    for step in range(1, 40):
        (tmp_path / str(step)).mkdir()
        killed_at_steps(scenes, prior, tmp_path / str(step), [step])
    killed_at_steps(scenes, prior, tmp_path, random.Random(0).choices(range(1, 60), k=50))


@FORK
@pytest.mark.usefixtures("one_thread")
def test_interrupted_it_finishes_what_it_writes_and_stops(scenes, prior, tmp_path):
    common = {"prior": prior, "likelihood": "paper", "num_inference_steps": 50}

    def interrupt_after_two(done, total):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background is deaf to it
        if done >= 2:
            os.kill(os.getpid(), signal.SIGINT)

    process = in_a_process(scenes, tmp_path / "out", progress=interrupt_after_two, **common)
    process.join(120)
    assert process.exitcode == 1  # KeyboardInterrupt, not a hang
    done = files(tmp_path / "out")
    assert 0 < len(done) < 5
    assert {line["output"] for line in lines(tmp_path / "out")[1:]} == done.keys()
    result = batch(scenes, tmp_path / "out", resume=True, **common)
    assert len(result.skipped) == len(done)
