"""Beyond an affine map: the small, smooth displacement that parallax and lenses leave between two images.

Lucas-Kanade steps ("An iterative image registration technique", 1981) on contours, with Gaussian windows, shrunk
towards zero where there is no structure; coarse to fine. Kept only if it predicts: the displacement found on one half
of the image must improve the fit of the other half and, since any resampling smooths noise away, its opposite worsen
it.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from ddfm.registration.features import Masked, as_luma, contours, correlation, shrink, valid_area
from ddfm.registration.refine import gradient, trust
from ddfm.registration.transform import Registration, identity

LEVELS = (256, 512)  # pixels of the longest side
WINDOWS = (48, 24)  # pixels, standard deviation, at every level
STEPS = 4  # for each window
SHRINK = 0.1  # of the median structure: the prior weight of zero displacement
BLOCK = 4 * WINDOWS[-1]  # pixels, of the chequerboard whose halves test each other: wider than the windows reach
CELL = 4  # pixels: windows are far wider, so their sums are computed on a coarser grid


def refined(place: Registration, moving: np.ndarray, fixed: np.ndarray) -> Registration:
    """The registration with a displacement for each pixel, or with a sentence that this gains nothing.

    Args:
        place: Where moving lies in fixed, within a few pixels.
        moving, fixed: (h, w) and (H, W), or with three channels, uint8 or float in [0, 1].
    """
    one, other = as_luma(moving), as_luma(fixed)
    x, y = np.moveaxis(place.map, -1, 0)
    known = cv2.remap(valid_area(one), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    found = displacement((place.warp(one), known), (other, valid_area(other)))
    if found is None:
        return replace(place, sentence=f"{place.sentence} A local refinement gains nothing.")
    displaced = identity(place.fixed_shape).map + found
    further = place.by_matrix(displaced[..., 0], displaced[..., 1]) - place.map
    largest = float(np.hypot(found[..., 0], found[..., 1]).max())
    sentence = f"{place.sentence} Refined locally, by up to {largest:.1f} pixels."
    return replace(place, displacement=further, sentence=sentence)


def displacement(moving: Masked, fixed: Masked) -> np.ndarray | None:
    """(H, W, 2) float32: the offset from each pixel (x, y) of fixed to its counterpart in moving; None if unreliable.

    Args:
        moving, fixed: The images on one grid, luma (H, W) float, already aligned to within a few pixels,
            and where each has data, (H, W) in [0, 1].
    """
    pyramid = [_level(moving, fixed, side) for side in LEVELS if side == LEVELS[0] or side / 2 < max(fixed[0].shape)]
    finest = pyramid[-1]
    for half in (0, 1):
        found = _coarse_to_fine(pyramid, half)
        there, nowhere, back = (finest.agreement(sign * found, 1 - half) for sign in (1, 0, -1))
        if not there > nowhere > back:
            return None
    found = _coarse_to_fine(pyramid, None)
    return _resized(found, fixed[0].shape)


class _Level:
    """Contours of both images, and where both have data, at one size."""

    def __init__(self, moving: Masked, fixed: Masked) -> None:
        self.moving, self.fixed = (contours(*image) for image in (moving, fixed))
        self.inside, self.known = moving[1], fixed[1]
        self.slopes = gradient(self.fixed)
        self.grid = identity(self.known.shape).map
        self.halves = (self.grid // BLOCK).sum(-1) % 2

    def warped(self, found: np.ndarray, half: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The contours of moving displaced, (H, W, 5), and where they count, (H, W)."""
        place = self.grid + found
        planes, inside = (
            cv2.remap(part, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            for part in (self.moving, self.inside)
        )
        weight = inside * self.known
        return planes, weight if half is None else weight * (self.halves == half)

    def agreement(self, found: np.ndarray, half: int) -> float:
        """Normalised correlation of the contours on one half of the image, -1 to 1."""
        planes, weight = self.warped(found, half)
        return correlation(planes, self.fixed, weight)

    def step(self, found: np.ndarray, window: float, half: int | None) -> np.ndarray:
        """The displacement improved by regularised least squares in each window."""
        planes, weight = self.warped(found, half)
        difference = self.fixed - planes
        gx, gy = ((a + b) / 2 for a, b in zip(self.slopes, gradient(planes), strict=True))
        weight = weight * trust(difference)
        u, v = found[..., 0], found[..., 1]
        xx, xy, yy = (weight * (a * b).sum(-1) for a, b in ((gx, gx), (gx, gy), (gy, gy)))
        right_x = weight * (gx * difference).sum(-1) + xx * u + xy * v
        right_y = weight * (gy * difference).sum(-1) + xy * u + yy * v
        xx, xy, yy, right_x, right_y = (_summed(plane, window) for plane in (xx, xy, yy, right_x, right_y))
        small = SHRINK * float(np.median(xx + yy)) / 2 + 1e-9
        xx, yy = xx + small, yy + small
        determinant = xx * yy - xy * xy
        solved = np.dstack([yy * right_x - xy * right_y, xx * right_y - xy * right_x]) / determinant[..., None]
        improved: np.ndarray = cv2.resize(solved, found.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        return improved


def _level(moving: Masked, fixed: Masked, side: int) -> _Level:
    factor = min(1.0, side / max(fixed[0].shape))
    one, other = ((shrink(image, factor), shrink(known, factor)) for image, known in (moving, fixed))
    return _Level(one, other)


def _coarse_to_fine(pyramid: list[_Level], half: int | None) -> np.ndarray:
    found = np.zeros((*pyramid[0].known.shape, 2), np.float32)
    for level in pyramid:
        found = _resized(found, level.known.shape)
        for window in WINDOWS:
            for _ in range(STEPS):
                found = level.step(found, window, half)
    return found


def _summed(plane: np.ndarray, window: float) -> np.ndarray:
    size = tuple(max(1, round(n / CELL)) for n in plane.shape[::-1])
    small = cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), window / CELL)


def _resized(found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A displacement on another grid, in that grid's pixels."""
    (height, width), (h, w) = shape[:2], found.shape[:2]
    if (height, width) == (h, w):
        return found
    larger: np.ndarray = cv2.resize(found, (width, height), interpolation=cv2.INTER_CUBIC)
    return (larger * np.array([width / w, height / h], np.float32)).astype(np.float32)
