"""diffusers' schedulers as samplers that step from a given x0; no step code of our own."""

import inspect
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from ddfm.errors import InputError

VERIFIED = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)
OTHER_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def shorthand(config: Any, name: str) -> Any:
    """The scheduler for the name "ddim", "ddpm" or "dpm++", on the noise schedule of `config`.

    "ddim" is the first-order DPM-Solver at the released code's time steps, which equals that code's DDIM exactly.
    diffusers' DDIMScheduler does not: it takes t - 1000 // steps as the previous step.
    """
    plain = dict.fromkeys(OTHER_SPACINGS, False) | {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
    if name == "ddim":
        return DPMSolverMultistepScheduler.from_config(config, solver_order=1, **plain)
    if name == "dpm++":
        return DPMSolverMultistepScheduler.from_config(config, solver_order=2, **plain)
    if name == "ddpm":
        return DDPMScheduler.from_config(config)
    raise InputError(f"sampler must be one of ddim, ddpm, dpm++, not {name!r}.")


def make_sampler(scheduler: Any, steps: int, strength: float) -> tuple[Any, list[int]]:
    """A copy of a scheduler, set to step from a given x0 (`prediction_type="sample"`), and the time steps to take.

    Args:
        scheduler: Any diffusers scheduler with x_t = sqrt(a) x0 + sqrt(1 - a) noise.
        steps: Number of steps; evenly spaced as in the released code (in log sigma for higher-order solvers), or with
            the scheduler's own spacing if it accepts no custom timesteps.
        strength: Fraction of the schedule that the steps span, in (0, 1].

    Raises:
        InputError: more steps than time steps, or a scheduler that cannot step from a given x0.
    """
    made = _from_given_x0(scheduler)
    last = round(strength * (made.config["num_train_timesteps"] - 1))
    if not 1 <= steps <= last + 1:
        raise InputError(f"The number of steps must be between 1 and {last + 1}, not {steps}.")
    timesteps = _set_timesteps(made, steps, strength, last)
    if type(made) not in VERIFIED and not _lands_on_x0(scheduler):
        raise _refusal(scheduler)
    return made, timesteps


def _from_given_x0(scheduler: Any) -> Any:
    # The given x0 is not a prediction, so it is neither clipped nor thresholded.
    known = inspect.signature(type(scheduler).__init__).parameters
    changes = {name: False for name in ("clip_sample", "thresholding") if name in known}
    try:
        return type(scheduler).from_config(scheduler.config, prediction_type="sample", **changes)
    except Exception as error:  # various types, for a prediction type that it does not know
        raise _refusal(scheduler) from error


def _set_timesteps(made: Any, steps: int, strength: float, last: int) -> list[int]:
    own_spacing = any(made.config.get(name) for name in OTHER_SPACINGS)
    if "timesteps" in inspect.signature(made.set_timesteps).parameters and not own_spacing:
        spaced = _even_in_log_sigma if made.config.get("solver_order", 1) > 1 else _even
        made.set_timesteps(timesteps=spaced(made, last, steps))
        return list(map(int, made.timesteps))
    made.set_timesteps(max(steps, round(steps / strength)))
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(len(made.timesteps) - steps)
    return list(map(int, made.timesteps[-steps:]))


def _even(made: Any, last: int, steps: int) -> list[int]:
    """Time steps evenly spaced from `last` to 0, both included, as in the released code; a single one is `last`."""
    return [round(k * last / (steps - 1)) for k in reversed(range(steps))] if steps > 1 else [last]


def _even_in_log_sigma(made: Any, last: int, steps: int) -> list[int]:
    """The same, evenly spaced in the log of noise over signal, which a solver needs for second-order accuracy."""
    a = made.alphas_cumprod[: last + 1].double()
    log_sigma = ((1 - a) / a).log().numpy()
    at = np.interp(np.linspace(log_sigma[0], log_sigma[-1], steps), log_sigma, np.arange(last + 1))
    distinct: list[int] = []
    for k, t in enumerate(at.round().astype(int).tolist()):
        above = distinct[-1] + 1 if distinct else 0
        distinct.append(min(max(t, above), last - (steps - 1 - k)))
    return distinct[::-1] if steps > 1 else [last]


def _lands_on_x0(scheduler: Any) -> bool:
    """Whether stepping from noise with a constant x0 ends at that x0, on a variance-preserving schedule."""
    try:
        trial = _from_given_x0(scheduler)
        trial.set_timesteps(8)
        if not hasattr(trial, "alphas_cumprod") or abs(float(trial.init_noise_sigma) - 1) > 1e-3:
            return False
        x, x0 = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((1, 1, 4, 4), 0.3)
        for t in trial.timesteps:
            x = trial.step(x0, t, x).prev_sample
        return bool((x - x0).abs().max() < 0.05)
    except Exception:  # various types; any exception means no
        return False


def _refusal(scheduler: Any) -> InputError:
    return InputError(
        f"{type(scheduler).__name__} cannot step from a given x0; use DDIMScheduler, DDPMScheduler or "
        "DPMSolverMultistepScheduler."
    )
