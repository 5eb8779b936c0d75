"""grid: which voxel lies where, and which arrays are one another with their axes exchanged."""

import itertools

import numpy as np
import pytest

from ddfm.io.grid import RAS_FROM_LPS, Grid, angle, problem


def rotation(degrees, axis=2):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    a, b = [k for k in range(3) if k != axis]
    matrix[a, a], matrix[b, b], matrix[a, b], matrix[b, a] = c, c, -s, s
    return matrix


def affine(spacing=(1, 1, 1), origin=(0, 0, 0), turn=None):
    out = np.eye(4)
    out[:3, :3] = (np.eye(3) if turn is None else turn) * np.array(spacing)
    out[:3, 3] = origin
    return out


def test_spacing_axes_and_size():
    grid = Grid((5, 7, 9), affine((1, 2, 3)))
    assert grid.size == (9, 7, 5) and grid.spacing == (1, 2, 3) and grid.axes == "LPS"
    assert Grid((5, 7, 9), RAS_FROM_LPS @ affine((1, 2, 3))).axes == "RAS"
    assert grid.sentence() == "9x7x5 voxels of 1x2x3 mm"


def test_the_same_grid_within_rounding():
    grid = Grid((5, 7, 9), affine((0.5, 0.5, 3), (1, 2, 3), rotation(20)))
    assert grid.is_same(Grid((5, 7, 9), grid.affine.astype(np.float32).astype(float)))
    assert not grid.is_same(Grid((5, 7, 9), grid.affine + 0.1 * np.eye(4)))
    assert not grid.is_same(Grid((5, 7, 8), grid.affine))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_exchanged_and_reversed_axes(order, signs):
    turn = rotation(15) @ rotation(-8, 0)
    frame = Grid((3, 4, 5), affine((0.7, 0.8, 3), (10, -4, 2), turn))
    columns = np.array([frame.affine[:3, k] * sign for k, sign in zip(order, signs, strict=True)]).T
    size = [frame.size[k] for k in order]
    start = np.array([0 if sign > 0 else frame.size[k] - 1 for k, sign in zip(order, signs, strict=True)], float)
    first = np.zeros(4)
    first[3] = 1
    for k, at in zip(order, start, strict=True):
        first[k] = at
    other = np.eye(4)
    other[:3, :3], other[:3, 3] = columns, (frame.affine @ first)[:3]
    here = Grid(tuple(size[::-1]), other)

    def world(grid):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")[::-1], -1)
        return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]

    transposed, backwards = here.reordering(frame)
    again = np.flip(world(here).transpose(*transposed, 3), backwards)
    np.testing.assert_allclose(again, world(frame), atol=1e-9)


def test_no_reordering_between_grids_of_other_places():
    frame = Grid((3, 4, 5), affine())
    for other in (affine((1, 1, 1.1)), affine(origin=(0.5, 0, 0)), affine(turn=rotation(40))):
        assert Grid((3, 4, 5), other).reordering(frame) is None
    assert Grid((4, 4, 5), affine()).reordering(frame) is None


def test_affines_that_are_none():
    good = affine((1, 2, 3), (4, 5, 6), rotation(30))
    assert problem(good) is None
    nan, flat = good.copy(), good.copy()
    nan[0, 3], flat[:, 1] = np.nan, flat[:, 0]
    for bad, word in ((nan, "NaN"), (flat, "plane"), (np.zeros((4, 4)), "zero"), (np.diag([1e9, 1, 1, 1]), "spacings")):
        assert word in problem(bad)


def test_angle():
    assert angle(rotation(37, 1)) == pytest.approx(37)
    assert angle(np.eye(3)) == 0
