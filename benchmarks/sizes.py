"""Peak memory and seconds per megapixel at increasing sizes: both must be bounded by the tile and linear in the pixels.

    python benchmarks/sizes.py [--megapixels 1 4 16 100] [--shape H W] [--steps 3] [--tile 512] [--prior embedded]

A synthetic pair, grey infrared and coloured visible, 8 bits each, from array to fused array; every size in a separate
process, whose peak resident memory (including weights and libraries) is reported, with wall-clock and CPU seconds
(CPU time is less affected by other work on the machine). `--prior paper` is the network of the
paper's prior, 552 M parameters, with random weights: for memory and time, not for images.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from ddfm.pipeline import DDFMPipeline, FusionOutput


def made_pair(height: int, width: int) -> list[np.ndarray]:
    """Smooth shapes, edges and texture at several scales; uint8 (H, W) and (H, W, 3)."""
    rng = np.random.default_rng(0)
    pair = []
    for channels in (1, 3):
        out = np.zeros((height, width, channels), np.uint8)
        for size, amplitude in ((8, 90), (64, 60), (512, 30)):
            coarse = rng.integers(0, amplitude, (size, size, channels), np.uint8)
            how = cv2.INTER_NEAREST if size == 64 else cv2.INTER_LINEAR
            resized = np.asarray(cv2.resize(coarse, (width, height), interpolation=how), np.uint8)
            out += resized.reshape(out.shape)
        pair.append(out[..., 0] if channels == 1 else out)
    return pair


def pipeline(prior: str) -> DDFMPipeline:
    if prior != "paper":
        return DDFMPipeline.from_prior(prior)
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from ddfm.prior.convert import OPENAI_256, unet_config

    unet = UNet2DModel(**unet_config(OPENAI_256)).eval().requires_grad_(False)
    return DDFMPipeline(unet.to(memory_format=torch.channels_last), DDPMScheduler(beta_start=1e-4, beta_end=0.02))


def one(height: int, width: int, steps: int, tile: int | None, prior: str) -> None:
    pair, megapixels = made_pair(height, width), height * width / 1e6
    pipe = pipeline(prior)
    pipe.set_progress_bar_config(disable=True)
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{width}x{height}")
        begin, begin_cpu = time.perf_counter(), time.process_time()
        output = pipe(
            pair,
            num_inference_steps=steps,
            tile=tile or "auto",
            generator=torch.Generator().manual_seed(0),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert isinstance(output, FusionOutput) and isinstance(output.images, np.ndarray)
    assert output.images.shape == (1, height, width, 3)
    print(
        f"{width}x{height}  {seconds:8.1f} s  {seconds / megapixels:6.2f} s/MP  {cpu / megapixels:6.2f} CPU s/MP"
        f"  peak {peak:5.2f} GiB",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 16, 100])
    parser.add_argument("--shape", type=int, nargs=2, help="height and width of a single run, in this process")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--prior", default="embedded")
    args = parser.parse_args(arguments)
    if args.shape:
        height, width = args.shape
        one(height, width, args.steps, args.tile, args.prior)
        return
    for megapixels in args.megapixels:
        side = str(round((megapixels * 1e6) ** 0.5))
        tile = [] if args.tile is None else ["--tile", str(args.tile)]
        rest = ["--steps", str(args.steps), "--prior", args.prior, *tile]
        subprocess.run([sys.executable, __file__, "--shape", side, side, *rest], check=True)


if __name__ == "__main__":
    main()
