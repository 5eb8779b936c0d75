"""Fusion without a model: baselines that any method has to beat, although several metrics reward them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ddfm.errors import InputError


def average(sources: Sequence[np.ndarray]) -> np.ndarray:
    """Pixel-wise mean of two or more sources, each (H, W) in [0, 1], to (H, W) float32 in [0, 1]."""
    mean: np.ndarray = _stack(sources).mean(0, dtype=np.float32)
    return mean


def maximum(sources: Sequence[np.ndarray]) -> np.ndarray:
    """Pixel-wise maximum of two or more sources, each (H, W) in [0, 1], to (H, W) float32 in [0, 1]."""
    largest: np.ndarray = _stack(sources).max(0)
    return largest


def laplacian_pyramid(sources: Sequence[np.ndarray], levels: int = 4) -> np.ndarray:
    """Fuse band by band: take the largest absolute detail coefficient, and the mean of the coarsest level.

    sources: two or more, each (H, W) in [0, 1], any size; returns (H, W) float32 in [0, 1], clipped. `levels` is the
    number of halvings, fewer for small images. Burt & Kolczynski 1993, with the coefficient itself as activity.
    """
    coarse = list(_stack(sources))
    shortest = min(coarse[0].shape)
    details = []
    for _ in range(min(levels, shortest.bit_length() - 1)):
        smaller = [cv2.pyrDown(image) for image in coarse]
        bands = np.stack([image - _expand(low, image) for image, low in zip(coarse, smaller, strict=True)])
        strongest = np.abs(bands).argmax(0)
        details.append(np.take_along_axis(bands, strongest[None], 0)[0])
        coarse = smaller
    fused: np.ndarray = np.stack(coarse).mean(0, dtype=np.float32)
    for band in reversed(details):
        fused = _expand(fused, band) + band
    return np.asarray(fused.clip(0, 1))


BASELINES = {"average": average, "maximum": maximum, "laplacian_pyramid": laplacian_pyramid}


def _expand(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    return cv2.pyrUp(image, dstsize=like.shape[::-1])


def _stack(sources: Sequence[np.ndarray]) -> np.ndarray:
    images = [np.asarray(source, np.float32) for source in sources]
    if len(images) < 2 or images[0].ndim != 2 or any(image.shape != images[0].shape for image in images):
        shapes = ", ".join(str(image.shape) for image in images) or "none"
        raise InputError(f"Fusion needs two or more grey images of one size, got {shapes}.")
    return np.stack(images)
