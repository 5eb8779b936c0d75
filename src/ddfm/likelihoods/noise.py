"""The noise of a source, measured before fusion: stripes are removed as offsets, white noise by the prior itself."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.stripes import Stripes, medians, stripes_of, without_columns, without_rows

NOISE_FLOOR = 2.5 / 255  # what the estimate reports for clean images: quantisation, JPEG (measured)
SCALES = (2, 4, 8)  # pixels a side of a Haar coefficient
FEWEST = 200  # coefficients at the middle scale needed to test for photon noise
LEAST_OFFSET = 0.01  # smallest kappa
BLOCK = 32  # pixels a side
LEAST_MARGIN = 0.02  # at the ends of the range, where noise is clipped
AGAIN = 0.25  # fraction of the noise that is put back for the second pass
FAINTEST = 1.5 / 255  # std of the weakest noise that a prior's schedule can tell from none
STEEPEST = 8.0  # largest growth of structure from scale to scale
QUIETEST = 0.35  # fraction of the blocks in which the noise is measured
CHANCE = 0.982  # measured std of pure unit noise in these blocks, which are the quieter ones by chance


def noise_std(s: Tensor) -> Tensor:
    """Standard deviation of the white noise in each image: (B, 1, H, W) in [0, 1] -> (B, 1, 1, 1).

    Uses diagonal Haar coefficients at the three finest scales (Donoho & Johnstone, 1994), in the quieter third of the
    blocks. White noise has the same energy at all scales; image structure has r times as much at each coarser scale,
    where r is 4 if its power falls with the square of the frequency, and more if it is smoother. So the energies are
    noise^2 + a, + a r, + a r^2, which separates noise from fine texture. But grass, for example, fits r = 8 with noise
    equally well, so the estimate is limited to twice that for r = 4. Pixels near the ends of the range are ignored,
    because noise is clipped there.
    """
    return torch.stack([_noise_std(image) for image in s]).view(-1, 1, 1, 1)


def _noise_std(images: Tensor) -> Tensor:
    """The common noise std of all images (S, H, W)."""
    std = _variance_within(images, LEAST_MARGIN, 1 - LEAST_MARGIN).sqrt()
    margin = min(1.5 * float(std), 0.12)
    return std if margin <= LEAST_MARGIN else _variance_within(images, margin, 1 - margin).sqrt()


def _variance_within(images: Tensor, low: float, high: float, block: int = BLOCK) -> Tensor:
    """The noise variance in the quieter blocks with the local mean in [low, high]; 0 if there are none."""
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
    """Absolute diagonal coefficients at each scale; NaN where the local mean is outside [low, high]."""
    smaller = images
    for scale in SCALES:
        detail, smaller = _haar(smaller)
        mean = smaller / scale
        yield detail.abs().masked_fill((mean < low) | (mean > high), torch.nan)


def _variance(details: list[Tensor]) -> Tensor:
    """The noise variance from absolute coefficients at the three scales, ignoring NaN."""
    fine, middle, coarse = (_typical(detail).square() for detail in details)
    r = torch.nan_to_num((coarse - middle) / (middle - fine).clamp_min(1e-9), nan=4.0).clamp(4, STEEPEST)
    return torch.minimum((r * fine - middle) / (r - 1), 4 / 3 * (4 * fine - middle)).clamp_min(0)


def _typical(detail: Tensor) -> Tensor:
    """Standard deviation, from the mean of the middle third of the absolute values: 0.6825 of it for a Gaussian.

    The median alone is a multiple of 0.5 / 255 in an 8-bit image: steps of 15 % for noise of 5 / 255.
    """
    values = np.sort(detail.cpu().numpy(), axis=None)  # faster than PyTorch's on the CPU
    known = int(np.searchsorted(values, np.nan))
    third = known // 3
    return detail.new_tensor(values[third : known - third].mean() / 0.6825)


def photon_offset(images: Tensor) -> float | None:
    """kappa of noise whose variance grows with the light, a (s + kappa), from (..., H, W); None if it does not.

    Compares the noise in the darker and in the brighter third of the levels. Up to a fifth more in the brighter third
    counts as chance, and so does up to a third of the excess that pure photon noise would have (docs/likelihood.md).
    """
    images = images.view(-1, *images.shape[-2:])
    mean = (_haar(_haar(images)[1])[1] / SCALES[1]).flatten()  # at the middle scale
    mean = mean[(mean > 0.03) & (mean < 0.88)]  # outside, noise is clipped
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
    """The noise to remove from an image, or from every slice of a volume.

    columns, rows: the stripes. level: std of the noise, faded in from 0 at the floor to its full value at 1.6 times the
    floor. offset, root_level: kappa of noise that grows with the light, and the noise std of sqrt(s + kappa) scaled to
    [0, 1] (see `_roots`); None and 0 for other noise.
    """

    columns: Stripes
    rows: Stripes
    level: float
    offset: float | None
    root_level: float


def measure_noise(images: Tensor) -> Noise:
    """The noise that images of one sensor, (S, H, W) in [0, 1], have in common."""
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
    """Sources in [-1, 1] to [0, 1], without stripes, and noisy ones replaced by the prior's E[clean | noisy].

    Without `denoise` they are only rescaled. noises: each source's noise, if measured elsewhere. Returns the sources
    and the std of their noise, (B, 1, 1, 1) each. Pixels whose whole neighbourhood is at the end of the range are left
    unchanged: black stays black.
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
    """An image (1, H, W) in [0, 1] without its noise."""
    s = without_rows(without_columns(s, noise.columns), noise.rows)
    if noise.level == 0 or s.min() == s.max():  # an empty slice
        return s
    clean = _twice(s[None], noise.level, denoise) if noise.offset is None else _by_roots(s[None], noise, denoise)
    clipped = (F.max_pool2d(s, 3, 1, 1) <= 0) | (F.max_pool2d(-s, 3, 1, 1) <= -1)
    return torch.where(clipped, s, clean[0])


def _twice(s: Tensor, level: float, denoise: SourceDenoiser) -> Tensor:
    """s (1, 1, H, W) in [0, 1] denoised in two passes, the second one rotated, with a fraction of the noise put back.

    One pass only if that fraction is weaker than FAINTEST.
    """
    y = 2 * s - 1
    x = denoise(y, 2 * level)
    if AGAIN * level >= FAINTEST:
        x = denoise((x + AGAIN * (y - x)).flip(-2, -1), 2 * AGAIN * level).flip(-2, -1)
    return not_clipped((x.clamp(-1, 1) + 1) / 2, level)


def not_clipped(mean: Tensor, level: float) -> Tensor:
    """Corrects means in [0, 1] for noise of this std having been clipped at 0 and 1.

    Near black the darker half of the noise is lost, and the mean of x becomes x Phi(x / level) + level phi(x / level),
    which is 0.4 level at 0 (Foi, 2009); near white likewise. Inverted by Newton's method, within [0, 1].
    """
    return 1 - _above_black(1 - _above_black(mean, level), level)


def _above_black(mean: Tensor, level: float) -> Tensor:
    x = mean
    for _ in range(4):  # accurate to 1e-6
        z = x / level
        share = torch.special.ndtr(z)  # of the noise that is not clipped; at least half
        raised = x * share + level / math.sqrt(2 * math.pi) * z.square().mul_(-0.5).exp_()
        x = (x - (raised - mean) / share).clamp_min_(0)
    return x


def _roots(s: Tensor, offset: float) -> Tensor:
    """sqrt(s + offset) for s in [0, 1], scaled to [0, 1]: noise of variance a (s + offset) has variance a / 4
    everywhere in the root (Anscombe, 1948)."""
    low = math.sqrt(offset)
    return (s + offset).sqrt().sub_(low).div_(math.sqrt(1 + offset) - low)


def _by_roots(s: Tensor, noise: Noise, denoise: SourceDenoiser) -> Tensor:
    """`_twice` for noise that grows with the light, inverted by squaring: E[sqrt]^2 is the mean minus the variance."""
    assert noise.offset is not None
    if noise.root_level == 0:
        return s
    low = math.sqrt(noise.offset)
    width = math.sqrt(1 + noise.offset) - low
    clean = _twice(_roots(s, noise.offset), noise.root_level, denoise) * width + low
    return clean.square_().add_((noise.root_level * width) ** 2 - noise.offset).clamp_(0, 1)


def remaining_noise(f: Tensor, levels: Tensor, denoise: SourceDenoiser) -> Tensor:
    """The residual noise in a fusion f, (B, 1, H, W) in [0, 1], of denoised sources; 0 where `levels` is 0.

    Half of what the prior removes at AGAIN times the noise level: the other half is detail unknown to the prior.
    """
    out = torch.zeros_like(f)
    for k, level in enumerate(levels.flatten().tolist()):
        if level > 0:
            image = f[k : k + 1]
            out[k] = (image - (denoise(2 * image - 1, 2 * AGAIN * level) + 1) / 2)[0] / 2
    return out
