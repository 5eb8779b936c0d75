"""Perspective: the ray of every pixel, and polygons of the scene painted over an image of it."""

from typing import Any

import cv2
import numpy as np
from drawing import f32

from street.world import END, EYE, EYE_X, WALL

HORIZON = 0.44  # of the image's height


class View:
    """The rays of an image of h x w pixels."""

    def __init__(self, h: int, w: int) -> None:
        self.h, self.w, self.focal = h, w, 0.80 * w
        rows, cols = np.mgrid[0:h, 0:w].astype(np.float32)
        self.right = (cols + 0.5 - w / 2) / self.focal  # how far a pixel's ray goes per metre of z
        self.up = (HORIZON * h - rows - 0.5) / self.focal
        self.below = self.up * front(self.right) < -EYE  # the pixels that show the ground


def front(right: np.ndarray) -> np.ndarray:
    """The distance (z) of the house front that each ray meets."""
    return np.minimum(np.where(right > 0, WALL - EYE_X, WALL + EYE_X) / np.maximum(np.abs(right), 1e-6), END)


class Painter:
    """Paints over an image (h, w, 4); flip is 1 for the scene itself and -1 for its mirror image in the road."""

    def __init__(self, view: View, image: np.ndarray, flip: int) -> None:
        self.view, self.image, self.flip = view, image, flip

    def polygon(self, points: Any, colour: Any, warmth: float) -> None:
        """Fills a polygon given by (n, 3) points of the scene."""
        p, view = np.asarray(points, np.float32), self.view
        z = np.maximum(p[:, 2], 0.5)
        columns = view.w / 2 + view.focal * (p[:, 0] - EYE_X) / z
        rows = HORIZON * view.h + view.focal * (EYE - self.flip * p[:, 1]) / z
        fill = (*(float(c) for c in np.broadcast_to(colour, 3)), float(warmth))
        corners = np.round(np.stack([columns, rows], axis=1) * 16).astype(np.int32)
        cv2.fillPoly(self.image, [corners], fill, shift=4)

    def stroke(self, a: Any, b: Any, ra: float, rb: float, z: float, colour: Any, warmth: float) -> None:
        """A tapered stroke with round ends from a = (x, y) to b, at depth z."""
        turn = np.linspace(0, 2 * np.pi, 20)
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        hull = cv2.convexHull(f32(np.vstack([a + ra * ring, b + rb * ring])))[:, 0]
        self.polygon(np.c_[hull, np.full(len(hull), z)], colour, warmth)
