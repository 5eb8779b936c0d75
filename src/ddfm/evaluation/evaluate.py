"""Measures folders of fused images; a bench run fuses them first.

Metrics are computed on luma: a colour image, fused or source, is first reduced to full-range BT.601 Y
(`colour.luma`), so that grey and colour methods are compared on equal terms. Only images present in every folder
are measured, so that differences between methods are paired; the rest are listed in `Evaluation.unmatched`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ddfm.colour import fused_colour, luma
from ddfm.errors import InputError
from ddfm.evaluation.baselines import BASELINES
from ddfm.evaluation.guards import LIMITS, guards
from ddfm.evaluation.metrics import Convention, check_names, fusion_metrics
from ddfm.evaluation.table import Evaluation, Example
from ddfm.io import images
from ddfm.io.outputs import Outputs
from ddfm.io.pairing import pair_by_stem
from ddfm.io.sources import read_source

# Zhao et al., "DDFM", ICCV 2023 (arXiv 2303.06840), tables of the main comparison; the "ddfm" convention.
PUBLISHED: dict[str, dict[str, float]] = {
    "msrs": {"EN": 6.88, "SD": 40.75, "MI": 2.35, "VIF": 0.81, "Qabf": 0.58, "SSIM": 0.94},
    "m3fd": {"EN": 6.86, "SD": 38.95, "MI": 2.52, "VIF": 0.80, "Qabf": 0.49, "SSIM": 0.95},
    "roadscene": {"EN": 7.41, "SD": 52.61, "MI": 2.35, "VIF": 0.75, "Qabf": 0.65, "SSIM": 0.98},
    "tno": {"EN": 7.06, "SD": 51.42, "MI": 2.21, "VIF": 0.81, "Qabf": 0.49, "SSIM": 0.95},
    "harvard": {"EN": 4.64, "SD": 63.11, "MI": 1.99, "VIF": 0.76, "Qabf": 0.60, "SSIM": 1.41},
}

Progress = Callable[[int, int], None]  # (images done, total)
Method = Callable[[list[np.ndarray]], np.ndarray]


def evaluate_folders(
    fused: Mapping[str, Path],
    sources: Sequence[Path],
    convention: Convention = "ddfm",
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    published: str | None = None,
    baselines: bool = False,
    keep_examples: int = 8,
) -> Evaluation:
    """Measure folders of fused images, {method name: folder}, against two or more folders of sources.

    names: metrics (None: the authors' evaluator's twelve). published: a key of PUBLISHED to show as an extra row.
    baselines: also measure the average, maximum and Laplacian pyramid of the sources. keep_examples: number of images
    to keep for the report. Raises InputError with one sentence for invalid input.
    """
    if not fused:
        raise InputError("No folder of fused images was given.")
    methods = [*fused, *(BASELINES if baselines else ())]
    evaluation, pairs = _prepare(methods, sources, list(fused.values()), convention, names, published, baselines)
    for row, (stem, paths) in enumerate(pairs.items()):
        pixels = _read_same_size(paths, evaluation)
        originals = pixels[: len(sources)]
        results = dict(zip(fused, pixels[len(sources) :], strict=True))
        if baselines:
            results |= {name: _to_8_bits(_baseline(name, originals), name, stem, originals[0]) for name in BASELINES}
        _measure(evaluation, row, stem, originals, results, keep_examples)
        if progress:
            progress(row + 1, len(pairs))
    return evaluation


def bench(
    sources: Sequence[Path],
    methods: Mapping[str, Method],
    out_dir: Path | None = None,
    convention: Convention = "ddfm",
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    published: str | None = None,
    keep_examples: int = 8,
    outputs: Outputs | None = None,
) -> Evaluation:
    """Fuse two or more folders of sources with each method and the three baselines; time and measure all results.

    A method takes a list of float32 images in [0, 1], (H, W) or (H, W, 3) as read, and returns one such image. The
    baselines fuse luma and get the colour of the sources, like ddfm's results. Each result is measured as it would
    be saved, in 8 bits, so evaluating the PNGs written to `out_dir/<method>/` (if given) gives the same numbers.
    Reading, writing and measuring are not timed. outputs: what may be written (None: neither sources nor existing
    files are overwritten). Raises InputError as `evaluate_folders` does, and for a result that may not be written.
    """
    taken = [name for name in methods if name in BASELINES]
    if taken:
        raise InputError(f"{taken[0]!r} is the name of a baseline; call the method something else.")
    evaluation, pairs = _prepare([*methods, *BASELINES], sources, [], convention, names, published, True)
    if out_dir is not None:
        _claim(outputs or Outputs(sources), Path(out_dir), evaluation.methods, list(pairs))
    evaluation.seconds = {name: np.zeros(len(pairs)) for name in evaluation.methods}
    for row, (stem, paths) in enumerate(pairs.items()):
        originals = _read_same_size(paths, evaluation)
        results = {}
        for name in evaluation.methods:
            start = time.perf_counter()
            result = _baseline(name, originals) if name in BASELINES else methods[name]([*originals])
            evaluation.seconds[name][row] = time.perf_counter() - start
            results[name] = _to_8_bits(result, name, stem, originals[0])
            if out_dir is not None:
                images.write(Path(out_dir) / name / f"{stem}.png", results[name])
        _measure(evaluation, row, stem, originals, results, keep_examples)
        if progress:
            progress(row + 1, len(pairs))
    return evaluation


def _prepare(
    methods: list[str],
    sources: Sequence[Path],
    fused: list[Path],
    convention: Convention,
    names: Sequence[str] | None,
    published: str | None,
    baselines: bool,
) -> tuple[Evaluation, dict[str, list[Path]]]:
    if len(sources) < 2:
        raise InputError(f"Fusion is measured against two or more folders of sources; {len(sources)} given.")
    if len(set(methods)) < len(methods):
        raise InputError(f"Two methods have the same name among {', '.join(methods)}; rename one of them.")
    metrics = check_names(names)
    rows = _published_rows(published, convention)
    pairs, unmatched = pair_by_stem([*sources, *fused])
    values = np.full((len(methods), len(pairs), len(metrics)), math.nan)
    labels = [Path(folder).resolve().name for folder in sources]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i})" for i, label in enumerate(labels, 1)]
    evaluation = Evaluation(
        methods,
        list(pairs),
        metrics,
        values,
        convention,
        labels,
        guards=np.full((len(methods), len(pairs), len(LIMITS)), math.nan),
        baselines=list(BASELINES) if baselines else [],
        unmatched=unmatched,
        published=rows,
    )
    return evaluation, pairs


def _baseline(name: str, sources: Sequence[np.ndarray]) -> np.ndarray:
    """A baseline's result with the colour of its sources."""
    return fused_colour(BASELINES[name]([luma(source) for source in sources]), sources)


def _measure(
    evaluation: Evaluation,
    row: int,
    stem: str,
    sources: list[np.ndarray],
    results: dict[str, np.ndarray],
    keep_examples: int,
) -> None:
    """Fill in the metric values and guards of one image."""
    grey = [_grey_levels(source) for source in sources]
    # The sources whose brightness a viewer expects: colour images, or all if there are none.
    visible = [source for source in sources if source.ndim == 3] or sources
    for i, method in enumerate(evaluation.methods):
        result = results[method]
        measured = fusion_metrics(_grey_levels(result), grey, evaluation.convention, evaluation.metrics)
        evaluation.values[i, row] = list(measured.values())
        evaluation.guards[i, row] = list(guards(result, sources, visible).values())
    if len(evaluation.examples) < keep_examples:
        originals = dict(zip(evaluation.sources, map(images.eight_bits, sources), strict=True))
        fused = {name: images.eight_bits(result) for name, result in results.items()}
        evaluation.examples.append(Example(stem, originals, fused))


def _grey_levels(pixels: np.ndarray) -> np.ndarray:
    """Luma in 0..255, float64. One in a thousand 8-bit colours lies half-way between two levels; rounding to four
    decimals keeps float32's last bits from deciding which way it is rounded.
    """
    return np.round(255 * luma(pixels).astype(np.float64), 4)


def _published_rows(key: str | None, convention: Convention) -> dict[str, dict[str, float]]:
    if key is None:
        return {}
    if key.lower() not in PUBLISHED:
        raise InputError(f"No published row is called {key!r}; there are {', '.join(PUBLISHED)}.")
    if convention != "ddfm":
        raise InputError("Published rows use the 'ddfm' convention and cannot be compared with 'standard' numbers.")
    return {f"DDFM paper, {key.upper()} (published, not measured)": PUBLISHED[key.lower()]}


def _claim(outputs: Outputs, out_dir: Path, methods: Sequence[str], stems: Sequence[str]) -> None:
    """Checks the file for each result, then makes one folder per method, before any work."""
    outputs.folder(out_dir)
    for name in methods:
        for stem in stems:
            outputs.claim(out_dir / name / f"{stem}.png")
    for name in methods:
        outputs.folder(out_dir / name)


def _read_same_size(paths: Sequence[Path], evaluation: Evaluation) -> list[np.ndarray]:
    """Reads sources as for fusion, with a sensor's raw counts stretched, and fused images as they are."""
    every = []
    for k, path in enumerate(paths):
        image = read_source(path) if k < len(evaluation.sources) else images.read(path)
        if image.is_volume:
            raise InputError(f"{image.name} is a volume of {len(image.pixels)} slices; only images can be measured.")
        evaluation.findings += image.findings
        every.append(image.pixels)
    for path, pixels in zip(paths, every, strict=True):
        if pixels.shape[:2] != every[0].shape[:2]:
            raise InputError(
                f"{images.quoted(path)} is {_size(pixels)} but {images.quoted(paths[0])} is {_size(every[0])}; "
                "a fused image and its sources must have the same size."
            )
    return every


def _to_8_bits(pixels: np.ndarray, method: str, stem: str, like: np.ndarray) -> np.ndarray:
    """Checks a method's result and rounds it to the values of an 8-bit file."""
    pixels, size = np.asarray(pixels, np.float32), like.shape[:2]
    if pixels.shape not in (size, (*size, 3)) or not np.isfinite(pixels).all():
        raise InputError(
            f"{method} returned shape {pixels.shape} for {stem}, whose sources are {_size(like)}, or values "
            "that are not finite; a method returns one (H, W) or (H, W, 3) image in [0, 1]."
        )
    return np.asarray(images.eight_bits(pixels) / np.float32(255))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
