"""x0 = denoiser(x_t, t): the interface to the prior, including tiling, precision, padding and sigma <-> t."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ddfm.colour import prior_split
from ddfm.prior.load import image_channels, size_multiple
from ddfm.prior.precision import best_dtype
from ddfm.prior.tiling import auto_tile, blend, mirror, tiles_per_call
from ddfm.prior.unet import ResidualUNet
from ddfm.settings import OVERLAP, Precision, Tile

Progress = Callable[[float, int], None]  # (evaluations done, with the fraction of the current one; total, may increase)


@dataclass
class Denoiser:
    """E[x0 | x_t] (Tweedie) by an unconditional diffusion model, for images of any size.

    Args:
        unet: Predicts according to `scheduler.config.prediction_type`; extra output channels (a learned variance, as
            in OpenAI's models) are dropped.
        scheduler: The training schedule; any diffusers scheduler with betas.
        tile: None to process the whole batch at once; a size in pixels, a multiple of the network's, for overlapping
            tiles that are denoised a few at a time and blended; "auto" decides by the free memory. If the network
            normalises over its input (GroupNorm) or uses global attention, tiling changes the result slightly.
        tile_overlap: Pixels that neighbouring tiles share.
        precision: "float32", "bfloat16" (by autocast, without converting the weights), or "auto" for the fastest on
            the device.
        device: Where the network runs; None for the device of its weights.
        progress: Called with (evaluations done, total, which may increase) after each network call.
        total: Number of expected evaluations, for `progress`.
    """

    unet: Any
    scheduler: Any
    tile: Tile = "auto"
    tile_overlap: int = OVERLAP
    precision: Precision = "auto"
    device: torch.device | None = None
    progress: Progress | None = None
    total: int = 0

    def __post_init__(self) -> None:
        """Uses only the training schedule, regardless of the scheduler's inference steps."""
        self.schedule = DDPMScheduler.from_config(self.scheduler.config)
        self.on = torch.device(self.device or self.unet.device)
        self.channels = image_channels(self.unet)
        a = self.schedule.alphas_cumprod
        self.sigmas = ((1 - a) / a).sqrt()  # noise std over the signal's factor, (T,), ascending
        self._done = 0
        self._auto: dict[tuple[int, int], int] = {}  # tile by image size, decided once because the free memory changes

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """The denoised image, (B, C, H, W) float32, nominally in [-1, 1], not clipped.

        Args:
            x_t: (B, C, H, W), any size.
            t: Integer time step, 0 .. 999 for a schedule of 1000.

        Raises:
            InputError: a tile that is not a multiple of the network's, or not larger than the overlap.
        """
        t = int(t)
        if self.tile is None:
            x0 = self._evaluate(x_t, t)
            self._report(1.0)
        else:
            height, width = x_t.shape[-2:]
            tile = self._auto_tile(height, width) if self.tile == "auto" else self.tile
            at_once = tiles_per_call(self.unet, min(tile, height), min(tile, width), self.on)
            multiple = size_multiple(self.unet)
            x0 = blend(
                lambda part: self._evaluate(part, t), x_t, tile, self.tile_overlap, multiple, at_once, self._report
            )
        self._done += 1
        return x0

    def at(self, y: Tensor, sigma: float) -> Tensor:
        """E[clean | y] for luma y = clean + sigma n, (B, 1, H, W) in [-1, 1], at the time step nearest to sigma.

        Increases `total` by one evaluation.
        """
        self.total += 1
        t = int((self.sigmas - sigma).abs().argmin())
        y = y.expand(-1, self.channels, -1, -1)
        return prior_split(self(self.add_noise(y, torch.zeros_like(y), t), t))[0]

    def add_noise(self, x0: Tensor, noise: Tensor, t: int) -> Tensor:
        """A sample of q(x_t | x0)."""
        x_t: Tensor = self.schedule.add_noise(x0, noise, torch.tensor([t], device=x0.device))
        return x_t

    def _auto_tile(self, height: int, width: int) -> int:
        if (height, width) not in self._auto:
            self._auto[height, width] = auto_tile(self.unet, height, width, self.on)
        return self._auto[height, width]

    def _evaluate(self, x_t: Tensor, t: int) -> Tensor:
        height, width = x_t.shape[-2:]
        padded = reflect_pad(x_t, size_multiple(self.unet)).to(self.on)
        if not isinstance(self.unet, ResidualUNet):  # which takes float32 input whatever its dtype
            padded = padded.to(self.unet.dtype)
        with self._autocast():
            out: Tensor = self.unet(padded, t).sample
        out = out[:, : x_t.shape[1], :height, :width].to(x_t.device, torch.float32)
        kind = self.schedule.config["prediction_type"]
        if kind == "epsilon":
            sigma = self.sigmas[t].item()
            out = (1 + sigma**2) ** 0.5 * x_t - sigma * out
        if kind == "v_prediction":  # x0 is to (x_t, v) what v is to (noise, x0)
            out = self.schedule.get_velocity(out, x_t, torch.tensor([t], device=x_t.device))
        return out

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32" or self.unet.dtype != torch.float32:
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bfloat16" else best_dtype(self.on)
        return torch.autocast(self.on.type, dtype, enabled=dtype != torch.float32)

    def _report(self, fraction: float) -> None:
        if self.progress is not None:
            self.progress(self._done + fraction, self.total)


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """Grow (B, C, H, W) at the bottom and right to a multiple by mirroring, however small the image is."""
    for dim in (-2, -1):
        if x.shape[dim] % multiple:
            x = x.index_select(dim, mirror(x.shape[dim], multiple).to(x.device))
    return x
