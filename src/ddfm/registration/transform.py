"""Where every pixel of one image lies in another: the result of `register`, or known geometry.

One convention everywhere: (x, y) in pixels, x to the right and y down, pixel centres at integers, so that an image
of width W spans -0.5 .. W - 0.5. Maps go from the fixed image (the frame) to the moving one, the direction in
which images are resampled.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ddfm.errors import InputError
from ddfm.io.files import quoted, read_text, write_bytes

VERSION = 1  # of the rig file
LARGEST = 2**15 - 1  # pixels a side: the limit of OpenCV's resampling
OVERHANG = 1.0  # pixels that the frame may extend beyond the moving image: there the edge is repeated
FEATHER = 0.04  # of the shorter side of the frame: the width over which the moving image fades out at its border


@dataclass(frozen=True)
class Registration:
    """Where the moving image lies in the frame of the fixed one.

    Attributes:
        matrix: (3, 3) float64, homogeneous, from pixel (x, y, 1) of fixed to pixel (x, y, 1) of moving; pixel centres
            at integers.
        fixed_shape: (H, W) of the frame.
        moving_shape: (h, w) of the moving image.
        residual_px: How far the estimate may be off, in pixels of fixed; 0 for known geometry.
        confident: Whether to use it without being asked to.
        aligned: Whether the pair fits equally well as it is, so that `ddfm fuse` leaves it unchanged.
        sentence: The result in words.
        displacement: (H, W, 2) float32, what a local refinement adds to the matrix, in pixels of moving; or None.
        path: The rig file it was read from, if any.
        frame: Which of the two is the frame, 0 or 1 in the order they were given, since nothing else distinguishes
            images of equal size. None if unknown.
    """

    matrix: np.ndarray
    fixed_shape: tuple[int, int]
    moving_shape: tuple[int, int]
    residual_px: float = 0.0
    confident: bool = True
    aligned: bool = False
    sentence: str = ""
    displacement: np.ndarray | None = None
    path: Path | None = None
    frame: int | None = None

    @cached_property
    def map(self) -> np.ndarray:
        """(H, W, 2) float32: for each pixel of fixed, its (x, y) in moving, which may lie outside."""
        height, width = self.fixed_shape
        found = self.by_matrix(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None])
        return found if self.displacement is None else found + self.displacement

    def by_matrix(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(H, W, 2) float32: where the matrix alone maps (x, y) of fixed, two arrays that broadcast to (H, W)."""
        rows = [a * x + b * y + c for a, b, c in self.matrix]
        found: np.ndarray = np.stack([rows[0] / rows[2], rows[1] / rows[2]], axis=-1).astype(np.float32)
        return found

    @cached_property
    def inside(self) -> np.ndarray:
        """(H, W) bool: where moving has data, up to a pixel beyond its border."""
        height, width = self.moving_shape
        x, y = self.map[..., 0], self.map[..., 1]
        low, high = -0.5 - OVERHANG, OVERHANG - 0.5
        found: np.ndarray = (x >= low) & (y >= low) & (x <= width + high) & (y <= height + high)
        return found

    @cached_property
    def coverage(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]: 0 where moving has no data, 1 well inside it, smooth in between.

        Only the border of the moving image counts, not that of the frame: for an image that fills the frame it is 1.
        """
        return self.fading(FEATHER)

    def fading(self, feather: float) -> np.ndarray:
        """`coverage` that rises from 0 to 1 over `feather` of the frame's shorter side, at least 8 pixels, but at most
        half the way to the middle of the covered area."""
        if self.inside.all():
            return np.ones(self.fixed_shape, np.float32)
        depth = cv2.distanceTransform(self.inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        feather = max(8.0, min(feather * min(self.fixed_shape), float(depth.max()) / 2))
        ramp = np.clip((depth - 1) / feather, 0, 1)
        result: np.ndarray = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
        return result

    @property
    def scale(self) -> np.ndarray:
        """(2,): pixels of moving per pixel of fixed, along x and y of moving, at the centre of the frame."""
        height, width = self.fixed_shape
        x, y, w = self.matrix @ ((width - 1) / 2, (height - 1) / 2, 1)
        jacobian = (self.matrix[:2, :2] - np.outer((x / w, y / w), self.matrix[2, :2])) / w
        result: np.ndarray = np.linalg.norm(jacobian, axis=1)
        return result

    def warp(self, moving: np.ndarray) -> np.ndarray:
        """moving, (h, w) or (h, w, 3), resampled into the frame: (H, W) or (H, W, 3), uint8 as uint8, else float32.

        Cubic; if the frame has fewer pixels, moving is first averaged down, to avoid aliasing. Values stay
        within the range of moving, and its edge is repeated beyond its border (see `coverage`).

        Raises:
            InputError: moving does not have the size of the image that was registered.
        """
        if moving.shape[:2] != self.moving_shape:
            raise InputError(
                f"The registration is for an image of {_size(self.moving_shape)} pixels, not of {_size(moving.shape)}; "
                "register this one separately."
            )
        pixels: np.ndarray = np.ascontiguousarray(moving, np.float32)
        low, high = float(pixels.min()), float(pixels.max())
        target = self.map
        size = np.array(self.moving_shape[::-1])
        small = np.minimum(size, np.maximum(1, np.rint(size / np.maximum(1, self.scale)))).astype(int)
        if (small < size).any():
            pixels = cv2.resize(pixels, tuple(int(s) for s in small), interpolation=cv2.INTER_AREA)
            target = ((target + 0.5) * (small / size) - 0.5).astype(np.float32)
        x, y = np.ascontiguousarray(target[..., 0]), np.ascontiguousarray(target[..., 1])
        warped: np.ndarray = cv2.remap(pixels, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        np.clip(warped, low, high, out=warped)
        return np.rint(warped).astype(np.uint8) if moving.dtype == np.uint8 else warped

    def as_dict(self) -> dict[str, Any]:
        """For JSON: matrix, fixed_size and moving_size (width, height), residual_px, confident, local_px, frame.

        local_px is the largest displacement of a local refinement, which itself is not included; frame is omitted if
        unknown.
        """
        local = 0.0 if self.displacement is None else float(np.linalg.norm(self.displacement, axis=-1).max())
        return {
            "matrix": [[float(v) for v in row] for row in self.matrix],
            "fixed_size": list(self.fixed_shape[::-1]),
            "moving_size": list(self.moving_shape[::-1]),
            "residual_px": float(self.residual_px),
            "confident": bool(self.confident),
            "local_px": local,
        } | ({} if self.frame is None else {"frame": self.frame})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rig calibration: JSON with the matrix and both sizes (a local refinement is specific to its scene).

        The file is written atomically. Raises InputError if `path` cannot be written.
        """
        rig = {"ddfm_rig": VERSION} | self.as_dict()
        write_bytes(path, (json.dumps(rig, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Registration:
        """Read a file that `save` wrote, as known, confident geometry. Raises InputError for any other file."""
        name, text = quoted(path), read_text(path)
        try:
            rig = _parsed(json.loads(text), f"The images are aligned as in the rig file {name}.")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise InputError(
                f"{name} is not a rig file of this version of ddfm; write one with `ddfm register A B --save RIG`."
            ) from error
        return replace(rig, path=Path(path))


def from_matrix(
    matrix: np.ndarray, moving_shape: tuple[int, ...], fixed_shape: tuple[int, ...], sentence: str = ""
) -> Registration:
    """Known geometry: matrix (3, 3) or (2, 3), from pixels of fixed to pixels of moving; shapes (H, W) or (H, W, 3).

    Raises InputError if the matrix is not of that shape, finite and invertible.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape == (2, 3):
        matrix = np.vstack([matrix, [0, 0, 1]])
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise InputError("The matrix of a registration must be 3x3 or 2x3, finite and invertible.")
    height, width = (int(n) for n in fixed_shape[:2])
    if max(height, width, *moving_shape[:2]) > LARGEST:
        raise InputError(f"Images of more than {LARGEST} pixels a side cannot be registered; shrink them first.")
    corners = matrix @ np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
    if (corners[2] <= 0).any():
        raise InputError("The matrix of a registration must not map any part of the frame to infinity.")
    sentence = sentence or "The images are aligned by known geometry."
    return Registration(matrix, (height, width), (int(moving_shape[0]), int(moving_shape[1])), sentence=sentence)


def resize(moving_shape: tuple[int, ...], fixed_shape: tuple[int, ...]) -> Registration:
    """The registration of two images of the same field of view: plain resizing, border to border."""
    (h, w), (height, width) = moving_shape[:2], fixed_shape[:2]
    matrix = [[w / width, 0, w / width / 2 - 0.5], [0, h / height, h / height / 2 - 0.5]]
    if (h, w) == (height, width):
        return identity(fixed_shape)
    sentence = f"Assumed to show the same field of view, and resized from {w}x{h} to {width}x{height} pixels."
    return from_matrix(np.array(matrix), moving_shape, fixed_shape, sentence)


def identity(shape: tuple[int, ...]) -> Registration:
    """The registration of two images of equal size that are aligned."""
    return from_matrix(np.eye(3), shape, shape, "The images are assumed to be aligned.")


def corner_distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance, in the frame's pixels, between where two (3, 3) affine matrices (fixed to moving) place a
    corner of the frame."""
    height, width = shape[:2]
    corners = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
    return float(np.linalg.norm((np.linalg.inv(one) @ other @ corners - corners)[:2], axis=0).max())


def scale_of(matrix: np.ndarray) -> float:
    """Pixels of moving per pixel of fixed for a (3, 3) affine matrix: the geometric mean over both directions."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _parsed(rig: dict[str, Any], sentence: str) -> Registration:
    if rig["ddfm_rig"] != VERSION:
        raise ValueError("another version")
    shapes = []
    for width, height in (rig["moving_size"], rig["fixed_size"]):
        if not (isinstance(width, int) and isinstance(height, int) and 0 < width <= LARGEST and 0 < height <= LARGEST):
            raise ValueError("sizes")
        shapes.append((height, width))
    if rig.get("frame") not in (None, 0, 1):
        raise ValueError("frame")
    if shapes[0] == shapes[1]:
        sentence += " They have equal sizes, so the order in which they are given tells which is which."
    found = from_matrix(np.array(rig["matrix"], np.float64), shapes[0], shapes[1], sentence)
    return replace(found, frame=rig.get("frame"))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
