"""How good a denoiser and how fast a prior is, on pictures that it was not trained on.

    python benchmarks/prior.py DATA [--prior embedded] [--crop 256]

DATA is the training folder: of each of its folders the held-out pictures are taken (`train.split`), their luma, centre
crops. Prints PSNR in dB for Gaussian noise of several sigma of 255 at the matching time step, the mean squared error of
the predicted noise over t, the drift of the mean and of the contrast with picture size, and seconds per 640x480
evaluation.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from ddfm.prior import denoise, load_prior
from ddfm.train import denoising_psnr, read_luma, split

SIGMAS = (5, 10, 15, 25, 50, 100)
TIMES = (10, 50, 100, 200, 400, 600, 800, 950)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--crop", type=int, default=256)
    args = parser.parse_args()
    prior = load_prior(args.prior)
    unet, alphas_cumprod = prior.unet, prior.scheduler.alphas_cumprod

    for folder in sorted(p for p in args.data.iterdir() if p.is_dir()):
        pictures = [read_luma(path) for path in split(folder)[1]]
        psnr = {sigma: denoising_psnr(unet, alphas_cumprod, pictures, sigma, args.crop) for sigma in SIGMAS}
        print(
            f"{folder.name} ({len(pictures)})  PSNR  " + "  ".join(f"{s}: {v:.2f}" for s, v in psnr.items()), flush=True
        )
        generator = torch.Generator().manual_seed(0)
        losses = []
        for t in TIMES:
            a = alphas_cumprod[t].item()
            total = 0.0
            for grey in pictures[:12]:
                x0 = torch.from_numpy(grey[:160, :160].astype("float32") / 127.5 - 1)[None, None]
                eps = torch.randn(x0.shape, generator=generator)
                x_t = a**0.5 * x0 + (1 - a) ** 0.5 * eps
                guess = denoise(unet, prior.scheduler, x_t, t)
                total += ((x_t - a**0.5 * guess) / (1 - a) ** 0.5 - eps).square().mean().item()
            losses.append(total / len(pictures[:12]))
        print("    eps-loss  " + "  ".join(f"t {t}: {v:.4f}" for t, v in zip(TIMES, losses, strict=True)), flush=True)

    ramp = torch.linspace(-0.8, 0.8, 64).view(1, 1, 1, -1)
    for size in (64, 256, 1024):
        x0 = ramp.repeat_interleave(size // 64, dim=-1).expand(1, 1, size, size)
        a = alphas_cumprod[100].item()
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        guess = denoise(unet, prior.scheduler, a**0.5 * x0 + (1 - a) ** 0.5 * noise, 100)
        drift, contrast = (guess - x0).mean().item() * 127.5, (guess.std() / x0.std()).item()
        print(f"ramp of {size} pixels at t = 100: mean drifts by {drift:+.2f} of 255, contrast times {contrast:.4f}")

    x = torch.randn(1, 1, 480, 640)
    unet(x, 100)
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        unet(x, 100)
        seconds.append(time.perf_counter() - begin)
    median, least = statistics.median(seconds), min(seconds)
    print(f"640x480: median {median:.2f} s, least {least:.2f} s, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
