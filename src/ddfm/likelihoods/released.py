"""The likelihood of the released code, reproduced exactly."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddfm.colour import studio_join, studio_split
from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.operators import screened_poisson
from ddfm.likelihoods.paper import TINY, LaplaceState, Paper, mean, two_sources


@dataclass(frozen=True)
class Released:
    """The released code reproduced exactly, quirks included; verified against its outputs.

    It reads the *visible* image into its `I` and the infrared into its `V`, and its x is I - f: the estimate mirrored
    between the sources. It then returns V + x, so that f and i + v - f alternate and converge to the average. Further
    quirks: E[1/n] <= 2 E[1/m]; one residual is sqrt(r^2 + 1e-6), the other |r|; u gets the differences of k with the
    opposite sign to the operator in the Fourier solve, and without wrap-around at the border. (With eta = 0.001, u and
    k contribute less than 0.04 % of the solve.)
    """

    eta: float = 0.001  # called rho there
    psi: float = 0.5  # called lamb there
    steps: ClassVar[int] = 100
    strength: ClassVar[float] = 1.0

    split = staticmethod(studio_split)  # for an RGB prior's x0, instead of full-range luma
    join = staticmethod(studio_join)

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> LaplaceState:
        """Like `Paper.start`, with the roles of the sources swapped."""
        infrared, visible = two_sources(sources, "released")
        return Paper(self.eta, self.psi).start([visible, infrared])

    def initial_estimate(self, state: LaplaceState) -> Tensor:
        """The average of the sources."""
        return (state.i + state.v) / 2

    def rectify(self, x0: Tensor, state: LaplaceState, sigma: float = 0.0) -> tuple[Tensor, LaplaceState]:
        """`gamma` and `rho` of the state are the code's tau_a and tau_b."""
        y, x = state.i - state.v, state.i - x0
        inv_m = (2 / state.gamma).sqrt() / x.abs().clamp_min(TINY)
        inv_n = (2 / state.rho).sqrt() / ((y - x).square() + 1e-6).sqrt()
        inv_n = torch.minimum(inv_n, 2 * inv_m)
        gamma, rho = mean(1 / inv_m + state.gamma / 2), mean(1 / inv_n + state.rho / 2)

        k = screened_poisson(x, state.u, periodic=True)
        shrink = self.eta / (2 * self.psi + self.eta)
        ux, uy = k.clone(), k.clone()  # k[j] - k[j+1]; the last column and row stay k itself
        ux[..., :, :-1] -= k[..., :, 1:]
        uy[..., :-1, :] -= k[..., 1:, :]
        x = (2 * inv_n * y + self.eta * k) / (2 * inv_m + 2 * inv_n + self.eta)
        return x + state.v, replace(state, gamma=gamma, rho=rho, u=(shrink * ux, shrink * uy))
