"""Palettes: a source as colour over the fused image, where it has data, and nowhere else."""

import cv2
import numpy as np
import pytest

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.images import Image
from ddfm.palettes import PALETTES, is_false_colour, overlaid, painted
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


def blobs(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A smooth grey image over all of [0, 1]."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).uniform(0, 1, (height, width)), (0, 0), 8)
    return (noise - noise.min()) / (noise.max() - noise.min())


@pytest.mark.parametrize("palette", PALETTES)
def test_a_palette_is_told_also_behind_jpeg(palette):
    jpeg = cv2.imencode(".jpg", 255 * painted(blobs(0), palette), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    assert is_false_colour(cv2.imdecode(jpeg, cv2.IMREAD_COLOR) / np.float32(255))


def test_photos_sepia_and_grey_are_not_palettes():
    assert not is_false_colour(np.dstack([blobs(k) for k in (1, 2, 3)]))
    assert not is_false_colour(np.dstack([blobs(1)] * 3))
    assert not is_false_colour(blobs(1)[..., None] * [0.9, 0.7, 0.5])


def test_beside_a_photo_a_painted_thermal_image_is_its_brightness(tmp_path):
    photo = np.dstack([blobs(k) for k in (1, 2, 3)]).astype(np.float32)
    thermal = painted(blobs(0), "ironbow")
    images.write(tmp_path / "photo.png", photo, 8)
    images.write(tmp_path / "thermal.png", thermal, 8)
    scene = Scene.read([tmp_path / "thermal.png", tmp_path / "photo.png"])
    assert [source.pixels.ndim for source in scene.sources] == [2, 3]
    assert any("thermal.png is a false-colour image" in finding for finding in scene.findings)
    alone = Scene.read([tmp_path / "thermal.png", tmp_path / "thermal.png"])  # whose colours else?
    assert [source.pixels.ndim for source in alone.sources] == [3, 3]


def test_beside_a_photo_the_pipeline_too_takes_the_brightness_of_a_palette(tiny_prior):
    photo = np.dstack([blobs(k) for k in (1, 2, 3)]).astype(np.float32)
    thermal = painted(blobs(0), "ironbow")
    with pytest.warns(UserWarning, match="Source 1 is a false-colour image"):
        fused = tiny_prior([thermal, photo], num_inference_steps=1).images
    assert np.array_equal(fused, tiny_prior([luma(thermal), photo], num_inference_steps=1).images)
