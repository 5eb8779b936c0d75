"""p(f): find, load and evaluate an unconditional diffusion model; x_t -> x0 at any image size."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from .errors import InputError
from .unet import UnshuffleUNet2DModel

EMBEDDED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Prior:
    """An unconditional diffusion model: the network and the schedule it was trained on."""

    unet: UNet2DModel
    scheduler: DDPMScheduler
    source: str


def load_prior(source: str | Path = "embedded", device: str | torch.device | None = None) -> Prior:
    """Load an unconditional pixel-space diffusion prior.

    Args:
        source: "embedded" (in the package: luma, runs on a laptop); "openai-256" (the paper's, from the local cache);
            a guided-diffusion `.pt` (its `create_model` arguments in a `.json` of the same stem, else those of
            256x256_diffusion_uncond); a diffusers folder or hub id (`UNet2DModel` and scheduler, 1 or 3 channels).
        device: Where to put the network; None for the CPU.

    Returns:
        The prior in float32, in evaluation mode.

    Raises:
        InputError: no such prior, or a file that is not one. Pickled code is never run.
    """
    name = str(source)
    if name == "embedded":
        unet, scheduler = _from_folder(EMBEDDED, name)
    elif name == "openai-256":
        from .download import cached

        folder = cached(name)
        if folder is None:
            raise InputError(
                "the prior openai-256 is not in the local cache: fetch it (2.2 GB, once) with `ddfm prior pull openai-256`"
            )
        unet, scheduler = _from_folder(folder, name)
    elif name.endswith(".pt"):
        from .convert import load_guided_diffusion

        unet, scheduler = load_guided_diffusion(name)
    elif Path(name).is_dir():
        unet, scheduler = _from_folder(Path(name), name)
    elif Path(name).exists():
        raise InputError(f"the prior {name} is neither a guided-diffusion .pt nor a diffusers folder")
    else:
        unet, scheduler = _from_folder(_snapshot(name), name)
    image_channels(unet)  # refuses what is not unconditional and pixel-space
    return Prior(unet.float().eval().requires_grad_(False).to(device or "cpu"), scheduler, name)


def _from_folder(folder: Path, name: str) -> tuple[UNet2DModel, DDPMScheduler]:
    """A diffusers folder: unet/ and scheduler/ beside each other, or both in one place as old DDPM repositories have."""
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler_folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    try:
        config = json.loads((unet_folder / "config.json").read_text(encoding="utf-8"))
        unet_class = {"UNet2DModel": UNet2DModel, "UnshuffleUNet2DModel": UnshuffleUNet2DModel}[config["_class_name"]]
        unet, keys = unet_class.from_pretrained(
            unet_folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        if wrong := [*keys["missing_keys"], *keys["unexpected_keys"]]:  # else it would be partly random, with a warning
            raise ValueError(f"the weights do not fit the configuration: {wrong[0]} is missing or left over")
        scheduler = DDPMScheduler.from_pretrained(scheduler_folder)
        if scheduler.config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {scheduler.config['prediction_type']} is not known")
    except Exception as error:  # diffusers raises many kinds; the user needs one sentence
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the prior {name} cannot be loaded as a diffusers folder with a UNet2DModel in safetensors "
            f"and a scheduler_config.json ({type(error).__name__}: {reason})"
        ) from error
    return unet, scheduler


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


def image_channels(unet: UNet2DModel) -> int:
    """Channels of the pictures the network was trained on, 1 (luma) or 3 (RGB).

    Raises:
        InputError: a class-conditional network, or one of latents.
    """
    channels = unet.config["in_channels"] // getattr(unet, "unshuffle", 1) ** 2
    if unet.config.get("num_class_embeds") or unet.config.get("class_embed_type"):
        raise InputError("the prior must be unconditional, this one asks for class labels")
    if channels not in (1, 3):
        raise InputError(f"the prior must be of pixels (1 or 3 channels), this one has {channels} channels")
    return channels


def size_multiple(unet: UNet2DModel) -> int:
    """Height and width that the network takes are multiples of this."""
    return getattr(unet, "unshuffle", 1) * 2 ** (len(unet.config["block_out_channels"]) - 1)


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """Grow (B, C, H, W) at the bottom and right to a multiple by mirroring, however small the picture is."""
    for dim in (-2, -1):
        size = x.shape[dim]
        padded = -(-size // multiple) * multiple
        if padded != size:
            period = max(2 * size - 2, 1)
            index = torch.arange(padded, device=x.device) % period
            x = x.index_select(dim, torch.minimum(index, period - index) if size > 1 else index * 0)
    return x


@torch.no_grad()
def denoise(unet: UNet2DModel, scheduler: DDPMScheduler, x_t: Tensor, t: int) -> Tensor:
    """The prior's guess x0~ = E[f0 | f_t] (Tweedie), (B, C, H, W) float32, not clipped.

    Args:
        unet: Predicts what `scheduler.config.prediction_type` says; further output channels (a learned variance, as
            OpenAI's models have) are dropped.
        scheduler: Its `alphas_cumprod` are those of the training.
        x_t: (B, C, H, W), any size.
        t: Integer time step, 0 .. 999 for a schedule of 1000.
    """
    h, w = x_t.shape[-2:]
    padded = reflect_pad(x_t, size_multiple(unet)).to(unet.dtype)
    out = unet(padded, t).sample[:, : x_t.shape[1], :h, :w].float()
    a = scheduler.alphas_cumprod[t].item()
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return (x_t - (1 - a) ** 0.5 * out) / a**0.5
    if kind == "v_prediction":
        return a**0.5 * x_t - (1 - a) ** 0.5 * out
    return out  # "sample"
