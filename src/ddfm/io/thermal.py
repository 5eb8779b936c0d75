"""FLIR radiometric JPEG: temperatures and a photo of one scene in one file (`pip install ddfm[thermal]`)."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io.codecs import check_scans, one_sentence
from ddfm.io.files import open_file, quoted
from ddfm.io.images import PERCENTILES, Image, Range, read, to_unit

LARGEST = 2**26  # bytes; a camera's file has one or two million
MARKER = b"\xff\xe1"  # an application segment of a JPEG
SEGMENTS = 256
BLACK = 12 / 255  # upper limit of the border of a letterboxed photo, including JPEG ringing
EXIF, DIGITAL_ZOOM = 0x8769, 0xA404  # tags


def is_radiometric(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a JPEG with FLIR segments. Raises InputError if it cannot be opened."""
    with open_file(path) as file:
        if file.read(2) != b"\xff\xd8":
            return False
        for _ in range(SEGMENTS):
            head = file.read(4)
            if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
                return False
            length = int.from_bytes(head[2:], "big")
            if length < 2:
                return False
            if head[:2] == MARKER and file.read(5) == b"FLIR\0":
                return True
            file.seek(length - 2 - (5 if head[:2] == MARKER else 0), os.SEEK_CUR)
    return False


def read_temperatures(path: str | os.PathLike[str], value_range: Range | None = None) -> Image:
    """The temperatures of a radiometric JPEG, in degrees Celsius, as an image (H, W).

    value_range: the temperatures that become 0 and 1; by default the camera's own scale, as far as the scene fills
    it, else the scene's 0.1 to 99.9 percentiles; `Image.findings` says which.

    Raises InputError: no such file, not a FLIR file or one with an unknown layout, the extra is missing.
    """
    return _temperatures(_unpacked(path), path, value_range)


def read_sources(path: str | os.PathLike[str], value_range: Range | None = None) -> tuple[list[Image], np.ndarray]:
    """The two sensors of a radiometric JPEG, temperatures (see `read_temperatures`) and the photo without a black
    border, and the matrix (3, 3) from pixels of the photo to pixels of the temperatures.

    The camera stores the ratio of the photo's field of view to that of the displayed temperatures (Real2IR)
    and the position of their centre (OffsetX, OffsetY, in pixels of the photo). The displayed temperatures are the
    centre of the stored ones, by the digital zoom z in the EXIF: x_photo + 0.5 = W / 2 + OffsetX + s (x + 0.5 - w / 2)
    with s = z W / w / Real2IR. (The role of z is not documented but was found empirically: on a T640 at zoom 1.6
    registration gives a ratio of 2.17, and Real2IR / z is 2.19.)

    Raises InputError: as `read_temperatures`, if there is no photo in the file, and if no temperature is in the
    range.
    """
    name, thermogram = quoted(path), _unpacked(path)
    with one_sentence(name):
        photo, place = thermogram.optical, thermogram.pip_info
    if photo is None or place is None:
        raise InputError(f"{name} holds temperatures but no photo; give a photo as a second source.")
    geometry = np.array([place.real_to_ir, place.offset_x, place.offset_y], np.float64)
    is_photo = photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype == np.uint8
    if not (is_photo and np.isfinite(geometry).all() and 0.1 <= place.real_to_ir <= 10):
        raise InputError(f"{name} holds FLIR data that cannot be right; save or copy it again.")
    heat, celsius = _temperatures(thermogram, path, value_range), thermogram.celsius
    if value_range is not None and (heat.low >= celsius.max() or heat.high <= celsius.min()):
        raise InputError(
            f"{name} holds temperatures from {celsius.min():.1f} to {celsius.max():.1f} °C, none of them between "
            f"{heat.low:g} and {heat.high:g}; give another range."
        )
    exif = read(path).exif
    zoom = _digital_zoom(exif)
    (height, width), (h, w) = photo.shape[:2], heat.pixels.shape
    sx, sy = zoom * width / w / place.real_to_ir, zoom * height / h / place.real_to_ir
    x = (0.5 - width / 2 - place.offset_x) / sx + w / 2 - 0.5
    y = (0.5 - height / 2 - place.offset_y) / sy + h / 2 - 0.5
    pixels = np.divide(photo, 255, dtype=np.float32)
    top, bottom, left, right = _letterbox(pixels)
    said = (f"The photo in {name} has a black border, which was cropped.",)
    cut = (bottom - top, right - left) != (height, width)
    pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
    visible = Image(pixels, 8, Path(path), exif=exif, findings=said if cut else ())
    return [heat, visible], np.array([[1 / sx, 0, x + left / sx], [0, 1 / sy, y + top / sy], [0, 0, 1]])


def _unpacked(path: str | os.PathLike[str]) -> Any:
    """flyr's thermogram. Raises InputError."""
    name = quoted(path)
    try:
        import flyr
    except ImportError as error:
        raise InputError("Radiometric JPEG files need the package flyr: pip install 'ddfm[thermal]'.") from error
    with open_file(path, LARGEST) as file, one_sentence(name):
        check_scans(file.read(), name)
        file.seek(0)
        try:
            thermogram: Any = flyr.unpack(file)
            celsius = thermogram.celsius
            thermogram.optical, thermogram.pip_info  # noqa: B018  (decoded here, so that failures are reported here)
        except Exception as error:  # flyr raises almost anything: KeyError for DJI's XT2, struct.error for cut files
            raise InputError(
                f"{name} holds damaged FLIR data or has a layout that is not known; give it and a photo as two files."
            ) from error
    if celsius.ndim != 2 or not celsius.size or not np.isfinite(celsius).all():
        raise InputError(f"{name} holds FLIR data that cannot be right; save or copy it again.")
    return thermogram


def _temperatures(thermogram: Any, path: str | os.PathLike[str], value_range: Range | None) -> Image:
    name, celsius = quoted(path), thermogram.celsius
    pixels, coldest, hottest = to_unit(celsius, name, normalise=False, own_units=True)
    image = Image(pixels, 32, Path(path), coldest, hottest, unit="°C")
    if value_range is not None:
        return image.windowed(*value_range)
    low, high = (float(value) for value in np.percentile(celsius, PERCENTILES))
    what = f"its {PERCENTILES[0]} to {PERCENTILES[1]} percentiles"
    own = _camera_scale(thermogram) or (low, high)
    if low < own[0] < high or low < own[1] < high:
        what, low, high = "the camera's own scale", max(low, own[0]), min(high, own[1])
    if low < high:
        image = image.windowed(low, high)
    said = (
        f"{name} holds temperatures from {coldest:.1f} to {celsius.max():.1f} °C; black to white is {low:.1f} to "
        f"{high:.1f} °C, {what}."
    )
    return replace(image, findings=(said,))


def _camera_scale(thermogram: Any) -> Range | None:
    """The temperature range of the colour scale, in degrees Celsius, set by the operator or by the camera."""
    try:
        low, high = (float(value) for value in thermogram.embedded_range("celsius"))
    except Exception:  # flyr fails in various ways if a file has none
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _digital_zoom(exif: bytes | None) -> float:
    """The camera's digital zoom; 1 if it is missing or implausible."""
    tags = PIL.Image.Exif()
    try:
        with one_sentence("EXIF"):
            tags.load(exif or b"")
            zoom = float(tags.get_ifd(EXIF).get(DIGITAL_ZOOM, 1))
    except InputError:
        return 1.0
    return zoom if 1 < zoom <= 16 else 1.0


def _letterbox(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the area inside a photo's black border, without two pixels of blur next to it.

    Such a border ends abruptly, unlike a black night sky with scattered lights.
    """
    bright, found = luma(pixels) > BLACK, []
    for axis in (1, 0):
        share = bright.mean(axis=axis)
        filled = np.flatnonzero(share > 0.05)
        low, high = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(share))
        low, high = (low + 2 if low and share[low] > 0.5 else 0), (high - 2 if share[high - 1] > 0.5 else len(share))
        high = high if high < len(share) - 2 else len(share)
        if high - low < len(share) / 2:  # a lamp in the dark, not the edge of a photo
            low, high = 0, len(share)
        found += [low, high]
    return (found[0], found[1], found[2], found[3])
