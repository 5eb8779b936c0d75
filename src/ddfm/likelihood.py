"""p(sources | f): what pulls the prior's denoised guess towards the sources, one EM step at a time.

A likelihood is a small frozen object of constants with two methods,

    state = likelihood.start(sources, denoise)        # once a picture
    x0, state = likelihood.rectify(x0, state, sigma)  # once a reverse step

on float32 luma, (B, 1, H, W) in [-1, 1]. Everything learnt on the way (scales, auxiliary fields) is in the state, and
every statistic is taken per picture, so that a batch gives what its pictures give alone.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from .errors import InputError
from .salient import Denoiser, Salient

TINY = 1e-10  # keeps E[1/m] finite where a residual is exactly zero; far below any residual of real data


class Likelihood(Protocol):
    """What the pipeline asks of a likelihood."""

    studio_swing: ClassVar[bool]  # with an RGB prior, take the released code's luma of x0, not the full-range one
    steps: ClassVar[int]  # reverse steps, unless the user says otherwise
    strength: ClassVar[float]  # share of the schedule that they span: 1 starts from noise, less from `guess` and noise

    def start(self, sources: list[Tensor], denoise: Denoiser | None = None) -> Any:
        """The state before the first step; sources are luma in [-1, 1], (B, 1, H, W), all of one shape.

        denoise: the prior as a denoiser, for a likelihood that cleans its sources with it.
        """

    def guess(self, state: Any) -> Tensor:
        """A first f, (B, 1, H, W) in [-1, 1], for a strength below 1."""

    def rectify(self, x0: Tensor, state: Any, sigma: float = 0.0) -> tuple[Tensor, Any]:
        """x0~ -> x0^ and the state for the next step; x0 as one source in shape and range.

        sigma: the diffusion's noise at this step, std over signal, data in [-1, 1].
        """


# ------------------------------------------------------------------------------------------- shared by the EM steps


def gradient(k: Tensor) -> tuple[Tensor, Tensor]:
    """Circular forward differences along W and H: k[j+1] - k[j]."""
    return k.roll(-1, -1) - k, k.roll(-1, -2) - k


def gradient_adjoint(u: tuple[Tensor, Tensor]) -> Tensor:
    """The adjoint of `gradient` (minus the divergence): u[j-1] - u[j], summed over the two directions."""
    return u[0].roll(1, -1) - u[0] + u[1].roll(1, -2) - u[1]


def laplacian_spectrum(like: Tensor) -> Tensor:
    """conj(F(grad)) F(grad) on the half grid of `rfft2`, (H, W // 2 + 1): 4 - 2 cos wx - 2 cos wy."""
    h, w = like.shape[-2:]
    wy = torch.fft.fftfreq(h, device=like.device) * (2 * torch.pi)
    wx = torch.fft.rfftfreq(w, device=like.device) * (2 * torch.pi)
    return (2 - 2 * wy.cos())[:, None] + (2 - 2 * wx.cos())[None, :]


def screened_poisson(x: Tensor, u: tuple[Tensor, Tensor], spectrum: Tensor) -> Tensor:
    """k <- F^-1[(F(x) + conj(F(grad)) F(u)) / (1 + conj(F(grad)) F(grad))]: argmin |k - x|^2 + |grad k - u|^2."""
    return irfft2(rfft2(x + gradient_adjoint(u)) / (1 + spectrum), s=x.shape[-2:])


def mean(values: Tensor) -> Tensor:
    """Per picture: (B, 1, H, W) -> (B, 1, 1, 1)."""
    return values.mean(dim=(-3, -2, -1), keepdim=True)


@dataclass(frozen=True)
class LaplaceState:
    """What one EM step hands to the next."""

    i: Tensor  # infrared, (B, 1, H, W)
    v: Tensor  # visible
    gamma: Tensor  # mean of the exponential law of m, the variance of y - x; (B, 1, 1, 1)
    rho: Tensor  # the same of n, the variance of x
    u: tuple[Tensor, Tensor]  # ~ grad k, shrunk
    spectrum: Tensor


def two_sources(sources: list[Tensor], name: str) -> tuple[Tensor, Tensor]:
    """[infrared, visible], or InputError: the paper's model is written for a pair."""
    if len(sources) != 2:
        raise InputError(f"likelihood {name!r} fuses two sources, not {len(sources)}: choose another likelihood")
    return sources[0], sources[1]


# ----------------------------------------------------------------------------------------------------- the paper's


@dataclass(frozen=True)
class Paper:
    """Algorithm 1 as printed: min ||f - i||_1 + phi ||f - v||_1 + TV, as EM on a Laplace scale mixture.

    With x = f - v and y = i - v:  y | x, m ~ N(x, m),  m ~ Exp(mean gamma);  x | n ~ N(0, n),  n ~ Exp(mean rho).

    eta ties k to x and u to grad k (half-quadratic splitting), psi weighs |u|^2.
    """

    eta: float = 0.1
    psi: float = 0.5
    studio_swing: ClassVar[bool] = False
    steps: ClassVar[int] = 100
    strength: ClassVar[float] = 1.0

    def start(self, sources: list[Tensor], denoise: Denoiser | None = None) -> LaplaceState:
        """Scales 1, u = 0. Raises InputError unless there are two sources, [infrared, visible]."""
        i, v = two_sources(sources, "paper")
        one, zero = i.new_ones(i.shape[0], 1, 1, 1), torch.zeros_like(i)
        return LaplaceState(i, v, gamma=one, rho=one, u=(zero, zero), spectrum=laplacian_spectrum(i))

    def guess(self, state: LaplaceState) -> Tensor:
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
        new_scale = mean(r * (scale / 2).sqrt() + scale / 2).clamp_min(TINY)  # else it halves to 0 where all r are 0
        return (2 / scale).sqrt() / r.clamp_min(TINY), new_scale

    def m_step(
        self, x: Tensor, y: Tensor, inv_m: Tensor, inv_n: Tensor, state: LaplaceState
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One pass of half-quadratic splitting, each line the minimiser over its variable of

        Q = E[1/m] (y - x)^2 + E[1/n] x^2 + psi |u|^2 + eta/2 (|k - x|^2 + |u - grad k|^2).
        """
        k = screened_poisson(x, state.u, state.spectrum)
        shrink = self.eta / (2 * self.psi + self.eta)
        gx, gy = gradient(k)
        x = (2 * inv_m * y + self.eta * k) / (2 * inv_m + 2 * inv_n + self.eta)
        return x, (shrink * gx, shrink * gy)


# ------------------------------------------------------------------------------------------------ the released code's


@dataclass(frozen=True)
class Released:
    """The released code to the letter, its quirks included; verified against its outputs.

    It reads the *visible* picture into its `I` and the infrared into its `V`, and its x is I - f: the guess mirrored
    between the sources. It then returns V + x, so that f and i + v - f take turns and settle at the average. Also its
    own: E[1/n] <= 2 E[1/m]; one residual is sqrt(r^2 + 1e-6), the other |r|; u gets the differences of k with the
    opposite sign of the operator that the Fourier solve uses, unwrapped at the border. (With eta = 0.001 u and k
    weigh less than 0.04 % of the solve.)
    """

    eta: float = 0.001  # called rho there
    psi: float = 0.5  # called lamb there
    studio_swing: ClassVar[bool] = True
    steps: ClassVar[int] = 100
    strength: ClassVar[float] = 1.0

    def start(self, sources: list[Tensor], denoise: Denoiser | None = None) -> LaplaceState:
        """As `Paper.start`, with the roles of the sources exchanged."""
        infrared, visible = two_sources(sources, "released")
        return Paper(self.eta, self.psi).start([visible, infrared])

    def guess(self, state: LaplaceState) -> Tensor:
        """The average of the sources."""
        return (state.i + state.v) / 2

    def rectify(self, x0: Tensor, state: LaplaceState, sigma: float = 0.0) -> tuple[Tensor, LaplaceState]:
        """`gamma` and `rho` of the state are the code's tau_a and tau_b."""
        y, x = state.i - state.v, state.i - x0
        inv_m = (2 / state.gamma).sqrt() / x.abs().clamp_min(TINY)
        inv_n = (2 / state.rho).sqrt() / ((y - x).square() + 1e-6).sqrt()
        inv_n = torch.minimum(inv_n, 2 * inv_m)
        gamma, rho = mean(1 / inv_m + state.gamma / 2), mean(1 / inv_n + state.rho / 2)

        k = screened_poisson(x, state.u, state.spectrum)
        shrink = self.eta / (2 * self.psi + self.eta)
        ux, uy = k.clone(), k.clone()  # k[j] - k[j+1]; the last column and row stay k itself
        ux[..., :, :-1] -= k[..., :, 1:]
        uy[..., :-1, :] -= k[..., 1:, :]
        x = (2 * inv_n * y + self.eta * k) / (2 * inv_m + 2 * inv_n + self.eta)
        return x + state.v, replace(state, gamma=gamma, rho=rho, u=(shrink * ux, shrink * uy))


LIKELIHOODS: dict[str, Likelihood] = {"salient": Salient(), "released": Released(), "paper": Paper()}
