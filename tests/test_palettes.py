"""Palettes: a source as colour over the fused image, where it has data, and nowhere else."""

import numpy as np
import pytest

from ddfm.errors import InputError
from ddfm.io.images import Image
from ddfm.palettes import PALETTES, overlaid, painted
from ddfm.registration import from_matrix
from ddfm.runs.scene import Scene

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize("palette", PALETTES)
def test_hotter_is_another_colour_in_range(palette):
    colours = painted(RAMP, palette)
    assert colours.shape == (48, 64, 3) and colours.dtype == np.float32
    assert colours.min() >= 0 and colours.max() <= 1
    assert np.abs(colours[0, 0] - colours[-1, -1]).max() > 0.25


def test_iron_glows_from_black_to_white():
    colours = painted(RAMP, "ironbow")
    assert (np.diff(colours.reshape(-1, 3) @ [0.299, 0.587, 0.114]) >= -1e-6).all()


def test_blend_goes_from_the_fused_image_to_the_palette():
    fused = np.full((48, 64), 0.3, np.float32)
    np.testing.assert_allclose(overlaid(fused, RAMP, "hot", 0), np.repeat(fused[..., None], 3, -1))
    np.testing.assert_allclose(overlaid(fused, RAMP, "hot", 1), painted(RAMP, "hot"), atol=1e-6)
    half = overlaid(fused, RAMP, "hot", 1, np.zeros((48, 64)))
    np.testing.assert_allclose(half, 0.3, atol=1e-6)


@pytest.mark.parametrize(("palette", "blend"), [("rainbow", 0.5), ("hot", 1.5), ("hot", float("nan"))])
def test_what_is_none_is_refused(palette, blend):
    with pytest.raises(InputError):
        overlaid(RAMP, RAMP, palette, blend)


def test_a_narrow_thermal_is_coloured_only_where_it_looked():
    place = from_matrix(np.array([[1, 0, -16.0], [0, 1, -12]]), (24, 32), (48, 64))
    photo, thermal = Image(np.full((48, 64, 3), 0.5, np.float32)), Image(np.ones((48, 64), np.float32))
    scene = Scene([thermal, photo], [], 1, [place, None])
    shown = scene.overlaid(photo.pixels, "ironbow", 1.0)
    np.testing.assert_allclose(shown[:10], 0.5, atol=1e-6)
    assert shown[24, 32, 0] > 0.9
    with pytest.raises(InputError, match="grey"):
        Scene([photo, photo]).overlaid(photo.pixels, "ironbow")
