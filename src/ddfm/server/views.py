"""What a browser shows of a job: 8-bit PNG of its layers, and its measures."""

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

# name: what to call it, what it means
_METRICS = {
    "EN": ("Entropy", "How much information the grey levels carry, in bits, up to 8."),
    "SD": ("Contrast", "Spread of the grey levels around their mean, of 255."),
    "AG": ("Sharpness", "Average gradient: how crisp edges and textures are."),
    "MI": ("Mutual information", "How much of the sources' grey levels the result tells; favours copying one source."),
    "SCD": ("Difference correlation", "Whether what one source adds is found in the result; up to 2 for two sources."),
    "VIF": ("Visual fidelity", "How much of the sources' detail an observer would still see; summed over the sources."),
    "Qabf": ("Edge transfer", "Share of the sources' edges kept with their strength and direction, 0 to 1."),
    "SSIM": ("Structural similarity", "Likeness of local structure, summed over the sources; 2 would be both at once."),
    "Nabf": ("Artefacts", "Edges in the result that no source has, 0 to 1."),
}


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) or (H, W, 3) in [0, 1] as an 8-bit PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(eight_bits(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def layer(job: Job, name: str, number: int, overlay: Overlay | None = None) -> bytes:
    """PNG of "fused", "uncertainty" (its maximum is white) or "source-K", of a volume of slice `number`.

    overlay: over "fused" instead of the job's own. Raises Problem 404, InputError as `Job.shown`.
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
    """The measures of a finished job's result, of a volume of one slice, beside those of the average of its sources.

    The convention is the authors' ("ddfm", see `evaluation.metrics`). Raises Problem 404, 413.
    """
    assert job.fused is not None
    images = [job.fused, *(source.pixels for source in job.scene.sources)]
    height, width = job.scene.sources[0].plane
    if height * width > limits.measured_pixels:
        at_most = f"{limits.measured_pixels:,}"
        raise Problem(413, f"The result has {height * width:,} pixels; those of up to {at_most} are measured.")
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
    """Those of `_METRICS` that exist of an image and its sources, luma in [0, 1]."""
    found = {}
    for name in _METRICS:  # one by one: some take two sources only, or an image larger than their window
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
