"""colour: exact there and back, hue kept where the gamut ends, the released code's luma."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab, rgb2ycbcr, ycbcr2rgb

from ddfm import colour

RGB = np.random.default_rng(0).random((31, 27, 3)).astype(np.float32)


def test_is_what_opencv_does():
    ycrcb = cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb)
    y, chroma = colour.split(RGB)
    np.testing.assert_allclose(y, ycrcb[..., 0], atol=1e-6)
    np.testing.assert_allclose(chroma, ycrcb[..., :0:-1] - 0.5, atol=2e-3)  # OpenCV rounds 0.564 and 0.713


def test_there_and_back():
    assert np.abs(colour.join(*colour.split(RGB)) - RGB).max() < 1e-6
    corners = np.array([[[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)]], np.float32)
    assert np.abs(colour.join(*colour.split(corners)) - corners).max() < 1e-6
    assert colour.luma(np.ones((2, 2, 3))).max() <= 1


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seed=st.integers(0, 999))
def test_any_new_luma_keeps_luma_and_hue(seed):
    rng = np.random.default_rng(seed)
    _, chroma = colour.split(rng.random((12, 13, 3)))
    y = np.clip(rng.normal(0.5, 0.5, (12, 13)), 0, 1)
    rgb = colour.join(y, chroma)
    assert rgb.dtype == np.float32 and rgb.min() >= 0 and rgb.max() <= 1
    np.testing.assert_allclose(colour.luma(rgb), y, atol=2e-6)
    _, kept = colour.split(rgb)
    cross = kept[..., 0] * chroma[..., 1] - kept[..., 1] * chroma[..., 0]
    np.testing.assert_allclose(cross, 0, atol=1e-6)
    assert ((kept * chroma).sum(-1) >= -1e-6).all()
    # The factor is the largest that fits: a pixel lost saturation only if one of its channels now touches the
    # end.
    lost = np.hypot(*np.moveaxis(kept, -1, 0)) < np.hypot(*np.moveaxis(chroma, -1, 0)) - 1e-4
    touches = np.minimum(rgb, 1 - rgb).min(-1) < 1e-5
    assert touches[lost].all()


def test_merge():
    _, a = colour.split(RGB)
    grey = np.zeros_like(a)
    np.testing.assert_allclose(colour.merge_chroma([a, grey]), a, atol=1e-6)
    np.testing.assert_allclose(colour.merge_chroma([a, a]), a, atol=1e-6)
    assert not colour.merge_chroma([grey, grey]).any()
    vivid, pale = np.full((1, 1, 2), 0.3), np.full((1, 1, 2), -0.1)
    np.testing.assert_allclose(colour.merge_chroma([vivid, pale]), 0.75 * 0.3 + 0.25 * -0.1)


def test_modes():
    grey, other = RGB[..., 0], RGB[:, ::-1]
    y = colour.luma(RGB)
    for sources, mode, expected in [
        ([grey, RGB], "auto", RGB),
        ([RGB, grey], "auto", RGB),
        ([RGB, grey], "first", RGB),
        ([grey, RGB], "second", RGB),
        ([other, RGB, grey], "second", RGB),
        ([grey, RGB], "first", y),
        ([grey, grey], "auto", y),
        ([RGB, other], "grey", y),
    ]:
        result = colour.fused_colour(y, sources, mode)
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-6)
    both = colour.fused_colour(y, [RGB, other])
    assert both.shape == RGB.shape and np.abs(both - RGB).max() > 0.05
    with pytest.raises(KeyError):
        colour.fused_colour(y, [RGB], "pink")


def phantom():
    """A head: grey anatomy with a bright skull, and a functional image in hot-metal colours with two hot spots."""
    yy, xx = np.mgrid[-1:1:160j, -1:1:160j]
    radius = np.hypot(xx / 0.8, yy / 0.95)
    anatomy = np.where(radius < 0.85, 0.45 + 0.15 * np.sin(14 * xx) * np.cos(11 * yy), 0.0)
    anatomy = np.where((radius > 0.85) & (radius < 0.95), 0.95, anatomy).astype(np.float32)
    spots = sum(np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 0.03) for x, y in [(-0.3, 0.2), (0.35, -0.1)])
    activity = np.clip(np.where(radius < 0.8, 0.3 + 0.7 * spots, 0), 0, 1)
    hot = np.clip(np.stack([3 * activity, 3 * activity - 1, 3 * activity - 2], -1), 0, 1).astype(np.float32)
    return anatomy, hot, activity


@pytest.mark.parametrize("fusion", [np.maximum, lambda a, b: (a + b) / 2])
def test_pseudo_colour_does_not_wash_out(fusion):
    anatomy, hot, activity = phantom()
    fused = fusion(anatomy, colour.luma(hot))
    result = colour.fused_colour(fused, [anatomy, hot])
    bright = (activity > 0.4) & (activity < 0.85)  # above, the colours themselves are white
    source, lab = rgb2lab(hot)[bright], rgb2lab(result)[bright]

    def hue_error(other):
        """The hue term of CIEDE2000, Delta H' / S_H, with lightness and chroma made equal: what is left is hue."""
        other = other.copy()
        other[:, 0] = source[:, 0]
        chroma = np.hypot(source[:, 1], source[:, 2]) / np.maximum(np.hypot(other[:, 1], other[:, 2]), 1e-6)
        other[:, 1:] *= chroma[:, None]
        return deltaE_ciede2000(source, other)

    # The plain way, each channel clipped, turns the hue further.
    y, chroma = colour.split(hot)
    offset = np.stack([1.402 * chroma[..., 1], 0 * y, 1.772 * chroma[..., 0]], -1)
    offset[..., 1] = -(0.299 * offset[..., 0] + 0.114 * offset[..., 2]) / 0.587
    clipped = rgb2lab(np.clip(fused[..., None] + offset, 0, 1))[bright]
    saturation = np.hypot(lab[:, 1], lab[:, 2]).mean() / np.hypot(source[:, 1], source[:, 2]).mean()
    assert np.median(hue_error(lab)) < 3
    assert saturation > 0.8
    assert hue_error(lab).mean() <= hue_error(clipped).mean() + 0.1


def test_a_source_lends_its_colour_to_its_own_luma_and_to_a_little_more():
    y, chroma = colour.split(RGB)
    np.testing.assert_allclose(colour.lent_chroma(y, RGB), chroma, atol=1e-6)
    np.testing.assert_allclose(colour.lent_chroma(RGB.max(axis=-1), RGB), chroma, atol=1e-6)
    assert not colour.lent_chroma(y, np.zeros_like(RGB)).any()


def test_colour_in_the_dark_is_no_more_saturated_than_it_was():
    """What a scatter of counts tints in a SPECT, where the MRI is black."""
    y = colour.luma(RGB)
    fused = colour.fused_colour(0.3 * y, [RGB])
    np.testing.assert_allclose(fused, 0.3 * RGB, atol=1e-6)


def test_a_faint_halo_does_not_paint_what_another_source_makes_bright():
    halo = np.tile(np.array([0.1, 0.2, 0.3], np.float32), (4, 4, 1))
    bright = np.full((4, 4), 0.9, np.float32)
    painted = colour.split(colour.fused_colour(bright, [bright, halo]))[1]
    np.testing.assert_allclose(painted, colour.split(halo)[1] / 3, atol=1e-6)


def test_make_room_moves_y_only_where_the_chroma_does_not_fit():
    rng = np.random.default_rng(0)
    rgb = rng.random((40, 50, 3), np.float32)
    y, chroma = colour.split(rgb)
    np.testing.assert_allclose(colour.make_room(y, chroma), y, atol=1e-6)  # an image's own luma fits
    other = rng.random((40, 50), np.float32)
    fits = np.abs(colour.split(colour.join(other, chroma))[1] - chroma).max(axis=-1) < 1e-6
    moved = colour.make_room(other, chroma)
    np.testing.assert_allclose(moved[fits], other[fits], atol=1e-6)
    assert (np.abs(moved - other)[~fits] > 0).mean() > 0.99
    assert (np.abs(moved - y) <= np.abs(other - y) + 1e-6).all()  # towards the luma that the colour came from


def test_make_room_goes_from_no_move_to_whole_chroma():
    rng = np.random.default_rng(1)
    chroma = colour.split(rng.random((40, 50, 3), np.float32))[1]
    y = rng.random((40, 50), np.float32)
    np.testing.assert_array_equal(colour.make_room(y, chroma, 0), y)
    kept = [colour.split(colour.join(colour.make_room(y, chroma, share), chroma))[1] for share in (0, 0.5, 1)]
    np.testing.assert_allclose(kept[2], chroma, atol=1e-6)
    whole = np.hypot(*chroma.transpose(2, 0, 1)).sum()
    none, half = (np.hypot(*part.transpose(2, 0, 1)).sum() / whole for part in kept[:2])
    assert none < half - 0.05 < 1


def test_a_hot_spot_on_white_keeps_its_colour_and_grey_stays_grey():
    white = np.ones((4, 4), np.float32)
    hot = np.tile(np.array([1.0, 0.2, 0.1], np.float32), (4, 4, 1))
    fused = colour.fused_colour(white, [white, hot])
    assert fused[..., 0].min() > 0.95 and fused[..., 2].max() < 0.75
    grey = np.repeat(white[..., None], 3, axis=-1) / 2
    np.testing.assert_allclose(colour.fused_colour(white, [white, grey]), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_studio_is_skimage(dtype):
    x = torch.rand(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = rgb2ycbcr(x.permute(0, 2, 3, 1).numpy()) / 255
    y, cbcr = colour.studio_split(x.to(dtype))
    got = torch.cat([y, cbcr], 1).permute(0, 2, 3, 1)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(colour.studio_luma(x.to(dtype))[:, 0].numpy(), expected[..., 0], atol=1e-6)
    back = colour.studio_join(y, cbcr)
    np.testing.assert_allclose(back.numpy(), x.numpy(), atol=2e-6 if dtype == torch.float32 else 1e-12)
    y = y + 0.1  # a new luma, as the likelihood gives one
    new = torch.cat([y, cbcr], 1).permute(0, 2, 3, 1).double().numpy()
    np.testing.assert_allclose(colour.studio_join(y, cbcr).permute(0, 2, 3, 1).numpy(), ycbcr2rgb(new * 255), atol=2e-6)


def test_studio_of_grey():
    grey = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    np.testing.assert_allclose(colour.studio_luma(grey)[:, 0, 0, 0], [-0.79608, 0.06275, 0.92157], atol=1e-5)
