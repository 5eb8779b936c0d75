"""The default's rank among published networks on the dev pairs, naturalness guards, and drift.

    python benchmarks/rank.py [--sets road msrs ...] [--pairs 4] [--save FOLDER]

Reads ../shared/data/dev and ../shared/PEERS.md (if they are missing, says so and ends); the row of ddfm in the tables
is replaced by the current results. Luma in and out, 8 bits, as for the peers; a rank is the mean rank
over the eight metrics, with ties (to the two printed decimals) averaged. Guards are measured on the colour result, and
count the pairs in which they hold. Drift: the mean luma over frames of one noisy pair with sub-pixel motion.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ddfm.colour import fused_colour, luma
from ddfm.evaluation.evaluate import pair_by_stem
from ddfm.evaluation.guards import AT_MOST, LIMITS, guards
from ddfm.evaluation.metrics import fusion_metrics
from ddfm.io import images
from ddfm.pipeline import quiet_pipeline
from ddfm.settings import FusionSettings

SHARED = Path(__file__).resolve().parents[2] / "shared"
NAMES = ["EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM"]
SETS = {  # name: (heading in PEERS.md, folders)
    "road": ("road", ("roadscene/infrared", "roadscene/visible")),
    "msrs": ("MSRS", ("misaligned/msrs/infrared", "misaligned/msrs/visible")),
    "ct": ("MRI-CT", ("mri_ct/ct", "mri_ct/mri")),
    "pet": ("MRI-PET", ("mri_pet/mri", "mri_pet/pet")),
    "spect": ("MRI-SPECT", ("mri_spect/mri", "mri_spect/spect")),
}
DRIFTING = "FLIR_01932.jpg"
Fuse = Callable[[list[np.ndarray]], np.ndarray]  # lumas (H, W) in [0, 1] -> luma


def no_dev_pairs() -> bool:
    """Whether the dev pairs or PEERS.md are missing; prints so if they are."""
    missing = not (SHARED / "PEERS.md").exists() or not (SHARED / "data/dev").exists()
    if missing:
        print(f"Skipped: the dev pairs and PEERS.md are not in {SHARED.name}/ next to the repository.")
    return missing


def peers(heading: str, text: str) -> dict[str, np.ndarray]:
    """The rows of one table of PEERS.md, {method: eight metrics}, except ddfm."""
    section = re.split(r"^## ", text.split(f"## {heading}", 1)[1], flags=re.MULTILINE)[0]
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    return {
        cells[0]: np.array([float(cell) for cell in cells[1:9]])
        for cells in rows[2:]
        if not cells[0].startswith("ddfm")
    }


def mean_ranks(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean rank over the metrics, 1 is the best; equal values share the mean of their ranks."""
    values = np.round(np.stack(list(rows.values())), 2)
    better = (values[None] > values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return dict(zip(rows, (better + (equal + 1) / 2).mean(axis=1), strict=True))


def measured(fuse: Fuse, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The eight metrics, the four guards, and the fused colour image of one pair."""
    sources = [images.read(path).pixels for path in paths]
    grey = [np.rint(255 * np.round(luma(s).astype(np.float64), 6)) for s in sources]
    fused = np.rint(fuse([(g / 255).astype(np.float32) for g in grey]).clip(0, 1) * 255)
    values = fusion_metrics(fused, grey, names=NAMES)
    coloured = np.rint(255 * fused_colour((fused / 255).astype(np.float32), sources)).astype(np.float32) / 255
    visible = [s for s in sources if s.ndim == 3] or sources
    held = guards(coloured, sources, visible)
    return np.array([values[name] for name in NAMES]), np.array([held[name] for name in LIMITS]), coloured


def drift(fuse: Fuse, paths: Sequence[Path], frames: int = 20, noise: float = 2.0) -> tuple[float, float]:
    """Largest change of the mean luma between frames, and its range over all frames, of 255."""
    sources = [luma(images.read(path).pixels) for path in paths]
    rng, means = np.random.default_rng(0), []
    for frame in range(frames):
        shift = np.array([[1, 0, frame / frames], [0, 1, 0.6 * frame / frames]])
        moved = [cv2.warpAffine(s, shift, s.shape[::-1], flags=cv2.INTER_CUBIC)[8:-8, 8:-8] for s in sources]
        seen = [np.rint((m + rng.normal(0, noise / 255, m.shape)).clip(0, 1) * 255) / 255 for m in moved]
        means.append(255 * float(fuse([s.astype(np.float32) for s in seen]).mean()))
    return float(np.abs(np.diff(means)).max()), float(np.ptp(means))


def pairs_of(folders: Sequence[str], count: int | None) -> dict[str, list[Path]]:
    """The pairs of a dev set by stem, or `count` of them spread evenly."""
    pairs, _ = pair_by_stem([SHARED / "data/dev" / folder for folder in folders])
    keep = list(pairs) if count is None else list(pairs)[:: max(1, len(pairs) // count)][:count]
    return {stem: pairs[stem] for stem in keep}


def report(name: str, fuse: Fuse, count: int | None = None, save: Path | None = None, verbose: bool = True) -> float:
    """Print one set's table and guards; returns the mean rank."""
    heading, folders = SETS[name]
    with ThreadPoolExecutor(1 if count else 2) as pool:
        pairs = pairs_of(folders, count)
        found = dict(zip(pairs, pool.map(lambda paths: measured(fuse, paths), pairs.values()), strict=True))
    ours = np.mean([values for values, _, _ in found.values()], axis=0)
    rows = {**peers(heading, (SHARED / "PEERS.md").read_text(encoding="utf-8")), "ddfm": ours}
    ranks = mean_ranks(rows)
    place = 1 + sum(rank < ranks["ddfm"] for rank in ranks.values())
    print(f"\n{heading}, {len(pairs)} pairs: ddfm ranks {place} of {len(rows)}")
    print(f"{'':12s}" + "".join(f"{metric:>8s}" for metric in [*NAMES, "rank"]))
    for method in sorted(rows, key=ranks.__getitem__)[: None if verbose else 3]:
        print(f"{method:12s}" + "".join(f"{v:8.2f}" for v in rows[method]) + f"{ranks[method]:8.2f}")
    held = np.stack([guard for _, guard, _ in found.values()])
    for (guard, limit), values in zip(LIMITS.items(), held.T, strict=True):
        known = {stem: v for stem, v in zip(pairs, values, strict=True) if not np.isnan(v)}
        missed = {stem: v for stem, v in known.items() if (v > limit if guard in AT_MOST else v < limit)}
        if known:
            mean = np.mean(list(known.values()))
            worst = ", ".join(f"{stem} {v:.3f}" for stem, v in list(missed.items())[: None if verbose else 4])
            print(f"  {guard}: {len(known) - len(missed)} of {len(known)} pairs, mean {mean:.3f}  {worst}")
    if save:
        for stem, (_, _, coloured) in found.items():
            images.write(save / f"{name}_{stem}.png", coloured)
    return ranks["ddfm"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of the requested sets, then the drift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--pairs", type=int, help="this many of each set (the peers' figures are for all pairs)")
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--contrast", default="natural")
    parser.add_argument("--roles", action="store_true", help="give the roles of road and MSRS pairs, thermal visible")
    parser.add_argument("--save", type=Path, help="write the fused images there")
    args = parser.parse_args(argv)
    if no_dev_pairs():
        return
    torch.set_num_threads(1)
    pipe = quiet_pipeline(args.prior, None)
    settings = FusionSettings(contrast=args.contrast)
    told = replace(settings, roles=("thermal", "visible")) if args.roles else settings

    def fuser(chosen: FusionSettings) -> Fuse:
        return lambda sources: np.asarray(pipe(sources, chosen).images[0])  # type: ignore[union-attr]

    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
    ranks = [
        report(name, fuser(told if name in ("road", "msrs") else settings), args.pairs, args.save) for name in args.sets
    ]
    print(f"\nMean rank over the sets: {np.mean(ranks):.2f}")
    step, whole = drift(fuser(told), [SHARED / "data/dev" / folder / DRIFTING for folder in SETS["road"][1]])
    print(f"Drift of {DRIFTING}: {step:.2f} of 255 per frame, {whole:.2f} over 20 frames")


if __name__ == "__main__":
    main()
