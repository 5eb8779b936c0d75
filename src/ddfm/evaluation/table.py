"""The measured values for methods, images and metrics, their statistics, and output to terminal, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddfm.evaluation.guards import LIMITS, holds
from ddfm.evaluation.metrics import LOWER_IS_BETTER, Convention
from ddfm.io import images
from ddfm.io.tables import write_table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Difference:
    """Mean over the images of metric(method) - metric(other), with its 95 % bootstrap interval (NaN below 2 images)."""

    metric: str
    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
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
class Example:
    """A pair and its fusions, kept for the report: uint8, (H, W) or (H, W, 3), by name of source or method."""

    name: str
    sources: dict[str, np.ndarray]
    fused: dict[str, np.ndarray]


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        values: (methods, images, metrics); NaN where a metric is undefined.
        sources: Name of each source folder.
        baselines: Which of the methods are baselines.
        guards: (methods, images, guards), see `evaluation.guards`; NaN where a guard does not apply.
        seconds: For each timed method, its seconds per image.
        unmatched: Files that are not in every folder.
        published: Extra rows to show, {metric: value} by label; neither measured here nor ranked.
        examples: The first images, for the report.
        findings: One sentence per assumption about a file.
    """

    methods: list[str]
    images: list[str]
    metrics: list[str]
    values: np.ndarray
    convention: Convention
    sources: list[str]
    guards: np.ndarray
    baselines: list[str] = field(default_factory=list)
    seconds: dict[str, np.ndarray] = field(default_factory=dict)
    unmatched: list[Path] = field(default_factory=list)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def mean(self) -> np.ndarray:
        """(methods, metrics): mean over the images where the metric is defined; NaN if there are none."""
        return np.array([[_mean(cell) for cell in row.T] for row in self.values])

    def std(self) -> np.ndarray:
        """(methods, metrics): standard deviation over the images (divisor n - 1); NaN below two finite values."""
        return np.array([[_std(cell) for cell in row.T] for row in self.values])

    def ranks(self) -> np.ndarray:
        """(methods, metrics): 1 for the best mean; ties share the better rank; NaN where the mean is NaN."""
        good = self.mean() * [-1 if metric in LOWER_IS_BETTER else 1 for metric in self.metrics]
        ranks = 1.0 + (good[None] > good[:, None]).sum(1)
        return np.where(np.isnan(good), np.nan, ranks)

    def mean_rank(self) -> np.ndarray:
        """(methods,): mean of the ranks over the defined metrics."""
        return np.array([_mean(row) for row in self.ranks()])

    def median_seconds(self) -> dict[str, float]:
        """Seconds per pair by timed method: the median, so that a first call that loads a network does not count."""
        return {name: float(np.median(seconds)) for name, seconds in self.seconds.items()}

    def natural(self) -> dict[str, float]:
        """By method, the share of images that look natural, i.e. where all guards hold."""
        kept = [[holds(dict(zip(LIMITS, image, strict=True))) for image in row] for row in self.guards]
        return {method: float(np.mean(row)) for method, row in zip(self.methods, kept, strict=True)}

    def compare(self, method: str, other: str, seed: int = 0) -> list[Difference]:
        """Paired difference method - other for each metric, with a 95 % percentile bootstrap interval over images."""
        paired = self.values[self.methods.index(method)] - self.values[self.methods.index(other)]
        return [Difference(metric, *_bootstrap(paired[:, k], seed)) for k, metric in enumerate(self.metrics)]

    def baseline_notes(self) -> list[BaselineNote]:
        """For each metric and each method that is not a baseline, the baseline that wins or comes closest."""
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

        per_image: one row per method and image instead of mean and standard deviation.
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
        seconds, natural = self.median_seconds(), self.natural()
        table.add_column("natural↑", justify="right", no_wrap=True)
        if seconds:
            table.add_column("s/pair", justify="right", no_wrap=True)
        mean, std, ranks, mean_rank = self.mean(), self.std(), self.ranks(), self.mean_rank()
        for i, method in enumerate(self.methods):
            cells = []
            for m, s, rank in zip(mean[i], std[i], ranks[i], strict=True):
                style = {1.0: "bold", 2.0: "underline"}.get(rank, "")
                spread = "" if math.isnan(s) else f"\n±{s:.{0 if s >= 9.5 else 2}{'f' if s >= 9.5 else 'g'}}"
                cells.append(Text.assemble((shown(m), style), (spread, "dim")))
            cells += [Text(shown(mean_rank[i])), Text(f"{natural[method]:.0%}")]
            if seconds:
                cells.append(Text(f"{seconds[method]:.3g}" if method in seconds else ""))
            table.add_row(Text(method), *cells)
        for label, row in self.published.items():
            values = [shown(row[metric]) if metric in row else "" for metric in self.metrics]
            table.add_row(Text(label), *values, style="dim italic")
        return table

    def to_csv(self, path: Path, per_image: bool = False) -> None:
        """Write method, images, then mean and std of each metric; or method, image and each metric. UTF-8."""
        write_table(path, self._image_rows() if per_image else self._mean_rows())

    def to_json(self, path: Path) -> None:
        """Write everything but the images; non-finite numbers become null, since JSON has none."""
        images.write_bytes(path, (json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode())

    def as_dict(self) -> dict[str, Any]:
        """What `to_json` writes: plain dicts, lists, numbers, strings and None."""
        mean, std, ranks, seconds = self.mean(), self.std(), self.ranks(), self.median_seconds()
        natural = self.natural()

        def named(names: Iterable[str], row: Iterable[float]) -> dict[str, float | None]:
            return {name: _finite(x) for name, x in zip(names, row, strict=True)}

        methods = [
            {
                "name": method,
                "baseline": method in self.baselines,
                "mean": named(self.metrics, mean[i]),
                "std": named(self.metrics, std[i]),
                "rank": named(self.metrics, ranks[i]),
                "seconds_per_pair": seconds.get(method),
                "natural": natural[method],
                "guards": {name: named(LIMITS, row) for name, row in zip(self.images, self.guards[i], strict=True)},
                "images": {
                    name: named(self.metrics, row) for name, row in zip(self.images, self.values[i], strict=True)
                },
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
            "findings": self.findings,
        }

    def _image_rows(self) -> Iterator[list[str]]:
        yield ["method", "image", *self.metrics, *LIMITS]
        for i, method in enumerate(self.methods):
            for k, image in enumerate(self.images):
                yield [method, image, *map(_plain, self.values[i, k]), *map(_plain, self.guards[i, k])]

    def _mean_rows(self) -> Iterator[list[str]]:
        columns = [f"{metric} {what}" for metric in self.metrics for what in ("mean", "std")]
        yield ["method", "images", *columns, "seconds per pair", "natural"]
        mean, std, seconds, natural = self.mean(), self.std(), self.median_seconds(), self.natural()
        for i, method in enumerate(self.methods):
            cells = [_plain(x) for pair in zip(mean[i], std[i], strict=True) for x in pair]
            more = [_plain(column.get(method, math.nan)) for column in (seconds, natural)]
            yield [method, str(len(self.images)), *cells, *more]
        for label, row in self.published.items():
            cells = [x for metric in self.metrics for x in (_plain(row.get(metric, math.nan)), "")]
            yield [label, "", *cells, "", ""]


def shown(x: float) -> str:
    """A number for people: about four figures, a dash for NaN."""
    if not math.isfinite(x):
        return "–" if math.isnan(x) else ("∞" if x > 0 else "-∞")
    return f"{x:.{3 if abs(x) < 10 else 2 if abs(x) < 100 else 1}f}"


def _mean(x: np.ndarray) -> float:
    x = x[~np.isnan(x)]
    return float(x.mean()) if len(x) else math.nan


def _std(x: np.ndarray) -> float:
    x = x[np.isfinite(x)]
    return float(x.std(ddof=1)) if len(x) > 1 else math.nan


def _bootstrap(x: np.ndarray, seed: int, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of x and the 2.5 and 97.5 percentiles of the means of its resamples, over finite values."""
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
