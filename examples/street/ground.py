"""The road and the pavements, pixel by pixel: dry, or wet and reflecting the objects on them."""

from collections.abc import Sequence

import cv2
import numpy as np

from street.view import View
from street.world import CARS, EYE, EYE_X, KERB, PEOPLE, Light, Texture, hazy, irradiance


def ground(view: View, texture: Texture, lights: Sequence[Light], mirror: np.ndarray) -> np.ndarray:
    """The n ground pixels (n, 4); where it is wet they show `mirror` (h, w, 4), smeared downwards."""
    z = EYE / -view.up[view.below]
    x = EYE_X + view.right[view.below] * z
    road = np.abs(x) < KERB
    fine = np.clip(1.4 - z / 16, 0.05, 1)  # small patterns fade before they alias
    albedo, warmth = _surface(texture, x, z, road, fine)

    shadow = np.ones_like(x)
    for px, pz, rx, rz, strength, hot in _footprints():
        soft = np.exp(-((((x - px) / rx) ** 2 + ((z - pz) / rz) ** 2) ** 2))
        shadow *= 1 - strength * soft
        warmth += hot * soft
    lit = irradiance(lights, x, 0.0, z, (0.0, 1.0, 0.0)) * (albedo * shadow)[..., None] * 1.3

    puddle = np.clip(0.55 + 0.55 * texture.noise(x / 1.5, z / 3.0, 3), 0, 1) * np.where(road, 1.0, 0.45)
    grazing = (1 - EYE / np.hypot(EYE, z)) ** 3
    wet = np.clip((0.06 + 0.85 * grazing) * (0.30 + 0.70 * puddle), 0, 0.9)
    image = _mirrored(view, mirror, puddle)
    ripple = 1 + 0.25 * texture.noise(x * 5, z * 1.2, 2) * fine
    light = lit * (1 - 0.35 * puddle[..., None]) + (wet * ripple)[..., None] * image[..., :3]
    warmth += 0.22 * wet * (image[..., 3] - 0.33) - 0.03 * puddle
    return np.c_[hazy(light, z), warmth].astype(np.float32)


def _surface(
    texture: Texture, x: np.ndarray, z: np.ndarray, road: np.ndarray, fine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo and warmth (n,) of asphalt, slabs, kerb, markings and a manhole cover."""
    grain = texture.noise(x * 9, z * 9, 3) * 0.20 * fine
    stains = 0.20 * texture.noise(x / 1.3, z / 2.5, 4)
    joint = (np.abs(x / 0.6 % 1 - 0.5) > 0.46) | (np.abs(z / 0.9 % 1 - 0.5) > 0.47)
    slabs = 0.27 * (1 - 0.5 * fine * joint) * (1 + 0.3 * (texture.chance(x // 0.6, z // 0.9) - 0.5))
    albedo = np.where(road, 0.11, slabs)
    stripe = (np.abs(x) < 0.07) & (z % 5 < 2.6) & (z > 13)
    edge = np.abs(np.abs(x) - KERB + 0.35) < 0.05
    zebra = road & (np.abs(z - 9.6) < 1.3) & (np.abs(x) < KERB - 0.5) & (x / 0.95 % 1 < 0.52)
    worn = np.clip(0.75 + 0.4 * texture.noise(x * 3, z * 3, 3), 0.15, 1)
    albedo = np.where(stripe | edge | zebra, albedo + 0.5 * worn, albedo)
    kerb = np.abs(np.abs(x) - KERB) < 0.13
    albedo = np.where(kerb, 0.34, albedo) * np.clip(1 + grain + stains, 0.3, 2)
    cover = (x - 1.9) ** 2 + (z - 7.0) ** 2  # squared distance from a manhole cover: drains are warm
    albedo = np.where(cover < 0.30**2, 0.07 + 0.05 * ((x * 12 % 1 < 0.5) ^ (z * 12 % 1 < 0.5)), albedo)

    warmth = np.where(road, 0.33, 0.28) + 0.022 * texture.noise(x / 1.5, z / 2.2, 4)
    # Where tyres run.
    warmth += 0.05 * road * np.exp(-(((np.abs(x + 2.0 * np.sign(-x)) - 0.75) / 0.22) ** 2)) * (np.abs(x) < 3.6)
    warmth += np.where(kerb, -0.03, 0) + 0.10 * np.exp(-((cover / 0.35**2) ** 2))
    return albedo, warmth


def _footprints() -> list[tuple[float, float, float, float, float, float]]:
    """Shadow and warmth of people and cars: (x, z, radius x, radius z, darkening, warming)."""
    people = [(x, z, 0.35, 0.30, 0.6, 0.02) for x, z, *_ in PEOPLE]
    return people + [(x, z + 2.1, 1.05, 2.4, 0.92, 0.10) for x, z, *_ in CARS]


def _mirrored(view: View, mirror: np.ndarray, puddle: np.ndarray) -> np.ndarray:
    """The mirror image (n, 4) as the ground shows it.

    Waves on the water smear it along the line of sight; the drier, the more.
    """
    smooth = cv2.GaussianBlur(mirror, (0, 0), sigmaX=view.h / 480, sigmaY=view.h / 60)[view.below]
    small = cv2.resize(mirror, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigmaX=view.h / 800, sigmaY=view.h / 64)
    rough = cv2.resize(small, (view.w, view.h), interpolation=cv2.INTER_LINEAR)[view.below]
    return rough + (puddle**2)[:, None] * (smooth - rough)
