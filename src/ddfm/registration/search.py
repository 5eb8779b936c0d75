"""Where one image lies in another, roughly: all shifts at a grid of scales and rotations, on thumbnails, by FFT."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import scipy.fft

from ddfm.registration.features import Masked, contours, shrink
from ddfm.registration.transform import corner_distance, resize
from ddfm.threads import side_by_side

RATIOS = np.exp(np.linspace(np.log(0.4), np.log(2.5), 21))  # field of view of moving relative to that of fixed
TURNS = (-0.07, 0.0, 0.07)  # radians
AREA = 150 * 150  # pixels of the fixed thumbnail
OVERLAP = 0.6  # at least this fraction of the smaller of the two overlaps the other
PEAKS = 3  # for each scale and rotation
APART = 0.04  # of the longest side: candidates that differ by less count as one
CANDIDATES = 6


def candidates(moving: Masked, fixed: Masked) -> list[np.ndarray]:
    """The best (3, 3) matrices, fixed pixel to moving pixel, from a grid of similarities; the best first."""
    shape = fixed[0].shape
    small = float(np.sqrt(AREA / fixed[0].size))
    target, known = (shrink(part, small) for part in fixed)
    to_thumbnail = np.linalg.inv(resize(shape, target.shape).matrix)
    correlator = _Correlator(target, known)

    def with_ratio(ratio: float) -> list[tuple[float, np.ndarray]]:
        factor = ratio * float(np.sqrt(AREA / moving[0].size))  # scales moving to the thumbnail's pixels
        image, inside = (shrink(part, factor) for part in moving)
        to_moving = resize(moving[0].shape, image.shape).matrix
        found = []
        for turn in TURNS:
            turned, rotation = _turned(image, inside, turn)
            for score, x, y in correlator.peaks(*turned):
                shift = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)
                found.append((score, to_moving @ rotation @ shift @ to_thumbnail))
        return found

    found = list(itertools.chain(*side_by_side(with_ratio, RATIOS)))
    found.sort(key=lambda pair: -pair[0])
    kept: list[np.ndarray] = []
    for _, matrix in found:
        if all(corner_distance(matrix, other, shape) > APART * max(shape) for other in kept):
            kept.append(matrix)
        if len(kept) == CANDIDATES:
            break
    return kept


def _turned(image: np.ndarray, known: np.ndarray, turn: float) -> tuple[Masked, np.ndarray]:
    """The image rotated about its centre on a canvas that contains it, and the (3, 3) matrix from canvas to image."""
    (h, w), cos, sin = image.shape, np.cos(turn), np.sin(turn)
    height, width = int(h * cos + w * abs(sin)) + 1, int(w * cos + h * abs(sin)) + 1
    rotation = np.eye(3)
    rotation[:2, :2] = [[cos, -sin], [sin, cos]]
    rotation[:2, 2] = np.array([w - 1, h - 1]) / 2 - rotation[:2, :2] @ np.array([width - 1, height - 1]) / 2
    image, known = (
        cv2.warpAffine(
            part, rotation[:2], (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border
        )
        for part, border in ((image, cv2.BORDER_REPLICATE), (known, cv2.BORDER_CONSTANT))
    )
    return (image, known), rotation


def _features(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(5, H, W): contours minus their mean strength, which all images share; 0 where there is no data."""
    planes = contours(image, known).transpose(2, 0, 1) * known
    planes[0] -= known * (planes[0].sum() / max(float(known.sum()), 1.0))
    return np.ascontiguousarray(planes)


class _Correlator:
    """The fixed thumbnail, and its Fourier transforms for each canvas size."""

    def __init__(self, image: np.ndarray, known: np.ndarray) -> None:
        features = _features(image, known)
        self.planes = np.stack([*features, (features**2).sum(axis=0), known])
        self.area = float(known.sum())
        self.transforms: dict[tuple[int, int], np.ndarray] = {}

    def peaks(self, image: np.ndarray, known: np.ndarray) -> list[tuple[float, int, int]]:
        """(score, x, y): where the fixed thumbnail's pixel (0, 0) lies in the image, the best first.

        The score is the normalised correlation times the square root of the overlap, since chance correlations are
        larger over fewer pixels.
        """
        (height, width), (h, w) = self.planes.shape[1:], image.shape
        size = (scipy.fft.next_fast_len(height + h, real=True), scipy.fft.next_fast_len(width + w, real=True))
        if size not in self.transforms:
            self.transforms[size] = np.conj(scipy.fft.rfft2(self.planes, s=size))
        target = self.transforms[size]
        features = _features(image, known)
        planes = np.stack([*features, (features**2).sum(axis=0), known])
        found = scipy.fft.rfft2(planes, s=size)
        products = np.stack(
            [(found[:5] * target[:5]).sum(0), found[5] * target[6], found[6] * target[5], found[6] * target[6]]
        )
        cross, of_moving, of_fixed, overlap = scipy.fft.irfft2(products, s=size)
        score = cross / np.sqrt(np.maximum(of_moving * of_fixed, 1.0)) * np.sqrt(np.maximum(overlap, 0) / self.area)
        score[overlap < OVERLAP * min(self.area, float(known.sum()))] = -1
        score = score.astype(np.float32)
        y, x = np.nonzero((score == cv2.dilate(score, np.ones((7, 7), np.uint8))) & (score > -1))
        best = np.argsort(-score[y, x])[:PEAKS]
        return [
            (float(score[b, a]), int(a if a < w else a - size[1]), int(b if b < h else b - size[0]))
            for a, b in zip(x[best], y[best], strict=True)
        ]
