"""Transforms, screened Poisson and blur against their definitions."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from likelihoods.made import texture, uniform

from ddfm.likelihoods.operators import (
    gradient,
    gradient_adjoint,
    guided_filter,
    laplacian_spectrum,
    screened_poisson,
    smooth,
)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (5, 4), (16, 17)])
def test_gradient_and_its_adjoint_are_adjoint(size):
    k, ux, uy = (uniform(1, 1, *size, seed=s) for s in range(3))
    gx, gy = gradient(k)
    torch.testing.assert_close((gx * ux + gy * uy).sum(), (k * gradient_adjoint((ux, uy))).sum())


def test_gradient_is_the_forward_difference_and_nothing_across_the_border():
    gx, gy = gradient(torch.tensor([[[[1.0, 4.0, 9.0], [2.0, 2.0, 2.0]]]]))
    assert gx.tolist() == [[[[3, 5, 0], [0, 0, 0]]]]
    assert gy.tolist() == [[[[1, -2, -7], [0, 0, 0]]]]


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 5), (6, 1)])
def test_the_spectrum_is_that_of_the_laplacian(size):
    x = uniform(1, 1, *size)
    along_y, along_x = laplacian_spectrum(x)
    spectrum = scipy.fft.dctn(x.numpy(), axes=(-2, -1)) * (along_y + along_x).numpy()
    through_dct = torch.from_numpy(scipy.fft.idctn(spectrum, axes=(-2, -1)))
    torch.testing.assert_close(through_dct, gradient_adjoint(gradient(x)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("size", [(3, 4), (5, 5), (6, 1)])
def test_screened_poisson_is_the_least_squares_solution(size, kappa):
    x, ux, uy = (uniform(1, 1, *size, seed=s) for s in range(3))
    pixels = torch.eye(x.numel(), dtype=x.dtype).view(-1, 1, *size)
    gx, gy = (g.reshape(x.numel(), -1).T for g in gradient(pixels))  # the operators as matrices
    normal = torch.eye(x.numel(), dtype=x.dtype) + kappa * (gx.T @ gx + gy.T @ gy)
    rhs = x.flatten() + kappa * (gx.T @ ux.flatten() + gy.T @ uy.flatten())
    k = screened_poisson(x, (ux, uy), kappa)
    torch.testing.assert_close(k.flatten(), torch.linalg.solve(normal, rhs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 4.9])
@pytest.mark.parametrize("size", [(33, 46), (64, 20)])
def test_a_narrow_blur_is_the_gaussian_mirrored_at_the_edges(size, sigma):
    x = uniform(2, 1, *size)
    exact = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="reflect", radius=int(3 * sigma + 0.5))
    np.testing.assert_allclose(smooth(x, sigma), exact, atol=1e-6)


@pytest.mark.parametrize("sigma", [10.0, 30.0])
@pytest.mark.parametrize("size", [(96, 120), (97, 121)])
def test_a_wide_blur_is_nearly_the_gaussian_up_to_the_edges(size, sigma):
    x = texture(*size, seed=1) + np.linspace(0, 0.5, size[1])
    exact = scipy.ndimage.gaussian_filter(x, sigma, mode="reflect", truncate=6)
    error = smooth(torch.tensor(x)[None, None], sigma)[0, 0].numpy() - exact
    assert np.abs(error).max() < 0.15 * exact.std() and error.std() < 0.05 * exact.std()


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (16, 16), (17, 33), (120, 90)])
def test_a_blur_keeps_a_constant_and_the_range(size, sigma):
    torch.testing.assert_close(smooth(torch.full((1, 1, *size), 0.3), sigma), torch.full((1, 1, *size), 0.3))
    x = uniform(1, 1, *size)
    blurred = smooth(x, sigma)
    assert blurred.shape == x.shape
    assert blurred.min() >= x.min() - 1e-9 and blurred.max() <= x.max() + 1e-9


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (120, 90)])
def test_a_blur_keeps_the_mean(size, sigma):
    x = uniform(1, 1, *size)
    assert smooth(x, sigma).mean().item() == pytest.approx(x.mean().item(), abs=0.005)


def test_a_blur_takes_pictures_and_channels_one_by_one():
    x = uniform(2, 3, 20, 24)
    for picture in range(2):
        for channel in range(3):
            alone = smooth(x[picture : picture + 1, channel : channel + 1], 6.0)
            torch.testing.assert_close(smooth(x, 6.0)[picture, channel], alone[0, 0])


def test_a_narrow_blur_is_scipys():
    x = torch.rand(2, 1, 20, 33, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, 1.5, 1.5), mode="reflect", radius=5)
    torch.testing.assert_close(smooth(x, 1.5), torch.from_numpy(expected))


@pytest.mark.parametrize("size", [(16, 16), (61, 130), (240, 100)])
@pytest.mark.parametrize("sigma", [5.0, 10.0, 30.0])
def test_a_wide_blur_on_a_coarser_grid_is_nearly_scipys(size, sigma):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    image = (0.5 + 0.4 * torch.sin(0.05 * x + 0.08 * y))[None, None].float()
    expected = scipy.ndimage.gaussian_filter(image.numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=3.0)
    torch.testing.assert_close(smooth(image, sigma), torch.from_numpy(expected), atol=0.04, rtol=0)
    torch.testing.assert_close(smooth(torch.full_like(image, 0.3), sigma), torch.full_like(image, 0.3))


def test_the_guided_filter_smooths_but_not_across_an_edge_of_the_guide():
    guide = torch.zeros(1, 1, 120, 160)
    guide[..., 80:] = 1.0
    weight = torch.where(guide > 0, 0.8, 0.2) + 0.1 * torch.randn(
        guide.shape, generator=torch.Generator().manual_seed(0)
    )
    filtered = guided_filter(weight, guide, 30.0)
    assert (filtered[..., :80] - 0.2).abs().max() < 0.03 and (filtered[..., 80:] - 0.8).abs().max() < 0.03
    blurred = smooth(weight, 30.0)
    assert blurred[..., 79].mean() > 0.4  # which a plain blur does not keep
