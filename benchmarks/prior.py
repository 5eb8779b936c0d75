"""Denoising quality and speed of a prior, on images that it was not trained on.

    python benchmarks/prior.py DATA [--prior embedded] [--crop 192] [--bfloat16] [--bm3d] [--samples OUT.png]

DATA is the training folder: centre crops of the luma of the held-out images of each of its folders are used
(`training_data.split`). Prints PSNR in dB for Gaussian noise of several sigmas (of 255) at the matching time step, the
mean squared error of the predicted noise over t, how much of JPEG's blocks is left, the drift of mean and contrast with
image size, the residual of a flat noisy image on the network's grid and at the border, and seconds per 640x480
evaluation. `--bm3d` adds BM3D (the package `bm3d`), which shows how hard the images are; `--samples` writes
unconditional samples of 128 and 256 pixels.
"""

import argparse
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from ddfm.prior import Denoiser, Prior, load_prior
from ddfm.prior.train import denoising_psnr
from ddfm.prior.training_data import blockiness, read_luma, split

SIGMAS = (2, 5, 10, 15, 25, 50, 75, 100, 200, 400)
TIMES = (1, 10, 50, 100, 200, 400, 600, 800, 950)


def eps_loss(prior: Prior, pictures: list[np.ndarray], t: int) -> float:
    """Mean squared error of the noise implied by the estimate."""
    generator = torch.Generator().manual_seed(0)
    a, total = prior.scheduler.alphas_cumprod[t].item(), 0.0
    for grey in pictures:
        x0 = torch.from_numpy(grey[:160, :160].astype("float32") / 127.5 - 1)[None, None]
        eps = torch.randn(x0.shape, generator=generator)
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * eps
        estimate = Denoiser(prior.unet, prior.scheduler, precision="float32")(x_t, t)
        total += ((x_t - a**0.5 * estimate) / (1 - a) ** 0.5 - eps).square().mean().item()
    return total / len(pictures)


def blocks(prior: Prior, pictures: list[np.ndarray], sigma: float) -> tuple[float, float]:
    """`blockiness` of the images' corners (on JPEG's grid), before and after denoising with `sigma`."""
    t = int((Denoiser(prior.unet, prior.scheduler).sigmas - 2 * sigma / 255).abs().argmin())
    a, generator, rows = prior.scheduler.alphas_cumprod[t].item(), torch.Generator().manual_seed(0), []
    for grey in pictures:
        corner = grey[:192, :192]
        x0 = torch.from_numpy(corner.astype("float32") / 127.5 - 1)[None, None]
        noise = torch.randn(x0.shape, generator=generator)
        estimate = Denoiser(prior.unet, prior.scheduler, precision="float32")(a**0.5 * x0 + (1 - a) ** 0.5 * noise, t)
        rows.append((blockiness(corner), blockiness(((estimate[0, 0] + 1) * 127.5).numpy())))
    before, after = np.mean(rows, axis=0)
    return before, after


def bm3d_psnr(pictures: list[np.ndarray], sigma: float, crop: int) -> float:
    """BM3D on the same crops with the same noise as `denoising_psnr`."""
    import bm3d

    generator, total = torch.Generator().manual_seed(int(sigma)), 0.0
    for grey in pictures:
        h, w = (min(crop, extent) // 16 * 16 for extent in grey.shape)
        y, x = (grey.shape[0] - h) // 2, (grey.shape[1] - w) // 2
        x0 = grey[y : y + h, x : x + w].astype(np.float64)
        noise = torch.randn((1, 1, h, w), generator=generator)[0, 0].numpy()
        estimate = bm3d.bm3d(x0 + sigma * noise, sigma).clip(0, 255)
        total += -10 * np.log10(np.mean((estimate - x0) ** 2) / 255**2)
    return total / len(pictures)


def artefacts(prior: Prior) -> None:
    """A ramp at several sizes; a flat noisy image, whose errors must not depend on the grid or the border."""
    generator = torch.Generator().manual_seed(0)
    a = prior.scheduler.alphas_cumprod[100].item()

    def denoised(x0: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x0.shape, generator=generator)
        return Denoiser(prior.unet, prior.scheduler, precision="float32")(a**0.5 * x0 + (1 - a) ** 0.5 * noise, 100)

    ramp = torch.linspace(-0.8, 0.8, 64).view(1, 1, 1, -1)
    for size in (16, 64, 256, 1024, 2048):
        x0 = torch.nn.functional.interpolate(ramp, size=(1, size), mode="bilinear").expand(1, 1, size, size)
        estimate = denoised(x0)
        drift, contrast = (estimate - x0).mean().item() * 127.5, (estimate.std() / x0.std()).item()
        print(f"ramp of {size} pixels at t = 100: mean drift {drift:+.2f} of 255, contrast ratio {contrast:.4f}")
    for level in (-0.9, 0.0, 0.9):
        error = 127.5 * (denoised(torch.full((1, 1, 512, 512), level)) - level)[0, 0]
        inner = error[32:-32, 32:-32]
        phases = torch.stack([inner[y::2, x::2].mean() for y in (0, 1) for x in (0, 1)])
        border = torch.cat([part.flatten() for part in (error[:8], error[-8:], error[:, :8], error[:, -8:])])
        print(
            f"flat at {127.5 * (level + 1):.0f} of 255, sigma 41: left {inner.std():.2f}, mean {inner.mean():+.2f}, "
            f"spread of the means over the 2-pixel grid {phases.max() - phases.min():.3f}, "
            f"8-pixel border {border.mean() - inner.mean():+.2f}"
        )


def samples(prior: Prior, path: Path) -> None:
    """Four samples of 128 pixels and two of 256, from pure noise, with 50 second-order steps."""
    rows = []
    for size, count in ((128, 4), (256, 2)):
        scheduler = DPMSolverMultistepScheduler.from_config(prior.scheduler.config)
        scheduler.set_timesteps(50)
        x = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(size))
        for t in scheduler.timesteps:
            x = scheduler.step(prior.unet(x.to(prior.unet.dtype), t).sample.float(), t, x).prev_sample
        rows.append(np.hstack([((picture[0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy() for picture in x]))
    cv2.imwrite(str(path), np.vstack(rows))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--bm3d", action="store_true")
    parser.add_argument("--samples", type=Path)
    args = parser.parse_args()
    prior = load_prior(args.prior, dtype=torch.bfloat16 if args.bfloat16 else torch.float32)
    denoiser = Denoiser(prior.unet, prior.scheduler, precision="bfloat16" if args.bfloat16 else "float32")
    print("t for each sigma: " + "  ".join(f"{s}: {int((127.5 * denoiser.sigmas - s).abs().argmin())}" for s in SIGMAS))
    for folder in sorted(p for p in args.data.iterdir() if p.is_dir()):
        pictures = [read_luma(path) for path in split(folder)[1]]
        psnr = {s: denoising_psnr(denoiser.at, pictures, s, args.crop) for s in SIGMAS}
        print(f"{folder.name} ({len(pictures)})  PSNR  " + "  ".join(f"{s}: {v:.2f}" for s, v in psnr.items()))
        losses = {t: eps_loss(prior, pictures[:12], t) for t in TIMES}
        print("    eps-loss  " + "  ".join(f"t {t}: {v:.4f}" for t, v in losses.items()), flush=True)
        before, after = blocks(prior, pictures[:12], 10)
        print(f"    JPEG blockiness: {before:.3f} in the images, {after:.3f} after denoising, sigma 10", flush=True)
        if args.bm3d:
            values = {s: bm3d_psnr(pictures, s, args.crop) for s in (15, 25, 50)}
            print("    BM3D  " + "  ".join(f"{s}: {v:.2f}" for s, v in values.items()), flush=True)
    artefacts(prior)
    if args.samples:
        samples(prior, args.samples)

    x = torch.randn(1, 1, 480, 640).to(prior.unet.dtype)
    prior.unet(x, 100)
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        prior.unet(x, 100)
        seconds.append(time.perf_counter() - begin)
    median, least = statistics.median(seconds), min(seconds)
    print(f"640x480: median {median:.2f} s, min {least:.2f} s, {torch.get_num_threads()} threads, {prior.unet.dtype}")


if __name__ == "__main__":
    main()
