"""Views of a job for the browser: 8-bit PNGs of its layers, and its metrics."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.evaluation.baselines import average
from ddfm.evaluation.metrics import LOWER_IS_BETTER, fusion_metrics
from ddfm.io.images import eight_bits
from ddfm.server.fields import Overlay
from ddfm.server.jobs import Job
from ddfm.server.limits import Limits
from ddfm.server.problems import Problem
from ddfm.server.schemas import Metric

# name: (label, meaning)
_METRICS = {
    "EN": ("Entropy", "Information carried by the grey levels, in bits, at most 8."),
    "SD": ("Contrast", "Standard deviation of the grey levels, which range from 0 to 255."),
    "AG": ("Sharpness", "Average gradient: how crisp edges and textures are."),
    "MI": ("Mutual information", "How well the result predicts the sources' grey levels; favours copying one source."),
    "SCD": ("Difference correlation", "Whether the result contains what each source adds; at most 2 for two sources."),
    "VIF": ("Visual fidelity", "How much of the sources' detail an observer would still see, summed over the sources."),
    "Qabf": ("Edge transfer", "Fraction of the sources' edges kept in strength and direction, 0 to 1."),
    "SSIM": ("Structural similarity", "Similarity of local structure, summed over the sources; at most 1 for each."),
    "Nabf": ("Artefacts", "Edges in the result that no source has, 0 to 1."),
}


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) or (H, W, 3) in [0, 1] as an 8-bit PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(eight_bits(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def layer(job: Job, name: str, number: int, overlay: Overlay | None = None) -> bytes:
    """PNG of "fused", "uncertainty" (its maximum is white) or "source-K"; for a volume, of slice `number`.

    overlay: replaces that of the job, on "fused" only. Raises Problem 404, and InputError as in `Job.shown`.
    """
    pixels = _layers(job).get(name)
    if pixels is None:
        raise Problem(404, f"This job has no layer {name[:40]!r}; it has {', '.join(_layers(job))}.")
    pixels = job.shown(overlay) if name == "fused" else pixels
    pixels = _slice(job, pixels, number)
    if name == "uncertainty":
        pixels = pixels / max(float(pixels.max()), 1e-12)
    return png(pixels)


def metrics(job: Job, number: int, limits: Limits) -> list[Metric]:
    """The metrics of a finished job's result, or of one slice of a volume, and those of the average of its sources.

    They follow the authors' convention ("ddfm", see `evaluation.metrics`). Raises Problem 404, 413.
    """
    assert job.fused is not None
    images = [job.fused, *(source.pixels for source in job.scene.sources)]
    height, width = job.scene.sources[0].plane
    if height * width > limits.measured_pixels:
        at_most = f"{limits.measured_pixels:,}"
        raise Problem(413, f"The result has {height * width:,} pixels; metrics are computed for up to {at_most}.")
    fused, *sources = (luma(_slice(job, image, number)) for image in images)
    values, plain = (_measured(image, sources) for image in (fused, average(sources)))
    return [
        Metric(
            name=name,
            label=label,
            meaning=meaning,
            better="lower" if name in LOWER_IS_BETTER else "higher",
            value=values.get(name),
            average=plain.get(name),
        )
        for name, (label, meaning) in _METRICS.items()
    ]


def _measured(image: np.ndarray, sources: Sequence[np.ndarray]) -> dict[str, float]:
    """Those of `_METRICS` that are defined for an image and its sources, luma in [0, 1]."""
    found = {}
    for name in _METRICS:  # one by one: some need exactly two sources, or an image larger than their window
        try:
            value = fusion_metrics(255 * image, [255 * source for source in sources], names=[name])[name]
        except InputError:
            continue
        if math.isfinite(value):
            found[name] = value
    return found


def _layers(job: Job) -> dict[str, np.ndarray]:
    layers = {f"source-{k}": source.pixels for k, source in enumerate(job.scene.sources, 1)}
    if job.fused is not None:
        layers["fused"] = job.fused
    if job.std is not None:
        layers["uncertainty"] = job.std
    return layers


def _slice(job: Job, pixels: np.ndarray, number: int) -> np.ndarray:
    volume = pixels if job.scene.is_volume else pixels[None]
    if not 0 <= number < len(volume):
        raise Problem(404, f"The result has slices 0 to {len(volume) - 1}, not {number}.")
    image: np.ndarray = volume[number]
    return image
