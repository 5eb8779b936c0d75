"""Trains the embedded prior: an unconditional luma diffusion model. One file, read top to bottom.

    ddfm prior train DATA -o RUN --steps 8000          # again with the same RUN: resumes exactly where it was

DATA is a folder of folders of pictures; every pixel of it is equally likely to be seen, whatever its folder.
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

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from .errors import InputError
from .prior import load_prior
from .unet import UnshuffleUNet2DModel

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
HELD_OUT = 2 / 15  # of each folder: 40 of 300
EVALUATED_SIGMAS = (15, 25, 50)  # of 255


@dataclass
class Recipe:
    """Everything that decides the result of a training run, written into its checkpoint."""

    channels: tuple[int, ...] = (32, 64, 128, 192)  # per level, after the pixel-unshuffle
    layers_per_block: int = 1
    steps: int = 8000
    batch: int = 16
    crop: int = 64  # pixels a side
    lr: float = 5e-4  # AdamW's peak: warm-up over 200 steps, flat, then down to 0 over the last `decay` (8e-4 diverged)
    decay: float = 0.3  # share of the steps
    ema: float = 0.999
    seed: int = 0


def new_unet(recipe: Recipe) -> UnshuffleUNet2DModel:
    """The luma network: no attention, so that cost is linear in pixels and any size will do."""
    levels = len(recipe.channels)
    return UnshuffleUNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        add_attention=False,
        norm_num_groups=8,
    )


def new_scheduler() -> DDPMScheduler:
    """The schedule of DDPM: 1000 steps, betas linear from 1e-4 to 0.02, the network predicts the noise."""
    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type="epsilon")


# ---------------------------------------------------------------------------------------------------- pictures


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
    """uint8 (H, W)."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise InputError(f"{path} cannot be read as a picture: remove it from the training folder")
    return grey


def scales(grey: np.ndarray, crop: int) -> list[np.ndarray]:
    """The picture itself and smaller ones: structure at several scales, and JPEG blocks averaged away."""
    sizes = [(round(grey.shape[1] * s), round(grey.shape[0] * s)) for s in (1.0, 0.75, 0.5)]
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
    out /= 255
    out **= np.exp(rng.uniform(-0.5, 0.5, (n, 1, 1)) * (rng.random((n, 1, 1)) < 0.5)).astype(np.float32)
    inverted = rng.random(n) < 0.25
    out[inverted] = 1 - out[inverted]
    return torch.from_numpy(out * 2 - 1).unsqueeze(1)


# ---------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def denoising_psnr(
    unet: torch.nn.Module,
    alphas_cumprod: torch.Tensor,
    pictures: list[np.ndarray],
    sigma: float,
    crop: int = 160,
) -> float:
    """Mean PSNR in dB (peak 255) on the pictures' centres, for Gaussian noise of `sigma` of 255 at the matching t."""
    device = next(unet.parameters()).device
    noise_ratio = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()  # noise over signal, data in [-1, 1]
    t = int((noise_ratio - 2 * sigma / 255).abs().argmin())
    a = alphas_cumprod[t].item()
    generator = torch.Generator().manual_seed(int(sigma))
    total = 0.0
    for grey in pictures:
        h, w = (min(crop, extent) // 16 * 16 for extent in grey.shape)
        y, x = (grey.shape[0] - h) // 2, (grey.shape[1] - w) // 2
        x0 = torch.from_numpy(grey[y : y + h, x : x + w].astype(np.float32) / 127.5 - 1)[None, None].to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * noise
        denoised = (x_t - (1 - a) ** 0.5 * unet(x_t, t).sample) / a**0.5
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
        data: Folder of folders of pictures.
        run: Receives `checkpoint.pt` (weights, EMA, optimiser and random state, replaced atomically), `flat.pt` (the
            same, from before the learning rate went down: start from it to prolong a run), `log.csv`, `prior/`.
        recipe: What to train. On resuming, only `steps` may differ from the checkpoint's recipe.
        initial: A prior to start from (as in `load_prior`) instead of random weights, of the recipe's architecture.
        device: "cpu" or "cuda"; CUDA runs in bfloat16 autocast.
        checkpoint_minutes: Time between checkpoints.
        report: Called with one line of progress at each checkpoint.

    Raises:
        InputError: no pictures, a checkpoint of another recipe, or divergence (the last good checkpoint stays).
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
        raise InputError(f"{data} holds no folder of pictures of at least {recipe.crop} pixels: give such a folder")
    p = np.array([grey.size for grey in pictures], np.float64)
    p /= p.sum()

    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    alphas_cumprod = new_scheduler().alphas_cumprod
    unet, ema = new_unet(recipe), new_unet(recipe).eval().requires_grad_(False)
    for network in (unet, ema):
        network.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-arg]
    if initial is not None:
        unet.load_state_dict(load_prior(initial).unet.state_dict())
    ema.load_state_dict(unet.state_dict())
    optimiser = torch.optim.AdamW(unet.parameters(), lr=recipe.lr, weight_decay=0.01)
    step, seconds, last_loss = 0, 0.0, math.inf

    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if {**state["recipe"], "steps": 0} != {**asdict(recipe), "steps": 0}:
            raise InputError(f"{checkpoint} was trained with {state['recipe']}: use that recipe or another folder")
        unet.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["torch_rng"].cpu())
        rng.bit_generator.state = state["numpy_rng"]
        step, seconds, last_loss = state["step"], state["seconds"], state["loss"]

    def save(name: str) -> None:
        state = {
            "recipe": asdict(recipe),
            "unet": unet.state_dict(),
            "ema": ema.state_dict(),
            "optimiser": optimiser.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": rng.bit_generator.state,
            "step": step,
            "seconds": seconds,
            "loss": last_loss,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        (run / f"{name}.part").write_bytes(buffer.getbuffer())
        os.replace(run / f"{name}.part", run / name)

    losses: list[float] = []
    last = saved = time.monotonic()
    while step < recipe.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        x0 = random_crops(pictures, p, recipe, rng).to(device)
        u = torch.rand(recipe.batch)
        u[::2] **= 2  # every other one leans towards little noise, where most of the detail is decided
        t = (u * 1000).long().to(device)
        eps = torch.randn(x0.shape).to(device)
        a = alphas_cumprod.to(device)[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            predicted = unet(x_t.contiguous(memory_format=torch.channels_last), t).sample
        loss = F.mse_loss(predicted.float(), eps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        step += 1
        keep = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - keep)
        losses.append(loss.item())

        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if step == int(recipe.steps * (1 - recipe.decay)):
            save("flat.pt")
        if step == recipe.steps or now - saved > 60 * checkpoint_minutes:
            row: dict[str, float] = {"step": step, "minutes": round(seconds / 60, 2)}
            loss_now = float(np.mean(losses))
            if not loss_now < 3 * last_loss:
                raise InputError(
                    f"the run in {run} diverged before step {step} (loss {last_loss:.3f} to {loss_now:.3f}): "
                    "its checkpoint is from before that; start anew from it with a lower learning rate"
                )
            last_loss = loss_now
            row |= {"lr": learning_rate(step, recipe), "loss": round(loss_now, 5)}
            for name, group_pictures in held_out.items():
                for sigma in EVALUATED_SIGMAS if group_pictures else ():
                    psnr = denoising_psnr(ema, alphas_cumprod, group_pictures, sigma)
                    row[f"{name} {sigma}"] = round(psnr, 2)
            save("checkpoint.pt")
            log = run / "log.csv"
            header = not log.exists()
            with log.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if header:
                    writer.writeheader()
                writer.writerow(row)
            report("  ".join(f"{key} {value:g}" for key, value in row.items()))
            losses, saved = [], time.monotonic()
            last = saved  # measuring and saving are not training time

    return export(ema, run / "prior")


def export(unet: UnshuffleUNet2DModel, folder: Path) -> Path:
    """Write `unet` as an fp16 diffusers folder (unet/, scheduler/) that `load_prior` reads."""
    half = UnshuffleUNet2DModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    half.half().save_pretrained(folder / "unet")
    new_scheduler().save_pretrained(folder / "scheduler")
    return folder
