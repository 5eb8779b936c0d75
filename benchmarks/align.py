"""Corner error of `ddfm.registration.register` on registered pairs that are warped by a known random transform.

    python benchmarks/align.py MOVING_DIR FIXED_DIR [MOVING_DIR FIXED_DIR ...] [--pairs N] [--seed S] [--different N]

Pairs have equal stems. The moving image is shifted by up to 12 px in each direction, rotated by up to 3
degrees and scaled by up to 3 %; then a margin of both is cropped, so that no border gives the warp away. Two
errors are reported, both for the worst corner. "absolute": against the known transform, as if the published
pair were registered perfectly. "relative": against the known transform applied to the result for the
pair as published; this excludes any error in the published alignment, but also any bias of the method
on this pair. "untouched": the error without registration. "published": the result for the pair as published,
which is the method's bias, the error of the published alignment, or both: the absolute error cannot be smaller.
"moved": how far `ddfm fuse` would move a corner of that pair: 0 if the images are `aligned`, or are refused.

--different N registers each moving image to the fixed images of the next N pairs instead, and counts those accepted.
Pairs of the same place, such as another frame of one drive, are counted separately: for these, the fixed images of both
pairs, which are of the same modality, register in the same way, within 3 % of the image.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ddfm.io import images
from ddfm.registration import register
from ddfm.registration.transform import corner_distance


def random_transform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    matrix = np.eye(3)
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix[:2] = cv2.getRotationMatrix2D(centre, rng.uniform(-3, 3), 1 + rng.uniform(-0.03, 0.03))
    matrix[:2, 2] += rng.uniform(-12, 12, 2)
    return matrix


def corner_error(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    height, width = shape
    corners = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
    return float(np.linalg.norm((a @ corners - b @ corners)[:2], axis=0).max())


def square(matrix: np.ndarray | list[list[int]]) -> np.ndarray:
    return np.vstack([matrix, [0, 0, 1]])


class Row(NamedTuple):
    """The errors for one pair, in pixels at the worst corner; see above."""

    absolute: float
    relative: float
    untouched: float
    published: float
    moved: float
    confident: bool


def measure(moving: np.ndarray, fixed: np.ndarray, rng: np.random.Generator, margin: int = 20) -> Row:
    inner = np.s_[margin:-margin, margin:-margin]
    shape = fixed[inner].shape[:2]
    to_full = square([[1, 0, margin], [0, 1, margin]])
    truth = np.linalg.inv(to_full) @ random_transform(rng, fixed.shape[:2]) @ to_full
    full = to_full @ truth @ np.linalg.inv(to_full)
    size = moving.shape[1::-1]
    warped = cv2.warpAffine(moving, full[:2], size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    found = register(np.clip(warped, 0, 1)[inner], fixed[inner])
    published = register(moving[inner], fixed[inner])
    used = published.confident and not published.aligned
    # Errors in pixels of fixed: fixed -> warped (found) -> moving (the truth undone).
    error = np.linalg.inv(truth) @ found.matrix
    nothing = np.linalg.inv(truth)
    return Row(
        corner_error(error, np.eye(3), shape),
        corner_error(error, published.matrix, shape),
        corner_error(nothing, np.eye(3), shape),
        corner_error(published.matrix, np.eye(3), shape),
        corner_error(published.matrix, np.eye(3), shape) if used else 0.0,
        found.confident,
    )


def different(pairs: list[tuple[str, np.ndarray, np.ndarray]], count: int) -> list[tuple[str, bool]]:
    """The moving images that are registered with confidence to the fixed images of the next `count` pairs, and whether
    these show the same place."""
    believed = []
    for k, (name, moving, beside) in enumerate(pairs):
        for step in range(1, count + 1):
            other, _, fixed = pairs[(k + step) % len(pairs)]
            found = register(moving, fixed)
            if found.confident:
                same = register(beside, fixed)
                apart = corner_distance(same.matrix, found.matrix, fixed.shape) / max(fixed.shape[:2])
                believed.append((f"{name} to {other}", same.confident and apart < 0.03))
    return believed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=None, help="maximum number per pair of folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--different", type=int, default=0, help="number of pairs of different scenes per image")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    columns = "median   p90  <1.5px"
    print(
        f"{'':24} {'absolute: ' + columns}   {'relative: ' + columns}   untouched  published  moved  confident  s/pair"
    )
    everything = []
    for first, second in zip(options.folders[::2], options.folders[1::2], strict=True):
        stems = sorted({p.stem: p for p in first.iterdir()}.items())[: options.pairs]
        partner = {p.stem: p for p in second.iterdir()}
        start = time.perf_counter()
        pairs = [(stem, images.read(path).pixels, images.read(partner[stem]).pixels) for stem, path in stems]
        if options.different:
            believed = different(pairs, options.different)
            same = [name for name, is_same in believed if is_same]
            wrong = [name for name, is_same in believed if not is_same]
            total = options.different * len(pairs) - len(same)
            print(
                f"{first.parent.name}/{first.name}: {len(wrong)} of {total} different scenes registered",
                *wrong,
                sep="\n",
            )
            if same:
                print(f"{len(same)} more show the same place", *same, sep="\n")
            continue
        rows = [measure(moving, fixed, rng) for _, moving, fixed in pairs]
        everything += rows
        report(f"{first.parent.name}/{first.name} {len(rows)}", rows, (time.perf_counter() - start) / 2 / len(rows))
    if options.different:
        return
    report(f"all {len(everything)}", everything, float("nan"))
    for name, wanted in (("confident", True), ("refused", False)):
        rows = [row for row in everything if row.confident == wanted]
        if rows:
            report(f"all {name} {len(rows)}", rows, float("nan"))


def report(name: str, rows: list[Row], seconds: float) -> None:
    table = np.array(rows, float)
    cells = [f"{np.median(e):16.2f} {np.quantile(e, 0.9):5.2f} {100 * (e < 1.5).mean():6.0f}%" for e in table.T[:2]]
    untouched, published, moved = np.median(table[:, 2:5], axis=0)
    confident = 100 * table[:, 5].mean()
    columns = f"{untouched:11.1f} {published:10.1f} {moved:6.1f} {confident:9.0f}% {seconds:7.2f}"
    print(f"{name:24} {'   '.join(cells)} {columns}", flush=True)


if __name__ == "__main__":
    main()
