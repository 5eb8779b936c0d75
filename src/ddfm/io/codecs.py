"""Bytes of an image file -> its pixel values: what `images.read` needs to know about PNG, TIFF and their
kin.

Three decoders, each where it is the one that gets it right: Pillow for 8 bits (palettes, EXIF, profiles,
checks for damage), OpenCV for 16-bit PNG (Pillow makes 8 bits of a coloured one) and for LZW and JPEG inside
TIFF, tifffile for all other TIFF. Pillow's own TIFF reader is left alone: libtiff inside it complains to the
terminal.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import tifffile
from PIL import BmpImagePlugin, GifImagePlugin, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ddfm.errors import InputError

MAX_PIXELS = 2**28  # 16384 x 16384; a float32 RGB image of that size is 3 GiB
# Flat images pack well (deflate: 1032 bytes into one), but a larger claim than this is a bomb or a stump.
MAX_PIXELS_A_BYTE = 10_000

# Opened by class, not by PIL.Image.open: no guessing among forty formats, and the size limit is ours instead
# of a global of Pillow's.
_OPENERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN_TIFF = (1, 8, 32946, 32773)  # none, deflate (two numbers), PackBits: what tifffile reads by itself
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr", "F", "I")

_lock = threading.Lock()
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else logging's last resort prints for it


class Decoded(NamedTuple):
    """Values as the file has them, (H, W) or (H, W, 3), upright and without alpha, and what describes them."""

    values: np.ndarray
    icc: bytes | None
    dpi: tuple[float, float] | None


def decode(data: bytes, name: str) -> Decoded:
    """Decode a PNG, JPEG, BMP, TIFF, GIF or WebP file; `name` is for the sentence of the InputError."""
    with one_sentence(name):
        return _decode_tiff(data, name) if data.startswith(_TIFF_MAGIC) else _decode(data, name)


def decode_pil(image: PIL.Image.Image, name: str) -> Decoded:
    """The same for an image that is open in Pillow."""
    with one_sentence(name):
        return _from_pil(image, name)


@contextlib.contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Turn whatever a decoder does with a broken file into one sentence, and keep it quiet meanwhile."""
    with (
        _lock,
        warnings.catch_warnings(),
    ):  # the lock: warning filters and log level belong to the whole process
        warnings.simplefilter("ignore")
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{name} does not fit into memory; use a smaller image.") from error
        except Exception as error:  # broken bytes make decoders raise OSError, SyntaxError, struct.error, KeyError
            if "imagecodecs" in str(error):
                raise InputError(f"{name} is compressed in a rare way; install imagecodecs.") from error
            raise _damaged(name) from error
        finally:
            cv2.utils.logging.setLogLevel(level)


def _damaged(name: str) -> InputError:
    return InputError(f"{name} is truncated or damaged; save or copy it again.")


def _check_size(size: tuple[int, int], length: int, name: str) -> None:
    """Before anything is allocated: the header's width and height against the limits and the file's length."""
    width, height = size
    if width < 1 or height < 1:
        raise _damaged(name)
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} claims {width}x{height} pixels, more than 2^28; cut it into smaller images.")
    if width * height > MAX_PIXELS_A_BYTE * length:
        raise InputError(f"{name} claims {width}x{height} pixels in {length} bytes; save or copy it again.")


def _decode(data: bytes, name: str) -> Decoded:
    opener = next((opener for magic, opener in _OPENERS if data.startswith(magic)), None)
    if opener is None:
        raise InputError(f"{name} is not an image that can be read; use PNG, JPEG, BMP or TIFF.")
    image = opener(io.BytesIO(data))
    _check_size(image.size, len(data), name)
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is animated; save one of its frames as an image.")
    if opener is not PngImagePlugin.PngImageFile or data[24] != 16:
        return _from_pil(image, name)
    values = _from_opencv(_bare_png(data), image.size, name)
    return _finished(values, _orientation(image), image.info.get("icc_profile"), image.info.get("dpi"))


def _bare_png(data: bytes) -> bytes:
    """The chunks that hold pixels, each checksum compared: libpng prints its opinion of all other chunks."""
    bare, at, kind = [data[:8]], 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if kind in (b"IHDR", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(data[at + 4 : end - 4]) != checksum:
                raise ValueError("PNG checksum")
            bare.append(data[at:end])
        at = end
    return b"".join(bare)


def _from_pil(image: PIL.Image.Image, name: str) -> Decoded:
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise InputError(f"{name} is a {image.mode} image; convert it to RGB or grey first.")
    image.load()
    about = _orientation(image), image.info.get("icc_profile"), image.info.get("dpi")
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        grey = image.mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            image = image.convert("LA" if grey and image.mode != "1" else "RGBA")
        else:
            image = image.convert("L" if grey else "RGB")
    return _finished(np.asarray(image), *about)


def _from_opencv(data: bytes, size: tuple[int, int], name: str) -> np.ndarray:
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.shape[1::-1] != size:
        raise _damaged(name)
    return values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]


def _decode_tiff(data: bytes, name: str) -> Decoded:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        if any(not (other.is_reduced or other.is_mask) for other in _next_pages(tiff)):  # thumbnails are welcome
            raise InputError(f"{name} has several pages; save one of them as an image.")
        size = page.imagewidth, page.imagelength
        _check_size(size, len(data), name)
        if page.axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > 4:
            raise InputError(f"{name} has {page.samplesperpixel} channels ({page.axes}); save it as grey or RGB.")
        if page.photometric not in (0, 1, 2, 3, 6):  # white is 0, black is 0, RGB, palette, YCbCr
            kind = "CMYK" if page.photometric == 5 else getattr(page.photometric, "name", page.photometric)
            raise InputError(f"{name} is a {kind} image; convert it to RGB or grey first.")
        if page.samplesperpixel in (2, 4) and 0 in page.extrasamples:
            raise InputError(f"{name} has an extra channel of unknown meaning; save it as grey or RGB.")
        # The decoders would fill what is missing with zeros and not say so.
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > len(data) or min(page.databytecounts) <= 0:
            raise _damaged(name)

        plain = page.compression in _PLAIN_TIFF and page.photometric < 3
        if plain and page.dtype is not None and page.dtype.itemsize * 8 == page.bitspersample:
            values = page.asarray()
            if page.axes == "SYX":
                values = np.moveaxis(values, 0, -1)
            if page.photometric == 0:
                values = np.iinfo(values.dtype).max - values
            if 1 in page.extrasamples:  # colour that is already multiplied by alpha is over black as it stands
                values = values[..., :-1]
        else:
            values = _from_opencv(data, size, name)
        if values.dtype.kind not in "uif":
            raise InputError(f"{name} holds {values.dtype} values; save it with 8 or 16 bits or as float.")
        tags = page.tags
        dpi = page.get_resolution(unit=2) if 282 in tags and tags.valueof(296, default=2) in (2, 3) else None
        return _finished(values, tags.valueof(274, default=1), tags.valueof(34675), dpi)


def _next_pages(tiff: tifffile.TiffFile) -> Iterator[Any]:
    """The second page and on, at most 16: in a damaged file the chain of pages may run in a circle."""
    for index in range(1, 17):
        try:
            yield tiff.pages[index]
        except IndexError:
            return


def _finished(values: np.ndarray, orientation: Any, icc: Any, dpi: Any) -> Decoded:
    """What all formats have in common: alpha, grey stored as colour, colour profile, orientation, resolution."""
    values = _without_alpha(values)
    if values.ndim == 3 and all(np.array_equal(values[..., 0], values[..., c]) for c in (1, 2)):
        values = values[..., 0]
    if not isinstance(icc, bytes) or b"sRGB" in icc[:4096]:
        icc = None
    if icc and values.ndim == 3 and values.dtype == np.uint8:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):  # viewers ignore a broken profile too
            values, icc = _to_srgb(values, icc), None
    try:
        x, y = (float(v) for v in dpi)
        dpi = (x, y) if 1 <= x <= 1e5 and 1 <= y <= 1e5 else None
    except (TypeError, ValueError, ZeroDivisionError):
        dpi = None
    return Decoded(_upright(values, orientation), icc, dpi)


def _without_alpha(values: np.ndarray) -> np.ndarray:
    """(H, W, 2) and (H, W, 4) to grey and RGB, composited over black where alpha is below full scale."""
    if values.ndim == 2 or values.shape[2] == 3:
        return values
    colour, alpha = (values[..., :-1], values[..., -1:]) if values.shape[2] > 1 else (values, None)
    integer = values.dtype.kind in "ui"
    full = np.iinfo(values.dtype).max if integer else 1.0
    if alpha is not None and (alpha != full).any():
        mixed = colour * (alpha / full)
        colour = (np.rint(mixed) if integer else mixed).astype(values.dtype)
    return colour[..., 0] if colour.shape[2] == 1 else colour


def _to_srgb(values: np.ndarray, icc: bytes) -> np.ndarray:
    image = PIL.Image.fromarray(values)
    converted = ImageCms.profileToProfile(image, io.BytesIO(icc), ImageCms.createProfile("sRGB"))
    return np.asarray(converted)


def _orientation(image: PIL.Image.Image) -> Any:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF is no reason to refuse an image, and raises nearly anything
        return 1


def _upright(values: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo EXIF orientation 1 to 8 (TIFF 6.0, tag 274): which sides of the scene row 0 and column 0 are."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
