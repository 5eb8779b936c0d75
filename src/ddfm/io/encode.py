"""Encodes PNG, TIFF, JPEG and BMP files, with profile, resolution and EXIF."""

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
) -> bytes:
    """The bytes of an image file of format `suffix` (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp").

    values: (H, W) or (H, W, 3), uint8, uint16 (PNG, TIFF) or float32 (TIFF). dpi: horizontal, vertical. exif: a
    source's; written with orientation 1, the result's size and no thumbnail. JPEG is written 4:4:4, quality 95.
    """
    about = _own_exif(exif, values) if suffix != ".bmp" else None
    if suffix in (".tif", ".tiff"):
        return _tiff(values, icc, dpi, about)
    if values.dtype == np.uint16:
        room = values.nbytes + values.nbytes // 100 + 4096  # its default buffer is too small for tiny images
        return _with_png_chunks(bytes(imagecodecs.png_encode(values, out=room)), icc, dpi, about)
    options: dict[str, Any] = {"dpi": dpi} if dpi else {}
    if icc and suffix != ".bmp":
        options["icc_profile"] = icc
    if about:
        options["exif"] = about.tobytes()
    if suffix in (".jpg", ".jpeg"):
        options |= {"quality": 95, "subsampling": 0}
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, {".png": "PNG", ".bmp": "BMP"}.get(suffix, "JPEG"), **options)
    return buffer.getvalue()


def _own_exif(data: bytes | None, values: np.ndarray) -> PIL.Image.Exif | None:
    """A source's EXIF adapted to the result, or None if there is none or it cannot be read."""
    if not data:
        return None
    try:
        exif = PIL.Image.Exif()
        exif.load(data)
        exif[_ORIENTATION] = 1
        inner = exif.get_ifd(_EXIF)
        inner.update({tag: n for tag, n in zip(_SIZE, values.shape[1::-1], strict=True) if tag in inner})
        if len(exif.tobytes()) > _MOST_EXIF:  # almost always the maker note, which moving breaks anyway
            inner.pop(_MAKER_NOTE, None)
        return exif if len(exif.tobytes()) <= _MOST_EXIF else None
    except Exception:  # damaged EXIF can raise almost anything, and is no reason to lose the result
        return None


def _tiff(values: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None, exif: PIL.Image.Exif | None) -> bytes:
    options: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
    directories = {}
    if exif:
        text = [(tag, 2, 0, str(exif[tag]).strip("\0"), True) for tag in _TEXT if exif.get(tag)]
        directories = {tag: found for tag in (_EXIF, _GPS) if (found := exif.get_ifd(tag))}
        options["extratags"] = text
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
    return _with_directories(buffer.getvalue(), directories) if directories else buffer.getvalue()


def _with_directories(tiff: bytes, directories: dict[int, Any]) -> bytes:
    """A little-endian TIFF with additional directories (EXIF, GPS), which tifffile cannot write: they are appended to
    the image, followed by a copy of its main directory that points to them."""
    data = bytearray(tiff)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [bytes(data[at + 2 + 12 * k :][:12]) for k in range(count)]
    for tag, values in directories.items():
        directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
        directory.update(values)
        data += bytes(len(data) % 2)
        entries.append(struct.pack("<HHII", tag, 4, 1, len(data)))
        data += directory.tobytes(len(data))
    data += bytes(len(data) % 2)
    struct.pack_into("<I", data, 4, len(data))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    return bytes(data) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def _with_png_chunks(
    png: bytes, icc: bytes | None, dpi: tuple[float, float] | None, exif: PIL.Image.Exif | None
) -> bytes:
    """The PNG with metadata chunks inserted after the header (33 bytes), since imagecodecs writes only pixels."""
    chunks = b""
    for kind, body in (
        (b"iCCP", b"ICC profile\0\0" + zlib.compress(icc) if icc else b""),
        (b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1) if dpi else b""),
        (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0") if exif else b""),
    ):
        if body:
            chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunks + png[33:]
