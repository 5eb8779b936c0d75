"""The noise of a source: measured before the fusion; stripes removed as such, white noise by the prior itself."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.stripes import Stripes, medians, stripes_of, without_columns, without_rows

NOISE_FLOOR = 2.5 / 255  # what the estimate calls noise in clean images: quantisation, JPEG (measured)
SCALES = (2, 4, 8)  # pixels a side of a Haar coefficient
FEWEST = 200  # coefficients of the middle scale that tell how noise goes with the light
LEAST_OFFSET = 0.01  # what is darker still has the noise of this
BLOCK = 32  # side in pixels
LEAST_MARGIN = 0.02  # at the ends of the range, where noise is clipped
AGAIN = 0.25  # share of the noise that is put back for a second pass
FAINTEST = 1.5 / 255  # std of what a prior's schedule can still tell from none
STEEPEST = 8.0  # most by which structure grows from scale to scale
QUIETEST = 0.35  # share of the blocks that the noise is measured in
CHANCE = 0.982  # std in them of noise alone, where it is 1 in all: the quieter ones are so by chance


def noise_std(s: Tensor) -> Tensor:
    """Standard deviation of the white noise in each image: (B, 1, H, W) in [0, 1] -> (B, 1, 1, 1).

    Diagonal Haar coefficients at the three finest scales (Donoho & Johnstone, 1994), in the quieter third of the
    blocks. White noise has the same energy in all; the structure of images r times as much at each coarser scale,
    where r is 4 if their power falls with the square of the frequency, and more if they are smoother. So energies are
    noise^2 + a, + a r, + a r^2, and fine texture is not taken for noise nor noise for texture; but a texture of grass
    fits r = 8 and noise as well: at most twice what r = 4 gives is believed. Pixels near the ends of the range count
    for nothing: there noise is clipped away.
    """
    return torch.stack([_noise_std(image) for image in s]).view(-1, 1, 1, 1)


def _noise_std(images: Tensor) -> Tensor:
    """The one of all images (S, H, W)."""
    std = _variance_within(images, LEAST_MARGIN, 1 - LEAST_MARGIN).sqrt()
    margin = min(1.5 * float(std), 0.12)
    return std if margin <= LEAST_MARGIN else _variance_within(images, margin, 1 - margin).sqrt()


def _variance_within(images: Tensor, low: float, high: float, block: int = BLOCK) -> Tensor:
    """Its variance where the local mean is in [low, high], in the quieter blocks there; 0 where there are none."""
    details = []
    for scale, detail in zip(SCALES, _details(images, low, high), strict=True):
        size = min(block // scale, *detail.shape[-2:])
        details.append(F.unfold(detail[:, None], size, stride=size).mT)  # (S, blocks, size^2)
    blocks = min(detail.shape[1] for detail in details)
    details = [detail[:, :blocks].flatten(0, 1) for detail in details]
    seen = torch.stack([detail.isnan().float().mean(dim=1) < 0.5 for detail in details]).all(dim=0)
    if not seen.any():
        return images.new_zeros(())
    details = [detail[seen] for detail in details]
    energy = torch.stack([medians(detail).square() for detail in details[:2]]).sum(dim=0)
    quiet = energy <= energy.quantile(QUIETEST)
    return _variance([detail[quiet] for detail in details]) / CHANCE**2


def _details(images: Tensor, low: float, high: float) -> Iterator[Tensor]:
    """Absolute diagonal coefficients at each scale, NaN where the local mean is not in [low, high]."""
    smaller = images
    for scale in SCALES:
        detail, smaller = _haar(smaller)
        mean = smaller / scale
        yield detail.abs().masked_fill((mean < low) | (mean > high), torch.nan)


def _variance(details: list[Tensor]) -> Tensor:
    """The noise in absolute coefficients at the three scales, of which NaN are left out."""
    fine, middle, coarse = (_typical(detail).square() for detail in details)
    r = torch.nan_to_num((coarse - middle) / (middle - fine).clamp_min(1e-9), nan=4.0).clamp(4, STEEPEST)
    return torch.minimum((r * fine - middle) / (r - 1), 4 / 3 * (4 * fine - middle)).clamp_min(0)


def _typical(detail: Tensor) -> Tensor:
    """Their standard deviation, by the mean of the middle third of the absolute values: 0.6825 of it for a Gaussian.

    Their median alone is a multiple of 0.5 / 255 in an 8-bit image, which is a step of 15 % where the noise is 5 / 255.
    """
    values = np.sort(detail.cpu().numpy(), axis=None)  # faster than PyTorch's on the CPU
    known = int(np.searchsorted(values, np.nan))
    third = known // 3
    return detail.new_tensor(values[third : known - third].mean() / 0.6825)


def photon_offset(images: Tensor) -> float | None:
    """kappa of noise whose variance grows with the light, a (s + kappa), from (..., H, W); None if it does not.

    By the noise in the darker and in the brighter third of the levels. A fifth more in the brighter is chance, and so
    is a third of what the light's own noise would have more there (docs/likelihood.md).
    """
    images = images.view(-1, *images.shape[-2:])
    mean = (_haar(_haar(images)[1])[1] / SCALES[1]).flatten()  # at the middle scale
    mean = mean[(mean > 0.03) & (mean < 0.88)]  # elsewhere noise is clipped
    if len(mean) < FEWEST:
        return None
    ends = mean.quantile(mean.new_tensor([0.0, 0.35, 0.65, 1.0])).tolist()
    thirds = ends[:2], ends[2:]
    dark, bright = (mean[(mean >= low) & (mean <= high)].mean().item() for low, high in thirds)
    less, more = (_variance_within(images, low, high, BLOCK // 2).item() for low, high in thirds)
    if not 0 < less * max(1.2, 1 + (bright / dark - 1) / 3) < more:
        return None
    return max((dark * more - bright * less) / (less - more), LEAST_OFFSET)


def _haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal and low-pass coefficients of one orthonormal Haar step, (..., H // 2, W // 2) each."""
    h, w = (extent // 2 * 2 for extent in x.shape[-2:])
    a, b, c, d = x[..., :h:2, :w:2], x[..., :h:2, 1:w:2], x[..., 1:h:2, :w:2], x[..., 1:h:2, 1:w:2]
    return (a - b - c + d) / 2, (a + b + c + d) / 2


@dataclass(frozen=True)
class Noise:
    """What is to be removed from an image, or from every slice of a volume.

    columns, rows: the stripes. level: std of the noise, 0 at the floor and whole from 1.6 times the floor on. offset,
    root_level: kappa of noise that grows with the light, and the std that sqrt(s + kappa) has then, in [0, 1] (see
    `_roots`); None and 0 for noise that does not.
    """

    columns: Stripes
    rows: Stripes
    level: float
    offset: float | None
    root_level: float


def measure_noise(images: Tensor) -> Noise:
    """That of images of one sensor, (S, H, W) in [0, 1], by what they have in common."""
    columns = stripes_of(images)
    images = without_columns(images, columns)
    rows = stripes_of(images.mT)
    images = without_rows(images, rows)
    std = _noise_std(images)
    level = float(std * ((std / NOISE_FLOOR - 1) / 0.6).clamp(0, 1))
    offset = photon_offset(images) if level > 0 else None
    return Noise(columns, rows, level, offset, 0.0 if offset is None else _noise_std(_roots(images, offset)).item())


def remove_noise(
    sources: list[Tensor], denoise: SourceDenoiser | None, noises: Sequence[Noise] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Sources in [-1, 1] to [0, 1], without stripes, the noisy ones the prior's E[clean | noisy]; as is, no `denoise`.

    noises: of each source, where they were measured elsewhere. Returns the sources and the std of their noise, (B, 1,
    1, 1) each. Where a neighbourhood lies at the end of the range whole there is no noise to remove: black stays black.
    """
    cleaned, levels = [], []
    for k, source in enumerate(sources):
        images = (source + 1) / 2
        found = [measure_noise(image) if noises is None else noises[k] for image in images]
        levels.append(images.new_tensor([noise.level for noise in found]).view(-1, 1, 1, 1))
        if denoise is not None:
            images = torch.stack([_remove(s, noise, denoise) for s, noise in zip(images, found, strict=True)])
        cleaned.append(images)
    return cleaned, levels


def _remove(s: Tensor, noise: Noise, denoise: SourceDenoiser) -> Tensor:
    """An image (1, H, W) in [0, 1] without it."""
    s = without_rows(without_columns(s, noise.columns), noise.rows)
    if noise.level == 0 or s.min() == s.max():  # a slice that shows nothing
        return s
    clean = _twice(s[None], noise.level, denoise) if noise.offset is None else _by_roots(s[None], noise, denoise)
    clipped = (F.max_pool2d(s, 3, 1, 1) <= 0) | (F.max_pool2d(-s, 3, 1, 1) <= -1)
    return torch.where(clipped, s, clean[0])


def _twice(s: Tensor, level: float, denoise: SourceDenoiser) -> Tensor:
    """s (1, 1, H, W) in [0, 1] without noise of this std: the second time turned round, with a share of it put back.

    Once only where that share is fainter than FAINTEST.
    """
    y = 2 * s - 1
    x = denoise(y, 2 * level)
    if AGAIN * level >= FAINTEST:
        x = denoise((x + AGAIN * (y - x)).flip(-2, -1), 2 * AGAIN * level).flip(-2, -1)
    return not_clipped((x.clamp(-1, 1) + 1) / 2, level)


def not_clipped(mean: Tensor, level: float) -> Tensor:
    """Means in [0, 1] of what noise of this std was added to and cut off at 0 and 1: what they would be without cut.

    Near black the darker half of the noise is gone, and the mean of x is x Phi(x / level) + level phi(x / level), which
    is 0.4 level at 0 (Foi, 2009); near white likewise. Inverted by Newton's method, within [0, 1].
    """
    return 1 - _above_black(1 - _above_black(mean, level), level)


def _above_black(mean: Tensor, level: float) -> Tensor:
    x = mean
    for _ in range(4):  # then right to 1e-6
        z = x / level
        share = torch.special.ndtr(z)  # of the noise that is not cut off; half or more
        raised = x * share + level / math.sqrt(2 * math.pi) * z.square().mul_(-0.5).exp_()
        x = (x - (raised - mean) / share).clamp_min_(0)
    return x


def _roots(s: Tensor, offset: float) -> Tensor:
    """sqrt(s + offset) of s in [0, 1], brought to [0, 1]: noise of variance a (s + offset) has that of a / 4 in the
    root everywhere (Anscombe, 1948)."""
    low = math.sqrt(offset)
    return (s + offset).sqrt().sub_(low).div_(math.sqrt(1 + offset) - low)


def _by_roots(s: Tensor, noise: Noise, denoise: SourceDenoiser) -> Tensor:
    """`_twice` for noise that grows with the light. Back by squaring: E[sqrt]^2 is the mean less the variance."""
    assert noise.offset is not None
    if noise.root_level == 0:
        return s
    low = math.sqrt(noise.offset)
    width = math.sqrt(1 + noise.offset) - low
    clean = _twice(_roots(s, noise.offset), noise.root_level, denoise) * width + low
    return clean.square_().add_((noise.root_level * width) ** 2 - noise.offset).clamp_(0, 1)


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
