"""Registration of two images of different modalities by their content.

Contours first: a search over scales, rotations and shifts on thumbnails, Gauss-Newton steps coarse to fine from the
best candidates, and the best result. It is confident if either half of the image, started elsewhere, converges to the
same place, and no other place fits nearly as well. For objects on black (a head) in images of one field of view, mutual
information decides if contours do not, and comes first if an image is smooth (PET, SPECT), whose few contours lie at
the rim of the brain, not of the head; again two halves must agree.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ddfm.errors import InputError
from ddfm.registration import affine
from ddfm.registration.dense import refined
from ddfm.registration.features import Masked, as_luma, valid_area
from ddfm.registration.refine import Pair
from ddfm.registration.search import candidates
from ddfm.registration.transform import Registration, corner_distance, from_matrix, resize, scale_of
from ddfm.threads import side_by_side

SMALLEST = 32  # pixels a side
ALIGNED = 1.0  # pixels of fixed: a pair displaced by no more is left as it is
LEVELS = {192: 4, 320: 3}  # longest side in pixels: how many candidates are refined there
FINEST = 512  # pixels of the longest side
ASIDE = 6.0  # pixels of the last level: how far away either half starts, from where it must converge to it again
AGREEMENT = 0.012  # of the longest side: how far apart the halves may place a corner
RIVAL = 0.93  # of the best score: another place that fits this well makes the result ambiguous
ELSEWHERE = 0.03  # of the longest side: places that differ by more are distinct
AFFINE_GAIN = 0.03  # fraction of its score that a pair must gain to be stretched and sheared


@dataclass(frozen=True)
class Estimate:
    """Where moving lies in fixed.

    Attributes:
        matrix: (3, 3), pixel of fixed to pixel of moving.
        spread_px: How far apart two halves of the image place a corner, in pixels of fixed.
        confident: Whether to trust it.
        gain: The fraction of the score that the pair would gain by it; 1 for natural scenes, where no displacement is
            attributed to the criterion's bias.
    """

    matrix: np.ndarray
    spread_px: float
    confident: bool
    gain: float


class Place(NamedTuple):
    """A candidate: its matrix (3, 3) as in `Estimate`, its score, and the scale at which it was found."""

    matrix: np.ndarray
    score: float
    level: Pair


def register(moving: np.ndarray, fixed: np.ndarray, dense: bool = False) -> Registration:
    """Register moving to the frame of fixed: both (H, W) or (H, W, 3), uint8 or float in [0, 1], any sizes.

    The search covers fields of view of 0.4 to 2.5 times that of fixed, shifts that leave more than half of the smaller
    image inside the other, and rotations of up to about six degrees; for images with few contours in common (PET and
    MRI) only what a hurried registration leaves: shifts of 5 % of the image, a few degrees, a few percent of scale. A
    confident displacement of at most a pixel, or of less than its uncertainty, is returned as none; for objects on
    black, one that fits hardly better than none (`affine.is_bias`) is returned with `aligned` set.

    Args:
        moving: The image to be brought into the frame.
        fixed: The image whose pixels are the frame.
        dense: Refine a confident result locally, for parallax and lens distortion, see `dense.refined`.

    Raises InputError if an image has a side below 32 pixels or above 32767.
    """
    if min(moving.shape[:2] + fixed.shape[:2]) < SMALLEST:
        sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (moving, fixed))
        raise InputError(f"Images of {sizes} pixels cannot be aligned; each side needs at least {SMALLEST}.")
    place = placed(estimated(moving, fixed), moving.shape, fixed.shape)
    return refined(place, moving, fixed) if dense and place.confident else place


def estimated(moving: np.ndarray, fixed: np.ndarray) -> Estimate:
    """The estimate from the images, whether or not it exceeds the bias of the criterion."""
    pair = as_luma(moving), as_luma(fixed)
    # Only for objects on black: by mutual information 1 of 20 pairs of different road scenes is taken for aligned.
    black = [_similar_shapes(moving.shape, fixed.shape) and affine.is_on_black(image) for image in (moving, fixed)]
    smooth = any(dark and affine.is_smooth(image) for dark, image in zip(black, (moving, fixed), strict=True))
    if smooth:
        found = by_information(moving, fixed)
        if not found.confident and (other := by_contours(*pair)).confident:
            found = other
    else:
        found = by_contours(*pair)
        if not found.confident and all(black):
            found = by_information(moving, fixed)
    return found if any(black) else replace(found, gain=1.0)


def by_contours(moving: np.ndarray, fixed: np.ndarray) -> Estimate:
    """`estimated` by the contours of two lumas (H, W) float in [0, 1]."""
    pair: tuple[Masked, Masked] = (moving, valid_area(moving)), (fixed, valid_area(fixed))
    shape = fixed.shape
    matrices = candidates(*pair)
    for side, n in LEVELS.items():
        places = side_by_side(functools.partial(_refined_at, pair, side), matrices[:n])
        matrices = [place.matrix for place in sorted(places, key=lambda place: -place.score)]
    best, spread, confident = _judged(places, 4, shape)
    if not confident:  # if the aspect ratio was changed, no similarity fits either half
        stretched = _judged(side_by_side(lambda place: _refined(place.level, place.matrix, 6), places), 6, shape)
        if stretched[2]:
            best, spread, confident = stretched
    finest = Pair(*pair, FINEST, scale_of(best.matrix))
    matrix = finest.refined(best.matrix, 4)
    affine_map = finest.refined(matrix, 6)
    if finest.score(affine_map) > (1 + AFFINE_GAIN) * finest.score(matrix):
        matrix = affine_map
    gain = 1 - finest.score(resize(moving.shape, shape).matrix) / max(finest.score(matrix), 1e-9)
    return Estimate(matrix, spread, confident, gain)


def by_information(moving: np.ndarray, fixed: np.ndarray) -> Estimate:
    """`estimated` for two images of about the same field of view, by `affine.align`."""
    resized = resize(moving.shape, fixed.shape)
    found = affine.align(resized.warp(moving), fixed)
    matrix = resized.matrix @ np.vstack([found.matrix, [0, 0, 1]])
    return Estimate(matrix, found.spread_px, found.confident, found.gain)


def _refined_at(pair: tuple[Masked, Masked], side: int, matrix: np.ndarray) -> Place:
    return _refined(Pair(*pair, side, scale_of(matrix)), matrix, 4)


def _refined(level: Pair, matrix: np.ndarray, free: int) -> Place:
    matrix = level.refined(matrix, free)
    return Place(matrix, level.score(matrix), level)


def _judged(places: list[Place], free: int, shape: tuple[int, ...]) -> tuple[Place, float, bool]:
    """The best candidate, how far two halves of the image disagree about it, and whether to trust it.

    free: 4 to fit a similarity to each half, 6 to allow stretch and shear.
    """
    size, best = max(shape), max(places, key=lambda place: place.score)
    rivals = [p.score for p in places if corner_distance(best.matrix, p.matrix, shape) > ELSEWHERE * size]
    alone = not rivals or max(rivals) < RIVAL * best.score
    aside = ASIDE * size / max(LEVELS) / np.sqrt(2)

    def refined_by(half: int) -> np.ndarray:
        way = aside * (1, -1)[half]
        similar = best.level.refined(best.matrix @ np.array([[1, 0, way], [0, 1, -way], [0, 0, 1]]), 4, half)
        return similar if free == 4 else best.level.refined(similar, free, half)

    halves = side_by_side(refined_by, (0, 1))
    spread = corner_distance(halves[0], halves[1], shape)
    return best, spread, bool(alone and spread <= max(2.0, AGREEMENT * size) and best.score > 0)


def _similar_shapes(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two images can show the same field of view: their aspect ratios differ by less than 10 %."""
    return bool(abs(np.log(one[0] * other[1] / (one[1] * other[0]))) < 0.1)


def placed(found: Estimate, moving_shape: tuple[int, ...], shape: tuple[int, ...]) -> Registration:
    """The registration for an estimate, with a sentence.

    The variance of either half's estimate is twice that of the full image, and of their difference four times.
    """
    resized = resize(moving_shape, shape)
    distance, residual = corner_distance(resized.matrix, found.matrix, shape), found.spread_px / 2
    view = scale_of(resized.matrix) / scale_of(found.matrix)
    # For heads the estimate is returned all the same: two estimates agree better with each other than with the pair as
    # it is.
    biased = affine.is_bias(found.gain, distance, max(shape[:2]))
    none = distance <= max(ALIGNED, residual)
    aligned = found.confident and (biased or none)
    if not found.confident:
        sentence = (
            f"The images could not be aligned with confidence (their two halves disagree by {found.spread_px:.0f} "
            f"pixels, the estimated shift is {distance:.0f})."
        )
    elif aligned:
        residual = max(ALIGNED, residual, distance)
        sentence = f"The images are already aligned, within {residual:.1f} pixels."
    elif abs(np.log(view)) > 0.1:
        sentence = (
            f"The image covers {view:.2f} times the frame's field of view (registered to within {residual:.1f} pixels)."
        )
    else:
        sentence = f"The image was off by up to {distance:.1f} pixels (give or take {residual:.1f})."
    known = from_matrix(resized.matrix if aligned and not biased else found.matrix, moving_shape, shape, sentence)
    return replace(known, residual_px=residual, confident=found.confident, aligned=aligned)
