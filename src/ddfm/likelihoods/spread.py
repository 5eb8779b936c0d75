"""How far the result may be from the fusion of clean sources: the uncertainty left by denoising."""

import functools

import torch
from torch import Tensor

from ddfm.likelihoods.operators import gradient, smooth
from ddfm.likelihoods.target import DIM, FLAT

ERROR, POWER = 0.45, 0.39  # fitted to the embedded prior's error on ten road pairs at 10 and 25 of 255
FLATTEST = 0.06  # local gradient, relative to the noise, below which the error falls no further


def error_variance(denoised: Tensor, levels: Tensor) -> Tensor:
    """Variance of a source's denoising error at each pixel, (B, 1, H, W), from the denoised source and the noise std.

    The prior errs where noise can hide structure: err = ERROR sigma (G / sigma)^POWER, with G the local root mean
    square gradient of the denoised image. 0 where `levels`, (B, 1, 1, 1), is 0.
    """
    dx, dy = gradient(denoised)
    structure = smooth(dx.square().add_(dy.square()), 1.5).sqrt_() / levels.clamp_min(1e-6)
    return structure.clamp_min_(FLATTEST).pow_(2 * POWER).mul_((ERROR * levels).square())


def fused_variance(sources: list[Tensor], variances: list[Tensor], b: Tensor, scale: float = 10.0) -> Tensor:
    """Variance of b, (B, 1, H, W), by the delta method on `fusion_target`: sum_k w_k^2 (dy/ds_k / dy/db)^2 var_k.

    The errors of different sources are taken as independent, and n_k as 1.
    """
    shown = [smooth((s - smooth(s, scale)).square_(), scale).add_(FLAT) for s in sources]
    shown = [e.add_(smooth(v, scale)) for e, v in zip(shown, variances, strict=True)]
    strongest = functools.reduce(torch.maximum, shown)
    total = torch.zeros_like(b)
    for s, e, v in zip(sources, shown, variances, strict=True):
        slope = ((1 + DIM - b) / (1 + DIM - s)).clamp_(0, 2)
        total += e.div_(strongest).mul_(slope.square_()).mul_(v)
    return total
