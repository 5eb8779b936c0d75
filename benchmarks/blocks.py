"""The contribution of each residual block of a prior: the PSNR without it, which shows where a network is too deep.

    python benchmarks/blocks.py DATA [--prior embedded] [--sigmas 15 50]

DATA is the training folder. Each block is skipped in turn (it computes x + f(x), so x is passed on); prints the change
in dB on twelve held-out photographs. A block that changes nothing wastes its run time.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ddfm.prior import Denoiser, load_prior
from ddfm.prior.train import denoising_psnr
from ddfm.prior.training_data import read_luma, split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--sigmas", type=float, nargs="*", default=[15, 50])
    args = parser.parse_args()
    prior = load_prior(args.prior)
    unet: Any = prior.unet
    denoise = Denoiser(unet, prior.scheduler).at
    images = [read_luma(path) for path in split(args.data / "natural")[1]][:12]

    def score() -> list[float]:
        return [denoising_psnr(denoise, images, sigma) for sigma in args.sigmas]

    whole = score()
    print("all blocks:", " / ".join(f"{value:.2f}" for value in whole), "dB")
    groups = {f"down {i}": blocks for i, blocks in enumerate(unet.down_blocks)}
    groups |= {"middle": unet.mid_block} | {f"up {i}": blocks for i, blocks in enumerate(unet.up_blocks)}
    for name, blocks in groups.items():
        for k, block in enumerate(blocks):
            blocks[k] = torch.nn.Identity()
            print(f"{name}, block {k}:", " / ".join(f"{a - b:+.3f}" for a, b in zip(score(), whole, strict=True)))
            blocks[k] = block


if __name__ == "__main__":
    main()
