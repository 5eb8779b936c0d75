"""A night street, thermal and visible, traced in perspective; what each sensor sees follows from the scene alone.

Lamps, shop windows and headlights light the visible image and the wet road mirrors it; the thermal image shows the
warmth of the same surfaces. Lengths in metres; x to the right, y up, z along the street, the camera at (EYE_X, EYE, 0).
"""

from typing import Any

import cv2
import numpy as np
from drawing import f32, shrunk, to_uint8

EYE_X, EYE, HORIZON = 0.8, 2.4, 0.44
WALL, KERB, END = 7.4, 4.4, 90.0  # house fronts at x = -WALL and WALL; a house closes the street at z = END
EXPOSURE = 3.0
HAZE = np.array([0.022, 0.015, 0.010], np.float32)
EDGES = np.array([6.0, 18.5, 29.0, 40.0, 54.0, 70.0, END], np.float32)  # where one house meets the next
SODIUM, WARM, COOL = np.array([[1.0, 0.58, 0.24], [1.0, 0.72, 0.38], [0.62, 0.82, 1.0]], np.float32)
SIGNS = ("FLOWERS", "CAFE", "BOOKS", "RAMEN", "CINEMA", "BAKERY", "BAR", "PHARMACY")
NEON = np.array(
    [[1.0, 0.20, 0.24], [0.12, 0.75, 1.0], [1.0, 0.70, 0.20], [0.22, 1.0, 0.5], [1.0, 0.3, 0.85]], np.float32
)

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


def night_street(size: tuple[int, int] = (480, 640), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A night street in thermal infrared and in visible light, registered to the pixel.

    Some walkers stand in the dark and show in infrared only; signs, lamplight, brickwork and road markings have
    no warmth of their own and show in the visible image only.

    Args:
        size: (H, W) in pixels.
        seed: houses, windows, textures and noise vary with it; the same seed gives the same images.

    Returns:
        infrared (H, W) uint8, warm is bright; visible (H, W, 3) uint8, RGB.
    """
    light, heat = _Street(size, seed).render()
    rng = np.random.default_rng(seed + 1)
    return _thermal_camera(shrunk(heat, size), rng), _night_camera(shrunk(light, size), rng)


class _Street:
    """The scene of `night_street`, drawn at twice the final size.

    Surfaces are traced pixel by pixel on lists of n rays; lamps, cars and people are polygons painted over them.
    Images in here are float32 (h, w, 4): linear red, green, blue, and warmth. `flip` is 1 for the scene itself
    and -1 for its mirror image in the road.
    """

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.h, self.w = 2 * size[0], 2 * size[1]
        self.focal = 0.80 * self.w
        rows, cols = np.mgrid[0 : self.h, 0 : self.w].astype(np.float32)
        self.right = (cols + 0.5 - self.w / 2) / self.focal  # how far a pixel's ray goes per metre of z
        self.up = (HORIZON * self.h - rows - 0.5) / self.focal
        reach = self.front(self.right)
        self.below = self.up * reach < -EYE  # the pixels that see the ground
        self.tile = rng.standard_normal((256, 256)).astype(np.float32)
        self.dice = rng.random(8192).astype(np.float32)

        n = 2 * (len(EDGES) - 1) + 1  # houses on the left, on the right, and the last across the end
        self.roof = rng.uniform(8.5, 13.0, n).astype(np.float32)
        self.tint = np.array([[0.32, 0.15, 0.10], [0.38, 0.32, 0.25], [0.25, 0.25, 0.28]], np.float32)[
            np.arange(n) % 3
        ] * rng.uniform(0.8, 1.25, (n, 1)).astype(np.float32)
        self.warmth = rng.uniform(-0.05, 0.05, n).astype(np.float32)
        self.pitch = rng.uniform(2.2, 2.7, n).astype(np.float32)
        self.lit = rng.uniform(0.25, 0.5, n).astype(np.float32)  # share of the windows
        self.shop = np.ones(n, bool)
        # The nearest house on the left is dark and shut: that is where people stand unseen.
        self.lit[0], self.shop[[0, 3, 8, n - 1]] = 0.10, False
        self.neon = NEON[rng.permutation(n) % len(NEON)]
        self.signs = np.stack([_sign(SIGNS[k % len(SIGNS)]) for k in range(n)])

        self.lamps = [(-4.9, 26.0), (-4.9, 44.0), (-4.9, 64.0), (4.9, 13.0), (4.9, 34.0), (4.9, 54.0), (4.9, 74.0)]
        self.lights = [(x * 0.84, 5.3, z, SODIUM * 11, "down") for x, z in self.lamps]
        for house in np.flatnonzero(self.shop):
            side, k = divmod(int(house), len(EDGES) - 1)
            z = (max(float(EDGES[k]), 5.0) + float(EDGES[k + 1])) / 2
            self.lights.append(((2 * side - 1) * (WALL - 0.6), 1.6, z, WARM * 0.9, "around"))
        self.lights.append((-1.9, 0.6, 18.5, np.array([1.0, 0.94, 0.82], np.float32) * 7, "ahead"))  # headlights

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Light (h, w, 3), linear, and warmth (h, w), both about 0 to 1."""
        scene, mirror = np.zeros((2, self.h, self.w, 4), np.float32)
        mirror[self.below] = self.houses(self.right[self.below], self.up[self.below], -1)
        self.things(mirror, -1)
        scene[~self.below] = self.houses(self.right[~self.below], self.up[~self.below], 1)
        scene[self.below] = self.ground(self.right[self.below], self.up[self.below], mirror)
        self.things(scene, 1)
        return scene[..., :3], scene[..., 3]

    # -- surfaces, pixel by pixel

    def front(self, right: np.ndarray) -> np.ndarray:
        """How far away (z) the house front is that a ray meets."""
        return np.minimum(np.where(right > 0, WALL - EYE_X, WALL + EYE_X) / np.maximum(np.abs(right), 1e-6), END)

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

    def irradiance(self, x: Any, y: Any, z: Any, normal: tuple[float, float, float] | None) -> np.ndarray:
        """Light (..., 3) that falls on a surface; normal None: on a rough body that faces the camera."""
        total = np.zeros((*np.broadcast(x, y, z).shape, 3), np.float32) + f32([0.0016, 0.002, 0.0035])
        for lx, ly, lz, colour, beam in self.lights:
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

    def houses(self, right: np.ndarray, up: np.ndarray, flip: int) -> np.ndarray:
        """Sky and house fronts (n, 4) along n rays from the eye, or (flip -1) mirrored in the road."""
        side = (right > 0).astype(np.int64)
        z = self.front(right).astype(np.float32)
        across = z >= END
        x, y = EYE_X + right * z, flip * (EYE + up * z)
        k = np.clip(np.searchsorted(EDGES, z, side="right") - 1, 0, len(EDGES) - 2)
        house = np.where(across, len(self.roof) - 1, side * (len(EDGES) - 1) + k)
        # Along the front from left to right as seen from the street, so that signs read the right way round.
        along = np.where(across, x + WALL, np.where(side == 1, EDGES[k + 1] - z, z - EDGES[k])).astype(np.float32)
        light, albedo, warmth = self.fronts(house, along, y, z)
        normals = ((1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
        for normal, here in zip(normals, (~across & (side == 0), ~across & (side == 1), across), strict=True):
            light[here] += albedo[here] * self.irradiance(x[here], y[here], z[here], normal)

        slope = np.maximum(y / z, 0)[:, None]
        cloud = self.noise(right * 4, slope[:, 0] * 12, 4)[:, None]
        night = f32([0.0035, 0.005, 0.012]) + f32([0.030, 0.018, 0.010]) * np.exp(-5 * slope)
        cold = 0.05 + 0.13 * np.exp(-4 * slope) + 0.012 * cloud
        haze = 1 - np.exp(-z / 260)[:, None]
        light += haze * (HAZE - light)
        sky = y > self.roof[house] + 0.9 * (along % 8.3 < 1.5) * ~across  # roofs with chimneys
        return f32(np.where(sky[:, None], np.c_[night * (1 + 0.3 * cloud), cold], np.c_[light, warmth]))

    def fronts(self, house: Any, u: np.ndarray, v: np.ndarray, z: np.ndarray) -> tuple[Any, Any, Any]:
        """House fronts at u metres along and v metres up: own light (..., 3), albedo (..., 3), warmth."""
        fine = np.clip(1.3 - z / 22, 0.15, 1)  # small patterns fade before they alias
        # Brickwork on every third house, plaster on the others.
        row = np.floor(v / 0.16)
        brick = self.chance(house, row, np.floor(u / 0.42 + 0.5 * (row % 2)))
        joint = (np.abs(v / 0.16 % 1 - 0.5) > 0.40) | (np.abs((u / 0.42 + 0.5 * (row % 2)) % 1 - 0.5) > 0.44)
        bricks = np.where(house % 3 == 0, fine, 0.12 * fine)
        shade = 1 + bricks * (0.5 * (brick - 0.5) + 0.35 * joint) + 0.16 * self.noise(u / 1.6 + 9 * house, v / 1.6, 4)
        albedo = self.tint[house] * np.clip(shade, 0.25, 2)[..., None]
        light = np.zeros_like(albedo)
        warmth = 0.36 + self.warmth[house] + 0.03 * self.noise(u / 3 + 5 * house, v / 3, 4) - 0.006 * v

        # Upper floors: a grid of windows.
        pitch = self.pitch[house]
        floor, cell = np.floor((v - 3.7) / 3.0), np.floor(u / pitch)
        fu, fv = (u / pitch - cell - 0.5) * pitch, v - 3.7 - 3.0 * floor - 1.35
        upper = (v > 3.7) & (v < self.roof[house] - 0.6)
        pane = upper & (np.abs(fu) < 0.55) & (np.abs(fv) < 0.85)
        frame = upper & (np.abs(fu) < 0.68) & (np.abs(fv) < 0.98) & ~pane
        frame |= pane & ((np.abs(fu) < 0.045) | (np.abs(fv - 0.30) < 0.045))
        sill = upper & (np.abs(fu) < 0.78) & (np.abs(fv + 1.03) < 0.07)
        dice = self.chance(house, floor, cell, 1)
        on = dice < self.lit[house]
        tone = self.chance(house, floor, cell, 2)[..., None]
        lamp = np.where(tone > 0.85, COOL * 0.25, WARM * (0.12 + 0.5 * tone))
        curtain = 0.35 + 0.65 * (np.abs(fu) < 0.2 + 0.3 * self.chance(house, floor, cell, 3))
        folds = 1 + 0.12 * np.sin(fu * 40) * fine
        glow = lamp * (curtain * folds * (0.75 + 0.35 * fv))[..., None]
        albedo[pane], light[pane] = 0.03, (np.where(on[..., None], glow, [0.002, 0.003, 0.006]))[pane]
        albedo[frame | sill] = f32([0.42, 0.40, 0.37])
        warmth = np.where(pane, np.where(on, 0.42, 0.20) + 0.03 * fv, np.where(frame, warmth + 0.04, warmth))
        band = (np.abs(v - 3.55) < 0.12) | (np.abs(v - self.roof[house] + 0.3) < 0.28)
        albedo[band] *= 1.5

        # Ground floor: shop windows with a sign above, or a plain base with doors.
        shop = self.shop[house] & (v < 3.4)
        bay = u % 3.4 - 1.7
        glass = shop & (np.abs(bay) < 1.5) & (np.abs(v - 1.45) < 0.95)
        # Things on shelves against a bright back wall.
        tier, item = np.floor(v / 0.55), np.floor(u / 0.23)
        tall = 0.12 + 0.36 * self.chance(house, tier, item, 7)
        inner = np.abs(u / 0.23 - item - 0.5) < 0.25 + 0.2 * self.chance(house, tier, item, 8)
        goods = (v < 2.0) & (v - 0.55 * tier < tall) & inner & (self.chance(house, tier, item, 9) < 0.85)
        shelf = (v % 0.55 > 0.50) & (v < 2.1)
        hue = np.where((self.chance(house, 5) > 0.6)[:, None], COOL, WARM)
        wall = hue * (0.05 + 0.13 * np.clip(v / 2.4, 0, 1) ** 2 * (1 + 0.25 * np.cos(u * 2 * np.pi / 1.7)))[:, None]
        colours = np.stack([self.chance(house, tier, item, c) for c in (11, 12, 13)], axis=1)
        inside = np.where(goods[:, None], wall * (0.08 + 1.5 * colours**3), wall * np.where(shelf, 0.3, 1.0)[:, None])
        light[glass] = inside[glass]
        albedo[shop & ~glass] = f32([0.10, 0.11, 0.12])
        warmth = np.where(glass, 0.37 + 0.03 * v, np.where(shop, 0.32, warmth))
        board = shop & (np.abs(v - 2.90) < 0.36)
        texture = self.signs[house, _grid((3.26 - v) / 0.72, 64), _grid(u % 5.1 / 5.1, 256)]
        text = np.where(board & (u % 10.2 < 5.1), texture, 0)[..., None]
        light += (1.6 * text + 0.010 * board[:, None]) * self.neon[house]
        base = ~self.shop[house] & (v < 3.4)
        door = base & (np.abs(u % 5.2 - 2.6) < 0.55) & (v < 2.3)
        vent = base & ~door & (np.abs(u % 2.6 - 1.3) < 0.5) & (np.abs(v - 1.9) < 0.6)
        albedo[base] *= 0.75
        albedo[door], albedo[vent] = f32([0.05, 0.09, 0.07]), 0.04
        warmth = np.where(door, 0.40, np.where(vent, 0.25, warmth))
        warmth = np.where(base & (v < 0.7), warmth + 0.04, warmth)  # a heated cellar
        return light, albedo, warmth

    def ground(self, right: np.ndarray, up: np.ndarray, mirror: np.ndarray) -> np.ndarray:
        """Road and pavements (n, 4) along n rays; where they are wet they show `mirror`, smeared downwards."""
        z = EYE / -up
        x = EYE_X + right * z
        fine = np.clip(1.4 - z / 16, 0.05, 1)
        road = np.abs(x) < KERB
        grain = self.noise(x * 9, z * 9, 3) * 0.20 * fine
        stains = 0.20 * self.noise(x / 1.3, z / 2.5, 4)
        slab = (np.abs(x / 0.6 % 1 - 0.5) > 0.46) | (np.abs(z / 0.9 % 1 - 0.5) > 0.47)
        value = np.where(
            road, 0.11, 0.27 * (1 - 0.5 * fine * slab) * (1 + 0.3 * (self.chance(x // 0.6, z // 0.9) - 0.5))
        )
        stripe = (np.abs(x) < 0.07) & (z % 5 < 2.6) & (z > 13)
        edge = np.abs(np.abs(x) - KERB + 0.35) < 0.05
        zebra = road & (np.abs(z - 9.6) < 1.3) & (np.abs(x) < KERB - 0.5) & (x / 0.95 % 1 < 0.52)
        worn = np.clip(0.75 + 0.4 * self.noise(x * 3, z * 3, 3), 0.15, 1)
        value = np.where(stripe | edge | zebra, value + 0.5 * worn, value)
        kerb = np.abs(np.abs(x) - KERB) < 0.13
        value = np.where(kerb, 0.34, value) * np.clip(1 + grain + stains, 0.3, 2)
        cover = (x - 1.9) ** 2 + (z - 7.0) ** 2  # a manhole cover: drains are warm
        value = np.where(cover < 0.30**2, 0.07 + 0.05 * ((x * 12 % 1 < 0.5) ^ (z * 12 % 1 < 0.5)), value)

        warmth = np.where(road, 0.33, 0.28) + 0.022 * self.noise(x / 1.5, z / 2.2, 4)
        warmth += 0.05 * road * np.exp(-(((np.abs(x + 2.0 * np.sign(-x)) - 0.75) / 0.22) ** 2)) * (np.abs(x) < 3.6)
        warmth += np.where(kerb, -0.03, 0) + 0.10 * np.exp(-((cover / 0.35**2) ** 2))

        shadow = np.ones_like(x)
        for px, pz, rx, rz, strength, hot in self.footprints():
            soft = np.exp(-((((x - px) / rx) ** 2 + ((z - pz) / rz) ** 2) ** 2))
            shadow *= 1 - strength * soft
            warmth += hot * soft
        lit = self.irradiance(x, 0.0, z, (0.0, 1.0, 0.0)) * (value * shadow)[..., None] * 1.3

        puddle = np.clip(0.55 + 0.55 * self.noise(x / 1.5, z / 3.0, 3), 0, 1) * np.where(road, 1.0, 0.45)
        grazing = (1 - EYE / np.hypot(EYE, z)) ** 3
        wet = np.clip((0.06 + 0.85 * grazing) * (0.30 + 0.70 * puddle), 0, 0.9)
        # Waves on the water smear a mirror image along the line of sight; the drier, the more.
        smooth = cv2.GaussianBlur(mirror, (0, 0), sigmaX=self.h / 480, sigmaY=self.h / 60)[self.below]
        small = cv2.resize(mirror, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigmaX=self.h / 800, sigmaY=self.h / 64)
        rough = cv2.resize(small, (self.w, self.h), interpolation=cv2.INTER_LINEAR)[self.below]
        image = rough + (puddle**2)[:, None] * (smooth - rough)
        ripple = 1 + 0.25 * self.noise(x * 5, z * 1.2, 2) * fine
        light = lit * (1 - 0.35 * puddle[..., None]) + (wet * ripple)[..., None] * image[..., :3]
        warmth += 0.22 * wet * (image[..., 3] - 0.33) - 0.03 * puddle
        haze = 1 - np.exp(-z / 260)[:, None]
        return np.c_[light + haze * (HAZE - light), warmth].astype(np.float32)

    def footprints(self) -> list[tuple[float, float, float, float, float, float]]:
        """Shadow and warmth on the ground: (x, z, radius x, radius z, darkening, warming)."""
        people = [(x, z, 0.35, 0.30, 0.6, 0.02) for x, z, *_ in PEOPLE]
        return people + [(x, z + 2.1, 1.05, 2.4, 0.92, 0.10) for x, z, *_ in CARS]

    # -- things, painted from far to near

    def things(self, picture: np.ndarray, flip: int) -> None:
        """Lamps, cars and people, over what is behind them."""
        todo: list[tuple[float, Any, tuple[Any, ...]]] = [
            (z, self.lamp, (x, z)) for x, z in [*self.lamps, (-4.9, 16.0)]
        ]
        todo += [(car[1], self.car, car) for car in CARS]
        todo += [(person[1], self.person, person) for person in PEOPLE]
        for _, draw, what in sorted(todo, key=lambda item: -item[0]):
            draw(picture, flip, *what)

    def polygon(self, picture: np.ndarray, flip: int, points: Any, colour: Any, warmth: float) -> None:
        """Fills a polygon given by (n, 3) points of the scene."""
        p = np.asarray(points, np.float32)
        z = np.maximum(p[:, 2], 0.5)
        pixels = np.stack(
            [
                self.w / 2 + self.focal * (p[:, 0] - EYE_X) / z,
                HORIZON * self.h + self.focal * (EYE - flip * p[:, 1]) / z,
            ],
            axis=1,
        )
        fill = (*(float(c) for c in np.broadcast_to(colour, 3)), float(warmth))
        cv2.fillPoly(picture, [np.round(pixels * 16).astype(np.int32)], fill, shift=4)

    def limb(
        self, picture: np.ndarray, flip: int, a: Any, b: Any, ra: float, rb: float, z: float, colour: Any, warmth: float
    ) -> None:
        """A tapered stroke with round ends from a = (x, y) to b, at depth z."""
        turn = np.linspace(0, 2 * np.pi, 20)
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        hull = cv2.convexHull(f32(np.vstack([a + ra * ring, b + rb * ring])))[:, 0]
        self.polygon(picture, flip, np.c_[hull, np.full(len(hull), z)], colour, warmth)

    def lamp(self, picture: np.ndarray, flip: int, x: float, z: float) -> None:
        """A street lamp; the one that gives no light is only a pole."""
        works = (x, z) in self.lamps
        tip = x * 0.84
        grey = 0.03 * self.irradiance(x, 2.0, z, None)
        self.limb(picture, flip, (x, 0), (x, 5.3), 0.065, 0.04, z, grey, 0.30)
        self.limb(picture, flip, (x, 0), (x, 0.9), 0.10, 0.09, z, grey, 0.31)
        self.limb(picture, flip, (x, 5.3), (tip, 5.5), 0.05, 0.04, z, grey, 0.30)
        side = np.sign(tip - x)
        self.limb(
            picture,
            flip,
            (tip - 0.25 * side, 5.5),
            (tip + 0.25 * side, 5.45),
            0.11,
            0.09,
            z,
            grey,
            0.62 if works else 0.28,
        )
        if works:
            bulb = SODIUM * 14 + 2
            self.limb(picture, flip, (tip - 0.2 * side, 5.41), (tip + 0.2 * side, 5.37), 0.07, 0.07, z, bulb, 0.95)

    def person(
        self, picture: np.ndarray, flip: int, x: float, z: float, tall: float, stride: float, coat: Any, facing: int
    ) -> None:
        """Someone of `tall` metres; stride 0 stands, 1 walks; facing -1, 0, 1: to the left, the camera, the right."""
        s = tall / 1.78
        light = self.irradiance(x, 1.2, z, None)
        cloth, dark = f32(coat) * light, 0.06 * light
        skin, hair = f32([0.40, 0.26, 0.19]) * light, f32([0.05, 0.035, 0.03]) * light

        def stroke(a: Any, b: Any, ra: float, rb: float, colour: Any, warmth: float) -> None:
            a, b = (f32([x + s * p[0], s * p[1]]) for p in (a, b))
            self.limb(picture, flip, a, b, ra * s, rb * s, z, colour, warmth)

        wide = 1.0 if facing == 0 else 0.62
        swing = 0.26 * stride
        lead = facing if facing else 1
        for leg, step in ((-1, -swing), (1, swing)):
            hip = (0.085 * leg * wide, 0.90)
            knee = (0.095 * leg * wide + 0.55 * step * lead + 0.02 * lead * stride, 0.49)
            foot = (0.10 * leg * wide + step * lead, 0.07 + 0.05 * stride * (leg < 0))
            stroke(hip, knee, 0.095, 0.066, dark, 0.62)
            stroke(knee, foot, 0.064, 0.045, dark, 0.56)
            stroke(foot, (foot[0] + 0.11 * lead * (facing != 0), foot[1] - 0.03), 0.045, 0.035, 0.5 * dark, 0.45)
        shoulder = 0.21 if facing == 0 else 0.09
        sway = 0.6 * swing * lead
        for arm in (-1, 1):
            if arm > 0:  # the near arm goes over the trunk
                stroke((0, 0.88), (0, 1.12), 0.165 * wide + 0.02, 0.150 * wide + 0.02, cloth, 0.68)
                stroke((0, 1.10), (0, 1.34), 0.155 * wide + 0.02, 0.185 * wide + 0.02, cloth, 0.76)
                stroke((-0.12 * wide, 1.43), (0.12 * wide, 1.43), 0.08, 0.08, cloth * 1.1, 0.74)
            elbow = (arm * (shoulder + 0.035 * wide - 0.5 * sway), 1.14)
            hand = (arm * (shoulder - sway) + 0.05 * lead * stride, 0.92 + 0.04 * stride)
            sleeve = cloth * (0.8 if arm < 0 else 1.1)
            stroke((arm * shoulder, 1.42), elbow, 0.062, 0.052, sleeve, 0.68)
            stroke(elbow, hand, 0.05, 0.042, sleeve, 0.66)
            stroke(hand, (hand[0], hand[1] - 0.06), 0.04, 0.034, skin, 0.88)
        stroke((0, 1.47), (0, 1.56), 0.055, 0.055, skin, 0.95)
        stroke((0.01 * lead, 1.60), (0.0, 1.67), 0.080, 0.098, skin, 1.0)
        stroke((-0.025 * lead, 1.70), (-0.015 * lead, 1.725), 0.092, 0.075, hair, 0.80)

    def car(
        self, picture: np.ndarray, flip: int, x: float, z: float, colour: Any, oncoming: bool, engine: float
    ) -> None:
        """A hatchback whose nearest end is at depth z, middle at x; engine: warmth of bonnet, tyres and exhaust."""
        profile = f32(
            [
                [0, 0.32],
                [0, 0.72],
                [0.10, 0.98],
                [0.62, 1.43],
                [1.95, 1.48],
                [2.85, 1.02],
                [3.85, 0.86],
                [4.15, 0.62],
                [4.2, 0.3],
            ]
        )
        if oncoming:
            profile = profile[::-1] * [-1, 1] + [4.2, 0]
        near = -0.85 if x > EYE_X else 0.85  # the flank that the camera sees
        paint = f32(colour)
        n = len(profile)

        def at(px: float, point: Any) -> tuple[float, float, float]:
            return (x + px, float(point[1]), z + float(point[0]))

        def quad(a: Any, b: Any, inset: float, tone: Any, warmth: float) -> None:
            self.polygon(picture, flip, [at(-inset, a), at(inset, a), at(inset, b), at(-inset, b)], tone, warmth)

        under = [
            at(px, p) for px, p in ((-0.8, (0.1, 0.02)), (0.8, (0.1, 0.02)), (0.8, (0.1, 0.4)), (-0.8, (0.1, 0.4)))
        ]
        for end in (0, 1):
            depth = 0.55 if end == 0 else 3.4
            for px in (-0.68, 0.68):
                tyre = [at(px + dx, (depth, y)) for dx, y in ((-0.11, 0.0), (0.11, 0.0), (0.11, 0.5), (-0.11, 0.5))]
                self.polygon(picture, flip, tyre, 0.004, 0.40 + 0.35 * engine)
        self.polygon(picture, flip, under, 0.002, 0.33 + 0.30 * engine)
        segments = sorted(range(n - 1), key=lambda i: -(profile[i][0] + profile[i + 1][0]))
        for i in segments:
            a, b = profile[i], profile[i + 1]
            run, rise = b - a
            length = float(np.hypot(run, rise))
            normal = (0.0, abs(float(run)) / length, -abs(float(rise)) / length)
            mid = (a + b) / 2
            lit = self.irradiance(x, float(mid[1]), z + float(mid[0]), normal) + 0.004
            original = n - 2 - i if oncoming else i
            bonnet = original in (5, 6)
            warmth = 0.30 + (0.42 * engine if bonnet else 0.10 * engine) + (0.15 * engine if original == 7 else 0)
            quad(a, b, 0.85 if mid[1] < 1.1 else 0.78, paint * lit, warmth)
            if original in (2, 4):  # rear window, windscreen
                glass = 0.03 * lit + f32([0.002, 0.003, 0.005])
                quad(a + 0.12 * (b - a), b - 0.10 * (b - a), 0.68, glass, 0.24)
        flank = self.irradiance(x + near, 0.8, z + 2, (np.sign(near), 0.0, 0.0)) + 0.003
        self.polygon(picture, flip, [at(near, p) for p in profile], paint * flank * 0.9, 0.30 + 0.05 * engine)
        panes = f32([[0.55, 1.02], [0.80, 1.34], [1.92, 1.38], [2.62, 1.02]])
        arches = f32([[0.80, 0.31], [3.38, 0.31]])
        if oncoming:
            panes, arches = panes * [-1, 1] + [4.2, 0], arches * [-1, 1] + [4.2, 0]
        self.polygon(picture, flip, [at(near, p) for p in panes], 0.03 * flank + 0.002, 0.25)
        turn = np.linspace(0, 2 * np.pi, 24)
        for hub in arches:
            for r, tone, warmth in (
                (0.36, 0.003, 0.36),
                (0.31, 0.006, 0.42 + 0.30 * engine),
                (0.19, 0.25, 0.40 + 0.45 * engine),
            ):
                ring = [at(near * 1.01, (hub[0] + r * np.cos(t), hub[1] + r * np.sin(t))) for t in turn]
                self.polygon(picture, flip, ring, tone * flank, warmth)
        # Lamps and number plate of the end that faces us.
        if oncoming:
            for px in (-0.62, 0.62):
                self.limb(
                    picture, flip, (x + px - 0.07, 0.66), (x + px + 0.07, 0.66), 0.09, 0.09, z, (22, 20.5, 17), 0.62
                )
            grille = [at(px, (0, y)) for px, y in ((-0.42, 0.5), (0.42, 0.5), (0.42, 0.68), (-0.42, 0.68))]
            self.polygon(picture, flip, grille, 0.01, 0.40 + 0.5 * engine)
        else:
            for px in (-0.70, 0.70):
                lens = [at(px + dx, (0, y)) for dx, y in ((-0.13, 0.74), (0.13, 0.74), (0.13, 0.92), (-0.13, 0.92))]
                self.polygon(picture, flip, lens, f32([1.6, 0.05, 0.03]) * (engine > 0.6) + [0.06, 0.004, 0.004], 0.36)
            plate = [at(px, (-0.01, y)) for px, y in ((-0.26, 0.50), (0.26, 0.50), (0.26, 0.62), (-0.26, 0.62))]
            lit = self.irradiance(x, 0.6, z, (0.0, 0.0, -1.0)) + 0.03
            self.polygon(picture, flip, plate, 0.6 * lit, 0.31)
            if engine > 0.6:
                self.limb(picture, flip, (x + 0.5, 0.27), (x + 0.5, 0.27), 0.06, 0.06, z, (0.01, 0.01, 0.01), 0.98)


def _grid(fraction: np.ndarray, n: int) -> np.ndarray:
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


def _night_camera(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear light (H, W, 3) to a uint8 image: glow around what is bright, exposure, gamma, sensor noise."""
    h = light.shape[0]
    bright = np.minimum(light, 12)
    for share, sigma in ((0.10, h / 160), (0.04, h / 40), (0.012, h / 12)):
        light = light + share * cv2.GaussianBlur(bright, (0, 0), sigma)
    film = 1 - np.exp(-EXPOSURE * light)
    film += rng.normal(0, 1, film.shape) * (0.003 + 0.012 * np.sqrt(film))
    return to_uint8(np.clip(film, 0, 1) ** (1 / 2.2))


def _thermal_camera(heat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Warmth (H, W), 0 to 1, to a uint8 image: soft optics, noise, and the columns of the detector."""
    h, w = heat.shape
    soft = cv2.GaussianBlur(heat, (0, 0), 1.1 * h / 480)
    columns = cv2.GaussianBlur(rng.normal(0, 1, (1, w)), (0, 0), 0.6)
    return to_uint8(soft + 0.004 * columns + rng.normal(0, 0.011, (h, w)))
