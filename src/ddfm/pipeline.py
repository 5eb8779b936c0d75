"""Fusion by posterior sampling: the only sampling loop."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ddfm.colour import Mode, fused_colour, luma, prior_join, prior_split
from ddfm.errors import InputError
from ddfm.io.images import as_pixels
from ddfm.likelihoods import LIKELIHOODS, Likelihood
from ddfm.prior.load import Tile, Unet, auto_tile, best_device, denoise, image_channels, load_prior, noise_over_signal
from ddfm.prior.tiling import OVERLAP

Sampler = Literal["ddim", "ddpm", "dpm++"]
Contrast = Literal["keep", "minmax"]
OutputType = Literal["np", "pil", "pt"]
Progress = Callable[[float, int], None]  # (done, a fraction for what is under way; in all, which may grow)
Callback = Callable[["DDFMPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]
SMALLEST = 16  # pixels a side


@dataclass
class FusionOutput(BaseOutput):
    """What `DDFMPipeline` returns.

    Attributes:
        images: The fused images in [0, 1], in the colour of the sources: float32 (B, H, W) or (B, H, W, 3) for "np",
            a list of PIL images for "pil", a tensor (B, 1 or 3, H, W) for "pt".
        samples: The last sample as the network sees it, (B, C, H, W), nominally in [-1, 1], not clipped; with
            num_samples = K > 1 all of them, (K, B, C, H, W).
        std: With num_samples > 1, the standard deviation of the fused luma over the samples, (B, H, W), luma in [0, 1].
    """

    images: np.ndarray | list[PIL.Image.Image] | Tensor
    samples: Tensor
    std: np.ndarray | None = None


class DDFMPipeline(DiffusionPipeline):
    """DDFM: a sample of p(f | sources) ~ p(f) p(sources | f) with an unconditional diffusion model as p(f).

    Args:
        unet: The prior's network, `UNet2DModel` or `ResidualUNet` of 1 (luma) or 3 (RGB) channels.
        scheduler: The schedule it was trained on and what it predicts.
    """

    def __init__(self, unet: Unet, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def from_prior(
        cls,
        source: str | Path = "embedded",
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "DDFMPipeline":
        """A pipeline around `load_prior(source, device, dtype)`; see there for what they are and the errors."""
        prior = load_prior(source, device, dtype)
        return cls(prior.unet, prior.scheduler)

    def denoise(
        self,
        x_t: Tensor,
        t: int,
        tile: Tile = "auto",
        tile_overlap: int = OVERLAP,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """The prior's x0 for (B, C, H, W) in [-1, 1] at integer time step t, any size; float32, not clipped.

        `tile`, `tile_overlap`, `progress` as in `prior.denoise`; with "auto" in one piece where the memory allows it.
        """
        return denoise(self.unet, self.scheduler, x_t, int(t), tile, tile_overlap, progress)

    @property
    def num_timesteps(self) -> int:
        """Steps of the run in progress, for a callback that shows it."""
        return self._num_timesteps

    def _noised(self, x0: Tensor, noise: Tensor, t: int) -> Tensor:
        """A sample of q(f_t | f_0)."""
        a = self.scheduler.alphas_cumprod[t].item()
        return a**0.5 * x0 + (1 - a) ** 0.5 * noise

    def _clean(self, denoise: Callable[[Tensor, int], Tensor], y: Tensor, sigma: float) -> Tensor:
        """The prior as a denoiser: E[clean | y] for luma (B, 1, H, W) in [-1, 1] with white noise of std sigma."""
        t = int((noise_over_signal(self.scheduler) - sigma).abs().argmin())
        x = y.expand(-1, image_channels(self.unet), -1, -1)
        return prior_split(denoise(self._noised(x, torch.zeros_like(x), t), t))[0]

    @torch.no_grad()
    def __call__(
        self,
        sources: Sequence[Any],
        likelihood: str | Likelihood = "salient",
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        strength: float | None = None,
        num_samples: int = 1,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        contrast: Contrast = "keep",
        colour: Mode = "auto",
        output_type: OutputType = "np",
        tile: Tile = "auto",
        tile_overlap: int = OVERLAP,
        progress: Progress | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> FusionOutput:
        """Fuse registered images of one scene.

        Args:
            sources: One entry a sensor, [infrared, visible] or [MRI, PET]: an image, or a list of B images for a
                batch. An image is a uint8, uint16 or [0, 1] float array (H, W) or (H, W, 3), a tensor, a PIL image or
                a path; all of one size, 16 x 16 or more.
            likelihood: "salient" (ours), "paper" (Algorithm 1 as printed), "released" (the released code to the
                letter), or an object such as `Paper(eta=1.0)`.
            sampler: "ddim" (deterministic, eta 0), "ddpm" (ancestral, the paper's), "dpm++" (second order).
            num_inference_steps: Reverse steps, each one evaluation of the network; None for the likelihood's own.
            strength: Share of the noise schedule that the steps span, in (0, 1]; 1 starts from pure noise, less from
                the likelihood's first guess with noise added. None for the likelihood's own.
            num_samples: Draw so many samples of the posterior and return their mean, and their spread as `std`.
            latents: The noise to start from, (B, C, H, W), of a single sample; drawn with `generator` if None.
            generator: For reproducible noise; a list of B makes each image independent of its batch.
            contrast: "keep", or "minmax" to stretch each fused luma to [0, 1] as the released code does on saving.
            colour: Whose chroma the result gets, see `colour.fused_colour`.
            output_type: "np", "pil" or "pt".
            tile: Large images go through the network in overlapping tiles, blended before the likelihood sees them:
                pixels a side, a multiple of the network's (16 for the embedded prior); None for never; "auto" decides
                by the free memory, once, and never tiles a small image (2.7 megapixels with the embedded prior).
            tile_overlap: Pixels that neighbouring tiles share.
            progress: Called with (evaluations of the network done, a fraction for the tiles of the one under way;
                evaluations in all) after each call of the network; cleaning a noisy source adds one to the second.
            callback_on_step_end: Called after each step as (pipeline, i, t, {"latents": f_t, "x0": x0}); may return
                a dict with other "latents".

        Raises:
            InputError: a source that is no image, sizes that differ, an unknown name, a tile that does not fit.
        """
        for name, known, what in (
            (contrast, Contrast, "contrast"),
            (colour, Mode, "colour mode"),
            (output_type, OutputType, "output type"),
        ):
            _named(name, dict.fromkeys(get_args(known)), what)
        pictures = [_batch(source) for source in sources]
        _check(pictures)
        model = _named(likelihood, LIKELIHOODS, "likelihood") if isinstance(likelihood, str) else likelihood
        steps = model.steps if num_inference_steps is None else num_inference_steps
        strength = model.strength if strength is None else strength
        size = pictures[0][0].shape[:2]
        shape = (len(pictures[0]), image_channels(self.unet), *size)
        if latents is not None and latents.shape != shape:
            raise InputError(f"latents must have the shape {shape}, not {tuple(latents.shape)}")
        if num_samples < 1 or (num_samples > 1 and latents is not None):
            raise InputError(f"num_samples is 1 or more, and 1 where latents are given, not {num_samples}")
        if tile == "auto":
            tile = auto_tile(self.unet, *size)
        schedulers = [_step_scheduler(self.scheduler, sampler, steps, strength) for _ in range(num_samples)]
        work = _Work(progress, sum(len(scheduler.timesteps) for scheduler in schedulers))

        def denoise(x_t: Tensor, t: int) -> Tensor:
            with work.evaluation() as fraction:
                return self.denoise(x_t, t, tile, tile_overlap, fraction)

        def clean(y: Tensor, sigma: float) -> Tensor:
            work.total += 1
            return self._clean(denoise, y, sigma)

        state = model.start([_to_luma(batch).to(self.device) for batch in pictures], clean)
        samples = []
        for scheduler in schedulers:
            f_t = randn_tensor(shape, generator, self.device) if latents is None else latents
            f_t = f_t.to(self.device, torch.float32)
            if strength < 1:
                f_t = self._noised(model.initial_estimate(state).expand(shape), f_t, int(scheduler.timesteps[0]))
            samples.append(self._sample(f_t, model, state, scheduler, denoise, generator, callback_on_step_end))
        del state, f_t

        lumas = torch.stack([prior_split(sample)[0] for sample in samples])
        images = _finish(lumas.mean(dim=0), pictures, contrast, colour)
        return FusionOutput(
            images=_as_output(images, output_type),
            samples=samples[0] if num_samples == 1 else torch.stack(samples),
            std=None if num_samples == 1 else (lumas.std(dim=0)[:, 0] / 2).cpu().numpy(),
        )

    def _sample(
        self,
        f_t: Tensor,
        model: Likelihood,
        state: Any,
        scheduler: Any,
        denoise: Callable[[Tensor, int], Tensor],
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callback | None,
    ) -> Tensor:
        """Algorithm 1: from f_T (or f_t of a first guess) to f_0."""
        timesteps, sigmas = scheduler.timesteps.tolist(), noise_over_signal(self.scheduler)
        self._num_timesteps = len(timesteps)
        split, join = _luma_of(model, f_t.shape[1])
        for i, t in enumerate(self.progress_bar(timesteps)):
            x0 = denoise(f_t, t).clamp(-1, 1)  # the prior's guess, E[f0 | f_t]
            y0, chroma = split(x0)
            y0, state = model.rectify(y0, state, sigmas[t].item())  # one EM step towards the sources
            x0 = join(y0, chroma)
            f_t = scheduler.step(x0, t, f_t, generator=generator).prev_sample  # f_t -> f_{t-1}
            if callback is not None:
                f_t = (callback(self, i, t, {"latents": f_t, "x0": x0}) or {}).get("latents", f_t)
        return f_t


def _luma_of(likelihood: Likelihood, channels: int) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """How x0 is split into luma and chroma and joined again: the likelihood's own way for RGB, if it has one."""
    if channels == 3 and hasattr(likelihood, "split") and hasattr(likelihood, "join"):
        return likelihood.split, likelihood.join
    return prior_split, prior_join


@dataclass
class _Work:
    """Counts evaluations of the network and tells `progress`."""

    progress: Progress | None
    total: int
    done: int = 0

    @contextmanager
    def evaluation(self) -> Iterator[Callable[[float], None]]:
        """One of them; gives the function to be told the fraction that is done."""
        yield self.report
        self.done += 1

    def report(self, fraction: float) -> None:
        if self.progress is not None:
            self.progress(self.done + fraction, self.total)


def _named(name: str, known: dict[str, Any], what: str) -> Any:
    if name not in known:
        raise InputError(f"no {what} called {name!r}: choose one of {', '.join(known)}")
    return known[name]


def _batch(source: Any) -> list[np.ndarray]:
    """One sensor's images: a single one is a batch of one."""
    many = isinstance(source, (list, tuple)) or (isinstance(source, Tensor) and source.ndim == 4)
    return [as_pixels(picture) for picture in source] if many else [as_pixels(source)]


def _check(pictures: list[list[np.ndarray]]) -> None:
    if len(pictures) < 2:
        raise InputError(f"fusion takes two or more sources, not {len(pictures)}")
    if len({len(batch) for batch in pictures}) > 1 or not pictures[0]:
        raise InputError(f"every sensor needs the same number of images, not {[len(batch) for batch in pictures]}")
    sizes = list(dict.fromkeys(f"{p.shape[1]}x{p.shape[0]}" for batch in pictures for p in batch))
    if len(sizes) > 1:
        raise InputError(f"the sources differ in size ({' and '.join(sizes[:2])}): register them to one size first")
    if min(pictures[0][0].shape[:2]) < SMALLEST:
        raise InputError(f"the images are {sizes[0]}: at least {SMALLEST}x{SMALLEST} is needed")


def _to_luma(batch: list[np.ndarray]) -> Tensor:
    """Images in [0, 1] to luma (B, 1, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([luma(picture) for picture in batch])).unsqueeze(1) * 2 - 1


def _step_scheduler(trained: DDPMScheduler, sampler: str, steps: int, strength: float) -> Any:
    """The scheduler that steps with a given x0 (`prediction_type="sample"`) on the prior's own noise schedule.

    `solver_order=1` with the released code's time steps is its DDIM; diffusers' DDIMScheduler is not: it takes
    t - 1000 // steps for the previous step.
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength is above 0 and at most 1, not {strength}")
    last = round(strength * (len(trained.betas) - 1))
    if not 1 <= steps <= last + 1:
        raise InputError(f"the number of steps is between 1 and {last + 1}, not {steps}")
    common: dict[str, Any] = {"trained_betas": trained.betas.numpy(), "prediction_type": "sample"}
    make: dict[str, Callable[[], DDPMScheduler | DPMSolverMultistepScheduler]] = {
        "ddim": lambda: DPMSolverMultistepScheduler(solver_order=1, final_sigmas_type="zero", **common),
        "dpm++": lambda: DPMSolverMultistepScheduler(solver_order=2, final_sigmas_type="zero", **common),
        "ddpm": lambda: DDPMScheduler(clip_sample=False, **common),
    }
    scheduler = _named(sampler, make, "sampler")()
    timesteps = _even_in_log_sigma(trained, last, steps) if sampler == "dpm++" else _even(last, steps)
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


def _even(last: int, steps: int) -> list[int]:
    """Time steps evenly spaced from `last` to 0, both included, as in the released code; a single one is `last`."""
    return [round(k * last / (steps - 1)) for k in reversed(range(steps))] if steps > 1 else [last]


def _even_in_log_sigma(trained: DDPMScheduler, last: int, steps: int) -> list[int]:
    """The same, evenly spaced in the log of noise over signal: what a second-order solver needs to be one."""
    a = trained.alphas_cumprod[: last + 1].double()
    log_sigma = ((1 - a) / a).log().numpy()
    at = np.interp(np.linspace(log_sigma[0], log_sigma[-1], steps), log_sigma, np.arange(last + 1))
    distinct: list[int] = []
    for k, t in enumerate(at.round().astype(int).tolist()):
        above = distinct[-1] + 1 if distinct else 0
        distinct.append(min(max(t, above), last - (steps - 1 - k)))
    return distinct[::-1] if steps > 1 else [last]


def _finish(lumas: Tensor, pictures: list[list[np.ndarray]], contrast: str, colour: Mode) -> list[np.ndarray]:
    """The network's image to the user's: luma in [0, 1], contrast, colour of the sources."""
    fused = []
    for k, y in enumerate(lumas[:, 0].cpu().numpy()):
        low, high = (y.min(), y.max()) if contrast == "minmax" else (-1, 1)
        y = np.clip((y - low) / max(float(high - low), 1e-12), 0, 1)
        fused.append(fused_colour(y, [batch[k] for batch in pictures], colour))
    return fused


def _as_output(images: list[np.ndarray], output_type: str) -> np.ndarray | list[PIL.Image.Image] | Tensor:
    if output_type == "pil":
        return [PIL.Image.fromarray(np.rint(image * 255).astype(np.uint8)) for image in images]
    if any(image.ndim == 3 for image in images):  # a batch has one shape
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in images]
    stacked = np.stack(images)
    if output_type == "pt":
        return torch.from_numpy(stacked if stacked.ndim == 4 else stacked[..., None]).permute(0, 3, 1, 2).contiguous()
    return stacked


@functools.lru_cache(maxsize=2)
def _pipeline(prior: str, device: str) -> DDFMPipeline:
    return DDFMPipeline.from_prior(prior, device)


def fuse(
    infrared: Any,
    visible: Any,
    *others: Any,
    prior: str | Path = "embedded",
    device: str | None = None,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Fuse registered images; the prior is loaded once and kept for the next call.

    Args:
        infrared: The first source (infrared, MRI, ...): path, array, tensor or PIL image, see `DDFMPipeline.__call__`.
        visible: The second source (visible, CT, PET, SPECT, ...).
        others: Further sources, for a likelihood that takes them.
        prior: As in `load_prior`.
        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        seed: Of the noise; the same seed gives the same image on the same machine.
        options: Further arguments of `DDFMPipeline.__call__`.

    Returns:
        float32 in [0, 1]: (H, W, 3) in the colour of the sources, or (H, W) if all are grey.

    Raises:
        InputError: an image, prior or option that cannot be used.
    """
    pipeline = _pipeline(str(prior), best_device(device))
    generator = torch.Generator().manual_seed(seed)
    fused = pipeline([infrared, visible, *others], generator=generator, output_type="np", **options).images
    return np.asarray(fused[0])
