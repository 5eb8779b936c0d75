"""The geometry of DICOM frames: of a single image, of each frame of an enhanced one, of a series.

PS3.3, C.7.6.2 (Image Plane) and C.7.6.16.2 (functional groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddfm.errors import InputError
from ddfm.io.grid import Grid, problem

UNEVEN = 0.1  # fraction of the slice spacing by which gaps may differ: beyond it an image may be missing


@dataclass(frozen=True)
class Frames:
    """The geometry of n frames in the headers.

    Attributes:
        spacing: Millimetres between the centres of rows and between the centres of columns.
        thickness: Millimetres from one frame to the next along the normal, if there are no positions.
        positions: (n, 3), the centre of each frame's first pixel; None if unknown.
        orientation: (n, 6), the directions of a row and of a column; None if unknown.
    """

    spacing: tuple[float, float]
    thickness: float
    positions: np.ndarray | None = None
    orientation: np.ndarray | None = None

    @property
    def placed(self) -> bool:
        """Whether positions and orientations are known."""
        return self.positions is not None and self.orientation is not None

    @classmethod
    def joined(cls, single: Sequence[Frames], name: str) -> Frames:
        """The frames of a series, all placed and with equal spacing. Raises InputError."""
        spacings = np.array([one.spacing for one in single])
        if np.ptp(spacings, axis=0).max() > 1e-3 * spacings.max():
            raise InputError(f"{name} holds images of different pixel spacings; put one series in a folder of its own.")
        positions = np.concatenate([one.positions for one in single if one.positions is not None])
        orientation = np.concatenate([one.orientation for one in single if one.orientation is not None])
        return cls(single[0].spacing, single[0].thickness, positions, orientation)


def frames_of(dataset: Any, n: int, name: str) -> Frames | None:
    """The geometry of a dataset's n frames; None if not even their spacing is known.

    Raises InputError for a negative spacing, ValueError for a malformed number.
    """
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    detector = list(dataset.get("DetectorInformationSequence") or [])[:1]  # nuclear medicine

    def find(k: int, sequence: str, keyword: str, length: int) -> list[float] | None:
        for group in [*groups[k : k + 1], *shared[:1]]:
            for item in list(group.get(sequence) or [])[:1]:
                if item.get(keyword) is not None:
                    return _numbers(item.get(keyword), length)
        for place in [dataset, *detector]:
            if place.get(keyword) is not None:
                return _numbers(place.get(keyword), length)
        return None

    spacing = find(0, "PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None:
        return None
    if min(spacing) < 0:
        raise InputError(f"{name} has a negative pixel spacing; correct its header or save it again.")
    between = find(0, "PixelMeasuresSequence", "SpacingBetweenSlices", 1)
    thickness = (between or find(0, "PixelMeasuresSequence", "SliceThickness", 1) or [1.0])[0] or 1.0
    orientations = [find(k, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for k in range(n)]
    positions = [find(k, "PlanePositionSequence", "ImagePositionPatient", 3) for k in range(n)]
    if None in orientations or None in positions:
        return Frames((spacing[0], spacing[1]), abs(thickness))
    directions, starts = np.array(orientations, np.float64), np.array(positions, np.float64)
    if n > 1 and len(groups) < n and not np.ptp(starts, axis=0).any():  # one position, of the first frame
        if between is None:
            return Frames((spacing[0], spacing[1]), abs(thickness))
        normal = np.cross(directions[0, :3], directions[0, 3:])
        starts = starts + np.arange(n)[:, None] * between[0] * normal
    return Frames((spacing[0], spacing[1]), abs(thickness), starts, directions)


def arranged(
    frames: Frames | None, shape: tuple[int, ...], name: str, findings: list[str]
) -> tuple[list[int] | None, Grid | None]:
    """(the order that sorts the frames, None if they are sorted; the grid of the sorted frames, None if unknown).

    Raises:
        InputError: frames that are not parallel, coincide, or leave a gap; an invalid geometry.
    """
    if frames is None:
        return None, None
    n, height, width = shape
    spacing = np.array([frames.spacing[1], frames.spacing[0], frames.thickness])
    if frames.positions is None or frames.orientation is None:
        grid = Grid((n, height, width), np.diag([*spacing, 1.0]), placed=False)
        return None, None if problem(grid.affine) else grid
    affine = np.eye(4)
    directions, positions = frames.orientation, frames.positions
    if not np.isfinite(directions).all() or np.ptp(directions, axis=0).max() > 1e-3:
        raise InputError(f"{name} has images that are not parallel; put one stack of images in a folder of its own.")
    row, column = directions[0, :3], directions[0, 3:]
    normal = np.cross(row, column)
    if not 0.99 < np.linalg.norm(row) < 1.01 or not 0.99 < np.linalg.norm(column) < 1.01 or abs(row @ column) > 0.01:
        raise InputError(f"{name} has an invalid orientation; save it again.")
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    if n > 1:
        _check_gaps(heights[order], name, findings)
        ends = positions[order[[0, -1]]]
        step = (ends[1] - ends[0]) / (n - 1)
        off = np.linalg.norm(positions[order] - (ends[0] + np.arange(n)[:, None] * step), axis=1).max()
        if off > UNEVEN * np.linalg.norm(step) + 1e-3:
            raise InputError(f"{name} has images up to {off:.3g} mm away from a regular stack; choose one stack.")
    else:
        step = normal * frames.thickness
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * spacing[0], column * spacing[1], step
    affine[:3, 3] = positions[order[0]]
    if wrong := problem(affine):
        raise InputError(f"The geometry of {name} {wrong}; save it again.")
    sorted_already = bool((order == np.arange(n)).all())
    return (None if sorted_already else order.tolist()), Grid((n, height, width), affine)


def _check_gaps(heights: np.ndarray, name: str, findings: list[str]) -> None:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3 or gaps.min() < 0.01 * usual:
        raise InputError(
            f"{name} has several images at one position (time points, echoes or contrasts); put each set in a folder "
            "of its own."
        )
    if max(gaps.max() - usual, usual - gaps.min()) > UNEVEN * usual:
        raise InputError(
            f"{name} has images {gaps.min():.4g} to {gaps.max():.4g} mm apart; if one is missing, add it, otherwise "
            "resample them to an even spacing."
        )
    if np.ptp(gaps) > 0.01 * usual + 1e-3:
        findings.append(
            f"{name} has images {gaps.min():.4g} to {gaps.max():.4g} mm apart; they are treated as evenly spaced."
        )


def _numbers(value: Any, length: int) -> list[float]:
    """The numbers in an element. Raises ValueError unless there are `length`."""
    numbers = [float(v) for v in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]
    if len(numbers) != length:
        raise ValueError(f"{len(numbers)} numbers instead of {length}")
    return numbers
