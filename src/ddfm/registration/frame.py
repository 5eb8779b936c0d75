"""All images of a scene in one frame: by a rig calibration, by estimation, or assumed to be aligned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io.images import Image, quoted
from ddfm.registration.dense import refined
from ddfm.registration.estimate import register
from ddfm.registration.transform import Registration, from_matrix, resize

Align = Literal["auto", "dense", "force", "skip"]
DETAIL_FEATHER, LEVEL_FEATHER = 0.1, 0.2  # of the shorter side of the frame
CELLS = 256  # along the longest side, of the grid on which the common rectangle is sought
AVERAGED = 1.5  # pixels of a source per pixel of the frame above which resampling averages noise and leaves it white


@dataclass(frozen=True)
class Framed:
    """Sources in one frame.

    Attributes:
        sources: On the grid of the frame.
        findings: A sentence for each source that was moved.
        places: Where each source lay; None for the frame and for sources already on its grid.
        own: The original of each source whose noise interpolation smoothed, so that it can be told from detail only
            on the original grid; None for the others.
        bring: (k, the k-th source on its original grid) -> that source in the frame, resampled as for `sources`.
    """

    sources: list[Image]
    findings: list[str]
    places: list[Registration | None]
    own: list[Image | None]
    bring: Callable[[int, Image], Image]


def sharpest(sources: Sequence[Image]) -> int:
    """The index of the source with the most pixels; the first if several have."""
    return max(range(len(sources)), key=lambda k: sources[k].pixels.shape[0] * sources[k].pixels.shape[1])


def to_frame(
    sources: Sequence[Image],
    frame: int,
    align: Align | None = None,
    rig: Registration | None = None,
    crop: bool = False,
) -> Framed:
    """The sources on the grid of `sources[frame]`.

    A source that covers less of the scene is extrapolated beyond its border; there `with_frame_beyond` then replaces
    the fusion with the image of the frame, so that no seam is visible.

    Args:
        sources: Images, not volumes; the one that is the frame stays as it is.
        frame: Index of the source whose pixels are the frame.
        align: "auto" registers the other sources; "dense" then refines that, or the rig's geometry, locally; "force"
            also uses an unreliable estimate; "skip" assumes that all show the same field of view. None is "skip" for
            sources of the frame's size, else "auto".
        rig: Known geometry instead, for sources of the sizes it was made for, whichever of them is the frame.
        crop: Keep only the largest rectangle that all sources cover, without fading.

    Raises InputError if the rig is for other sizes, if an estimate is unreliable, or if no part is covered by all.
    """
    if align is not None and align not in get_args(Align):
        raise InputError(f"Alignment must be auto, dense, force or skip, not {align!r}.")
    target = sources[frame]
    found = [None if k == frame else _placed(source, target, frame, align, rig) for k, source in enumerate(sources)]
    findings = [
        f"{quoted(source.path)}: {place.sentence}" if source.path is not None else place.sentence
        for source, place in zip(sources, found, strict=True)
        if place is not None
    ]
    bring = functools.partial(_brought, target, found, _common(found, target.pixels.shape) if crop else None)
    moved = [bring(k, source) for k, source in enumerate(sources)]
    if crop:
        height, width = moved[frame].pixels.shape[:2]
        findings.append(f"Cropped to the {width}x{height} pixels that all sources cover.")
    own = [
        source if place is not None and place.scale.max() < AVERAGED else None
        for source, place in zip(sources, found, strict=True)
    ]
    return Framed(moved, findings, found, own, bring)


def _brought(
    target: Image, places: Sequence[Registration | None], area: tuple[slice, slice] | None, k: int, source: Image
) -> Image:
    """The k-th source in the frame of the target, cropped to `area`."""
    place = places[k]
    if place is None:
        return source if area is None else replace(source, pixels=source.pixels[area])
    pixels = place.warp(source.pixels)
    return replace(source, pixels=_continued(pixels, target.pixels, place) if area is None else pixels[area])


def frame_of(sources: Sequence[Image], rig: Registration | None) -> int:
    """The default frame: the source with the size of the rig's frame, else the one with the most pixels.

    Raises InputError.
    """
    if rig is None:
        return sharpest(sources)
    for k in sorted(range(len(sources)), key=lambda k: k != rig.frame):
        if sources[k].pixels.shape[:2] == rig.fixed_shape:
            return k
    height, width = rig.fixed_shape
    raise InputError(f"The rig file is for a frame of {width}x{height} pixels, which none of the sources has.")


def _placed(
    source: Image, target: Image, frame: int, align: Align | None, rig: Registration | None
) -> Registration | None:
    """Where the source lies in the target, source number `frame`; None if their pixels are assumed to coincide."""
    same = source.pixels.shape[:2] == target.pixels.shape[:2]
    if rig is not None:
        sizes = (source.pixels.shape[:2], target.pixels.shape[:2])
        # Different sizes tell the two images apart; of one size, only the rig's frame does.
        reverse = rig.frame not in (None, frame) if same else rig.displacement is None
        if sizes == (rig.fixed_shape, rig.moving_shape) and reverse:
            rig = _turned(rig)
        if sizes != (rig.moving_shape, rig.fixed_shape):
            raise InputError(
                f"The rig file is not for {source.name} in the frame of {target.name}: it maps images of "
                f"{_size(rig.moving_shape)} pixels to {_size(rig.fixed_shape)}. Write one for this pair with `ddfm "
                "register A B --save RIG`."
            )
        return refined(rig, source.pixels, target.pixels) if align == "dense" else rig
    if align == "skip" or (align is None and same):
        return None if same else resize(source.pixels.shape, target.pixels.shape)
    found = registered(source, target, dense=align == "dense", force=align == "force")
    if not found.confident and align != "force":
        raise InputError(
            f"{source.name} and {target.name}: {found.sentence} Use --align=force to use this estimate, --align=skip "
            "if they show the same field of view, or a rig calibration."
        )
    return found if found.confident else replace(found, sentence=f"{found.sentence} The estimate is used as requested.")


def _turned(rig: Registration) -> Registration:
    """The same rig with its two images exchanged."""
    return from_matrix(np.linalg.inv(rig.matrix), rig.fixed_shape, rig.moving_shape, rig.sentence)


def registered(source: Image, target: Image, dense: bool = False, force: bool = False) -> Registration:
    """`register` for two images, naming them in errors; a pair that is `aligned` is not moved unless `force`."""
    try:
        found = register(source.pixels, target.pixels)
    except InputError as error:
        raise InputError(f"{source.name} and {target.name}: {error}") from error
    if found.aligned and not force:
        found = replace(found, matrix=resize(found.moving_shape, found.fixed_shape).matrix)
    return refined(found, source.pixels, target.pixels) if dense and found.confident else found


def with_frame_beyond(fused: np.ndarray, frame: np.ndarray, places: Sequence[Registration | None]) -> np.ndarray:
    """The fused image, (H, W) or (H, W, 3), blended into the image of the frame where no other source has data.

    Details blend over a tenth of the frame, levels over a fifth (two bands of Burt & Adelson, "A multiresolution
    spline", 1983): otherwise a sky that is dark in one and bright in the other would end in a line. The result is
    blended, not the sources, because fusion is not linear: fading sources would leave a rim.

    Args:
        fused, frame: The fusion and the image of the source that is the frame, in [0, 1]; a cropped fusion is returned
            as it is.
        places: Where each source lies; None for the frame and for sources on its grid.
    """
    others = [place for place in places if place is not None]
    if len(others) < len(places) - 1 or any(p.inside.all() or p.fixed_shape != fused.shape[:2] for p in others):
        return fused
    detail, level = (np.max([p.fading(feather) for p in others], axis=0) for feather in (DETAIL_FEATHER, LEVEL_FEATHER))
    if frame.ndim > fused.ndim:
        frame = luma(frame)
    elif frame.ndim < fused.ndim:
        frame = np.repeat(frame[..., None], 3, axis=-1)
    if fused.ndim == 3:
        detail, level = detail[..., None], level[..., None]
    difference = np.subtract(fused, frame, dtype=np.float32)
    mixed = frame + detail * difference + (level - detail) * _blurred(difference, LEVEL_FEATHER / 4)
    result: np.ndarray = np.clip(mixed, 0, 1).astype(np.float32)
    return result


def _blurred(image: np.ndarray, share: float) -> np.ndarray:
    """A Gaussian blur with a sigma of `share` of the shorter side, computed on a grid with a spacing of sigma / 6 if
    that is more than a pixel."""
    height, width = image.shape[:2]
    sigma = share * min(height, width)
    factor = max(1.0, sigma / 6)
    coarse = cv2.resize(image, (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA)
    blurred: np.ndarray = cv2.GaussianBlur(coarse, (0, 0), sigma / factor)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def _continued(pixels: np.ndarray, target: np.ndarray, place: Registration) -> np.ndarray:
    """pixels extrapolated where the source has no data: near its border by its edge, further out by the frame.

    So there is no step at the border that the fusion could turn into an edge, and far from it the sources are equal
    and change nothing.
    """
    if place.inside.all():
        return pixels
    if not (place.coverage > 0.5).any():
        raise InputError("One of the sources covers no part of the frame, so nothing can be fused.")
    beyond = cv2.distanceTransform((~place.inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.clip(beyond / (LEVEL_FEATHER * min(target.shape[:2])), 0, 1)
    share, shown = share * share * (3 - 2 * share), luma(target)
    if pixels.ndim == 3:
        share, shown = share[..., None], shown[..., None]
    mixed: np.ndarray = (pixels + share * (shown - pixels)).astype(np.float32)
    return mixed


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


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"
