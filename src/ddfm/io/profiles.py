"""Colour profiles (ICC): 8-bit RGB is converted to sRGB, everything else keeps its profile."""

from __future__ import annotations

import functools
import io

import numpy as np
import PIL.Image
from PIL import ImageCms

NEAR = 2  # levels of 255: a profile that changes colours by no more counts as sRGB


def in_srgb(values: np.ndarray, icc: bytes) -> tuple[np.ndarray, bytes | None]:
    """The values and their profile, None for one that cannot be read (viewers ignore it too).

    uint8 (H, W, 3) in another space is converted to sRGB. Values in sRGB, under any name, keep their
    profile; so do grey and 16-bit values in any space, whose conversion in 8 bits would be lossy.
    """
    try:
        if values.ndim != 3 or values.dtype != np.uint8:
            ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return values, icc
        return (values, icc) if _is_srgb(icc) else (_converted(values, icc), _srgb())
    except (ImageCms.PyCMSError, OSError, ValueError):
        return values, None


@functools.lru_cache(maxsize=16)
def _is_srgb(icc: bytes) -> bool:
    """Tested on a colour chart, since names are unreliable ("Display P3 Gamut with sRGB Transfer")."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    chart = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    return bool(np.abs(_converted(chart, icc).astype(int) - chart).max() <= NEAR)


def _converted(values: np.ndarray, icc: bytes) -> np.ndarray:
    image = PIL.Image.fromarray(values)
    return np.asarray(ImageCms.profileToProfile(image, io.BytesIO(icc), ImageCms.createProfile("sRGB")))


@functools.lru_cache(maxsize=1)
def _srgb() -> bytes:
    """The sRGB profile, with a fixed date for reproducible results."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes.fromhex("07d000010001000000000000")
    return bytes(profile)
