"""How much noise a source has, and of which kind."""

import numpy as np
import pytest
import torch
from likelihoods.made import noisy, scenes, texture

from ddfm.likelihoods.noise import measure_noise, noise_std, not_clipped, photon_offset, remove_noise
from ddfm.likelihoods.operators import smooth
from ddfm.likelihoods.salient import Salient


def clean_pictures():
    y, x = np.mgrid[:96, :128] / 100
    waves = np.sin(5 * x + 2 * y) * np.cos(4 * y)
    return {
        "mid-grey": 0.5 + 0.3 * waves,
        "clipped at both ends": np.clip(0.5 + 0.55 * waves, 0, 1),
        "night": np.clip(0.15 + 0.2 * waves, 0, 1),
        "half black": np.where(x < 0.64, 0, 0.5 + 0.2 * waves),
    }


@pytest.mark.parametrize("sigma", [5, 10, 25, 40])
@pytest.mark.parametrize("name", clean_pictures())
def test_noise_is_measured_within_15_per_cent(name, sigma):
    picture = torch.tensor(clean_pictures()[name])[None, None]
    assert 255 * noise_std(noisy(picture, sigma, seed=sigma)).item() == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize("sigma", [4, 5, 6])
def test_the_steps_of_8_bits_do_not_quantise_the_noise(sigma):
    picture = eight_bit(noisy(torch.tensor(clean_pictures()["mid-grey"])[None, None], sigma, seed=3).numpy())
    assert 255 * noise_std(picture).item() == pytest.approx(sigma, rel=0.06)


@pytest.mark.parametrize("name", clean_pictures())
def test_a_clean_smooth_picture_has_no_noise(name):
    picture = np.rint(255 * clean_pictures()[name]) / 255
    assert 255 * noise_std(torch.tensor(picture)[None, None].float()).item() < 1


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (22, 100), (40, 40)])
def test_noise_is_seen_in_small_pictures_too(size):
    levels = [255 * noise_std(noisy(torch.full((1, 1, *size), 0.5), 20, seed=s)).item() for s in range(5)]
    assert np.mean(levels) == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_a_picture_all_black_or_white_has_no_noise(grey):
    assert noise_std(torch.full((2, 1, 20, 33), grey)).tolist() == [[[[0.0]]], [[[0.0]]]]


def test_noise_is_each_pictures_own():
    x = scenes(1, 64, 96)[0]
    pictures = [x, noisy(x, 10, seed=1), noisy(x, 30, seed=2)]
    together = noise_std(torch.cat(pictures))
    assert together.shape == (3, 1, 1, 1)
    torch.testing.assert_close(together, torch.cat([noise_std(picture) for picture in pictures]))
    assert 0 <= together[0] < together[1] < together[2]


def test_texture_is_not_taken_for_noise():
    """Noise is everywhere, fine texture only somewhere."""
    x = torch.full((1, 1, 128, 128), 0.5)
    x[..., :64] = noisy(x[..., :64], 30, seed=0)
    assert 255 * noise_std(x).item() < 1


def eight_bit(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.rint(255 * image.clip(0, 1)) / 255, dtype=torch.float32)


def fractal() -> np.ndarray:
    """An image whose power falls with the square of the frequency, down to the corner of the spectrum."""
    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]
    spectrum = np.fft.rfft2(rng.normal(size=(256, 256))) / np.maximum(np.hypot(fy, fx), 1 / 256)
    image = np.fft.irfft2(spectrum)
    return 0.5 + 0.15 * image / image.std()


def test_fine_texture_is_less_noise_than_it_looks():
    texture = eight_bit(fractal())[None, None]
    diagonal = (
        texture[..., ::2, ::2] - texture[..., ::2, 1::2] - texture[..., 1::2, ::2] + texture[..., 1::2, 1::2]
    ) / 2
    assert noise_std(texture).item() < 0.8 * diagonal.abs().median().item() / 0.6745  # Donoho's estimate


@pytest.mark.parametrize("blur, contrast", [(1.6, 0.1), (2.0, 0.15)])
def test_structure_that_is_smooth_does_not_hide_noise(blur, contrast):
    """As in MRI slices: full of structure, none of it finer than some pixels."""
    image = smooth(torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)), blur)
    image = 0.5 + (image - image.mean()) / image.std() * contrast
    noisy = image + torch.randn(image.shape, generator=torch.Generator().manual_seed(1)) * 10 / 255
    assert 255 * noise_std(image).item() < 1
    assert 255 * noise_std(noisy).item() == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("sigma", [25, 50])
def test_noise_in_fine_texture_is_measured(sigma):
    noisy = fractal() + np.random.default_rng(1).normal(0, sigma / 255, (256, 256))
    assert 255 * noise_std(eight_bit(noisy)[None, None]).item() == pytest.approx(sigma, rel=0.2)


def ramp() -> np.ndarray:
    """Dark on the left, bright on the right, with some structure."""
    y, x = np.mgrid[:160, :200] / 200
    return 0.1 + 0.7 * x + 0.05 * np.sin(20 * x) * np.cos(15 * y)


def photons(image: np.ndarray, white: float) -> torch.Tensor:
    """Shot noise of that many photons at white."""
    return eight_bit(np.random.default_rng(0).poisson(white * image) / white)


@pytest.mark.parametrize("white", [50, 200])
def test_noise_that_grows_with_the_light_is_told_from_white_noise(white):
    offset = photon_offset(photons(ramp(), white))
    assert offset is not None and offset < 0.2
    assert photon_offset(eight_bit(ramp() + np.random.default_rng(0).normal(0, 0.1, (160, 200)))) is None
    assert photon_offset(eight_bit(ramp())) is None


def test_texture_in_the_light_is_not_taken_for_the_noise_of_light():
    """As in low light: noise everywhere the same, fine texture in a part of what is bright."""
    image = ramp()
    image[:60, 100:] += 0.08 * np.random.default_rng(1).standard_normal((60, 100))
    assert photon_offset(eight_bit(image + np.random.default_rng(0).normal(0, 5 / 255, image.shape))) is None


def test_faint_noise_takes_one_evaluation_and_stronger_noise_two():
    """A quarter of faint noise is fainter than what a prior can tell from none."""
    for sigma, evaluations in ((5, 1), (15, 2)):
        asked = []
        source = noisy(torch.full((1, 1, 64, 96), 0.5), sigma, seed=0) * 2 - 1
        remove_noise([source], lambda y, std: asked.append(std) or smooth(y, 2.0))  # noqa: B023
        assert len(asked) == evaluations


def test_an_image_too_small_or_black_tells_nothing_of_the_light():
    assert photon_offset(torch.zeros(160, 200)) is None
    assert photon_offset(photons(ramp(), 50)[:40, :40]) is None


def test_photon_noise_is_removed_where_it_is_one_and_the_level_stays():
    asked = []

    def blur(y, sigma):
        asked.append(y)
        return smooth(y, 3.0)

    clean = ramp()
    [out], [level] = remove_noise([photons(clean, 50)[None, None] * 2 - 1], blur)
    dark, bright = asked[0][0, 0, :, 10:40], asked[0][0, 0, :, 160:190]
    assert (bright - smooth(bright[None, None], 3.0)).std() == pytest.approx(
        (dark - smooth(dark[None, None], 3.0)).std().item(), rel=0.25
    )
    assert level.item() > 0.05
    assert out.mean().item() == pytest.approx(clean.mean(), abs=0.005)


@pytest.mark.parametrize("level", [0.01, 0.1, 0.3])
def test_the_mean_of_noise_that_was_cut_off_tells_the_light(level):
    light = torch.linspace(0, 1, 21)
    noise = level * torch.randn(21, 100_000, generator=torch.Generator().manual_seed(0))
    mean = (light[:, None] + noise).clamp(0, 1).mean(dim=1)
    assert (mean - light).abs().max() > 0.35 * level
    torch.testing.assert_close(not_clipped(mean, level), light, rtol=0, atol=0.02 * level)
    torch.testing.assert_close(not_clipped(light[3:-3], 0.01), light[3:-3])


def test_what_is_black_or_white_under_noise_stays_so():
    picture = torch.full((1, 1, 96, 192), 0.5)
    picture[..., :64], picture[..., 128:] = 0, 1
    [out], _ = remove_noise([noisy(picture, 25, seed=0) * 2 - 1], lambda y, sigma: smooth(y, 4.0))
    for light, columns in ((0, slice(0, 48)), (0.5, slice(80, 112)), (1, slice(144, 192))):
        assert (out[..., columns] - light).abs().mean() < 2 / 255


def test_slices_of_a_volume_have_one_noise_where_each_alone_would_flicker():
    volume = np.stack([noisy(ramp(), 3.5, seed=k) for k in range(12)])
    alone = [measure_noise(torch.from_numpy(image)[None]).level for image in volume]
    assert max(alone) > 1.5 * min(alone)
    model = Salient().for_volume([volume, np.zeros_like(volume)])
    noise, none = model.noises
    assert none.level == 0 and min(alone) < noise.level < max(alone)
    slices = torch.from_numpy(volume)[:, None] * 2 - 1
    _, [levels, _] = remove_noise([slices, torch.zeros_like(slices)], lambda y, sigma: y, model.noises)
    assert levels.flatten().tolist() == [pytest.approx(noise.level)] * 12


def test_a_slice_that_shows_nothing_is_not_denoised():
    flat, textured = torch.full((1, 1, 48, 64), 0.5), torch.from_numpy(noisy(texture(48, 64, seed=0), 20, seed=0))
    noise = measure_noise(textured[None])
    assert noise.level > 0
    [out], _ = remove_noise([flat * 2 - 1], lambda y, sigma: y * 0, [noise])
    assert torch.equal(out, flat)
