"""Files <-> arrays: the only room that knows of files, bit depths and metadata.

An image is a float32 array in [0, 1], (H, W) when grey and (H, W, 3) RGB when coloured, top row first. What
was decided:

- A colour file whose three channels are identical is read as grey: most infrared and MRI images are stored
  so.
- 16-bit and float files never pass through 8 bits.
- An opaque alpha channel is dropped; a translucent one is composited over black, the "no signal" of thermal
  and medical.
- Rotation from EXIF is applied. 8-bit RGB with an embedded profile other than sRGB is converted to sRGB; any
  other profile (grey, 16-bit) is kept in `Image.icc` and written back with `write(..., like=image)`.
- CMYK, Lab, animated and multi-page files are refused: there is no one right way to read them as an image.
- Whatever is wrong with a file ends in one `InputError` sentence, never in a library's exception or its
  chatter.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import tifffile

from ddfm.errors import InputError
from ddfm.io.codecs import decode, decode_pil
from ddfm.io.grid import Grid

MAX_BYTES = 2**32
PERCENTILES = (0.1, 99.9)  # of the robust normalisation: dead pixels fall outside, small hot targets inside
FULL_SCALE = {8: 255, 16: 65535}
DEPTHS = {".png": (8, 16), ".tif": (8, 16, 32), ".tiff": (8, 16, 32), ".jpg": (8,), ".jpeg": (8,), ".bmp": (8,)}


@dataclass(frozen=True)
class Image:
    """An image and what is needed to write another one like it.

    pixels: float32, [0, 1], (H, W) or (H, W, 3) RGB; of a volume (S, H, W), S grey slices. bits: 8, 16 or 32
    (a float file or one in units of its own). low, high: the file's values that became 0 and 1: (0, 255),
    (0, 65535), (0, 1), or what normalisation chose. icc: the profile the pixels are in, None for sRGB or none
    given. dpi: horizontal, vertical. header: the DICOM or NIfTI header. grid: where the pixels of such a file
    lie in the patient. findings: a sentence for each thing that was assumed in reading.
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

    @property
    def is_volume(self) -> bool:
        """Whether the pixels are slices: DICOM and NIfTI, which alone have headers, are never coloured."""
        return self.header is not None and self.pixels.ndim == 3

    def restore(self, pixels: np.ndarray) -> np.ndarray:
        """[0, 1] back to the file's own values (counts, Hounsfield units ...): low + pixels (high - low),
        float64.

        Exact for unnormalised files; after `normalise=True` what lay outside the percentiles stays at low or
        high.
        """
        return self.low + np.asarray(pixels, np.float64) * (self.high - self.low)


def read(path: str | os.PathLike[str], normalise: bool = False) -> Image:
    """Read a PNG, JPEG, BMP, TIFF, GIF or WebP image, or a DICOM or NIfTI slice.

    normalise: stretch the 0.1 to 99.9 percentiles of the image (all channels together) to [0, 1] and clip
    the rest. Off by default: a 16-bit value v is v / 65535, so raw 14-bit thermal counts come out dark unless
    asked. Float TIFFs must lie in [0, 1] unless normalised, as must images of signed or 32-bit integers.
    DICOM and NIfTI have units of their own: the smallest to the largest value becomes [0, 1] unless
    `normalise`.

    Raises InputError, one sentence, for everything that is wrong with the file, and for a volume.
    """
    image = read_any(path, normalise)
    if image.is_volume:
        raise InputError(
            f"{quoted(path)} is a volume of {len(image.pixels)} slices, not an image; fuse it with `ddfm fuse` or "
            "ddfm.runs.scene."
        )
    return image


def read_any(path: str | os.PathLike[str], normalise: bool = False, window: Any = None) -> Image:
    """Read an image as `read` does, or a DICOM or NIfTI file of several slices, or a folder that holds a DICOM series:
    pixels (S, H, W), one map for all.

    window: of a CT, see `medical.read_volume`. Raises InputError.
    """
    name = quoted(path)
    if os.path.isdir(path):
        from ddfm.io import medical

        return medical.read_series(Path(path), normalise, window)
    data = read_bytes(path)
    path = Path(path)
    if is_medical(path) or data[128:132] == b"DICM":
        from ddfm.io import medical

        return medical.read(path, data, normalise, window)
    values, icc, dpi = decode(data, name)
    pixels, low, high = to_unit(values, name, normalise)
    bits = {"uint8": 8, "uint16": 16}.get(values.dtype.name, 32)
    return Image(pixels, bits, path, low, high, icc, dpi)


def write(
    path: str | os.PathLike[str], pixels: Any, bits: int = 8, like: Image | None = None, quality: int = 95
) -> None:
    """Write pixels, [0, 1], (H, W) or (H, W, 3) RGB, to a file whose format is its suffix.

    .png (8, 16 bits), .tif .tiff (8, 16, 32 = float), .jpg .jpeg .bmp (8), .dcm .nii .nii.gz (`like` gives
    the geometry and the units). Values are rounded half to even. `like` lends its profile and resolution.
    JPEG: 4:4:4, quality 95. The file appears whole or not at all (see `write_bytes`). Raises InputError for
    what cannot be written or where.
    """
    pixels = as_pixels(pixels)
    if is_medical(path):
        from ddfm.io import medical

        return write_bytes(path, medical.encode(path, pixels, like))
    check_target(path, bits)
    icc, dpi = _metadata_for(pixels, like)
    write_bytes(path, _encode(Path(path).suffix.lower(), _quantised(pixels, bits), icc, dpi, quality))


def check_target(path: str | os.PathLike[str], bits: int = 8) -> None:
    """Raise InputError where `write` would: before the long work, not after it."""
    name, suffix = quoted(path), Path(path).suffix.lower()
    if not is_medical(path):
        if suffix not in DEPTHS:
            raise InputError(f"Cannot write {name}: the name must end in {', '.join(DEPTHS)}.")
        if bits not in DEPTHS[suffix]:
            allowed = " or ".join(map(str, DEPTHS[suffix]))
            raise InputError(
                f"Cannot write {name} with {bits} bits: {suffix} holds {allowed}; use .png or .tif instead."
            )
    _target(path)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Put data into a file that appears whole or not at all.

    A temporary file in the same folder is written, synced to the disk and renamed over the target; it is
    removed on any failure, an interrupt included. A link is followed, a read-only file respected. Raises
    InputError.
    """
    target = _target(path)
    part = os.path.join(os.path.dirname(target), f".ddfm-{secrets.token_hex(8)}.part")
    try:
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise InputError(f"Cannot write {quoted(path)}: {_reason(error)}.") from error


def _target(path: str | os.PathLike[str]) -> str:
    """The file behind all links that a path means. Raises InputError where it cannot be written."""
    name = quoted(path)
    try:
        target = os.path.realpath(path)
    except ValueError as error:
        raise InputError(f"Cannot write {name}: that is not a possible file name.") from error
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise InputError(f"Cannot write {name}: it is a folder; give the name of a file.")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise InputError(f"Cannot write {name}: the file is read-only; choose another name or make it writable.")
    if not os.path.isdir(folder):
        raise InputError(f"Cannot write {name}: its folder does not exist; make it first.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"Cannot write {name}: permission is denied; check who may use its folder.")
    return target


def as_pixels(x: Any) -> np.ndarray:
    """The image that a Python user passed, as a new float32 array in [0, 1], (H, W) or (H, W, 3).

    x: a path (read by `read`), an `Image`, a PIL image, a NumPy array (H, W), (H, W, 1) or (H, W, 3), or a
    torch tensor of these shapes or (1, H, W) or (3, H, W), where channels first wins if both could be meant.
    uint8 is divided by 255, uint16 by 65535, floats must be finite and in [0, 1] (1e-4 outside is forgiven
    and clipped). Unlike a file, an array with three equal channels stays (H, W, 3). Raises InputError for
    anything else.
    """
    if isinstance(x, (str, os.PathLike)):
        return read(x).pixels
    if isinstance(x, Image):
        return as_pixels(x.pixels)
    if isinstance(x, PIL.Image.Image):
        return as_pixels(decode_pil(x, "The PIL image").values)
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch was imported
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        if x.ndim == 3 and x.shape[0] in (1, 3):
            x = np.moveaxis(x, 0, -1)
    if not isinstance(x, np.ndarray):
        raise InputError(f"An image is a path, an array, a tensor or a PIL image, not {type(x).__name__}.")
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3)):
        raise InputError(f"An image has the shape (H, W) or (H, W, 3), not {tuple(x.shape)}.")
    if x.size == 0:
        raise InputError(f"The image is empty: its shape is {tuple(x.shape)}.")
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[..., 0]
    if x.dtype.kind == "u" and x.dtype.itemsize <= 2:
        return np.divide(x, FULL_SCALE[8 * x.dtype.itemsize], dtype=np.float32)
    if x.dtype.kind != "f":
        raise InputError(f"An image is uint8, uint16 or floating point in [0, 1], not {x.dtype}.")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite([low, high]).all():
        raise InputError("The image contains NaN or infinity; replace these values first.")
    if low < -1e-4 or high > 1 + 1e-4:
        raise InputError(f"A floating-point image must lie in [0, 1]; this one spans {low:.4g} to {high:.4g}.")
    return np.clip(x, 0, 1).astype(np.float32, order="C")


def to_unit(values: np.ndarray, name: str, normalise: bool, own_units: bool = False) -> tuple[np.ndarray, float, float]:
    """Values of any real dtype to float32 in [0, 1]: (pixels, low, high), where pixels = (values - low) /
    (high - low).

    low and high are the percentiles if normalise, else the full scale of uint8 and uint16, the extremes where
    the values have units of their own, and [0, 1] for floats. Raises InputError on NaN or infinity, and on
    floats outside.
    """
    full_scale = {"uint8": 255.0, "uint16": 65535.0}.get(values.dtype.name)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{name} contains NaN or infinity; replace these values first.")
    if normalise:
        low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    elif full_scale and not own_units:
        low, high = 0.0, full_scale
    else:
        low, high = float(values.min()), float(values.max())
        if not own_units:
            if low < 0 or high > 1:
                raise InputError(f"{name} has values from {low:.4g} to {high:.4g}, not [0, 1]; read it normalised.")
            low, high = 0.0, 1.0
    if not high > low:
        high = low + max(1.0, abs(low))  # a constant image becomes 0 and is restored to itself
    if full_scale == high and low == 0:
        return np.divide(values, full_scale, dtype=np.float32), low, high
    pixels = np.empty(values.shape, np.float32)
    rows = max(1, 2**20 * len(values) // values.size)
    for part in (slice(k, k + rows) for k in range(0, len(values), rows)):  # a volume in float64 at once is large
        wide = values[part].astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
        wide -= low
        wide /= high - low
        pixels[part] = np.clip(wide, 0, 1, out=wide)
    return pixels, low, high


def is_medical(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a DICOM or NIfTI file."""
    return os.fspath(path).lower().endswith((".dcm", ".dicom", ".nii", ".nii.gz"))


def quoted(path: str | os.PathLike[str]) -> str:
    """A path for a sentence: as it is if that prints on one line, else with escapes."""
    text = os.fspath(path)
    return text if isinstance(text, str) and text.isprintable() and text else repr(text)


# ---- reading
# -------------------------------------------------------------------------------------------------------


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file that is neither empty nor above 4 GiB. Raises InputError."""
    name = quoted(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder; give the name of an image in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{name} is not a regular file; save the image to one.")
        if status.st_size == 0:
            raise InputError(f"{name} is empty (0 bytes); save or copy it again.")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{name} is larger than 4 GiB; cut it into smaller images.")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the name.") from None
    except OSError as error:
        raise InputError(f"Cannot read {name}: {_reason(error)}.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not a possible file name.") from error


# ---- writing
# -------------------------------------------------------------------------------------------------------


def _quantised(pixels: np.ndarray, bits: int) -> np.ndarray:
    if bits == 32:
        return pixels
    scaled = pixels * np.float32(FULL_SCALE[bits])
    return np.rint(scaled, out=scaled).astype(np.uint8 if bits == 8 else np.uint16)


def _metadata_for(pixels: np.ndarray, like: Image | None) -> tuple[bytes | None, tuple[float, float] | None]:
    """Profile and resolution to lend; a profile only where it is one for as many channels."""
    if like is None:
        return None, None
    space = b"GRAY" if pixels.ndim == 2 else b"RGB "
    return (like.icc if like.icc and like.icc[16:20] == space else None), like.dpi


def _encode(suffix: str, values: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None, quality: int) -> bytes:
    buffer = io.BytesIO()
    if suffix in (".tif", ".tiff"):
        options: dict[str, Any] = {
            "photometric": "rgb" if values.ndim == 3 else "minisblack",
            "metadata": None,
        }
        if dpi:
            options |= {"resolution": dpi, "resolutionunit": "INCH"}
        tifffile.imwrite(buffer, values, compression="zlib", iccprofile=icc, **options)
    elif values.dtype == np.uint16:
        ok, png = cv2.imencode(".png", values[..., ::-1] if values.ndim == 3 else values)
        assert ok, "OpenCV writes every 16-bit array as PNG"
        return _with_png_chunks(png.tobytes(), icc, dpi)
    else:
        options = {"dpi": dpi} if dpi else {}
        if icc and suffix != ".bmp":
            options["icc_profile"] = icc
        if suffix in (".jpg", ".jpeg"):
            options |= {"quality": quality, "subsampling": 0}
        format = {".png": "PNG", ".bmp": "BMP"}.get(suffix, "JPEG")
        PIL.Image.fromarray(values).save(buffer, format, **options)
    return buffer.getvalue()


def _with_png_chunks(png: bytes, icc: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """OpenCV writes neither profile nor resolution; their chunks go right behind the header (33 bytes)."""
    chunks = b""
    for kind, body in (
        (b"iCCP", b"ICC profile\0\0" + zlib.compress(icc) if icc else b""),
        (b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1) if dpi else b""),
    ):
        if body:
            chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunks + png[33:]


def _reason(error: OSError) -> str:
    return {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EACCES: "permission is denied; check who may use the file and its folder",
        errno.EPERM: "permission is denied; check who may use the file and its folder",
        errno.EROFS: "the disk is read-only; choose another folder",
        errno.ENOENT: "its folder does not exist; create it first",
        errno.ENOTDIR: "a part of the path is not a folder; check the name",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }.get(error.errno or 0, (error.strerror or type(error).__name__).lower())
