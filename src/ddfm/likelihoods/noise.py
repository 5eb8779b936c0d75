"""The noise of a source: measured before the fusion; stripes removed as such, white noise by the prior itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.stripes import remove_stripes

NOISE_FLOOR = 2.5 / 255  # what the estimate calls noise in clean images: quantisation, JPEG (measured)
BLOCK = 32  # side in pixels
AGAIN = 0.25  # share of the noise that is put back for a second pass
FAINTEST = 1.5 / 255  # std of what a prior's schedule can still tell from none
STEEPEST = 8.0  # most by which structure grows from scale to scale
QUIETEST = 0.5  # share of the blocks that the noise is measured in


def noise_std(s: Tensor) -> Tensor:
    """Standard deviation of the white noise in each image: (B, 1, H, W) in [0, 1] -> (B, 1, 1, 1).

    Medians of the absolute diagonal Haar coefficients over 0.6745 (Donoho & Johnstone, 1994) at the three finest
    scales, in the quieter blocks. White noise has the same energy in all; the structure of images r times as much at
    each coarser scale, where r is 4 if their power falls with the square of the frequency, and more if they are
    smoother. So energies are noise^2 + a, + a r, + a r^2, and fine texture is not taken for noise nor noise for
    texture; but a texture of grass fits r = 8 and noise as well: at most twice what r = 4 gives is believed. Pixels
    near the ends of the range count for nothing: there noise is clipped away.
    """
    return torch.stack([_noise_std(image, _noise_std(image, 0.02)) for image in s[:, 0]]).view(-1, 1, 1, 1)


def _noise_std(image: Tensor, sigma: Tensor | float) -> Tensor:
    """That of one image (H, W), without what lies within some `sigma` of the ends of the range."""
    margin = min(max(1.5 * float(sigma), 0.02), 0.12)
    low, details = image, []
    for scale in (2, 4, 8):
        detail, low = _haar(low)
        mean = low / scale
        detail = detail.abs().masked_fill((mean < margin) | (mean > 1 - margin), torch.nan)[None, None]
        size = min(BLOCK // scale, *detail.shape[-2:])
        details.append(F.unfold(detail, size, stride=size)[0].T)  # (blocks, size^2)
    blocks = min(len(detail) for detail in details)
    details = [detail[:blocks] for detail in details]
    seen = torch.stack([detail.isnan().float().mean(dim=1) < 0.5 for detail in details[:2]]).all(dim=0)
    if not seen.any():
        return image.new_zeros(())
    details = [detail[seen] for detail in details]
    energy = torch.stack([detail.nanmedian(dim=1).values.square() for detail in details[:2]]).sum(dim=0)
    quiet = energy <= energy.quantile(QUIETEST)
    fine, middle, coarse = ((detail[quiet].nanmedian() / 0.6745).square() for detail in details)
    r = torch.nan_to_num((coarse - middle) / (middle - fine).clamp_min(1e-9), nan=4.0).clamp(4, STEEPEST)
    return torch.minimum((r * fine - middle) / (r - 1), 4 / 3 * (4 * fine - middle)).clamp_min(0).sqrt()


def _haar(image: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal and low-pass coefficients of one orthonormal Haar step, (H // 2, W // 2) each."""
    h, w = (extent // 2 * 2 for extent in image.shape)
    a, b, c, d = image[:h:2, :w:2], image[:h:2, 1:w:2], image[1:h:2, :w:2], image[1:h:2, 1:w:2]
    return (a - b - c + d) / 2, (a + b + c + d) / 2


def remove_noise(sources: list[Tensor], denoise: SourceDenoiser | None) -> tuple[list[Tensor], list[Tensor]]:
    """Sources in [-1, 1] to [0, 1], without stripes, the noisy ones the prior's E[clean | noisy]; as is, no `denoise`.

    Returns them and the std of their noise, (B, 1, 1, 1) each, 0 at the floor and whole from 1.6 times the floor on.
    Where a neighbourhood lies at the end of the range whole there is no noise to remove: black stays black.
    """
    if denoise is not None:
        sources = [remove_stripes((s + 1) / 2) * 2 - 1 for s in sources]
    levels = [noise_std((s + 1) / 2) for s in sources]
    levels = [level * ((level / NOISE_FLOOR - 1) / 0.6).clamp(0, 1) for level in levels]
    return [_remove(s, level, denoise) for s, level in zip(sources, levels, strict=True)], levels


def _remove(source: Tensor, levels: Tensor, denoise: SourceDenoiser | None) -> Tensor:
    out = (source + 1) / 2
    for k, level in enumerate(levels.flatten().tolist()):
        if level > 0 and denoise is not None:
            s = source[k : k + 1]
            clipped = (F.max_pool2d(s, 3, 1, 1) <= -1) | (F.max_pool2d(-s, 3, 1, 1) <= -1)
            once = denoise(s, 2 * level)
            share = min(max(AGAIN, FAINTEST / level), 1.0)
            again = denoise((once + share * (s - once)).flip(-2, -1), 2 * share * level).flip(-2, -1)
            out[k] = torch.where(clipped, s, again.clamp(-1, 1))[0] / 2 + 0.5
    return out


def remaining_noise(f: Tensor, levels: Tensor, denoise: SourceDenoiser) -> Tensor:
    """What is still noise in a fusion of denoised sources, both (B, 1, H, W) in [0, 1]: 0 where `levels` are.

    Half of what the prior takes out of it at AGAIN times their noise: as much is the detail that it does not know.
    """
    out = torch.zeros_like(f)
    for k, level in enumerate(levels.flatten().tolist()):
        if level > 0:
            image = f[k : k + 1]
            out[k] = (image - (denoise(2 * image - 1, 2 * AGAIN * level) + 1) / 2)[0] / 2
    return out
