"""p(sources | f): the protocol for likelihoods, which pull the prior's denoised image towards the sources by EM steps.

A likelihood is a small frozen object that holds constants and has three methods,

    state = likelihood.start(sources, denoise)        # once per image
    f = likelihood.initial_estimate(state)            # where sampling starts, for a strength below 1
    x0, state = likelihood.rectify(x0, state, sigma)  # once per reverse step

on float32 luma, (B, 1, H, W) in [-1, 1]. All running estimates (scales, auxiliary fields) are in the state, and
every statistic is taken per image, so that a batch gives the same results as its images alone.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ddfm.errors import InputError

SourceDenoiser = Callable[[Tensor, float], Tensor]  # (y in [-1, 1], std of its noise in that range) -> E[clean | y]


class Likelihood(Protocol):
    """What the pipeline requires of a likelihood.

    Optional: `split(x0) -> (luma, chroma)` and `join(luma, chroma) -> x0`, to split an RGB prior's x0 (B, 3, H, W) in a
    colour space other than the full-range one (the released code uses a limited-range one).
    `for_volume(volumes) -> Likelihood`: a likelihood for all slices of the volumes, with statistics that they share.
    `clean(source, denoise) -> source`: (B, 1, H, W) in [-1, 1], cleaned as `start` does it, to use before resampling.
    `variance(state) -> (B, 1, H, W)`: variance of the fused luma in [0, 1] beyond the spread of the samples.
    """

    @property
    def steps(self) -> int:
        """Default number of reverse steps."""

    @property
    def strength(self) -> float:
        """Default fraction of the schedule that the steps span; below 1, sampling starts at the initial estimate."""

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> Any:
        """The state before the first step; sources are luma in [-1, 1], (B, 1, H, W), all of the same shape.

        denoise: the prior as a denoiser, for a likelihood that cleans its sources with it.
        """

    def initial_estimate(self, state: Any) -> Tensor:
        """The initial f, (B, 1, H, W) in [-1, 1], for a strength below 1."""

    def rectify(self, x0: Tensor, state: Any, sigma: float = 0.0) -> tuple[Tensor, Any]:
        """x0~ -> x0^ and the state for the next step; x0 has the shape and range of a source.

        sigma: the diffusion noise at this step, as noise std over signal, for data in [-1, 1].
        """


def check_likelihood(likelihood: Any) -> None:
    """Raise InputError, naming the member, if an object lacks a member of the protocol."""
    for member in ("start", "initial_estimate", "rectify", "steps", "strength"):
        if not hasattr(likelihood, member):
            raise InputError(
                f"The likelihood {type(likelihood).__name__} has no `{member}`; see ddfm.likelihoods.Likelihood for "
                "the required members."
            )
