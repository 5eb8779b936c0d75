"""Candidate networks for the embedded prior, all trained briefly in the same way: PSNR and run time.

    python benchmarks/architectures.py DATA RUNS [--steps 400] [--only NAME ...]

DATA is the training folder. All candidates see the same crops and the same noise; RUNS keeps a folder for each, and a
second call resumes where the first stopped. PSNR in dB on 12 held-out images from each folder; milliseconds are the
minimum of five interleaved evaluations at 640x480, so that all share the machine's load; the embedded prior is timed
too.
"""

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddfm.prior.load import load_prior
from ddfm.prior.train import TrainingConfig, train

CANDIDATES = {
    "32-64-128, blocks 4-2-2": TrainingConfig(),
    "32-64-128-256, blocks 2-2-2-2": TrainingConfig(channels=(32, 64, 128, 256), blocks=(2, 2, 2, 2)),
    "32-64-128-256, blocks 1-2-2-3": TrainingConfig(channels=(32, 64, 128, 256), blocks=(1, 2, 2, 3)),
    "48-64-128, blocks 2-2-2": TrainingConfig(channels=(48, 64, 128), blocks=(2, 2, 2)),
    "64-128-256, unshuffle 4": TrainingConfig(channels=(64, 128, 256), blocks=(2, 2, 3), unshuffle=4),
    "48, one level of eight": TrainingConfig(channels=(48,), blocks=(8,)),
}

EMBEDDED = "embedded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=list(CANDIDATES))
    args = parser.parse_args()
    folders = {name: args.runs / name.replace(" ", "_").replace(",", "") for name in args.only}
    for name, folder in folders.items():
        print(name, flush=True)
        train(args.data, folder, replace(CANDIDATES[name], steps=args.steps))

    x = torch.randn(1, 1, 480, 640)
    priors = {name: load_prior(folder / "prior") for name, folder in folders.items()} | {EMBEDDED: load_prior()}
    types = (torch.float32, torch.bfloat16)
    seconds: dict[tuple[str, torch.dtype], list[float]] = {(name, dtype): [] for name in priors for dtype in types}
    with torch.no_grad():
        for _ in range(6):  # the first is the warm-up
            for name, dtype in seconds:
                begin = time.perf_counter()
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    priors[name].unet(x, 100)
                seconds[name, dtype].append(time.perf_counter() - begin)
    for name, prior in priors.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            prior.unet(x, 100)
        parameters = sum(p.numel() for p in prior.unet.parameters())
        gmac, ms = counter.get_total_flops() / 2e9, [f"{1e3 * min(seconds[name, dtype][1:]):.0f}" for dtype in types]
        print(f"{name}: {parameters / 1e6:.2f} M  {gmac:.1f} GMAC  {' / '.join(ms)} ms in float32 / bfloat16", end="")
        if name in folders:
            with (folders[name] / "log.csv").open(newline="") as file:
                row = list(csv.DictReader(file))[-1]
            psnr = (f"{key} {value}" for key, value in row.items() if key.endswith((" 15", " 25", " 50")))
            print("  " + "  ".join(psnr) + f"  ({row['minutes']} min)", end="")
        print()


if __name__ == "__main__":
    main()
