"""Shared by all parts of the scene: lengths, colours, the lights, and random textures.

Lengths in metres; x to the right, y up, z along the street, the camera at (EYE_X, EYE, 0).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from drawing import f32

EYE_X, EYE = 0.8, 2.4
WALL, KERB, END = 7.4, 4.4, 90.0  # house fronts at x = -WALL and WALL; a house closes the street at z = END
EDGES = np.array([6.0, 18.5, 29.0, 40.0, 54.0, 70.0, END], np.float32)  # where one house meets the next
LAMPS = [(-4.9, 26.0), (-4.9, 44.0), (-4.9, 64.0), (4.9, 13.0), (4.9, 34.0), (4.9, 54.0), (4.9, 74.0)]  # x, z
DEAD_LAMP = (-4.9, 16.0)
OVERHANG = 0.84  # x of a lamp relative to that of its pole
SODIUM, WARM, COOL = np.array([[1.0, 0.58, 0.24], [1.0, 0.72, 0.38], [0.62, 0.82, 1.0]], np.float32)

# x, z, height, stride, coat, facing
PEOPLE: list[tuple[float, float, float, float, Any, int]] = [
    (-6.2, 12.8, 1.82, 0.0, (0.04, 0.04, 0.06), 0),
    (-5.9, 14.2, 1.68, 0.0, (0.05, 0.04, 0.04), -1),
    (-2.5, 8.6, 1.76, 0.9, (0.04, 0.05, 0.05), 1),
    (2.3, 9.8, 1.74, 0.9, (0.42, 0.07, 0.06), -1),
    (6.3, 14.0, 1.70, 0.6, (0.30, 0.27, 0.20), 0),
    (6.0, 22.0, 1.78, 0.6, (0.08, 0.14, 0.30), 1),
    (-5.9, 25.0, 1.72, 0.7, (0.30, 0.28, 0.25), 1),
    (-6.2, 37.0, 1.75, 0.5, (0.2, 0.2, 0.2), 0),
]
# x, z of the near end, colour, oncoming, engine
CARS: list[tuple[float, float, Any, bool, float]] = [
    (3.35, 16.0, (0.10, 0.16, 0.30), False, 0.15),
    (3.35, 24.0, (0.30, 0.29, 0.27), False, 0.9),
    (-1.9, 21.0, (0.32, 0.05, 0.04), True, 1.0),
    (-3.4, 33.0, (0.2, 0.2, 0.2), True, 0.1),
]


class Light(NamedTuple):
    """A light at a point; `beam` is where it shines: "down", "ahead" (to the camera) or "around"."""

    x: float
    y: float
    z: float
    colour: np.ndarray
    beam: str


def lights_of(shops: np.ndarray) -> list[Light]:
    """Lamps, shop windows and headlights; shops: which of the houses have one, see `Houses`."""
    lights = [Light(x * OVERHANG, 5.3, z, SODIUM * 11, "down") for x, z in LAMPS]
    for house in np.flatnonzero(shops):
        side, k = divmod(int(house), len(EDGES) - 1)
        z = (max(float(EDGES[k]), 5.0) + float(EDGES[k + 1])) / 2
        lights.append(Light((2 * side - 1) * (WALL - 0.6), 1.6, z, WARM * 0.9, "around"))
    lights.append(Light(-1.9, 0.6, 18.5, np.array([1.0, 0.94, 0.82], np.float32) * 7, "ahead"))  # headlights
    return lights


def irradiance(
    lights: Sequence[Light], x: Any, y: Any, z: Any, normal: tuple[float, float, float] | None
) -> np.ndarray:
    """Light (..., 3) that falls on a surface; normal None: on a rough body that faces the camera."""
    total = np.zeros((*np.broadcast(x, y, z).shape, 3), np.float32) + f32([0.0016, 0.002, 0.0035])
    for lx, ly, lz, colour, beam in lights:
        dx, dy, dz = lx - x, ly - y, lz - z
        r2 = dx * dx + dy * dy + dz * dz + 0.3
        r = np.sqrt(r2)
        if normal is None:
            gain = 0.35 + 0.65 * np.maximum(-dz / r, 0)
        else:
            gain = np.maximum((normal[0] * dx + normal[1] * dy + normal[2] * dz) / r, 0)
        if beam == "down":
            gain = gain * np.maximum(dy / r, 0) ** 2.5
        elif beam == "ahead":
            gain = gain * np.maximum(dz / r, 0) ** 8
        total += (gain / r2)[..., None] * colour
    return total


def hazy(light: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Light (n, 3) from z metres away, (n,), through the haze."""
    haze = 1 - np.exp(-z / 260)[:, None]
    return light + haze * (np.array([0.022, 0.015, 0.010], np.float32) - light)


class Texture:
    """Random values fixed to places in the scene."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.tile = rng.standard_normal((256, 256)).astype(np.float32)
        self.dice = rng.random(8192).astype(np.float32)

    def noise(self, u: np.ndarray, v: np.ndarray, octaves: int = 3) -> np.ndarray:
        """Smooth noise of about unit variance; details of 1 down to 2^-(octaves - 1) in units of u and v. (n,)"""
        n = len(u)
        # OpenCV wants images of fewer than 32768 columns: fold the list of points into rows.
        x, y = (np.resize(w, (-(-n // 4096), 4096)).astype(np.float32) for w in (u, v))
        total = np.zeros(x.shape, np.float32)
        for k in range(octaves):
            at = x * np.float32(2**k) + np.float32(31.7 * k), y * np.float32(2**k) + np.float32(31.7 * k)
            total += cv2.remap(self.tile, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP) * np.float32(0.65**k)
        return total.reshape(-1)[:n]

    def chance(self, *cell: Any) -> np.ndarray:
        """A fixed random number in [0, 1) for every cell of a grid."""
        mixed = sum(np.asarray(c, np.int64) * p for c, p in zip(cell, (7919, 104729, 1299709, 611953), strict=False))
        return self.dice[np.mod(mixed, len(self.dice))]
