"""What images of different modalities have in common: contours, whatever their polarity and strength."""

from __future__ import annotations

import cv2
import numpy as np

from ddfm.colour import luma

BLUR = 0.8  # pixels, at every level
GATHER = 1.5  # pixels, at every level: contours need not coincide exactly to match
FRAME_VERTICES = 8  # the most that a rectangle, rotated and clipped by the image, can have
# Harmonics 0, 2 and 4 of a cos^4 response to direction, with the same inner products:
# cos^4 a = 3/8 + cos(2a)/2 + cos(4a)/8.
HARMONICS = np.sqrt(np.array([3 / 8, 1 / 2, 1 / 2, 1 / 8, 1 / 8], np.float32))

Masked = tuple[np.ndarray, np.ndarray]  # an image (H, W) and where it has data, (H, W) in [0, 1]


def as_luma(image: np.ndarray) -> np.ndarray:
    """The luma (H, W) in [0, 1] of an image (H, W) or (H, W, 3), uint8 or float in [0, 1]."""
    return luma(as_floats(image))


def as_floats(image: np.ndarray) -> np.ndarray:
    """uint8, or floats in [0, 1], to float32 in [0, 1]."""
    return image / np.float32(255) if image.dtype == np.uint8 else np.asarray(image, np.float32)


def correlation(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> float:
    """The normalised correlation, -1 to 1, of two contour images (H, W, 5) with weights (H, W)."""
    cross, own, others_own = (
        float(np.einsum("hwc,hwc,hw->", a, b, weight)) for a, b in ((one, other), (one, one), (other, other))
    )
    return cross / max(float(np.sqrt(own * others_own)), 1e-9)


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """The image scaled by `factor`, averaging if it is below 1."""
    height, width = (max(8, round(n * factor)) for n in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def contours(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The contours (H, W, 5) float32 of an image (H, W) float, of norm near 1 wherever there is more than noise.

    The dense orientation channels of Ye et al., Fast and Robust Matching for Multimodal Remote Sensing Image
    Registration (2019), expressed in harmonics, so that five suffice for any number of directions.

    Args:
        image: Of any range.
        valid: (H, W) in [0, 1], where the image has data; contours at the border of this area are left out.
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
    """(H, W) float32: 1 where an image (H, W) in [0, 1] has data, 0 in the straight-edged frame left by a warp.

    Such a frame has one value, the lowest, outside a polygon with few corners. The black around a head is not a frame
    but part of the image.
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
