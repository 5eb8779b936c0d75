"""The effect of the prior, the steps and the seed on the salient likelihood, on folders of registered pairs.

    python benchmarks/likelihood.py FIRST_DIR SECOND_DIR --pairs 6 --crop 256

Prints three tables. Noise: Gaussian noise added to both sources; PSNR is against the fusion of the clean sources by the
same likelihood without the prior, the other metrics against the clean sources. Steps: few from the initial estimate, as
a ratio to 100 from pure noise. Seeds: standard deviation of each metric, and of the luma, over five seeds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from ddfm import DDFMPipeline
from ddfm.colour import luma
from ddfm.evaluation.baselines import BASELINES
from ddfm.evaluation.metrics import fusion_metrics
from ddfm.io import images
from ddfm.io.pairing import pair_by_stem
from ddfm.likelihoods.base import SourceDenoiser
from ddfm.likelihoods.operators import smooth
from ddfm.likelihoods.salient import Salient, SalientState
from ddfm.settings import FusionSettings

NAMES = ["EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM"]
Fuse = Callable[[list[np.ndarray]], np.ndarray]


def measured(fused: np.ndarray, sources: list[np.ndarray]) -> np.ndarray:
    found = fusion_metrics(np.rint(fused * 255), [np.rint(s * 255) for s in sources], names=NAMES)
    return np.array([found[name] for name in NAMES])


def row(label: str, values: np.ndarray, names: list[str]) -> None:
    print(
        f"{label:28s}" + "".join(f"  {name} {value:7.3f}" for name, value in zip(names, values, strict=True)),
        flush=True,
    )


class Blurred(Salient):
    """The same likelihood with a Gaussian blur instead of the prior for denoising, with the width of least MSE."""

    def start(self, sources: list[Tensor], denoise: SourceDenoiser | None = None) -> SalientState:
        return super().start(sources, lambda x, sigma: smooth(x, min(2.0, 0.5 + 4 * sigma)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=2, type=Path)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--tables", default="noise,steps,seeds")
    args = parser.parse_args()

    pipe = DDFMPipeline.from_prior(args.prior)
    pipe.set_progress_bar_config(disable=True)

    def fuser(seed: int = 0, **options: object) -> Fuse:
        def fuse(sources: list[np.ndarray]) -> np.ndarray:
            settings = FusionSettings(seed=seed, **options)  # type: ignore[arg-type]
            return np.asarray(pipe(sources, settings, return_dict=False)[0][0])

        return fuse

    pairs, _ = pair_by_stem(args.folders)
    stems = list(pairs)[:: max(1, len(pairs) // args.pairs)][: args.pairs]
    scenes = []
    for stem in stems:
        sources = [luma(images.read(path).pixels) for path in pairs[stem]]
        h, w = sources[0].shape
        y, x = max(0, (h - args.crop) // 2), max(0, (w - args.crop) // 2)
        scenes.append([s[y : y + args.crop, x : x + args.crop] for s in sources])
    print(f"{len(scenes)} pairs, {args.crop} pixels")

    bare = Salient(denoise_sources=False)
    if "noise" in args.tables:
        methods: dict[str, Fuse] = {
            "salient, no prior": fuser(likelihood=bare),
            "salient, blur for prior": fuser(likelihood=Blurred()),
            "salient, prior (default)": fuser(),
            **BASELINES,
        }
        for sigma in (0, 10, 25):
            rng = np.random.default_rng(sigma)
            noisy = [
                [np.rint(np.clip(s + rng.normal(0, sigma / 255, s.shape), 0, 1) * 255) / 255 for s in scene]
                for scene in scenes
            ]
            for label, fuse in methods.items():
                values = []
                for clean, observed in zip(scenes, noisy, strict=True):
                    reference = fuser(likelihood=bare)(clean) if label.startswith("salient") else fuse(clean)
                    fused = fuse([s.astype(np.float32) for s in observed])
                    psnr = -10 * np.log10(max(float(((fused - reference) ** 2).mean()), 1e-10))
                    values.append([psnr, *measured(fused, clean)])
                row(f"sigma {sigma}: {label}"[:40], np.mean(values, axis=0), ["PSNR", *NAMES])
    if "steps" in args.tables:
        reference = np.mean([measured(fuser(num_inference_steps=100, strength=1.0)(s), s) for s in scenes], axis=0)
        row("100 steps from pure noise", reference, NAMES)
        for steps in (1, 2, 3, 5, 10):
            begin = time.perf_counter()
            values = np.mean([measured(fuser(num_inference_steps=steps)(s), s) for s in scenes], axis=0)
            row(f"{steps} steps, ratio to those", values / reference, NAMES)
            print(f"    {(time.perf_counter() - begin) / len(scenes):.2f} s per pair, including metrics")
    if "seeds" in args.tables:
        runs = [[fuser(seed)(s) for s in scenes] for seed in range(5)]
        row(
            "std over 5 seeds",
            np.std(
                [np.mean([measured(f, s) for f, s in zip(run, scenes, strict=True)], axis=0) for run in runs], axis=0
            ),
            NAMES,
        )
        spread = np.mean([np.std([run[k] for run in runs], axis=0).mean() for k in range(len(scenes))])
        print(f"std of the luma over 5 seeds: {255 * spread:.3f} of 255")


if __name__ == "__main__":
    main()
