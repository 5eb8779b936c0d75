"""Reads the file of one sensor, in any format, for Python, command line, batch and server alike."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ddfm.errors import InputError
from ddfm.io import images, thermal
from ddfm.io.images import Image, Range

if TYPE_CHECKING:
    from ddfm.io.volume import Window


def read_source(
    path: str | os.PathLike[str],
    normalise: bool = False,
    value_range: Range | None = None,
    window: Window | None = None,
) -> Image:
    """The image in a file of one sensor; for a FLIR radiometric JPEG the temperatures, not the rendered image.

    Arguments and errors as in `images.read_any`; the range is not applied to photos or files without values in it.
    """
    said: tuple[str, ...] = ()
    image = _read(path, normalise, value_range, window)
    is_photo = image.bits == 8 and image.pixels.ndim == 3
    if value_range and (is_photo or image.pixels.min() == image.pixels.max()):
        low, high = value_range
        why = "is a photo" if is_photo else "has no values in it"
        said += (f"The range of {low:g} to {high:g} was not applied to {images.quoted(path)}, which {why}.",)
        image = _read(path, normalise, None, window)
    if image.pixels.min() == image.pixels.max():
        said += (f"{images.quoted(path)} has the same value everywhere, so it shows nothing.",)
    return replace(image, findings=(*image.findings, *said))


def _read(path: str | os.PathLike[str], normalise: bool, value_range: Range | None, window: Window | None) -> Image:
    unread: tuple[str, ...] = ()
    if not os.path.isdir(path) and thermal.is_radiometric(path):
        try:
            return thermal.read_temperatures(path, value_range)
        except InputError as error:
            unread = (f"The image in {images.quoted(path)} is used instead of its temperatures: {error}",)
    image = images.read_any(path, normalise, value_range, window)
    return replace(image, findings=(*unread, *image.findings))
