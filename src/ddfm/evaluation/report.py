"""An evaluation as one self-contained HTML file with tables, plots and images."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from ddfm.colour import luma
from ddfm.evaluation.metrics import LOWER_IS_BETTER
from ddfm.evaluation.table import Evaluation, shown
from ddfm.io import images

# Okabe and Ito's colour-blind-safe colours; baselines are grey so that methods stand out.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY = "#8a8f98"
_LONGEST_SIDE = 1600  # larger images are shrunk, so that browsers can open the file


def write_html(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as a self-contained HTML report; InputError if the file cannot be written.

    The images are those of `evaluation.examples`, as JPEG of quality 90; click one for full size, then use the arrow
    keys to see the next ones.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddfm.evaluation", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"shown": shown, "signed": _signed, "data_uri": _data_uri}
    first, *others = evaluation.methods
    notes = evaluation.baseline_notes()
    page = environment.get_template("report.html.jinja").render(
        table=evaluation,
        metrics=[f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}" for metric in evaluation.metrics],
        mean=evaluation.mean(),
        std=evaluation.std(),
        ranks=evaluation.ranks(),
        mean_rank=evaluation.mean_rank(),
        natural=evaluation.natural(),
        seconds=evaluation.median_seconds(),
        colours=_colours(evaluation),
        notes={(note.metric, note.method): note for note in notes},
        noted=list(dict.fromkeys(note.method for note in notes)),
        differences=[evaluation.compare(first, other) for other in others] if len(evaluation.images) > 1 else [],
        plots=[plot for k in range(len(evaluation.metrics)) if (plot := _box_plot(evaluation, k))],
        difference=_difference,
    )
    images.write_bytes(path, page.encode(errors="backslashreplace"))


def _box_plot(evaluation: Evaluation, k: int) -> dict[str, Any] | None:
    """The layout of the plot of metric k, a horizontal box per method; None without a finite value."""
    width, left, right, line, top = 420, 122, 10, 20, 6
    series = [row[np.isfinite(row)] for row in evaluation.values[:, :, k]]
    every = np.concatenate(series)
    if not len(every):
        return None
    low, high = float(every.min()), float(every.max())
    if high == low:
        low, high = low - 0.5, high + 0.5

    def x(value: float) -> float:
        return float(round(left + (value - low) / (high - low) * (width - left - right - 8) + 4, 1))

    rows: list[dict[str, Any]] = []
    for i, (method, values) in enumerate(zip(evaluation.methods, series, strict=True)):
        rows.append({"method": method, "y": top + line * i + line / 2, "box": None})
        if not len(values):
            continue
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        inside = values[(values >= q1 - 1.5 * (q3 - q1)) & (values <= q3 + 1.5 * (q3 - q1))]
        box = {"low": x(inside.min()), "high": x(inside.max()), "q1": x(q1), "median": x(median)}
        box["width"] = round(max(x(q3) - x(q1), 1), 1)
        beyond = [x(value) for value in values[(values < inside.min()) | (values > inside.max())]]
        rows[-1] |= {"median": median, "quartiles": (q1, q3), "box": box | {"beyond": beyond}}
    return {
        "metric": f"{evaluation.metrics[k]} {'↓' if evaluation.metrics[k] in LOWER_IS_BETTER else '↑'}",
        "width": width,
        "left": left,
        "top": top,
        "bottom": top + line * len(series),
        "ticks": [{"x": x(value), "value": value} for value in (low, (low + high) / 2, high)],
        "rows": rows,
    }


def _difference(fused: np.ndarray, source: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): white where equal, red where fused is brighter, blue where darker."""
    signed = luma(fused / np.float32(255)) - luma(source / np.float32(255))
    up, down = signed.clip(0, 1), (-signed).clip(0, 1)
    rgb: np.ndarray = np.rint(255 * np.stack([1 - down, 1 - np.maximum(up, down), 1 - up], axis=-1)).astype(np.uint8)
    return rgb


def _data_uri(pixels: np.ndarray) -> str:
    scale = _LONGEST_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = [max(1, round(n * scale)) for n in pixels.shape[1::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert ok, "OpenCV writes every 8-bit array as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _signed(x: float) -> str:
    return ("+" if x > 0 else "") + shown(x)


def _colours(evaluation: Evaluation) -> dict[str, str]:
    """A colour for each method; baselines share a grey."""
    ours = [name for name in evaluation.methods if name not in evaluation.baselines]
    return dict.fromkeys(evaluation.baselines, _GREY) | {
        name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(ours)
    }
