"""Temperatures and photo that one camera took at once, in one frame: by the camera's own geometry, refined."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from ddfm.colour import join, split
from ddfm.errors import InputError
from ddfm.io.images import Image
from ddfm.registration.estimate import SMALLEST, register
from ddfm.registration.frame import Align, Framed, to_frame
from ddfm.registration.transform import Registration, corner_distance, from_matrix, resize, scale_of

LONGEST = 1280  # pixels a side that the temperatures are enlarged to at most: 320 to 640 of them are measured
PLAUSIBLE = 0.06  # of the frame's longest side: parallax and play between two cameras in one housing
PLAUSIBLE_SCALE = 0.05
DETAIL = 0.02  # of the frame's shorter side: what of the photo is finer counts as detail
LEVELS = (0.25, 0.75)  # detail takes place in this part of the range, whatever the temperatures are


def in_one_frame(
    sources: Sequence[Image], matrix: np.ndarray, frame: int | None, align: Align | None, crop: bool
) -> tuple[Framed, int]:
    """What `to_frame` gives of (temperatures, photo), and the index of the frame.

    In the frame of the temperatures brightness is temperature: the photo lends its detail and its colours but not its
    own brightness, as thermographers expect. In the frame of the photo it stays as it is.

    Args:
        sources: Temperatures (h, w) and photo (H, W, 3).
        matrix: (3, 3), pixels of the photo to pixels of the temperatures, as the camera says.
        frame: None for the field of view of the temperatures, enlarged to the photo's sharpness; 0 for their own
            pixels, 1 for the photo.
        align: "skip" takes the matrix as it is; else it is refined by what both show, where that is sure ("force": in
            any case) and within what two lenses in one housing can be off by; "dense" then adds their parallax.
        crop: As `to_frame`.

    Raises InputError for another frame, and as `to_frame`.
    """
    if frame not in (None, 0, 1):
        raise InputError("The frame of a camera's own file is first (temperatures) or second (photo).")
    heat, photo = sources
    said: list[str] = []
    larger = _larger(heat, matrix, photo) if frame is None else None
    if larger is not None:
        (h, w), (height, width) = larger.moving_shape, larger.fixed_shape
        said = [
            f"The result shows what the temperatures cover, {width}x{height} pixels; --frame first keeps to the "
            f"{w}x{h} that were measured, --frame second shows all of the photo."
        ]
        heat, matrix = replace(heat, pixels=larger.warp(heat.pixels)), np.linalg.inv(larger.matrix) @ matrix
    moving, fixed = (heat, photo) if frame == 1 else (photo, heat)
    if frame != 1:
        matrix = np.linalg.inv(matrix)
    place = from_matrix(matrix, moving.pixels.shape, fixed.pixels.shape)
    place = _refined(place, moving.pixels, fixed.pixels, align)
    framed = to_frame([heat, photo], frame or 0, "dense" if align == "dense" else None, place, crop)
    if frame == 1:
        return framed, 1
    bring = functools.partial(_brought, framed.bring, larger, float(np.median(framed.sources[0].pixels)))
    return Framed(
        [framed.sources[0], bring(1, photo)],
        [*said, *framed.findings, "Brightness is temperature; the photo lends its detail and its colours."],
        framed.places,
        [sources[0] if larger is not None else None, framed.own[1]],
        bring,
    ), 0


def _brought(
    bring: Callable[[int, Image], Image], larger: Registration | None, level: float, k: int, source: Image
) -> Image:
    """Temperatures enlarged, the photo as detail, as `Framed.bring`."""
    if k == 1:
        brought = bring(1, source)
        return replace(brought, pixels=detail(brought.pixels, level))
    return bring(0, source if larger is None else replace(source, pixels=larger.warp(source.pixels)))


def detail(photo: np.ndarray, level: float) -> np.ndarray:
    """The photo (H, W, 3) in [0, 1] with its fine detail and its colours, on one brightness, `level`."""
    brightness, chroma = split(photo)
    sigma = max(2.0, DETAIL * min(brightness.shape))
    fine = brightness - cv2.GaussianBlur(brightness, (0, 0), sigma)
    return join(fine + float(np.clip(level, *LEVELS)), chroma)


def _larger(heat: Image, matrix: np.ndarray, photo: Image) -> Registration | None:
    """Where the temperatures lie with the photo's pixels, none fewer than they have and at most `LONGEST` a side; None
    if that is as they are."""
    h, w = heat.pixels.shape
    factor = min(1 / scale_of(matrix), max(1.0, LONGEST / max(h, w)))
    return resize((h, w), (round(h * factor), round(w * factor))) if factor > 1.05 else None


def _refined(place: Registration, moving: np.ndarray, fixed: np.ndarray, align: Align | None) -> Registration:
    """The camera's geometry, moved by what both images show where that can be trusted."""
    stays = replace(place, sentence="The temperatures lie in the photo where the camera's own geometry says.")
    if align == "skip" or min(*fixed.shape[:2], *moving.shape[:2]) < SMALLEST:
        return stays
    brought = place.warp(moving)
    found = register(brought, fixed)
    distance = corner_distance(np.eye(3), found.matrix, fixed.shape)
    near = distance <= PLAUSIBLE * max(fixed.shape) and abs(np.log(scale_of(found.matrix))) <= PLAUSIBLE_SCALE
    if not near or not (found.confident or align == "force"):
        return replace(stays, sentence=f"{stays.sentence[:-1]}; what both show was too little to refine it.")
    if distance <= 1:
        return replace(stays, sentence=f"{stays.sentence[:-1]}, which what both show confirms.")
    sentence = (
        f"The temperatures lie in the photo up to {distance:.0f} pixels from where the camera's own geometry says, by "
        f"what both show (give or take {found.residual_px:.0f})."
    )
    return replace(place, matrix=place.matrix @ found.matrix, residual_px=found.residual_px, sentence=sentence)
