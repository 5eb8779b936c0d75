"""Misregistered pairs: estimate the affine map between two images of different modalities, report the
misalignment, correct it.

No known function relates the intensities of two modalities, so the criterion is the sum of two terms that need none:
mutual information, which finds regions (a brain, a sky), and the correlation of contours, which finds edges of either
polarity, in dark areas too. It is maximised coarse to fine: a grid of similarities on thumbnails, then
steps of a quadratic model. A penalty applies beyond the misalignment that a mount or a hurried registration leaves.
Three measures keep it from preferring certain displacements for reasons unrelated to the images:

- it is always evaluated over all of the fixed image (the edge of the moving one is repeated), since an overlap that
  changes with the displacement changes the share of background, and so the criterion;
- samples fade out towards the border, where the repeated edge is a guess;
- samples lie on a grid rotated against the pixels of both images, since interpolation smooths at all displacements
  except those at which the pixel grids coincide, and those would stand out.

What remains is the bias of the criterion itself: if the modalities show different things (one skull and scalp, the
other brain alone), its maximum can be some pixels from what a person would choose. Two halves of an image are then
biased differently, and because they disagree such a pair is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ddfm.errors import InputError
from ddfm.registration.features import as_floats

BINS = 32
BLUR = 1.0  # pixels, at every level
GATHER = 2.0  # pixels, at every level: additional blur of the contours
TURN = 0.5  # radians: rotation of the sample grid
SAMPLES = 60_000  # maximum number, approximately
TAPER = 0.15  # samples fade out over this fraction of the image at every border
LEVELS = {64: 4, 128: 4, 256: 6, 512: 3}  # longest side in pixels: rounds
HALVES_AT = 256
ASIDE = 3.0  # steps from the estimate at which either half starts: from there it must converge to it again
SEARCH = 0.05  # the grid reaches shifts of this fraction of the longest side, 3.4 degrees, 6 %
PLAUSIBLE = np.array([0.06, 0.06, 0.035, 0.03, 0.02, 0.02])  # range of `_matrix`'s parameters without a penalty
INFORMATION = 4.0  # weight of the mutual information (over the fixed image's entropy) relative to the contours
STARTS = 7  # grid points that are refined, in addition to the pair as it is
AFFINE_GAIN = 0.03  # fraction of its score that a pair must gain to be stretched and sheared
LIMIT = 0.15  # a corner displaced by more than this fraction of the longest side is not misregistration but a mistake
AGREEMENT = 0.02  # how much the estimates from two halves may differ at a corner, as a fraction of the longest side
BIAS = 0.035  # of the longest side: the most by which registered pairs of heads are found displaced at a corner; they
BIAS_GAIN = 0.06  # gain at most this fraction of the score; displaced by 10 to 20 pixels of 216 a median of 0.15
SMOOTH = 0.01  # share of variance in detail finer than 2 pixels of 256: at most 0.005 in PET and SPECT, 0.02 in CT
BLACK = 0.15  # share of pixels within 5 % of the lowest value: at least 0.2 around a head, at most 0.05 in road scenes


@dataclass(frozen=True)
class Alignment:
    """Where `moving` lies relative to `fixed`.

    matrix: 2x3, from pixel (x, y, 1) of fixed to pixel (x, y) of moving. shift_px: the largest displacement of a
    corner, in pixels of fixed. spread_px: how much two halves of the image disagree about a corner.
    confident: whether `warp` will use it. sentence: the result in words. gain: the fraction of the score that the
    pair would gain by it.
    """

    matrix: np.ndarray
    shift_px: float
    spread_px: float
    confident: bool
    sentence: str
    gain: float = 1.0


def align(moving: np.ndarray, fixed: np.ndarray) -> Alignment:
    """Estimate the affine map from fixed to moving; both (H, W) or (H, W, 3), uint8 or in [0, 1], of equal size.

    Meant for the misalignment that a mount or a hurried registration leaves: shifts up to 5 % of the image, a few
    degrees, a few percent of scale. A similarity is estimated first, then again on either half of a chequerboard of
    blocks; if the two agree, the result is confident, and stretch and shear are added if they explain clearly more.
    Raises InputError if the sizes differ or are below 32x32.
    """
    if moving.shape[:2] != fixed.shape[:2] or min(fixed.shape[:2]) < 32:
        sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (moving, fixed))
        raise InputError(f"Images of {sizes} pixels cannot be aligned; give two of equal size, at least 32x32.")
    moving, fixed = brightness(moving), brightness(fixed)
    size = max(fixed.shape)
    corners = _corners(fixed.shape)
    starts = [np.zeros(6)]
    halves = starts * 2
    for side, rounds in LEVELS.items():
        scale = min(1.0, side / size)
        maps = _map(moving, scale), _map(fixed, scale)
        step = 2.0 / max(maps[1].shape)
        score = _criterion(*maps)
        if side == min(LEVELS):
            starts += _grid(score)
        # Thumbnails of two modalities can agree best in the wrong place: half of the candidates stay at each level.
        found = sorted((_climb(score, start, step, 4, rounds) for start in starts), key=score, reverse=True)
        p, starts = found[0], found[: -(-len(found) // 2)]
        if side == HALVES_AT or (scale == 1 and side < HALVES_AT):
            # From opposite sides of p: a half without information stays where it starts, so the halves disagree. So do
            # those of two different scenes, whose optima are narrow: 3 of 24 were accepted from 1 step away, none
            # from 3.
            aside = ASIDE * step * np.array([1, -1, 1, -1, 0, 0])
            halves = [_climb(_criterion(*maps, k), p + way, step, 4) for k, way in enumerate((aside, -aside))]
        if scale == 1:
            break
    one, other = (_matrix(half, fixed.shape) @ corners for half in halves)
    spread = float(np.linalg.norm(one - other, axis=0).max())
    agree = spread <= max(2.0, AGREEMENT * size)
    if agree:  # only a well-determined estimate can tell stretch and shear from noise
        affine = _climb(score, p, step, 6, 2)
        if score(affine) > (1 + AFFINE_GAIN) * score(p):
            p = affine
    as_it_is = score(np.zeros(6))
    gain = 1 - as_it_is / max(score(p), 1e-9)
    matrix = _matrix(p, fixed.shape)
    shift = float(np.linalg.norm(matrix @ corners - corners[:2], axis=0).max())
    # The halves of a well-aligned pair may disagree about how to improve it: it only has to stand out.
    beside = [SEARCH * way for way in (*np.eye(6)[:2], *-np.eye(6)[:2])]
    stands_out = max(score(way) for way in beside) < (1 - BIAS_GAIN) * as_it_is
    confident = (agree and shift <= LIMIT * size) or (stands_out and is_bias(gain, shift, size))
    if confident:
        sentence = f"The second image was off by up to {shift:.1f} pixels (give or take {spread:.1f})."
    else:
        sentence = (
            f"The images could not be aligned with confidence (their two halves disagree by {spread:.0f} pixels, "
            f"the estimated shift is {shift:.0f}); align them by other means or fuse them as they are."
        )
    return Alignment(matrix, shift, spread, confident, sentence, gain)


def is_bias(gain: float, shift: float, size: int) -> bool:
    """Whether an estimate may be only the bias of the criterion, so that the pair fits as well as it is."""
    return gain < BIAS_GAIN and shift <= BIAS * size


def warp(moving: np.ndarray, alignment: Alignment) -> np.ndarray:
    """moving, (H, W) or (H, W, 3) float32 in [0, 1], resampled onto fixed (cubic; beyond its border the edge is
    repeated).

    Raises InputError with the alignment's sentence if it is not confident.
    """
    if not alignment.confident:
        raise InputError(alignment.sentence)
    result: np.ndarray = np.clip(_warp(moving, alignment.matrix, moving.shape, cv2.INTER_CUBIC), 0, 1)
    return result


def brightness(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3), uint8 or in [0, 1], to the mean of its channels, (H, W) in [0, 1].

    In the false colours of PET and SPECT weak activity is blue and strong activity red, which has a low luma.
    """
    image = as_floats(image)
    found: np.ndarray = image if image.ndim == 2 else image.mean(axis=-1)
    return found


def is_smooth(image: np.ndarray) -> bool:
    """Whether an image, as for `brightness`, has no fine detail, like PET and SPECT: few contours are expected."""
    image = brightness(image)
    scale = min(1.0, 256 / max(image.shape))
    small = cv2.GaussianBlur(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), (0, 0), 0.8)
    return float((small - cv2.GaussianBlur(small, (0, 0), 2.0)).var()) < SMOOTH * float(small.var())


def is_on_black(image: np.ndarray) -> bool:
    """Whether an image, as for `brightness`, shows an object on black, as medical images do."""
    image = cv2.GaussianBlur(brightness(image), (0, 0), 1.0)
    low, high = float(image.min()), float(image.max())
    return float((image < low + 0.05 * (high - low)).mean()) > BLACK and high > low


def _warp(image: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], interpolation: int) -> np.ndarray:
    """image sampled at `matrix` times the pixels of an image of this shape; beyond its border the edge is repeated."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    image = np.ascontiguousarray(image, np.float32)
    return cv2.warpAffine(image, matrix[:2], shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    return np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]], float)


def _matrix(p: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The 2x3 matrix of some parameters, about the centre of an image of this shape.

    p: shift in x and y, rotation, scale, and the two deviations from a similarity, each as the displacement that it
    causes at half the longest side from the centre, as a fraction of the longest side, so that p means the same at
    every level.
    """
    height, width = shape
    size = max(shape)
    x, y, turn, grow, stretch, shear = p * [size, size, 2, 2, 2, 2]
    linear = np.array([[grow + stretch, shear - turn], [shear + turn, grow - stretch]]) + np.eye(2)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.column_stack([linear, centre + np.array([x, y]) - linear @ centre])


def _map(image: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 4) float32 at one scale: the histogram position between 0 and BINS - 1, and the contours.

    The contours are m/sqrt(2), m cos 2a, m sin 2a for a gradient of magnitude m and direction a (so that the polarity
    of an edge does not matter), blurred over some pixels, and normalised to a similar magnitude wherever there is
    more than noise: as in the oriented gradient channels of Ye et al., Fast and Robust Matching for Multimodal Remote
    Sensing Image Registration (2019), which are linear in these three for a cos^2 response to direction.
    """
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), BLUR)
    low, high = np.quantile(image, [0.001, 0.999])
    level = np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32) * (BINS - 1)
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    strength = np.maximum(np.hypot(dx, dy), 1e-6)
    contours = np.dstack([strength / np.sqrt(2), (dx * dx - dy * dy) / strength, 2 * dx * dy / strength])
    contours = cv2.GaussianBlur(contours.astype(np.float32), (0, 0), GATHER)
    size = np.linalg.norm(contours, axis=-1, keepdims=True)
    contours = contours / (size + max(0.5 * float(np.median(size)), 1e-4))
    return np.dstack([level, contours])


def _criterion(moving: np.ndarray, fixed: np.ndarray, half: int | None = None) -> Callable[[np.ndarray], float]:
    """The function of p to maximise, for two outputs of `_map`; half 0 or 1: on half of a chequerboard only."""
    height, width = fixed.shape[:2]
    weight = np.outer(_taper(height), _taper(width))
    if half is not None:
        y, x = np.indices((height, width)) // max(8, max(height, width) // 8)
        weight *= (x + y) % 2 == half
    cos, sin = np.cos(TURN), np.sin(TURN)
    spacing = max(1.0, float(np.sqrt(height * width / SAMPLES)))
    shape = int((width * sin + height * cos) / spacing) + 1, int((width * cos + height * sin) / spacing) + 1
    middle, centre = np.array(shape[::-1]) / 2 - 0.5, np.array([width, height]) / 2 - 0.5
    turn = spacing * np.array([[cos, -sin], [sin, cos]])
    grid = np.vstack([np.column_stack([turn, centre - turn @ middle]), [0, 0, 1]])
    inside = cv2.warpAffine(weight, grid[:2], shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) > 0
    weights = _warp(weight, grid, shape, cv2.INTER_LINEAR)[inside]
    target = _warp(fixed, grid, shape, cv2.INTER_LINEAR)[inside]
    bins, contours = np.rint(target[:, 0]).astype(np.intp), target[:, 1:]
    share = np.bincount(bins, weights, BINS) / max(weights.sum(), 1e-9)
    entropy = _entropy(share)
    weighted = contours * weights[:, None]
    energy = float((contours * weighted).sum())

    def score(p: np.ndarray) -> float:
        warped = _warp(moving, _matrix(p, (height, width)) @ grid, shape, cv2.INTER_LINEAR)[inside]
        information = _mutual_information(warped[:, 0], bins, weights) / max(entropy, 1e-9)
        found = warped[:, 1:]
        norm = np.sqrt(energy * float(np.einsum("nc,nc,n->", found, found, weights)))
        correlation = float(np.einsum("nc,nc->", found, weighted)) / max(norm, 1e-9)
        beyond = np.maximum(np.abs(p) - PLAUSIBLE, 0) / 0.02
        return float(INFORMATION * information + correlation - 0.1 * float(beyond @ beyond))

    return score


def _taper(length: int) -> np.ndarray:
    """Weights of the samples along one side: 1, falling smoothly to 0 at either end."""
    ends = np.minimum(np.arange(length) + 0.5, length - np.arange(length) - 0.5) / (TAPER * length)
    result: np.ndarray = np.sin(np.minimum(ends, 1).astype(np.float32) * np.pi / 2) ** 2
    return result


def _mutual_information(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Mutual information in nats of bin positions a (float) and bin numbers b."""
    lower = np.minimum(a.astype(np.intp), BINS - 2)
    upper = (a - lower) * weights  # a value between two bins counts for both
    index = lower * BINS + b
    joint = np.bincount(index, weights - upper, BINS * BINS) + np.bincount(index + BINS, upper, BINS * BINS)
    smooth = cv2.GaussianBlur(joint.reshape(BINS, BINS), (0, 0), 1.0) / max(weights.sum(), 1e-9)
    return _entropy(smooth.sum(0)) + _entropy(smooth.sum(1)) - _entropy(smooth)


def _entropy(share: np.ndarray) -> float:
    """Entropy in nats of probabilities."""
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


def _grid(score: Callable[[np.ndarray], float]) -> list[np.ndarray]:
    """The best points of a grid of similarities, the best turn and scale at each of the best shifts."""
    shifts, turns = np.linspace(-SEARCH, SEARCH, 7), (-0.03, 0.0, 0.03)
    best = {}
    for x, y in itertools.product(shifts, shifts):
        points = [np.array([x, y, r, s, 0, 0]) for r, s in itertools.product(turns, turns)]
        best[x, y] = max(((score(p), p) for p in points), key=lambda pair: pair[0])
    return [p for _, p in sorted(best.values(), key=lambda pair: pair[0], reverse=True)[:STARTS]]


def _climb(score: Callable[[np.ndarray], float], p: np.ndarray, step: float, free: int, rounds: int = 4) -> np.ndarray:
    """Maximise over the first `free` parameters by Newton steps on a quadratic through samples `step` apart."""
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
        # Made negative definite: in directions of positive curvature the step just follows the slope.
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
