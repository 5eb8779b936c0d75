"""Registration of two images of different kind by what they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.registration.affine import align
from ddfm.registration.transform import Registration, from_matrix, resize

SMALLEST = 32  # pixels a side
ALIGNED = 1.0  # pixels of fixed: what is displaced by no more is left as it is


def register(moving: np.ndarray, fixed: np.ndarray, dense: bool = True) -> Registration:
    """Find where moving lies in the frame of fixed: both (H, W) or (H, W, 3), uint8 or float in [0, 1], any sizes.

    Taken to show about the same field of view: found are shifts up to 5 % of the image, a few degrees, a few percent
    of scale. A confident finding that is within a pixel, or within its own uncertainty, of none counts as aligned.

    Args:
        moving: The image to be brought into the frame.
        fixed: The image whose pixels are the frame.
        dense: Accepted for what is to come; the map is affine either way.

    Raises InputError if an image has a side below 32 pixels or above 32767.
    """
    if min(moving.shape[:2] + fixed.shape[:2]) < SMALLEST:
        sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (moving, fixed))
        raise InputError(f"Images of {sizes} pixels cannot be aligned; each side needs at least {SMALLEST}.")
    resized = resize(moving.shape, fixed.shape)
    pair = [luma(image / np.float32(255) if image.dtype == np.uint8 else image) for image in (moving, fixed)]
    found = align(resized.warp(pair[0]), pair[1])
    if found.confident and found.shift_px <= max(ALIGNED, found.spread_px):
        sentence = f"The images are already aligned, within {max(ALIGNED, found.spread_px):.1f} pixels."
        return replace(resized, residual_px=found.spread_px, sentence=sentence)
    matrix = resized.matrix @ np.vstack([found.matrix, [0, 0, 1]])
    known = from_matrix(matrix, moving.shape, fixed.shape, found.sentence)
    return replace(known, residual_px=found.spread_px, confident=found.confident)
