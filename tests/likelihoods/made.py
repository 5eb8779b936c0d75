"""Made pictures and noise that the tests of the likelihoods share."""

import numpy as np
import scipy.fft
import scipy.ndimage
import torch
from conftest import made_image


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scenes(count, height=48, width=64, first=0):
    """Images in [0, 1], (1, 1, H, W), of different content."""
    return [torch.tensor(made_image(height, width, seed=first + k) / 255)[None, None].float() for k in range(count)]


def texture(height, width, seed, contrast=0.18):
    """A smooth random image in [0, 1], (H, W) float32, about mid-grey."""
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 2.0)
    return np.clip(0.5 + contrast * field / field.std(), 0, 1).astype(np.float32)


def noisy(picture, sigma, seed):
    """With white noise of `sigma` grey levels, clipped and rounded as a camera does; NumPy or torch, [0, 1]."""
    noise = np.random.default_rng(seed).standard_normal(tuple(picture.shape)) * sigma / 255
    levels = np.rint(255 * np.clip(np.asarray(picture) + noise, 0, 1)).astype(np.float32) / 255
    return torch.tensor(levels) if isinstance(picture, torch.Tensor) else levels
