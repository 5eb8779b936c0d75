"""False colours for display: one source as a palette's colours over the fused image."""

from __future__ import annotations

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


def painted(values: np.ndarray, palette: str) -> np.ndarray:
    """Values (H, W) in [0, 1] as a palette's colours, float32 (H, W, 3) in [0, 1]. Raises InputError."""
    if palette not in PALETTES:
        raise InputError(f"The palette is one of {', '.join(PALETTES)}, not {palette[:80]}.")
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
