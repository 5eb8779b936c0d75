"""A head phantom: one tissue map, imaged as MRI and as PET, SPECT or CT.

x and y in units of half the image's shorter side, y downwards, the nose at the top.
"""

import cv2
import numpy as np
from drawing import f32, shrunk, to_uint8

# Colour scales for uptake 0 to 1 in equal steps: (r, g, b).
HOT = ((0, 0, 0), (0.22, 0, 0.34), (0.62, 0.05, 0.35), (0.92, 0.30, 0.10), (1, 0.66, 0.08), (1, 0.95, 0.45), (1, 1, 1))
RAINBOW = (
    (0, 0, 0),
    (0.05, 0.05, 0.50),
    (0, 0.45, 0.85),
    (0, 0.75, 0.45),
    (0.65, 0.90, 0.05),
    (1, 0.75, 0),
    (0.95, 0.1, 0.05),
)
# Relative signal of each tissue in each kind of image.
SIGNAL = {
    "mri": {
        "fat": 0.88,
        "skin": 0.45,
        "bone": 0.07,
        "marrow": 0.26,
        "csf": 0.11,
        "grey": 0.46,
        "white": 0.72,
        "lesion": 0.30,
    },
    "pet": {
        "fat": 0.06,
        "skin": 0.10,
        "bone": 0.03,
        "marrow": 0.06,
        "csf": 0.06,
        "grey": 0.86,
        "white": 0.28,
        "lesion": 0.14,
    },
    "ct": {
        "fat": 0.20,
        "skin": 0.33,
        "bone": 1.00,
        "marrow": 0.78,
        "csf": 0.27,
        "grey": 0.43,
        "white": 0.37,
        "lesion": 0.48,
    },
}


def head_phantom(size: tuple[int, int] = (256, 256), kind: str = "pet", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A slice through a synthetic head in MRI and in a second modality, registered pixel by pixel.

    A small tumour on the left of the image takes up tracer but has the MRI signal of the tissue around it; a lesion
    with a bright rim on the right shows in MRI and takes up none. Only CT shows the bone and three calcifications.

    Args:
        size: (H, W) in pixels; the head fills the shorter side.
        kind: "pet", "ct" or "spect".
        seed: for the folds, the bias field and the noise.

    Returns:
        mri (H, W) uint8, T1-weighted; and PET or SPECT (H, W, 3) uint8, RGB pseudo-colour on black, or CT (H, W)
        uint8.

    Raises:
        ValueError: an unknown `kind`.
    """
    if kind not in ("pet", "ct", "spect"):
        raise ValueError(f"kind must be 'pet', 'ct' or 'spect', not {kind!r}")
    rng = np.random.default_rng(seed)
    h, w = 2 * size[0], 2 * size[1]
    unit = min(h, w) / 2
    y, x = ((g + 0.5 - n / 2) / unit for g, n in zip(np.mgrid[0:h, 0:w], (h, w), strict=True))
    tissue, tumour, chalk = _anatomy(x, y, unit, rng)

    def picture(modality: str) -> np.ndarray:
        return sum(SIGNAL[modality][name] * share for name, share in tissue.items())  # type: ignore[return-value]

    mri = picture("mri") * (1 + 0.10 * _smooth(rng, x.shape, 0.5 * unit))
    mri = shrunk(cv2.GaussianBlur(mri, (0, 0), 0.006 * unit), size)
    mri = np.hypot(mri + rng.normal(0, 0.014, size), rng.normal(0, 0.014, size))  # magnitude of a noisy signal
    if kind == "ct":
        ct = np.maximum(picture("ct"), chalk)
        ct = ct + 0.05 * cv2.GaussianBlur(tissue["bone"], (0, 0), 0.06 * unit) * (ct > 0.2)  # beam hardening
        ct = shrunk(cv2.GaussianBlur(ct, (0, 0), 0.005 * unit), size)
        return to_uint8(mri), to_uint8(ct + rng.normal(0, 0.018, size))
    uptake = picture("pet") * (1 + 0.10 * y) + 0.75 * tumour
    uptake = uptake * (1 + 0.10 * _smooth(rng, x.shape, 0.04 * unit))  # counting noise after reconstruction
    uptake = shrunk(cv2.GaussianBlur(uptake, (0, 0), (0.020 if kind == "pet" else 0.038) * unit), size)
    scale = f32(HOT if kind == "pet" else RAINBOW)
    level = np.clip(uptake - 0.03, 0, 1)
    steps = np.linspace(0, 1, len(scale))
    return to_uint8(mri), to_uint8(np.dstack([np.interp(level, steps, scale[:, c]) for c in range(3)]))


def _anatomy(
    x: np.ndarray, y: np.ndarray, unit: float, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Fractions of the tissues in `SIGNAL`, which sum to 1 inside the head; the tumour; calcifications; each (h, w)."""
    edge = 0.012  # width of soft boundaries

    def above(value: np.ndarray) -> np.ndarray:
        return np.clip(value / edge + 0.5, 0, 1)

    bend = [0.014 * _smooth(rng, x.shape, 0.10 * unit) for _ in range(2)]

    def blob(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
        """An ellipse and, if cx is not 0, its mirror image; `turn` in degrees."""
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        u, v = np.abs(x + bend[0]) - cx if cx else x, y + bend[1] - cy
        return above((1 - np.hypot((c * u + s * v) / rx, (c * v - s * u) / ry)) * min(rx, ry))

    # Depth below the skin: egg-shaped, wider at the back, slightly irregular.
    wobble = 0.009 * _smooth(rng, x.shape, 0.35 * unit)
    depth = (1 - np.hypot(x / (0.735 + 0.05 * y), y / 0.93)) * 0.80 + wobble
    head, bone = above(depth), above(depth - 0.052)
    inside = above(depth - 0.112 - 0.006 * _smooth(rng, x.shape, 0.1 * unit))
    below = depth - 0.130  # depth below the surface of the brain

    # Folds: band-passed noise winds like a cortex. One part is drawn over angle and depth, so that furrows run inwards,
    # the same for both halves; the other over x and y, different for each half.
    n = 1024
    strip = _smooth(rng, (n, n), 0.030 * n / 4.4, band=True)
    bent = 0.05 * n / 4.4 * _smooth(rng, x.shape, 0.12 * unit)
    around, inwards = np.arctan2(np.abs(x), -y) * n / (2 * np.pi) + bent, below * 0.42 * n / 4.4 + n / 2
    radial = cv2.remap(strip, f32(around), f32(inwards), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    fold = 0.8 * radial + 0.6 * _smooth(rng, x.shape, 0.024 * unit, band=True)
    middle = np.abs(x) - 0.012 * (1 + 0.3 * fold)  # distance from the cleft between the halves
    callosum = blob(0, -0.02, 0.30, 0.33)
    surface = np.minimum(below, middle + 0.9 * callosum)
    white = above(surface - 0.105 + 0.062 * fold)
    cleft = np.maximum(above(-surface), above(0.05 * (-fold - 0.85) - 0.28 * np.maximum(surface, 0)))
    island = blob(0.47, -0.06, 0.018, 0.15, -12)  # the lateral fissure
    cleft = np.maximum(cleft, island)

    nuclei = np.maximum.reduce(
        [blob(0.155, -0.17, 0.042, 0.095, 20), blob(0.265, -0.02, 0.055, 0.155, -14), blob(0.085, 0.10, 0.070, 0.095)]
    )
    horns = np.maximum.reduce(
        [blob(0.085, -0.17, 0.036, 0.135, 22), blob(0.185, 0.27, 0.042, 0.145, -24), blob(0, 0.06, 0.013, 0.085)]
    )
    white = white * (1 - nuclei)
    fluid = np.maximum(cleft, horns)
    ragged = 0.012 * _smooth(rng, x.shape, 0.05 * unit)
    far = np.hypot(x - 0.33, y - 0.36) + ragged
    lesion, rim = above(0.062 - far), above(0.080 - far)
    tumour = above(0.055 - np.hypot(x + 0.34, (y - 0.33) * 1.2) + ragged)
    chalk = np.maximum(blob(0, 0.215, 0.016, 0.020), blob(0.20, 0.25, 0.017, 0.026))

    brain = inside * (1 - rim)
    marrow = bone * above(depth - 0.070) * above(0.098 - depth) * 0.8
    tissue = {
        "skin": head * (1 - above(depth - 0.010)),
        "fat": head * above(depth - 0.010) * (1 - bone) + 0.55 * inside * (rim - lesion),
        "bone": bone * (1 - inside) - marrow,
        "marrow": marrow,
        "csf": brain * fluid,
        "white": brain * (1 - fluid) * white + 0.45 * inside * (rim - lesion),
        "grey": brain * (1 - fluid) * (1 - white),
        "lesion": inside * lesion,
    }
    return tissue, tumour, chalk


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, band: bool = False) -> np.ndarray:
    """Noise of unit variance smoothed to `sigma` pixels; band: minus the same smoothed to twice that."""
    # Drawn on a coarse grid and enlarged, so that the same seed gives about the same field at every size.
    step = max(sigma / 3, 1.0)
    small = rng.standard_normal((int(shape[0] / step) + 8, int(shape[1] / step) + 8))
    field = cv2.GaussianBlur(small, (0, 0), sigma / step)
    if band:
        field = field - cv2.GaussianBlur(small, (0, 0), 2 * sigma / step)
    field = cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()
