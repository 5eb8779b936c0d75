"""Reads and writes image files; the only module that deals with bit depths and metadata.

An image is a float32 array in [0, 1], (H, W) if grey and (H, W, 3) RGB if coloured, top row first. The rules:

- A colour file whose three channels are identical is read as grey, since most infrared and MRI images are stored
  that way.
- 16-bit and float files are never reduced to 8 bits.
- An opaque alpha channel is dropped; a translucent one is composited over black, which means "no signal" in thermal
  and medical images.
- EXIF rotation is applied. 8-bit RGB with an embedded profile other than sRGB is converted to sRGB; the profile of the
  resulting pixels, sRGB or any other (grey, 16-bit), is kept in `Image.icc` and written back with
  `write(..., like=image)`.
- CMYK, Lab, animated and multi-page files are refused: there is no single right way to read them as an image.
- Anything wrong with a file raises `InputError` with one sentence, never another library's exception or warnings.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ddfm.errors import InputError
from ddfm.io.codecs import Decoded, decode, decode_pil
from ddfm.io.encode import encode
from ddfm.io.files import check_writable, open_file, quoted, write_bytes
from ddfm.io.grid import Grid

Range = tuple[float, float]
COUNTS_SPAN = 0.25  # of full scale: 14-bit counts in 16 bits
PERCENTILES = (0.1, 99.9)  # for normalisation: dead pixels fall outside, small hot targets inside
MOST = 0.75  # of the pixels outside the requested range: it may be meant for another file or another unit
FULL_SCALE = {8: 255, 16: 65535}
DEPTHS = {".png": (8, 16), ".tif": (8, 16, 32), ".tiff": (8, 16, 32), ".jpg": (8,), ".jpeg": (8,), ".bmp": (8,)}


@dataclass(frozen=True)
class Image:
    """An image with the metadata needed to write another one like it.

    Attributes:
        pixels: float32, [0, 1], (H, W) or (H, W, 3) RGB; for a volume (S, H, W), S grey slices.
        bits: 8, 16 or 32 (a float file, or one with physical units).
        low, high: The file's values that became 0 and 1: (0, 255), (0, 65535), (0, 1), or those from normalisation.
        icc: The colour profile of the pixels, None if unknown.
        dpi: Horizontal, vertical.
        header: The DICOM or NIfTI header.
        grid: The world coordinates of a DICOM or NIfTI file.
        findings: A sentence for each assumption made in reading.
        exif: The EXIF bytes in the file.
        unit: The unit of low and high if the file gives one, such as "°C".
    """

    pixels: np.ndarray
    bits: int = 8
    path: Path | None = None
    low: float = 0.0
    high: float = 255.0
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    header: Any = None
    grid: Grid | None = None
    findings: tuple[str, ...] = ()
    exif: bytes | None = None
    unit: str = ""

    @property
    def is_volume(self) -> bool:
        """Whether the pixels are slices: only DICOM and NIfTI have headers, and they are never coloured."""
        return self.header is not None and self.pixels.ndim == 3

    @property
    def name(self) -> str:
        """The file's name, for a sentence."""
        return quoted(self.path) if self.path is not None else "A source"

    @property
    def plane(self) -> tuple[int, int]:
        """(H, W) of the image, or of a slice of the volume."""
        height, width = self.pixels.shape[1:] if self.is_volume else self.pixels.shape[:2]
        return height, width

    @property
    def size(self) -> str:
        """Width x height, for a volume x slices, for a sentence."""
        size = f"{self.plane[1]}x{self.plane[0]}"
        return f"{size}x{len(self.pixels)}" if self.is_volume else size

    def restore(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels in [0, 1] as values in the file's unit (counts, Hounsfield units ...): low + pixels (high - low),
        float64.

        Exact for files that were not normalised; after `normalise=True`, values outside the percentiles stay clipped
        to low and high.
        """
        return self.low + np.asarray(pixels, np.float64) * (self.high - self.low)

    def windowed(self, low: float, high: float) -> Image:
        """The same image with other values, in the file's unit, as 0 and 1; a finding if most pixels are clipped.

        Raises InputError unless low < high.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"A range must go from a lower to a higher value, not from {low:g} to {high:g}.")
        values = (self.restore(self.pixels) - low) / (high - low)
        beyond, findings = float(((values < 0) | (values > 1)).mean()), self.findings
        if beyond > (MOST if self.bits > 8 else 0.01):  # 8 bits are seldom in the unit of a range
            unit = f" {self.unit}".rstrip()
            findings += (
                f"{self.name} has {beyond:.0%} of its pixels outside {low:g} to {high:g}{unit}; they are clipped.",
            )
        pixels = np.clip(values, 0, 1).astype(np.float32)
        return replace(self, pixels=pixels, low=float(low), high=float(high), findings=findings)


def read(path: str | os.PathLike[str], normalise: bool = False, value_range: Range | None = None) -> Image:
    """Read a PNG, JPEG, BMP, TIFF, GIF or WebP image, or a DICOM or NIfTI slice.

    normalise: stretch the 0.1 to 99.9 percentiles of the image (all channels together) to [0, 1] and clip the rest.
    value_range: the two values, in the file's unit, that become 0 and 1 instead, with or without `normalise`; values
    outside are clipped.

    Without either, values are divided by full scale (255, 65535, or 4095 for a 12-bit TIFF) and floats are used as
    they are, so that `read` inverts `write`. DICOM and NIfTI have physical units: the smallest to the
    largest value becomes [0, 1].

    Raises InputError, one sentence, for anything wrong with the file, for floats and wide integers outside
    [0, 1] without `normalise` or `value_range`, and for a volume.
    """
    return _no_volume(read_any(path, normalise, value_range, scale_counts=False))


def _no_volume(image: Image) -> Image:
    if image.is_volume:
        raise InputError(
            f"{image.name} is a volume of {len(image.pixels)} slices, not an image; fuse it with `ddfm fuse` or "
            "ddfm.Scene."
        )
    return image


def read_any(
    path: str | os.PathLike[str],
    normalise: bool = False,
    value_range: Range | None = None,
    window: Any = None,
    scale_counts: bool = True,
) -> Image:
    """Read a source: an image as `read` does, or a DICOM or NIfTI file of several slices, or a folder with a DICOM
    series; for these, pixels (S, H, W) with one map for all slices.

    window: for CT, see `medical.read`; value_range then applies to sources other than CT. scale_counts: whether a
    sensor's raw counts are stretched as by `normalise`, with a sentence in `Image.findings`: floats and wide integers
    outside [0, 1], and grey values of more than 8 bits whose maximum is at most a quarter of full scale, or whose span
    is at most that and smaller than their distance from 0. Raises InputError.
    """
    name, normalise = quoted(path), normalise and value_range is None  # percentiles would clip within the range
    if os.path.isdir(path):
        from ddfm.io import medical

        return _ranged(medical.read_series(Path(path), normalise, window), value_range, window)
    with open_file(path) as file:
        head = file.read(132)
        file.seek(0)
        if is_medical(path) or head[128:] == b"DICM":
            from ddfm.io import medical

            return _ranged(medical.read(Path(path), file.read(), normalise, window), value_range, window)
        decoded = decode(file, name)
    values, full, findings = decoded.values, decoded.full, []
    if decoded.translucent:
        findings.append(_translucent(name))
    void = _not_measured(decoded, name)
    if void is not None:  # the median for now, so that the percentiles are unaffected
        values = np.where(void, np.quantile(values[~void], 0.5, method="nearest"), values)
        findings.append(f"{name} has no data in {void.mean():.2%} of its pixels, which are made black.")
    own_units = full is None and not (values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1)
    if not normalise and value_range is None and (own_units or (scale_counts and _are_counts(values, full))):
        if not scale_counts and np.isfinite([low := values.min(), high := values.max()]).all():
            raise InputError(f"{name} has values from {low:.4g} to {high:.4g}, not [0, 1]; read it normalised.")
        normalise = True
        if -math.inf < values.min() < values.max() < math.inf:
            findings.append(_scaled(values, name))
    pixels, low, high = to_unit(values, name, normalise, own_units, full)
    bits = {"uint8": 8, "uint16": 16}.get(values.dtype.name, 32)
    image = Image(
        pixels, bits, Path(path), low, high, decoded.icc, decoded.dpi, findings=tuple(findings), exif=decoded.exif
    )
    image = image.windowed(*value_range) if value_range else image
    if void is not None:
        image.pixels[void] = 0
    return image


def _not_measured(decoded: Decoded, name: str) -> np.ndarray | None:
    """A mask of the nodata pixels of a grey image; None if there are none. Raises InputError."""
    if decoded.no_data is None or decoded.values.ndim == 3:
        return None
    void = np.isnan(decoded.values) if math.isnan(decoded.no_data) else decoded.values == decoded.no_data
    if void.all():
        raise InputError(f"{name} has no data in any of its pixels; choose another file.")
    return void if void.any() else None


def _ranged(image: Image, value_range: Range | None, window: Any) -> Image:
    """A DICOM or NIfTI image with the range applied, unless it is a CT with a window."""
    from ddfm.io.medical import hounsfield

    if value_range is None or (window is not None and (image.low, image.high) == hounsfield(window)):
        return image
    return image.windowed(*value_range)


def _are_counts(values: np.ndarray, full: float | None) -> bool:
    """Whether grey values of more than 8 bits are a sensor's counts: 12 or 14 bits in a 16-bit file, or a span so
    narrow and so far above 0 that it would look uniform."""
    if values.ndim != 2 or full is None or full <= 255:
        return False
    low, high = np.percentile(values, PERCENTILES)
    return bool(high > low and (values.max() <= full * COUNTS_SPAN or high - low <= min(full * COUNTS_SPAN, low)))


def _translucent(name: str) -> str:
    return f"{name} is transparent in places; black is assumed behind it."


def _scaled(values: np.ndarray, name: str) -> str:
    low, high = np.percentile(values, PERCENTILES)
    kind = "values" if values.dtype.kind == "f" else "counts"
    return (
        f"{name} holds {kind} from {values.min():.6g} to {values.max():.6g}, so its {PERCENTILES[0]} and "
        f"{PERCENTILES[1]} percentiles, {low:.6g} and {high:.6g}, became black and white."
    )


def write(path: str | os.PathLike[str], pixels: Any, bits: int = 8, like: Image | None = None) -> None:
    """Write pixels, [0, 1], (H, W) or (H, W, 3) RGB, to a file in the format of its extension.

    .png (8, 16 bits), .tif .tiff (8, 16, 32 = float), .jpg .jpeg .bmp (8), .dcm .nii .nii.gz (`like` gives
    the geometry and the units). Values are rounded half to even. `like` also gives the profile, resolution
    and EXIF (with the result's size and orientation).
    JPEG: 4:4:4, quality 95. The file is written atomically (see `write_bytes`). Raises InputError if the pixels or the
    file cannot be written.
    """
    pixels = as_pixels(pixels)
    if is_medical(path):
        from ddfm.io import medical

        return write_bytes(path, medical.encode(path, pixels, like))
    check_target(path, bits)
    like = like or Image(pixels)
    space = b"GRAY" if pixels.ndim == 2 else b"RGB "  # a profile only if it has the same number of channels
    icc = like.icc if like.icc and like.icc[16:20] == space else None
    values = _quantised(pixels, bits)
    write_bytes(path, encode(Path(path).suffix.lower(), values, icc, like.dpi, like.exif))


def check_target(path: str | os.PathLike[str], bits: int = 8) -> None:
    """Raise InputError if `write` would, before the long computation."""
    name, suffix = quoted(path), Path(path).suffix.lower()
    if not is_medical(path):
        if suffix not in DEPTHS:
            raise InputError(f"Cannot write {name}: the name must end in one of {', '.join(DEPTHS)}.")
        if bits not in DEPTHS[suffix]:
            allowed = " or ".join(map(str, DEPTHS[suffix]))
            raise InputError(
                f"Cannot write {name} with {bits} bits: {suffix} holds {allowed}; use .png or .tif instead."
            )
    check_writable(path)


def as_pixels(x: Any) -> np.ndarray:
    """An image passed in Python, as a new float32 array in [0, 1], (H, W) or (H, W, 3).

    x: a path (read as by `sources.read_source`), an `Image`, a PIL image, a NumPy array (H, W), (H, W, 1) or (H, W, 3),
    or a torch tensor of these shapes or (1, H, W) or (3, H, W); an ambiguous shape is read as channels first.
    Assumptions about a file or a PIL image are warnings.
    uint8 is divided by 255, uint16 by 65535; floats must be finite and in [0, 1] (excesses up to 1e-4 are
    clipped). Unlike a file, an array with three equal channels stays (H, W, 3). Raises InputError for
    anything else.
    """
    if isinstance(x, (str, os.PathLike)):
        from ddfm.io.sources import read_source  # late: it reads by this module

        image = _no_volume(read_source(x))
        for finding in image.findings:
            warnings.warn(finding, stacklevel=2)
        return image.pixels
    if isinstance(x, Image):
        return as_pixels(x.pixels)
    if isinstance(x, PIL.Image.Image):
        decoded = decode_pil(x, name := "The PIL image")
        if decoded.translucent:
            warnings.warn(_translucent(name), stacklevel=2)
        return as_pixels(decoded.values)
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch is imported
    if torch is not None and isinstance(x, torch.Tensor):
        x = _from_tensor(x)
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise InputError("The image is a masked array; fill it first, for example with `array.filled(0)`.")
        x = x.data
    if not isinstance(x, np.ndarray):
        kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}".removeprefix("builtins.")
        raise InputError(
            f"An image must be a path, an array, a tensor or a PIL image, not {kind}; pass its values as an array, or "
            "its file to ddfm.Scene, which handles volumes."
        )
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3)):
        raise InputError(f"An image must have the shape (H, W) or (H, W, 3), not {tuple(x.shape)}.")
    if x.size == 0:
        raise InputError(f"The image is empty: its shape is {tuple(x.shape)}.")
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[..., 0]
    if x.dtype.kind == "u" and x.dtype.itemsize <= 2:
        result: np.ndarray = np.divide(x, FULL_SCALE[8 * x.dtype.itemsize], dtype=np.float32)
        return result
    if x.dtype.kind != "f":
        raise InputError(f"An image must be uint8, uint16 or float in [0, 1], not {x.dtype}; convert it first.")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite([low, high]).all():
        raise InputError("The image contains NaN or infinity; replace these values first.")
    if low < -1e-4 or high > 1 + 1e-4:
        raise InputError(f"A floating-point image must be in [0, 1]; this one spans {low:.4g} to {high:.4g}.")
    result = np.clip(x, 0, 1).astype(np.float32, order="C")
    return result


def _from_tensor(x: Any) -> np.ndarray:
    """A torch tensor on any device, of any layout and dtype, as an array with channels last."""
    import torch

    try:
        x = x.detach()
        x = x.dequantize() if x.is_quantized else x if x.layout == torch.strided else x.to_dense()
        x = x.resolve_conj().resolve_neg().cpu()
        array = np.asarray((x.float() if x.is_floating_point() and x.itemsize <= 2 else x).numpy())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(f"A tensor of dtype {x.dtype} on device {x.device} cannot be read as an image.") from error
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in (1, 3) else array


def to_unit(
    values: np.ndarray, name: str, normalise: bool, own_units: bool = False, full: float | None = None
) -> tuple[np.ndarray, float, float]:
    """Values of any real dtype as float32 in [0, 1]: (pixels, low, high), with pixels = (values - low) /
    (high - low).

    low and high are the percentiles if `normalise`, else the extremes if the values have physical units, else 0
    and the value of white, `full`, or 1. Raises InputError for NaN or infinity.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{name} contains NaN or infinity; replace these values first.")
    if normalise:
        low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    elif own_units:
        low, high = float(values.min()), float(values.max())
    else:
        low, high = 0.0, full or 1.0
    if not high > low:
        high = low + max(1.0, abs(low))  # a constant image becomes 0 and is restored to itself
    if low == 0 and high == full:
        return np.divide(values, full, dtype=np.float32), low, high
    pixels = np.empty(values.shape, np.float32)
    rows = max(1, 2**20 * len(values) // values.size)
    for part in (slice(k, k + rows) for k in range(0, len(values), rows)):  # a full volume in float64 is large
        wide = values[part].astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
        wide -= low
        wide /= high - low
        pixels[part] = np.clip(wide, 0, 1, out=wide)
    return pixels, low, high


def is_medical(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a DICOM or NIfTI file."""
    return os.fspath(path).lower().endswith((".dcm", ".dicom", ".nii", ".nii.gz"))


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Floats as in an 8-bit file: uint8 of the same shape, clipped to [0, 1] and rounded half to even."""
    return _quantised(pixels.clip(0, 1), 8)


def _quantised(pixels: np.ndarray, bits: int) -> np.ndarray:
    if bits == 32:
        return pixels
    scaled = pixels * np.float32(FULL_SCALE[bits])
    result: np.ndarray = np.rint(scaled, out=scaled).astype(np.uint8 if bits == 8 else np.uint16)
    return result
