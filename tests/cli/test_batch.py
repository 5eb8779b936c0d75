"""`ddfm batch`."""

import os

import numpy as np
import pytest
from cli.helpers import complaint, listing

import ddfm.cli
import ddfm.cli.loading
import ddfm.pipeline
from ddfm.io import images
from ddfm.runs.execution import image_generator


@pytest.fixture
def run_batch(ddfm_, sets, prior):
    def run(*options, sources=("ir", "vis")):
        paths = [sets / name for name in sources]
        common = ("-o", sets / "out", "--prior", prior, "--device", "cpu", "--steps", 2)
        return ddfm_("batch", *paths, *common, *options)

    return run


def test_batch_in_bfloat16_is_another_setting(run_batch, sets):
    assert run_batch("--resume")[1].startswith("2 fused, 0 complete before")
    assert run_batch("--resume", "--precision", "bfloat16")[1].startswith("2 fused, 0 complete before")
    assert run_batch("--resume", "--precision", "bfloat16")[1].startswith("0 fused, 2 complete before")


def test_batch_in_tiles_is_the_function(run_batch, sets, prior):
    options = ("--likelihood", "paper", "--tile", 32, "--overlap", 8, "--depth", 16)
    code, out, err = run_batch(*options)
    assert code == 0 and out.startswith("2 fused, 0 complete before, 0 failed") and "[lonely].png" in err
    pipe = ddfm.pipeline.DDFMPipeline.from_prior(prior)
    common = {"likelihood": "paper", "num_inference_steps": 2}
    sources = [sets / name / "0 [x].png" for name in ("ir", "vis")]
    tiled, whole = (
        pipe(sources, generator=image_generator(0, "0 [x]"), **tiles, **common).images[0]
        for tiles in ({"tile": 32, "tile_overlap": 8}, {"tile": None})
    )
    fused = images.read(sets / "out" / "0 [x].png").pixels
    np.testing.assert_allclose(fused, tiled, atol=0.51 / 65535 + 1e-5)
    assert np.abs(fused - whole).max() > 0.05
    assert run_batch("--resume", *options)[1].startswith("0 fused, 2 complete before")
    whole = ("--likelihood", "paper", "--tile", "none", "--depth", 16)
    assert run_batch("--resume", *whole)[1].startswith("2 fused, 0 complete before")


@pytest.mark.parametrize("option", ["--tile", "--depth"])
def test_batch_refuses_nonsense_in_one_line(run_batch, sets, option):
    before = listing(sets)
    assert f"{option} must be" in complaint(run_batch(option, "large"))
    assert listing(sets) == before


def test_batch_of_three_sensors(run_batch, sets):
    assert run_batch(sources=("ir", "vis", "[old]"))[0] == 0
    assert "two sources" in complaint(run_batch("--likelihood", "paper", "--overwrite", sources=("ir", "vis", "[old]")))


def test_batch_by_patterns_after_one_option(ddfm_, sets, prior):
    line = ("batch", sets, "--pattern", "ir/{id} [x].png", "vis/{id} [x].png", "-o", sets / "out")
    more = ("--prior", prior, "--device", "cpu", "--steps", 1)
    code, out, err = ddfm_(*line, *more, "--dry-run")
    assert code == 0 and not (sets / "out").exists()
    first, second, last = out.splitlines()
    assert first == f"0: {sets}/ir/0 [x].png + {sets}/vis/0 [x].png -> {sets}/out/0.png" and second.startswith("1: ")
    assert last == "would be: 2 fused, 0 complete before, 0 failed; nothing was written"
    assert "unmatched" in err
    assert ddfm_(*line, *more)[1].startswith("2 fused")
    assert "is complete" in ddfm_(*line, *more, "--dry-run", "--resume")[1]


def test_a_name_of_two_lines_is_shown_on_one(ddfm_, prior, sets):
    (sets / "ir" / "a\nb.png").touch()
    _, out, err = ddfm_("batch", sets / "ir", sets / "vis", "-o", sets / "out", "--prior", prior, "--dry-run")
    assert "a\\nb.png" in err and "nothing was written" in out


def test_names_that_are_not_text_are_shown_escaped(ddfm_, sets, prior):
    for folder in ("ir", "vis"):
        (sets / folder / "0 [x].png").rename(sets / folder / os.fsdecode(b"\xff.png"))
    line = ("batch", sets / "ir", sets / "vis", "-o", sets / "out", "--prior", prior, "--device", "cpu", "--steps", 1)
    code, out, _ = ddfm_(*line, "--dry-run")
    assert code == 0 and "\\udcff.png" in out
    (sets / "vis" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    code, _, err = ddfm_(*line)
    assert code == 1 and "\\udcff" in err


def test_batch_of_volumes(run_batch, volumes, sets):
    for folder, name in (("ir", "mri.nii.gz"), ("vis", "pet.nii")):
        (volumes / name).rename(sets / folder / f"head{name[3:]}")
    code, out, _ = run_batch()
    assert code == 0 and out.startswith("3 fused")
    assert listing(sets / "out") == ["0 [x].png", "1 [x].png", "head.nii.gz", "manifest.jsonl"]
    assert run_batch("--resume")[1].startswith("0 fused, 3 complete before")
