"""The local refinement: what a smooth displacement is, what it does not invent, and where it can be asked for."""

import cv2
import numpy as np
import pytest
from registration.test_estimate import shapes

from ddfm.io.images import Image
from ddfm.registration import from_matrix, identity, register, to_frame
from ddfm.registration.dense import refined


def pair(amplitude=6.0):
    """Shapes of (320, 400), those of other brightness displaced by a smooth wave, and the map that undoes it.

    fixed[y, x] is at moving[map[y, x]].
    """
    fixed, other = (cv2.resize(shapes(seed), (400, 320), interpolation=cv2.INTER_CUBIC) for seed in (3, 2))
    y, x = np.indices(fixed.shape, np.float32)
    grid = np.dstack([x, y])
    wave = amplitude * np.dstack([np.sin(2 * np.pi * y / 320), np.cos(2 * np.pi * x / 400)]).astype(np.float32)
    there = grid - wave
    moving = cv2.remap(other, there[..., 0], there[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    back = grid
    for _ in range(20):
        back = grid + cv2.remap(wave, back[..., 0], back[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moving, fixed, back


def far(found, truth):
    """Mean distance of two maps in pixels, 24 pixels and more from the border."""
    return float(np.linalg.norm(found - truth, axis=-1)[24:-24, 24:-24].mean())


def test_a_smooth_displacement_is_found_whatever_the_brightness():
    moving, fixed, truth = pair()
    found = refined(identity(fixed.shape), 1 - moving, fixed)
    assert far(identity(fixed.shape).map, truth) > 5
    assert far(found.map, truth) < 2
    assert "Refined locally, by up to" in found.sentence and found.as_dict()["local_px"] > 5
    assert far(register(moving, fixed, dense=True).map, truth) < 0.5 * far(register(moving, fixed).map, truth)


def test_a_displacement_is_in_pixels_of_the_moving_image():
    """At half the resolution, and from a matrix that says so."""
    moving, fixed, truth = pair()
    small = cv2.resize(moving, (200, 160), interpolation=cv2.INTER_AREA)
    half = from_matrix(np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]), small.shape, fixed.shape)
    assert far(refined(half, small, fixed).map, (truth + 0.5) / 2 - 0.5) < 1


@pytest.mark.parametrize("other", ["noise", "flat"])
def test_nothing_is_invented_where_there_is_nothing_in_common(other):
    fixed = shapes(3)
    moving = {
        "noise": np.random.default_rng(0).random(fixed.shape).astype(np.float32),
        "flat": np.full(fixed.shape, 0.5, np.float32),
    }[other]
    found = refined(identity(fixed.shape), moving, fixed)
    assert found.displacement is None and "gains nothing" in found.sentence


def test_an_unsure_estimate_is_not_refined():
    found = register(np.ascontiguousarray(shapes(4)[::-1, ::-1]), shapes(3), dense=True)
    assert not found.confident and found.displacement is None


def test_what_lies_on_each_other_stays_there():
    fixed = shapes(3)
    found = register(shapes(2), fixed, dense=True)
    assert far(found.map, identity(fixed.shape).map) < 0.3


def test_dense_refines_an_estimate_and_a_rig():
    moving, fixed, truth = pair()
    images = [Image(moving), Image(fixed)]
    for rig in (None, identity(fixed.shape)):
        framed = to_frame(images, 1, "dense", rig)
        (moved, _), (sentence,), (place, _) = framed.sources, framed.findings, framed.places
        assert far(place.map, truth) < 2 and "Refined locally" in sentence
        np.testing.assert_array_equal(moved.pixels[place.inside], place.warp(moving)[place.inside])
