"""Operators that the likelihoods share: differences, their spectrum, screened Poisson, blur, guided filter.

Images are (B, C, H, W) tensors. Boundaries are reflecting (Neumann) unless `periodic`, as a plain FFT
implies and as the paper and its released code use.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

Gradient = tuple[Tensor, Tensor]  # along W and H, each shaped like the image

BAND = 2**16  # values processed at a time in row-wise work, so that its dozen temporary tensors stay in the cache


def gradient(k: Tensor, periodic: bool = False) -> Gradient:
    """Forward differences k[j+1] - k[j] along W and H; zero across a reflecting border."""
    if periodic:
        return k.roll(-1, -1) - k, k.roll(-1, -2) - k
    return F.pad(k[..., :, 1:] - k[..., :, :-1], (0, 1)), F.pad(k[..., 1:, :] - k[..., :-1, :], (0, 0, 0, 1))


def gradient_adjoint(u: Gradient, periodic: bool = False) -> Tensor:
    """The adjoint of `gradient`: minus the divergence."""
    if periodic:
        return u[0].roll(1, -1) - u[0] + u[1].roll(1, -2) - u[1]
    ux, uy = u[0][..., :, :-1], u[1][..., :-1, :]
    out = torch.zeros_like(u[0])
    out[..., :, 1:] += ux
    out[..., :, :-1] -= ux
    out[..., 1:, :] += uy
    out[..., :-1, :] -= uy
    return out


def bands(like: Tensor) -> Iterator[slice]:
    """Bands of rows of (..., H, W), for row-wise work."""
    height, rows = like.shape[-2], max(1, BAND // like[..., :1, :].numel())
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def laplacian_spectrum(like: Tensor, periodic: bool = False) -> tuple[Tensor, Tensor]:
    """Eigenvalues of grad^T grad along each dimension, (H, 1) and (1, W), to be added: 2 - 2 cos w.

    For a DCT-II along both dimensions or, if periodic, for `rfft2`, where the second is (1, W // 2 + 1).
    """
    (h, w), device = like.shape[-2:], like.device
    if periodic:
        wy = torch.fft.fftfreq(h, device=device) * (2 * torch.pi)
        wx = torch.fft.rfftfreq(w, device=device) * (2 * torch.pi)
    else:
        wy, wx = (torch.arange(n, device=device) * (torch.pi / n) for n in (h, w))
    return (2 - 2 * wy.cos())[:, None], (2 - 2 * wx.cos())[None, :]


def screened_poisson(x: Tensor, u: Gradient, kappa: float = 1.0, periodic: bool = False) -> Tensor:
    """argmin_k |k - x|^2 + kappa |grad k - u|^2, exactly: (1 + kappa grad^T grad)^-1 (x + kappa grad^T u)."""
    k = gradient_adjoint(u, periodic).mul_(kappa).add_(x)
    along_y, along_x = laplacian_spectrum(x, periodic)
    if periodic:
        spectrum = torch.fft.rfft2(k) / (1 + kappa * (along_y + along_x))
        periodic_k: Tensor = torch.fft.irfft2(spectrum, s=x.shape[-2:])
        return periodic_k
    how: dict[str, Any] = {"axes": (-2, -1), "overwrite_x": True, "workers": torch.get_num_threads()}
    spectrum = torch.from_numpy(scipy.fft.dctn(k.cpu().numpy(), **how)).to(x.device)
    for rows in bands(spectrum):
        spectrum[..., rows, :] /= 1 + kappa * (along_y[rows] + along_x)
    return torch.from_numpy(scipy.fft.idctn(spectrum.cpu().numpy(), **how)).to(x.device)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), mirrored at the edges; a wide one is computed on a coarser grid, almost for free.

    Uses OpenCV on the CPU: for one channel it is fifteen times as fast as a convolution or shifted copies in PyTorch.
    """
    factor = _coarser(x, sigma)
    return _enlarged(_blurred(_shrunk(x, factor), sigma / factor), x)


def guided_filter(weight: Tensor, guide: Tensor, sigma: float, flat: float = 1e-4) -> Tensor:
    """The guided filter (He et al., 2013) with a Gaussian window: `weight` smoothed, with the edges of `guide`.

    All (B, 1, H, W); returns values in [0, 1]. Slope and offset are fitted on a coarser grid, as in the fast guided
    filter (He & Sun, 2015), to moments of the full one."""
    factor = _coarser(guide, sigma)

    def mean(x: Tensor) -> Tensor:
        return _blurred(_shrunk(x, factor), sigma / factor)

    mean_g, mean_w = mean(guide), mean(weight)
    variance = mean(guide * guide).sub_(mean_g.square()).clamp_min_(0)
    slope = mean(guide * weight).sub_(mean_g * mean_w).div_(variance.add_(flat))
    offset = mean_w.sub_(mean_g.mul_(slope))
    slope, offset = (_enlarged(_blurred(part, sigma / factor), guide) for part in (slope, offset))
    return slope.mul_(guide).add_(offset).clamp_(0, 1)


def _coarser(like: Tensor, sigma: float) -> int:
    """The factor by which an image is shrunk before a blur of `sigma`."""
    return max(1, min(int(sigma / 2.5), *(extent // 4 for extent in like.shape[-2:])))


def _shrunk(x: Tensor, factor: int) -> Tensor:
    h, w = x.shape[-2:]
    size = -(-w // factor), -(-h // factor)
    return x if factor == 1 else _planes(lambda plane: cv2.resize(plane, size, interpolation=cv2.INTER_AREA), x)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """x enlarged to the size of `like`."""
    h, w = like.shape[-2:]
    bilinear = functools.partial(cv2.resize, dsize=(w, h), interpolation=cv2.INTER_LINEAR)
    return x if x.shape == like.shape else _planes(bilinear, x)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    size = 2 * int(3 * sigma + 0.5) + 1
    return _planes(lambda plane: cv2.GaussianBlur(plane, (size, size), sigma, borderType=cv2.BORDER_REFLECT), x)


def _planes(change: Callable[[np.ndarray], np.ndarray], x: Tensor) -> Tensor:
    """`change` applied to each (H, W) plane of (B, C, H, W)."""
    changed = [torch.from_numpy(change(plane)) for plane in x.flatten(0, 1).cpu().numpy()]
    stacked = changed[0] if len(changed) == 1 else torch.stack(changed)  # torch.stack copies
    return stacked.view(*x.shape[:2], *changed[0].shape).to(x.device)
