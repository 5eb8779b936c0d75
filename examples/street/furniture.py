"""Lamps, cars and people: polygons, painted from far to near over the background."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from drawing import f32

from street.view import Painter
from street.world import CARS, DEAD_LAMP, EYE_X, LAMPS, OVERHANG, PEOPLE, SODIUM, Light, irradiance


def paint_furniture(painter: Painter, lights: Sequence[Light]) -> None:
    """Everything standing in the street."""
    todo: list[tuple[float, Any, tuple[Any, ...]]] = [(z, _lamp, (x, z)) for x, z in [*LAMPS, DEAD_LAMP]]
    todo += [(car[1], _car, car) for car in CARS]
    todo += [(person[1], _person, person) for person in PEOPLE]
    for _, paint, what in sorted(todo, key=lambda item: -item[0]):
        paint(painter, lights, *what)


def _lamp(painter: Painter, lights: Sequence[Light], x: float, z: float) -> None:
    """A street lamp; the one that gives no light is only a pole."""
    works = (x, z) != DEAD_LAMP
    tip = x * OVERHANG
    side = np.sign(tip - x)
    grey = 0.03 * irradiance(lights, x, 2.0, z, None)
    painter.stroke((x, 0), (x, 5.3), 0.065, 0.04, z, grey, 0.30)
    painter.stroke((x, 0), (x, 0.9), 0.10, 0.09, z, grey, 0.31)
    painter.stroke((x, 5.3), (tip, 5.5), 0.05, 0.04, z, grey, 0.30)
    head = (tip - 0.25 * side, 5.5), (tip + 0.25 * side, 5.45)
    painter.stroke(*head, 0.11, 0.09, z, grey, 0.62 if works else 0.28)
    if works:
        bulb = (tip - 0.2 * side, 5.41), (tip + 0.2 * side, 5.37)
        painter.stroke(*bulb, 0.07, 0.07, z, SODIUM * 14 + 2, 0.95)


def _person(
    painter: Painter,
    lights: Sequence[Light],
    x: float,
    z: float,
    tall: float,
    stride: float,
    coat: Any,
    facing: int,
) -> None:
    """A person `tall` metres tall; stride 0 stands, 1 walks; facing -1, 0, 1: left, the camera, right."""
    s = tall / 1.78
    light = irradiance(lights, x, 1.2, z, None)
    cloth, dark = f32(coat) * light, 0.06 * light
    skin, hair = f32([0.40, 0.26, 0.19]) * light, f32([0.05, 0.035, 0.03]) * light

    def stroke(a: Any, b: Any, ra: float, rb: float, colour: Any, warmth: float) -> None:
        a, b = (f32([x + s * p[0], s * p[1]]) for p in (a, b))
        painter.stroke(a, b, ra * s, rb * s, z, colour, warmth)

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


# Outlines of a hatchback from the side, rear end first: (metres from that end, height).
LENGTH = 4.2
REAR = [[0, 0.32], [0, 0.72], [0.10, 0.98], [0.62, 1.43]]
PROFILE = f32([*REAR, [1.95, 1.48], [2.85, 1.02], [3.85, 0.86], [4.15, 0.62], [LENGTH, 0.3]])
PANES = f32([[0.55, 1.02], [0.80, 1.34], [1.92, 1.38], [2.62, 1.02]])
HUBS = f32([[0.80, 0.31], [3.38, 0.31]])
REAR_WINDOW, WINDSCREEN, BONNET, FRONT = 2, 4, (5, 6), 7  # sections of PROFILE


def _car(painter: Painter, lights: Sequence[Light], *car: Any) -> None:
    """A row of CARS."""
    drawn = _Car(painter, lights, *car)
    drawn.paint_underside()
    drawn.paint_top()
    drawn.paint_flank()
    drawn.paint_end()


@dataclass
class _Car:
    """A hatchback whose nearest end is at depth z, middle at x; engine: warmth of bonnet, tyres and exhaust.

    A point of it is (metres right of its middle, (metres behind its nearest end, height)).
    """

    painter: Painter
    lights: Sequence[Light]
    x: float
    z: float
    colour: Any
    oncoming: bool
    engine: float

    def __post_init__(self) -> None:
        self.paint = f32(self.colour)
        self.near = -0.85 if self.x > EYE_X else 0.85  # the flank that the camera sees

    def polygon(self, points: Any, colour: Any, warmth: float) -> None:
        """The given points of the car."""
        placed = [(self.x + px, float(height), self.z + float(depth)) for px, (depth, height) in points]
        self.painter.polygon(placed, colour, warmth)

    def upright(self, left: float, right: float, low: float, high: float, depth: float) -> Any:
        """The corners of a rectangle that faces the camera."""
        return [(left, (depth, low)), (right, (depth, low)), (right, (depth, high)), (left, (depth, high))]

    def turned(self, outline: np.ndarray) -> np.ndarray:
        """A side outline of the car in its position."""
        return outline * [-1, 1] + [LENGTH, 0] if self.oncoming else outline

    def paint_underside(self) -> None:
        """Tyres from behind, and the dark between them."""
        for depth in (0.55, 3.4):
            for px in (-0.68, 0.68):
                tyre = self.upright(px - 0.11, px + 0.11, 0.0, 0.5, depth)
                self.polygon(tyre, 0.004, 0.40 + 0.35 * self.engine)
        self.polygon(self.upright(-0.8, 0.8, 0.02, 0.4, 0.1), 0.002, 0.33 + 0.30 * self.engine)

    def paint_top(self) -> None:
        """The visible parts of the profile: ends, windows, roof and bonnet, the farthest first."""
        profile = self.turned(PROFILE[::-1] if self.oncoming else PROFILE)
        stretches = len(profile) - 1
        for i in sorted(range(stretches), key=lambda i: -(profile[i][0] + profile[i + 1][0])):
            a, b = profile[i], profile[i + 1]
            run, rise = b - a
            length = float(np.hypot(run, rise))
            normal = (0.0, abs(float(run)) / length, -abs(float(rise)) / length)
            mid = (a + b) / 2
            lit = irradiance(self.lights, self.x, float(mid[1]), self.z + float(mid[0]), normal) + 0.004
            part = stretches - 1 - i if self.oncoming else i
            warmth = 0.30 + (0.42 if part in BONNET else 0.10) * self.engine + 0.15 * self.engine * (part == FRONT)
            self.across(a, b, 0.85 if mid[1] < 1.1 else 0.78, self.paint * lit, warmth)
            if part in (REAR_WINDOW, WINDSCREEN):
                glass = 0.03 * lit + f32([0.002, 0.003, 0.005])
                self.across(a + 0.12 * (b - a), b - 0.10 * (b - a), 0.68, glass, 0.24)

    def across(self, a: Any, b: Any, half: float, colour: Any, warmth: float) -> None:
        """A strip from side to side, between two points of the profile."""
        self.polygon([(-half, a), (half, a), (half, b), (-half, b)], colour, warmth)

    def paint_flank(self) -> None:
        """The side that the camera sees, with its windows and wheels."""
        near, engine = self.near, self.engine
        lit = irradiance(self.lights, self.x + near, 0.8, self.z + 2, (np.sign(near), 0.0, 0.0)) + 0.003
        self.polygon([(near, p) for p in self.turned(PROFILE)], self.paint * lit * 0.9, 0.30 + 0.05 * engine)
        self.polygon([(near, p) for p in self.turned(PANES)], 0.03 * lit + 0.002, 0.25)
        turn = np.linspace(0, 2 * np.pi, 24)
        arch, tyre, rim = (0.36, 0.003, 0.36), (0.31, 0.006, 0.42 + 0.30 * engine), (0.19, 0.25, 0.40 + 0.45 * engine)
        for hub in self.turned(HUBS):
            for r, tone, warmth in (arch, tyre, rim):
                ring = [(near * 1.01, (hub[0] + r * np.cos(t), hub[1] + r * np.sin(t))) for t in turn]
                self.polygon(ring, tone * lit, warmth)

    def paint_end(self) -> None:
        """The end that faces the camera: headlights and grille, or tail lights, number plate and exhaust."""
        x, z, engine, stroke = self.x, self.z, self.engine, self.painter.stroke
        if self.oncoming:
            for px in (-0.62, 0.62):
                stroke((x + px - 0.07, 0.66), (x + px + 0.07, 0.66), 0.09, 0.09, z, (22, 20.5, 17), 0.62)
            self.polygon(self.upright(-0.42, 0.42, 0.5, 0.68, 0), 0.01, 0.40 + 0.5 * engine)
            return
        runs = engine > 0.6
        for px in (-0.70, 0.70):
            lens = self.upright(px - 0.13, px + 0.13, 0.74, 0.92, 0)
            self.polygon(lens, f32([1.6, 0.05, 0.03]) * runs + [0.06, 0.004, 0.004], 0.36)
        lit = irradiance(self.lights, x, 0.6, z, (0.0, 0.0, -1.0)) + 0.03
        self.polygon(self.upright(-0.26, 0.26, 0.50, 0.62, -0.01), 0.6 * lit, 0.31)
        if runs:
            stroke((x + 0.5, 0.27), (x + 0.5, 0.27), 0.06, 0.06, z, (0.01, 0.01, 0.01), 0.98)
