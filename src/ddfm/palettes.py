"""False colours: overlays one source on the fused image with a palette, and detects false-colour sources."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ddfm.errors import InputError

# Stops of the palette known as ironbow: black (cold), blue, purple, orange, yellow, white (hot).
_IRONBOW = np.array([[0, 0, 0], [32, 0, 140], [150, 0, 155], [230, 80, 20], [255, 190, 0], [255, 255, 245]]) / 255
PALETTES = {
    "ironbow": None,
    "inferno": cv2.COLORMAP_INFERNO,
    "plasma": cv2.COLORMAP_PLASMA,
    "hot": cv2.COLORMAP_HOT,
    "turbo": cv2.COLORMAP_TURBO,
}

PALETTE_IGNORED = "is a false-colour image: its brightness is fused, the colours are those of the photo."

# With these, the colours of most thermal images lie along a curve, those of none of 451 photos (`is_false_colour`).
SAMPLES = 8000  # colours examined
NEAR = 0.12  # colours at most this far apart, in a unit cube, show the direction of the curve
WIDTH = 0.04  # the variance across the curve, relative to that along it
HUES = 0.045  # spread of the hues in their second direction


def painted(values: np.ndarray, palette: str) -> np.ndarray:
    """Values (H, W) in [0, 1] in the colours of a palette, float32 (H, W, 3) in [0, 1]. Raises InputError."""
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
        raise InputError(f"The blend must be between 0 and 1, not {blend:g}.")
    colours = painted(values, palette)
    if fused.ndim == 2:
        fused = np.repeat(fused[..., None], 3, axis=-1)
    share = blend if where is None else blend * where[..., None]
    mixed: np.ndarray = np.clip(fused + share * (colours - fused), 0, 1).astype(np.float32)
    return mixed


def beside_photos(images: Sequence[np.ndarray]) -> list[int]:
    """The indices of a scene's false-colour images, (H, W) or (H, W, 3) in [0, 1], if another one is a photo.

    Only their brightness should be fused, since their colours would mix with those of the photo.
    """
    coloured = [k for k, image in enumerate(images) if image.ndim == 3]
    if len(coloured) < 2:
        return []
    painted = [k for k in coloured if is_false_colour(images[k])]
    return painted if len(painted) < len(coloured) else []


def is_false_colour(pixels: np.ndarray) -> bool:
    """Whether an image (H, W, 3) in [0, 1] shows one quantity in the colours of a palette, as thermal cameras save it.

    Its colours then lie along a curve that bends through hues: the neighbours of each colour spread in one direction,
    and all colours together over more than one hue. Only smooth areas are examined, since edges and JPEG mix colours.
    A scale or a logo in a corner does no harm; sepia and grey have a single hue and do not count.
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
