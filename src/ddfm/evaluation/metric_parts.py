"""Building blocks of the metrics: histograms, windowed moments, edges. Planes are (..., H, W), float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PLANE = (-2, -1)


def levels(x: Tensor) -> Tensor:
    """Rounded to grey levels 0..255."""
    return x.round().clamp_(0, 255)


def separable(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Correlate the planes of x (..., H, W) with the outer product of two kernels, inside the image only."""
    if x.device.type == "cpu":
        # torch has no fast float64 convolution on the CPU; OpenCV's is 20 times quicker, to the same last bits.
        top, left = len(down) // 2, len(across) // 2
        kx, ky = across.double().numpy(), down.double().numpy()
        planes = x.reshape(-1, *x.shape[-2:]).numpy()
        height, width = x.shape[-2] - len(down) + 1, x.shape[-1] - len(across) + 1
        out = np.empty((len(planes), height, width))
        for plane, result in zip(planes, out, strict=True):
            result[:] = cv2.sepFilter2D(plane, -1, kx, ky)[top : top + height, left : left + width]
        return torch.from_numpy(out).view(*x.shape[:-2], height, width)
    return separable_by_torch(x, across, down)


def separable_by_torch(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """`separable` on any device."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    planes = F.conv2d(planes, across.to(x).view(1, 1, 1, -1))
    planes = F.conv2d(planes, down.to(x).view(1, 1, -1, 1))
    return planes.view(*x.shape[:-2], *planes.shape[-2:])


def gaussian(size: int, sigma: float) -> Tensor:
    """A window of `size` weights that add up to 1, float64."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weight = torch.exp(-offset.square() / (2 * sigma**2))
    return weight / weight.sum()


def mean_or_zero(x: Tensor) -> Tensor:
    """Mean over each plane; 0 where it is empty."""
    return x.mean(PLANE) if x.shape[-1] and x.shape[-2] else x.sum(PLANE)


def central_difference(x: Tensor, dim: int) -> Tensor:
    """As numpy.gradient; 0 along a side of one pixel."""
    if x.shape[dim] == 1:
        return torch.zeros_like(x)
    return torch.gradient(x, dim=dim)[0]


def halve(x: Tensor) -> Tensor:
    """Average over 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    x = x[..., :height, :width]
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of planes."""
    x, y = (z.flatten(-2) for z in (x, y))
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    dot: Callable[[Tensor, Tensor], Tensor] = torch.linalg.vecdot
    return dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()


def histogram(levels: Tensor, bins: int) -> Tensor:
    """Relative frequencies of the integers 0..bins-1 in each plane: (..., H, W) -> (planes, bins)."""
    planes = levels.reshape(-1, levels.shape[-2] * levels.shape[-1]).long()
    planes += torch.arange(len(planes), device=levels.device)[:, None] * bins
    counts = torch.bincount(planes.flatten(), minlength=len(planes) * bins).view(len(planes), bins)
    return counts.double() / planes.shape[1]


def entropy(p: Tensor) -> Tensor:
    """Entropy in bits over the last dimension; 0 log 0 = 0."""
    return 0.0 - torch.xlogy(p, p).sum(-1) / math.log(2)  # 0 - x: no minus zero


def information(f: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """I(f; s) and H(f) + H(s) in bits, both (N, ...)."""
    f, s = levels(f), levels(s)
    joint = histogram(f * 256 + s, 65536)
    table = joint.view(-1, 256, 256)
    entropies = entropy(table.sum(1)) + entropy(table.sum(2))
    information = (entropies - entropy(joint)).clamp(min=0)
    return information.view(s.shape[:-2]), entropies.view(s.shape[:-2])


def strips(x: Tensor, window: int, rows: int = 64) -> Iterator[Tensor]:
    """Overlapping strips of x (..., H, W) that together contain each window-sized neighbourhood of x exactly once.

    Working strip by strip stays in the cache and avoids large allocations.
    """
    places = x.shape[-2] - window + 1
    for top in range(0, places, rows):
        yield x[..., top : min(top + rows, places) + window - 1, :]


def local_moments(x: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For x = [fused, *sources] (1 + N, ..., H, W): windowed means of fused (1, ...) and sources (N, ...), their
    variances likewise, and covariances (N, ...).
    """
    n = len(x) - 1
    stack = x.new_empty(2 * (n + 1) + n, *x.shape[1:])
    stack[: n + 1] = x
    torch.mul(x, x, out=stack[n + 1 : -n])
    torch.mul(x[:1], x[1:], out=stack[-n:])
    mean_f, mean_s, var_f, var_s, cov = torch.split(separable(stack, window, window), [1, n, 1, n, n])
    var_f -= mean_f * mean_f
    var_s -= mean_s * mean_s
    cov -= mean_f * mean_s
    return mean_f, mean_s, var_f, var_s, cov


def ssim_terms(f: Tensor, s: Tensor, window: Tensor, data_range: float, unbias: float = 1.0) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part, each averaged over the positions where the window fits: (N, ...)."""
    if min(f.shape[-2:]) < len(window):
        nothing = s.new_full(s.shape[:-2], math.nan)
        return nothing, nothing
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    whole = part = s.new_zeros(s.shape[:-2])
    for strip in strips(torch.cat([f[None], s]), len(window)):
        mean_f, mean_s, var_f, var_s, cov = local_moments(strip, window)
        contrast = cov.mul_(2 * unbias).add_(c2) / (var_s + var_f).mul_(unbias).add_(c2)
        luminance = (mean_s * mean_f).mul_(2).add_(c1) / (mean_s * mean_s).add_(mean_f * mean_f).add_(c1)
        whole = whole + (luminance * contrast).sum(PLANE)
        part = part + contrast.sum(PLANE)
    places = math.prod(n - len(window) + 1 for n in f.shape[-2:])
    return whole / places, part / places


def edges(x: Tensor, zero_frame: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Sobel edge strength and undirected orientation in (-pi/2, pi/2] of x (..., H, W), strip by strip."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    if zero_frame:
        planes = F.pad(planes, (1, 1, 1, 1))
    else:  # reflection needs two pixels; a single row or column is repeated
        planes = F.pad(planes, (1, 1, 0, 0), mode="reflect" if x.shape[-1] > 1 else "replicate")
        planes = F.pad(planes, (0, 0, 1, 1), mode="reflect" if x.shape[-2] > 1 else "replicate")
    for y in strips(planes.view(*x.shape[:-2], *planes.shape[-2:]), 3):
        # Sums of slices, not `separable`: whole numbers stay exact, and a gx that should be 0 does not come out 1e-14.
        smooth = (y[..., :-2, :] + y[..., 2:, :]).add_(y[..., 1:-1, :], alpha=2)
        gx = smooth[..., :-2] - smooth[..., 2:]  # leftward: a convolution's sign, as in the authors' evaluator
        step = y[..., 2:, :] - y[..., :-2, :]
        gy = (step[..., :-2] + step[..., 2:]).add_(step[..., 1:-1], alpha=2)
        angle = (gy / gx).atan_().masked_fill_(gx == 0, math.pi / 2)
        yield (gx * gx).add_(gy * gy).sqrt_(), angle


def logistic(x: Tensor, top: float, slope: float, middle: float) -> Tensor:
    """top / (1 + exp(-slope (x - middle))), in place."""
    return (x - middle).mul_(slope).sigmoid_().mul_(top)


def fmi_of_pair(x: Tensor, y: Tensor, rows: int = 4) -> Tensor:
    """FMI between planes (B, H, W) and (B, H, W) -> (B,), a few rows of windows at a time to bound memory."""
    total = x.new_zeros(len(x))
    height, width = x.shape[-2] - 2, x.shape[-1] - 2
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height) + 2)
        # MATLAB reads a window column by column
        a, b = (z[:, strip].unfold(1, 3, 1).unfold(2, 3, 1).transpose(-1, -2).reshape(len(z), -1, 9) for z in (x, y))
        total += fmi_of_windows(a, b).sum(-1)
    return total / (height * width)


def fmi_of_windows(a: Tensor, b: Tensor) -> Tensor:
    """(..., 9), (..., 9) -> (...): see `fmi`."""
    p, q = as_law(a), as_law(b)
    cdf_p, cdf_q = p.cumsum(-1), q.cumsum(-1)
    dp, dq = p - p.mean(-1, keepdim=True), q - q.mean(-1, keepdim=True)
    r = (dp * dq).sum(-1) / (dp.square().sum(-1) * dq.square().sum(-1)).sqrt()
    r = r.nan_to_num(0.0, 0.0, 0.0)[..., None, None]

    # The largest (r > 0) or smallest joint distribution function with these marginals; covariance by Hoeffding's sum.
    pair = cdf_p[..., :, None] + cdf_q[..., None, :]
    bound = torch.where(r >= 0, torch.minimum(cdf_p[..., :, None], cdf_q[..., None, :]), (pair - 1).clamp(min=0))
    independent = cdf_p[..., :, None] * cdf_q[..., None, :]
    extreme = (bound - independent).sum((-2, -1), keepdim=True)
    spreads = (spread(p) * spread(q))[..., None, None]
    mixing = (r * spreads / extreme).nan_to_num(0.0, 0.0, 0.0)

    bound = F.pad(bound, (1, 0, 1, 0)).diff(dim=-1).diff(dim=-2)
    joint = mixing * bound + (1 - mixing) * p[..., :, None] * q[..., None, :]
    # `mixing` may exceed 1 (r is not the correlation of positions), so entries may be negative: use log |p|.
    joint_entropy = -(joint * joint.abs().clamp(min=1e-300).log2()).sum((-2, -1))
    margins = entropy(p) + entropy(q)
    value = torch.where(margins > 0, 2 * (margins - joint_entropy) / margins, 1.0)
    return torch.where((a == b).all(-1), 1.0, value)


def as_law(x: Tensor) -> Tensor:
    """Windows as probability distributions: shifted to a minimum of 0 and scaled to add up to 1."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    x = torch.where(high > low, (x - low) / (high - low), 1.0)
    return x / x.sum(-1, keepdim=True)


def spread(p: Tensor) -> Tensor:
    """Standard deviation of the position 0..8 under p."""
    place = torch.arange(9, dtype=p.dtype, device=p.device)
    mean = (p * place).sum(-1, keepdim=True)
    return (p * (place - mean).square()).sum(-1).clamp(min=0).sqrt()
