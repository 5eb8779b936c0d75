"""Does the fused image look natural to someone who knows the scene? Four guards for what fusion metrics miss.

Entropy, gradients and correlations can reward a result that darkens a noon sky or burns out a road; a viewer does not.
Images are arrays in [0, 1], luma (H, W) or RGB (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ddfm.colour import luma, split

BRIGHT, FLAT, DARKER = 0.8, 0.02, 0.10  # luma; its standard deviation over 7 x 7 pixels; allowed loss of luma
BURNT = 250 / 255
LAMP, LAMP_PIXELS, LAMP_KEPT = 0.95, 50, 0.85
COLOURED = 0.06  # below this chroma the hue is meaningless: rounding to 8 bits changes it
HUES = 72

# The limit of each guard: a minimum, or for AT_MOST a maximum.
LIMITS = {"bright areas kept": 0.95, "lamps kept": 1.0, "burnt": 0.5, "foreign hues": 0.01}
AT_MOST = frozenset({"burnt", "foreign hues"})


def guards(fused: np.ndarray, sources: Sequence[np.ndarray], visible: Sequence[np.ndarray]) -> dict[str, float]:
    """The values of the four guards by name, as in LIMITS; NaN where a guard does not apply.

    `visible`: the sources whose brightness a viewer expects in the result; the worst value counts.
    """
    grey = luma(fused)
    lumas = [luma(source) for source in visible]
    coloured = [source for source in sources if source.ndim == 3]
    return {
        "bright areas kept": _worst([bright_flat_kept(grey, source) for source in lumas]),
        "lamps kept": _worst([lamps_kept(grey, source) for source in lumas]),
        "burnt": burnt_excess(grey, [luma(source) for source in sources]),
        "foreign hues": foreign_hues(fused, coloured),
    }


def holds(values: Mapping[str, float]) -> bool:
    """Whether all guards hold; one that does not apply holds."""
    return not any(value > LIMITS[name] if name in AT_MOST else value < LIMITS[name] for name, value in values.items())


def bright_flat_kept(fused: np.ndarray, visible: np.ndarray) -> float:
    """Share of the visible luma's bright, flat pixels (a noon sky) where the fused luma is at most 0.10 below it."""
    mean = cv2.blur(visible, (7, 7))
    variance = cv2.blur(np.square(visible), (7, 7)) - np.square(mean)
    area = (visible >= BRIGHT) & (variance <= FLAT**2)
    return float((fused >= visible - DARKER)[area].mean()) if area.any() else np.nan


def lamps_kept(fused: np.ndarray, visible: np.ndarray) -> float:
    """Share of the visible luma's blobs above 0.95, of 50 pixels or more, whose mean fused luma is above 0.85."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((visible > LAMP).astype(np.uint8))
    pixels = stats[:, cv2.CC_STAT_AREA]
    means = np.bincount(labels.ravel(), fused.ravel(), count) / pixels
    lamps = (pixels >= LAMP_PIXELS) & (np.arange(count) > 0)  # 0 is the background
    return float((means > LAMP_KEPT)[lamps].mean()) if lamps.any() else np.nan


def burnt_excess(fused: np.ndarray, sources: Sequence[np.ndarray]) -> float:
    """Excess of pixels at 250 of 255 or above in the fused luma over any source's luma, in percentage points."""
    shares = [float((image >= BURNT - 1e-6).mean()) for image in (fused, *sources)]
    return 100 * (shares[0] - max(shares[1:]))


def foreign_hues(fused: np.ndarray, coloured: Sequence[np.ndarray]) -> float:
    """Share of the fused pixels whose hue (in bins of 5 degrees, or an adjacent bin) occurs in no coloured source."""
    if fused.ndim == 2 or not coloured:
        return np.nan
    known = np.zeros(HUES, bool)
    for source in coloured:
        known[_hues(source)] = True
    known |= np.roll(known, 1) | np.roll(known, -1)
    return float(np.count_nonzero(~known[_hues(fused)]) / fused[..., 0].size)


def _hues(rgb: np.ndarray) -> np.ndarray:
    """The hue bin of each pixel with enough chroma."""
    blue, red = np.moveaxis(split(rgb)[1], -1, 0)
    angle = np.arctan2(red, blue)[np.hypot(blue, red) >= COLOURED]
    bins: np.ndarray = ((angle / (2 * np.pi) + 0.5) * HUES).astype(int) % HUES
    return bins


def _worst(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return min(known, default=np.nan)
