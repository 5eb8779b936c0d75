"""Decodes PNG, JPEG, BMP, TIFF, GIF and WebP files, for `images`.

Three libraries, each for what it handles correctly: Pillow for 8 bits (palettes, EXIF, profiles, damage), tifffile for
TIFF, imagecodecs for 16-bit PNG (Pillow reduces colour to 8 bits) and inside TIFF. Width, height, tags and strips are
checked against limits before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ddfm.errors import InputError
from ddfm.io.profiles import in_srgb

MAX_PIXELS = 2**28  # 16384 x 16384; a float32 RGB image of that size is 3 GiB
MAX_PACKED = 2**28  # bytes of a file that is read in full before it is decoded, which is all but TIFF
MAX_VALUES = 2**22  # of a TIFF tag, such as the offsets of its strips
# Flat images compress well (deflate: at most 1032 to 1), but beyond this ratio a file is truncated or malicious.
MAX_PIXELS_A_BYTE = 10_000
MAX_SCANS = 100  # of a JPEG: progressive ones have about ten, and each, a few bytes long, passes over all pixels

# Opened by class, not by PIL.Image.open: no guessing among forty formats, and our size limit instead of Pillow's global
# one.
OPENERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
)
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr", "F", "I")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# none, three fax codecs, LZW, JPEG, deflate (two codes), PackBits, LZMA, Zstandard: those that decode to a known size
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32946, 32773, 34925, 50000)
_JPEG_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_JPEG_SIZE = re.compile(rb"\xff[\xc0-\xc3]..[\x08\x0c](..)(..)", re.DOTALL)
# Description, make, model, software, date, artist and copyright of a TIFF, and its EXIF and GPS directories.
_TEXT_TAGS, _IFD_TAGS = (270, 271, 272, 305, 306, 315, 33432), (0x8769, 0x8825)
_ORIENTATION = 0x0112
_NO_DATA, _LONGEST_NUMBER = 42113, 64  # GDAL's nodata tag in a GeoTIFF: a number as text

_lock = threading.Lock()
_CHATTY = [logging.getLogger(name) for name in ("tifffile", "pydicom", "nibabel.global", "PIL")]


class Decoded(NamedTuple):
    """The values in a file, (H, W) or (H, W, 3), upright and without alpha, with their metadata.

    full: the value of white, such as 4095 for 12 bits, or None for floats and integers that have no such value.
    translucent: whether the file was, and was composited over black.
    no_data: the value of nodata pixels, if a TIFF names one.
    """

    values: np.ndarray
    full: float | None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: bytes | None = None
    translucent: bool = False
    no_data: float | None = None


def decode(file: BinaryIO, name: str) -> Decoded:
    """Decode an open PNG, JPEG, BMP, TIFF, GIF or WebP file; `name` is for errors. Raises InputError."""
    with one_sentence(name):
        size, magic = file.seek(0, os.SEEK_END), (file.seek(0), file.read(8))[1]
        file.seek(0)
        if magic.startswith(TIFF_MAGIC):
            return _decode_tiff(file, size, name)
        if size > MAX_PACKED:
            raise InputError(f"{name} is larger than {MAX_PACKED >> 20} MiB; save it as TIFF or as smaller images.")
        return _decode(file.read(), name)


def decode_pil(image: PIL.Image.Image, name: str) -> Decoded:
    """The same for an image opened by Pillow."""
    with one_sentence(name):
        return _from_pil(image, name)


@contextlib.contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Turn any error that a decoder raises for a broken file into one sentence, and suppress its messages."""
    with _lock, warnings.catch_warnings():  # the lock: warning filters and loggers are global to the process
        warnings.simplefilter("ignore")
        loud = [logger for logger in _CHATTY if not logger.disabled]
        for logger in loud:
            logger.disabled = True
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{name} does not fit into memory; use a smaller image.") from error
        except NotImplementedError as error:
            raise InputError(f"{name} is stored in an unusual way; save it as PNG or as TIFF with LZW.") from error
        except Exception as error:  # broken bytes make decoders raise OSError, SyntaxError, struct.error, KeyError
            raise _damaged(name) from error
        finally:
            for logger in loud:
                logger.disabled = False


def _damaged(name: str) -> InputError:
    return InputError(f"{name} is truncated or damaged; save or copy it again.")


def _check_size(size: tuple[int, int], length: int, name: str) -> None:
    """Check the header's width and height against the limits and the file's length, before anything is allocated."""
    width, height = size
    if width < 1 or height < 1:
        raise _damaged(name)
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} claims {width}x{height} pixels, more than 2^28; cut it into smaller images.")
    if width * height > MAX_PIXELS_A_BYTE * length:
        raise InputError(f"{name} claims {width}x{height} pixels in {length} bytes; save or copy it again.")


def check_scans(data: bytes, name: str, images: int = 1) -> None:
    """Raise InputError where the bytes of so many JPEG images hold more scans than anybody writes."""
    if len(_JPEG_SCAN.findall(data)) > MAX_SCANS * images:
        raise InputError(f"{name} is a JPEG of more than {MAX_SCANS} scans; save it again.")


# ---- all but TIFF


def _decode(data: bytes, name: str) -> Decoded:
    opener = next((opener for magic, opener in OPENERS if data.startswith(magic)), None)
    if opener is None:
        raise InputError(f"{name} is not an image that can be read; use PNG, JPEG, BMP, TIFF, DICOM or NIfTI.")
    image = opener(io.BytesIO(data))
    _check_size(image.size, len(data), name)
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is animated; save one of its frames as an image.")
    if opener is JpegImagePlugin.JpegImageFile:
        check_scans(data, name)
    if opener is PngImagePlugin.PngImageFile and data[24] == 16:
        return _finished(imagecodecs.png_decode(data), 65535, **_about(image))
    return _from_pil(image, name)


def _from_pil(image: PIL.Image.Image, name: str) -> Decoded:
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise InputError(f"{name} is a {image.mode} image; convert it to RGB or grey first.")
    image.load()
    about = _about(image)
    full: float | None = 255
    if image.mode.startswith("I;16"):
        full = 65535
    elif image.mode in ("F", "I"):
        full = None
    else:
        grey = image.mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            image = image.convert("LA" if grey and image.mode != "1" else "RGBA")
        else:
            image = image.convert("L" if grey else "RGB")
    return _finished(np.asarray(image), full, **about)


def _about(image: PIL.Image.Image) -> dict[str, Any]:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF can raise almost anything, and is no reason to refuse an image
        orientation = 1
    info = image.info
    return {
        "orientation": orientation,
        "icc": info.get("icc_profile"),
        "dpi": info.get("dpi"),
        "exif": info.get("exif"),
    }


# ---- TIFF


def _decode_tiff(file: BinaryIO, size: int, name: str) -> Decoded:
    _check_tags(file, name)
    with tifffile.TiffFile(file, _multifile=False) as tiff:
        page = tiff.pages.first
        stacked = (page.is_shaped or page.is_imagej) and _stack(page) != 1
        if stacked or any(not (other.is_reduced or other.is_mask) for other in _next_pages(tiff)):  # except thumbnails
            raise InputError(f"{name} has several pages; save one of them as an image.")
        _check_page(page, size, name)
        tags = page.tags
        values, full = _tiff_values(page, file, name)
        dpi = page.get_resolution(unit=2) if 282 in tags and tags.valueof(296, default=2) in (2, 3) else None
        icc = tags.valueof(34675) if 34675 in tags and tags[34675].count <= MAX_VALUES else None
        exif = _tiff_exif(file) if size <= MAX_PACKED else None
        decoded = _finished(values, full, tags.valueof(274, default=1), icc, dpi, exif)
        said = _NO_DATA in tags and tags[_NO_DATA].count <= _LONGEST_NUMBER
        return decoded._replace(no_data=_number(tags.valueof(_NO_DATA)) if said else None)


def _check_tags(file: BinaryIO, name: str) -> None:
    """Before tifffile loads them, check that no tag claims millions of values, as a sparse file can."""
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    entry, number = (20, order + "Q") if big else (12, order + "I")
    at, width = struct.unpack_from(number, head, 8 if big else 4)[0], 8 if big else 4
    for _ in range(17):  # pages, of which more than one is refused; the chain may be circular
        if not at:
            break
        file.seek(at)
        n = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
        tags = file.read(entry * min(n, 4096))
        for k in range(0, len(tags) - entry + 1, entry):
            code, _ = struct.unpack_from(order + "HH", tags, k)
            if code in tifffile.TIFF.TAG_LOAD and struct.unpack_from(number, tags, k + 4)[0] > MAX_VALUES:
                raise _damaged(name)
        at = struct.unpack(number, file.read(width).rjust(width, b"\0"))[0]
    file.seek(0)


def _stack(page: Any) -> int:
    """The number of images in a series that tifffile or ImageJ wrote with a single page."""
    if page.is_imagej:
        return int(dict(line.partition("=")[::2] for line in page.description.splitlines()).get("images", 1))
    shape = json.loads(page.description)["shape"]
    return int(np.prod(shape)) // int(np.prod(page.shape))


def _next_pages(tiff: tifffile.TiffFile) -> Iterator[Any]:
    """The pages after the first, at most 16: in a damaged file the chain of pages may be circular."""
    for index in range(1, 17):
        try:
            yield tiff.pages[index]
        except IndexError:
            return


def _check_page(page: Any, size: int, name: str) -> None:
    _check_size((page.imagewidth, page.imagelength), size, name)
    if page.axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > 4:
        raise InputError(f"{name} has {page.samplesperpixel} channels ({page.axes}); save it as grey or RGB.")
    if page.photometric not in (0, 1, 2, 3, 6):  # white is 0, black is 0, RGB, palette, YCbCr
        kind = "CMYK" if page.photometric == 5 else getattr(page.photometric, "name", page.photometric)
        raise InputError(f"{name} is a {kind} image; convert it to RGB or grey first.")
    if page.samplesperpixel in (2, 4) and 0 in page.extrasamples:
        raise InputError(f"{name} has an extra channel of unknown meaning; save it as grey or RGB.")
    if page.compression not in _TIFF_COMPRESSIONS or page.dtype is None or isinstance(page.bitspersample, tuple):
        raise NotImplementedError
    if page.is_tiled and page.tilewidth * page.tilelength > MAX_PIXELS:
        raise _damaged(name)
    # The decoder would silently fill missing data with zeros.
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if not ends or max(ends) > size or min(page.databytecounts) <= 0 or len(ends) < np.prod(page.chunked):
        raise _damaged(name)


def _tiff_values(page: Any, file: BinaryIO, name: str) -> tuple[np.ndarray, float | None]:
    """The values of a page, (H, W[, channels]), with inversion, palette and YCbCr resolved, and the value of white."""
    if page.compression == 7:  # the decoder trusts the size in a JPEG strip's header
        room = 4 * max(2**16, page.imagewidth * page.imagelength)
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            check_scans(strip := file.read(count), name)
            for height, width in _JPEG_SIZE.findall(strip):
                if int.from_bytes(height, "big") * int.from_bytes(width, "big") > room:
                    raise _damaged(name)
    values = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    kind = values.dtype.kind
    if kind not in "uif":
        raise InputError(f"{name} holds {values.dtype} values; save it with 8 or 16 bits or as float.")
    full = 2.0**page.bitspersample - 1 if kind == "u" and page.bitspersample <= 16 else None
    if page.photometric == 0:
        values = _inverted(values, full)
    elif page.photometric == 3:
        table = np.asarray(page.colormap).T  # (n, 3), 16 bits; 8 from old writers
        values, full = (table >> 8 if table.max() > 255 else table).astype(np.uint8)[values], 255
    elif page.photometric == 6 and page.compression != 7:
        values = np.asarray(PIL.Image.frombytes("YCbCr", values.shape[1::-1], values.tobytes()).convert("RGB"))
    if 1 in page.extrasamples:  # premultiplied colour is already composited over black
        values = values[..., :-1]
    return values, full


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _inverted(values: np.ndarray, full: float | None) -> np.ndarray:
    """Invert MinIsWhite values: within the data type, within [0, 1], or within the range of other floats."""
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        return (1 if low >= 0 and high <= 1 else low + high) - values
    return ~values if full is None else values.dtype.type(full) - values


def _tiff_exif(file: BinaryIO) -> bytes | None:
    """The EXIF data among a TIFF's tags: camera, date, the EXIF and GPS directories; not how its pixels are stored."""
    try:
        file.seek(0)
        stored, exif = PIL.Image.Exif(), PIL.Image.Exif()
        stored.load_from_fp(file)
        exif.update({tag: stored[tag] for tag in _TEXT_TAGS if tag in stored})
        exif.update({tag: stored.get_ifd(tag) for tag in _IFD_TAGS if tag in stored})
        return exif.tobytes() if len(exif) else None
    except Exception:  # as in other files: damaged EXIF is no reason to refuse an image
        return None


# ---- common to all formats


def _finished(
    values: np.ndarray, full: float | None, orientation: Any = 1, icc: Any = None, dpi: Any = None, exif: Any = None
) -> Decoded:
    """Resolve alpha, grey stored as colour, colour profile, orientation and resolution."""
    values, translucent = _without_alpha(values, full)
    if values.ndim == 3 and all(np.array_equal(values[..., 0], values[..., c]) for c in (1, 2)):
        values = values[..., 0]
    values, icc = in_srgb(values, icc) if isinstance(icc, bytes) else (values, None)
    try:
        x, y = (float(v) for v in dpi)
        dpi = (x, y) if 1 <= x <= 1e5 and 1 <= y <= 1e5 else None
    except (TypeError, ValueError, ZeroDivisionError):
        dpi = None
    exif = exif if isinstance(exif, bytes) else None
    return Decoded(_upright(values, orientation), full, icc, dpi, exif, translucent)


def _without_alpha(values: np.ndarray, full: float | None) -> tuple[np.ndarray, bool]:
    """Grey or RGB without alpha, composited over black if alpha is below full scale anywhere; and whether it was."""
    if values.ndim == 2 or values.shape[2] == 3:
        return values, False
    colour, alpha = (values[..., :-1], values[..., -1:]) if values.shape[2] > 1 else (values, None)
    integer = values.dtype.kind in "ui"
    opaque = full or (np.iinfo(values.dtype).max if integer else 1.0)
    translucent = False
    if alpha is not None and (translucent := bool((alpha != opaque).any())):
        mixed = colour * (alpha / opaque)
        colour = (np.rint(mixed) if integer else mixed).astype(values.dtype)
    return (colour[..., 0] if colour.shape[2] == 1 else colour), translucent


def _upright(values: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo EXIF orientation 1 to 8 (TIFF 6.0, tag 274), which says which sides of the scene row 0 and column 0 are."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
