"""How much of a false-colour source's colour the fused image keeps where that source is bright.

    python benchmarks/colour.py FIRST_DIR COLOURED_DIR [--pairs 12] [--stems FLIR_07360 ...]

Pairs have equal stems. Over the pixels whose brightest channel in the coloured source is above 0.5: the CIEDE2000
difference from the source in hue only and in chroma only (with negligible weight for the other terms; 1 is about the
just noticeable difference), and the ratio of the fused chroma to the source's ("kept"). Then "stain": the fraction of
the chroma that is left where the fused luma is above twice the source's; and "tint", in dark areas: the ratio of the
saturation (chroma over luma) to the source's where its luma is below 0.1 and the fused image is darker still. For
comparison, two simpler methods with the same luma: the chroma added and each channel clipped (which shifts hues), and
the average of the images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.color

from ddfm import fuse
from ddfm.colour import chroma_offset, luma, split
from ddfm.io import images
from ddfm.io.pairing import pair_by_stem

NOTHING = 1e9
colour: Any = skimage.color  # which has no types


def clipped(y: np.ndarray, coloured: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(y[..., None] + chroma_offset(split(coloured)[1]), 0, 1))


def row(image: np.ndarray, coloured: np.ndarray) -> list[float]:
    bright = coloured.max(axis=-1) > 0.5
    one, other = colour.rgb2lab(coloured)[bright], colour.rgb2lab(image)[bright]
    hue = colour.deltaE_ciede2000(one, other, kL=NOTHING, kC=NOTHING)
    chroma = colour.deltaE_ciede2000(one, other, kL=NOTHING, kH=NOTHING)
    sizes = [np.hypot(lab[:, 1], lab[:, 2]) for lab in (other, one)]
    kept = sizes[0].sum() / max(sizes[1].sum(), 1e-9)
    (y, tint), (before, own) = ((luma, np.hypot(*np.moveaxis(c, -1, 0))) for luma, c in map(split, (image, coloured)))
    brighter, darker = y > 2 * before, (before < 0.1) & (y < before) & (y > 0)
    stain = tint[brighter].sum() / own[brighter].sum() if own[brighter].any() else np.nan
    dim = (tint / y.clip(1e-6))[darker].sum() / (own / before.clip(1e-6))[darker].sum() if own[darker].any() else np.nan
    return [hue.mean(), np.quantile(hue, 0.95), chroma.mean(), kept, stain, dim]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=2, type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--stems", nargs="+", help="only these pairs")
    args = parser.parse_args(arguments)
    rows: dict[str, list[list[float]]] = {"ddfm": [], "clipped": [], "average": []}
    pairs, _ = pair_by_stem(args.folders)
    chosen = [pairs[stem] for stem in args.stems] if args.stems else list(pairs.values())[: args.pairs]
    for paths in chosen:
        first, coloured = (images.read(path).pixels for path in paths)
        fused = fuse(first, coloured)
        grey = np.repeat(luma(first)[..., None], 3, axis=-1)
        for name, image in (
            ("ddfm", fused),
            ("clipped", clipped(luma(fused), coloured)),
            ("average", (grey + coloured) / 2),
        ):
            rows[name].append(row(image, coloured))
    print(f"{len(rows['ddfm'])} pairs          hue  its 95 %    chroma      kept     stain      tint")
    for name, values in rows.items():
        print(f"{name:14}" + "".join(f"{value:10.2f}" for value in np.nanmean(values, axis=0)))


if __name__ == "__main__":
    main()
