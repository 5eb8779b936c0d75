"""register: images of any sizes in one frame; what lies on each other already is left as it is."""

import cv2
import numpy as np

from ddfm.registration import register
from ddfm.registration.transform import corner_distance


def shapes(seed, moved=(0, 0)):
    """(160, 200): the same outlines, brightnesses of their own."""
    places = np.random.default_rng(1)
    values = np.random.default_rng(seed)
    image = np.full((160, 200), 0.3, np.float32)
    for _ in range(30):
        centre = (places.uniform(0, 1, 2) * (200, 160) + moved).astype(int)
        axes = places.uniform(8, 30, 2).astype(int)
        cv2.ellipse(image, centre.tolist(), axes.tolist(), places.uniform(0, 180), 0, 360, values.uniform(), -1)
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def test_what_is_aligned_is_left_as_it_is():
    found = register(shapes(2), shapes(3))
    assert found.confident and "already aligned" in found.sentence
    np.testing.assert_array_equal(found.matrix, np.eye(3))


def test_another_resolution_is_brought_into_the_frame():
    fixed = shapes(3)
    moving = cv2.resize(shapes(2, moved=(6, -5)), (100, 80), interpolation=cv2.INTER_AREA)
    found = register(moving, fixed)
    assert found.confident
    assert found.warp(moving).shape == found.coverage.shape == found.map.shape[:2] == fixed.shape
    x, y = found.map[80, 100]
    np.testing.assert_allclose(((x + 0.5) * 2 - 0.5, (y + 0.5) * 2 - 0.5), (106, 75), atol=1.5)


def test_a_narrower_field_of_view_is_found():
    fixed, full = shapes(3), shapes(2)
    truth = np.array([[0.6, 0, -15.0], [0, 0.6, -8], [0, 0, 1]])  # 0.6 of the pixels, from (25, 13) on
    moving = cv2.warpAffine(full, truth[:2], (96, 78), flags=cv2.INTER_AREA)
    found = register(moving, fixed)
    assert found.confident and "field of view" in found.sentence
    assert corner_distance(truth, found.matrix, fixed.shape) < 1.5
    assert found.coverage[0, 0] == 0 and found.coverage[80, 100] == 1


def test_two_scenes_are_not_believed():
    other = shapes(4)[::-1, ::-1]
    found = register(np.ascontiguousarray(other), shapes(3))
    assert not found.confident and "could not be aligned" in found.sentence


def test_stretch_and_shear_are_found():
    truth = np.array([[1.02, 0.03, -3.0], [-0.01, 0.97, 4], [0, 0, 1]])
    fixed = shapes(3)
    moving = cv2.warpAffine(shapes(2), truth[:2], fixed.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    found = register(moving, fixed)
    assert found.confident and corner_distance(truth, found.matrix, fixed.shape) < 1.5
