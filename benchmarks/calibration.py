"""Whether the std over several samples matches the error: reliability on noisy pairs with clean references.

    python benchmarks/calibration.py [--pairs 4] [--sets road msrs pet] [--figure docs/calibration.png]

White noise is added to both sources or to the first, in 8 bits; the error is the difference from the fusion of the
clean pair. Pixels are sorted by std into ten bins, one per row: their root mean square std and error, and the share of
errors within one std, which is 68 % for a normal distribution. Road pairs on which the constants were fitted (every
fourth) are left out. The figure needs matplotlib.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from degradations import eight_bit, gaussian
from rank import SETS, no_dev_pairs, pairs_of

from ddfm.colour import luma
from ddfm.io import images
from ddfm.pipeline import DDFMPipeline, quiet_pipeline

CONDITIONS = {"sigma 10, both": (10, 10), "sigma 25, both": (25, 25), "sigma 25, first": (25, 0)}
BINS = 10


def errors(
    pipe: DDFMPipeline, paths: Sequence[Path], sigmas: tuple[float, float], seed: int, samples: int
) -> np.ndarray:
    """The std and the error of every pixel of one pair, (2, H * W), of 255."""
    clean = [eight_bit(luma(images.read(path).pixels)) for path in paths]
    noisy = [eight_bit(s) for s in gaussian(*sigmas, clean, np.random.default_rng(seed))]
    found, reference = pipe(noisy, num_samples=samples), pipe(clean)
    error = np.asarray(found.images[0]) - np.asarray(reference.images[0])  # type: ignore[union-attr]
    return 255 * np.stack([found.std[0].ravel(), np.abs(error).ravel()])  # type: ignore[union-attr, index]


def reliability(std: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(BINS, 3): root mean square std and error, and the share of errors within one std."""
    rows = np.array_split(np.argsort(std, kind="stable"), BINS)
    return np.array(
        [
            (np.sqrt((std[at] ** 2).mean()), np.sqrt((error[at] ** 2).mean()), (error[at] <= std[at]).mean())
            for at in rows
        ]
    )


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(4.2, 4), layout="constrained")).subplots()
    for label, rows in curves.items():
        axes.plot(rows[:, 0], rows[:, 1], "o-", label=label, markersize=3, linewidth=1)
    most = max(rows[:, :2].max() for rows in curves.values())
    axes.plot([0, most], [0, most], color="grey", linewidth=0.8)
    axes.set(xlabel="std of the samples, of 255", ylabel="root mean square error, of 255")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each set and condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["road"])
    parser.add_argument("--pairs", type=int, help="this many of each set, spread evenly")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--figure", type=Path, help="a PNG of all curves")
    args = parser.parse_args(argv)
    if no_dev_pairs():
        return
    torch.set_num_threads(1)
    pipe = quiet_pipeline("embedded", None)
    curves = {}
    for name in args.sets:
        pairs = pairs_of(SETS[name][1], None)
        stems = [stem for at, stem in enumerate(pairs) if at % 4 or name != "road"]
        stems = stems[:: max(1, len(stems) // (args.pairs or len(stems)))][: args.pairs]
        for condition, sigmas in CONDITIONS.items():
            found = [errors(pipe, pairs[stem], sigmas, k, args.samples) for k, stem in enumerate(stems)]
            std, error = np.concatenate(found, axis=1)
            rows = curves[f"{name}, {condition}"] = reliability(std, error)
            each = [(e <= s).mean() for s, e in found]
            print(f"\n{name}, {condition}, {len(stems)} pairs: {100 * (error <= std).mean():.0f} % within one std")
            print(f"({100 * min(each):.0f} to {100 * max(each):.0f} % in single pairs)")
            print("std    " + "".join(f"{v:6.1f}" for v in rows[:, 0]))
            print("error  " + "".join(f"{v:6.1f}" for v in rows[:, 1]))
            print("within " + "".join(f"{100 * v:6.0f}" for v in rows[:, 2]), flush=True)
    if args.figure:
        draw(curves, args.figure)


if __name__ == "__main__":
    main()
