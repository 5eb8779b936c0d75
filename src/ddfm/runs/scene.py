"""Reads one scene's sources into one frame, fuses them, and writes the result with their metadata.

    scene = Scene.read(["mri.nii.gz", "pet.nii.gz"])
    scene.write("fused.nii.gz", scene.fuse(DDFMPipeline.from_prior("embedded")))

The sources are images or volumes. A volume is fused slice by slice with the same noise in each slice, so that
differences between neighbouring slices come only from the sources.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ddfm.colour import lends_colour, luma
from ddfm.errors import InputError
from ddfm.io import images, thermal
from ddfm.io.files import quoted
from ddfm.io.images import Image
from ddfm.io.outputs import Outputs
from ddfm.io.sources import read_source
from ddfm.palettes import PALETTE_IGNORED, beside_photos, overlaid
from ddfm.runs import fusing
from ddfm.runs.reading import FIELDS, Reading, with_changes
from ddfm.settings import Colour, FusionSettings, changed

if TYPE_CHECKING:
    from ddfm.pipeline import DDFMPipeline
    from ddfm.prior import Progress
    from ddfm.registration import Framed, Registration

Depth = int | Literal["same"]


@dataclass(frozen=True)
class Scene:
    """The sources of one scene, of equal size.

    Attributes:
        sources: All images, pixels (H, W) or (H, W, 3), or all volumes, (S, H, W).
        findings: A sentence for each thing that was assumed or done in reading, resampling and aligning.
        frame: Index of the source whose grid all sources have; for volumes, the result has its unit if the format
            allows.
        registrations: Where each source lay in the frame; None for the frame itself, for sources assumed to be aligned
            with it, and for volumes. Empty if nothing was registered.
        framed: How the sources were resampled, for those whose noise is removed before that.
    """

    sources: list[Image]
    findings: list[str] = field(default_factory=list)
    frame: int = 0
    registrations: list[Registration | None] = field(default_factory=list)
    framed: Framed | None = None

    @classmethod
    def read(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        reading: Reading | None = None,
        **changes: Any,
    ) -> Scene:
        """Read a scene's sources, or the two of one FLIR radiometric JPEG (see `thermal.read_sources`).

        Args:
            paths: Two or more files, or one that holds two sensors.
            reading: How to read them.
            changes: Fields of `Reading`, as in `Scene.read(paths, align="auto", crop=True)`.

        Raises:
            InputError: fewer than two files, one that cannot be read, sizes below 16x16, a volume with an image,
                volumes of different patients or that do not overlap, images that cannot be aligned with confidence.
        """
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if others := [path for path in paths if not isinstance(path, (str, os.PathLike))]:
            raise InputError(
                f"A scene is read from files, not {type(others[0]).__name__}; pass arrays to DDFMPipeline."
            )
        reading, unknown = with_changes(reading, changes)
        if unknown:
            raise InputError(f"{min(unknown)} is not a field of Reading; its fields are {', '.join(sorted(FIELDS))}.")
        if len(paths) == 1 and not os.path.isdir(paths[0]) and thermal.is_radiometric(paths[0]):
            return cls._from_camera(paths[0], reading)
        if len(paths) < 2:
            raise InputError(
                f"Fusion takes two or more sources, not {len(paths)}; give the other sensor's file too, unless the one "
                "is a FLIR radiometric JPEG, which holds temperatures and a photo."
            )
        sources = [read_source(path, reading.normalise, reading.value_range, reading.window) for path in paths]
        findings = [finding for source in sources for finding in source.findings]
        for k, path in enumerate(paths):
            if any(os.path.samefile(path, other) for other in paths[:k]):
                findings.append(f"{quoted(path)} is given twice, so it is fused with itself.")
        medical = any(source.header is not None for source in sources)
        if not medical:
            sources, said = _without_false_colours(sources)
            findings += said
        else:
            from ddfm.registration import volumes

            findings += volumes.check_patients(sources, reading.allow_different_patients)
            sources, said = volumes.to_frame(sources, reading.frame or 0, reading.rigid)
            findings += said
        _check_options(sources, medical, reading)
        scene = cls(sources, findings, reading.frame or 0)
        scene._check_kinds()
        if not scene.is_volume:
            scene = scene._in_frame(reading)
        elif reading.align or reading.rig or reading.crop:
            raise InputError(f"{sources[0].name} is a volume: use rigid registration, not align, rig or crop.")
        scene._check_sizes()
        return scene

    @property
    def is_volume(self) -> bool:
        """Whether the sources are volumes."""
        return self.sources[0].is_volume

    def fuse(
        self,
        pipe: DDFMPipeline,
        settings: FusionSettings | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> np.ndarray:
        """The fused image, float32 [0, 1] (H, W) or (H, W, 3), or volume (S, H, W).

        A slice that is flat in all sources gets the mean of their values.

        Args:
            pipe: The pipeline.
            settings: How to fuse; `changes` are fields of it. The noise is the same for all slices of a volume, and
                contrast "minmax" stretches the volume with one map.
            progress: Called as by the pipeline, with network evaluations, or for a volume with slices.

        Raises:
            InputError: as the pipeline does.
        """
        settings = changed(settings, changes)
        if self.is_volume:
            return fusing.fuse_slices(pipe, self.sources, settings, progress)
        generators = fusing.generators(settings.seed, 1)
        result: np.ndarray = fusing.fuse_images(pipe, [self], generators, settings, progress)[0][0]
        return result

    def overlaid(
        self, fused: np.ndarray, palette: str, blend: float = 0.5, roles: Sequence[str] | None = None
    ) -> np.ndarray:
        """The fused image for display, (H, W, 3), overlaid with the thermal source in the colours of a palette, where
        it has data.

        The thermal source is the first grey one that `roles`, as in `FusionSettings`, call thermal, else the first grey
        one. Raises InputError for volumes and if all sources are in colour.
        """
        if self.is_volume:
            raise InputError(f"A palette is for images: {self.sources[0].name} is a volume.")
        grey = [k for k, source in enumerate(self.sources) if source.pixels.ndim == 2]
        if not grey:
            raise InputError("A palette needs a grey image among the sources; there is none.")
        k = next((k for k in grey if roles is not None and roles[k : k + 1] == ("thermal",)), grey[0])
        place = self.registrations[k] if self.registrations else None
        where = place.coverage if place is not None and place.fixed_shape == fused.shape[:2] else None
        return overlaid(fused, self.sources[k].pixels, palette, blend, where)

    def bits(self, path: str | os.PathLike[str], depth: Depth = "same") -> int:
        """Bits of a result at `path`: "same" is 16 if a source has more than 8 and the format supports it, else 8."""
        if depth != "same":
            return depth
        holds = images.DEPTHS.get(Path(path).suffix.lower(), ())
        return 16 if 16 in holds and any(source.bits > 8 for source in self.sources) else 8

    def like(self, path: str | os.PathLike[str]) -> Image:
        """The source that gives a result at `path` its geometry and unit, or its profile and resolution.

        For DICOM and NIfTI, the frame if it can, else the first that can; for other files, the first coloured source,
        or else the first.
        """
        if images.is_medical(path):
            from ddfm.io.medical import lends_geometry

            sources = [self.sources[self.frame], *self.sources]
            fitting = [source for source in sources if lends_geometry(source, path)]
        else:
            fitting = [source for source in self.sources if source.pixels.ndim == 3]
        return (fitting or self.sources)[0]

    def check_target(
        self,
        path: str | os.PathLike[str],
        depth: Depth = "same",
        colour: Colour = "auto",
        anonymise: bool = False,
    ) -> None:
        """Raise InputError if `write` would for what `fuse` gives with this `colour`, before the long computation."""
        if self.is_volume and not images.is_medical(path):
            raise InputError(f"Cannot write {quoted(path)}: the sources are volumes; use .nii, .nii.gz or .dcm.")
        images.check_target(path, self.bits(path, depth))
        if images.is_medical(path):
            from ddfm.io import medical

            if depth not in ("same", 16):
                raise InputError(f"Cannot write {quoted(path)} with {depth} bits: DICOM and NIfTI results have 16.")

            if not self.is_volume:
                medical.check_grey(path, not lends_colour([source.pixels for source in self.sources], colour))
            medical.check_target(path, self.like(path), self.sources, anonymise)
        self._spare_sources(path)

    def write(
        self, path: str | os.PathLike[str], fused: np.ndarray, depth: Depth = "same", anonymise: bool = False
    ) -> None:
        """Write the result of `fuse`, atomically. Raises InputError.

        An image gets the EXIF of the source from `like` or, if that has none, of the first source that has.

        anonymise: Remove patient identification: for DICOM and NIfTI see `medical.write_volume`, else remove EXIF.
        """
        self._spare_sources(path)
        like = self.like(path)
        if images.is_medical(path):
            from ddfm.io import medical

            medical.check_grey(path, self.is_volume or fused.ndim == 2)
            fused = fused if self.is_volume else fused[None]
            medical.write_volume(path, fused, like, self.sources, anonymise)
        else:
            exif = None if anonymise else next((source.exif for source in (like, *self.sources) if source.exif), None)
            images.write(path, fused, self.bits(path, depth), replace(like, exif=exif))

    def _spare_sources(self, path: str | os.PathLike[str]) -> None:
        Outputs([x.path for x in self.sources if x.path is not None], overwrite=True).claim(path)

    def _check_kinds(self) -> None:
        first = self.sources[0]
        for source in self.sources:
            if source.is_volume != first.is_volume:
                raise InputError(
                    f"{source.name} is {_kind(source)} but {first.name} is {_kind(first)}; fuse images with "
                    "images and volumes with volumes."
                )

    def _check_sizes(self) -> None:
        from ddfm.image_processor import SMALLEST  # late: it imports torch, which is slow and not needed for errors

        first = self.sources[0]
        for source in self.sources:
            if source.size != first.size:
                raise InputError(
                    f"{source.name} is {source.size} but {first.name} is {first.size}; register them to one size first."
                )
        if min(first.plane) < SMALLEST:
            raise InputError(f"{first.name} is {first.size}, but must be at least {SMALLEST}x{SMALLEST}.")

    def _in_frame(self, how: Reading) -> Scene:
        """Images of any size on the grid of one of them."""
        sizes = {source.pixels.shape[:2] for source in self.sources}
        if len(sizes) == 1 and not (how.align or how.rig or how.crop):
            return self
        from ddfm.registration import frame_of, to_frame  # late: not needed for aligned images

        chosen = frame_of(self.sources, how.rig) if how.frame is None else how.frame
        return _framed(to_frame(self.sources, chosen, how.align, how.rig, how.crop), chosen, self.findings)

    @classmethod
    def _from_camera(cls, path: str | os.PathLike[str], reading: Reading) -> Scene:
        """Temperatures and photo from one file, by the geometry stored in it unless there is a rig file."""
        from ddfm.registration import camera

        _refuse_medical(reading)
        sources, matrix = thermal.read_sources(path, reading.value_range)
        findings = [finding for source in sources for finding in source.findings]
        if reading.rig is not None:
            return cls(sources, findings)._in_frame(reading)
        framed, frame = camera.in_one_frame(sources, matrix, reading.frame, reading.align, reading.crop)
        return _framed(framed, frame, findings)


def _framed(framed: Framed, frame: int, findings: list[str]) -> Scene:
    """The scene of sources that were brought into one frame; `findings` are from reading them."""
    said = [*findings, *framed.findings, *fusing.noise_found(framed)]
    sources = list(framed.sources)
    for k, (source, place) in enumerate(zip(sources, framed.places, strict=True)):
        moved = place is not None or (source.grid is not None and source.grid.shape[1:] != source.plane)
        if moved:  # the world coordinates of a DICOM or NIfTI slice no longer apply
            sources[k] = replace(source, header=None, grid=None)
    return Scene(sources, said, frame, framed.places, framed)


def _without_false_colours(sources: list[Image]) -> tuple[list[Image], list[str]]:
    painted = beside_photos([source.pixels for source in sources])
    grey = [replace(x, pixels=luma(x.pixels)) if k in painted else x for k, x in enumerate(sources)]
    return grey, [f"{sources[k].name} {PALETTE_IGNORED}" for k in painted]


def _check_options(sources: list[Image], medical: bool, how: Reading) -> None:
    """Raise InputError for options that do not apply to these sources, rather than ignore them."""
    if not medical:
        _refuse_medical(how)
    if how.frame is not None and not 0 <= how.frame < len(sources):
        raise InputError(f"The frame cannot be source number {how.frame + 1}: there are only {len(sources)} sources.")
    if how.window is not None:
        from ddfm.io.medical import hounsfield

        if not any((source.low, source.high) == hounsfield(how.window) for source in sources):
            raise InputError("A window in Hounsfield units was given, but none of the sources is a CT image.")


def _refuse_medical(how: Reading) -> None:
    if how.window is not None or how.rigid:
        raise InputError(
            "A window and rigid registration are for DICOM and NIfTI files; there is none among the sources."
        )


def _kind(source: Image) -> str:
    return f"a volume of {len(source.pixels)} slices" if source.is_volume else "an image"
