"""Files <-> arrays: the only room that knows of files, bit depths and metadata.

A picture is a float32 array in [0, 1], (H, W) when grey and (H, W, 3) RGB when coloured, top row first. What
was decided:

- A colour file whose three channels are identical is read as grey: most infrared and MRI pictures are stored
  so.
- 16-bit and float files never pass through 8 bits.
- An opaque alpha channel is dropped; a translucent one is composited over black, the "no signal" of thermal
  and medical.
- Rotation from EXIF is applied. 8-bit RGB with an embedded profile other than sRGB is converted to sRGB; any
  other profile (grey, 16-bit) is kept in `Image.icc` and written back with `write(..., like=image)`.
- CMYK, Lab, animated and multi-page files are refused: there is no one right way to read them as a picture.
- Whatever is wrong with a file ends in one `InputError` sentence, never in a library's exception or its
  chatter.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import secrets
import stat
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import tifffile
from PIL import BmpImagePlugin, GifImagePlugin, ImageCms, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL import WebPImagePlugin as WebP

from ddfm.errors import InputError

MAX_PIXELS = 2**28  # 16384 x 16384; a float32 RGB picture of that size is 3 GiB
MAX_BYTES = 2**32
# No real picture packs more than this many pixels into a byte (deflate: 1032 bytes); a larger claim is a bomb
# or a stump.
MAX_PIXELS_A_BYTE = 10_000
PERCENTILES = (
    0.1,
    99.9,
)  # of the robust normalisation: dead pixels fall outside, small hot targets stay inside
FULL_SCALE = {8: 255, 16: 65535}

# Opened by class, not by PIL.Image.open: no guessing among forty formats, and the size limit is ours, not a
# global.
_OPENERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"RIFF", WebP.WebPImageFile),
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_decoding = threading.Lock()
logging.getLogger("tifffile").addHandler(
    logging.NullHandler()
)  # or logging's last resort prints its complaints


@dataclass(frozen=True)
class Image:
    """A picture and what is needed to write another one like it.

    pixels: float32, [0, 1], (H, W) or (H, W, 3) RGB. bits: 8, 16 or 32 (a float file or one in units of its
    own). low, high: the file's values that became 0 and 1: (0, 255), (0, 65535), (0, 1), or what
    normalisation chose. icc: the profile the pixels are in, None for sRGB or none given. dpi: horizontal,
    vertical. header: the DICOM or NIfTI header that carries the geometry.
    """

    pixels: np.ndarray
    bits: int = 8
    path: Path | None = None
    low: float = 0.0
    high: float = 255.0
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    header: Any = None

    def restore(self, pixels: np.ndarray) -> np.ndarray:
        """[0, 1] back to the file's own values (counts, Hounsfield units ...): low + pixels (high - low),
        float64.

        Exact for unnormalised files; after `normalise=True` what lay outside the percentiles stays at low or
        high.
        """
        return self.low + np.asarray(pixels, np.float64) * (self.high - self.low)


def read(path: str | os.PathLike[str], normalise: bool = False) -> Image:
    """Read a PNG, JPEG, BMP, TIFF, GIF or WebP picture, or a DICOM or NIfTI slice.

    normalise: stretch the 0.1 to 99.9 percentiles of the picture (all channels together) to [0, 1] and clip
    the rest. Off by default: a 16-bit value v is v / 65535, so raw 14-bit thermal counts come out dark unless
    asked. Float TIFFs must lie in [0, 1] unless normalised, as must pictures of signed or 32-bit integers.
    DICOM and NIfTI have units of their own: the smallest to the largest value becomes [0, 1] unless
    `normalise`.

    Raises InputError, one sentence, for everything that is wrong with the file.
    """
    name = quoted(path)
    data = _read_bytes(path)
    path = Path(path)
    if is_medical(path) or data[128:132] == b"DICM":
        from ddfm import medical

        return medical.read(path, data, normalise)
    with _decoder(name):
        if data.startswith(_TIFF_MAGIC):
            values, meta = _decode_tiff(data, name)
        else:
            values, meta = _decode(data, name)
    values = _without_alpha(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3 and all(np.array_equal(values[..., 0], values[..., c]) for c in (1, 2)):
        values = values[..., 0]
    values = _orient(values, meta.pop("orientation"))
    pixels, low, high = to_unit(values, name, normalise)
    bits = {"uint8": 8, "uint16": 16}.get(values.dtype.name, 32)
    return Image(pixels, bits, path, low, high, **meta)


def write(
    path: str | os.PathLike[str], pixels: Any, bits: int = 8, like: Image | None = None, quality: int = 95
) -> None:
    """Write pixels, [0, 1], (H, W) or (H, W, 3) RGB, to a file whose format is its suffix.

    .png (8, 16 bits), .tif .tiff (8, 16, 32 = float), .jpg .jpeg .bmp (8), .dcm .nii .nii.gz (`like` gives
    the geometry and the units). Values are rounded half to even. `like` lends its profile and resolution.
    JPEG: 4:4:4, quality 95. The file appears whole or not at all (see `write_bytes`). Raises InputError for
    what cannot be written or where.
    """
    name = quoted(path)
    suffix = Path(path).suffix.lower()
    pixels = as_pixels(pixels)
    if is_medical(path):
        from ddfm import medical

        return write_bytes(path, medical.encode(path, pixels, like))
    depths = {".png": (8, 16), ".tif": (8, 16, 32), ".tiff": (8, 16, 32)}
    depths |= dict.fromkeys((".jpg", ".jpeg", ".bmp"), (8,))
    if suffix not in depths:
        raise InputError(f"Cannot write {name}: the name must end in {', '.join(depths)}.")
    if bits not in depths[suffix]:
        allowed = " or ".join(map(str, depths[suffix]))
        raise InputError(
            f"Cannot write {name} with {bits} bits: {suffix} holds {allowed}; use .png or .tif instead."
        )
    icc, dpi = _metadata_for(pixels, like)
    write_bytes(path, _encode(suffix, _quantised(pixels, bits), icc, dpi, quality))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Put data into a file that appears whole or not at all.

    A temporary file in the same folder is written, synced to the disk and renamed over the target; it is
    removed on any failure, an interrupt included. A link is followed, a read-only file respected. Raises
    InputError.
    """
    name = quoted(path)
    try:
        target = os.path.realpath(path)
        if os.path.isdir(target):
            raise InputError(f"Cannot write {name}: it is a folder; give the name of a file.")
        if os.path.exists(target) and not os.access(target, os.W_OK):
            raise InputError(
                f"Cannot write {name}: the file is read-only; choose another name or make it writable."
            )
        part = os.path.join(os.path.dirname(target), f".ddfm-{secrets.token_hex(8)}.part")
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
        raise InputError(f"Cannot write {name}: {_reason(error)}.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot write {name}: that is not a possible file name.") from error


def as_pixels(x: Any) -> np.ndarray:
    """The picture that a Python user passed, as a new float32 array in [0, 1], (H, W) or (H, W, 3).

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
        with _decoder("The PIL image"):
            values, meta = _from_pil(x, "The PIL image")
        return as_pixels(_orient(_without_alpha(values), meta["orientation"]))
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch was imported
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        if x.ndim == 3 and x.shape[0] in (1, 3):
            x = np.moveaxis(x, 0, -1)
    if not isinstance(x, np.ndarray):
        raise InputError(f"A picture is a path, an array, a tensor or a PIL image, not {type(x).__name__}.")
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3)):
        raise InputError(f"A picture has the shape (H, W) or (H, W, 3), not {tuple(x.shape)}.")
    if x.size == 0:
        raise InputError(f"The picture is empty: its shape is {tuple(x.shape)}.")
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[..., 0]
    if x.dtype.kind == "u" and x.dtype.itemsize <= 2:
        return np.divide(x, FULL_SCALE[8 * x.dtype.itemsize], dtype=np.float32)
    if x.dtype.kind != "f":
        raise InputError(f"A picture is uint8, uint16 or floating point in [0, 1], not {x.dtype}.")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite([low, high]).all():
        raise InputError("The picture contains NaN or infinity; replace these values first.")
    if low < -1e-4 or high > 1 + 1e-4:
        raise InputError(
            f"A floating-point picture must lie in [0, 1]; this one spans {low:.4g} to {high:.4g}."
        )
    return np.clip(x, 0, 1).astype(np.float32, order="C")


def to_unit(
    values: np.ndarray, name: str, normalise: bool, own_units: bool = False
) -> tuple[np.ndarray, float, float]:
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
                raise InputError(
                    f"{name} has values from {low:.4g} to {high:.4g}, not [0, 1]; read it normalised."
                )
            low, high = 0.0, 1.0
    if not high > low:
        high = low + max(1.0, abs(low))  # a constant picture becomes 0 and is restored to itself
    if full_scale == high and low == 0:
        return np.divide(values, full_scale, dtype=np.float32), low, high
    wide = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    wide -= low
    wide /= high - low
    return np.clip(wide, 0, 1, out=wide).astype(np.float32, copy=False), low, high


def is_medical(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a DICOM or NIfTI file."""
    return os.fspath(path).lower().endswith((".dcm", ".dicom", ".nii", ".nii.gz"))


def quoted(path: str | os.PathLike[str]) -> str:
    """A path for a sentence: as it is if that prints on one line, else with escapes."""
    text = os.fspath(path)
    return text if isinstance(text, str) and text.isprintable() and text else repr(text)


# ---- reading
# -------------------------------------------------------------------------------------------------------


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    name = quoted(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder; give the name of a picture in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{name} is not a regular file; save the picture to one.")
        if status.st_size == 0:
            raise InputError(f"{name} is empty (0 bytes); save or copy it again.")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{name} is larger than 4 GiB; cut it into smaller pictures.")
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


@contextlib.contextmanager
def _decoder(name: str) -> Iterator[None]:
    """Turn whatever a decoder does with a broken file into one sentence, and keep it quiet meanwhile."""
    with (
        _decoding,
        warnings.catch_warnings(),
    ):  # the lock: warning filters and the log level belong to the process
        warnings.simplefilter("ignore")
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{name} does not fit into memory; use a smaller picture.") from error
        except (
            Exception
        ) as error:  # decoders raise OSError, SyntaxError, struct.error, KeyError ... on broken bytes
            if "imagecodecs" in str(error):
                raise InputError(
                    f"{name} is compressed in a way that needs `pip install imagecodecs`."
                ) from error
            raise InputError(f"{name} is truncated or damaged; save or copy it again.") from error
        finally:
            cv2.utils.logging.setLogLevel(level)


def _decode(data: bytes, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    opener = next((opener for magic, opener in _OPENERS if data.startswith(magic)), None)
    if opener is None:
        raise InputError(f"{name} is not a picture that can be read; use PNG, JPEG, BMP or TIFF.")
    image = opener(io.BytesIO(data))
    _check_size(image.size, len(data), name)
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is animated; save one of its frames as a picture.")
    if opener is not PngImagePlugin.PngImageFile or data[24] != 16:
        return _from_pil(image, name)
    # Pillow reads a 16-bit colour PNG as 8 bits, OpenCV keeps all of them, but does not mind damage: let
    # Pillow check.
    meta = _metadata(image)
    opener(io.BytesIO(data)).verify()
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.shape[1::-1] != image.size:
        raise InputError(f"{name} is truncated or damaged; save or copy it again.")
    if values.ndim == 3:
        order = [2, 1, 0, 3][: values.shape[2]]
        values = values[..., order]
    return values, meta


def _from_pil(image: PIL.Image.Image, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and metadata of what Pillow can hold: 8 bits grey or colour, 16 bits and float grey."""
    if image.mode not in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "YCbCr",
        "F",
        "I",
    ) and (not image.mode.startswith("I;16")):
        raise InputError(f"{name} is a {image.mode} picture; convert it to RGB or grey first.")
    image.load()
    meta = _metadata(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return np.asarray(image), meta
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("LA" if grey and image.mode != "1" else "RGBA")
    else:
        image = image.convert("L" if grey else "RGB")
    if meta["icc"] and not grey:
        image = _to_srgb(image, meta["icc"])
        meta["icc"] = None
    return np.asarray(image), meta


def _decode_tiff(data: bytes, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if not len(tiff.pages):
            raise InputError(f"{name} is truncated or damaged; save or copy it again.")
        page = tiff.pages[0]
        if not isinstance(page, tifffile.TiffPage) or page.dtype is None:
            raise InputError(
                f"{name} holds pixels of an unknown kind; save it with 8 or 16 bits or as float."
            )
        _check_size((page.imagewidth, page.imagelength), len(data), name)
        if sum(
            not p.is_reduced and not p.is_mask for p in tiff.pages if isinstance(p, tifffile.TiffPage)
        ) > 1 or any(isinstance(p, tifffile.TiffFrame) for p in tiff.pages):
            raise InputError(f"{name} has several pages; save one of them as a picture.")
        if page.axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > 4:
            raise InputError(
                f"{name} has {page.samplesperpixel} channels in {page.axes} order; save it as grey or RGB."
            )
        if page.photometric not in (0, 1, 2, 3, 6):
            raise InputError(
                f"{name} is a {_enum_name(page.photometric)} picture; convert it to RGB or grey first."
            )
        # Missing strips would be filled with zeros without a word.
        counts, offsets = page.databytecounts, page.dataoffsets
        if not counts or any(
            count <= 0 or offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)
        ):
            raise InputError(f"{name} is truncated or damaged; save or copy it again.")
        if page.bitspersample <= 8:
            image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
            _check_size(image.size, len(data), name)
            return _from_pil(image, name)
        values = page.asarray()
        if values.dtype.kind not in "uif":
            raise InputError(f"{name} holds {values.dtype} values; save it with 8 or 16 bits or as float.")
        if page.axes == "SYX":
            values = np.moveaxis(values, 0, -1)
        if page.photometric == 0:  # white is zero
            if values.dtype.kind != "u":
                raise InputError(f"{name} counts from white in {values.dtype}; save it with black as zero.")
            values = np.iinfo(values.dtype).max - values
        tags = page.tags
        icc = tags.valueof(34675)
        dpi = page.get_resolution(unit=2) if 282 in tags and tags.valueof(296, default=2) in (2, 3) else None
        if values.ndim == 3 and values.shape[2] in (2, 4) and 0 in page.extrasamples:
            raise InputError(f"{name} has an extra channel of unknown meaning; save it as grey or RGB.")
        meta = {"orientation": tags.valueof(274, default=1), "icc": icc, "dpi": _plausible_dpi(dpi)}
        return values, meta


def _check_size(size: tuple[int, int], length: int, name: str) -> None:
    """Before anything is allocated: the header's width and height against the limits and the file's length."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is truncated or damaged; save or copy it again.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} says it is {width}x{height}, more than 2^28 pixels; cut it into smaller pictures."
        )
    if width * height > MAX_PIXELS_A_BYTE * length:
        raise InputError(
            f"{name} says it is {width}x{height} but has only {length} bytes; save or copy it again."
        )


def _metadata(image: PIL.Image.Image) -> dict[str, Any]:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF is no reason to refuse a picture, and raises nearly anything
        orientation = 1
    icc = image.info.get("icc_profile")
    if isinstance(icc, bytes) and b"sRGB" in icc[:4096]:
        icc = None
    return {"orientation": orientation, "icc": icc or None, "dpi": _plausible_dpi(image.info.get("dpi"))}


def _plausible_dpi(dpi: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(v) for v in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 <= x <= 1e5 and 1 <= y <= 1e5 else None


def _to_srgb(image: PIL.Image.Image, icc: bytes) -> PIL.Image.Image:
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    try:
        result = ImageCms.profileToProfile(
            image.convert("RGB"), io.BytesIO(icc), ImageCms.createProfile("sRGB")
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a damaged or foreign profile is ignored, as viewers do
    assert result is not None
    if alpha is not None:
        result.putalpha(alpha)
    return result


def _without_alpha(values: np.ndarray) -> np.ndarray:
    """(H, W, 2) and (H, W, 4) to grey and RGB, composited over black where alpha is below full scale."""
    if values.ndim == 2 or values.shape[2] not in (2, 4):
        return values
    colour, alpha = values[..., :-1], values[..., -1:]
    full = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
    if (alpha != full).any():
        mixed = colour * (alpha / full)
        colour = (np.rint(mixed) if values.dtype.kind in "ui" else mixed).astype(values.dtype)
    return colour[..., 0] if colour.shape[2] == 1 else colour


def _orient(values: np.ndarray, orientation: Any) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (TIFF 6.0, tag 274): which side of the scene row 0 and column 0 are."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _enum_name(value: Any) -> str:
    return "CMYK" if int(value) == 5 else str(getattr(value, "name", value))


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


def _encode(
    suffix: str, values: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None, quality: int
) -> bytes:
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
