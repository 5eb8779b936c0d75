"""p(f): find and load an unconditional diffusion model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from ddfm.errors import InputError
from ddfm.io.images import quoted
from ddfm.prior.checks import check_size, read_config, regular_files
from ddfm.prior.unet import ResidualUNet, UnshuffleUNet2DModel

Unet = UNet2DModel | ResidualUNet

EMBEDDED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Prior:
    """An unconditional diffusion model: the network and the schedule it was trained on."""

    unet: Unet
    scheduler: DDPMScheduler
    source: str


def usable_device(device: str | torch.device | None = None) -> torch.device:
    """The requested device; without a request CUDA if available, else the CPU.

    Raises:
        InputError: a device that this machine does not have, or that cannot compute ("meta").
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"The device {device} is not available on this machine; choose cpu, or cuda if there is a GPU."
        ) from error
    return found


def load_prior(
    source: str | Path = "embedded", device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Prior:
    """Load an unconditional pixel-space diffusion prior.

    Args:
        source: "embedded" (in the package: luma, runs on a laptop); "openai-256" (the paper's, from the local cache);
            a guided-diffusion `.pt` (with its `create_model` arguments in a `.json` of the same stem, else those of
            256x256_diffusion_uncond); a diffusers folder or hub id (`UNet2DModel` and scheduler, 1 or 3 channels).
        device: Where to put the network; None for CUDA if available, else the CPU.
        dtype: Data type of the weights; input and output images are float32.

    Returns:
        The prior, in evaluation mode.

    Raises:
        InputError: no such prior or device, or a file that is not a prior. Pickled code is never run.
    """
    device = usable_device(device)
    name = str(source)
    if name == "embedded":
        unet, scheduler = _from_folder(EMBEDDED, name)
    elif name == "openai-256":
        from ddfm.prior.download import cached

        folder = cached(name)
        if folder is None:
            raise InputError(
                "The prior openai-256 is not in the local cache: fetch it (2.2 GB, once) with "
                "`ddfm prior pull openai-256`."
            )
        unet, scheduler = _from_folder(folder, name)
    elif name.endswith(".pt"):
        from ddfm.prior.convert import load_guided_diffusion

        unet, scheduler = load_guided_diffusion(name)
    elif os.path.isdir(name):  # False, without an exception, for an impossible name
        unet, scheduler = _from_folder(Path(name), name)
    elif os.path.exists(name):
        raise InputError(f"The prior {quoted(name)} is neither a guided-diffusion .pt nor a diffusers folder.")
    else:
        unet, scheduler = _from_folder(_snapshot(name), name)
    image_channels(unet)  # refuses all but unconditional pixel-space networks
    unet.eval().requires_grad_(False)
    torch.nn.Module.to(unet, device, dtype)  # diffusers' own warns about missing modules
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # faster convolutions
    return Prior(unet, scheduler, name)


def _from_folder(folder: Path, name: str) -> tuple[Unet, DDPMScheduler]:
    """Loads a diffusers folder: unet/ and scheduler/, or both in one folder as in old DDPM repositories."""
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler_folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    regular_files({folder, unet_folder, scheduler_folder})
    config = read_config(unet_folder / "config.json")
    read_config(scheduler_folder / "scheduler_config.json")
    try:
        classes: dict[str, Any] = {kind.__name__: kind for kind in (UNet2DModel, UnshuffleUNet2DModel, ResidualUNet)}
        unet_class = classes[config["_class_name"]]
        check_size(unet_class, config, unet_folder.glob("*.safetensors"))
        unet, keys = unet_class.from_pretrained(
            unet_folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        if wrong := [*keys["missing_keys"], *keys["unexpected_keys"]]:  # would be partly random, with only a warning
            raise ValueError(f"the weights do not fit the configuration: {wrong[0]} is missing or left over")
        scheduler = DDPMScheduler.from_pretrained(scheduler_folder)
        if scheduler.config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {scheduler.config['prediction_type']} is not known")
        if isinstance(unet, ResidualUNet) and not _agree(unet.schedule, scheduler):
            raise ValueError("the schedule of the network's config.json is not that of scheduler_config.json")
        if not ((scheduler.betas > 0) & (scheduler.betas <= 1)).all():  # NaN included
            raise ValueError("the schedule has betas outside (0, 1]")
    except Exception as error:  # diffusers raises many types; the user needs one sentence
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"The prior {quoted(name)} cannot be loaded as a diffusers folder with a UNet2DModel in safetensors "
            f"and a scheduler_config.json ({type(error).__name__}: {reason})."
        ) from error
    return unet, scheduler


def _agree(one: DDPMScheduler, other: DDPMScheduler) -> bool:
    """Whether prediction type and noise at each time step are equal."""
    return one.config["prediction_type"] == other.config["prediction_type"] and torch.equal(one.betas, other.betas)


def _snapshot(name: str) -> Path:
    """Downloads a hub id to the hub's cache: only configuration and safetensors."""
    from huggingface_hub import snapshot_download

    shown = quoted(name if len(name) <= 100 else f"{name[:100]}...")
    patterns = [f"{folder}{file}" for folder in ("", "unet/", "scheduler/") for file in ("*.json", "*.safetensors")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # not a hub id, no such repository, or no network
        raise InputError(
            f"No prior is called {shown}: give embedded, openai-256, a .pt file, a diffusers folder or a hub id that "
            f"can be reached ({type(error).__name__})."
        ) from error


def image_channels(unet: Unet) -> int:
    """Channels of the images the network was trained on, 1 (luma) or 3 (RGB).

    Raises:
        InputError: a class-conditional or latent-space network.
    """
    channels = int(getattr(unet, "image_channels", unet.config["in_channels"]))
    if unet.config.get("num_class_embeds") or unet.config.get("class_embed_type"):
        raise InputError("The prior must be unconditional; this one needs class labels.")
    if channels not in (1, 3):
        raise InputError(f"The prior must work on pixels (1 or 3 channels); this one has {channels} channels.")
    return channels


def size_multiple(unet: Unet) -> int:
    """The network's input height and width must be multiples of this."""
    return int(getattr(unet, "unshuffle", 1)) << (len(unet.config["block_out_channels"]) - 1)
