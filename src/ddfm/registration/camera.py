"""Temperatures and photo that one camera took at once, in one frame: by the camera's stored geometry, refined."""

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

LONGEST = 1280  # pixels of the longest side to which temperatures are enlarged: 320 to 640 of them are measured
PLAUSIBLE = 0.06  # of the frame's longest side: parallax and play between two cameras in one housing
PLAUSIBLE_SCALE = 0.05
DETAIL = 0.02  # of the frame's shorter side: finer structure in the photo counts as detail
LEVELS = (0.25, 0.75)  # the mean level of the detail stays in this part of the range, whatever the temperatures are


def in_one_frame(
    sources: Sequence[Image], matrix: np.ndarray, frame: int | None, align: Align | None, crop: bool
) -> tuple[Framed, int]:
    """The result of `to_frame` for (temperatures, photo), and the index of the frame.

    In the frame of the temperatures, brightness is temperature: the photo contributes its detail and its colours but
    not its brightness, as thermographers expect. In the frame of the photo, the photo is used as it is.

    Args:
        sources: Temperatures (h, w) and photo (H, W, 3).
        matrix: (3, 3), pixels of the photo to pixels of the temperatures, from the camera.
        frame: None for the field of view of the temperatures, enlarged to the photo's resolution; 0 for their
            original pixels, 1 for the photo.
        align: "skip" uses the matrix as it is. Otherwise it is refined by registration, if the result is confident
            ("force": even if not) and plausible for two lenses in one housing; "dense" then adds their parallax.
        crop: As in `to_frame`.

    Raises InputError for another frame, and as `to_frame` does.
    """
    if frame not in (None, 0, 1):
        raise InputError("The frame of a radiometric file must be first (temperatures) or second (photo).")
    heat, photo = sources
    said: list[str] = []
    larger = _larger(heat, matrix, photo) if frame is None else None
    if larger is not None:
        (h, w), (height, width) = larger.moving_shape, larger.fixed_shape
        said = [
            f"The result shows the area that the temperatures cover, {width}x{height} pixels; --frame first keeps the "
            f"measured {w}x{h}, --frame second shows the full photo."
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
        [*said, *framed.findings, "Brightness is temperature; the photo contributes its detail and its colours."],
        framed.places,
        [sources[0] if larger is not None else None, framed.own[1]],
        bring,
    ), 0


def _brought(
    bring: Callable[[int, Image], Image], larger: Registration | None, level: float, k: int, source: Image
) -> Image:
    """`Framed.bring` with enlarged temperatures and the photo as detail."""
    if k == 1:
        brought = bring(1, source)
        return replace(brought, pixels=detail(brought.pixels, level))
    return bring(0, source if larger is None else replace(source, pixels=larger.warp(source.pixels)))


def detail(photo: np.ndarray, level: float) -> np.ndarray:
    """The fine detail and the colours of the photo (H, W, 3) in [0, 1] on a uniform brightness, `level`."""
    brightness, chroma = split(photo)
    sigma = max(2.0, DETAIL * min(brightness.shape))
    fine = brightness - cv2.GaussianBlur(brightness, (0, 0), sigma)
    return join(fine + float(np.clip(level, *LEVELS)), chroma)


def _larger(heat: Image, matrix: np.ndarray, photo: Image) -> Registration | None:
    """The enlargement of the temperatures to the photo's pixel size, to at most `LONGEST` a side; None if they stay as
    they are."""
    h, w = heat.pixels.shape
    factor = min(1 / scale_of(matrix), max(1.0, LONGEST / max(h, w)))
    return resize((h, w), (round(h * factor), round(w * factor))) if factor > 1.05 else None


def _refined(place: Registration, moving: np.ndarray, fixed: np.ndarray, align: Align | None) -> Registration:
    """The camera's geometry, refined by registration of both images if that can be trusted."""
    stays = replace(place, sentence="The temperatures are placed in the photo by the camera's own geometry.")
    if align == "skip" or min(*fixed.shape[:2], *moving.shape[:2]) < SMALLEST:
        return stays
    brought = place.warp(moving)
    found = register(brought, fixed)
    distance = corner_distance(np.eye(3), found.matrix, fixed.shape)
    near = distance <= PLAUSIBLE * max(fixed.shape) and abs(np.log(scale_of(found.matrix))) <= PLAUSIBLE_SCALE
    if not near or not (found.confident or align == "force"):
        return replace(stays, sentence=f"{stays.sentence[:-1]}; the images have too little in common to refine it.")
    if distance <= 1:
        return replace(stays, sentence=f"{stays.sentence[:-1]}, which registration confirms.")
    sentence = (
        f"Registration places the temperatures up to {distance:.0f} pixels from where the camera's own geometry does "
        f"(give or take {found.residual_px:.0f})."
    )
    return replace(place, matrix=place.matrix @ found.matrix, residual_px=found.residual_px, sentence=sentence)
