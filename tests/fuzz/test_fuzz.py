"""Damaged and hostile files: an image or one sentence, soon, in little memory, and the file as it was.

The suite runs some hundred cases; `make slow` runs 56,000 and prints what became of them.
"""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_unet
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from fuzz.corpus import CREATE_MODEL, FILES, HOSTILE, MANIFEST, TABLE
from fuzz.mutation import mutated
from hypothesis import HealthCheck, given, settings

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.prior.convert import load_guided_diffusion
from ddfm.prior.load import load_prior
from ddfm.runs.manifest import Manifest, is_manifest
from ddfm.runs.plan import plan

PATIENCE = 10  # seconds, for a small file
LARGEST = 2**30  # bytes of memory beyond what was taken before
TEXTS = [text.encode() for text in HOSTILE]
CELLS = [b"", b"../x.png", b"/etc/passwd", b"=1+1", b'"', b"\0", b"ir/a.png", b"x" * 5000, b"\xff", b"day 1/../../y"]


class Hang(BaseException):
    """Not an Exception: nothing may catch it."""


def hung(*args):
    raise Hang


@pytest.fixture
def check(tmp_path):
    """Run one case: `read(path)` gives something or raises InputError, and nothing else happens."""
    outcomes, before = Counter(), signal.signal(signal.SIGALRM, hung)
    slowest, taken = 0.0, _memory()

    def run(read, name, data):
        nonlocal slowest
        path = tmp_path / name
        path.write_bytes(data)
        start = time.perf_counter()
        signal.alarm(PATIENCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # the libraries' chatter is nothing to the user
                read(path)
            outcomes["read"] += 1
        except InputError as error:
            sentence = str(error)
            assert sentence.endswith(".") and len(sentence) < 1000 and "\n" not in sentence, sentence
            outcomes["refused"] += 1
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - start)
        assert path.read_bytes() == data

    yield run
    signal.signal(signal.SIGALRM, before)
    grown = _memory(peak=True) - taken
    print(f"{sum(outcomes.values())} cases: {dict(outcomes)}, slowest {slowest:.2f} s, {grown / 2**20:.0f} MiB")
    assert grown < LARGEST


def _memory(peak: bool = False) -> int:
    """Bytes of memory that the process has, or its peak since the last call without `peak`; 0 where none can tell."""
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0])


def read_image(path):
    image = images.read_any(path)
    assert image.pixels.dtype == np.float32 and image.pixels.ndim in (2, 3) and image.pixels.size
    assert image.pixels.min() >= 0 and image.pixels.max() <= 1  # and so no NaN
    assert all(finding.endswith(".") for finding in image.findings)


def read_manifest(path):
    manifest = Manifest(path, {}, resume=True)
    for name, line in manifest.lines.items():
        manifest.complete(name, path.parent / line["output"], [x["sha256"] for x in line["sources"]])
    for name in manifest.begun:
        manifest.made(name, path.parent / "x.png")
    is_manifest(path)


def read_plan(path):
    out = path.parent / "out"
    for pair in plan(path, out, ".png").pairs:
        assert pair.error or ".." not in pair.output.relative_to(out).parts


def cases(quick, many):
    """The test twice: as many examples as the suite has time for, and a marked one for `make slow`."""
    return pytest.mark.parametrize(
        "examples", [pytest.param(quick, id="quick"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    )


def explored(strategy, examples, case):
    """Run a case on so many examples; the quick ones are the same every time."""
    few = examples < 1000
    options = {"max_examples": examples, "deadline": None, "database": None, "derandomize": few}
    settings(**options, suppress_health_check=list(HealthCheck))(given(strategy)(case))()


@cases(60, 7000)
@pytest.mark.parametrize("kind", FILES)
def test_images_and_volumes(check, kind, examples):
    suffix, seeds = FILES[kind]
    for seed in seeds:
        check(read_image, f"seed{suffix}", seed)

    def case(data):
        check(read_image, f"x{suffix}", data)

    explored(mutated(seeds), examples, case)


@cases(60, 3000)
def test_manifests(check, examples):
    explored(mutated([MANIFEST], TEXTS), examples, lambda data: check(read_manifest, "manifest.jsonl", data))


@cases(60, 2000)
def test_tables(check, examples):
    explored(mutated([TABLE], CELLS), examples, lambda data: check(read_plan, "table.csv", data))


@cases(25, 1000)
def test_create_model_arguments(check, tmp_path, examples):
    (tmp_path / "net.pt").write_bytes((Path(__file__).parents[1] / "data" / "tiny_adm.pt").read_bytes())

    def read(path):
        load_guided_diffusion(path.with_suffix(".pt"))

    explored(mutated([CREATE_MODEL], TEXTS), examples, lambda data: check(read, "net.json", data))


@cases(15, 1000)
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_priors(check, tmp_path, file, examples):
    tiny_unet().save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    seed = json.dumps(json.loads((tmp_path / file).read_text())).encode()

    def case(data):
        check(lambda path: load_prior(tmp_path, "cpu"), file, data)

    explored(mutated([seed], TEXTS), examples, case)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_guards_guard(tmp_path):
    with pytest.raises(Hang):
        hung()
