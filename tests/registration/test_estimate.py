"""register: images of any sizes in one frame; what lies on each other already is left as it is."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ddfm.io.images import Image
from ddfm.palettes import painted
from ddfm.registration import estimate, register, registered
from ddfm.registration.affine import BIAS, BIAS_GAIN, is_smooth
from ddfm.registration.transform import corner_distance, from_matrix


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


def test_pixels_of_other_proportions_are_found_and_believed():
    """As of a camera whose frame was squeezed: no similarity fits either half of it."""
    truth = np.array([[1.0, 0, 2.0], [0, 0.75, 3], [0, 0, 1]])
    fixed = shapes(3)
    moving = cv2.warpAffine(shapes(2), truth[:2], (200, 120), borderMode=cv2.BORDER_REPLICATE)
    found = register(moving, fixed)
    assert found.confident and corner_distance(truth, found.matrix, fixed.shape) < 1


def head(seed, smooth=0.0):
    """(200, 200): an object on black, in parts of their own brightnesses; what of it a slow and coarse sensor sees."""
    y, x = np.indices((200, 200))
    inside = ((x - 104) / 55) ** 2 + ((y - 97) / 70) ** 2 < 1
    parts = cv2.resize(shapes(seed), (200, 200))
    return cv2.GaussianBlur(np.where(inside, 0.15 + 0.85 * parts, 0).astype(np.float32), (0, 0), smooth or 0.7)


def test_a_smooth_image_in_false_colours_is_found_and_believed():
    truth = np.array([[1.02, -0.02, 7.0], [0.02, 1.02, -9], [0, 0, 1]])
    activity = cv2.warpAffine(head(2, 2.5), truth[:2], (200, 200))
    moving, fixed = painted(activity, "ironbow"), head(3)
    assert is_smooth(moving) and not is_smooth(fixed)
    found = register(moving, fixed)
    assert found.confident and corner_distance(truth, found.matrix, fixed.shape) < 3
    in_bytes = register(np.rint(moving * 255).astype(np.uint8), fixed)
    assert in_bytes.confident and corner_distance(found.matrix, in_bytes.matrix, fixed.shape) < 1


def test_information_is_asked_only_of_objects_on_black(monkeypatch):
    """Scenes that agree do so in their contours; of smooth objects contours are asked last."""
    unsure = estimate.Estimate(np.eye(3), spread_px=20.0, confident=False, gain=1.0)
    asked = []
    monkeypatch.setattr(estimate, "by_contours", lambda *pair: asked.append("contours") or unsure)
    monkeypatch.setattr(estimate, "by_information", lambda *pair: asked.append("information") or unsure)
    scene = cv2.GaussianBlur(shapes(2), (0, 0), 2.5)
    for moving, fixed, order in (
        (head(2, 2.5), head(3), ["information", "contours"]),
        (head(3), head(3), ["contours", "information"]),
        (scene, shapes(3), ["contours"]),
    ):
        asked.clear()
        assert not register(moving, fixed).confident and asked == order


def test_what_the_criterion_may_be_off_by_counts_as_aligned():
    """Registered heads are found up to some pixels displaced, for a score that is hardly better."""
    shape = (200, 200)
    matrix = np.array([[1.0, 0, 5], [0, 1, 0], [0, 0, 1]])
    for gain, shift, aligned in ((0.5 * BIAS_GAIN, 5, True), (2 * BIAS_GAIN, 5, False), (0, 2 * BIAS * 200, False)):
        matrix[0, 2] = shift
        place = estimate.placed(estimate.Estimate(matrix, 1.0, True, gain), shape, shape)
        assert place.confident and place.aligned == aligned == ("already aligned" in place.sentence)
        assert place.residual_px == (shift if aligned else 0.5)
        np.testing.assert_array_equal(place.matrix, matrix)


def test_an_aligned_pair_stays_unless_forced(monkeypatch):
    found = from_matrix(np.array([[1.0, 0, 5], [0, 1, 0], [0, 0, 1]]), (200, 200), (200, 200))
    monkeypatch.setattr("ddfm.registration.frame.register", lambda *_: replace(found, aligned=True))
    moving, fixed = Image(head(2), 8, path=Path("pet.png")), Image(head(3), 8, path=Path("mri.png"))
    np.testing.assert_array_equal(registered(moving, fixed).matrix, np.eye(3))
    np.testing.assert_array_equal(registered(moving, fixed, force=True).matrix, found.matrix)


def test_a_smooth_image_that_lies_well_stays_and_one_displaced_is_moved():
    moving, fixed = (
        Image(head(*made), 8, path=Path(name)) for made, name in (((2, 3.5), "pet.png"), ((3,), "mri.png"))
    )
    place = registered(moving, fixed)
    assert place.confident and place.aligned and "already aligned" in place.sentence
    np.testing.assert_array_equal(place.matrix, np.eye(3))
    truth = np.array([[1.0, 0, 8.0], [0, 1, -6], [0, 0, 1]])
    place = registered(replace(moving, pixels=cv2.warpAffine(moving.pixels, truth[:2], (200, 200))), fixed)
    assert not place.aligned and corner_distance(truth, place.matrix, (200, 200)) < 4
