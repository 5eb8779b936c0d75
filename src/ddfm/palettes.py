"""False colours: one source as a palette's colours over the fused image, and which sources came that way."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ddfm.errors import InputError

# Stops of the palette that thermographers call ironbow: cold black, blue, purple, orange, yellow, hot white.
_IRONBOW = np.array([[0, 0, 0], [32, 0, 140], [150, 0, 155], [230, 80, 20], [255, 190, 0], [255, 255, 245]]) / 255
PALETTES = {
    "ironbow": None,
    "inferno": cv2.COLORMAP_INFERNO,
    "plasma": cv2.COLORMAP_PLASMA,
    "hot": cv2.COLORMAP_HOT,
    "turbo": cv2.COLORMAP_TURBO,
}

PALETTE_IGNORED = "has the colours of a palette: its brightness is fused, the colours are those of the photo."

# Of 451 photos none has colours in a curve by these, of thermal images most (see `is_false_colour`).
SAMPLES = 8000  # colours looked at
NEAR = 0.12  # colours as near as this, of a cube of side 1, show which way the curve runs
WIDTH = 0.04  # its variance across, relative to that along it
HUES = 0.045  # spread of the second direction of hues


def painted(values: np.ndarray, palette: str) -> np.ndarray:
    """Values (H, W) in [0, 1] as a palette's colours, float32 (H, W, 3) in [0, 1]. Raises InputError."""
    if palette not in PALETTES:
        raise InputError(f"The palette must be one of {', '.join(PALETTES)}, not {palette[:80]}.")
    if (code := PALETTES[palette]) is None:
        stops = np.linspace(0, 1, len(_IRONBOW))
        return np.dstack([np.interp(values, stops, channel) for channel in _IRONBOW.T]).astype(np.float32)
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, code)[..., ::-1]).astype(np.float32) / 255


def overlaid(
    fused: np.ndarray, values: np.ndarray, palette: str, blend: float = 0.5, where: np.ndarray | None = None
) -> np.ndarray:
    """The fused image with a source's palette mixed in: fused + blend (palette - fused), float32 (H, W, 3).

    Args:
        fused: (H, W) or (H, W, 3) in [0, 1].
        values: The source, (H, W) in [0, 1].
        palette: One of `PALETTES`.
        blend: 0 is the fused image, 1 the palette alone.
        where: (H, W) in [0, 1]: where the source has data; everywhere if None.

    Raises:
        InputError: no such palette, or a blend outside [0, 1].
    """
    if not 0 <= blend <= 1:
        raise InputError(f"The blend is between 0 and 1, not {blend:g}.")
    colours = painted(values, palette)
    if fused.ndim == 2:
        fused = np.repeat(fused[..., None], 3, axis=-1)
    share = blend if where is None else blend * where[..., None]
    mixed: np.ndarray = np.clip(fused + share * (colours - fused), 0, 1).astype(np.float32)
    return mixed


def beside_photos(images: Sequence[np.ndarray]) -> list[int]:
    """Which of a scene's images, (H, W) or (H, W, 3) in [0, 1], are painted with a palette beside one that is not.

    Of these the brightness is to be fused: their colours would mix into the photo's.
    """
    coloured = [k for k, image in enumerate(images) if image.ndim == 3]
    if len(coloured) < 2:
        return []
    painted = [k for k in coloured if is_false_colour(images[k])]
    return painted if len(painted) < len(coloured) else []


def is_false_colour(pixels: np.ndarray) -> bool:
    """Whether an image (H, W, 3) in [0, 1] shows one quantity by a palette, as thermal cameras save it.

    Its colours then lie along a curve that bends through hues: near each of them the others spread in one direction,
    and all of them in more than one hue. Seen where the image is smooth, since edges and JPEG mix colours. A scale or a
    logo in a corner does no harm; sepia and grey are one hue and are not meant.
    """
    height, width = pixels.shape[:2]
    image = pixels.astype(np.float32)
    mean = cv2.blur(image, (5, 5))
    unrest = np.maximum(cv2.blur(image * image, (5, 5)) - mean * mean, 0).sum(-1).ravel()
    smooth = np.flatnonzero(unrest <= np.median(unrest))
    colours = mean.reshape(height * width, 3)[smooth[:: max(1, len(smooth) // SAMPLES)]]
    hues = np.linalg.eigvalsh(np.cov((colours - colours.mean(axis=1, keepdims=True)).T))
    if hues[1] < HUES**2:
        return False
    widths = []
    for colour in colours[:: max(1, len(colours) // 200)]:
        near = colours[((colours - colour) ** 2).sum(-1) < NEAR**2]
        if len(near) > 8:
            spread = np.linalg.eigvalsh(np.cov(near.T))
            widths.append((spread[0] + spread[1]) / max(spread[2], 1e-9))
    return bool(widths) and float(np.median(widths)) < WIDTH
