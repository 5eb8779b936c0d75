"""Refinement of a similarity or affine map: robust Gauss-Newton steps on contours, coarse to fine."""

from __future__ import annotations

import cv2
import numpy as np

from ddfm.registration.features import Masked, contours, correlation, shrink
from ddfm.registration.transform import resize

TAU = 2.0  # squared difference of contours at which a pixel has a quarter of the weight
STEPS = 12
DAMPING = 1e-3
OVERLAP = 0.5  # of the smaller image: a smaller overlap has no score
BLOCKS = 8  # of the chequerboard, along the longest side

Level = tuple[np.ndarray, np.ndarray]  # contours (H, W, 5), and where they are known, (H, W)


class Pair:
    """Both images at one scale of the fixed one; excess resolution of moving is averaged away."""

    def __init__(self, moving: Masked, fixed: Masked, side: int, scale: float) -> None:
        """scale: approximate pixels of moving per pixel of fixed; side: limit of the longest side, in pixels."""
        factor = min(1.0, side / max(fixed[0].shape))
        factors = (moving, min(1.0, factor / scale)), (fixed, factor)
        parts = [[shrink(part, f) for part in image] for image, f in factors]
        self.moving, self.fixed = ((contours(*part), part[1]) for part in parts)
        self.of_moving = np.linalg.inv(resize(moving[0].shape, parts[0][0].shape).matrix)
        self.of_fixed = np.linalg.inv(resize(fixed[0].shape, parts[1][0].shape).matrix)

    def refined(self, matrix: np.ndarray, free: int = 6, half: int | None = None) -> np.ndarray:
        """The matrix (3, 3), in pixels of the full-size images, refined at this scale.

        free: 4 for a similarity, 6 for an affine map. half 0 or 1: on every second block of a chequerboard only.
        """
        level = self.of_moving @ matrix @ np.linalg.inv(self.of_fixed)
        contour, known = self.fixed
        if half is not None:
            y, x = np.indices(known.shape) // max(8, max(known.shape) // BLOCKS)
            known = known * ((x + y) % 2 == half)
        level = _gauss_newton(self.moving, (contour, known), level, free)
        result: np.ndarray = np.linalg.inv(self.of_moving) @ level @ self.of_fixed
        return result

    def score(self, matrix: np.ndarray) -> float:
        """As in the search: normalised correlation times the square root of the overlap; -1 if that is too small."""
        level = self.of_moving @ matrix @ np.linalg.inv(self.of_fixed)
        (found, inside), (target, known) = self.moving, self.fixed
        warped, weight = _warp(found, level, known.shape), _warp(inside, level, known.shape) * known
        total, area = float(weight.sum()), float(known.sum())
        if total < OVERLAP * min(area, float(inside.sum()) / max(abs(np.linalg.det(level)), 1e-9)):
            return -1.0
        one, two = warped.copy(), target.copy()
        for planes in (one, two):
            planes[..., 0] -= (planes[..., 0] * weight).sum() / total
        return correlation(one, two, weight) * float(np.sqrt(total / area))


def _warp(planes: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(planes, matrix[:2], shape[1::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT)


def gradient(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences per pixel along x and y of (H, W) or (H, W, C)."""
    return (
        cv2.Sobel(planes, cv2.CV_32F, 1, 0, scale=1 / 8),
        cv2.Sobel(planes, cv2.CV_32F, 0, 1, scale=1 / 8),
    )


def trust(difference: np.ndarray) -> np.ndarray:
    """The robust weight, (H, W) in (0, 1], for a difference of contours (H, W, 5)."""
    found: np.ndarray = (TAU / (TAU + np.einsum("hwc,hwc->hw", difference, difference))) ** 2
    return found


def _motions(free: int) -> np.ndarray:
    """(free, 2, 3): the displacement (x, y) in terms of (1, u, v), with u and v measured from the centre."""
    shift = [[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]]
    if free == 4:
        return np.array([*shift, [[0, 1, 0], [0, 0, 1]], [[0, 0, -1], [0, 1, 0]]], np.float64)
    return np.array(
        [*shift, [[0, 1, 0], [0] * 3], [[0, 0, 1], [0] * 3], [[0] * 3, [0, 1, 0]], [[0] * 3, [0, 0, 1]]],
        np.float64,
    )


def _gauss_newton(moving: Level, fixed: Level, matrix: np.ndarray, free: int) -> np.ndarray:
    """The refined matrix; the gradient is the mean of both images' gradients (Benhimane and Malis 2004)."""
    target, known = fixed
    height, width = known.shape
    size = max(height, width) / 2
    motions = _motions(free)
    # Moments of a plane, (3, 3) sums of v^i u^j: separated by rows and columns, they read a ninth of the memory.
    along_x, along_y = (
        ((np.arange(n, dtype=np.float32) - (n - 1) / 2) / size)[:, None] ** np.arange(3, dtype=np.float32)
        for n in (width, height)
    )
    u, v = np.array([0, 1, 0]), np.array([0, 0, 1])  # the powers in 1, u and v
    centred = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, size]]) / size
    of_target = gradient(target)
    for _ in range(STEPS):
        warped = _warp(moving[0], matrix, known.shape)
        gradients = [(a + b) / 2 for a, b in zip(of_target, gradient(warped), strict=True)]
        difference = target - warped
        weight = _warp(moving[1], matrix, known.shape) * known
        weight *= trust(difference)

        def moments(a: np.ndarray, b: np.ndarray, weight: np.ndarray = weight) -> np.ndarray:
            result: np.ndarray = along_y.T @ (np.einsum("hwc,hwc->hw", a, b) * weight @ along_x)
            return result

        gx, gy = gradients
        xx, xy, yy = (moments(*planes)[v[:, None] + v, u[:, None] + u] for planes in ((gx, gx), (gx, gy), (gy, gy)))
        tensor = np.stack([xx, xy, xy, yy]).reshape(2, 2, 3, 3)
        slope = np.stack([moments(g, difference)[v, u] for g in gradients])
        normal = np.einsum("kia,ijab,ljb->kl", motions, tensor, motions)
        normal += np.diag(np.diag(normal)) * DAMPING + 1e-6 * np.eye(free)
        step = np.linalg.solve(normal, np.einsum("kia,ia->k", motions, slope))
        step *= min(1.0, 4 / max(float(np.abs(step).max()), 1e-9))
        change = np.einsum("k,kia->ia", step, motions)
        matrix = matrix @ (np.eye(3) + np.vstack([np.roll(change, -1, axis=1), [0, 0, 0]]) @ centred)
        if np.abs(step).max() < 0.01:
            break
    return matrix
