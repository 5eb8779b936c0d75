"""Algorithm 1 as printed (DDFM, Zhao et al., ICCV 2023): an EM step on a Laplace scale mixture with total variation."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddfm.errors import InputError
from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.operators import Gradient, gradient, screened_poisson

TINY = 1e-10  # keeps E[1/m] finite where a residual is exactly zero; far below any residual of real data


def mean(values: Tensor) -> Tensor:
    """Per image: (B, 1, H, W) -> (B, 1, 1, 1)."""
    return values.mean(dim=(-3, -2, -1), keepdim=True)


@dataclass(frozen=True)
class LaplaceState:
    """What one EM step passes to the next."""

    i: Tensor  # infrared, (B, 1, H, W)
    v: Tensor  # visible
    gamma: Tensor  # mean of the exponential law of m, the variance of y - x; (B, 1, 1, 1)
    rho: Tensor  # the same for n, the variance of x
    u: Gradient  # ~ grad k, shrunk


def two_sources(sources: list[Tensor], name: str) -> tuple[Tensor, Tensor]:
    """[infrared, visible], or InputError: the paper's model is written for a pair."""
    if len(sources) != 2:
        raise InputError(f"The likelihood {name!r} fuses two sources, not {len(sources)}; choose another.")
    return sources[0], sources[1]


@dataclass(frozen=True)
class Paper:
    """Algorithm 1 as printed: min ||f - i||_1 + phi ||f - v||_1 + TV, as EM on a Laplace scale mixture.

    With x = f - v and y = i - v:  y | x, m ~ N(x, m),  m ~ Exp(mean gamma);  x | n ~ N(0, n),  n ~ Exp(mean rho).

    eta ties k to x and u to grad k (half-quadratic splitting), psi weighs |u|^2.
    """

    eta: float = 0.1
    psi: float = 0.5
    steps: ClassVar[int] = 100
    strength: ClassVar[float] = 1.0

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> LaplaceState:
        """Scales 1, u = 0. Raises InputError unless there are two sources, [infrared, visible]."""
        i, v = two_sources(sources, "paper")
        one, zero = i.new_ones(i.shape[0], 1, 1, 1), torch.zeros_like(i)
        return LaplaceState(i, v, gamma=one, rho=one, u=(zero, zero))

    def initial_estimate(self, state: LaplaceState) -> Tensor:
        """The average of the sources."""
        return (state.i + state.v) / 2

    def rectify(self, x0: Tensor, state: LaplaceState, sigma: float = 0.0) -> tuple[Tensor, LaplaceState]:
        """One E-step, one M-step (paper, Sec. 3.3)."""
        y, x = state.i - state.v, x0 - state.v
        inv_m, gamma = self.e_step(y - x, state.gamma)
        inv_n, rho = self.e_step(x, state.rho)
        x, u = self.m_step(x, y, inv_m, inv_n, state)
        return x + state.v, replace(state, gamma=gamma, rho=rho, u=u)

    @staticmethod
    def e_step(residual: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """E[1/m] given the residual r, and the new scale, mean E[m].

        1/m is inverse Gaussian:  E[1/m] = sqrt(2/gamma) / |r|,  E[m] = |r| sqrt(gamma/2) + gamma/2.
        (Eq. 16 as printed is the reciprocal of the first.)
        """
        r = residual.abs()
        new_scale = mean(r * (scale / 2).sqrt() + scale / 2).clamp_min(TINY)  # or it decays to 0 where all r are 0
        return (2 / scale).sqrt() / r.clamp_min(TINY), new_scale

    def m_step(
        self, x: Tensor, y: Tensor, inv_m: Tensor, inv_n: Tensor, state: LaplaceState
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One pass of half-quadratic splitting; each line minimises over one variable

        Q = E[1/m] (y - x)^2 + E[1/n] x^2 + psi |u|^2 + eta/2 (|k - x|^2 + |u - grad k|^2).
        """
        k = screened_poisson(x, state.u, periodic=True)
        shrink = self.eta / (2 * self.psi + self.eta)
        gx, gy = gradient(k, periodic=True)
        x = (2 * inv_m * y + self.eta * k) / (2 * inv_m + 2 * inv_n + self.eta)
        return x, (shrink * gx, shrink * gy)
