"""p(sources | f): the protocol of what pulls the prior's denoised image towards the sources, one EM step at a time.

A likelihood is a small frozen object of constants with three methods,

    state = likelihood.start(sources, denoise)        # once per image
    f = likelihood.initial_estimate(state)            # where sampling starts, for a strength below 1
    x0, state = likelihood.rectify(x0, state, sigma)  # once per reverse step

on float32 luma, (B, 1, H, W) in [-1, 1]. Everything learnt on the way (scales, auxiliary fields) is in the state, and
every statistic is taken per image, so that a batch gives what its images give alone.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ddfm.errors import InputError

SourceDenoiser = Callable[[Tensor, float], Tensor]  # (y in [-1, 1], std of its noise in that range) -> E[clean | y]


class Likelihood(Protocol):
    """What the pipeline asks of a likelihood.

    Optional: `split(x0) -> (luma, chroma)` and `join(luma, chroma) -> x0`, where an RGB prior's x0 (B, 3, H, W) is to
    be taken apart in another colour space than the full-range one (the released code's is studio-swing).
    `for_volume(volumes) -> Likelihood`: the one for all slices of volumes, with statistics that the slices share.
    `clean(source, denoise) -> source`: (B, 1, H, W) in [-1, 1] as `start` cleans it, for one that is to be resampled.
    `variance(state) -> (B, 1, H, W)`: how uncertain the fused luma in [0, 1] is beyond the spread of the samples.
    """

    @property
    def steps(self) -> int:
        """Reverse steps, unless the user says otherwise."""

    @property
    def strength(self) -> float:
        """Share of the schedule that the steps span: 1 starts from pure noise, less from the initial estimate."""

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> Any:
        """The state before the first step; sources are luma in [-1, 1], (B, 1, H, W), all of one shape.

        denoise: the prior as a denoiser, for a likelihood that cleans its sources with it.
        """

    def initial_estimate(self, state: Any) -> Tensor:
        """A first f, (B, 1, H, W) in [-1, 1], for a strength below 1."""

    def rectify(self, x0: Tensor, state: Any, sigma: float = 0.0) -> tuple[Tensor, Any]:
        """x0~ -> x0^ and the state for the next step; x0 as one source in shape and range.

        sigma: the diffusion's noise at this step, std over signal, data in [-1, 1].
        """


def check_likelihood(likelihood: Any) -> None:
    """Raise InputError where an object lacks a member of the protocol, with the member's name."""
    for member in ("start", "initial_estimate", "rectify", "steps", "strength"):
        if not hasattr(likelihood, member):
            raise InputError(
                f"The likelihood {type(likelihood).__name__} has no `{member}`; see ddfm.likelihoods.Likelihood for "
                "what it must have."
            )
