"""The guards: each on an image where its answer is known."""

import numpy as np
import pytest

from ddfm.evaluation.guards import LIMITS, bright_flat_kept, burnt_excess, foreign_hues, guards, holds, lamps_kept


@pytest.fixture
def noon() -> np.ndarray:
    """A bright, flat sky above a dark ground, luma (60, 80)."""
    image = np.full((60, 80), 0.2, np.float32)
    image[:30] = 0.9
    return image


def test_a_darkened_sky_is_found(noon):
    assert bright_flat_kept(noon, noon) == 1
    dusk = noon.copy()
    dusk[:30, :40] = 0.7
    assert bright_flat_kept(dusk, noon) == pytest.approx(0.5, abs=0.02)
    assert bright_flat_kept(noon - 0.09, noon) == 1
    textured = noon + np.float32(0.05) * (np.indices(noon.shape).sum(0) % 2)
    assert np.isnan(bright_flat_kept(dusk, textured))  # bright, but not flat: nothing to guard


def test_a_lamp_that_became_a_hole_is_found(noon):
    visible = np.zeros((60, 80), np.float32)
    visible[5:15, 5:15] = visible[30:40, 30:40] = 1
    visible[50, 50:60] = 1  # too small to count
    fused = visible.copy()
    fused[30:40, 30:40] = 0.3
    assert lamps_kept(visible, visible) == 1 and lamps_kept(fused, visible) == 0.5
    assert np.isnan(lamps_kept(fused, noon * 0))


def test_burnt_pixels_are_those_that_no_source_has(noon):
    burnt = noon.copy()
    burnt[:6] = 1
    assert burnt_excess(burnt, [noon, noon]) == pytest.approx(10)
    assert burnt_excess(burnt, [noon, burnt]) == 0 and burnt_excess(noon, [burnt, noon]) == pytest.approx(-10)


def test_a_hue_from_nowhere_is_found():
    red, blue = np.zeros((2, 20, 20, 3), np.float32)
    red[..., 0], blue[..., 2] = 0.8, 0.8
    stained = red.copy()
    stained[:5] = blue[:5]
    assert foreign_hues(red * 0.5, [red]) == 0
    assert foreign_hues(stained, [red]) == 0.25 and foreign_hues(stained, [red, blue]) == 0
    assert np.isnan(foreign_hues(red[..., 0], [red])) and np.isnan(foreign_hues(red, []))


def test_all_of_them_and_whether_they_hold(noon):
    rgb = np.stack([noon] * 3, -1)
    values = guards(rgb, [noon * 0.5, rgb], [rgb])
    assert list(values) == list(LIMITS) and holds(values)
    values = guards(rgb - 0.2 * (rgb > 0.5), [noon * 0.5, rgb], [rgb])
    assert values["bright areas kept"] == 0 and not holds(values)
    assert not holds({"burnt": 0.6}) and holds({"burnt": 0.5}) and holds({"lamps kept": np.nan})
