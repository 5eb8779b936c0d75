"""p(f): find, load and evaluate an unconditional diffusion model; x_t -> x0 at any image size."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ddfm.errors import InputError
from ddfm.prior.tiling import OVERLAP, blend, mirror
from ddfm.prior.unet import ResidualUNet, UnshuffleUNet2DModel

Tile = int | Literal["auto"] | None
Unet = UNet2DModel | ResidualUNet

EMBEDDED = Path(__file__).parent / "weights"
SMALL = 2**31  # bytes: an image that the network takes in less is never tiled, whatever the machine is busy with
TILES = (1024, 512, 256)  # pixels a side, for "auto"
MOST_TOGETHER = 8  # tiles to a call on a GPU: more do not make it faster
PLANES = 24  # the network's memory a pixel, in planes of its first level: 15 to 23 were measured


@dataclass(frozen=True)
class Prior:
    """An unconditional diffusion model: the network and the schedule it was trained on."""

    unet: Unet
    scheduler: DDPMScheduler
    source: str


def best_device(device: str | None = None) -> str:
    """`device` as it was asked for; if none was, CUDA where there is one, else the CPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_prior(
    source: str | Path = "embedded", device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Prior:
    """Load an unconditional pixel-space diffusion prior.

    Args:
        source: "embedded" (in the package: luma, runs on a laptop); "openai-256" (the paper's, from the local cache);
            a guided-diffusion `.pt` (its `create_model` arguments in a `.json` of the same stem, else those of
            256x256_diffusion_uncond); a diffusers folder or hub id (`UNet2DModel` and scheduler, 1 or 3 channels).
        device: Where to put the network; None for the CPU.
        dtype: Of the network alone; its guess comes back in float32. bfloat16 is faster on processors and GPUs that
            compute in it, and slower elsewhere.

    Returns:
        The prior, in evaluation mode.

    Raises:
        InputError: no such prior or device, or a file that is not one. Pickled code is never run.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {device} is not one of this machine: choose cpu, or cuda if it has it") from error
    name = str(source)
    if name == "embedded":
        unet, scheduler = _from_folder(EMBEDDED, name)
    elif name == "openai-256":
        from ddfm.prior.download import cached

        folder = cached(name)
        if folder is None:
            raise InputError(
                "the prior openai-256 is not in the local cache: "
                "fetch it (2.2 GB, once) with `ddfm prior pull openai-256`"
            )
        unet, scheduler = _from_folder(folder, name)
    elif name.endswith(".pt"):
        from ddfm.prior.convert import load_guided_diffusion

        unet, scheduler = load_guided_diffusion(name)
    elif Path(name).is_dir():
        unet, scheduler = _from_folder(Path(name), name)
    elif Path(name).exists():
        raise InputError(f"the prior {name} is neither a guided-diffusion .pt nor a diffusers folder")
    else:
        unet, scheduler = _from_folder(_snapshot(name), name)
    image_channels(unet)  # refuses what is not unconditional and pixel-space
    unet.eval().requires_grad_(False)
    torch.nn.Module.to(unet, torch.device(device or "cpu"), dtype)  # diffusers' own warns about what is not there
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # convolutions are faster so
    return Prior(unet, scheduler, name)


def _from_folder(folder: Path, name: str) -> tuple[Unet, DDPMScheduler]:
    """A diffusers folder: unet/ and scheduler/ beside each other, or both in one place as in old DDPM repositories."""
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler_folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    try:
        config = json.loads((unet_folder / "config.json").read_text(encoding="utf-8"))
        classes: dict[str, Any] = {kind.__name__: kind for kind in (UNet2DModel, UnshuffleUNet2DModel, ResidualUNet)}
        unet_class = classes[config["_class_name"]]
        unet, keys = unet_class.from_pretrained(
            unet_folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        if wrong := [*keys["missing_keys"], *keys["unexpected_keys"]]:  # else it would be partly random, with a warning
            raise ValueError(f"the weights do not fit the configuration: {wrong[0]} is missing or left over")
        scheduler = DDPMScheduler.from_pretrained(scheduler_folder)
        if scheduler.config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {scheduler.config['prediction_type']} is not known")
        if isinstance(unet, ResidualUNet) and not _agree(unet.schedule, scheduler):
            raise ValueError("the schedule of the network's config.json is not that of scheduler_config.json")
    except Exception as error:  # diffusers raises many kinds; the user needs one sentence
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the prior {name} cannot be loaded as a diffusers folder with a UNet2DModel in safetensors "
            f"and a scheduler_config.json ({type(error).__name__}: {reason})"
        ) from error
    return unet, scheduler


def _agree(one: DDPMScheduler, other: DDPMScheduler) -> bool:
    """The same prediction type and the same noise at each time step."""
    return one.config["prediction_type"] == other.config["prediction_type"] and torch.equal(one.betas, other.betas)


def _snapshot(name: str) -> Path:
    """A hub id, downloaded to the hub's own cache: configuration and safetensors only."""
    from huggingface_hub import snapshot_download

    patterns = [f"{folder}{file}" for folder in ("", "unet/", "scheduler/") for file in ("*.json", "*.safetensors")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # not a hub id, no such repository, no network: one sentence for all
        raise InputError(
            f"no prior called {name!r}: give embedded, openai-256, a .pt file, a diffusers folder or a hub id "
            f"that can be reached ({type(error).__name__})"
        ) from error


def image_channels(unet: Unet) -> int:
    """Channels of the images the network was trained on, 1 (luma) or 3 (RGB).

    Raises:
        InputError: a class-conditional network, or one of latents.
    """
    channels = int(getattr(unet, "image_channels", unet.config["in_channels"]))
    if unet.config.get("num_class_embeds") or unet.config.get("class_embed_type"):
        raise InputError("the prior must be unconditional, this one asks for class labels")
    if channels not in (1, 3):
        raise InputError(f"the prior must be of pixels (1 or 3 channels), this one has {channels} channels")
    return channels


def size_multiple(unet: Unet) -> int:
    """Height and width that the network takes are multiples of this."""
    return getattr(unet, "unshuffle", 1) * 2 ** (len(unet.config["block_out_channels"]) - 1)


def noise_over_signal(scheduler: DDPMScheduler) -> Tensor:
    """Standard deviation of the noise over the factor of the signal at each time step, (1000,), ascending."""
    a = scheduler.alphas_cumprod
    return ((1 - a) / a).sqrt()


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """Grow (B, C, H, W) at the bottom and right to a multiple by mirroring, however small the image is."""
    for dim in (-2, -1):
        if x.shape[dim] % multiple:
            x = x.index_select(dim, mirror(x.shape[dim], multiple).to(x.device))
    return x


def bytes_per_pixel(unet: Unet) -> int:
    """About what an evaluation of the network takes for each pixel of an image, on the safe side."""
    return PLANES * unet.config["block_out_channels"][0] * unet.dtype.itemsize // getattr(unet, "unshuffle", 1) ** 2


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; for the CPU within the limit of its container, where there is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such thing here, or no limit ("max")
        return free
    return min(free, max(limit - used, 0))


def auto_tile(unet: Unet, height: int, width: int) -> int:
    """The tile of `tile="auto"`: the whole image if the network takes it in half of the free memory, else a tile.

    It does not depend on the size of the batch: images that do not fit together go through the network in turn. Ask
    once a run, not once a step: the free memory changes.
    """
    multiple, cost = size_multiple(unet), bytes_per_pixel(unet)
    whole = -(-max(height, width) // multiple) * multiple
    if height * width * cost <= SMALL or whole <= TILES[-1]:
        return whole
    room = max(free_memory(unet.device) // 2, SMALL)
    if height * width * cost <= room:
        return whole
    return next((tile for tile in TILES if tile**2 * cost <= room), TILES[-1])


def tiles_together(unet: Unet, height: int, width: int) -> int:
    """Tiles of a size, or images that are one tile, to a call of the network; what it depends on does not change.

    On the CPU one: more are not faster there, and so no bit of an image depends on the others of its batch.
    """
    if unet.device.type == "cpu":
        return 1
    return min(max(SMALL // (max(height * width, 1) * bytes_per_pixel(unet)), 1), MOST_TOGETHER)


@torch.no_grad()
def denoise(
    unet: Unet,
    scheduler: DDPMScheduler,
    x_t: Tensor,
    t: int,
    tile: Tile = None,
    overlap: int = OVERLAP,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """The prior's guess x0~ = E[f0 | f_t] (Tweedie), (B, C, H, W) float32, not clipped.

    Args:
        unet: Predicts what `scheduler.config.prediction_type` says; further output channels (a learned variance, as
            OpenAI's models have) are dropped.
        scheduler: Its `alphas_cumprod` are those of the training.
        x_t: (B, C, H, W), any size.
        t: Integer time step, 0 .. 999 for a schedule of 1000.
        tile: None for the whole batch at once; pixels a side, a multiple of the network's, for overlapping tiles
            denoised a few at a time and blended; "auto" for `auto_tile`. Where the network normalises over its input
            (GroupNorm) or attends to all of it, tiles give slightly another result than the whole.
        overlap: Pixels that neighbouring tiles share.
        progress: Called with the fraction done, in (0, 1], after each call of the network.

    Raises:
        InputError: a tile that is no multiple of the network's, or no larger than the overlap.
    """

    def whole(part: Tensor) -> Tensor:
        return _denoise(unet, scheduler, part, t)

    height, width = x_t.shape[-2:]
    if tile is None:
        out = whole(x_t)
        if progress is not None:
            progress(1.0)
        return out
    if tile == "auto":
        tile = auto_tile(unet, height, width)
    elif not isinstance(tile, int):
        raise InputError(f"the tile is a number of pixels, 'auto' or None, not {tile!r}")
    together = tiles_together(unet, min(tile, height), min(tile, width))
    return blend(whole, x_t, tile, overlap, size_multiple(unet), together, progress)


def _denoise(unet: Unet, scheduler: DDPMScheduler, x_t: Tensor, t: int) -> Tensor:
    """`denoise` in one evaluation of the network."""
    h, w = x_t.shape[-2:]
    padded = reflect_pad(x_t, size_multiple(unet))
    if not isinstance(unet, ResidualUNet):  # which takes float32 whatever its dtype
        padded = padded.to(unet.dtype)
    out = unet(padded, t).sample[:, : x_t.shape[1], :h, :w].float()
    a = scheduler.alphas_cumprod[t].item()
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return (x_t - (1 - a) ** 0.5 * out) / a**0.5
    if kind == "v_prediction":
        return a**0.5 * x_t - (1 - a) ** 0.5 * out
    return out  # "sample"
