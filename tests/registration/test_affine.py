"""align: a known displacement is found across modalities; what cannot be aligned is refused."""

import cv2
import numpy as np
import pytest

from ddfm.errors import InputError
from ddfm.registration import affine as align

SIZE = (220, 260)


def scene(seed):
    """One made scene in two modalities: regions whose two brightnesses are independent, each with its own texture."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    pair = np.full((2, height + 80, width + 80), 0.3, np.float32)
    for _ in range(40):
        centre = rng.uniform(0, 1, 2) * (width + 80, height + 80)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        radii = rng.uniform(10, 45, 7)
        outline = (centre + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])).astype(np.int32)
        for picture in pair:
            cv2.fillPoly(picture, [outline], float(rng.uniform(0, 1)))
    for picture, sigma in zip(pair, (1.5, 0.8), strict=True):
        picture[:] = cv2.GaussianBlur(picture, (0, 0), sigma)
    return np.clip(pair + rng.normal(0, 0.03, pair.shape), 0, 1).astype(np.float32)


def displaced(picture, shift, degrees, scale):
    """The middle of the image after a known map, and that map: fixed pixel to moving pixel."""
    height, width = SIZE
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    matrix[:2, 2] += shift
    margin = np.array([[1, 0, 40], [0, 1, 40], [0, 0, 1.0]])
    inverse = (margin @ np.linalg.inv(matrix))[:2]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.clip(cv2.warpAffine(picture, inverse, (width, height), flags=flags), 0, 1), matrix[:2]


def test_stretch_and_shear_are_found():
    first, second = scene(4)
    height, width = SIZE
    linear = np.array([[1.03, 0.01], [-0.005, 0.98]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    truth = np.column_stack([linear, centre - linear @ centre + (4, -5)])
    margin = np.array([[1, 0, 40], [0, 1, 40], [0, 0, 1.0]])
    inverse = (margin @ np.linalg.inv(np.vstack([truth, [0, 0, 1]])))[:2]
    moving = cv2.warpAffine(second, inverse, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    found = align.align(np.clip(moving, 0, 1), first[40:-40, 40:-40])
    assert found.confident and corner_error(found.matrix, truth) < 1.5


def corner_error(a, b):
    corners = align._corners(SIZE)
    return np.linalg.norm((a - b) @ corners, axis=0).max()


@pytest.mark.parametrize(
    ("seed", "shift", "degrees", "scale"),
    [(0, (0, 0), 0, 1.0), (1, (12, -12), 3, 1.03), (2, (-11, 7), -3, 0.97), (3, (5, 12), -2, 1.02)],
)
def test_known_displacement_is_found(seed, shift, degrees, scale):
    first, second = scene(seed)
    fixed = first[40:-40, 40:-40]
    moving, truth = displaced(second, shift, degrees, scale)
    found = align.align(moving, fixed)
    assert found.confident
    assert corner_error(found.matrix, truth) < 1.5
    identity = np.eye(3)[:2]
    assert found.shift_px == pytest.approx(corner_error(truth, identity), abs=1.5)
    assert f"{found.shift_px:.1f} pixels" in found.sentence

    laid_over = align.warp(moving, found)
    inner = np.s_[30:-30, 30:-30]
    expected = second[40:-40, 40:-40][inner]
    assert laid_over.shape == SIZE and laid_over.dtype == np.float32
    assert laid_over.min() >= 0 and laid_over.max() <= 1
    assert np.corrcoef(laid_over[inner].ravel(), expected.ravel())[0, 1] > 0.97


def test_scale_of_an_object_on_black_is_found():
    """A head in a dark frame: how much of the black leaves the image must not count."""
    first, second = scene(5)
    y, x = np.indices(first.shape)
    head = ((x - 170) / 85) ** 2 + ((y - 150) / 95) ** 2 < 1
    moving, truth = displaced(second * head, (6, -5), 2, 1.03)
    found = align.align(moving, (first * head)[40:-40, 40:-40])
    assert found.confident and corner_error(found.matrix, truth) < 1.5


@pytest.mark.parametrize("seed", [3, 6])
def test_a_night_scene_is_found_by_its_contours(seed):
    """Lamps take the range, all else is within a few grey levels: the histogram alone misses it by 28 and 37 pixels."""
    first, second = scene(seed)
    rng = np.random.default_rng(seed)
    night = 0.06 * first
    for x, y in rng.integers(60, 240, (12, 2)):
        cv2.circle(night, (int(x), int(y)), 6, 1.0, -1)
    night = np.clip(night + rng.normal(0, 0.004, night.shape), 0, 1).astype(np.float32)
    moving, truth = displaced(second, (9, -8), 2, 0.98)
    found = align.align(moving, night[40:-40, 40:-40])
    assert found.confident and corner_error(found.matrix, truth) < 1.5


def test_colour_is_warped_alike():
    half = align.Alignment(np.array([[1, 0, 3.0], [0, 1, -2.0]]), 3.6, 0.0, True, "")
    rgb = np.random.default_rng(0).random((40, 50, 3), np.float32)
    moved = align.warp(rgb, half)
    np.testing.assert_allclose(moved[2:, :-3], rgb[:-2, 3:], atol=1e-6)


def test_unrelated_pictures_are_refused():
    fixed, moving = scene(10)[0][40:-40, 40:-40], scene(11)[1][40:-40, 40:-40]
    found = align.align(moving, fixed)
    assert not found.confident
    with pytest.raises(InputError, match="could not be aligned") as error:
        align.warp(moving, found)
    assert "\n" not in str(error.value)


def test_nothing_to_see_is_refused():
    assert not align.align(np.full((64, 64), 0.5), np.random.default_rng(0).random((64, 64))).confident


def test_sizes():
    for a, b in [((64, 64), (64, 65)), ((20, 64), (20, 64))]:
        with pytest.raises(InputError, match="cannot be aligned"):
            align.align(np.zeros(a), np.zeros(b))


def test_parameters_mean_the_same_at_every_scale():
    p = np.array([0.03, -0.02, 0.01, -0.02, 0.005, 0.01])
    large, small = align._matrix(p, (400, 600)), align._matrix(p, (100, 150))
    centred = np.array([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]])  # pixel centres of small in large
    np.testing.assert_allclose(
        large @ centred, centred[:2, :2] @ small + np.outer(centred[:2, 2], [0, 0, 1]), atol=1e-9
    )
