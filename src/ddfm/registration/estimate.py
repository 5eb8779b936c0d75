"""Registration of two images of different kind by what they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.registration.affine import align
from ddfm.registration.transform import Registration, from_matrix, resize

SMALLEST = 32  # pixels a side


def register(moving: np.ndarray, fixed: np.ndarray, dense: bool = True) -> Registration:
    """Find where moving lies in the frame of fixed: both (H, W) or (H, W, 3), uint8 or float in [0, 1], any sizes.

    Raises InputError if an image has a side below 32 pixels.
    """
    if min(moving.shape[:2] + fixed.shape[:2]) < SMALLEST:
        sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (moving, fixed))
        raise InputError(f"Images of {sizes} pixels cannot be aligned; each side needs at least {SMALLEST}.")
    resized = resize(moving.shape, fixed.shape)
    pair = [luma(image / np.float32(255) if image.dtype == np.uint8 else image) for image in (moving, fixed)]
    found = align(resized.warp(pair[0]), pair[1])
    matrix = resized.matrix @ np.vstack([found.matrix, [0, 0, 1]])
    known = from_matrix(matrix, moving.shape, fixed.shape, found.sentence)
    return replace(known, residual_px=found.spread_px, confident=found.confident)
