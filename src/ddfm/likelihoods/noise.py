"""The noise of a source: measured before the fusion, removed by the prior itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm.likelihoods.base import SourceDenoiser

NOISE_FLOOR = 5 / 255  # what the estimate calls noise in clean images: fine texture, JPEG, quantisation (measured)


def noise_std(s: Tensor) -> Tensor:
    """Standard deviation of the white noise in each image: (B, 1, H, W) in [0, 1] -> (B, 1, 1, 1).

    Median absolute value of the finest diagonal Haar coefficients over 0.6745 (Donoho & Johnstone, 1994), per block of
    32 x 32 pixels (fewer in a smaller image) and then the lower quartile over blocks, so that texture is not taken
    for noise. Coefficients that touch the ends of the range count for nothing: there noise is clipped away.
    """
    h, w = (extent // 2 * 2 for extent in s.shape[-2:])
    a, b, c, d = s[..., :h:2, :w:2], s[..., :h:2, 1:w:2], s[..., 1:h:2, :w:2], s[..., 1:h:2, 1:w:2]
    detail = ((a - b - c + d) / 2).abs()
    mean = (a + b + c + d) / 4
    detail[(mean < 0.1) | (mean > 0.9)] = torch.nan
    size = min(16, *detail.shape[-2:])
    detail = F.pad(detail, (0, -detail.shape[-1] % size, 0, -detail.shape[-2] % size), value=torch.nan)
    blocks = F.unfold(detail, size, stride=size)  # (B, size^2, blocks)
    few = blocks.isnan().float().mean(dim=1) > 0.5
    level = blocks.nanmedian(dim=1).values / 0.6745
    level[few] = torch.nan
    return level.nanquantile(0.25, dim=1).nan_to_num(0.0).view(-1, 1, 1, 1)


def remove_noise(sources: list[Tensor], denoise: SourceDenoiser | None) -> tuple[list[Tensor], Tensor]:
    """Sources in [-1, 1] to [0, 1], the noisy ones to the prior's E[clean | noisy] (as they are without `denoise`).

    Returns them and the std of their noise beyond the floor, the largest over sources, (B, 1, 1, 1). Where a
    neighbourhood lies at the end of the range whole there is no noise to remove: black stays black.
    """
    levels = [(noise_std((s + 1) / 2).square() - NOISE_FLOOR**2).clamp_min(0).sqrt() for s in sources]
    clean = [_remove(s, level, denoise) for s, level in zip(sources, levels, strict=True)]
    return clean, torch.stack(levels).amax(dim=0)


def _remove(source: Tensor, levels: Tensor, denoise: SourceDenoiser | None) -> Tensor:
    out = (source + 1) / 2
    for k, level in enumerate(levels.flatten().tolist()):
        if level > 0 and denoise is not None:
            s = source[k : k + 1]
            clipped = (F.max_pool2d(s, 3, 1, 1) <= -1) | (F.max_pool2d(-s, 3, 1, 1) <= -1)
            out[k] = torch.where(clipped, s, denoise(s, 2 * level).clamp(-1, 1))[0] / 2 + 0.5
    return out
