"""Maps values with a unit to pixels in [0, 1]: one linear map for a volume, never one per slice.

The smallest to the largest value becomes [0, 1]; or, if normalised, the 0.1 to 99.9 percentiles; or, for CT, a window
in Hounsfield units. `Image.low` and `high` keep the map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddfm.errors import InputError
from ddfm.io.files import quoted
from ddfm.io.grid import Grid
from ddfm.io.images import PERCENTILES, Image

Window = str | tuple[float, float]

WINDOWS = {  # Hounsfield units; the usual widths and levels in radiology
    "brain": (0.0, 80.0),
    "bone": (-500.0, 1300.0),
    "lung": (-1350.0, 150.0),
    "soft-tissue": (-150.0, 250.0),
}
LARGEST = 1e30  # beyond it the float32 scale of a NIfTI file overflows


class Volume(NamedTuple):
    """The contents of a DICOM or NIfTI file.

    values: (S, H, W), real, in the file's unit. grid: None if not even a spacing is known. void: (S, H, W) bool,
    the file's padding. modality: DICOM's, "" if unknown.
    """

    values: np.ndarray
    header: Any
    grid: Grid | None
    findings: list[str]
    void: np.ndarray | None = None
    modality: str = ""


def hounsfield(window: Window) -> tuple[float, float]:
    """The two ends of a window: one of `WINDOWS` by name, or (low, high). Raises InputError."""
    if isinstance(window, str):
        if window not in WINDOWS:
            raise InputError(f"A window must be {', '.join(WINDOWS)} or two Hounsfield units, not {window!r}.")
        return WINDOWS[window]
    try:
        low, high = (float(end) for end in window)
    except (TypeError, ValueError):
        raise InputError(f"A window must be {', '.join(WINDOWS)} or two Hounsfield units, not {window!r}.") from None
    if not -LARGEST < low < high < LARGEST:
        raise InputError(f"A window must go from a lower to a higher number, not from {low:g} to {high:g}.")
    return low, high


def to_image(volume: Volume, path: Path, normalise: bool, window: Window | None) -> Image:
    """The volume as an Image, float32 [0, 1] (S, H, W), or (H, W) for a single slice; padding and NaN become 0.

    window: for CT only: if the file says so or, if it has no modality (NIfTI), if the values look like Hounsfield
    units. Raises InputError for infinite, absent and huge values.
    """
    name, values, findings = quoted(path), volume.values, list(volume.findings)
    void = volume.void
    if values.dtype.kind == "f":
        nan = np.isnan(values)
        if nan.any():
            void = nan if void is None else nan | void
            findings.append(f"{name} has NaN in {_share(nan)} of its voxels, which are treated as background.")
        del nan
    valid = values if void is None else values[~void]
    if not valid.size:
        raise InputError(f"{name} contains only padding and NaN; save it again.")
    smallest, largest = float(valid.min()), float(valid.max())
    if not -LARGEST < smallest <= largest < LARGEST or 0 < largest - smallest < 1 / LARGEST:
        raise InputError(f"{name} has values from {smallest:.4g} to {largest:.4g}; save it in a more usual unit.")
    low, high = smallest, largest
    if window is not None and _is_ct(volume.modality, smallest, largest):
        low, high = hounsfield(window)
        findings.append(f"{name} is a CT image: {low:g} to {high:g} Hounsfield units are shown, the rest is clipped.")
    elif normalise:
        low, high = (float(v) for v in np.percentile(valid, PERCENTILES))
    del valid
    if not high > low:
        high = low + max(1.0, abs(low))  # a constant volume becomes 0 and is restored to itself
    pixels = np.empty(values.shape, np.float32)
    for k, (out, numbers) in enumerate(zip(pixels, values, strict=True)):  # a full volume in float64 is large
        out[:] = np.clip((numbers.astype(np.float64) - low) / (high - low), 0, 1)
        if void is not None:
            out[void[k]] = 0
    pixels = pixels if len(pixels) > 1 else pixels[0]
    return Image(pixels, 32, path, low, high, header=volume.header, grid=volume.grid, findings=tuple(findings))


def _is_ct(modality: str, smallest: float, largest: float) -> bool:
    """Air is -1000, and padding below it is at least -3100. Usual MRI and PET images are never this negative."""
    return modality == "CT" or (not modality and -3100 <= smallest <= -500 and largest >= 100)


def _share(mask: np.ndarray) -> str:
    share = float(mask.mean())
    return f"{share:.0%}" if share >= 0.005 else f"{int(mask.sum())}"
