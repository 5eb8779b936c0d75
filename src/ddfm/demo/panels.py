"""Images side by side, with captions."""

import cv2
import numpy as np


def side_by_side(panels: list[np.ndarray], labels: list[str]) -> np.ndarray:
    """Images side by side, each with its caption in a strip below.

    Args:
        panels: uint8, (H, W) or (H, W, 3) RGB; they are scaled to the height of the first.
        labels: One caption per panel, ASCII.

    Returns:
        (H', W', 3) uint8, RGB.

    Raises:
        ValueError: no panels, a different number of labels, or a panel of another type.
    """
    if not panels or len(panels) != len(labels):
        raise ValueError(f"side_by_side needs a label for each panel, not {len(labels)} for {len(panels)}")
    height = panels[0].shape[0]
    strip, gap, ground = max(round(height / 13), 18), max(round(height / 60), 3), (16, 17, 20)
    columns = []
    for panel, label in zip(panels, labels, strict=True):
        if panel.dtype != np.uint8 or panel.ndim not in (2, 3) or panel.shape[2:] not in ((), (3,)):
            raise ValueError(f"side_by_side needs uint8 (H, W) or (H, W, 3), not {panel.dtype} {panel.shape}")
        rgb = panel if panel.ndim == 3 else np.dstack([panel] * 3)
        if rgb.shape[0] != height:
            width = max(round(rgb.shape[1] * height / rgb.shape[0]), 1)
            shrinks = rgb.shape[0] > height
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        columns += [np.vstack([rgb, _caption(label, strip, rgb.shape[1], ground)]), None]
    line = np.full((height + strip, gap, 3), ground, np.uint8)
    row = np.hstack([line if column is None else column for column in columns[:-1]])
    return cv2.copyMakeBorder(row, gap, 0, gap, gap, cv2.BORDER_CONSTANT, value=ground)


def _caption(text: str, height: int, width: int, ground: tuple[int, int, int]) -> np.ndarray:
    """A strip (height, width, 3) with centred text, drawn four times as large for smooth letters."""
    font, zoom = cv2.FONT_HERSHEY_SIMPLEX, 4
    strip = np.full((height * zoom, width * zoom, 3), ground, np.uint8)
    (length, _), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(0.45 * height * zoom / 22, 0.94 * width * zoom / max(length, 1))
    thick = max(round(2.1 * scale), 1)
    (length, rise), _ = cv2.getTextSize(text, font, scale, thick)
    where = ((width * zoom - length) // 2, (height * zoom + rise) // 2)
    cv2.putText(strip, text, where, font, scale, (226, 228, 232), thick, cv2.LINE_AA)
    return cv2.resize(strip, (width, height), interpolation=cv2.INTER_AREA)
