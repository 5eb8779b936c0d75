"""Training data for a prior: the held-out split, scales, and random crops."""

import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch

from ddfm.colour import luma
from ddfm.io.images import read

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
HELD_OUT = 2 / 15  # of each folder: 40 of 300
BLOCKY = 1.1  # threshold of `blockiness`: photographs in BSDS500 have 1.02, infrared JPEGs in RoadScene 1.28


def subject(path: Path) -> str:
    """The key that must not be on both sides of the split: a slice's patient (KIND_<patient><slice, 3 digits>_...)."""
    slice_name = re.match(r"[A-Z]+_(\d+)\d{3}_", path.stem)
    return slice_name.group(1) if slice_name else re.sub(r"\D", "", path.stem) or path.stem


def split(folder: Path) -> tuple[list[Path], list[Path]]:
    """(training, held-out) files of one folder, the same on every machine, since they are sorted by a hash of their
    subject."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    files.sort(key=lambda p: zlib.crc32(subject(p).encode()))
    held = files[: round(len(files) * HELD_OUT)]
    subjects = {subject(p) for p in held}
    return [p for p in files if subject(p) not in subjects], held


def read_luma(path: Path) -> np.ndarray:
    """The luma of an image file, uint8 (H, W). Raises InputError for other files."""
    grey: np.ndarray = np.rint(255 * luma(read(path).pixels)).astype(np.uint8)
    return grey


def blockiness(grey: np.ndarray) -> float:
    """The mean step across JPEG's 8-pixel grid relative to the median step off it: about 1 without visible blocks."""
    ratios = []
    for image in (grey, grey.T):
        if image.shape[1] < 16:
            continue
        step = np.abs(np.diff(image.astype(np.float32), axis=1)).mean(axis=0)
        phases = [step[k::8].mean() for k in range(8)]
        ratios.append(phases[7] / max(np.median(phases), 1e-3))
    return float(np.mean(ratios)) if ratios else 1.0


def scales(grey: np.ndarray, crop: int) -> list[np.ndarray]:
    """The image and smaller versions of it, for structure at several scales.

    An image with visible JPEG blocks is only used shrunk, which averages them away and moves them off their grid.
    """
    factors = (0.7, 0.5) if blockiness(grey) > BLOCKY else (1.0, 0.7, 0.5)
    sizes = [(round(grey.shape[1] * s), round(grey.shape[0] * s)) for s in factors]
    return [cv2.resize(grey, wh, interpolation=cv2.INTER_AREA) for wh in sizes if min(wh) >= crop]


def random_crops(images: list[np.ndarray], p: np.ndarray, n: int, size: int, rng: np.random.Generator) -> torch.Tensor:
    """(n, 1, size, size) in [-1, 1]: flipped, rotated, with random gamma; a quarter inverted (thermal polarity)."""
    out = np.empty((n, size, size), np.float32)
    for k, which in enumerate(rng.choice(len(images), n, p=p)):
        image = images[which]
        y, x = (int(rng.integers(0, extent - size + 1)) for extent in image.shape)
        patch = np.rot90(image[y : y + size, x : x + size], int(rng.integers(4)))
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        out[k] = patch
    out = ((out + rng.random(out.shape, np.float32)) / 256).clip(1e-6, 1)  # dithered: hides the 8-bit levels
    out **= np.exp(rng.uniform(-0.5, 0.5, (n, 1, 1)) * (rng.random((n, 1, 1)) < 0.5)).astype(np.float32)
    inverted = rng.random(n) < 0.25
    out[inverted] = 1 - out[inverted]
    return torch.from_numpy(out * 2 - 1).unsqueeze(1)


class Batches(torch.utils.data.Dataset[torch.Tensor]):
    """The batch of each step, which depends only on the seed and the step, so that a run can be resumed anywhere."""

    def __init__(self, images: list[np.ndarray], p: np.ndarray, batch_size: int, crop: int, seed: int):
        self.images, self.p = images, p / p.sum()
        self.batch_size, self.crop, self.seed = batch_size, crop, seed

    def __getitem__(self, step: int) -> torch.Tensor:
        """(batch_size, 1, crop, crop) in [-1, 1]."""
        rng = np.random.default_rng((self.seed, step))
        return random_crops(self.images, self.p, self.batch_size, self.crop, rng)
