"""One scene's files: its sources read and brought together, fused, and the result written with their metadata.

    scene = Scene.read(["mri.nii.gz", "pet.nii.gz"])
    scene.write("fused.nii.gz", scene.fuse(DDFMPipeline.from_prior("embedded")))

The sources are images or volumes. A volume is fused slice by slice with the same noise in each, so that what
differs between neighbours is the sources' own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ddfm.colour import lends_colour
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.images import Image, quoted
from ddfm.io.outputs import Outputs
from ddfm.settings import Colour, FusionSettings, changed

if TYPE_CHECKING:
    import torch

    from ddfm.pipeline import DDFMPipeline
    from ddfm.prior import Progress

Depth = int | Literal["same"]


@dataclass(frozen=True)
class Scene:
    """The sources of one scene, of one size.

    Attributes:
        sources: All images, pixels (H, W) or (H, W, 3), or all volumes, (S, H, W).
        findings: A sentence for each aligned source: how far off it was.
    """

    sources: list[Image]
    findings: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Sequence[str | os.PathLike[str]], normalise: bool = False, align: bool = False) -> Scene:
        """Read a scene's sources; normalise as in `images.read`, for a volume over all slices.

        align: estimate an affine misalignment of the second and further images and undo it, see `align.align`.

        Raises:
            InputError: fewer than two files, one that cannot be read, sizes that differ or are below 16x16, a volume
                beside an image, NIfTI files whose axes point elsewhere, what cannot be aligned.
        """
        if len(paths) < 2:
            raise InputError(f"Fusion takes two or more sources, not {len(paths)}.")
        scene = cls([images.read_any(path, normalise) for path in paths])
        scene._check_sizes()
        scene._check_axes()
        return scene._aligned() if align else scene

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
            pipe: What fuses.
            settings: How to fuse; `changes` are fields of it. The noise is the same for all slices of a volume, and
                contrast "minmax" stretches a volume as a whole.
            progress: Called as the pipeline's, with evaluations of the network, or of a volume with slices.

        Raises:
            InputError: as the pipeline does.
        """
        settings = changed(settings, changes)
        if self.is_volume:
            return self._fuse_slices(pipe, settings, progress)
        return fuse_images(pipe, [self], _generators(settings.seed, 1), settings, progress)[0]

    def bits(self, path: str | os.PathLike[str], depth: Depth = "same") -> int:
        """Bits of a result at `path`: "same" is 16 where a source has more than 8 and the format holds them, else 8."""
        if depth != "same":
            return depth
        holds = images.DEPTHS.get(Path(path).suffix.lower(), ())
        return 16 if 16 in holds and any(source.bits > 8 for source in self.sources) else 8

    def like(self, path: str | os.PathLike[str]) -> Image:
        """The source whose geometry and unit, or else profile and resolution, a result at `path` takes.

        The first of the same kind for DICOM and NIfTI; for other files the first coloured one, or the first of all.
        """
        if images.is_medical(path):
            from ddfm.io.medical import lends_geometry

            fitting = [source for source in self.sources if lends_geometry(source, path)]
        else:
            fitting = [source for source in self.sources if source.pixels.ndim == 3]
        return (fitting or self.sources)[0]

    def check_target(self, path: str | os.PathLike[str], depth: Depth = "same", colour: Colour = "auto") -> None:
        """Raise InputError where `write` would of what `fuse` gives with this `colour`: before the long work."""
        if self.is_volume and not images.is_medical(path):
            raise InputError(f"Cannot write {quoted(path)}: the sources are volumes; use .nii, .nii.gz or .dcm.")
        images.check_target(path, self.bits(path, depth))
        if images.is_medical(path):
            from ddfm.io.medical import check_geometry, check_grey

            check_geometry(path, self.like(path))
            if not self.is_volume:
                check_grey(path, not lends_colour([source.pixels for source in self.sources], colour))
        Outputs([x.path for x in self.sources if x.path is not None], overwrite=True).claim(path)

    def write(self, path: str | os.PathLike[str], fused: np.ndarray, depth: Depth = "same") -> None:
        """Write what `fuse` gave; the file appears whole or not at all. Raises InputError."""
        if self.is_volume:
            from ddfm.io.medical import write_volume

            write_volume(path, fused, self.like(path))
        else:
            images.write(path, fused, self.bits(path, depth), self.like(path))

    def _check_sizes(self) -> None:
        from ddfm.pipeline import SMALLEST  # late: it brings torch, which bad files need not wait for

        first = self.sources[0]
        for source in self.sources:
            if source.is_volume != first.is_volume:
                raise InputError(
                    f"{_name(source)} is {_kind(source)} but {_name(first)} is {_kind(first)}; fuse images with "
                    "images and volumes with volumes."
                )
            if _size(source) != _size(first):
                raise InputError(
                    f"{_name(source)} is {_size(source)} but {_name(first)} is {_size(first)}; register them to one "
                    "size first."
                )
        if min(_shape(first)[:2]) < SMALLEST:
            raise InputError(f"{_name(first)} is {_size(first)}; at least {SMALLEST}x{SMALLEST} is needed.")

    def _check_axes(self) -> None:
        """Of one size and yet mirrored: two packages' conventions for the same scan, which no size gives away."""
        if not any(source.header is not None for source in self.sources):
            return
        from ddfm.io.medical import axes

        known = [(source, code) for source in self.sources if (code := axes(source))]
        for source, code in known:
            if code != known[0][1]:
                raise InputError(
                    f"{_name(source)} has its axes along {code} but {_name(known[0][0])} along {known[0][1]}; reorient "
                    "one of them first."
                )

    def _aligned(self) -> Scene:
        from ddfm.registration.affine import align, warp

        if self.is_volume:
            raise InputError(f"{_name(self.sources[0])} is a volume, and only images are aligned; register it first.")
        first, *others = self.sources
        alignments = [align(moving.pixels, first.pixels) for moving in others]
        warped = [  # `warp` refuses, with the same sentence, what could not be aligned
            replace(moving, pixels=warp(moving.pixels, found)) for moving, found in zip(others, alignments, strict=True)
        ]
        return Scene([first, *warped], [found.sentence for found in alignments])

    def _fuse_slices(self, pipe: DDFMPipeline, settings: FusionSettings, progress: Progress | None) -> np.ndarray:
        volumes = [source.pixels for source in self.sources]
        # A slice that is flat in all sources shows nothing: the network would only put its own noise there.
        flat = np.all([v.min(axis=(1, 2)) == v.max(axis=(1, 2)) for v in volumes], axis=0)
        fused = np.empty_like(volumes[0])
        fused[flat] = np.mean([v[flat, :1, :1] for v in volumes], axis=0)
        stretch = settings.contrast == "minmax"
        if stretch:  # each slice by itself would flicker
            settings = replace(settings, contrast="natural")
        todo, done, at_once = np.flatnonzero(~flat), int(flat.sum()), _slices_per_call(pipe)
        for at in (todo[k : k + at_once] for k in range(0, len(todo), at_once)):

            def step(under_way: float, steps: int, done: int = done, n: int = len(at)) -> None:
                if progress:
                    progress(done + n * under_way / steps, len(fused))

            fused[at] = _call(pipe, [list(v[at]) for v in volumes], _generators(settings.seed, len(at)), settings, step)
            done += len(at)
        if progress:
            progress(done, len(fused))
        if stretch:
            fused -= fused.min()
            fused /= max(float(fused.max()), 1e-12)
        return fused


def fuse_images(
    pipe: DDFMPipeline,
    scenes: Sequence[Scene],
    generators: list[torch.Generator],
    settings: FusionSettings,
    progress: Progress | None = None,
) -> np.ndarray:
    """B scenes of images of one size in one call of the pipeline, a generator each; arguments as of `Scene.fuse`.

    Returns (B, H, W), or (B, H, W, 3) if any is coloured. Raises InputError as the pipeline does.
    """
    sensors = zip(*([source.pixels for source in scene.sources] for scene in scenes), strict=True)
    return _call(pipe, [list(images) for images in sensors], generators, settings, progress)


def _call(
    pipe: DDFMPipeline,
    sources: list[list[np.ndarray]],
    generators: list[torch.Generator],
    settings: FusionSettings,
    progress: Progress | None,
) -> np.ndarray:
    output = pipe(sources, settings, generator=generators, progress=progress, output_type="np")
    return np.asarray(output.images)  # type: ignore[union-attr]


def _slices_per_call(pipe: DDFMPipeline) -> int:
    """Slices to a call: more than one are no faster on the CPU, more than eight nowhere."""
    return 1 if pipe.device.type == "cpu" else 8


def _generators(seed: int, n: int) -> list[torch.Generator]:
    """The same noise n times."""
    import torch

    return [torch.Generator().manual_seed(seed) for _ in range(n)]


def _name(source: Image) -> str:
    return quoted(source.path) if source.path is not None else "A source"


def _kind(source: Image) -> str:
    return f"a volume of {len(source.pixels)} slices" if source.is_volume else "an image"


def _shape(source: Image) -> tuple[int, ...]:
    """(H, W), or (H, W, S) of a volume."""
    shape = source.pixels.shape
    return (*shape[1:], shape[0]) if source.is_volume else shape[:2]


def _size(source: Image) -> str:
    """For a sentence: width x height (x slices)."""
    height, width, *slices = _shape(source)
    return "x".join(map(str, (width, height, *slices)))
