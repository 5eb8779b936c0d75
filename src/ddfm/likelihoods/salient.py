"""The default likelihood: salient intensities superposed, the strongest gradients kept, noise removed from each source.

docs/likelihood.md derives it and gives the figures behind each choice. In short, for N >= 2 sources s_k and the fused
image f, all in [0, 1] here,

    f - b ~ Laplace(gamma)         b: the combined intensity of the sources (`fusion_target`)
    grad f - g ~ Laplace(rho)      g: the gradient of the locally strongest source (`strongest_gradient`)

with Gaussian scale mixtures for the two Laplace laws and half-quadratic splitting in the M-step, as in the paper, whose
model is the special case b in {i, v}, g = 0. Sums and products over sources are symmetric: their order does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ddfm.errors import InputError
from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.noise import Noise, measure_noise, remaining_noise, remove_noise
from ddfm.likelihoods.operators import Gradient, bands, gradient, screened_poisson
from ddfm.likelihoods.spread import error_variance, fused_variance
from ddfm.likelihoods.target import bounds, disagreement, fusion_target, strongest_gradient

STRONG = 1.15  # gain for contrast="strong"
SLICES = 32  # at most, of a volume, to measure its noise in
START = 10.0  # how much more the initial estimate trusts gradients than intensities


@dataclass(frozen=True)
class SalientState:
    """What one EM step passes to the next; everything in [0, 1]."""

    sources: list[Tensor]  # denoised
    b: Tensor
    g: Gradient
    u: Gradient  # ~ grad k
    disagreement: Tensor  # where it is large b is less certain, and the prior has more influence
    low: Tensor  # the bounds of f
    high: Tensor
    noises: list[Tensor]  # std of the noise removed from each source, (B, 1, 1, 1)
    equal: Tensor  # images whose sources are all identical, (B, 1, 1, 1)

    def at(self, rows: slice) -> "SalientState":
        """The state restricted to some rows of the image."""

        def cut(pair: Gradient) -> Gradient:
            return pair[0][..., rows, :], pair[1][..., rows, :]

        return replace(
            self,
            sources=[s[..., rows, :] for s in self.sources],
            b=self.b[..., rows, :],
            g=cut(self.g),
            u=cut(self.u),
            disagreement=self.disagreement[..., rows, :],
            low=self.low[..., rows, :],
            high=self.high[..., rows, :],
        )


@dataclass(frozen=True)
class Salient:
    """Salient intensities superposed, the strongest gradients kept; any number of sources, treated symmetrically.

    Units are [0, 1]. intensity and gradient weigh the two Laplace terms; residuals below `tolerance` count as noise
    (the Laplace density is rounded there, which also bounds the E-step's weights); eta ties f to k, kappa is how much
    more the splitting trusts gradients than intensities, passes is the number of splitting passes per step: after only
    one, some of the network's smoothing would remain in f where no source is noisy. contrast "strong" amplifies
    deviations and gradients by STRONG; roles give each source's role where it is known: "visible" sets the brightness,
    "thermal" adds what is warm. levels and noises are the sources' background levels and noise, if they are not to be
    measured in each image; see `for_volume`.
    """

    contrast: Literal["natural", "strong"] = "natural"
    roles: tuple[str, ...] | None = None
    levels: tuple[float, ...] | None = None
    noises: tuple[Noise, ...] | None = None
    intensity: float = 4.5
    gradient: float = 4500.0
    tolerance: float = 0.02
    eta: float = 1000.0
    kappa: float = 10.0
    passes: int = 2
    denoise_sources: bool = True
    steps: ClassVar[int] = 2
    strength: ClassVar[float] = 0.06

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> SalientState:
        """Measures each source's noise, removes it with the prior itself, and then fixes b and g."""
        if self.roles is not None and len(self.roles) != len(sources):
            raise InputError(f"There are {len(sources)} sources but {len(self.roles)} roles; give one role per source.")
        denoise = denoise if self.denoise_sources else None
        clean, noises = remove_noise(sources, denoise, self.noises)
        # Sensors do not share noise: where all sources of an image are equal, they are the result.
        equal = torch.stack([(s == sources[0]).flatten(1).all(dim=1) for s in sources]).all(dim=0).view(-1, 1, 1, 1)
        clean = [torch.where(equal, (s + 1) / 2, c) for s, c in zip(sources, clean, strict=True)]
        gain = STRONG if self.contrast == "strong" else 1.0
        unsure = [error_variance(s, n) if n.any() else n for s, n in zip(clean, noises, strict=True)]
        low, high = (torch.where(equal, clean[0], bound) for bound in bounds(clean, self.roles))
        b = fusion_target(clean, self.roles, gain, levels=self.levels, unsure=unsure, limits=(low, high))
        g = strongest_gradient(clean, b, gain, unsure=unsure)
        state = SalientState(clean, b, g, g, disagreement(clean, b), low, high, noises, equal)
        least = torch.stack(noises).amin(dim=0)  # zero if one source is clean: the prior must not smooth it
        if denoise is not None and least.any():
            noise = remaining_noise((self.initial_estimate(state) + 1) / 2, least, denoise)
            g = (g[0] - gradient(noise)[0], g[1] - gradient(noise)[1])
            state = replace(state, b=b - noise, g=g, u=g)
        return state

    def clean(self, source: Tensor, denoise: SourceDenoiser) -> Tensor:
        """A source without stripes and noise, to use before resampling, which would make them look like detail."""
        if not self.denoise_sources:
            return source
        return remove_noise([source], denoise)[0][0] * 2 - 1

    def for_volume(self, volumes: Sequence[np.ndarray]) -> "Salient":
        """This likelihood for all slices of volumes (S, H, W) in [0, 1], one per source, with shared statistics.

        Statistics of single slices jump, and the fused slices would flicker: the background level where the head begins
        to fill half of the slice (so the median over slices of their medians is used), and noise near the threshold
        for removal (so it is measured in all slices together, or in some of them, evenly spaced).
        """
        showing = [[image for image in volume if image.min() < image.max()] or [volume[0]] for volume in volumes]
        levels = tuple(float(np.median([np.median(image) for image in images])) for images in showing)
        noises = self.noises
        if self.denoise_sources:
            some = [np.stack(images[:: -(-len(images) // SLICES)]) for images in showing]
            noises = tuple(measure_noise(torch.from_numpy(images)) for images in some)
        return replace(self, levels=levels, noises=noises)

    def initial_estimate(self, state: SalientState) -> Tensor:
        """The initial f, in [-1, 1]: least squares on intensities and gradients, without the prior."""
        return 2 * screened_poisson(state.b, state.g, START).clamp(state.low, state.high) - 1

    def variance(self, state: SalientState) -> Tensor:
        """Variance of the fused luma in [0, 1] beyond the spread of the samples: the uncertainty left by denoising."""
        variances = [error_variance(s, noise) for s, noise in zip(state.sources, state.noises, strict=True)]
        return torch.where(state.equal, 0, fused_variance(state.sources, variances, state.b))

    def rectify(self, x0: Tensor, state: SalientState, sigma: float = 0.0) -> tuple[Tensor, SalientState]:
        """`passes` E-steps and M-steps, independent of the diffusion noise `sigma`."""
        f, u = (x0 + 1) / 2, state.u
        for _ in range(self.passes):
            k = screened_poisson(f, u, self.kappa)
            u = torch.empty_like(f), torch.empty_like(f)
            for rows in bands(f):  # everything else is local
                with_next = slice(rows.start, rows.stop + 1)
                dx, dy = (d[..., : rows.stop - rows.start, :] for d in gradient(k[..., with_next, :]))
                f[..., rows, :], u[0][..., rows, :], u[1][..., rows, :] = self.m_step(
                    k[..., rows, :], (dx, dy), state.at(rows)
                )
        return f.mul_(2).sub_(1), replace(state, u=u)

    def m_step(self, k: Tensor, dk: Gradient, state: SalientState) -> tuple[Tensor, Tensor, Tensor]:
        """f and u, each minimising its part of Q given k, with the E-step's weights at k; pixel by pixel."""
        f = self.drawn(k, state.b, self.intensity / self.eta, state.disagreement)
        ux, uy = (self.drawn(d, g, self.gradient / (self.eta * self.kappa)) for d, g in zip(dk, state.g, strict=True))
        return f.clamp_(state.low, state.high), ux, uy

    def drawn(self, x: Tensor, aim: Tensor, weight: float, uncertainty: Tensor | None = None) -> Tensor:
        """argmin_y 2 weight E[1/m] (y - aim)^2 + (y - x)^2, which lies between x and `aim`."""
        residual = aim - x
        pull = self.e_step(residual, uncertainty).mul_(2 * weight)
        return torch.addcmul(x, residual, pull.div_(pull + 1))

    def e_step(self, residual: Tensor, uncertainty: Tensor | None = None) -> Tensor:
        """E[1/m] of the scale mixture, up to the Laplace scale: 1 / |r|, rounded below the tolerance."""
        square = residual.square().add_(self.tolerance**2)
        return (square if uncertainty is None else square.addcmul_(uncertainty, uncertainty)).rsqrt_()
