"""House fronts and the sky behind them, pixel by pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from drawing import f32

from street.view import front
from street.world import COOL, EDGES, END, EYE, EYE_X, WALL, WARM, Light, Texture, hazy, irradiance

SIGNS = ("FLOWERS", "CAFE", "BOOKS", "RAMEN", "CINEMA", "BAKERY", "BAR", "PHARMACY")
NEON = np.array(
    [[1.0, 0.20, 0.24], [0.12, 0.75, 1.0], [1.0, 0.70, 0.20], [0.22, 1.0, 0.5], [1.0, 0.3, 0.85]], np.float32
)
TINTS = np.array([[0.32, 0.15, 0.10], [0.38, 0.32, 0.25], [0.25, 0.25, 0.28]], np.float32)  # the first is of brick


@dataclass
class Front:
    """n points of house fronts and how they look. Later painting hides earlier painting.

    Attributes:
        house: (n,), which house each point belongs to.
        u, v: (n,), metres along the front, from left to right as seen from the street, and up.
        fine: (n,), 0 to 1: small patterns fade with the distance before they alias.
        light: (n, 3), emitted.
        albedo: (n, 3).
        warmth: (n,).
    """

    house: np.ndarray
    u: np.ndarray
    v: np.ndarray
    fine: np.ndarray
    light: np.ndarray
    albedo: np.ndarray
    warmth: np.ndarray


class Houses:
    """The houses on the left, on the right, and the last across the end; attributes are arrays of one value each."""

    def __init__(self, texture: Texture, rng: np.random.Generator) -> None:
        self.texture = texture
        n = 2 * (len(EDGES) - 1) + 1
        self.roof = rng.uniform(8.5, 13.0, n).astype(np.float32)
        self.tint = TINTS[np.arange(n) % 3] * rng.uniform(0.8, 1.25, (n, 1)).astype(np.float32)
        self.warmth = rng.uniform(-0.05, 0.05, n).astype(np.float32)
        self.pitch = rng.uniform(2.2, 2.7, n).astype(np.float32)  # from window to window
        self.lit = rng.uniform(0.25, 0.5, n).astype(np.float32)  # share of the windows
        self.shop = np.ones(n, bool)
        # The nearest house on the left is dark and shut: there people stand unseen.
        self.lit[0], self.shop[[0, 3, 8, n - 1]] = 0.10, False
        self.neon = NEON[rng.permutation(n) % len(NEON)]
        self.signs = np.stack([_sign(SIGNS[k % len(SIGNS)]) for k in range(n)])

    def seen(self, lights: Sequence[Light], right: np.ndarray, up: np.ndarray, flip: int) -> np.ndarray:
        """Sky and house fronts (n, 4) along n rays from the eye, or (flip -1) mirrored in the road."""
        side = (right > 0).astype(np.int64)
        z = front(right).astype(np.float32)
        across = z >= END
        x, y = EYE_X + right * z, flip * (EYE + up * z)
        k = np.clip(np.searchsorted(EDGES, z, side="right") - 1, 0, len(EDGES) - 2)
        house = np.where(across, len(self.roof) - 1, side * (len(EDGES) - 1) + k)
        along = np.where(across, x + WALL, np.where(side == 1, EDGES[k + 1] - z, z - EDGES[k])).astype(np.float32)
        seen = self.fronts(house, along, y, z)
        normals = ((1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
        for normal, here in zip(normals, (~across & (side == 0), ~across & (side == 1), across), strict=True):
            seen.light[here] += seen.albedo[here] * irradiance(lights, x[here], y[here], z[here], normal)

        slope = np.maximum(y / z, 0)[:, None]
        cloud = self.texture.noise(right * 4, slope[:, 0] * 12, 4)[:, None]
        night = f32([0.0035, 0.005, 0.012]) + f32([0.030, 0.018, 0.010]) * np.exp(-5 * slope)
        cold = 0.05 + 0.13 * np.exp(-4 * slope) + 0.012 * cloud
        sky = y > self.roof[house] + 0.9 * (along % 8.3 < 1.5) * ~across  # roofs with chimneys
        wall = np.c_[hazy(seen.light, z), seen.warmth]
        return f32(np.where(sky[:, None], np.c_[night * (1 + 0.3 * cloud), cold], wall))

    def fronts(self, house: np.ndarray, u: np.ndarray, v: np.ndarray, z: np.ndarray) -> Front:
        """House fronts at u metres along and v metres up, z metres away; each (n,)."""
        fine = np.clip(1.3 - z / 22, 0.15, 1)
        # Brickwork on every third house, plaster on the others.
        row = np.floor(v / 0.16)
        brick = self.texture.chance(house, row, np.floor(u / 0.42 + 0.5 * (row % 2)))
        joint = (np.abs(v / 0.16 % 1 - 0.5) > 0.40) | (np.abs((u / 0.42 + 0.5 * (row % 2)) % 1 - 0.5) > 0.44)
        bricks = np.where(house % 3 == 0, fine, 0.12 * fine)
        stains = 0.16 * self.texture.noise(u / 1.6 + 9 * house, v / 1.6, 4)
        shade = 1 + bricks * (0.5 * (brick - 0.5) + 0.35 * joint) + stains
        albedo = self.tint[house] * np.clip(shade, 0.25, 2)[..., None]
        warmth = 0.36 + self.warmth[house] + 0.03 * self.texture.noise(u / 3 + 5 * house, v / 3, 4) - 0.006 * v
        painted = Front(house, u, v, fine, np.zeros_like(albedo), albedo, warmth)
        self.paint_windows(painted)
        self.paint_shops(painted)
        self.paint_bases(painted)
        return painted

    def paint_windows(self, front: Front) -> None:
        """The upper floors: a grid of windows, some of them lit."""
        house, v, chance = front.house, front.v, self.texture.chance
        pitch = self.pitch[house]
        floor, cell = np.floor((v - 3.7) / 3.0), np.floor(front.u / pitch)
        fu, fv = (front.u / pitch - cell - 0.5) * pitch, v - 3.7 - 3.0 * floor - 1.35  # from the window's middle
        upper = (v > 3.7) & (v < self.roof[house] - 0.6)
        pane = upper & (np.abs(fu) < 0.55) & (np.abs(fv) < 0.85)
        frame = upper & (np.abs(fu) < 0.68) & (np.abs(fv) < 0.98) & ~pane
        frame |= pane & ((np.abs(fu) < 0.045) | (np.abs(fv - 0.30) < 0.045))
        sill = upper & (np.abs(fu) < 0.78) & (np.abs(fv + 1.03) < 0.07)
        on = chance(house, floor, cell, 1) < self.lit[house]
        tone = chance(house, floor, cell, 2)[..., None]
        lamp = np.where(tone > 0.85, COOL * 0.25, WARM * (0.12 + 0.5 * tone))
        curtain = 0.35 + 0.65 * (np.abs(fu) < 0.2 + 0.3 * chance(house, floor, cell, 3))
        folds = 1 + 0.12 * np.sin(fu * 40) * front.fine
        glow = lamp * (curtain * folds * (0.75 + 0.35 * fv))[..., None]
        front.albedo[pane] = 0.03
        front.light[pane] = (np.where(on[..., None], glow, [0.002, 0.003, 0.006]))[pane]
        front.albedo[frame | sill] = f32([0.42, 0.40, 0.37])
        glass = np.where(on, 0.42, 0.20) + 0.03 * fv
        front.warmth = np.where(pane, glass, np.where(frame, front.warmth + 0.04, front.warmth))
        band = (np.abs(v - 3.55) < 0.12) | (np.abs(v - self.roof[house] + 0.3) < 0.28)
        front.albedo[band] *= 1.5

    def paint_shops(self, front: Front) -> None:
        """The ground floor of houses with a shop: windows, and a sign above them."""
        house, u, v, chance = front.house, front.u, front.v, self.texture.chance
        shop = self.shop[house] & (v < 3.4)
        bay = u % 3.4 - 1.7
        glass = shop & (np.abs(bay) < 1.5) & (np.abs(v - 1.45) < 0.95)
        # Things on shelves against a bright back wall.
        tier, item = np.floor(v / 0.55), np.floor(u / 0.23)
        tall = 0.12 + 0.36 * chance(house, tier, item, 7)
        inner = np.abs(u / 0.23 - item - 0.5) < 0.25 + 0.2 * chance(house, tier, item, 8)
        goods = (v < 2.0) & (v - 0.55 * tier < tall) & inner & (chance(house, tier, item, 9) < 0.85)
        shelf = (v % 0.55 > 0.50) & (v < 2.1)
        hue = np.where((chance(house, 5) > 0.6)[:, None], COOL, WARM)
        wall = hue * (0.05 + 0.13 * np.clip(v / 2.4, 0, 1) ** 2 * (1 + 0.25 * np.cos(u * 2 * np.pi / 1.7)))[:, None]
        colours = np.stack([chance(house, tier, item, c) for c in (11, 12, 13)], axis=1)
        inside = np.where(goods[:, None], wall * (0.08 + 1.5 * colours**3), wall * np.where(shelf, 0.3, 1.0)[:, None])
        front.light[glass] = inside[glass]
        front.albedo[shop & ~glass] = f32([0.10, 0.11, 0.12])
        front.warmth = np.where(glass, 0.37 + 0.03 * v, np.where(shop, 0.32, front.warmth))
        board = shop & (np.abs(v - 2.90) < 0.36)
        letters = self.signs[house, _texel((3.26 - v) / 0.72, 64), _texel(u % 5.1 / 5.1, 256)]
        text = np.where(board & (u % 10.2 < 5.1), letters, 0)[..., None]
        front.light += (1.6 * text + 0.010 * board[:, None]) * self.neon[house]

    def paint_bases(self, front: Front) -> None:
        """The ground floor of the other houses: plain, with doors and vents."""
        u, v = front.u, front.v
        base = ~self.shop[front.house] & (v < 3.4)
        door = base & (np.abs(u % 5.2 - 2.6) < 0.55) & (v < 2.3)
        vent = base & ~door & (np.abs(u % 2.6 - 1.3) < 0.5) & (np.abs(v - 1.9) < 0.6)
        front.albedo[base] *= 0.75
        front.albedo[door], front.albedo[vent] = f32([0.05, 0.09, 0.07]), 0.04
        warmth = np.where(door, 0.40, np.where(vent, 0.25, front.warmth))
        front.warmth = np.where(base & (v < 0.7), warmth + 0.04, warmth)  # a heated cellar


def _texel(fraction: np.ndarray, n: int) -> np.ndarray:
    """Index 0..n-1 of a fraction of a texture."""
    return np.clip(fraction * n, 0, n - 1).astype(np.int64)


def _sign(text: str) -> np.ndarray:
    """Lettering (64, 256), 0 to 1, soft-edged like a neon tube."""
    board = np.zeros((64, 256), np.uint8)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 1.0, 2)
    scale = min(230 / width, 40 / height)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 4)
    where = ((256 - width) // 2, (64 + height) // 2)
    cv2.putText(board, text, where, cv2.FONT_HERSHEY_DUPLEX, scale, 255, 5, cv2.LINE_AA)
    return cv2.GaussianBlur(board, (0, 0), 1.2).astype(np.float32) / 255
