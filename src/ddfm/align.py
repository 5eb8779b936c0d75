"""Misregistered pairs: find the affine map between two pictures of different kind, say how far off they were,
undo it.

Intensities of two modalities are related by no known function, so the criterion is normalised mutual
information (Studholme et al. 1999), of the pictures and of their edge maps. It is maximised coarse to fine: a
grid of shifts, rotations and scales on thumbnails, then steps of a quadratic model whose samples lie about a
pixel apart, which smooths over the ripple that interpolation leaves on mutual information.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ddfm.colour import luma
from ddfm.errors import InputError

BINS = 32
LEVELS = {64: 4, 128: 4, 256: 3, 512: 2}  # longest side in pixels: rounds
HALVES_AT = 256
SEARCH = 0.08  # the grid reaches shifts of this part of the longest side, 6 degrees, 6 %
LIMIT = 0.15  # a corner displaced by more than this part of the longest side is no misregistration but a mistake
AGREEMENT = 0.01  # how far, as part of the longest side, the estimates from two halves may differ at a corner


@dataclass(frozen=True)
class Alignment:
    """Where `moving` lies relative to `fixed`.

    matrix: 2x3, from pixel (x, y, 1) of fixed to pixel (x, y) of moving. shift_px: how far the corner
    displaced most has moved, in pixels of fixed. spread_px: by how much two halves of the picture disagree
    about a corner. confident: whether `warp` will use it. sentence: the finding, for people.
    """

    matrix: np.ndarray
    shift_px: float
    spread_px: float
    confident: bool
    sentence: str


def align(moving: np.ndarray, fixed: np.ndarray) -> Alignment:
    """Estimate the affine map that lays moving over fixed; both (H, W) or (H, W, 3) in [0, 1], of one size.

    Meant for what a mount or a hurried registration leaves: shifts up to 5 % of the picture, a few degrees, a
    few percent of scale. A similarity is found first and repeated on either half of a chequerboard of blocks;
    where the two agree the result is confident, and stretch and shear are freed as well. Raises InputError if
    the sizes differ or are below 32x32.
    """
    if moving.shape[:2] != fixed.shape[:2] or min(fixed.shape[:2]) < 32:
        sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (moving, fixed))
        raise InputError(f"Pictures of {sizes} pixels cannot be aligned; give two of one size, at least 32x32.")
    moving, fixed = luma(moving), luma(fixed)
    size = max(fixed.shape)
    corners = _corners(fixed.shape)
    p = np.zeros(6)
    halves = [p, p]
    for side, rounds in LEVELS.items():
        scale = min(1.0, side / size)
        maps = _maps(moving, scale), _maps(fixed, scale)
        step = 2.0 / max(maps[1][0].shape)
        score = _criterion(*maps)
        if side == min(LEVELS):
            p = _grid(score, step)
        p = _climb(score, p, step, 4, rounds)
        if side == HALVES_AT or (scale == 1 and side < HALVES_AT):
            # From either side of p: a half that knows nothing stays where it starts, and so does not agree.
            aside = step * np.array([1, -1, 1, -1, 0, 0])
            starts = p + aside, p - aside
            halves = [_climb(_criterion(*maps, k), start, step, 4) for k, start in enumerate(starts)]
        if scale == 1:
            break
    one, other = (_matrix(half, fixed.shape) @ corners for half in halves)
    spread = float(np.linalg.norm(one - other, axis=0).max())
    agree = spread <= max(2.0, AGREEMENT * size)
    if agree:  # only what is well determined can tell stretch and shear from noise
        p = _climb(score, p, step, 6, 2)
    matrix = _matrix(p, fixed.shape)
    shift = float(np.linalg.norm(matrix @ corners - corners[:2], axis=0).max())
    confident = agree and shift <= LIMIT * size
    if confident:
        sentence = f"The second picture was off by up to {shift:.1f} pixels (give or take {spread / 2:.1f})."
    else:
        sentence = (
            f"The pictures could not be aligned with confidence (two halves of them disagree by {spread:.0f} pixels, "
            f"the shift found is {shift:.0f}); align them by other means or fuse them as they are."
        )
    return Alignment(matrix, shift, spread, confident, sentence)


def warp(moving: np.ndarray, alignment: Alignment) -> np.ndarray:
    """moving, (H, W) or (H, W, 3) float32 in [0, 1], laid over fixed (cubic; the edge is repeated where it
    ends).

    Raises InputError with the alignment's sentence if that is not confident.
    """
    if not alignment.confident:
        raise InputError(alignment.sentence)
    return np.clip(_warp(moving, alignment.matrix, cv2.INTER_CUBIC, cv2.BORDER_REPLICATE), 0, 1)


def _warp(picture: np.ndarray, matrix: np.ndarray, interpolation: int, border: int, value: float = 0) -> np.ndarray:
    height, width = picture.shape[:2]
    flags = interpolation | cv2.WARP_INVERSE_MAP
    picture = np.ascontiguousarray(picture, np.float32)
    return cv2.warpAffine(picture, matrix, (width, height), flags=flags, borderMode=border, borderValue=(value,) * 4)


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    return np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]], float)


def _matrix(p: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Parameters to a 2x3 matrix about the centre of a picture of this shape.

    p: shift in x and y, rotation, scale, and the two departures from a similarity, each as the displacement
    it causes at half the longest side from the centre, as part of the longest side; so p means the same at
    every level.
    """
    height, width = shape
    size = max(shape)
    x, y, turn, grow, stretch, shear = p * [size, size, 2, 2, 2, 2]
    linear = np.array([[grow + stretch, shear - turn], [shear + turn, grow - stretch]]) + np.eye(2)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.column_stack([linear, centre + np.array([x, y]) - linear @ centre])


def _maps(picture: np.ndarray, scale: float) -> list[np.ndarray]:
    """The picture and its edge map at one scale, as positions between 0 and BINS - 1 of a histogram."""
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.0)
    dx, dy = cv2.Scharr(picture, cv2.CV_32F, 1, 0), cv2.Scharr(picture, cv2.CV_32F, 0, 1)
    edges = cv2.GaussianBlur(np.sqrt(np.hypot(dx, dy)), (0, 0), 0.7)
    maps = []
    for values in (picture, edges):
        low, high = np.quantile(values, [0.001, 0.999])
        maps.append(np.clip((values - low) / max(high - low, 1e-6), 0, 1).astype(np.float32) * (BINS - 1))
    return maps


def _criterion(
    moving: list[np.ndarray], fixed: list[np.ndarray], half: int | None = None
) -> Callable[[np.ndarray], float]:
    """The function of p to maximise; half 0 or 1 counts only every second block of a chequerboard."""
    shape = fixed[0].shape
    use = np.ones(shape, bool)
    if half is not None:
        y, x = np.indices(shape) // max(8, max(shape) // 8)
        use = (x + y) % 2 == half
    targets = [np.rint(values).astype(np.intp) for values in fixed]

    def score(p: np.ndarray) -> float:
        matrix = _matrix(p, shape)
        total = 0.0
        for values, target in zip(moving, targets, strict=True):
            warped = _warp(values, matrix, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, -1000)
            inside = use & (warped >= 0)
            total += _mutual_information(warped[inside], target[inside])
        return total

    return score


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """(H(A) + H(B)) / H(A, B) - 1 in [0, 1] of bin positions a (float) and bin numbers b; 0 if too few overlap."""
    if a.size < 200:
        return 0.0
    lower = np.minimum(a.astype(np.intp), BINS - 2)
    part = a - lower  # a value between two bins counts for both
    index = lower * BINS + b
    joint = np.bincount(index, 1 - part, BINS * BINS) + np.bincount(index + BINS, part, BINS * BINS)
    smooth = cv2.GaussianBlur(joint.reshape(BINS, BINS), (0, 0), 1.0) / a.size
    entropy = [-(q[q > 0] * np.log(q[q > 0])).sum() for q in (smooth.sum(0), smooth.sum(1), smooth)]
    return float((entropy[0] + entropy[1]) / max(entropy[2], 1e-9) - 1)


def _grid(score: Callable[[np.ndarray], float], step: float) -> np.ndarray:
    """The best of a grid of similarities, after a few steps uphill from the three best points."""
    shifts, turns = np.linspace(-SEARCH, SEARCH, 7), (-0.03, 0.0, 0.03)
    points = [np.array([x, y, r, s, 0, 0]) for x, y, r, s in itertools.product(shifts, shifts, turns, turns)]
    best = sorted(points, key=score, reverse=True)[:3]
    return max((_climb(score, p, step, 4) for p in best), key=score)


def _climb(score: Callable[[np.ndarray], float], p: np.ndarray, step: float, free: int, rounds: int = 4) -> np.ndarray:
    """Maximise over the first `free` parameters by Newton's steps on a quadratic through samples `step` apart."""
    here = score(p)
    unit = np.eye(6)[:free] * step
    for _ in range(rounds):
        ahead = np.array([score(p + u) for u in unit])
        behind = np.array([score(p - u) for u in unit])
        gradient = (ahead - behind) / 2
        hessian = np.diag(ahead + behind - 2 * here)
        for i, j in itertools.combinations(range(free), 2):
            mixed = score(p + unit[i] + unit[j]) - ahead[i] - ahead[j] + here
            hessian[i, j] = hessian[j, i] = mixed
        # Made negative definite: along directions that curve upward go by the slope alone.
        values, vectors = np.linalg.eigh(hessian)
        floor = max(1e-9, 0.1 * np.abs(values).max())
        move = vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), floor))
        move *= min(1.0, 3 / max(np.abs(move).max(), 1e-9))
        candidates = [p + move @ unit, p + 0.5 * move @ unit]
        candidates += [p + unit[ahead.argmax()], p - unit[behind.argmax()]]
        scores = [score(q) for q in candidates]
        if max(scores) <= here:
            step /= 2
            unit /= 2
            continue
        p, here = candidates[int(np.argmax(scores))], max(scores)
    return p
