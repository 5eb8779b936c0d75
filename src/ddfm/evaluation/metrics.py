"""How good is a fused image? Sixteen metrics that the field reports, one function each, in torch on CPU or GPU.

Every function takes grey images in the range 0..255, as arrays or tensors of shape (H, W) or (..., H, W) (a batch),
and returns a float64 tensor of shape () or (...). `sources` is a sequence of images shaped like the fused one, or a
tensor that stacks them; two are usual, one or more than two work where the definition extends. Arithmetic is always
float64, because variances computed as E[x^2] - E[x]^2 need it; gradients are not supported. Undefined values (a
correlation with a constant image, a window larger than the image) are NaN, as the docstrings say; there are no
warnings.

Two conventions, because published tables are not comparable without knowing which was used:

- "ddfm": the evaluator that the DDFM authors publish with their fusion papers (github.com/Zhaozixiang1228, file
  Evaluator.py of MMIF-CDDFuse): MI in nats; MI, VIF and SSIM *summed* over the sources; SSIM with data_range 2;
  PSNR against the maximum of the fused image. Numbers agree to 1e-6 (most to 1e-12).
- "standard": the textbook: averages over the sources, MI in bits, SSIM and PSNR with range 255.

Metrics that this evaluator lacks (NMI, MS-SSIM, Nabf, FMI) are the same under both.
No-reference naturalness (NIQE and similar) is left out: no maintained library offers it without torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import threshold

from ddfm.errors import InputError
from ddfm.evaluation import metric_parts as parts
from ddfm.evaluation.metric_parts import PLANE

Image = np.ndarray | Tensor
Sources = Sequence[Image] | Tensor  # a tensor: (N, ..., H, W)
Convention = Literal["ddfm", "standard"]

EVALUATOR_NAMES = ("EN", "SD", "SF", "AG", "MI", "MSE", "CC", "PSNR", "SCD", "VIF", "Qabf", "SSIM")
LOWER_IS_BETTER = frozenset({"MSE", "Nabf"})


# ---- the fused image alone ------------------------------------------------------------------------------------


def en(fused: Image) -> Tensor:
    """Entropy of the grey levels, in bits, 0 (constant) to 8: -sum p log2 p over 256 bins of the rounded image.

    Roberts, van Aardt & Ahmed 2008. Both conventions, and the authors' evaluator.
    """
    x = parts.levels(_image(fused))
    return parts.entropy(parts.histogram(x, 256)).view(x.shape[:-2])


def sd(fused: Image) -> Tensor:
    """Standard deviation of the grey levels (population, divisor H*W), 0 to 127.5.

    Rao 1997. Both conventions, and the authors' evaluator.
    """
    return _image(fused).std(dim=PLANE, correction=0)


def sf(fused: Image) -> Tensor:
    """Spatial frequency: sqrt(mean (horizontal difference)^2 + mean (vertical difference)^2), 0 to 255 sqrt 2.

    Eskicioglu & Fisher 1995. Both conventions, and the authors' evaluator (each mean is over the differences that
    exist; others divide by H*W). An image one pixel wide has no horizontal differences: that term is 0.
    """
    x = _image(fused)
    vertical, horizontal = (parts.mean_or_zero(x.diff(dim=d).square()) for d in PLANE)
    return (horizontal + vertical).sqrt()


def ag(fused: Image) -> Tensor:
    """Average gradient: mean of sqrt((gx^2 + gy^2) / 2), central differences (one-sided at the border), 0 to 255.

    Cui, Feng, Xu, Li & Chen 2015. Both conventions, and the authors' evaluator.
    """
    x = _image(fused)
    gx, gy = parts.central_difference(x, -1), parts.central_difference(x, -2)
    return (gx * gx).add_(gy * gy).div_(2).sqrt_().mean(PLANE)


# ---- information shared with the sources ----------------------------------------------------------------------


def mi(fused: Image, sources: Sources, convention: Convention = "ddfm") -> Tensor:
    """Mutual information of the grey levels of the fused image and each source (256 x 256 bins, rounded), >= 0.

    "ddfm": in nats (log base e), summed over the sources, as the authors' evaluator.
    "standard": in bits, averaged over the sources. Definition: Qu, Zhang & Yan 2002 (who sum).
    """
    f, s = _images(fused, sources)
    bits = parts.information(f, s)[0]
    return bits.sum(0) * math.log(2) if _is_ddfm(convention) else bits.mean(0)


def nmi(fused: Image, sources: Sources) -> Tensor:
    """Normalised mutual information: mean over the sources of 2 I(f; s) / (H(f) + H(s)), 0 to 1, no log base.

    Hossny, Nahavandi & Creighton 2008 (who sum over the sources: twice this for two). Each term is scikit-learn's
    `normalized_mutual_info_score`; 1 for two constant images.
    """
    information, entropies = parts.information(*_images(fused, sources))
    return torch.where(entropies > 0, 2 * information / entropies, 1.0).mean(0)


def fmi(fused: Image, sources: Sources, feature: Literal["pixel", "gradient"] = "pixel") -> Tensor:
    """Feature mutual information over sliding 3 x 3 windows, mean over windows and sources, 0 to 1.

    `feature` "pixel" is the image itself, "gradient" its horizontal central difference (what MATLAB's one-output
    `gradient` gives). Haghighat, Aghagolzadeh & Seyedarabi 2011, as in their published fmi.m: a window, minus its
    minimum and divided by its sum, is a probability distribution over its nine positions, column by column; the joint
    distribution mixes the independent one with the Frechet-Hoeffding bound so that its correlation is that of the
    windows; a window's value is 2 I / (H + H), and 1 where both windows are equal. NaN for an image smaller than 3 x 3.
    """
    f, s = _images(fused, sources)
    if feature not in ("pixel", "gradient"):
        raise InputError(f"The feature of FMI must be 'pixel' or 'gradient', not {feature!r}.")
    if min(f.shape[-2:]) < 3:
        return f.new_full(f.shape[:-2], math.nan)
    if feature == "gradient":
        f, s = parts.central_difference(f, -1), parts.central_difference(s, -1)
    s = s.reshape(len(s), -1, *s.shape[-2:])
    per_source = torch.stack([parts.fmi_of_pair(f.reshape(-1, *f.shape[-2:]), source) for source in s])
    return per_source.mean(0).view(f.shape[:-2])


# ---- difference and correlation -------------------------------------------------------------------------------


def mse(fused: Image, sources: Sources) -> Tensor:
    """Mean squared error, averaged over the sources, 0 to 65025; lower is better. Both conventions."""
    f, s = _images(fused, sources)
    return (s - f).square().mean(PLANE).mean(0)


def psnr(fused: Image, sources: Sources, convention: Convention = "ddfm") -> Tensor:
    """Peak signal-to-noise ratio 10 log10(peak^2 / mse), in dB, of the MSE averaged over the sources.

    "ddfm": peak is the maximum of the fused image. "standard": peak is 255; with one source it is scikit-image's.
    Infinite where the fused image equals every source; "ddfm" gives -inf (or NaN, if equal) for an all-black one.
    """
    f, _ = _images(fused, sources)
    peak = f.amax(PLANE) if _is_ddfm(convention) else f.new_tensor(255.0)
    return 10 * torch.log10(peak.square() / mse(fused, sources))


def cc(fused: Image, sources: Sources) -> Tensor:
    """Pearson correlation with each source, averaged, -1 to 1. Both conventions, and the authors' evaluator.

    NaN where an image is constant.
    """
    f, s = _images(fused, sources)
    return parts.correlation(f, s).mean(0)


def scd(fused: Image, sources: Sources) -> Tensor:
    """Sum of the correlations of differences, -N to N: for sources a, b, r(f - b, a) + r(f - a, b).

    Aslantas & Bendes 2015. Both conventions, and the authors' evaluator; the sum is the definition, so it is not
    averaged. With more than two sources the difference is from the mean of the others. NaN where a difference or a
    source is constant, as when the fused image equals a source.
    """
    f, s = _images(fused, sources)
    if len(s) < 2:
        raise InputError("SCD compares the differences from the other sources: it needs at least two sources.")
    others = (s.sum(0) - s) / (len(s) - 1)
    return parts.correlation(f - others, s).sum(0)


# ---- structure ------------------------------------------------------------------------------------------------


def ssim(fused: Image, sources: Sources, convention: Convention = "ddfm") -> Tensor:
    """Structural similarity with each source. Wang, Bovik, Sheikh & Simoncelli 2004.

    "ddfm": sum over the sources, range -N to N, of scikit-image 0.19's `structural_similarity` of float images: 7 x 7
    uniform window, sample covariance, data_range 2 (that version's default for floats, whatever their true range).
    "standard": mean, range -1 to 1, with Gaussian windows (11 x 11, sigma 1.5), population covariance, data_range 255:
    scikit-image's with `gaussian_weights=True`. Averaged over the windows inside the image, as in Wang's code
    (torchmetrics also includes those of a mirrored border); NaN for an image smaller than the window.
    """
    f, s = _images(fused, sources)
    if _is_ddfm(convention):
        return parts.ssim_terms(f, s, torch.full((7,), 1 / 7, dtype=torch.float64), data_range=2.0, unbias=49 / 48)[
            0
        ].sum(0)
    return parts.ssim_terms(f, s, parts.gaussian(11, 1.5), data_range=255.0)[0].mean(0)


def ms_ssim(fused: Image, sources: Sources) -> Tensor:
    """Multi-scale structural similarity, averaged over the sources, 0 to 1.

    Wang, Simoncelli & Bovik 2003: five scales by 2 x 2 averages, 11 x 11 Gaussian windows (sigma 1.5), range 255;
    negative terms are clipped to 0. Windows inside the image only (torchmetrics mirrors the border at the coarsest
    scale). NaN where a side has fewer than 176 pixels.
    """
    f, s = _images(fused, sources)
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    value = s.new_ones(s.shape[:-2])
    for scale, weight in enumerate(weights):
        similarity, contrast = parts.ssim_terms(f, s, parts.gaussian(11, 1.5), data_range=255.0)
        term = similarity if scale == len(weights) - 1 else contrast
        value = value * term.clamp(min=0) ** weight
        f, s = parts.halve(f), parts.halve(s)
    return value.mean(0)


def vif(fused: Image, sources: Sources, convention: Convention = "ddfm") -> Tensor:
    """Visual information fidelity in the pixel domain of the fused image, each source being a reference, >= 0.

    Sheikh & Bovik 2006, their vifp_mscale.m: four scales with Gaussian windows of 17, 9, 5, 3 pixels (sigma a
    fifth of that), noise variance 2, logs summed over all positions and scales (their base cancels). 1 for the source
    itself and for a constant reference (as the DDFM authors' evaluator defines 0 / 0); it may exceed 1 where the fused
    image has the reference's structure with more contrast. "ddfm": summed over the sources; "standard": averaged.
    NaN where a side has fewer than 41 pixels.
    """
    f, s = _images(fused, sources)
    if min(f.shape[-2:]) < 41:
        return f.new_full(f.shape[:-2], math.nan)
    noise, eps = 2.0, 1e-10
    kept = total = s.new_zeros(s.shape[:-2])
    x = torch.cat([f[None], s])
    for size in (17, 9, 5, 3):
        window = parts.gaussian(size, size / 5)
        if size < 17:
            x = parts.separable(x, window, window)[..., ::2, ::2].contiguous()
        for strip in parts.strips(x, size):
            _, _, var_f, var_s, cov = parts.local_moments(strip, window)
            # f = gain * s + noise of variance `lost`; where s is flat, or f opposes it, nothing of s is in f.
            var_s = threshold(var_s, eps, 0.0)
            gain = cov.clamp_(min=0) / (var_s + eps)
            lost = (var_f - gain * cov).clamp_(min=eps)
            kept = kept + (gain * gain).mul_(var_s).div_(lost.add_(noise)).add_(1).log_().sum(PLANE)
            total = total + (var_s / noise).add_(1).log_().sum(PLANE)
    per_source = torch.where(total > 0, kept / total, 1.0)
    return per_source.sum(0) if _is_ddfm(convention) else per_source.mean(0)


def qabf(fused: Image, sources: Sources, convention: Convention = "ddfm") -> Tensor:
    """Edge information carried from the sources to the fused image, 0 to 1: sum(Q g) / sum(g), g the source's edges.

    Xydeas & Petrovic 2000, Sobel edges; Q is a logistic function of the relative edge strength (.9994, -15, .5) times
    one of the relative orientation (.9879, -22, .8). NaN where no source has an edge.
    "ddfm": as the authors' evaluator, with three quirks: the image is padded with zeros (its frame is an edge); equal
    strengths g give the ratio g, not 1; orientations of -89 and 89 degrees are far apart, not close.
    "standard": reflected border, ratio 1 for equal strengths, orientations modulo 180 degrees.
    """
    f, s = _images(fused, sources)
    ddfm = _is_ddfm(convention)
    kept = total = f.new_zeros(f.shape[:-2])
    for g, angle in parts.edges(torch.cat([f[None], s]), zero_frame=ddfm):
        g_f, g_s = g[:1], g[1:]
        strength = torch.minimum(g_f, g_s) / torch.maximum(g_f, g_s)
        strength = torch.where(g_f == g_s, g_f if ddfm else 1.0, strength)
        parallel = 1 - (angle[1:] - angle[:1]).abs_().div_(math.pi / 2)
        if not ddfm:
            parallel = parallel.abs_()
        quality = parts.logistic(strength, 0.9994, 15, 0.5).mul_(parts.logistic(parallel, 0.9879, 22, 0.8))
        kept = kept + quality.mul_(g_s).sum(PLANE).sum(0)
        total = total + g_s.sum(PLANE).sum(0)
    return kept / total


def nabf(fused: Image, sources: Sources) -> Tensor:
    """Edges in the fused image that no source has (artifacts), 0 to 1; lower is better.

    Petrovic & Xydeas 2005 as modified by Shreyamsha Kumar 2013, with the constants of his published code: Sobel / 8
    with reflected border, weights g^1.5 where g >= 2 and 0.001 elsewhere, logistics (.9999, 19, .5), (.9995, 22, .5),
    square root of their product. A pixel counts where the fused edge is stronger than every source's.
    """
    f, s = _images(fused, sources)
    excess = total = f.new_zeros(f.shape[:-2])
    for g, angle in parts.edges(torch.cat([f[None], s]), zero_frame=False):
        g_f, g_s = g[:1] / 8, g[1:] / 8
        strength = (torch.minimum(g_f, g_s) / torch.maximum(g_f, g_s)).nan_to_num(0.0)
        angle = angle.masked_fill(g == 0, 0.0)  # where there is no edge, his arctan is 0
        parallel = (1 - (angle[1:] - angle[:1]).abs() / (math.pi / 2)).abs()
        kept = parts.logistic(strength, 0.9999, 19, 0.5) * parts.logistic(parallel, 0.9995, 22, 0.5)
        weight = torch.where(g_s >= 2, g_s**1.5, 0.001)
        artifact = (g_f > g_s).all(0, keepdim=True)
        excess = excess + (artifact * (1 - kept.sqrt()) * weight).sum(PLANE).sum(0)
        total = total + weight.sum(PLANE).sum(0)
    return excess / total


# ---- all at once ----------------------------------------------------------------------------------------------

METRICS: dict[str, Callable[[Tensor, Tensor, Convention], Tensor]] = {
    "EN": lambda f, s, c: en(f),
    "SD": lambda f, s, c: sd(f),
    "SF": lambda f, s, c: sf(f),
    "AG": lambda f, s, c: ag(f),
    "MI": lambda f, s, c: mi(f, s, c),
    "NMI": lambda f, s, c: nmi(f, s),
    "FMI": lambda f, s, c: fmi(f, s),
    "FMI_gradient": lambda f, s, c: fmi(f, s, "gradient"),
    "MSE": lambda f, s, c: mse(f, s),
    "CC": lambda f, s, c: cc(f, s),
    "PSNR": lambda f, s, c: psnr(f, s, c),
    "SCD": lambda f, s, c: scd(f, s),
    "VIF": lambda f, s, c: vif(f, s, c),
    "Qabf": lambda f, s, c: qabf(f, s, c),
    "Nabf": lambda f, s, c: nabf(f, s),
    "SSIM": lambda f, s, c: ssim(f, s, c),
    "MS-SSIM": lambda f, s, c: ms_ssim(f, s),
}


def fusion_metrics(
    fused: Image, sources: Sources, convention: Convention = "ddfm", names: Sequence[str] | None = None
) -> dict[str, float]:
    """Measure one fused image (H, W) against two or more sources (H, W), all grey, 0..255.

    `names` selects from METRICS; None means the twelve of the authors' evaluator (EVALUATOR_NAMES). "ddfm" rounds the
    images to whole grey levels first, because that evaluator only reads 8-bit files; "standard" rounds for histograms
    only. Raises InputError for fewer than two sources, shapes that differ, unknown names or a value that is not finite.
    """
    f, s = _images(fused, sources)
    if f.dim() != 2 or len(s) < 2:
        raise InputError(f"Expected one (H, W) image and two or more sources, got {tuple(f.shape)} and {len(s)}.")
    chosen = check_names(names)
    if _is_ddfm(convention):
        f, s = parts.levels(f), parts.levels(s)
    return {name: float(METRICS[name](f, s, convention)) for name in chosen}


def check_names(names: Sequence[str] | None) -> list[str]:
    """The requested metric names (None: the evaluator's twelve), in any case; InputError for an unknown one."""
    known = {name.lower(): name for name in METRICS}
    chosen = list(EVALUATOR_NAMES if names is None else names)
    unknown = [name for name in chosen if name.lower() not in known]
    if unknown:
        raise InputError(f"Unknown metric {', '.join(unknown)}; there are {', '.join(METRICS)}.")
    return [known[name.lower()] for name in chosen]


# ---- input ----------------------------------------------------------------------------------------------------


def _image(image: Image) -> Tensor:
    """Any grey image or stack of them as finite float64 (..., H, W), on its own device."""
    x = torch.as_tensor(image).detach()
    if x.device.type == "mps":  # no float64 there
        x = x.cpu()
    x = x.double()
    if x.dim() < 2 or x.numel() == 0:
        raise InputError(f"Expected a grey image of shape (H, W), got {tuple(x.shape)}.")
    if not math.isfinite(x.sum()):  # one pass; a sum of finite grey levels cannot overflow
        raise InputError("The image has a value that is not finite (NaN or infinity).")
    return x


def _images(fused: Image, sources: Sources) -> tuple[Tensor, Tensor]:
    """The fused image (..., H, W) and the sources stacked to (N, ..., H, W); a tensor is taken as already stacked."""
    f = _image(fused)
    if len(sources) == 0:
        raise InputError("Expected at least one source image, got none.")
    stack = sources if isinstance(sources, Tensor) else [_image(source).to(f.device) for source in sources]
    for source in stack:
        if source.shape != f.shape:
            raise InputError(f"The fused image is {tuple(f.shape)} but a source is {tuple(source.shape)}.")
    return f, _image(stack if isinstance(stack, Tensor) else torch.stack(stack)).to(f.device)


def _is_ddfm(convention: Convention) -> bool:
    if convention not in get_args(Convention):
        raise InputError(f"The convention must be 'ddfm' or 'standard', not {convention!r}.")
    return convention == "ddfm"
