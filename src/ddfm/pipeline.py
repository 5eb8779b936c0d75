"""Fusion by posterior sampling: the only sampling loop."""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ddfm.colour import join, prior_join, prior_split, split
from ddfm.errors import InputError
from ddfm.image_processor import (
    OutputType,
    as_batch,
    as_output,
    check_sources,
    finished,
    to_luma,
    without_false_colours,
)
from ddfm.io.images import as_pixels
from ddfm.likelihoods import LIKELIHOODS, Likelihood, Released, check_likelihood
from ddfm.prior import Denoiser, Progress, load_prior
from ddfm.prior.unet import ResidualUNet
from ddfm.schedulers import make_sampler, shorthand
from ddfm.settings import FusionSettings, Precision, changed
from ddfm.threads import on_free_cores

Callback = Callable[["DDFMPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class FusionOutput(BaseOutput):
    """What `DDFMPipeline` returns.

    Attributes:
        images: The fused images in [0, 1], with the colour of the sources: float32 (B, H, W) or (B, H, W, 3) for "np",
            a list of PIL images for "pil", a tensor (B, 1 or 3, H, W) for "pt".
        samples: The final sample in the network's range, (B, C, H, W), nominally in [-1, 1], not clipped; with
            num_samples = K > 1 all samples, (K, B, C, H, W).
        std: With num_samples > 1, the standard deviation of the fused luma, (B, H, W), luma in [0, 1]: the spread of
            the samples combined with the likelihood's `variance` (by default, the uncertainty left by denoising).
    """

    images: np.ndarray | list[PIL.Image.Image] | Tensor
    samples: Tensor
    std: np.ndarray | None = None


class DDFMPipeline(DiffusionPipeline):
    """DDFM: a sample of p(f | sources) ~ p(f) p(sources | f) with an unconditional diffusion model as p(f).

    Args:
        unet: The prior's network with 1 (luma) or 3 (RGB) channels: `UNet2DModel`, `ResidualUNet` or a compatible one.
        scheduler: The schedule the network was trained on, its prediction type, and the sampler: swap in another with
            `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`. With `strength` below 1, a scheduler
            that does not accept custom timesteps runs the last of its own.
    """

    model_cpu_offload_seq = "unet"  # type: ignore[assignment]
    _callback_tensor_inputs = ("latents", "x0")

    def __init__(self, unet: UNet2DModel | ResidualUNet, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)  # type: ignore[no-untyped-call]
        self._interrupt = False

    @classmethod
    def from_prior(
        cls,
        source: str | Path = "embedded",
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "DDFMPipeline":
        """A pipeline around `load_prior(source, device, dtype)` that samples by DDIM; for errors see `load_prior`."""
        prior = load_prior(source, device, dtype)
        return cls(prior.unet, shorthand(prior.scheduler.config, "ddim"))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[Any], **options: Any) -> "DDFMPipeline":
        """As in diffusers, for a saved pipeline; raises InputError for a prior that only `from_prior` loads."""
        name = str(pretrained_model_name_or_path)
        if name in ("embedded", "openai-256") or name.endswith(".pt"):
            raise InputError(f"{name} is a prior, not a saved pipeline: use DDFMPipeline.from_prior({name!r}).")
        pipe: DDFMPipeline = super().from_pretrained(pretrained_model_name_or_path, **options)
        return pipe

    def set_progress_bar_config(self, **options: Any) -> None:
        """As in diffusers: options of tqdm's bar over the steps, such as `disable=True`."""
        super().set_progress_bar_config(**options)  # type: ignore[no-untyped-call]

    def denoiser(self, **options: Any) -> Denoiser:
        """The prior as a function, `x0 = pipe.denoiser(tile=256)(x_t, t)`; takes the options of `Denoiser`."""
        return Denoiser(self.unet, self.scheduler, device=self._execution_device, **options)

    @torch.no_grad()
    def clean(
        self,
        source: Any,
        settings: FusionSettings | None = None,
        *,
        progress: Progress | None = None,
        **changes: Any,
    ) -> np.ndarray | None:
        """A source without its noise and stripes, as the likelihood would clean it; None if that changes nothing.

        Use it before resampling a source: noise can be told from detail only on the source's original grid. Arguments
        as in `__call__`; returns float32 (H, W) or (H, W, 3) in [0, 1].
        """
        settings = changed(settings, changes)
        model, pixels = likelihood_of(settings), as_pixels(source)
        if not hasattr(model, "clean"):
            return None
        device = self._execution_device
        denoiser = self.denoiser(
            tile=settings.tile, tile_overlap=settings.tile_overlap, precision=_precision(settings), progress=progress
        )
        with on_free_cores(device):
            noisy = to_luma([pixels]).to(device)
            cleaned = model.clean(noisy, denoiser.at)
        if (cleaned - noisy).abs().max() < 1e-6:
            return None
        y = ((cleaned[0, 0] + 1) / 2).cpu().numpy()
        return y if pixels.ndim == 2 else join(y, split(pixels)[1])

    @property
    def num_timesteps(self) -> int:
        """Number of steps in the current run, for callbacks that show progress."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback stopped the run by setting `pipe._interrupt = True`; the run ends after that step."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        sources: Sequence[Any],
        settings: FusionSettings | None = None,
        *,
        latents: Tensor | None = None,
        generator: Generators = None,
        output_type: OutputType = "np",
        return_dict: bool = True,
        progress: Progress | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **changes: Any,
    ) -> FusionOutput | tuple[Any, ...]:
        """Fuse registered images of one scene.

        Args:
            sources: One entry per sensor, [infrared, visible] or [MRI, PET]: an image, or a list of B images for a
                batch. An image is a uint8, uint16 or [0, 1] float array (H, W) or (H, W, 3), a tensor, a PIL image or
                a path; all of the same size, at least 16 x 16.
            settings: How to fuse; `changes` override its fields: `pipe(sources, likelihood="paper", tile=256)`. Its
                seed is used when neither `generator` nor `latents` is given.
            latents: The initial noise, (B, C, H, W), for a single sample; drawn with `generator` if None.
            generator: For reproducible noise; a list of B makes each image independent of its batch.
            output_type: "np", "pil" or "pt".
            return_dict: Whether to return a `FusionOutput` instead of the tuple (images, samples, std).
            progress: Called with (network evaluations done, fractional while tiling; total, which may increase).
            callback_on_step_end: Called after each step with (pipeline, i, t, tensors); may return a dict with new
                "latents". A diffusers `PipelineCallback` works as well.
            callback_on_step_end_tensor_inputs: The tensors it gets: "latents" (f_t) and "x0" (rectified).
            changes: Fields of `FusionSettings`.

        Raises:
            InputError: a source that is not an image, sizes that differ, an unknown name, a tile that does not fit, a
                scheduler that cannot step from a given x0.
        """
        # 1. Arguments
        settings = changed(settings, changes)
        callback, tensors = callback_on_step_end, tuple(callback_on_step_end_tensor_inputs)
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            tensors = tuple(callback.tensor_inputs)
        if isinstance(sources, (str, bytes)) or not isinstance(sources, (Sequence, np.ndarray, Tensor)):
            raise InputError(f"The sources are a list with one entry per sensor, not {type(sources).__name__}.")
        images = [as_batch(source) for source in sources]
        model, size = likelihood_of(settings), check_sources(images)
        without_false_colours(images)
        steps = model.steps if settings.num_inference_steps is None else settings.num_inference_steps
        strength = model.strength if settings.strength is None else settings.strength
        scheduler = shorthand(self.scheduler.config, settings.sampler) if settings.sampler else self.scheduler
        samplers = [make_sampler(scheduler, steps, strength) for _ in range(settings.num_samples)]
        if generator is None:
            generator = torch.Generator().manual_seed(settings.seed)

        # 2. The prior as a denoiser, for the steps and for noisy sources
        device = self._execution_device
        denoiser = self.denoiser(
            tile=settings.tile, tile_overlap=settings.tile_overlap, precision=_precision(settings), progress=progress
        )
        denoiser.total = sum(len(timesteps) for _, timesteps in samplers)
        shape = (len(images[0]), denoiser.channels, *size)
        self._check_call(output_type, latents, shape, settings.num_samples, generator, tensors)

        # 3. Samples of the posterior
        with on_free_cores(device):
            state = model.start([to_luma(batch).to(device) for batch in images], denoiser.at)
            samples = []
            for sampler, timesteps in samplers:
                f_t = randn_tensor(shape, generator, device) if latents is None else latents.to(device, torch.float32)
                if strength < 1:
                    f_t = denoiser.add_noise(model.initial_estimate(state).expand(shape), f_t, timesteps[0])
                samples.append(
                    self._sample(f_t, model, state, sampler, timesteps, denoiser, generator, callback, tensors)
                )
        uncertain = model.variance(state) if len(samples) > 1 and hasattr(model, "variance") else 0
        del state, f_t
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]

        # 4. Luma to images
        lumas = torch.stack([prior_split(sample)[0] for sample in samples])
        fused = as_output(finished(lumas.mean(dim=0), images, settings), output_type)
        std = ((lumas / 2).var(dim=0) + uncertain).sqrt()[:, 0].cpu().numpy() if len(samples) > 1 else None
        output = FusionOutput(images=fused, samples=samples[0] if len(samples) == 1 else torch.stack(samples), std=std)
        return output if return_dict else (output.images, output.samples, output.std)

    def _sample(
        self,
        f_t: Tensor,
        likelihood: Likelihood,
        state: Any,
        scheduler: Any,
        timesteps: list[int],
        denoiser: Denoiser,
        generator: Generators,
        callback: Any,
        callback_tensors: tuple[str, ...],
    ) -> Tensor:
        """Algorithm 1: from f_T (or f_t of an initial estimate) to f_0."""
        split, join = _luma_of(likelihood, denoiser.channels)
        noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        self._interrupt, self._num_timesteps = False, len(timesteps)
        for i, t in enumerate(self.progress_bar(timesteps)):
            x0 = denoiser(f_t, t).clamp(-1, 1)  # the prior's estimate, E[f0 | f_t]
            y0, chroma = split(x0)
            y0, state = likelihood.rectify(y0, state, denoiser.sigmas[t].item())  # one EM step towards the sources
            x0 = join(y0, chroma)
            f_t = scheduler.step(x0, t, f_t, **noise).prev_sample  # f_t -> f_{t-1}
            if callback is not None:
                given = {"latents": f_t, "x0": x0}
                f_t = _latents(callback(self, i, t, {name: given[name] for name in callback_tensors}), given)
            if self._interrupt:
                break
        return f_t

    def _check_call(
        self,
        output_type: str,
        latents: Tensor | None,
        shape: tuple[int, ...],
        num_samples: int,
        generator: Any,
        tensors: tuple[str, ...],
    ) -> None:
        if output_type not in get_args(OutputType):
            raise InputError(f"output_type must be one of {', '.join(get_args(OutputType))}, not {output_type!r}.")
        if latents is not None:
            if not isinstance(latents, Tensor) or latents.shape != shape:
                raise InputError(f"latents must be a tensor of shape {shape}, not {getattr(latents, 'shape', '')}.")
            if not torch.isfinite(latents).all():
                raise InputError("The latents contain NaN or infinity.")
            if num_samples > 1:
                raise InputError(f"num_samples must be 1 when latents are given, not {num_samples}.")
        generators = generator if isinstance(generator, (list, tuple)) else [generator]
        if any(not isinstance(one, torch.Generator) for one in generators) or len(generators) not in (1, shape[0]):
            raise InputError(f"generator must be a torch.Generator or a list of {shape[0]}, not {generator!r}.")
        if unknown := [name for name in tensors if name not in self._callback_tensor_inputs]:
            raise InputError(
                f"callback_on_step_end_tensor_inputs may be {', '.join(self._callback_tensor_inputs)}, "
                f"not {unknown[0]!r}."
            )


setattr(diffusers, DDFMPipeline.__name__, DDFMPipeline)  # where DiffusionPipeline.from_pretrained looks for it


def likelihood_of(settings: FusionSettings) -> Likelihood:
    """The likelihood that the settings name, or the object that they hold. Raises InputError for any other object."""
    if not isinstance(settings.likelihood, str):
        check_likelihood(settings.likelihood)
        given: Likelihood = settings.likelihood
        return given
    changes: dict[str, Any] = {"roles": settings.roles} if settings.roles else {}
    if settings.contrast == "strong":
        changes["contrast"] = "strong"
    if changes and settings.likelihood != "salient":
        raise InputError(f"{min(changes)} is a setting of the likelihood salient, not of {settings.likelihood}.")
    model = LIKELIHOODS[settings.likelihood]
    return replace(model, **changes) if changes else model  # type: ignore[type-var]


def _precision(settings: FusionSettings) -> Precision:
    """float32 where published runs are reproduced: a hundred steps in bfloat16 give a different result."""
    exact = settings.likelihood == "released" or isinstance(settings.likelihood, Released)
    return "float32" if exact and settings.precision == "auto" else settings.precision


def _latents(returned: dict[str, Tensor] | None, given: dict[str, Tensor]) -> Tensor:
    """The latents after a callback. Raises InputError if it changes anything else."""
    returned = returned or {}
    latents, before = returned.get("latents", given["latents"]), given["latents"]
    if others := [name for name in returned if name != "latents" and returned[name] is not given.get(name)]:
        raise InputError(f"A callback may replace the latents, but not {others[0]}.")
    if not isinstance(latents, Tensor) or latents.shape != before.shape:
        raise InputError(f"The latents that a callback returns must be a tensor of shape {tuple(before.shape)}.")
    return latents


def _luma_of(likelihood: Likelihood, channels: int) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """How x0 is split into luma and chroma and joined again: for RGB by the likelihood's methods, if it has them."""
    if channels == 3 and hasattr(likelihood, "split") and hasattr(likelihood, "join"):
        return likelihood.split, likelihood.join
    return prior_split, prior_join


def quiet_pipeline(prior: str | Path, device: str | None) -> DDFMPipeline:
    """`DDFMPipeline.from_prior` without its progress bar, for callers that show their own progress or none."""
    pipe = DDFMPipeline.from_prior(prior, device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


_kept_pipeline = functools.lru_cache(maxsize=2)(quiet_pipeline)


def fuse(
    infrared: Any,
    visible: Any,
    *others: Any,
    prior: str | Path = "embedded",
    device: str | None = None,
    settings: FusionSettings | None = None,
    **changes: Any,
) -> np.ndarray:
    """Fuse registered images; the prior is loaded once and cached for later calls.

    Args:
        infrared: The first source (infrared, MRI, ...): path, array, tensor or PIL image; see `DDFMPipeline.__call__`.
        visible: The second source (visible, CT, PET, SPECT, ...).
        others: Further sources, if the likelihood accepts more than two.
        prior: As in `load_prior`.
        device: "cpu", "cuda", ...; None for CUDA if available.
        settings: How to fuse; the same seed gives the same image on the same machine.
        changes: Fields of `FusionSettings`, or arguments of `DDFMPipeline.__call__` other than those of its output.

    Returns:
        float32 in [0, 1]: (H, W, 3) with the colour of the sources, or (H, W) if all are grey.

    Raises:
        InputError: an image, prior or setting that cannot be used.
    """
    if output := {"output_type", "return_dict"} & set(changes):
        raise InputError(f"fuse returns a float32 array; to set {min(output)}, call a DDFMPipeline.")
    sources = [infrared, visible, *others]
    if any(isinstance(source, (list, tuple)) or getattr(source, "ndim", 0) == 4 for source in sources):
        raise InputError("fuse takes one image per sensor; for a batch call a DDFMPipeline.")
    pipe = _kept_pipeline(str(prior), device)
    fused = pipe(sources, settings, **changes).images  # type: ignore[union-attr]
    return np.asarray(fused[0])
