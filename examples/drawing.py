"""Helpers shared by the demo's scenes."""

from typing import Any

import cv2
import numpy as np


def f32(values: Any) -> np.ndarray:
    """Values as a float32 array."""
    return np.asarray(values, np.float32)


def shrunk(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image shrunk to `size`, (H, W), by averaging: scenes are drawn larger than they are shown."""
    return cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Values in [0, 1], clipped, as 0..255."""
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
