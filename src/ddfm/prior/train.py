"""Trains the embedded prior: an unconditional luma diffusion model. One file, read top to bottom.

    ddfm prior train DATA -o RUN --steps 8000          # again with the same RUN: resumes exactly where it was

DATA is a folder of folders of images; every pixel of it is equally likely to be seen, whatever its folder.
"""

import csv
import io
import math
import os
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.prior.denoiser import Denoiser
from ddfm.prior.load import load_prior
from ddfm.prior.unet import UnshuffleUNet2DModel

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
HELD_OUT = 2 / 15  # of each folder: 40 of 300
EVALUATED_SIGMAS = (15, 25, 50)  # of 255
BLOCKY = 1.1  # of `blockiness`: photographs of BSDS500 have 1.02, infrared JPEGs of RoadScene 1.28


@dataclass
class Recipe:
    """Everything that decides the result of a training run, written into its checkpoint."""

    channels: tuple[int, ...] = (32, 48, 96, 128)  # per level, after the pixel-unshuffle
    layers_per_block: int = 1
    unshuffle: int = 2
    prediction_type: str = "epsilon"  # or "v_prediction"
    steps: int = 8000
    batch: int = 16
    crop: int = 64  # pixels a side
    lr: float = 8e-4  # AdamW's peak: warm-up over 200 steps, flat, then down to 0 over the last `decay`
    decay: float = 0.3  # share of the steps
    ema: float = 0.999
    seed: int = 0


def new_unet(recipe: Recipe) -> UnshuffleUNet2DModel:
    """The luma network: no attention, so that cost is linear in pixels and any size will do."""
    levels = len(recipe.channels)
    return UnshuffleUNet2DModel(
        in_channels=recipe.unshuffle**2,
        out_channels=recipe.unshuffle**2,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        add_attention=False,
        norm_num_groups=8,
    )


def new_scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    """The schedule of DDPM: 1000 steps, betas linear from 1e-4 to 0.02."""
    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type=prediction_type)


# ---------------------------------------------------------------------------------------------------- images


def subject(path: Path) -> str:
    """What must not be on both sides of the split: the patient of a slice (KIND_<patient><slice, 3 digits>_...)."""
    slice_name = re.match(r"[A-Z]+_(\d+)\d{3}_", path.stem)
    return slice_name.group(1) if slice_name else re.sub(r"\D", "", path.stem) or path.stem


def split(folder: Path) -> tuple[list[Path], list[Path]]:
    """(trained on, held out) files of one folder, the same on every machine: ordered by a hash of their subject."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    files.sort(key=lambda p: zlib.crc32(subject(p).encode()))
    held = files[: round(len(files) * HELD_OUT)]
    subjects = {subject(p) for p in held}
    return [p for p in files if subject(p) not in subjects], held


def read_luma(path: Path) -> np.ndarray:
    """uint8 (H, W). Raises InputError for what is no image."""
    return np.rint(255 * luma(images.read(path).pixels)).astype(np.uint8)


def blockiness(grey: np.ndarray) -> float:
    """Mean step across JPEG's grid of 8 pixels over the median of the steps off it: about 1 where no blocks show."""
    ratios = []
    for picture in (grey, grey.T):
        if picture.shape[1] < 16:
            continue
        step = np.abs(np.diff(picture.astype(np.float32), axis=1)).mean(axis=0)
        phases = [step[k::8].mean() for k in range(8)]
        ratios.append(phases[7] / max(np.median(phases), 1e-3))
    return float(np.mean(ratios)) if ratios else 1.0


def scales(grey: np.ndarray, crop: int) -> list[np.ndarray]:
    """The image itself and smaller ones: structure at several scales.

    An image in which JPEG's blocks show is used only shrunk: there they are averaged away, and off their grid.
    """
    factors = (0.7, 0.5) if blockiness(grey) > BLOCKY else (1.0, 0.7, 0.5)
    sizes = [(round(grey.shape[1] * s), round(grey.shape[0] * s)) for s in factors]
    return [cv2.resize(grey, wh, interpolation=cv2.INTER_AREA) for wh in sizes if min(wh) >= crop]


def random_crops(pictures: list[np.ndarray], p: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> torch.Tensor:
    """(batch, 1, crop, crop) in [-1, 1]: flipped, turned, with random gamma; a quarter inverted (thermal polarity)."""
    n, size = recipe.batch, recipe.crop
    out = np.empty((n, size, size), np.float32)
    for k, which in enumerate(rng.choice(len(pictures), n, p=p)):
        picture = pictures[which]
        y, x = (int(rng.integers(0, extent - size + 1)) for extent in picture.shape)
        patch = np.rot90(picture[y : y + size, x : x + size], int(rng.integers(4)))
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        out[k] = patch
    out = ((out + rng.random(out.shape, np.float32)) / 256).clip(1e-6, 1)  # the levels of 8 bits are not learnt
    out **= np.exp(rng.uniform(-0.5, 0.5, (n, 1, 1)) * (rng.random((n, 1, 1)) < 0.5)).astype(np.float32)
    inverted = rng.random(n) < 0.25
    out[inverted] = 1 - out[inverted]
    return torch.from_numpy(out * 2 - 1).unsqueeze(1)


class Batches(torch.utils.data.Dataset[torch.Tensor]):
    """The batch of each step, which depends on the seed and the step alone: a run can go on anywhere."""

    def __init__(self, pictures: list[np.ndarray], recipe: Recipe):
        area = np.array([grey.size for grey in pictures], np.float64)
        self.pictures, self.p, self.recipe = pictures, area / area.sum(), recipe

    def __getitem__(self, step: int) -> torch.Tensor:
        """(batch, 1, crop, crop) in [-1, 1]."""
        return random_crops(self.pictures, self.p, self.recipe, np.random.default_rng((self.recipe.seed, step)))


def noise_steps(n: int, noise_ratio: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Time steps (n,) to train on: three of four log-normal in the noise over signal as in EDM (Karras et al., 2022,
    mean -1.2 and deviation 1.2 of its logarithm: two thirds within 12 and 127 of 255), where images are denoised and
    detail is decided; the rest uniform, so that a chain can begin at pure noise.
    """
    device = noise_ratio.device
    sigma = (1.2 * torch.randn(n, generator=generator, device=device) - 1.2).exp()
    t = torch.searchsorted(noise_ratio, sigma).clamp_max(len(noise_ratio) - 1)
    t[::4] = torch.randint(len(noise_ratio), t[::4].shape, generator=generator, device=device)
    return t


# ---------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def denoising_psnr(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    pictures: list[np.ndarray],
    sigma: float,
    crop: int = 160,
) -> float:
    """Mean PSNR in dB (peak 255) on the images' centres, for Gaussian noise of `sigma` of 255 at the matching t."""
    denoiser = Denoiser(unet, scheduler, precision="float32")
    generator = torch.Generator().manual_seed(int(sigma))
    total = 0.0
    for grey in pictures:
        h, w = (min(crop, extent) // 16 * 16 for extent in grey.shape)
        y, x = (grey.shape[0] - h) // 2, (grey.shape[1] - w) // 2
        x0 = torch.from_numpy(grey[y : y + h, x : x + w].astype(np.float32) / 127.5 - 1)[None, None]
        noise = torch.randn(x0.shape, generator=generator)
        denoised = denoiser.at(x0 + 2 * sigma / 255 * noise, 2 * sigma / 255)
        total += -10 * math.log10(F.mse_loss(denoised.clamp(-1, 1), x0).item() / 4)
    return total / len(pictures)


# ---------------------------------------------------------------------------------------------------- training


def learning_rate(step: int, recipe: Recipe) -> float:
    """Warm-up, flat, then 1 - sqrt to zero: the flat part can be prolonged by a later run with more steps."""
    start = recipe.steps * (1 - recipe.decay)
    rate = recipe.lr * min(1.0, (step + 1) / 200)
    if step > start:
        rate *= 1 - math.sqrt((step - start) / (recipe.steps - start))
    return rate


def train(
    data: Path,
    run: Path,
    recipe: Recipe | None = None,
    *,
    initial: str | Path | None = None,
    device: str = "cpu",
    checkpoint_minutes: float = 5.0,
    report: Callable[[str], None] = print,
) -> Path:
    """Train, or go on with, the run in folder `run`; returns the exported prior's folder.

    Args:
        data: Folder of folders of images.
        run: Receives `checkpoint.pt` (weights, EMA, optimiser, step; replaced atomically), `flat.pt` (the same, from
            before the learning rate went down: start from it to prolong a run), `log.csv`, `log.png` where matplotlib
            is installed, and `prior/`.
        recipe: What to train. On resuming, only `steps` may differ from the checkpoint's recipe.
        initial: A prior to start from (as in `load_prior`) instead of random weights, of the recipe's architecture.
        device: "cpu" or "cuda"; CUDA runs compiled and in bfloat16 autocast.
        checkpoint_minutes: Time between checkpoints.
        report: Called with one line of progress at each checkpoint.

    Raises:
        InputError: no images, a checkpoint or initial prior of another recipe, or divergence (the last good
            checkpoint stays).
    """
    recipe = recipe or Recipe()
    folders = sorted(p for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
    pictures: list[np.ndarray] = []
    held_out: dict[str, list[np.ndarray]] = {}
    for folder in folders:
        trained, held = split(folder)
        pictures += [scale for p in trained for scale in scales(read_luma(p), recipe.crop)]
        held_out[folder.name] = [read_luma(p) for p in held][:12]  # a sample: the whole curve is measured apart
    if not pictures:
        raise InputError(f"{data} holds no folder of images of at least {recipe.crop} pixels: give such a folder")

    run.mkdir(parents=True, exist_ok=True)
    on_cuda = device.startswith("cuda")
    torch.manual_seed(recipe.seed)
    scheduler = new_scheduler(recipe.prediction_type)
    alphas_cumprod, noise_ratio = (
        scheduler.alphas_cumprod.to(device),
        Denoiser(new_unet(recipe), scheduler).sigmas.to(device),
    )
    unet, ema = new_unet(recipe), new_unet(recipe).eval().requires_grad_(False)
    for network in (unet, ema):
        network.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-arg]
    if initial is not None:
        prior = load_prior(initial)
        try:
            unet.load_state_dict(prior.unet.state_dict())
        except RuntimeError as error:
            raise InputError(f"the prior {initial} has another architecture than {recipe.channels}") from error
        if (kind := prior.scheduler.config["prediction_type"]) != recipe.prediction_type:
            raise InputError(f"the prior {initial} predicts {kind}, the recipe {recipe.prediction_type}")
    ema.load_state_dict(unet.state_dict())
    optimiser = torch.optim.AdamW(unet.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    step, seconds, last_loss = 0, 0.0, math.inf

    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        try:
            state = torch.load(checkpoint, weights_only=True, map_location=device)
        except Exception as error:  # of many kinds: cut off, no archive, carries code
            raise InputError(
                f"{checkpoint} cannot be read ({type(error).__name__}): remove it to start anew"
            ) from error
        if {**state["recipe"], "steps": 0} != {**asdict(recipe), "steps": 0}:
            raise InputError(f"{checkpoint} was trained with {state['recipe']}: use that recipe or another folder")
        unet.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, last_loss = state["step"], state["seconds"], state["loss"]

    def save(name: str) -> None:
        state = {
            "recipe": asdict(recipe),
            "unet": unet.state_dict(),
            "ema": ema.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
            "seconds": seconds,
            "loss": last_loss,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        (run / f"{name}.part").write_bytes(buffer.getbuffer())
        os.replace(run / f"{name}.part", run / name)

    predict: Callable[..., Any] = torch.compile(unet) if on_cuda else unet
    batches = torch.utils.data.DataLoader(
        Batches(pictures, recipe),
        batch_size=None,
        sampler=range(step, recipe.steps),
        num_workers=min(8, os.cpu_count() or 1) if on_cuda else 0,
        pin_memory=on_cuda,
    )
    losses: list[torch.Tensor] = []
    last = saved = time.monotonic()
    for crops in batches:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        x0 = crops.to(device, non_blocking=True)
        generator = torch.Generator(device).manual_seed((recipe.seed << 32) + step)
        t = noise_steps(recipe.batch, noise_ratio, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        a = alphas_cumprod[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
        weight: torch.Tensor | float
        if recipe.prediction_type == "v_prediction":
            target, weight = a.sqrt() * eps - (1 - a).sqrt() * x0, 1.0
        else:  # EDM's weight for data of deviation 0.5, bounded: without it much noise counts for next to nothing
            target, weight = eps, (1 + 4 * (1 - a) / a).clamp_max(10)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_cuda):
            predicted = predict(x_t.contiguous(memory_format=torch.channels_last), t).sample
        loss = (weight * (predicted.float() - target).square()).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        step += 1
        keep = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - keep)
        losses.append(loss.detach())

        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if step == int(recipe.steps * (1 - recipe.decay)):
            save("flat.pt")
        if step == recipe.steps or now - saved > 60 * checkpoint_minutes:
            row: dict[str, float] = {"step": step, "minutes": round(seconds / 60, 2)}
            loss_now = torch.stack(losses).mean().item()
            if not loss_now < 3 * last_loss:
                raise InputError(
                    f"the run in {run} diverged before step {step} (loss {last_loss:.3f} to {loss_now:.3f}): "
                    "its checkpoint is from before that; start anew from it with a lower learning rate"
                )
            last_loss = loss_now
            row |= {"lr": learning_rate(step, recipe), "loss": round(loss_now, 5)}
            for name, group_pictures in held_out.items():
                for sigma in EVALUATED_SIGMAS if group_pictures else ():
                    psnr = denoising_psnr(ema, scheduler, group_pictures, sigma)
                    row[f"{name} {sigma}"] = round(psnr, 2)
            save("checkpoint.pt")
            log = run / "log.csv"
            header = not log.exists()
            with log.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if header:
                    writer.writeheader()
                writer.writerow(row)
            plot(log)
            report("  ".join(f"{key} {value:g}" for key, value in row.items()))
            losses, saved = [], time.monotonic()
            last = saved  # measuring and saving are not training time

    return export(ema, scheduler, run / "prior")


def plot(log: Path) -> None:
    """Draw `log.csv` as `log.png`: the loss, and PSNR at sigma 25 for each folder; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    step = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(step, [float(row["loss"]) for row in rows], "o-")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for name in rows[0]:
        if name.endswith(" 25"):
            right.plot(step, [float(row[name]) for row in rows], "o-", label=name.removesuffix(" 25"))
    right.set(xlabel="step", ylabel="PSNR at sigma 25, dB")
    right.legend()
    figure.savefig(log.with_suffix(".png"), dpi=100)


def export(unet: UnshuffleUNet2DModel, scheduler: DDPMScheduler, folder: Path) -> Path:
    """Write an fp16 diffusers folder (unet/, scheduler/) that `load_prior` reads."""
    half = UnshuffleUNet2DModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    half.half().save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder
