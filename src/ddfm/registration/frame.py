"""All images of a scene in one frame: by a rig calibration, by estimation, or taken as aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io.images import Image, quoted
from ddfm.registration.estimate import register
from ddfm.registration.transform import Registration, resize

Align = Literal["auto", "force", "skip"]
Framed = tuple[list[Image], list[str], list[Registration | None]]
LEVEL_FEATHER = 0.2  # of the shorter side of the frame
CELLS = 256  # of the grid, along the longest side, on which the common rectangle is sought


def sharpest(sources: Sequence[Image]) -> int:
    """The index of the source with most pixels, the first of these."""
    return max(range(len(sources)), key=lambda k: sources[k].pixels.shape[0] * sources[k].pixels.shape[1])


def to_frame(
    sources: Sequence[Image],
    frame: int,
    align: Align | None = None,
    rig: Registration | None = None,
    crop: bool = False,
) -> Framed:
    """The sources on the grid of `sources[frame]`, a sentence for each that was moved, and where each lay.

    A source that covers less of the scene fades out at its border into what the frame shows there, so that beyond it
    the frame's own image remains and no seam is seen.

    Args:
        sources: Images, not volumes; the frame's own stays as it is.
        frame: Index of the source whose pixels are the frame.
        align: "auto" estimates where the others lie, "force" also uses an
            estimate that is unsure; "skip" takes all as showing the same field of view. None is "skip" for sources of
            the frame's size, else "auto".
        rig: Known geometry instead, of sources of the size it was made for.
        crop: Keep only the largest rectangle that all sources cover, and fade nothing.

    Raises InputError if the rig is of other sizes, if an estimate is unsure, or if nothing is covered by all.
    """
    if align is not None and align not in get_args(Align):
        raise InputError(f"Alignment is auto, force or skip, not {align!r}.")
    target = sources[frame]
    found = [None if k == frame else _placed(source, target, align, rig) for k, source in enumerate(sources)]
    findings = [
        f"{quoted(source.path)}: {place.sentence}" if source.path is not None else place.sentence
        for source, place in zip(sources, found, strict=True)
        if place is not None
    ]
    area = _common(found, target.pixels.shape) if crop else np.s_[:, :]
    moved = []
    for source, place in zip(sources, found, strict=True):
        pixels = source.pixels if place is None else place.warp(source.pixels)
        if place is not None and not crop:
            pixels = _faded(pixels, target.pixels, place)
        moved.append(source if place is None and not crop else replace(source, pixels=pixels[area]))
    if crop:
        height, width = moved[frame].pixels.shape[:2]
        findings.append(f"Cropped to the {width}x{height} pixels that all sources cover.")
    return moved, findings, found


def frame_of(sources: Sequence[Image], rig: Registration | None) -> int:
    """The index of the frame if none is asked for: the size of the rig's, else the sharpest. Raises InputError."""
    if rig is None:
        return sharpest(sources)
    for k, source in enumerate(sources):
        if source.pixels.shape[:2] == rig.fixed_shape:
            return k
    height, width = rig.fixed_shape
    raise InputError(f"The rig file is for a frame of {width}x{height} pixels, which none of the sources has.")


def _placed(source: Image, target: Image, align: Align | None, rig: Registration | None) -> Registration | None:
    """Where the source lies in the target; None if it is taken to lie on it, pixel by pixel."""
    same = source.pixels.shape[:2] == target.pixels.shape[:2]
    if rig is not None:
        if (rig.moving_shape, rig.fixed_shape) != (source.pixels.shape[:2], target.pixels.shape[:2]):
            raise InputError(
                f"The rig file is not for {_name(source)} in the frame of {_name(target)}: it brings images of "
                f"{_size(rig.moving_shape)} pixels to {_size(rig.fixed_shape)}. Write one for this pair with `ddfm "
                "register A B --save RIG`."
            )
        return rig
    if align == "skip" or (align is None and same):
        return None if same else resize(source.pixels.shape, target.pixels.shape)
    found = register(source.pixels, target.pixels)
    if not found.confident and align != "force":
        raise InputError(
            f"{_name(source)} and {_name(target)}: {found.sentence} Use align=force to take what was found, align=skip "
            "to take them as showing the same field of view, or a rig calibration."
        )
    return found


def _faded(pixels: np.ndarray, target: np.ndarray, place: Registration) -> np.ndarray:
    """pixels where they are covered, and beyond what the frame shows: sources that are equal are fused to themselves.

    Details change over a few pixels, levels over a fifth of the frame (two bands of Burt & Adelson, "A multiresolution
    spline", 1983): a sky that is dark in one of them and bright in the other would else end in a line.
    """
    if place.inside.all():
        return pixels
    if not (place.coverage > 0.5).any():
        raise InputError("One of the sources covers none of the frame; nothing can be fused.")
    shown, detail, level = luma(target), place.coverage, place.fading(LEVEL_FEATHER)
    if pixels.ndim == 3:
        shown, detail, level = (np.repeat(x[..., None], 3, axis=-1) for x in (shown, detail, level))
    sigma = LEVEL_FEATHER / 4 * min(target.shape[:2])
    own, others = (cv2.GaussianBlur(np.ascontiguousarray(x, np.float32), (0, 0), sigma) for x in (pixels, shown))
    faded = detail * (pixels - own) + (1 - detail) * (shown - others) + level * own + (1 - level) * others
    return np.clip(faded, 0, 1).astype(np.float32)


def _common(places: Sequence[Registration | None], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The largest upright rectangle inside all sources, on a grid of cells. Raises InputError if there is none."""
    inside: Any = np.ones(shape[:2], bool)
    for place in places:
        if place is not None:
            inside = np.logical_and(inside, place.inside)
    cell = max(1, -(-max(shape[:2]) // CELLS))
    rows, columns = (n // cell for n in shape[:2])
    if inside.all():
        return np.s_[:, :]
    cells = inside[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).all(axis=(1, 3))
    best, area = (0, 0, 0, 0), 0
    heights = np.zeros(columns, int)
    for bottom in range(rows):
        heights = np.where(cells[bottom], heights + 1, 0)
        for height in np.unique(heights[heights > 0]):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], (heights >= height).astype(int), [0]])))
            left, right = max(zip(edges[::2], edges[1::2], strict=True), key=lambda run: run[1] - run[0])
            if height * (right - left) > area:
                area, best = height * (right - left), (bottom + 1 - height, bottom + 1, left, right)
    if not area:
        raise InputError("No part of the scene is covered by all sources; do not crop.")
    top, bottom, left, right = (int(n) * cell for n in best)
    return slice(top, bottom), slice(left, right)


def _name(source: Image) -> str:
    return quoted(source.path) if source.path is not None else "A source"


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"
