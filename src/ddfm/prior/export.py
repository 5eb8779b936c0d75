"""Exports a prior as an fp16 diffusers folder or as ONNX."""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from ddfm.errors import InputError
from ddfm.io.files import quoted
from ddfm.io.outputs import Outputs
from ddfm.prior.checks import check_archive
from ddfm.prior.download import FILES
from ddfm.prior.load import Prior, Unet, image_channels, size_multiple
from ddfm.prior.unet import ResidualUNet


def save_prior(unet: Unet, scheduler: DDPMScheduler, folder: Path) -> Path:
    """Write a diffusers folder (unet/ in float16, scheduler/) that `load_prior` reads.

    Args:
        unet: The network; its weights, of any dtype, are not changed.
        scheduler: The noise schedule of its training.
        folder: Created if it does not exist; existing unet/ and scheduler/ files are replaced.
    """
    _copy(unet, torch.float16).save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def claim_run(run: Path, data: Path, overwrite: bool) -> None:
    """Create a training run's folder, if the run would replace neither its images nor other files there.

    A folder with a `checkpoint.pt` belongs to an earlier run, which is resumed.

    Raises:
        InputError: as `Outputs` does.
    """
    if run.resolve().parent == data.resolve():
        raise InputError(f"The run's folder {quoted(run)} would be among the image folders: choose another location.")
    outputs = Outputs([data, *(folder for folder in _listed(data) if folder.is_dir())], overwrite)
    outputs.folder(run)
    ours = (run / "checkpoint.pt").exists()
    for name in ("checkpoint.pt", "log.csv", "log.png", *(f"prior/{file}" for file in FILES)):
        outputs.claim(run / name, ours)


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def from_checkpoint(checkpoint: Path) -> tuple[ResidualUNet, DDPMScheduler]:
    """The network of a training run, with the moving average (EMA) of its weights, and its noise schedule.

    Args:
        checkpoint: The run's `checkpoint.pt`: "ema" (weights) and "network" (arguments of `ResidualUNet`; by default
            those of the embedded prior).

    Raises:
        InputError: no such file, or not from a training run.
    """
    try:
        check_archive(checkpoint)
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        unet = ResidualUNet(**state.get("network", {}))
        unet.load_state_dict(state["ema"])
    except Exception as error:  # many causes: missing, truncated, not an archive, contains code, another network
        raise InputError(
            f"{checkpoint} is not the checkpoint.pt of a training run ({type(error).__name__}): "
            "give the one in a folder written by `ddfm prior train`."
        ) from error
    scheduler = DDPMScheduler.from_config(unet.schedule.config, clip_sample=True)
    return unet.eval().requires_grad_(False), scheduler


def _copy(unet: Unet, dtype: torch.dtype) -> Any:
    """A copy of the network on the CPU, in evaluation mode and in contiguous memory format, for writing files."""
    other = copy.deepcopy(unet).eval()
    nn.Module.to(other, "cpu", dtype)
    return nn.Module.to(other, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class _Bare(nn.Module):
    """(sample, timestep) -> the network's prediction, with plain tensors."""

    def __init__(self, unet: Unet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = self.unet(sample, timestep, return_dict=False)[0]
        return out


def export_onnx(prior: Prior, path: Path) -> Path:
    """Write the prior's network as ONNX: inputs `sample` and `timestep`, output `out_sample`.

    `sample` is x_t, float32 (B, C, H, W) with any B and with H and W multiples of `size_multiple(prior.unet)`;
    `timestep` is t, int64 (B,); the meaning of `out_sample` is given by `prior.scheduler.config.prediction_type`.

    Raises:
        InputError: the package onnx is missing, or the file cannot be written.
    """
    try:
        import onnx  # noqa: F401  (torch's exporter needs it, and its own error fills a page)
    except ImportError as error:
        raise InputError("Export to ONNX needs the package onnx: pip install 'ddfm[onnx]'.") from error
    side = 4 * size_multiple(prior.unet)
    unet = _copy(prior.unet, torch.float32)
    sample = torch.zeros(2, image_channels(unet), side, side + size_multiple(unet))
    names = {0: "batch", 2: "height", 3: "width"}
    try:
        torch.onnx.export(
            _Bare(unet),
            (sample, torch.tensor([1, 500])),
            str(path),
            input_names=["sample", "timestep"],
            output_names=["out_sample"],
            dynamic_axes={"sample": names, "timestep": {0: "batch"}, "out_sample": names},
            opset_version=17,
            dynamo=False,
        )
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path
