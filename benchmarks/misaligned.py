"""Registration of infrared and visible pairs with a known displacement, by our method and by SimpleITK and OpenCV.

    python benchmarks/misaligned.py [--pairs 4] [--only ours "mutual information"]
    python benchmarks/misaligned.py --published
    python benchmarks/misaligned.py --shrunk

Reads ../shared/data/dev/misaligned (if it is missing, says so and ends): `infrared_warped`, `visible`,
and d with infrared_warped(x) = infrared(x + d(x)). The error at a pixel p of the visible image that a method maps to
m(p) is |m(p) + d(m(p)) - p|; the error of a pair is the mean over the area that both images cover. "Relative" replaces
p by the result of the same method for the pair before it was displaced, which excludes any error in the published
alignment. All methods except the dense ones are affine.

`--published` applies criteria that no method here optimises to the pairs before they were displaced: as published, and
as aligned by our method. `--shrunk` crops the infrared images of ../shared/data/dev/roadscene to 80 % of the width and
height and shrinks them by 2.25.
"""

import argparse
import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ddfm.colour import luma
from ddfm.io import images
from ddfm.registration import register
from ddfm.registration.features import contours
from ddfm.registration.transform import resize

DATA = Path(__file__).resolve().parents[2] / "shared/data/dev/misaligned"
OPENCV: Any = cv2  # its type stubs are incomplete
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (moving, fixed) luma -> (H, W, 2), fixed to moving


def affine_map(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(2, 3), fixed to moving, as a map."""
    y, x = np.indices(shape[:2], np.float32)
    found: np.ndarray = (np.dstack([x, y, np.ones_like(x)]) @ np.asarray(matrix, np.float32).T).astype(np.float32)
    return found


def untouched(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    return affine_map(np.eye(2, 3), fixed.shape)


def ours(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    return register(moving, fixed).map


def ours_dense(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    return register(moving, fixed, dense=True).map


def strength(image: np.ndarray) -> np.ndarray:
    """Magnitude of the gradient of the smoothed image."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.5)
    found: np.ndarray = np.hypot(*(cv2.Sobel(smooth, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1))))
    return found


def mutual_information(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """SimpleITK: Mattes mutual information, affine, four levels."""
    sitk: Any = importlib.import_module("SimpleITK")
    still, moved = (sitk.GetImageFromArray(x.astype(np.float32)) for x in (fixed, moving))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
    centre = [(n - 1) / 2 for n in fixed.shape[::-1]]
    start = sitk.AffineTransform(2)
    start.SetCenter(centre)
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(still, moved)
    a, t, c = np.reshape(start.GetMatrix(), (2, 2)), np.array(start.GetTranslation()), np.array(centre)
    return affine_map(np.column_stack([a, c + t - a @ c]), fixed.shape)


def mutual_information_of_gradients(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    return mutual_information(strength(moving), strength(fixed))


def ecc(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """OpenCV: enhanced correlation coefficient (ECC) of gradient magnitudes, affine, four levels."""
    one, other, matrix = strength(fixed), strength(moving), np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-5)
    for factor in (8, 4, 2, 1):
        a, b = (cv2.resize(x, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA) for x in (one, other))
        matrix[:, 2] /= factor
        with contextlib.suppress(cv2.error):  # it did not converge at this level
            matrix = np.asarray(OPENCV.findTransformECC(a, b, matrix, cv2.MOTION_AFFINE, stop, None, 5)[1], np.float32)
        matrix[:, 2] *= factor
    return affine_map(matrix, fixed.shape)


def ours_and_flow(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Ours, then OpenCV's DIS flow between contour magnitudes, smoothed over 20 pixels."""
    found = ours(moving, fixed)
    laid = cv2.remap(
        moving.astype(np.float32), found[..., 0], found[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    everywhere = np.ones(fixed.shape, np.float32)
    pair = [contours(x.astype(np.float32), everywhere)[..., 0] for x in (fixed, laid)]
    eight_bits = [images.eight_bits(x / max(float(x.max()), 1e-6)) for x in pair]
    flow = OPENCV.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(eight_bits[0], eight_bits[1], None)
    refined: np.ndarray = found + cv2.GaussianBlur(flow, (0, 0), 20)
    return refined


def shrunk(count: int | None) -> None:
    """Errors of our method on narrower and coarser infrared images, mean per pair in pixels of the visible image."""
    rng, errors, confident = np.random.default_rng(0), [], 0
    folder = DATA.parent / "roadscene"
    for path in sorted((folder / "visible").iterdir())[:count]:
        fixed, full = (luma(images.read(folder / kind / path.name).pixels) for kind in ("visible", "infrared"))
        height, width = (int(0.8 * n) for n in full.shape)
        top, left = (int(rng.integers(0, n - part)) for n, part in zip(full.shape, (height, width), strict=True))
        part = full[top : top + height, left : left + width]
        moving = cv2.resize(part, (round(width / 2.25), round(height / 2.25)), interpolation=cv2.INTER_AREA)
        to_part = np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
        truth = np.linalg.inv(resize(moving.shape, part.shape).matrix @ to_part)
        found = register(moving, fixed)
        confident += found.confident
        there = affine_map((truth @ found.matrix)[:2], fixed.shape)
        covered = np.s_[top : top + height, left : left + width]
        references = affine_map(np.eye(2, 3), fixed.shape), ours(full, fixed)
        errors.append([np.linalg.norm(there - target, axis=-1)[covered].mean() for target in references])
    near, medians = (np.array(errors) <= 2).sum(axis=0), np.median(errors, axis=0)
    print(f"{len(errors)} pairs, {confident} confident; error against the published pair: median {medians[0]:.2f} px,")
    print(f"{near[0]} within 2 px; against the result for the full images: {medians[1]:.2f} px, {near[1]} within 2 px")


METHODS: dict[str, Method] = {
    "untouched": untouched,
    "ours": ours,
    "ours, refined locally": ours_dense,
    "mutual information": mutual_information,
    "mutual information, gradients": mutual_information_of_gradients,
    "ECC, gradients": ecc,
    "ours + DIS flow": ours_and_flow,
}


def error(found: np.ndarray, displacement: np.ndarray, target: np.ndarray | None = None) -> float:
    """Mean error of a map in pixels of the visible image, over the area inside the infrared image.

    target: (H, W, 2), where each pixel lies in the undisplaced infrared image; None for the pixel itself.
    """
    d = cv2.remap(displacement, found[..., 0], found[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    target = affine_map(np.eye(2, 3), found.shape) if target is None else target
    height, width = displacement.shape[:2]
    inside = (found >= 0).all(axis=-1) & (found[..., 0] < width) & (found[..., 1] < height)
    away = np.linalg.norm(found + d - target, axis=-1)
    return float(away[inside].mean()) if inside.any() else float("inf")


def information(one: np.ndarray, other: np.ndarray) -> float:
    """Mutual information in nats of two images in [0, 1], 48 bins."""
    joint = np.histogram2d(one.ravel(), other.ravel(), 48, ((0, 1), (0, 1)))[0] / one.size
    product = np.outer(joint.sum(1), joint.sum(0))
    used = joint > 0
    return float((joint[used] * np.log(joint[used] / product[used])).sum())


def criteria(moving: np.ndarray, fixed: np.ndarray) -> tuple[float, float, float]:
    """Mutual information of intensities and of gradients, and correlation of log gradients; larger is better."""
    edges = [np.clip(8 * strength(image), 0, 1) for image in (moving, fixed)]
    logarithms = [np.log(edge + 0.02).ravel() for edge in edges]
    return information(moving, fixed), information(*edges), float(np.corrcoef(*logarithms)[0, 1])


def published() -> None:
    """The number of pairs that each criterion finds better aligned by our method than as published."""
    wins, pairs = np.zeros((2, 3), int), 0
    for folder in sorted(p for p in DATA.iterdir() if p.is_dir()):
        for path in sorted((folder / "visible").iterdir()):
            moving, fixed = (luma(images.read(folder / kind / path.name).pixels) for kind in ("infrared", "visible"))
            moving, fixed = (cv2.GaussianBlur(image, (0, 0), 1.5) for image in (moving, fixed))  # as resampling does
            scores = []
            for found in (affine_map(np.eye(2, 3), fixed.shape), ours(moving, fixed), ours_dense(moving, fixed)):
                laid = cv2.remap(
                    moving, found[..., 0], found[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                )
                scores.append(criteria(laid[12:-12, 12:-12], fixed[12:-12, 12:-12]))
            wins += np.array([[new > old for new, old in zip(s, scores[0], strict=True)] for s in scores[1:]])
            pairs += 1
    print(
        f"Of {pairs} pairs, better aligned than as published by mutual information, the same of gradients, correlation:"
    )
    for name, row in zip(("ours", "ours, refined locally"), wins, strict=True):
        print(f"{name:32s}{row[0]:8d}{row[1]:8d}{row[2]:8d}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="this many of each set")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--published", action="store_true", help="the alignment of the pairs before they were displaced"
    )
    parser.add_argument("--shrunk", action="store_true", help="a narrower and coarser infrared image")
    args = parser.parse_args(argv)
    if not DATA.exists():
        print("Skipped: the misaligned dev pairs are not in shared/ next to the repository.")
        return
    cv2.setNumThreads(1)
    if args.published or args.shrunk:
        published() if args.published else shrunk(args.pairs)
        return
    errors: dict[str, list[float]] = {name: [] for name in METHODS}
    relative: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds = dict.fromkeys(METHODS, 0.0)
    for folder in sorted(p for p in DATA.iterdir() if p.is_dir()):
        for file in sorted((folder / "displacement").glob("*.npz"))[: args.pairs]:
            paths = [
                next((folder / kind).glob(f"{file.stem}.*")) for kind in ("infrared_warped", "visible", "infrared")
            ]
            moving, fixed, before = (luma(images.read(path).pixels) for path in paths)
            with np.load(file) as data:
                d = cv2.resize(data["d"].astype(np.float32), moving.shape[::-1], interpolation=cv2.INTER_LINEAR)
            for name in {"untouched", *args.only}:
                begin = time.process_time()
                found = METHODS[name](moving, fixed)
                seconds[name] += time.process_time() - begin
                errors[name].append(error(found, d))
                relative[name].append(error(found, d, METHODS[name](before, fixed)))
    print(f"{'':32s}{'median':>8s}{'mean':>8s}{'worst':>8s}{'worse than untouched':>22s}{'relative':>10s}{'CPU s':>8s}")
    for name, values in errors.items():
        if values:
            worse = sum(a > b for a, b in zip(values, errors["untouched"], strict=True))
            row = f"{np.median(values):8.2f}{np.mean(values):8.2f}{max(values):8.2f}"
            print(f"{name:32s}{row}{worse:22d}{np.median(relative[name]):10.2f}{seconds[name] / len(values):8.2f}")


if __name__ == "__main__":
    main()
