"""Values of an image -> bytes of a PNG, TIFF, JPEG or BMP file, with profile, resolution and EXIF."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_TEXT = {270: "ImageDescription", 271: "Make", 272: "Model", 305: "Software", 306: "DateTime", 315: "Artist"}
_ORIENTATION, _EXIF, _GPS, _MAKER_NOTE, _SIZE = 0x0112, 0x8769, 0x8825, 0x927C, (0xA002, 0xA003)
_MOST_EXIF = 65_000  # bytes: a JPEG segment holds 65,533


def encode(
    suffix: str,
    values: np.ndarray,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    exif: bytes | None = None,
    quality: int = 95,
) -> bytes:
    """The file `suffix` (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp") of values (H, W) or (H, W, 3).

    uint8, uint16 (PNG, TIFF) or float32 (TIFF). dpi: horizontal, vertical. exif: as a file had it; written with
    orientation 1, the result's size and no thumbnail. JPEG is written 4:4:4.
    """
    about = _own_exif(exif, values) if suffix != ".bmp" else None
    if suffix in (".tif", ".tiff"):
        return _tiff(values, icc, dpi, about)
    if values.dtype == np.uint16:
        return _with_png_chunks(bytes(imagecodecs.png_encode(values)), icc, dpi, about)
    options: dict[str, Any] = {"dpi": dpi} if dpi else {}
    if icc and suffix != ".bmp":
        options["icc_profile"] = icc
    if about:
        options["exif"] = about.tobytes()
    if suffix in (".jpg", ".jpeg"):
        options |= {"quality": quality, "subsampling": 0}
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, {".png": "PNG", ".bmp": "BMP"}.get(suffix, "JPEG"), **options)
    return buffer.getvalue()


def _own_exif(data: bytes | None, values: np.ndarray) -> PIL.Image.Exif | None:
    """The EXIF of a source as that of the result, or None where there is none or it cannot be read."""
    if not data:
        return None
    try:
        exif = PIL.Image.Exif()
        exif.load(data)
        exif[_ORIENTATION] = 1
        inner = exif.get_ifd(_EXIF)
        inner.update({tag: n for tag, n in zip(_SIZE, values.shape[1::-1], strict=True) if tag in inner})
        if len(exif.tobytes()) > _MOST_EXIF:  # nearly always the maker's own note, which moving breaks anyway
            inner.pop(_MAKER_NOTE, None)
        return exif if len(exif.tobytes()) <= _MOST_EXIF else None
    except Exception:  # damaged EXIF raises nearly anything, and is no reason to lose the result
        return None


def _tiff(values: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None, exif: PIL.Image.Exif | None) -> bytes:
    options: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
    directories = {}
    if exif:
        text = [(tag, 2, 0, str(exif[tag]).strip("\0"), True) for tag in _TEXT if exif.get(tag)]
        directories = {tag: found for tag in (_EXIF, _GPS) if (found := exif.get_ifd(tag))}
        options["extratags"] = text + [(tag, 4, 1, 0, True) for tag in directories]
        options["software"] = False
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        values,
        byteorder="<",
        photometric="rgb" if values.ndim == 3 else "minisblack",
        compression="zlib",
        metadata=None,
        iccprofile=icc,
        **options,
    )
    data = bytearray(buffer.getvalue())
    for tag, entries in directories.items():  # tifffile writes no such directory: behind the image, and pointed at
        with tifffile.TiffFile(buffer) as tiff:
            pointer = tiff.pages.first.tags[tag].valueoffset
        directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
        directory.update(entries)
        data += bytes(len(data) % 2)
        struct.pack_into("<I", data, pointer, len(data))
        data += directory.tobytes(len(data))
    return bytes(data)


def _with_png_chunks(
    png: bytes, icc: bytes | None, dpi: tuple[float, float] | None, exif: PIL.Image.Exif | None
) -> bytes:
    """imagecodecs writes pixels alone; the chunks about them go right behind the header (33 bytes)."""
    chunks = b""
    for kind, body in (
        (b"iCCP", b"ICC profile\0\0" + zlib.compress(icc) if icc else b""),
        (b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1) if dpi else b""),
        (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0") if exif else b""),
    ):
        if body:
            chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunks + png[33:]
