"""Renders the light and warmth of the scene as the two cameras would."""

import cv2
import numpy as np
from drawing import to_uint8

EXPOSURE = 3.0


def night_camera(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear light (H, W, 3) to a uint8 image: glow around bright areas, exposure, gamma, sensor noise."""
    h = light.shape[0]
    bright = np.minimum(light, 12)
    for share, sigma in ((0.10, h / 160), (0.04, h / 40), (0.012, h / 12)):
        light = light + share * cv2.GaussianBlur(bright, (0, 0), sigma)
    film = 1 - np.exp(-EXPOSURE * light)
    film += rng.normal(0, 1, film.shape) * (0.003 + 0.012 * np.sqrt(film))
    return to_uint8(np.clip(film, 0, 1) ** (1 / 2.2))


def thermal_camera(heat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Warmth (H, W), 0 to 1, to a uint8 image: soft optics, noise, and the detector's column pattern."""
    h, w = heat.shape
    soft = cv2.GaussianBlur(heat, (0, 0), 1.1 * h / 480)
    columns = cv2.GaussianBlur(rng.normal(0, 1, (1, w)), (0, 0), 0.6)
    return to_uint8(soft + 0.004 * columns + rng.normal(0, 0.011, (h, w)))
