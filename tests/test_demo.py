import cv2
import numpy as np
import pytest

from ddfm import images
from ddfm.demo import save_scenes, side_by_side
from ddfm.demo_head import head_phantom
from ddfm.demo_street import night_street
from ddfm.errors import InputError

SMALL = (240, 320)


@pytest.fixture(scope="module")
def street():
    return night_street(SMALL)


def test_street_shapes(street):
    infrared, visible = street
    assert infrared.shape == SMALL and infrared.dtype == np.uint8
    assert visible.shape == (*SMALL, 3) and visible.dtype == np.uint8


def test_street_is_the_same_for_the_same_seed(street):
    again, other = night_street((60, 81), seed=3), night_street((60, 81), seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(again, night_street((60, 81), seed=3), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(again, other, strict=True))
    assert again[0].shape == (60, 81)


def test_street_is_a_night_with_a_cold_sky(street):
    infrared, visible = (np.asarray(p, float) for p in street)
    sky = np.s_[5:60, 140:180]
    assert infrared[sky].mean() < 60 < infrared[150:].mean()
    assert 25 < visible.mean() < 90, "night, yet not black"
    assert (visible.max(2) > 240).any(), "lamps and headlights reach white"
    assert visible[sky][..., 2].mean() > visible[sky][..., 0].mean(), "a blue sky"
    colourful = visible.max(2) - visible.min(2) > 60
    assert colourful.mean() > 0.03


def test_a_walker_in_the_dark_shows_in_infrared_only(street):
    infrared, visible = street
    luma = cv2.cvtColor(visible, cv2.COLOR_RGB2GRAY).astype(float)
    # The two who stand before the dark house on the left: hot, against a wall beside them.
    person, wall = np.s_[122:132, 18:22], np.s_[122:132, 4:12]
    assert infrared[person].mean() > infrared[wall].mean() + 60
    assert luma[person].max() < 60
    assert abs(luma[person].mean() - luma[wall].mean()) < 25


def test_signs_show_in_the_visible_picture_only(street):
    infrared, visible = street
    board = np.s_[94:104, 255:280]  # the lettering of the nearest shop on the right
    assert visible[board].max(axis=2).std() > 20
    assert infrared[board].std() < 8


@pytest.mark.parametrize("kind", ["pet", "spect", "ct"])
def test_head(kind):
    mri, other = head_phantom(kind=kind)
    assert mri.shape == (256, 256) and mri.dtype == other.dtype == np.uint8
    assert other.shape == ((256, 256) if kind == "ct" else (256, 256, 3))
    assert mri[:, :8].max() < 30 and other[:, :8].max() < 30, "nothing around the head"


def test_head_is_the_same_for_the_same_seed():
    first, again, other = (head_phantom((64, 64), seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def at(x, y):
    """Pixels around a point of the head, in units of half a side of 256."""
    row, col = round(128 + 128 * y), round(128 + 128 * x)
    return np.s_[row - 3 : row + 4, col - 3 : col + 4]


def test_tumour_shows_in_pet_only_and_the_lesion_in_mri():
    mri, pet = (np.asarray(p, float) for p in head_phantom())
    mirrored = pet[:, ::-1]
    assert pet[at(-0.34, 0.33)].mean() > mirrored[at(-0.34, 0.33)].mean() + 80
    white = np.median(mri[at(-0.42, 0.0)])
    assert mri[at(-0.34, 0.33)].mean() > 0.6 * white, "no hole in the MRI"
    assert mri[at(0.33, 0.36)].mean() < 0.6 * white
    assert pet[at(0.33, 0.36)].mean() < 80


def test_ct_shows_bone_that_mri_does_not():
    mri, ct = head_phantom(kind="ct")
    bone = ct > 220
    assert 0.04 < bone.mean() < 0.2
    assert np.median(mri[bone]) < 70
    assert (ct[:8] < 40).all()


def test_head_of_an_odd_size_has_the_same_anatomy():
    square, wide = head_phantom((128, 128))[0], head_phantom((129, 201))[0]
    assert wide.shape == (129, 201)
    assert abs(float(square.mean()) * 128 * 128 - float(wide.mean()) * 129 * 201) < 0.1 * square.sum()


def test_unknown_kind():
    with pytest.raises(ValueError, match="'xray'"):
        head_phantom(kind="xray")


def test_side_by_side_places_every_panel():
    a = np.full((60, 80), 200, np.uint8)
    b = np.zeros((30, 50, 3), np.uint8)
    b[..., 0] = 255
    row = side_by_side([a, b], ["infrared", "fused"])
    assert row.dtype == np.uint8 and row.shape[2] == 3
    assert (row == 200).all(2).sum() == 60 * 80
    assert ((row == (255, 0, 0)).all(2)).sum() == 60 * 100, "scaled to the height of the first"
    strip = row[-16:]
    left, right = np.array_split(strip.max(2), 2, axis=1)
    assert left.max() > 120 and right.max() > 120, "both captions are there"


@pytest.mark.parametrize(
    ("panels", "labels"),
    [
        ([], []),
        ([np.zeros((9, 9), np.uint8)], []),
        ([np.zeros((9, 9))], ["x"]),
        ([np.zeros((9, 9, 4), np.uint8)], ["x"]),
    ],
)
def test_side_by_side_refuses(panels, labels):
    with pytest.raises(ValueError, match="side_by_side needs"):
        side_by_side(panels, labels)


def test_save_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr("ddfm.demo.night_street", lambda: night_street((48, 64)))  # the full size takes seconds
    files = save_scenes(tmp_path / "new" / "scenes")
    assert set(files) == {"night_street", "head_pet", "head_spect", "head_ct"}
    first, second = files["head_spect"]
    mri, spect = head_phantom(kind="spect")
    assert np.array_equal(np.rint(images.read(first).pixels * 255), mri)
    assert np.array_equal(np.rint(images.read(second).pixels * 255), spect)
    assert [p.name for p in files["night_street"]] == ["night_street_infrared.png", "night_street_visible.png"]


def test_save_scenes_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="taken"):
        save_scenes(tmp_path / "taken")
