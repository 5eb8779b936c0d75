import numpy as np
import pytest

from ddfm.demo import SCENES, save_scenes, side_by_side
from ddfm.errors import InputError
from ddfm.io import images


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


def test_save_scenes(tmp_path):
    files = save_scenes(tmp_path / "new" / "scenes")
    assert set(files) == set(SCENES)
    assert [p.name for p in files["night_street"]] == ["night_street_infrared.png", "night_street_visible.png"]
    for first, second in files.values():
        assert images.read(first).pixels.shape == images.read(second).pixels.shape[:2]


def test_a_walker_in_the_dark_shows_in_infrared_only(tmp_path):
    infrared, visible = (images.read(path).pixels for path in save_scenes(tmp_path)["night_street"])
    height, width = infrared.shape
    person, wall = (
        np.s_[height * 122 // 240 : height * 132 // 240, width * a // 320 : width * b // 320]
        for a, b in ((18, 22), (4, 12))
    )
    assert infrared[person].mean() > infrared[wall].mean() + 0.2
    assert visible[person].max() < 0.35


def test_save_scenes_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="taken"):
        save_scenes(tmp_path / "taken")
