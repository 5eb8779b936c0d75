"""Fusion of degraded sources: five seeded conditions on the dev road pairs, with metrics against the clean sources.

    python benchmarks/degradations.py [--pairs 4] [--conditions stripes ...] [--bm3d] [--save FOLDER]

Every method gets the degraded pair, in 8 bits; metrics are against the *clean* sources; a rank is the mean rank over
five metrics among the rows of the table. PSNR is against the same method's fusion of the clean pair. The baselines, and
our likelihood without denoising, are also run after non-local means and BM3D with the true sigma (--bm3d, slow, needs
the package bm3d), for sources with noise only, as a user would do.
"""

import argparse
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from rank import SETS, SHARED, mean_ranks, no_dev_pairs, pairs_of

from ddfm.colour import luma
from ddfm.evaluation.baselines import BASELINES
from ddfm.evaluation.metrics import fusion_metrics
from ddfm.io import images
from ddfm.likelihoods.salient import Salient
from ddfm.pipeline import DDFMPipeline, quiet_pipeline
from ddfm.settings import FusionSettings

ONE_AT_A_TIME = threading.Lock()  # BM3D has one pool of threads
NAMES = ["MI", "SCD", "VIF", "Qabf", "SSIM"]
Images = list[np.ndarray]  # infrared and visible luma, (H, W) float32 in [0, 1]
Fuse = Callable[[Images], np.ndarray]


def eight_bit(image: np.ndarray) -> np.ndarray:
    quantised: np.ndarray = (np.rint(image.clip(0, 1) * 255) / 255).astype(np.float32)
    return quantised


def gaussian(sigma_infrared: float, sigma_visible: float, sources: Images, rng: np.random.Generator) -> Images:
    """White noise with these standard deviations, of 255."""
    sigmas = (sigma_infrared, sigma_visible)
    return [s + rng.normal(0, 1, s.shape) * sigma / 255 for s, sigma in zip(sources, sigmas, strict=True)]


def low_light(sources: Images, rng: np.random.Generator) -> Images:
    """The visible image to the power of 2.5, then noise with a standard deviation of 5 of 255."""
    infrared, visible = sources
    return [infrared, visible**2.5 + rng.normal(0, 5 / 255, visible.shape)]


def stripes(sources: Images, rng: np.random.Generator) -> Images:
    """One offset per column of the infrared image, with a standard deviation of 8 of 255."""
    infrared, visible = sources
    return [infrared + rng.normal(0, 8 / 255, (1, infrared.shape[1])), visible]


CONDITIONS: dict[str, tuple[Callable[[Images, np.random.Generator], Images], tuple[float, float]]] = {
    "sigma 15, both": (partial(gaussian, 15, 15), (15, 15)),  # and the sigmas that the denoisers are told
    "sigma 25, both": (partial(gaussian, 25, 25), (25, 25)),
    "sigma 25, infrared": (partial(gaussian, 25, 0), (25, 0)),
    "low light": (low_light, (0, 5)),
    "stripes": (stripes, (8, 0)),
}


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    found = cv2.fastNlMeansDenoising(np.rint(image * 255).astype(np.uint8), None, sigma, 7, 21)
    return np.asarray(found / np.float32(255), np.float32)


def bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    from bm3d import bm3d as denoise

    with ONE_AT_A_TIME:
        return np.asarray(denoise(image, sigma / 255), np.float32).clip(0, 1)


def fuser(pipe: DDFMPipeline, settings: FusionSettings) -> Fuse:
    return lambda sources: np.asarray(pipe(sources, settings).images[0])  # type: ignore[union-attr]


def measured(
    methods: dict[str, tuple[str, Fuse]], condition: str, pair: tuple[int, str], save: Path | None
) -> dict[str, np.ndarray]:
    """Five metrics and the PSNR of every method on one pair, given by the seed of its noise and its name."""
    seed, stem = pair
    degrade, sigmas = CONDITIONS[condition]
    folders = SETS["road"][1]
    paths = [next((SHARED / "data/dev" / folder).glob(f"{stem}.*")) for folder in folders]
    clean = [eight_bit(luma(images.read(path).pixels)) for path in paths]
    degraded = [eight_bit(s) for s in degrade(clean, np.random.default_rng(seed))]
    seen = {"": degraded}
    for name, denoise in (("NLM", non_local_means), ("BM3D", bm3d)):
        if any(before == name for before, _ in methods.values()):
            pairs = zip(degraded, sigmas, strict=True)
            seen[name] = [denoise(s, sigma) if sigma else s for s, sigma in pairs]
    rows = {}
    for label, (before, fuse) in methods.items():
        fused, reference = eight_bit(fuse(seen[before])), eight_bit(fuse(clean))
        values = fusion_metrics(np.rint(fused * 255), [np.rint(s * 255) for s in clean], names=NAMES)
        psnr = -10 * np.log10(max(float(np.mean((fused - reference) ** 2)), 1e-10))
        rows[label] = np.array([*(values[name] for name in NAMES), psnr])
        if save and label == "ddfm":
            panels = np.concatenate([*degraded, fused, reference], axis=1)
            images.write(save / f"{condition.replace(', ', '_').replace(' ', '_')}_{stem}.png", panels)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--pairs", type=int, help="this many, spread evenly")
    parser.add_argument("--bm3d", action="store_true", help="BM3D too: minutes per pair")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--save", type=Path, help="write degraded sources, result and clean result there")
    args = parser.parse_args(argv)
    if no_dev_pairs():
        return
    torch.set_num_threads(1)
    pipe = quiet_pipeline(args.prior, None)
    undenoised = fuser(pipe, FusionSettings(likelihood=Salient(denoise_sources=False)))
    methods: dict[str, tuple[str, Fuse]] = {"ddfm": ("", fuser(pipe, FusionSettings()))}
    if not args.only_ours:
        methods |= {name: ("", baseline) for name, baseline in BASELINES.items()}
        for before in ["NLM", *(["BM3D"] if args.bm3d else [])]:
            methods |= {f"{before} + {name}": (before, baseline) for name, baseline in BASELINES.items()}
            methods[f"{before} + ours, plain"] = (before, undenoised)
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
    stems = list(pairs_of(SETS["road"][1], args.pairs))
    for condition in args.conditions:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda at: measured(methods, condition, at, args.save), enumerate(stems)))  # noqa: B023
        means = {label: np.mean([rows[label] for rows in found], axis=0) for label in methods}
        ranks = mean_ranks({label: values[:-1] for label, values in means.items()})
        print(f"\n{condition}, {len(stems)} pairs")
        print(f"{'':28s}" + "".join(f"{name:>8s}" for name in [*NAMES, "PSNR", "rank"]))
        for label in sorted(methods, key=ranks.__getitem__):
            print(f"{label:28s}" + "".join(f"{v:8.2f}" for v in means[label]) + f"{ranks[label]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
