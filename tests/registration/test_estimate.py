"""register: images of any sizes in one frame; what lies on each other already is left as it is."""

import cv2
import numpy as np

from ddfm.registration import register


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
