"""How much noise a source has."""

import numpy as np
import pytest
import torch
from likelihoods.made import noisy, scenes

from ddfm.likelihoods.noise import noise_std


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
