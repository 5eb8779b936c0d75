"""Volumes and slices on any grids, resampled to the grid of one of them, the frame, by their world coordinates.

A file's world coordinates are trusted or, with `rigid`, initialise a rigid registration by mutual information
(Mattes et al., 2003; SimpleITK). Intensities are interpolated linearly, after smoothing if the frame's voxels are
larger; where the source has no data the result is its background, 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddfm.errors import InputError
from ddfm.io.grid import Grid, angle
from ddfm.io.images import Image

SAMPLES = 24  # per side of the lattice on which coverage is measured
FINEST = 1.5  # mm: finer voxels are averaged for the registration
LEAST_OVERLAP = 0.2  # fraction of the smaller volume that must lie in the other after a registration


@dataclass(frozen=True)
class Rigid:
    """A rigid motion found by registration.

    Attributes:
        matrix: (4, 4), LPS mm of the frame to LPS mm of the moving source.
        before, after: Mattes mutual information (larger is better) by world coordinates, and after registration.
    """

    matrix: np.ndarray
    before: float
    after: float

    def sentence(self, moving: str, fixed: str, centre: np.ndarray) -> str:
        """The result in words; the shift is that of the frame's centre."""
        shift = (self.matrix @ [*centre, 1.0])[:3] - centre
        return (
            f"{moving} was registered rigidly to {fixed}: rotated by {angle(self.matrix[:3, :3]):.2f} degrees, moved "
            f"by ({', '.join(f'{v:.2f}' for v in shift)}) mm; mutual information {self.before:.3f} before, "
            f"{self.after:.3f} after."
        )


def to_frame(sources: Sequence[Image], frame: int = 0, rigid: bool = False) -> tuple[list[Image], list[str]]:
    """All sources on the grid of `sources[frame]`, and a sentence for each thing done or assumed.

    Sources on the same grid are left alone; those whose axes are only permuted or reversed are reordered exactly.

    Raises:
        InputError: sources that do not overlap; a slice in the frame of a volume; sizes or spacings that differ where a
            file has no world coordinates; a registration that fails.
    """
    if not 0 <= frame < len(sources):
        raise InputError(f"The frame cannot be source number {frame + 1}: there are only {len(sources)} sources.")
    fixed = sources[frame]
    brought, findings = [], []
    for k, source in enumerate(sources):
        image, said = (source, []) if k == frame else _bring(source, fixed, rigid)
        brought.append(image)
        findings += said
    return brought, findings


def check_patients(sources: Sequence[Image], allow_different: bool = False) -> list[str]:
    """A sentence for each DICOM source whose patient or frame of reference differs from the first.

    Raises InputError for another patient unless allowed.
    """
    from ddfm.io.medical import frame_of_reference, patient

    findings = []
    for what, of in (("patient", patient), ("frame of reference", frame_of_reference)):
        known = [source for source in sources if of(source)]
        for source in known[1:]:
            if of(source) == of(known[0]):
                continue
            said = f"{source.name} is of another {what} than {known[0].name}"
            if what == "patient":
                if not allow_different:
                    raise InputError(f"{said}; check the files, or allow different patients.")
                findings.append(f"{said}, as was allowed.")
            else:
                findings.append(
                    f"{said}; their world coordinates are used all the same, and may be off by the patient's motion."
                )
    return findings


def register(moving: Image, fixed: Image) -> Rigid:
    """The rigid motion between two volumes with world coordinates that maximises mutual information.

    Raises InputError.
    """
    sitk = _simpleitk()
    if min(len(_slices(image)) for image in (moving, fixed)) < 4:
        raise InputError(f"{moving.name} or {fixed.name} has fewer than four slices: too few to register rigidly.")
    f, m = (_physical(image, sitk) for image in (fixed, moving))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, 50_000 / np.prod(f.GetSize())), 1)
    method.SetInterpolator(sitk.sitkLinear)
    starts = [sitk.Euler3DTransform()]
    starts[0].SetCenter(f.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in f.GetSize()]))
    for by in (sitk.CenteredTransformInitializerFilter.GEOMETRY, sitk.CenteredTransformInitializerFilter.MOMENTS):
        starts.append(sitk.Euler3DTransform(sitk.CenteredTransformInitializer(f, m, sitk.Euler3DTransform(), by)))
    metrics = [_metric(method, f, m, start) for start in starts]
    best = sitk.Euler3DTransform(starts[int(np.argmax(metrics))])
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(best, inPlace=True)
    try:
        method.Execute(f, m)
    except RuntimeError as error:
        raise InputError(
            f"{moving.name} could not be registered rigidly to {fixed.name}; register it with other software first."
        ) from error
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([0.0])
    after = _metric(method, f, m, best)
    if after <= metrics[0]:
        return Rigid(np.eye(4), metrics[0], metrics[0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(best.GetMatrix()).reshape(3, 3)
    centre = np.array(best.GetCenter())
    matrix[:3, 3] = centre + np.array(best.GetTranslation()) - matrix[:3, :3] @ centre
    return Rigid(matrix, metrics[0], after)


def _bring(moving: Image, fixed: Image, rigid: bool) -> tuple[Image, list[str]]:
    """One source on the frame's grid."""
    here, there = moving.grid, fixed.grid
    if here is None or there is None or not here.placed or not there.placed:
        return moving, _unplaced(moving, fixed, rigid)
    if len(_slices(moving)) == 1 < len(_slices(fixed)):
        raise InputError(f"{moving.name} is a single slice and {fixed.name} a volume; choose the slice as the frame.")
    found = register(moving, fixed) if rigid else None
    centre = (there.affine @ [*((n - 1) / 2 for n in there.size), 1.0])[:3]
    findings = [found.sentence(moving.name, fixed.name, centre)] if found else []
    if found is not None:  # the moving source's grid in the patient coordinates of the frame
        here = Grid(here.shape, np.linalg.inv(found.matrix) @ here.affine)
    if here.is_same(there):
        return replace(moving, grid=there), findings
    if (change := here.reordering(there)) is not None:
        order, backwards = change
        pixels = np.ascontiguousarray(np.flip(_slices(moving).transpose(order), backwards))
        said = f"{moving.name} has its axes along {here.axes}, {fixed.name} along {there.axes}; they were reordered."
        return _on(moving, pixels, there), [*findings, said]
    covered = _coverage(here, there)
    if covered == 0 or (found and max(covered, _coverage(there, here)) < LEAST_OVERLAP):
        raise InputError(
            f"{moving.name} and {fixed.name} do not overlap in patient coordinates; register one to the other"
            f"{'' if found else ' (rigid)'} or check their geometry."
        )
    findings.append(_resampled(moving, fixed, here, there, centre, covered))
    return _on(moving, _sampled(_slices(moving), here, there), there), findings


def _unplaced(moving: Image, fixed: Image, rigid: bool) -> list[str]:
    """Checks and findings if a file has no world coordinates: its size and spacing must be those of the frame."""
    here, there = moving.grid, fixed.grid
    lost = moving if here is None or not here.placed else fixed
    if rigid:
        raise InputError(
            f"{lost.name} has no world coordinates, so it cannot be registered rigidly; write its "
            "geometry first, or drop `rigid` if its voxels coincide with those of the other."
        )
    if moving.pixels.shape[:3] != fixed.pixels.shape[:3]:
        if not (moving.is_volume and fixed.is_volume):
            return []  # a volume and an image, or images, which are registered by their content
        raise InputError(
            f"{moving.name} is {moving.size} and {fixed.name} {fixed.size}, and {lost.name} has no world "
            "coordinates, so they cannot be resampled to one grid; write its geometry, or resample them, first."
        )
    if here is not None and there is not None and not np.allclose(here.spacing, there.spacing, rtol=0.01):
        raise InputError(
            f"{moving.name} has {here.sentence()} and {fixed.name} {there.sentence()}, and {lost.name} has no "
            "world coordinates; write its geometry, or resample them to one grid, first."
        )
    return [
        f"{lost.name} has no world coordinates; the voxels of {moving.name} are assumed to coincide with those of "
        f"{fixed.name}."
    ]


def _resampled(moving: Image, fixed: Image, here: Grid, there: Grid, centre: np.ndarray, covered: float) -> str:
    own_centre = (here.affine @ [*((n - 1) / 2 for n in here.size), 1.0])[:3]
    return (
        f"{moving.name} ({here.sentence()}) was resampled into the frame of {fixed.name} ({there.sentence()}): "
        f"axes {here.axes} to {there.axes}, rotated by {_turn(here, there):.3g} degrees, centres "
        f"{np.linalg.norm(own_centre - centre):.3g} mm apart; it covers {_percent(covered)} of it."
    )


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{share * 100:.0f} %"


def _turn(here: Grid, there: Grid) -> float:
    """Degrees between the directions of two grids, ignoring the order and the signs of their axes."""
    turn = (there.affine[:3, :3] / there.spacing).T @ (here.affine[:3, :3] / here.spacing)
    nearest, free = np.zeros((3, 3)), np.abs(turn)
    for _ in range(3):
        row, column = np.unravel_index(int(free.argmax()), free.shape)
        nearest[row, column] = np.sign(turn[row, column])
        free[row, :] = free[:, column] = -1
    return angle(turn @ nearest.T)


def _coverage(here: Grid, there: Grid) -> float:
    """The fraction of `there` that lies within `here` (plus half a voxel), on a lattice of samples."""
    axes = [np.linspace(0, n - 1, min(n, SAMPLES)) for n in there.size]
    index = np.stack(
        [*(a.ravel() for a in np.meshgrid(*axes, indexing="ij")), np.ones(np.prod([len(a) for a in axes]))]
    )
    at = (there.to(here) @ index)[:3]
    inside = (at >= -0.5) & (at <= np.array(here.size)[:, None] - 0.5)
    return float(inside.all(axis=0).mean())


def _sampled(values: np.ndarray, here: Grid, there: Grid) -> np.ndarray:
    """values (S, H, W) on `here`, linearly interpolated at the voxels of `there`; 0 outside."""
    sitk = _simpleitk()
    image = sitk.GetImageFromArray(values)
    there_to_here = there.to(here)
    # Larger voxels average their contents, or detail would alias (a Gaussian as wide as the step).
    steps = np.abs(there_to_here[:3, :3]).max(axis=1)
    for axis, step in enumerate(steps):
        if step > 1.2 and here.size[axis] >= 4:
            image = sitk.RecursiveGaussian(
                image, float(np.sqrt(step**2 - 1) / 2.355), False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis
            )
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(there_to_here[:3, :3].ravel().tolist())
    transform.SetTranslation(there_to_here[:3, 3].tolist())
    out = sitk.Resample(
        image,
        there.size,
        transform,
        sitk.sitkLinear,
        (0.0,) * 3,
        (1.0,) * 3,
        np.eye(3).ravel().tolist(),
        0.0,
        sitk.sitkFloat32,
    )
    result: np.ndarray = np.clip(sitk.GetArrayFromImage(out), 0, 1)
    return result


def _physical(image: Image, sitk: Any) -> Any:
    """A SimpleITK image with its world coordinates, no finer than `FINEST`."""
    grid, pixels = image.grid, _slices(image)
    assert grid is not None
    skip = [max(1, int(FINEST / mm)) for mm in grid.spacing]  # x, y, z
    step = np.diag([*map(float, skip), 1.0])
    if max(skip) > 1:
        depth, height, width = (n // s for n, s in zip(pixels.shape, skip[::-1], strict=True))
        pixels = pixels[: depth * skip[2], : height * skip[1], : width * skip[0]]
        blocks = pixels.reshape(depth, skip[2], height, skip[1], width, skip[0])
        pixels = blocks.mean(axis=(1, 3, 5))
        step[:3, 3] = [(s - 1) / 2 for s in skip]
    affine = grid.affine @ step
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    out = sitk.GetImageFromArray(np.ascontiguousarray(pixels, np.float32))
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return out


def _metric(method: Any, fixed: Any, moving: Any, transform: Any) -> float:
    """Mutual information, larger is better; 0 if the two do not overlap."""
    method.SetInitialTransform(transform, inPlace=False)
    try:
        return -float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return 0.0


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError("Resampling volumes to one frame needs SimpleITK: `pip install ddfm[medical]`.") from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # type: ignore[no-untyped-call]
    return SimpleITK


def _on(image: Image, pixels: np.ndarray, grid: Grid) -> Image:
    return replace(image, pixels=pixels if len(pixels) > 1 else pixels[0], grid=grid)


def _slices(image: Image) -> np.ndarray:
    """(S, H, W), a view."""
    return image.pixels if image.pixels.ndim == 3 else image.pixels[None]
