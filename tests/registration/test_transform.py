"""Registration: one convention for pixels, antialiased sampling, a soft coverage, rig files that are safe to read."""

import json
import os

import cv2
import numpy as np
import pytest

from ddfm.errors import InputError
from ddfm.registration import Registration, from_matrix, identity, register, resize


def noise(height, width, *channels, sigma=2.0):
    values = np.random.default_rng(0).random((height, width, *channels)).astype(np.float32)
    return cv2.GaussianBlur(values, (0, 0), sigma)


def test_identity_leaves_every_value():
    image = noise(40, 50)
    same = identity(image.shape)
    assert same.confident and same.sentence.endswith(".")
    np.testing.assert_array_equal(same.map[3, 7], (7, 3))
    np.testing.assert_allclose(same.warp(image), image, atol=1e-6)
    assert (same.coverage == 1).all() and same.coverage.shape == (40, 50)


def test_resize_is_border_to_border_and_antialiased():
    image = noise(80, 120, sigma=0.5)
    found = resize(image.shape, (20, 30))
    np.testing.assert_allclose(found.warp(image), cv2.resize(image, (30, 20), interpolation=cv2.INTER_AREA), atol=1e-5)
    np.testing.assert_allclose(found.map[0, 0], (1.5, 1.5))
    assert (found.coverage == 1).all() and "120x80 to 30x20" in found.sentence
    larger = resize(image.shape, (200, 300)).warp(image)
    assert larger.shape == (200, 300) and image.min() <= larger.min() and larger.max() <= image.max()


def test_a_shift_moves_pixels_and_is_covered_softly():
    image = noise(60, 80, 3)
    shifted = from_matrix(np.array([[1, 0, 20.0], [0, 1, -10]]), image.shape, image.shape)
    warped = shifted.warp(image)
    assert warped.shape == image.shape and warped.dtype == np.float32
    np.testing.assert_allclose(warped[10:, :60], image[:-10, 20:], atol=1e-6)
    cover = shifted.coverage
    assert cover.dtype == np.float32 and (cover[:9] == 0).all() and (cover[:, 61:] == 0).all()
    assert (cover[20:, :50] == 1).all()
    assert (np.diff(cover[40, 50:62]) <= 0).all() and np.abs(np.diff(cover[40])).max() < 0.25  # no seam


def test_uint8_stays_uint8():
    image = (noise(40, 50) * 255).astype(np.uint8)
    assert resize(image.shape, (33, 61)).warp(image).dtype == np.uint8


def test_another_size_is_refused():
    with pytest.raises(InputError, match="of 50x40 pixels, not of 40x50"):
        identity((40, 50)).warp(np.zeros((50, 40)))
    with pytest.raises(InputError, match="at least 32"):
        register(np.zeros((64, 31)), np.zeros((64, 64)))


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.full((2, 3), np.nan), np.eye(2), np.diag([1, 1, -1])])
def test_a_matrix_that_maps_nothing_is_refused(matrix):
    with pytest.raises(InputError, match="matrix"):
        from_matrix(matrix, (40, 50), (40, 50))


def test_a_rig_comes_back_as_it_was(tmp_path):
    matrix = np.array([[0.4, 0.01, -12.25], [-0.012, 0.41, 7.5], [1e-6, 0, 1]])
    from_matrix(matrix, (512, 640, 3), (1080, 1920)).save(tmp_path / "rig.json")
    again = Registration.load(tmp_path / "rig.json")
    np.testing.assert_array_equal(again.matrix, matrix)
    assert again.moving_shape == (512, 640) and again.fixed_shape == (1080, 1920)
    assert again.confident and "rig.json" in again.sentence


GOOD = {"ddfm_rig": 1, "matrix": np.eye(3).tolist(), "fixed_size": [64, 48], "moving_size": [32, 24]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "[]",
        "3",
        '"rig"',
        json.dumps(GOOD | {"ddfm_rig": 2}),
        json.dumps(GOOD | {"matrix": [[1, 2], [3, 4]]}),
        json.dumps(GOOD | {"matrix": [[float("nan")] * 3] * 3}),
        json.dumps(GOOD | {"matrix": "eye"}),
        json.dumps(GOOD | {"matrix": [[10**400, 0, 0], [0, 1, 0], [0, 0, 1]]}),
        json.dumps(GOOD | {"fixed_size": [10**9, 10**9]}),
        json.dumps(GOOD | {"fixed_size": [0, 4]}),
        json.dumps(GOOD | {"moving_size": [1.5, 4]}),
        json.dumps(GOOD | {"moving_size": 4}),
        json.dumps(GOOD | {"moving_size": [1, 2, 3]}),
    ],
)
def test_any_other_file_is_no_rig(tmp_path, content):
    (tmp_path / "rig.json").write_text(content)
    with pytest.raises(InputError, match=r"rig\.json"):
        Registration.load(tmp_path / "rig.json")


def test_what_is_no_file_is_no_rig(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("fifo", "not a rig file"), ("missing", "no rig file"), (".", "not a rig file")):
        with pytest.raises(InputError, match=said):
            Registration.load(tmp_path / name)
    with pytest.raises(InputError, match="Cannot write"):
        identity((40, 50)).save(tmp_path / "no" / "rig.json")
