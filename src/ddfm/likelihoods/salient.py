"""The default likelihood: salient intensities superposed, the strongest gradients kept, noise removed at its source.

docs/likelihood.md derives it and gives the figures that decided. In short, for N >= 2 sources s_k and the fused f, all
in [0, 1] here,

    f - b ~ Laplace(gamma)         b: what the sources show together (`fusion_target`)
    grad f - g ~ Laplace(rho)      g: the gradient of the locally strongest source (`strongest_gradient`)

with Gaussian scale mixtures for the two Laplace laws and half-quadratic splitting in the M-step, as in the paper, whose
own model is the case b in {i, v}, g = 0. Sums and products over sources are symmetric: their order does not matter.
"""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.operators import bands, gradient, guided_filter, screened_poisson, smooth

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


def fusion_target(sources: list[Tensor], scale: float = 10.0, edge_scale: float = 30.0, flat: float = 1e-5) -> Tensor:
    """b: the intensity that the sources show together, (B, 1, H, W) in [0, 1].

        b = c + sum_k w_k (s_k - c_k) / n_k

    c_k is the source's background level (its median), c their mean weighted by how much each source shows; w_k in
    (0, 1] its local amplitude over the strongest source's, with edges where the source has them; n_k = 1 +
    sum_{j != k} w_j corr+(s_j, s_k) counts how many sources see the same thing there. So what only one source sees
    enters whole, what all see enters once (equal sources give b = s), and a source with nothing to show enters not at
    all. The result is kept between max(0, 1 - sum (1 - s_k)) and min(1, sum s_k): black where all are black, white
    where all are white.
    """
    backgrounds = [torch.stack([image.median() for image in s]).view(-1, 1, 1, 1) for s in sources]
    details = [s - smooth(s, scale) for s in sources]
    energies = [smooth(detail.square(), scale).add_(flat) for detail in details]
    strongest = functools.reduce(torch.maximum, energies)
    weights = [guided_filter((e / strongest).sqrt_(), s, edge_scale) for e, s in zip(energies, sources, strict=True)]
    del strongest

    shows = torch.stack([e.mean(dim=(-3, -2, -1), keepdim=True).sqrt() for e in energies])
    b = ((shows * torch.stack(backgrounds)).sum(dim=0) / shows.sum(dim=0)).expand_as(sources[0]).clone()
    for k, source in enumerate(sources):
        seen_by = torch.ones_like(source)
        for j in range(len(sources)):
            if j != k:
                correlation = smooth(details[j] * details[k], scale).add_(flat)
                correlation /= (energies[j] * energies[k]).sqrt_()
                seen_by += correlation.clamp_(0, 1).mul_(weights[j])
        b += (source - backgrounds[k]).mul_(weights[k]).div_(seen_by)
    return within_bounds(b, sources)


def disagreement(sources: list[Tensor], b: Tensor, scale: float = 10.0) -> Tensor:
    """How far the sources' structures lie from that of b, root mean square over sources and a neighbourhood of 5 px."""
    structure = b - smooth(b, scale)
    squares = torch.zeros_like(b)
    for s in sources:
        squares += (s - smooth(s, scale)).sub_(structure).square_()
    return smooth(squares.div_(len(sources)), 5.0).sqrt_()


def within_bounds(f: Tensor, sources: list[Tensor]) -> Tensor:
    """f between max(0, 1 - sum (1 - s_k)) and min(1, sum s_k)."""
    total = functools.reduce(torch.add, sources)
    bounded = torch.maximum(f, (total - (len(sources) - 1)).clamp_min_(0))
    return torch.minimum(bounded, total.clamp_max_(1), out=bounded)


def strongest_gradient(sources: list[Tensor], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """g: the gradient of the locally strongest source, chosen softly on energies smoothed over `scale` pixels."""
    g = torch.zeros_like(sources[0]), torch.zeros_like(sources[0])
    energies = torch.zeros_like(sources[0])
    for s in sources:
        gradients = gradient(s)
        energy = smooth(gradients[0].square() + gradients[1].square(), scale).square_().add_(1e-16)
        energies += energy
        for total, component in zip(g, gradients, strict=True):
            total += energy * component
    return g[0] / energies, g[1] / energies


# ------------------------------------------------------------------------------------------------------ the EM step


@dataclass(frozen=True)
class SalientState:
    """What one EM step hands to the next; everything in [0, 1]."""

    sources: list[Tensor]  # denoised
    b: Tensor
    g: tuple[Tensor, Tensor]
    u: tuple[Tensor, Tensor]  # ~ grad k
    disagreement: Tensor  # there b is less certain, and the prior has more to say
    noise: Tensor  # std of the sources' noise beyond the floor, the largest, (B, 1, 1, 1)

    def at(self, rows: slice) -> "SalientState":
        """The same for some rows of the image."""

        def cut(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0][..., rows, :], pair[1][..., rows, :]

        return SalientState(
            [s[..., rows, :] for s in self.sources],
            self.b[..., rows, :],
            cut(self.g),
            cut(self.u),
            self.disagreement[..., rows, :],
            self.noise,
        )


@dataclass(frozen=True)
class Salient:
    """Salient intensities superposed, the strongest gradients kept; any number of sources, none of them special.

    Units are [0, 1]. intensity and gradient weigh the two Laplace terms; residuals below `tolerance` count as noise
    (the Laplace law is rounded there, which also bounds the E-step's weights); eta ties f to k, kappa is how much more
    the splitting trusts gradients than intensities; prior_weight scales the prior's pull on f.
    """

    intensity: float = 4.5
    gradient: float = 4500.0
    tolerance: float = 0.02
    eta: float = 1000.0
    kappa: float = 10.0
    prior_weight: float = 0.05
    denoise_sources: bool = True
    steps: ClassVar[int] = 3
    strength: ClassVar[float] = 0.06

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> SalientState:
        """Noise is measured and, by the prior itself, removed in each source; then b and g are fixed."""
        noise = [(noise_std((s + 1) / 2).square() - NOISE_FLOOR**2).clamp_min(0).sqrt() for s in sources]
        clean = [self._clean(s, n, denoise) for s, n in zip(sources, noise, strict=True)]
        b, g = fusion_target(clean), strongest_gradient(clean)
        level = torch.stack(noise).amax(dim=0)
        return SalientState(clean, b, g, g, disagreement(clean, b), level)

    def _clean(self, source: Tensor, noise: Tensor, denoise: SourceDenoiser | None) -> Tensor:
        """[-1, 1] to [0, 1], noisy images to the prior's E[clean | noisy].

        Where a neighbourhood lies at the end of the range whole there is no noise to remove: black stays black.
        """
        out = (source + 1) / 2
        for k, level in enumerate(noise.flatten().tolist()):
            if level > 0 and denoise is not None and self.denoise_sources:
                s = source[k : k + 1]
                clipped = (F.max_pool2d(s, 3, 1, 1) <= -1) | (F.max_pool2d(-s, 3, 1, 1) <= -1)
                out[k] = torch.where(clipped, s, denoise(s, 2 * level).clamp(-1, 1))[0] / 2 + 0.5
        return out

    def initial_estimate(self, state: SalientState) -> Tensor:
        """A first f, in [-1, 1]: intensities and gradients in least squares, no prior."""
        return 2 * within_bounds(screened_poisson(state.b, state.g, 200.0), state.sources) - 1

    def rectify(self, x0: Tensor, state: SalientState, sigma: float = 0.0) -> tuple[Tensor, SalientState]:
        """One E-step and one M-step at diffusion noise `sigma` (std over signal, data in [-1, 1])."""
        f = (x0 + 1) / 2
        k = screened_poisson(f, state.u, self.kappa)
        u = torch.empty_like(f), torch.empty_like(f)
        for rows in bands(f):  # the rest is local
            with_next = slice(rows.start, rows.stop + 1)
            dx, dy = (d[..., : rows.stop - rows.start, :] for d in gradient(k[..., with_next, :]))
            f[..., rows, :], u[0][..., rows, :], u[1][..., rows, :] = self.m_step(
                f[..., rows, :], k[..., rows, :], (dx, dy), state.at(rows), sigma
            )
        return f.mul_(2).sub_(1), replace(state, u=u)

    def m_step(
        self, f: Tensor, k: Tensor, dk: tuple[Tensor, Tensor], state: SalientState, sigma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """f and u, each the minimiser of its part of Q given k, with the E-step's weights at k; pixel by pixel."""
        inv_m = self.intensity * self.e_step(k - state.b, state.disagreement)
        inv_n = [self.gradient * self.e_step(d - g) for d, g in zip(dk, state.g, strict=True)]
        tie = self.eta * self.kappa
        ux, uy = ((2 * w * g + tie * d) / (2 * w + tie) for w, g, d in zip(inv_n, state.g, dk, strict=True))
        data = (2 * inv_m * state.b + self.eta * k) / (2 * inv_m + self.eta)
        pull = self.prior_weight * (2 * state.noise / max(sigma, 1e-2)) ** 2
        return within_bounds((data + pull * f) / (1 + pull), state.sources), ux, uy

    def e_step(self, residual: Tensor, uncertainty: Tensor | float = 0.0) -> Tensor:
        """E[1/m] of the scale mixture, up to the Laplace scale: 1 / |r|, rounded below the tolerance."""
        return (residual.square() + self.tolerance**2 + torch.as_tensor(uncertainty).square()).rsqrt()
