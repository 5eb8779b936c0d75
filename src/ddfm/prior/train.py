"""Trains the embedded prior: an unconditional luma diffusion model. One file, read top to bottom.

    ddfm prior train DATA -o RUN --steps 8000          # the same command again resumes RUN exactly where it was

DATA is a folder of folders of images. Every pixel is equally likely to be sampled, except that those of a folder called
"natural" are sampled more often.
"""

import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ddfm.errors import InputError
from ddfm.prior.export import claim_run, from_checkpoint, save_prior
from ddfm.prior.load import load_prior
from ddfm.prior.muon import Muon
from ddfm.prior.precision import best_dtype
from ddfm.prior.training_data import Batches, read_luma, scales, split
from ddfm.prior.unet import ResidualUNet

EVALUATED_SIGMAS = (15, 25, 50)  # on the 8-bit scale
RATES = (1.0, 0.125)  # of each optimizer, relative to `TrainingConfig.learning_rate`
SIGMA_RANGE = (0.01, 160.0)  # DDPM's linear schedule ends at 157


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that determines the result of a training run; stored in its checkpoint."""

    channels: tuple[int, ...] = (32, 64, 128)  # per level, after the pixel-unshuffle
    blocks: tuple[int, ...] = (4, 2, 2)  # per level, see `ResidualUNet`
    unshuffle: int = 2
    steps: int = 12_000
    batch_size: int = 24
    crop: int = 96  # pixels a side
    learning_rate: float = 0.008  # Muon's peak (AdamW's is 1/8): 200 steps of warm-up, flat, then cosine to 0
    decay: float = 0.6  # fraction of the steps in which it decays
    sigma_mean: float = -1.4  # of log(sigma), which is normal, as in EDM (Karras et al., 2022)
    sigma_std: float = 1.1
    ema: float = 0.999
    natural_weight: float = 3.0  # how much more often a pixel of a folder called "natural" is sampled
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a configuration that cannot be trained."""
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"Training needs at least 1 step and 1 crop, not {self.steps} and {self.batch_size}.")


def new_unet(config: TrainingConfig) -> ResidualUNet:
    """The luma network, with random weights."""
    unet: ResidualUNet = ResidualUNet(
        block_out_channels=config.channels, layers_per_block=config.blocks, unshuffle=config.unshuffle
    )
    return unet


def noise_levels(config: TrainingConfig, generator: torch.Generator) -> torch.Tensor:
    """Sigma for each image of a batch, (batch_size,), data in [-1, 1].

    Seven of eight are log-normal, in the range where detail is decided; the rest are log-uniform over the whole
    schedule, so that sampling can start from pure noise.
    """
    n, device = config.batch_size, generator.device
    sigma = (config.sigma_std * torch.randn(n, generator=generator, device=device) + config.sigma_mean).exp()
    low, high = SIGMA_RANGE
    uniform = low * (math.log(high / low) * torch.rand(n, generator=generator, device=device)).exp()
    return torch.where(torch.arange(n, device=device) % 8 == 0, uniform, sigma.clamp(low, high))


# ---------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def denoising_psnr(
    denoise: Callable[[torch.Tensor, float], torch.Tensor], images: list[np.ndarray], sigma: float, crop: int = 160
) -> float:
    """Mean PSNR in dB (peak 255) on the images' centres, for Gaussian noise of std `sigma`.

    Args:
        denoise: (y, noise std) -> the denoised image; (1, 1, H, W), data in [-1, 1].
        images: uint8 (H, W), at least 16 x 16 pixels.
        sigma: Noise std on the 8-bit scale.
        crop: Maximum size in pixels a side.
    """
    generator, total = torch.Generator().manual_seed(int(sigma)), 0.0
    for grey in images:
        h, w = (min(crop, extent) // 16 * 16 for extent in grey.shape)
        y, x = (grey.shape[0] - h) // 2, (grey.shape[1] - w) // 2
        x0 = torch.from_numpy(grey[y : y + h, x : x + w].astype(np.float32) / 127.5 - 1)[None, None]
        noisy = x0 + 2 * sigma / 255 * torch.randn(x0.shape, generator=generator)
        denoised = denoise(noisy, 2 * sigma / 255).float().cpu().clamp(-1, 1)
        total += -10 * math.log10(max(F.mse_loss(denoised, x0).item() / 4, 1e-12))
    return total / len(images)


# ---------------------------------------------------------------------------------------------------- training


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Flushes denormal numbers: a dead unit's momentum falls below 1e-38 within 1,700 steps, where CPUs are slow.

    Measured: 190 steps per minute, 105 with 4 % of Muon's momentum denormal, and 190 again with those set to zero.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """200 steps of warm-up, flat, then half a cosine down to zero."""
    start = config.steps * (1 - config.decay)
    rate = config.learning_rate * min(1.0, (step + 1) / 200)
    if step > start:
        rate *= 0.5 * (1 + math.cos(math.pi * (step - start) / (config.steps - start)))
    return rate


def optimizers(unet: ResidualUNet) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the kernels of the residual blocks, which hold nearly all parameters; AdamW for the rest."""
    kernels = [p for p in unet.parameters() if p.ndim == 4 and p.shape[0] == p.shape[1]]
    chosen = {id(kernel) for kernel in kernels}
    rest = [p for p in unet.parameters() if id(p) not in chosen]
    return Muon(kernels), torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=1e-3)


@dataclass
class Run:
    """The state of a training run, as saved in its checkpoint."""

    config: TrainingConfig
    unet: ResidualUNet
    ema: ResidualUNet
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    seconds: float = 0.0
    loss: float = math.inf
    losses: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def new(cls, config: TrainingConfig, initial: str | Path | None, device: torch.device) -> "Run":
        """Random weights, or those of a prior or checkpoint of the same architecture.

        Raises:
            InputError: `initial` has another architecture.
        """
        torch.manual_seed(config.seed)
        unet, ema = new_unet(config), new_unet(config).eval().requires_grad_(False)
        if initial is not None:
            path = Path(initial)
            given = from_checkpoint(path)[0] if path.suffix == ".pt" else load_prior(initial, "cpu").unet
            try:
                unet.load_state_dict(given.state_dict())
            except RuntimeError as error:
                raise InputError(
                    f"The prior {initial} has another architecture than {config.channels}; choose one with the same."
                ) from error
        ema.load_state_dict(unet.state_dict())
        for network in (unet, ema):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-arg]
        return cls(config, unet, ema, optimizers(unet))

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically.

        Raises:
            InputError: it cannot be written.
        """
        state = {
            "config": asdict(self.config),
            "network": {k: v for k, v in self.unet.config.items() if not k.startswith("_")},
            "net": self.unet.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
        }
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # RuntimeError: how torch's writer reports a full disk
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            raise InputError(f"The checkpoint {path} cannot be written: {reason}.") from error

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint with the same configuration (`steps` may differ).

        Raises:
            InputError: it cannot be read, or has another configuration.
        """
        try:
            state = torch.load(path, weights_only=True, map_location=self.unet.device)
            config = state["config"]
            if {**config, "steps": 0} == {**asdict(self.config), "steps": 0}:
                self.unet.load_state_dict(state["net"])
                self.ema.load_state_dict(state["ema"])
                for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(saved)
                self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
                return
        except Exception as error:  # truncated, not an archive, contains code, lacks a key
            raise InputError(
                f"{path} cannot be resumed ({type(error).__name__}: not a complete training checkpoint); "
                "remove it to start anew."
            ) from error
        raise InputError(f"{path} was trained with {config}; use that configuration or another folder.")

    def update(self, x0: torch.Tensor) -> None:
        """One optimizer step on a batch (B, 1, H, W) in [-1, 1].

        The error of D(y, sigma) is weighted by 1 / c_out^2, so that F's target has unit variance at every sigma (EDM).
        """
        config, device = self.config, self.unet.device
        for optimizer, share in zip(self.optimizers, RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * learning_rate(self.step, config)
        x0 = x0.to(device, non_blocking=True)
        generator = torch.Generator(device).manual_seed((config.seed << 32) + self.step)
        sigma = noise_levels(config, generator).view(-1, 1, 1, 1)
        y = x0 + sigma * torch.randn(x0.shape, generator=generator, device=device)
        s = self.unet.config["data_std"]
        dtype = best_dtype(device)
        with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            error = self.unet.denoise(y, sigma) - x0
        loss = (error * (sigma**2 + s**2).sqrt() / (sigma * s)).square().mean()
        self.unet.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.unet.parameters()), 1 - keep)
        self.losses.append(loss.detach())

    def measure(self, held_out: dict[str, list[np.ndarray]]) -> dict[str, float]:
        """A row of the log: step, minutes, learning rate, loss, PSNR of each folder at each sigma."""
        row: dict[str, float] = {"step": self.step, "minutes": round(self.seconds / 60, 2)}
        row |= {"lr": learning_rate(self.step, self.config), "loss": round(self.loss, 5)}

        def denoise(y: torch.Tensor, sigma: float) -> torch.Tensor:
            return self.ema.denoise(y.to(self.ema.device), torch.tensor([sigma], device=self.ema.device))

        for name, images in held_out.items():
            for sigma in EVALUATED_SIGMAS if images else ():
                row[f"{name} {sigma}"] = round(denoising_psnr(denoise, images, sigma), 2)
        return row


@_no_denormals()
def train(
    data: Path,
    run: Path,
    config: TrainingConfig | None = None,
    *,
    initial: str | Path | None = None,
    device: str | torch.device = "cpu",
    checkpoint_minutes: float = 5.0,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Train or resume the run in folder `run`; returns the folder of the exported prior.

    Args:
        data: Folder of folders of images.
        run: Receives `checkpoint.pt` (weights, their moving average, optimizer, step), `log.csv`, `log.png` if
            matplotlib is installed, and `prior/`.
        config: What to train. On resuming, only `steps` may differ from the checkpoint's.
        initial: A prior (as in `load_prior`) or a run's `checkpoint.pt` to start from instead of random weights.
        device: "cpu" or "cuda"; uses bfloat16 autocast where the hardware supports it.
        checkpoint_minutes: Time between checkpoints.
        overwrite: Whether existing files may be replaced if the folder is not that of an earlier run.
        report: Called with one line of progress at each checkpoint.

    Raises:
        InputError: no images, a folder that cannot be written, a checkpoint or initial prior that does not fit, or
            divergence (the last good checkpoint stays).
    """
    config, device = config or TrainingConfig(), torch.device(device)
    images, p, held_out = _read_images(data, config, report)
    claim_run(run, data, overwrite)
    state, checkpoint = Run.new(config, initial, device), run / "checkpoint.pt"
    if checkpoint.exists():
        state.resume(checkpoint)
    steps = range(state.step, config.steps)
    batches = torch.utils.data.DataLoader(
        Batches(images, p, config.batch_size, config.crop, config.seed), batch_size=None, sampler=steps
    )
    last = saved = time.monotonic()
    for x0 in batches:
        state.update(x0)
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        if state.step == config.steps or now - saved > 60 * checkpoint_minutes:
            loss = torch.stack(state.losses).mean().item()
            if not loss < 3 * state.loss:
                raise InputError(
                    f"The run in {run} diverged before step {state.step} (loss {state.loss:.3f} to {loss:.3f}); its "
                    "checkpoint predates that: start a new run from it with a lower learning rate."
                )
            state.loss, state.losses = loss, []
            state.save(checkpoint)  # before measuring, which may fail on an odd image
            row = state.measure(held_out)
            _log(run / "log.csv", row)
            report("  ".join(f"{key} {value:g}" for key, value in row.items()))
            last = saved = time.monotonic()  # measuring and saving are not training time
    return save_prior(*from_checkpoint(checkpoint), run / "prior")


def _read_images(
    data: Path, config: TrainingConfig, report: Callable[[str], None]
) -> tuple[list[np.ndarray], np.ndarray, dict[str, list[np.ndarray]]]:
    """Images to crop from, their sampling weights, and up to twelve held-out images of each folder."""
    images: list[np.ndarray] = []
    weights: list[float] = []
    held_out: dict[str, list[np.ndarray]] = {}
    for folder in sorted(p for p in data.iterdir() if p.is_dir()) if data.is_dir() else []:
        trained, held = split(folder)
        for path in trained:
            for image in scales(read_luma(path), config.crop):
                images.append(image)
                weights.append(image.size * (config.natural_weight if folder.name == "natural" else 1.0))
        read_ones = {path: read_luma(path) for path in held}
        if small := [path.name for path, grey in read_ones.items() if min(grey.shape) < config.crop]:
            report(f"{folder.name}: {len(small)} held-out images are skipped, being smaller than the crop ({small[0]})")
        held_out[folder.name] = [grey for grey in read_ones.values() if min(grey.shape) >= config.crop][:12]
    if not images:
        raise InputError(f"{data} has no folder of images of at least {config.crop} pixels a side; choose another.")
    return images, np.array(weights), held_out


def _log(log: Path, row: dict[str, float]) -> None:
    """Append a row to `log.csv` and redraw the plot."""
    header = not log.exists()
    try:
        with log.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if header:
                writer.writeheader()
            writer.writerow(row)
        plot(log)
    except OSError as error:
        raise InputError(f"The log {log} cannot be written: {error.strerror}.") from error


def plot(log: Path) -> None:
    """Plot `log.csv` as `log.png`: loss, and PSNR at sigma 25 for each folder; does nothing without matplotlib."""
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
    if right.lines:
        right.legend()
    figure.savefig(log.with_suffix(".png"), dpi=100)
