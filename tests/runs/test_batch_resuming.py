"""What a second run skips, and what a kill leaves."""

import functools
import importlib
import itertools
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
from conftest import made_image, tiny_unet
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from runs.folders import QUICK, files, lines, make_pair

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.runs.batch import MANIFEST, batch


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
    images.write(scenes[0] / "c.png", made_image(24, 32, "random") / np.float32(255))  # another source
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
