"""Folders of images to a table of metrics: pairing, measuring, ranking, comparing, and the same for a bench run.

Images are measured on luma: a colour image, fused or source, is first reduced to Y of full-range BT.601
(`colour.luma`), so a grey method and a colour one are compared on the same thing. Only images that every folder has
are measured, so that differences between methods are paired; the rest is listed in `Evaluation.unmatched`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.evaluation.baselines import BASELINES
from ddfm.evaluation.metrics import LOWER_IS_BETTER, Convention, check_names, fusion_metrics
from ddfm.io import images
from ddfm.io.pairing import pair_by_stem

if TYPE_CHECKING:
    from rich.table import Table

# Zhao et al., "DDFM", ICCV 2023 (arXiv 2303.06840), tables of the main comparison; the "ddfm" convention.
PUBLISHED: dict[str, dict[str, float]] = {
    "msrs": {"EN": 6.88, "SD": 40.75, "MI": 2.35, "VIF": 0.81, "Qabf": 0.58, "SSIM": 0.94},
    "m3fd": {"EN": 6.86, "SD": 38.95, "MI": 2.52, "VIF": 0.80, "Qabf": 0.49, "SSIM": 0.95},
    "roadscene": {"EN": 7.41, "SD": 52.61, "MI": 2.35, "VIF": 0.75, "Qabf": 0.65, "SSIM": 0.98},
    "tno": {"EN": 7.06, "SD": 51.42, "MI": 2.21, "VIF": 0.81, "Qabf": 0.49, "SSIM": 0.95},
    "harvard": {"EN": 4.64, "SD": 63.11, "MI": 1.99, "VIF": 0.76, "Qabf": 0.60, "SSIM": 1.41},
}

Progress = Callable[[int, int], None]  # (images done, images in all)
Method = Callable[[list[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Mean over the images of metric(method) - metric(other), and its 95 % bootstrap interval (NaN: under 2 images)."""

    metric: str
    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class BaselineNote:
    """For one method and metric: the simple baseline with the best mean, and how it compares."""

    method: str
    metric: str
    baseline: str
    method_mean: float
    baseline_mean: float

    @property
    def baseline_wins(self) -> bool:
        """Whether the baseline's mean is at least as good as the method's."""
        if self.metric in LOWER_IS_BETTER:
            return self.baseline_mean <= self.method_mean
        return self.baseline_mean >= self.method_mean

    def __str__(self) -> str:
        """One line, such as `SD: maximum beats ours (52.1 against 41.0)`."""
        verb = "beats" if self.baseline_wins else "comes nearest to"
        verb = "equals" if self.baseline_mean == self.method_mean else verb
        numbers = f"{shown(self.baseline_mean)} against {shown(self.method_mean)}"
        return f"{self.metric}: {self.baseline} {verb} {self.method} ({numbers})"


@dataclass(frozen=True)
class Scene:
    """One image's images, kept for the report: uint8, (H, W) or (H, W, 3), by source or method name."""

    name: str
    sources: dict[str, np.ndarray]
    fused: dict[str, np.ndarray]


@dataclass
class Evaluation:
    """What was measured. `values` has shape (methods, images, metrics); NaN where a metric does not exist.

    seconds: per method that was timed, its seconds for each image. unmatched: files that not every folder has.
    published: rows to show beside the measured ones, {metric: value} by label; never measured here, never ranked.
    """

    methods: list[str]
    images: list[str]
    metrics: list[str]
    values: np.ndarray
    convention: Convention
    sources: list[str]
    baselines: list[str] = field(default_factory=list)
    seconds: dict[str, np.ndarray] = field(default_factory=dict)
    unmatched: list[Path] = field(default_factory=list)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    scenes: list[Scene] = field(default_factory=list)

    def mean(self) -> np.ndarray:
        """(methods, metrics): over the images where the metric exists; NaN where there is none."""
        return np.array([[_mean(cell) for cell in row.T] for row in self.values])

    def std(self) -> np.ndarray:
        """(methods, metrics): standard deviation over the images (divisor n - 1); NaN under two finite values."""
        return np.array([[_std(cell) for cell in row.T] for row in self.values])

    def ranks(self) -> np.ndarray:
        """(methods, metrics): 1 for the best mean; equals share the better rank; NaN where the mean is NaN."""
        good = self.mean() * [-1 if metric in LOWER_IS_BETTER else 1 for metric in self.metrics]
        ranks = 1.0 + (good[None] > good[:, None]).sum(1)
        return np.where(np.isnan(good), np.nan, ranks)

    def median_seconds(self) -> dict[str, float]:
        """Seconds per pair by timed method: the median, so that a first call that loads a network does not count."""
        return {name: float(np.median(seconds)) for name, seconds in self.seconds.items()}

    def compare(self, method: str, other: str, resamples: int = 2000, seed: int = 0) -> list[Difference]:
        """Paired difference method - other for each metric, with a 95 % percentile bootstrap over the images."""
        paired = self.values[self.methods.index(method)] - self.values[self.methods.index(other)]
        return [Difference(metric, *_bootstrap(paired[:, k], resamples, seed)) for k, metric in enumerate(self.metrics)]

    def baseline_notes(self) -> list[BaselineNote]:
        """For each method that is no baseline and each metric, the baseline that wins or comes nearest."""
        mean, notes = self.mean(), []
        rivals = [self.methods.index(name) for name in self.baselines]
        for row, method in enumerate(self.methods):
            for k, metric in enumerate(self.metrics):
                sign = -1 if metric in LOWER_IS_BETTER else 1
                real = [i for i in rivals if not math.isnan(mean[i, k])]
                if row in rivals or not real or math.isnan(mean[row, k]):
                    continue
                best = max(real, key=lambda i: sign * mean[i, k])
                notes.append(
                    BaselineNote(method, metric, self.methods[best], float(mean[row, k]), float(mean[best, k]))
                )
        return notes

    def caption(self) -> str:
        """One sentence: how many images, which convention, what was left out."""
        text = f"{len(self.images)} image{'s' * (len(self.images) > 1)}, convention '{self.convention}', luma"
        if self.unmatched:
            text += f"; {len(self.unmatched)} unmatched file{'s' * (len(self.unmatched) > 1)} left out"
        missing = int(np.isnan(self.values).sum())
        return text + (f"; {missing} undefined values left out of the means" if missing else "")

    def to_rich(self, per_image: bool = False) -> Table:
        """A table for the terminal: best in bold, second underlined, arrows for the better direction.

        per_image: a row for each method and image instead of mean and standard deviation.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        # Twelve metrics are a lot for a terminal: no lines between columns, one space of padding.
        table = Table(caption=self.caption(), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("method")
        if per_image:
            table.add_column("image", no_wrap=True)
        for metric in self.metrics:
            table.add_column(f"{metric}{'↓' if metric in LOWER_IS_BETTER else '↑'}", justify="right", no_wrap=True)
        if per_image:
            for method, rows in zip(self.methods, self.values, strict=True):
                for image, row in zip(self.images, rows, strict=True):
                    table.add_row(Text(method), Text(image), *map(shown, row))
            return table
        table.add_column("rank", justify="right", no_wrap=True)
        if self.seconds:
            table.add_column("s/pair", justify="right", no_wrap=True)
        mean, std, ranks, seconds = self.mean(), self.std(), self.ranks(), self.median_seconds()
        for i, method in enumerate(self.methods):
            cells = []
            for m, s, rank in zip(mean[i], std[i], ranks[i], strict=True):
                style = {1.0: "bold", 2.0: "underline"}.get(rank, "")
                spread = "" if math.isnan(s) else f"\n±{s:.{0 if s >= 9.5 else 2}{'f' if s >= 9.5 else 'g'}}"
                cells.append(Text.assemble((shown(m), style), (spread, "dim")))
            cells.append(Text(shown(_mean(ranks[i]))))
            if self.seconds:
                cells.append(Text(f"{seconds[method]:.3g}" if method in seconds else ""))
            table.add_row(Text(method), *cells)
        for label, row in self.published.items():
            values = [shown(row[metric]) if metric in row else "" for metric in self.metrics]
            table.add_row(Text(label), *values, style="dim italic")
        return table

    def to_csv(self, path: Path, per_image: bool = False) -> None:
        """Write method, images, then mean and std of each metric; or method, image and each metric. UTF-8."""
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        if per_image:
            out.writerow(["method", "image", *self.metrics])
            for method, rows in zip(self.methods, self.values, strict=True):
                out.writerows([method, image, *map(_plain, row)] for image, row in zip(self.images, rows, strict=True))
        else:
            columns = [f"{metric} {what}" for metric in self.metrics for what in ("mean", "std")]
            out.writerow(["method", "images", *columns, "seconds per pair"])
            mean, std, seconds = self.mean(), self.std(), self.median_seconds()
            for i, method in enumerate(self.methods):
                cells = [_plain(x) for pair in zip(mean[i], std[i], strict=True) for x in pair]
                out.writerow([method, len(self.images), *cells, _plain(seconds.get(method, math.nan))])
            for label, row in self.published.items():
                cells = [x for metric in self.metrics for x in (_plain(row.get(metric, math.nan)), "")]
                out.writerow([label, "", *cells, ""])
        images.write_bytes(path, text.getvalue().encode())

    def to_json(self, path: Path) -> None:
        """Write everything but the images; numbers that are not finite become null, as JSON has none."""
        images.write_bytes(path, (json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode())

    def as_dict(self) -> dict[str, Any]:
        """What `to_json` writes: plain dicts, lists, numbers, strings and None."""
        mean, std, ranks, seconds = self.mean(), self.std(), self.ranks(), self.median_seconds()

        def by_metric(row: Sequence[float]) -> dict[str, float | None]:
            return {metric: _finite(x) for metric, x in zip(self.metrics, row, strict=True)}

        methods = [
            {
                "name": method,
                "baseline": method in self.baselines,
                "mean": by_metric(mean[i]),
                "std": by_metric(std[i]),
                "rank": by_metric(ranks[i]),
                "seconds_per_pair": seconds.get(method),
                "images": {image: by_metric(row) for image, row in zip(self.images, self.values[i], strict=True)},
            }
            for i, method in enumerate(self.methods)
        ]
        differences = [
            {"method": self.methods[0], "other": other, "metric": d.metric}
            | {"mean": _finite(d.mean), "low": _finite(d.low), "high": _finite(d.high)}
            for other in self.methods[1:]
            for d in self.compare(self.methods[0], other)
        ]
        return {
            "convention": self.convention,
            "measured_on": "luma (BT.601 full range)",
            "metrics": self.metrics,
            "lower_is_better": [metric for metric in self.metrics if metric in LOWER_IS_BETTER],
            "sources": self.sources,
            "methods": methods,
            "differences": differences,
            "baseline_notes": [str(note) for note in self.baseline_notes()],
            "published": [{"label": label, "values": row} for label, row in self.published.items()],
            "unmatched": [str(path) for path in self.unmatched],
        }


def evaluate_folders(
    fused: Mapping[str, Path],
    sources: Sequence[Path],
    convention: Convention = "ddfm",
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    published: str | None = None,
    baselines: bool = False,
    keep_scenes: int = 8,
) -> Evaluation:
    """Measure folders of fused images, {method name: folder}, against two or more folders of sources.

    names: metrics (None: the authors' evaluator's twelve). published: a key of PUBLISHED to show beside them.
    baselines: also fuse the sources by average, maximum and Laplacian pyramid and measure those. keep_scenes: how many
    images' images to keep for the report. Raises InputError, one sentence, for anything wrong with the input.
    """
    if not fused:
        raise InputError("No folder of fused images was given.")
    methods = [*fused, *(BASELINES if baselines else ())]
    evaluation, pairs = _prepare(methods, sources, list(fused.values()), convention, names, published, baselines)
    for row, (stem, paths) in enumerate(pairs.items()):
        originals = _read_same_size(paths)
        lumas = [luma(pixels) for pixels in originals[: len(sources)]]
        pictures = dict(zip(fused, originals[len(sources) :], strict=True))
        if baselines:
            pictures |= {name: _to_8_bits(fuse(lumas), name, stem, lumas[0]) for name, fuse in BASELINES.items()}
        _measure(evaluation, row, stem, originals[: len(sources)], pictures, keep_scenes)
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
    keep_scenes: int = 8,
) -> Evaluation:
    """Fuse two or more folders of sources with each method and the three baselines, time and measure them all.

    A method takes a list of float32 images in [0, 1], (H, W) or (H, W, 3) as read, and returns one such image.
    It is measured as it would be saved, in 8 bits, so evaluating the PNGs written to `out_dir/<method>/` (if given)
    gives the same numbers. Reading, writing and measuring are not timed. Raises InputError as `evaluate_folders` does.
    """
    taken = [name for name in methods if name in BASELINES]
    if taken:
        raise InputError(f"{taken[0]!r} is the name of a baseline; call the method something else.")
    evaluation, pairs = _prepare([*methods, *BASELINES], sources, [], convention, names, published, True)
    evaluation.seconds = {name: np.zeros(len(pairs)) for name in evaluation.methods}
    for row, (stem, paths) in enumerate(pairs.items()):
        originals = _read_same_size(paths)
        lumas = [luma(pixels) for pixels in originals]
        pictures = {}
        for name in evaluation.methods:
            start = time.perf_counter()
            result = BASELINES[name](lumas) if name in BASELINES else methods[name]([*originals])
            evaluation.seconds[name][row] = time.perf_counter() - start
            pictures[name] = _to_8_bits(result, name, stem, lumas[0])
            if out_dir is not None:
                images.write(_folder(Path(out_dir) / name) / f"{stem}.png", pictures[name])
        _measure(evaluation, row, stem, originals, pictures, keep_scenes)
        if progress:
            progress(row + 1, len(pairs))
    return evaluation


def shown(x: float) -> str:
    """A number for people: about four figures, a dash for NaN."""
    if not math.isfinite(x):
        return "–" if math.isnan(x) else ("∞" if x > 0 else "-∞")
    return f"{x:.{3 if abs(x) < 10 else 2 if abs(x) < 100 else 1}f}"


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
        raise InputError(f"Two methods have one name among {', '.join(methods)}; rename one of them.")
    metrics = check_names(names)
    rows = _published_rows(published, convention)
    pairs, unmatched = pair_by_stem([*sources, *fused])
    values = np.full((len(methods), len(pairs), len(metrics)), math.nan)
    labels = [Path(folder).resolve().name for folder in sources]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i})" for i, label in enumerate(labels, 1)]
    return Evaluation(
        methods,
        list(pairs),
        metrics,
        values,
        convention,
        labels,
        list(BASELINES) if baselines else [],
        unmatched=unmatched,
        published=rows,
    ), pairs


def _measure(
    evaluation: Evaluation,
    row: int,
    stem: str,
    sources: list[np.ndarray],
    pictures: dict[str, np.ndarray],
    keep_scenes: int,
) -> None:
    grey = [_grey_levels(pixels) for pixels in sources]
    for i, method in enumerate(evaluation.methods):
        measured = fusion_metrics(_grey_levels(pictures[method]), grey, evaluation.convention, evaluation.metrics)
        evaluation.values[i, row] = list(measured.values())
    if len(evaluation.scenes) < keep_scenes:
        originals = dict(zip(evaluation.sources, map(_bytes, sources), strict=True))
        evaluation.scenes.append(Scene(stem, originals, {name: _bytes(p) for name, p in pictures.items()}))


def _grey_levels(pixels: np.ndarray) -> np.ndarray:
    """Luma in 0..255, float64. One in a thousand of 8-bit colours lies half-way between two levels: four decimals keep
    float32's last bits from deciding which way it is rounded.
    """
    return (255 * luma(pixels).astype(np.float64)).round(4)


def _published_rows(key: str | None, convention: Convention) -> dict[str, dict[str, float]]:
    if key is None:
        return {}
    if key.lower() not in PUBLISHED:
        raise InputError(f"No published row is called {key!r}; there are {', '.join(PUBLISHED)}.")
    if convention != "ddfm":
        raise InputError("Published rows are in the 'ddfm' convention and cannot stand beside 'standard' numbers.")
    return {f"DDFM paper, {key.upper()} (published, not measured)": PUBLISHED[key.lower()]}


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Cannot make the folder {images.quoted(path)}: {reason}.") from error
    return path


def _read_same_size(paths: Sequence[Path]) -> list[np.ndarray]:
    pictures = [images.read(path).pixels for path in paths]
    for path, pixels in zip(paths, pictures, strict=True):
        if pixels.shape[:2] != pictures[0].shape[:2]:
            raise InputError(
                f"{images.quoted(path)} is {_size(pixels)} but {images.quoted(paths[0])} is {_size(pictures[0])}; "
                "a fused image and its sources must have one size."
            )
    return pictures


def _to_8_bits(pixels: np.ndarray, method: str, stem: str, like: np.ndarray) -> np.ndarray:
    """A method's result, checked, and rounded to what an 8-bit file would hold."""
    pixels = np.asarray(pixels, np.float32)
    if pixels.shape not in (like.shape, (*like.shape, 3)) or not np.isfinite(pixels).all():
        raise InputError(
            f"{method} returned shape {pixels.shape} for {stem}, whose sources are {_size(like)}, or values "
            "that are not finite; a method returns one (H, W) or (H, W, 3) image in [0, 1]."
        )
    return _bytes(pixels).astype(np.float32) / 255


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _mean(x: np.ndarray) -> float:
    x = x[~np.isnan(x)]
    return float(x.mean()) if len(x) else math.nan


def _std(x: np.ndarray) -> float:
    x = x[np.isfinite(x)]
    return float(x.std(ddof=1)) if len(x) > 1 else math.nan


def _bootstrap(x: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean of x and the 2.5 and 97.5 percentiles of the means of resamples of it, over its finite values."""
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return _mean(x), math.nan, math.nan
    random = np.random.default_rng(seed)
    means = x[random.integers(len(x), size=(resamples, len(x)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(x.mean()), float(low), float(high)


def _plain(x: float) -> str:
    """A number for a CSV cell: 8 figures, empty for NaN, `inf` for infinity."""
    return "" if math.isnan(x) else f"{x:.8g}"


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
