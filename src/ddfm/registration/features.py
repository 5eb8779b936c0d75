"""What two images of different kind have in common: where their contours run, whatever their polarity and strength."""

from __future__ import annotations

import cv2
import numpy as np

from ddfm.colour import luma

BLUR = 0.8  # pixels, at every level
GATHER = 1.5  # pixels, at every level: contours need not meet exactly to be felt
FRAME_VERTICES = 8  # a rectangle, turned and cut by the image, has at most so many
# Harmonics 0, 2 and 4 of a cos^4 response to direction, of equal inner products: cos^4 a = 3/8 + cos(2a)/2 + cos(4a)/8.
HARMONICS = np.sqrt(np.array([3 / 8, 1 / 2, 1 / 2, 1 / 8, 1 / 8], np.float32))

Masked = tuple[np.ndarray, np.ndarray]  # an image (H, W) and where it has data, (H, W) in [0, 1]


def as_luma(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3), uint8 or float in [0, 1], to its luma (H, W) in [0, 1]."""
    return luma(as_floats(image))


def as_floats(image: np.ndarray) -> np.ndarray:
    """uint8, or floats in [0, 1], to float32 in [0, 1]."""
    return image / np.float32(255) if image.dtype == np.uint8 else np.asarray(image, np.float32)


def correlation(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> float:
    """Of contours, (H, W, 5) each, under weights (H, W): cosine of the angle between them, -1 to 1."""
    cross, own, others_own = (
        float(np.einsum("hwc,hwc,hw->", a, b, weight)) for a, b in ((one, other), (one, one), (other, other))
    )
    return cross / max(float(np.sqrt(own * others_own)), 1e-9)


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """The image with its sides times `factor`, averaged where that is below 1."""
    height, width = (max(8, round(n * factor)) for n in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def contours(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(H, W) float to (H, W, 5) float32, of length near 1 wherever there is more than noise.

    The dense orientation channels of Ye et al., Fast and Robust Matching for Multimodal Remote Sensing Image
    Registration (2019), written in harmonics, so that five do for any number of directions.

    Args:
        image: Of any range.
        valid: (H, W) in [0, 1], where the image has data; contours beside its border are left out.
    """
    image = cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), BLUR)
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    strength = np.maximum(np.hypot(dx, dy), 1e-6)
    cos, sin = dx / strength, dy / strength
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    cos4, sin4 = cos2 * cos2 - sin2 * sin2, 2 * cos2 * sin2
    inside = cv2.erode(valid, np.ones((7, 7), np.uint8), borderValue=1) * strength
    found: np.ndarray = np.dstack([inside, inside * cos2, inside * sin2, inside * cos4, inside * sin4]).astype(
        np.float32
    )
    found = cv2.GaussianBlur(found * HARMONICS, (0, 0), GATHER)
    size = np.sqrt(np.einsum("hwc,hwc->hw", found, found))[..., None]  # a norm over five is six times as slow
    result: np.ndarray = (found / (size + max(0.5 * float(np.median(size)), 1e-4))).astype(np.float32)
    return result


def valid_area(image: np.ndarray) -> np.ndarray:
    """(H, W) float in [0, 1] to 1 where it has data, 0 in the straight frame that an earlier warp left around it.

    A frame is one value, the lowest, outside a polygon of few corners; black around a head is none: it is part of
    what the image shows.
    """
    everywhere = np.ones(image.shape, np.float32)
    filled = (image > image.min() + 1.5 / 255).astype(np.uint8)
    filled = cv2.morphologyEx(filled, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    outlines, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return everywhere
    hull = cv2.convexHull(max(outlines, key=len))
    inside = np.zeros(image.shape, np.uint8)
    cv2.fillConvexPoly(inside, hull, 1)
    corners = cv2.approxPolyDP(hull, 0.012 * max(image.shape), True)
    if inside.mean() < 0.5 or len(corners) > FRAME_VERTICES:
        return everywhere
    return inside.astype(np.float32)
