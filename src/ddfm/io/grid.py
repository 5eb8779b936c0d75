"""The world coordinates of a volume's voxels.

Coordinates are those of DICOM and ITK, in millimetres: x increases to the patient's left, y to the back, z to the head
(LPS). NIfTI uses RAS, with x and y reversed. Index order is (column, row, slice) = (x, y, z) of an array (S, H, W).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
SAME = 0.05  # voxels: grids whose corners are closer than this count as the same; headers round to 1e-4


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of voxels.

    Attributes:
        shape: (S, H, W).
        affine: (4, 4) float64, index (column, row, slice, 1) to LPS mm. Its columns may be oblique or sheared (a tilted
            gantry), but are linearly independent.
        placed: Whether the file has world coordinates. If not, only the spacing in the affine is meaningful.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    placed: bool = True

    @property
    def size(self) -> tuple[int, int, int]:
        """(W, H, S)."""
        depth, height, width = self.shape
        return width, height, depth

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbouring columns, rows and slices: x, y, z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def axes(self) -> str:
        """The directions of the three indices in NIfTI's letters: "RAS" is right, anterior, superior."""
        directions = self.affine[:3, :3] / self.spacing
        letters = ("RL", "AP", "IS")  # the negative and the positive direction in LPS
        code, left = "", [0, 1, 2]
        for column in directions.T:
            axis = max(left, key=lambda k: abs(column[k]))
            left.remove(axis)
            code += letters[axis][int(column[axis] > 0)]
        return code

    def to(self, other: Grid) -> np.ndarray:
        """(4, 4): this grid's indices to the other's."""
        return np.linalg.solve(other.affine, self.affine)

    def corners(self) -> np.ndarray:
        """(4, 8): the indices of the corner voxels."""
        extents = [(0.0, n - 1.0) for n in self.size]
        corners: np.ndarray = np.array([(*corner, 1.0) for corner in itertools.product(*extents)]).T
        return corners

    def is_same(self, other: Grid) -> bool:
        """Whether all voxels coincide, to within a twentieth of a voxel."""
        if self.shape != other.shape:
            return False
        corners = self.corners()
        return bool(np.abs(self.to(other) @ corners - corners).max() < SAME)

    def reordering(self, other: Grid) -> tuple[tuple[int, int, int], tuple[int, ...]] | None:
        """How permuting and reversing axes turns this grid's array into the other's, if it does.

        Returns:
            (order, reversed): `np.flip(array.transpose(order), reversed)`, or None.
        """
        forth = other.to(self)  # from indices of the other grid to indices of this one
        linear = np.rint(forth[:3, :3])
        if not (np.abs(linear).sum(axis=0) == 1).all() or not (np.abs(linear).sum(axis=1) == 1).all():
            return None
        source = [int(np.abs(linear[:, axis]).argmax()) for axis in range(3)]  # in (x, y, z)
        if tuple(self.size[k] for k in source) != other.size:
            return None
        ends = [0 if linear[k, axis] > 0 else self.size[k] - 1 for axis, k in enumerate(source)]
        exact = np.eye(4)
        exact[:3, :3] = linear
        for axis, k in enumerate(source):
            exact[k, 3] = ends[axis]
        corners = other.corners()
        if np.abs((forth - exact) @ corners).max() >= SAME:
            return None
        order = tuple(2 - source[2 - axis] for axis in range(3))  # arrays are indexed (z, y, x)
        backwards = tuple(2 - axis for axis, k in enumerate(source) if linear[k, axis] < 0)
        return (order[0], order[1], order[2]), backwards

    def sentence(self) -> str:
        """For a sentence, such as "176x256x256 voxels of 1x0.9x0.9 mm"."""
        return f"{'x'.join(map(str, self.size))} voxels of {'x'.join(f'{mm:.3g}' for mm in self.spacing)} mm"


def problem(affine: np.ndarray) -> str | None:
    """What is wrong with an affine, as the end of a sentence; None if it is valid."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "holds NaN or infinity"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return "has an axis of length zero"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "has axes that lie in one plane"
    if lengths.min() < 1e-6 or lengths.max() > 1e6 or np.abs(affine[:3, 3]).max() > 1e9:
        return "has impossible spacings"
    return None


def angle(matrix: np.ndarray) -> float:
    """The angle in degrees of the rotation nearest to a (3, 3) matrix of directions."""
    u, _, v = np.linalg.svd(matrix)
    trace = float(np.trace(u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v))
    return math.degrees(math.acos(min(1.0, max(-1.0, (trace - 1) / 2))))
