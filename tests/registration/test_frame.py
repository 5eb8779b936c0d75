"""Sources of any sizes on one grid: which one, faded where one of them sees less, or cropped."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ddfm.errors import InputError
from ddfm.io.images import Image
from ddfm.registration import frame_of, from_matrix, identity, to_frame, with_frame_beyond
from ddfm.registration.frame import LEVEL_FEATHER, _blurred


def scene(height=120, width=160):
    values = np.random.default_rng(0).random((height, width)).astype(np.float32)
    return cv2.GaussianBlur(values, (0, 0), 4) * 2 - 0.5


def parts(framed):
    return framed.sources, framed.findings, framed.places


NARROW = from_matrix(np.array([[0.5, 0, -20.0], [0, 0.5, -10]]), (40, 48), (120, 160))


def test_the_frame_is_the_image_with_most_pixels_or_of_the_rigs_size():
    small, large = Image(scene(40, 48)), Image(scene())
    assert frame_of([small, large], None) == 1 and frame_of([large, small, large], None) == 0
    assert frame_of([small, large], NARROW) == 1
    with pytest.raises(InputError, match="none of the sources"):
        frame_of([small, small], NARROW)


def test_a_narrow_view_goes_on_and_becomes_what_the_frame_shows():
    small, large = Image(scene(40, 48)), Image(scene())
    (moved, frame), (sentence,), (place, none) = parts(to_frame([small, large], 1, rig=NARROW))
    assert frame is large and none is None and place is NARROW and sentence.endswith(".")
    assert moved.pixels.shape == (120, 160) and moved.pixels.dtype == np.float32
    np.testing.assert_allclose(moved.pixels[place.inside], place.warp(small.pixels)[place.inside], atol=1e-6)
    np.testing.assert_allclose(moved.pixels[:5, :10], large.pixels[:5, :10], atol=1e-6)


@pytest.mark.parametrize("coloured", [False, True])
def test_beyond_a_narrow_view_the_result_is_the_frames_image_without_a_seam(coloured):
    """A flat dark fusion in a flat bright frame: no step at the border, the way down is a fifth of the side."""
    shape = (120, 160, 3) if coloured else (120, 160)
    fused, frame = np.full(shape, 0.2, np.float32), np.full((120, 160), 0.9, np.float32)
    mixed = with_frame_beyond(fused, frame, [NARROW, None])
    assert mixed.shape == shape and mixed.dtype == np.float32
    np.testing.assert_allclose(mixed[~NARROW.inside], 0.9, atol=1e-6)
    np.testing.assert_allclose(mixed[NARROW.fading(LEVEL_FEATHER) == 1], 0.2, atol=1e-6)
    assert max(np.abs(np.diff(mixed, axis=axis)).max() for axis in (0, 1)) < 0.06


@pytest.mark.parametrize("shape", [(400, 520), (401, 333, 3)])
def test_the_blur_on_a_coarse_grid_is_that_of_all_pixels(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    image[:200, :150] += 1
    difference = _blurred(image, 0.05) - cv2.GaussianBlur(image, (0, 0), 0.05 * min(shape[:2]))
    assert np.abs(difference).max() < 0.01 and np.abs(np.diff(difference, axis=0)).max() < 0.001


def test_a_result_is_left_alone_where_another_source_sees_all_or_it_was_cropped():
    fused, frame, whole = scene(), 1 - scene(), identity((120, 160))
    assert with_frame_beyond(fused, frame, [NARROW, None, None]) is fused
    assert with_frame_beyond(fused, frame, [NARROW, None, whole]) is fused
    cropped = fused[:90]
    assert with_frame_beyond(cropped, frame[:90], [NARROW, None]) is cropped


@pytest.mark.parametrize("crop", [False, True])
def test_what_was_cleaned_on_its_own_grid_is_brought_as_the_source_was(crop):
    small, large = Image(scene(40, 48)), Image(scene())
    framed = to_frame([small, large], 1, rig=NARROW, crop=crop)
    assert framed.own == [small, None]
    np.testing.assert_array_equal(framed.bring(0, small).pixels, framed.sources[0].pixels)


def test_colour_keeps_its_channels():
    coloured = Image(np.dstack([scene(40, 48)] * 3))
    moved = to_frame([coloured, Image(scene())], 1, rig=NARROW).sources
    assert moved[0].pixels.shape == (120, 160, 3)


def test_a_rig_is_for_either_of_its_frames():
    small, large = Image(scene(40, 48)), Image(scene())
    framed = to_frame([small, large], 0, rig=NARROW)
    assert framed.sources[0] is small and framed.sources[1].pixels.shape == (40, 48)
    np.testing.assert_allclose(framed.places[1].matrix, [[2, 0, 40], [0, 2, 20], [0, 0, 1]])


def test_crop_keeps_what_all_see():
    small, large = Image(scene(40, 48)), Image(scene())
    (moved, frame), said, _ = parts(to_frame([small, large], 1, rig=NARROW, crop=True))
    height, width = moved.pixels.shape
    assert frame.pixels.shape == (height, width) and 78 <= height <= 86 and 94 <= width <= 102
    assert f"{width}x{height}" in said[-1]
    away = from_matrix(np.array([[1, 0, 500.0], [0, 1, 0]]), (120, 160), (120, 160))
    for crop in (True, False):
        with pytest.raises(InputError, match="cover"):
            to_frame([large, large], 0, rig=away, crop=crop)


def test_what_is_too_small_to_be_registered_is_named(tmp_path):
    small, large = (Image(np.zeros(shape, np.float32), path=tmp_path / "small.png") for shape in ((15, 15), (64, 64)))
    with pytest.raises(InputError, match=r"small\.png and .*: Images of 15x15 and 64x64 pixels cannot be aligned"):
        to_frame([small, large], 1)


def test_what_is_asked_is_done():
    small, large = Image(scene(40, 48)), Image(scene())
    same, said, places = parts(to_frame([large, large], 0))
    assert same == [large, large] and not said and places == [None, None]
    resized, (sentence,), _ = parts(to_frame([small, large], 1, "skip"))
    assert resized[0].pixels.shape == (120, 160) and "same field of view" in sentence
    with pytest.raises(InputError, match="not for"):
        to_frame([small, large], 1, rig=identity((120, 160)))
    with pytest.raises(InputError, match="auto, dense, force or skip"):
        to_frame([small, large], 1, "perhaps")
    with pytest.raises(InputError, match="--align=force"):
        to_frame([Image(scene(40, 48)[::-1].copy()), large], 1)
    with pytest.raises(InputError, match=r"tiny.png and .*8x8"):
        to_frame([Image(scene(8, 8), path=Path("tiny.png")), large], 1)
    forced, _, (place, _) = parts(to_frame([Image(scene(40, 48)[::-1].copy()), large], 1, "force"))
    assert forced[0].pixels.shape == (120, 160) and not place.confident and "is used" in place.sentence
