"""One pair of each bad kind among good ones: the good ones are fused, each bad one is a row with a sentence."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import struct
import zlib

import numpy as np
import PIL.Image
import pydicom
import pytest
from conftest import made_image
from fuzz.corpus import GREY, dicom, nifti, pil, tiff

import ddfm.runs.execution
from ddfm.io import images
from ddfm.runs.batch import MANIFEST, batch

GOOD = [f"good {k}" for k in range(6)]


def png_of(width, height):
    """The header of a large image, without its pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def nifti_far():
    """Pixels that begin after 12 GB."""
    data = bytearray(nifti())
    data[108:112] = struct.pack("<f", 12e9)
    return gzip.compress(bytes(data))


def without(data, *names):
    file = pydicom.dcmread(io.BytesIO(data))
    for name in names:
        delattr(file, name)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def bad_files():
    """{name with extension: what the second source is, bytes or how it is made}."""
    grey = PIL.Image.fromarray(GREY)
    whole = pil(grey, "PNG")
    return {
        "empty.png": b"",
        "text.png": b"This is not an image.",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": pil(grey, "JPEG")[:200],
        "bomb.png": png_of(60_000, 60_000),
        "sparse.png": lambda path: path.open("wb").truncate(2**33),
        "small.png": pil(grey.resize((9, 9)), "PNG"),
        "nan.tif": tiff(np.full((20, 18), np.nan, np.float32)),
        "animated.gif": pil(grey, "GIF", save_all=True, append_images=[grey.rotate(90)]),
        "pipe.png": os.mkfifo,
        "zeros.png": lambda path: os.symlink("/dev/zero", path),
        "circle.png": lambda path: os.symlink(path, path),
        "folder.png": os.mkdir,
        "missing.png": lambda path: None,
        "cut.nii": nifti()[:300],
        "far.nii.gz": nifti_far(),
        "cut.nii.gz": gzip.compress(nifti())[:-30],
        "volume.nii": nifti(),  # beside an image
        "no rows.dcm": without(dicom(), "Rows"),
        "no pixels.dcm": without(dicom(), "PixelData"),
        "cut.dcm": dicom()[:-50],
    }


@pytest.fixture
def table(tmp_path):
    """A CSV of good and bad pairs in turn: (its path, the names of the bad ones)."""
    for name in [*GOOD, "first", "unread", "unfused", "unwritten"]:
        for k, sensor in enumerate(("ir", "vi")):
            (tmp_path / sensor).mkdir(exist_ok=True)
            images.write(tmp_path / sensor / f"{name}.png", made_image(20, 18, seed=k) / np.float32(255))
    rows = [f"ir/{name}.png,vi/{name}.png," for name in ("unread", "unfused", "unwritten")]
    for name, data in bad_files().items():
        path = tmp_path / "vi" / name
        path.write_bytes(data) if isinstance(data, bytes) else data(path)
        rows.append(f"ir/first.png,vi/{name},bad {len(rows)}")
    rows += [
        "ir/first.png,,no second",
        "ir/first.png,ir/first.png,twice the same",
        "ir/first.png,vi/first.png,../outside",
        f"ir/first.png,vi/first.png,{tmp_path}/absolute.png",
        "ir/first.png,vi/first.png,a folder.png",
        "ir/first.png,vi/first.png,unknown.dcm",
        "ir/first.png,vi/first.png,one,too many",
    ]
    (tmp_path / "out" / "a folder.png").mkdir(parents=True)
    for k, name in enumerate(GOOD):
        rows.insert(k * len(rows) // 5, f"ir/{name}.png,vi/{name}.png,")
    (tmp_path / "scenes.csv").write_text("infrared,visible,output\n" + "\n".join(rows) + "\n")
    return tmp_path / "scenes.csv", len(rows) - len(GOOD)


def contents(folder):
    return {
        p: hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 1e6
    }


def failing(monkeypatch, where, which):
    """Raise what no one expects for one pair, at one of the stages."""
    folder, name = where
    original = getattr(folder, name)

    def broken(*args, **kwargs):
        if which(*args):
            raise KeyError("NumberOfFrames")
        return original(*args, **kwargs)

    monkeypatch.setattr(folder, name, broken)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_good_pairs_are_fused_and_bad_ones_are_rows(prior, table, tmp_path, monkeypatch, batch_size):
    scenes, bad = table
    failing(monkeypatch, (images, "read_any"), lambda path, *_: path.stem == "unread")
    failing(monkeypatch, (images, "write"), lambda path, *_: path.stem == "unwritten")
    failing(monkeypatch, (ddfm.runs.execution, "image_generator"), lambda seed, name: name == "unfused")
    before = contents(tmp_path / "ir") | contents(tmp_path / "vi")

    def hung(*args):
        raise AssertionError("waited for a file that never ends")

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(120)
    try:
        result = batch(
            scenes, tmp_path / "out", prior=prior, overwrite=True, batch_size=batch_size, num_inference_steps=1
        )
    finally:
        signal.alarm(0)
    done = {path.stem for path in result.fused}
    assert done == set(GOOD), result.failed
    assert len(result.failed) == bad
    for name, sentence in result.failed.items():
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 500, (name, sentence)
    rows = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()[1:]]
    assert {row["name"]: row["error"] for row in rows if "error" in row} == result.failed
    assert {row["name"] for row in rows if "sha256" in row} == done and len(rows) == len(done) + len(result.failed)
    assert contents(tmp_path / "ir") | contents(tmp_path / "vi") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(f"{name}.png" for name in done), "a folder.png", MANIFEST]
    )
