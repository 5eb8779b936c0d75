"""Folders of made pairs, and what a batch left in one."""

import json

import numpy as np
from conftest import made_picture

from ddfm.io import images
from ddfm.runs.batch import MANIFEST

QUICK = {"num_inference_steps": 3, "likelihood": "paper"}


def make_pair(root, stem, size=(24, 32), suffix=".png", dtype=np.uint8, colour=False):
    """One image for each of root/ir and root/vi."""
    for k, sensor in enumerate(("ir", "vi")):
        (root / sensor).mkdir(exist_ok=True)
        picture = made_picture(*size, seed=sum(map(ord, stem)) + k)
        if colour and k:
            picture = np.stack([picture, picture // 2, 255 - picture], axis=-1)
        bits = 8 * np.dtype(dtype).itemsize
        images.write(root / sensor / f"{stem}{suffix}", picture.astype(np.float32) / 255, bits)


def files(folder):
    """{name: bytes} of the images in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".tif")}


def lines(folder):
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def table(tmp_path, text):
    (tmp_path / "scenes.csv").write_text(text, encoding="utf-8")
    return tmp_path / "scenes.csv"
