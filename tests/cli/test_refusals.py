"""`ddfm fuse` with bad files, options and outputs: one sentence, exit code 2, nothing written."""

import numpy as np
import PIL.Image
import pytest
import tifffile
from cli.helpers import SIZE, complaint, listing
from conftest import made_image

import ddfm.cli
import ddfm.cli.loading
import ddfm.pipeline
from ddfm.io import images
from ddfm.prior import Denoiser


def truncated(folder):
    whole = (folder / "ir.png").read_bytes()
    (folder / "bad.png").write_bytes(whole[: len(whole) // 2])


def animated(folder):
    frames = [PIL.Image.fromarray(made_image(*SIZE, seed=s)) for s in range(2)]
    frames[0].save(folder / "bad.gif", save_all=True, append_images=frames[1:])


BAD_FILES = {
    "missing": ("bad.png", lambda folder: None),
    "text": ("bad.png", lambda folder: (folder / "bad.png").write_text("no image")),
    "truncated": ("bad.png", truncated),
    "empty": ("bad.png", lambda folder: (folder / "bad.png").touch()),
    "a folder": ("bad.png", lambda folder: (folder / "bad.png").mkdir()),
    "of another size": ("bad.png", lambda folder: images.write(folder / "bad.png", np.zeros((20, 46)))),
    "animated": ("bad.gif", animated),
    "CMYK": ("bad.jpg", lambda folder: PIL.Image.new("CMYK", SIZE[::-1]).save(folder / "bad.jpg")),
    "NaN": ("bad.tif", lambda folder: tifffile.imwrite(folder / "bad.tif", np.full(SIZE, np.nan, np.float32))),
    "with brackets": ("[red]bad[/red].png", lambda folder: None),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_written(fuse, folder, what):
    name, make = BAD_FILES[what]
    make(folder)
    before = listing(folder)
    said = complaint(fuse(sources=("ir.png", name)))
    if what != "of another size":
        assert name in said
    assert listing(folder) == before


BAD_OPTIONS = {
    "likelihood": ("--likelihood", "nobody's"),
    "sampler": ("--sampler", "euler"),
    "contrast": ("--contrast", "high"),
    "colour": ("--colour", "third"),
    "depth": ("--depth", "12"),
    "no step": ("--steps", "0"),
    "steps in words": ("--steps", "six"),
    "too many steps": ("--steps", "1001"),
    "tile in words": ("--tile", "large"),
    "no tile": ("--tile", "0"),
    "tile below nothing": ("--tile", "-16"),
    "tile that the network does not take": ("--tile", "18"),
    "overlap below nothing": ("--overlap", "-1"),
    "overlap as large as the tile": ("--tile", "16", "--overlap", "16"),
    "device": ("--device", "gpu"),
    "unknown option": ("--bogus",),
    "prior": ("--prior", "no/such/prior"),
    "prior that is an image": ("--prior", __file__),
}


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_a_bad_option_is_refused_in_one_line_and_nothing_is_written(fuse, folder, what):
    before = listing(folder)
    said = complaint(fuse(*BAD_OPTIONS[what]))
    assert BAD_OPTIONS[what][-1] in said or BAD_OPTIONS[what][0] in said
    assert listing(folder) == before


@pytest.mark.parametrize("output", ["fused.webp", "fused", "nowhere/fused.png", "taken"])
def test_a_bad_output_is_refused_before_the_work(fuse, folder, monkeypatch, output):
    monkeypatch.setattr(ddfm.cli.loading, "pipeline", lambda *args: pytest.fail("the prior was loaded"))
    (folder / "taken").mkdir()
    before = listing(folder)
    complaint(fuse(output=output))
    assert listing(folder) == before


def test_16_bits_do_not_fit_a_jpeg(fuse, folder):
    assert "16 bits" in complaint(fuse("--depth", "16", output="fused.jpg"))


def test_one_source_is_not_a_pair(fuse):
    assert "two or more" in complaint(fuse(sources=("ir.png",)))


def test_three_sources_are_too_many_for_the_paper(fuse, folder):
    (folder / "third.png").write_bytes((folder / "ir.png").read_bytes())
    assert "two sources" in complaint(fuse("--likelihood", "paper", sources=("ir.png", "vis.png", "third.png")))


@pytest.mark.parametrize("make", ["text", "pickle"])
def test_a_checkpoint_that_is_not_one_is_refused(fuse, folder, make):
    checkpoint = folder / "model.pt"
    if make == "text":
        checkpoint.write_text("no weights")
    else:
        import torch

        torch.save({"payload": Payload(str(folder / "ran"))}, checkpoint)
    complaint(fuse("--prior", checkpoint))
    assert not (folder / "ran").exists() and not (folder / "fused.png").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_failed_run_leaves_an_older_result_alone(fuse, folder):
    (folder / "fused.png").write_text("old")
    complaint(fuse("--steps", "0"))
    assert (folder / "fused.png").read_text() == "old"


def test_a_bug_keeps_its_traceback(fuse, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Denoiser, "__call__", broken)
    with pytest.raises(ZeroDivisionError):
        fuse()
