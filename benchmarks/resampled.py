"""Fusion with an infrared image of fewer pixels than the visible one: dev road pairs, true geometry.

    python benchmarks/resampled.py [--pairs 5] [--ratios 2 2.25] [--sigmas 0 10 25] [--stripes 8]
        [--crop 0.8] [--baselines] [--register]

The infrared image is averaged down by the ratio, cropped to the central `crop` of the field of view, given white noise
of sigma and column offsets with a standard deviation of `stripes` (both of 255), and rounded to 8 bits. Its true
placement is given; with --register it is estimated, as by `ddfm fuse`, and pairs that are refused are left out and
counted. Metrics are against the *original* infrared and visible images, "Qabf, fused" against the sources that were
fused, without noise; in brackets the ratio to the method's value for the original pair. "enlarged, then cleaned"
measures the noise after the interpolation.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from degradations import eight_bit
from rank import SETS, SHARED, no_dev_pairs, pairs_of

from ddfm import Scene
from ddfm.colour import luma
from ddfm.evaluation.baselines import BASELINES
from ddfm.evaluation.metrics import fusion_metrics
from ddfm.io import images
from ddfm.io.images import Image
from ddfm.pipeline import DDFMPipeline, quiet_pipeline
from ddfm.registration import Registration, from_matrix, register, to_frame, with_frame_beyond

NAMES = ["VIF", "Qabf", "SSIM"]


def smaller(infrared: np.ndarray, ratio: float, crop: float) -> tuple[np.ndarray, Registration]:
    """The centre of an image, averaged down, and where it lies in the full image."""
    height, width = infrared.shape
    h, w = round(height * crop), round(width * crop)
    top, left = (height - h) // 2, (width - w) // 2
    small = cv2.resize(
        infrared[top : top + h, left : left + w], (round(w / ratio), round(h / ratio)), interpolation=cv2.INTER_AREA
    )
    sy, sx = small.shape[0] / h, small.shape[1] / w
    matrix = np.array([[sx, 0, (0.5 - left) * sx - 0.5], [0, sy, (0.5 - top) * sy - 0.5], [0, 0, 1]])
    return small, from_matrix(matrix, small.shape, infrared.shape)


def scores(fused: np.ndarray, sources: Sequence[np.ndarray]) -> np.ndarray:
    values = fusion_metrics(
        np.rint(eight_bit(fused) * 255), [np.rint(eight_bit(s) * 255) for s in sources], names=NAMES
    )
    return np.array([values[name] for name in NAMES])


def framed_scene(infrared: np.ndarray, visible: np.ndarray, place: Registration) -> Scene:
    framed = to_frame([Image(infrared), Image(visible)], 1, rig=place)
    return Scene(framed.sources, framed.findings, 1, framed.places, framed)


def measured(
    pipe: DDFMPipeline,
    stem: str,
    seed: int,
    ratio: float,
    sigma: float,
    stripes: float,
    crop: float,
    baselines: bool,
    find: bool,
) -> dict[str, np.ndarray] | None:
    """For each method: metrics with the original pair, and with the smaller infrared against originals and sources.

    None if it is to be registered and is refused.
    """
    paths = [next((SHARED / "data/dev" / folder).glob(f"{stem}.*")) for folder in SETS["road"][1]]
    original = [eight_bit(luma(images.read(path).pixels)) for path in paths]
    small, place = smaller(original[0], ratio, crop)
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, small.shape) * sigma + rng.normal(0, 1, (1, small.shape[1])) * stripes
    noisy = eight_bit(small + noise.astype(np.float32) / 255)
    if find:
        place = register(noisy, original[1])
        if not place.confident:
            return None
    scene, clean = (framed_scene(infrared, original[1], place) for infrared in (noisy, eight_bit(small)))
    whole = Scene([Image(s) for s in original]).fuse(pipe)
    results = {
        "ddfm": (whole, scene.fuse(pipe)),
        "enlarged, then cleaned": (whole, replace(scene, framed=None).fuse(pipe)),
    }
    for name, method in BASELINES.items() if baselines else ():
        fused = method([s.pixels for s in scene.sources])
        results[name] = (method(original), with_frame_beyond(fused, original[1], [place, None]))
    own = [s.pixels for s in clean.sources]
    return {
        name: np.concatenate([scores(whole, original), scores(fused, original), scores(fused, own)[1:2]])
        for name, (whole, fused) in results.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each ratio and sigma."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="this many, spread evenly")
    parser.add_argument("--ratios", type=float, nargs="+", default=[2.0, 2.25])
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.0, 10.0, 25.0])
    parser.add_argument("--stripes", type=float, default=0.0)
    parser.add_argument("--crop", type=float, default=1.0, help="share of the field of view, each way")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--register", action="store_true", help="find where the infrared lies")
    args = parser.parse_args(argv)
    if no_dev_pairs():
        return
    torch.set_num_threads(1)
    pipe = quiet_pipeline("embedded", None)
    stems = list(pairs_of(SETS["road"][1], args.pairs))
    for ratio in args.ratios:
        for sigma in args.sigmas:
            tried = [
                measured(pipe, stem, seed, ratio, sigma, args.stripes, args.crop, args.baselines, args.register)
                for seed, stem in enumerate(stems)
            ]
            found = [result for result in tried if result is not None]
            print(f"\nratio {ratio:g}, crop {args.crop:g}, sigma {sigma:g}, stripes {args.stripes:g}, ", end="")
            print(f"{len(found)} of {len(stems)} pairs")
            if not found:
                continue
            print(f"{'':24s}" + "".join(f"{name:>14s}" for name in [*NAMES, "Qabf, fused"]))
            for name in found[0]:
                mean = np.mean([rows[name] for rows in found], axis=0)
                whole, values = mean[[0, 1, 2, 1]], mean[3:]
                cells = zip(values, values / whole, strict=True)
                print(f"{name:24s}" + "".join(f"{v:8.2f} ({share:.2f})" for v, share in cells), flush=True)


if __name__ == "__main__":
    main()
