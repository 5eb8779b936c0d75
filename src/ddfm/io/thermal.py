"""FLIR's radiometric JPEG: temperatures and a photo of one scene in one file (`pip install ddfm[thermal]`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ddfm.errors import InputError
from ddfm.io.codecs import one_sentence
from ddfm.io.files import open_file, quoted
from ddfm.io.images import PERCENTILES, Image, Range, read, to_unit

LARGEST = 2**26  # bytes; a camera's file has one or two million
MARKER = b"\xff\xe1"  # an application's segment of a JPEG
SEGMENTS = 256


def is_radiometric(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a JPEG with FLIR's own segments. Raises InputError where it cannot be opened."""
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


def read_sources(path: str | os.PathLike[str], value_range: Range | None = None) -> tuple[list[Image], np.ndarray]:
    """The two sensors of a radiometric JPEG: temperatures in degrees Celsius and the photo, and where one lies in the
    other: the matrix (3, 3) from pixels of the photo to pixels of the temperatures.

    The camera stores how much larger the photo's field of view is (Real2IR) and where its centre is (OffsetX, OffsetY,
    in pixels of the photo): x_photo + 0.5 = W / 2 + OffsetX + s (x + 0.5 - w / 2) with s = W / w / Real2IR.

    value_range: the temperatures that become 0 and 1; without it their 0.1 to 99.9 percentiles, which
    `Image.findings` says.

    Raises InputError: no such file, not FLIR's or of a layout that is not known, no photo in it, the extra is missing.
    """
    name = quoted(path)
    try:
        import flyr
    except ImportError as error:
        raise InputError("Radiometric JPEG files need the package flyr: pip install 'ddfm[thermal]'.") from error
    with open_file(path, LARGEST) as file, one_sentence(name):
        try:
            thermogram: Any = flyr.unpack(file)
            celsius, photo, place = thermogram.celsius, thermogram.optical, thermogram.pip_info
        except Exception as error:  # flyr raises nearly anything: KeyError on DJI's XT2, struct.error on cut files
            raise InputError(
                f"{name} holds FLIR data of a layout that is not known, or damaged; give its thermal image and a photo "
                "as two files."
            ) from error
    if photo is None or place is None:
        raise InputError(f"{name} holds temperatures but no photo; give a photo as a second source.")
    _check(celsius, photo, place, name)
    pixels, low, high = to_unit(celsius, name, normalise=True)
    said = (
        f"{name} holds temperatures from {celsius.min():.1f} to {celsius.max():.1f} °C, of which the {PERCENTILES[0]} "
        f"to {PERCENTILES[1]} percentiles, {low:.1f} to {high:.1f} °C, became black and white."
    )
    thermal = Image(pixels, 32, None, low, high, findings=() if value_range else (said,), unit="°C")
    if value_range:
        thermal = thermal.windowed(*value_range)
    visible = Image(np.divide(photo, 255, dtype=np.float32), 8, Path(path), exif=read(path).exif)
    (height, width), (h, w) = photo.shape[:2], celsius.shape
    sx, sy = width / w / place.real_to_ir, height / h / place.real_to_ir
    x = (0.5 - width / 2 - place.offset_x) / sx + w / 2 - 0.5
    y = (0.5 - height / 2 - place.offset_y) / sy + h / 2 - 0.5
    return [thermal, visible], np.array([[1 / sx, 0, x], [0, 1 / sy, y], [0, 0, 1]])


def _check(celsius: np.ndarray, photo: np.ndarray, place: Any, name: str) -> None:
    """What the file says of itself, before it is believed."""
    shapes = celsius.ndim == 2 and photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype == np.uint8
    geometry = np.array([place.real_to_ir, place.offset_x, place.offset_y], np.float64)
    if not (shapes and np.isfinite(celsius).all() and np.isfinite(geometry).all() and 0.1 <= place.real_to_ir <= 10):
        raise InputError(f"{name} holds FLIR data that cannot be right; save or copy it again.")
