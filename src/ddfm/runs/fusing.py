"""Runs scenes through the pipeline: images of equal size together, volumes slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ddfm.io.images import Image
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    import torch

    from ddfm.pipeline import DDFMPipeline
    from ddfm.prior import Progress
    from ddfm.registration import Framed
    from ddfm.runs.scene import Scene


def fuse_images(
    pipe: DDFMPipeline,
    scenes: Sequence[Scene],
    generators: list[torch.Generator],
    settings: FusionSettings,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Fuse B scenes of images of equal size in one pipeline call, with a generator each; arguments as in `Scene.fuse`.

    Returns the images, (B, H, W), or (B, H, W, 3) if any is coloured, and with several samples their std, (B, H, W).
    Raises InputError as the pipeline does.
    """
    from ddfm.pipeline import likelihood_of

    # Network evaluations: those done for cleaned sources, those of the current stage, and those of the steps to come.
    before, latest = 0, 0
    to_come = settings.num_samples * (settings.num_inference_steps or likelihood_of(settings).steps)

    def step(done: float, total: int) -> None:
        nonlocal latest
        latest = total
        if progress:
            progress(before + done, before + total + to_come)

    sources = [list(scene.sources) for scene in scenes]
    for framed, images in zip((scene.framed for scene in scenes), sources, strict=True):
        for k, own in enumerate(framed.own if framed else []):
            if own is not None and (pixels := pipe.clean(own.pixels, settings, progress=step)) is not None:
                assert framed is not None
                images[k] = framed.bring(k, replace(own, pixels=pixels))
            before, latest = before + latest, 0
    to_come = 0
    sensors = [[image.pixels for image in images] for images in zip(*sources, strict=True)]
    output: Any = pipe(sensors, settings, generator=generators, progress=step, output_type="np")
    fused = np.asarray(output.images)
    for k, scene in enumerate(scenes):
        if any(scene.registrations):
            from ddfm.registration import with_frame_beyond

            fused[k] = with_frame_beyond(fused[k], sources[k][scene.frame].pixels, scene.registrations)
    return fused, output.std


def fuse_slices(
    pipe: DDFMPipeline, sources: Sequence[Image], settings: FusionSettings, progress: Progress | None = None
) -> np.ndarray:
    """Fuse volumes (S, H, W) as described in `Scene.fuse`."""
    from ddfm.pipeline import likelihood_of

    volumes = [source.pixels for source in sources]
    # A slice that is flat in all sources shows nothing: the network would only add noise.
    flat = np.all([v.min(axis=(1, 2)) == v.max(axis=(1, 2)) for v in volumes], axis=0)
    fused = np.empty_like(volumes[0])
    fused[flat] = np.mean([v[flat, :1, :1] for v in volumes], axis=0)
    stretch = settings.contrast == "minmax"
    if stretch:  # stretching each slice separately would make the volume flicker
        settings = replace(settings, contrast="natural")
    model = likelihood_of(settings)
    if hasattr(model, "for_volume"):  # and so would statistics per slice
        settings = replace(settings, likelihood=model.for_volume(volumes))
    todo, done, at_once = np.flatnonzero(~flat), int(flat.sum()), images_at_once(pipe)
    for at in (todo[k : k + at_once] for k in range(0, len(todo), at_once)):

        def step(under_way: float, steps: int, done: int = done, n: int = len(at)) -> None:
            if progress:
                progress(done + n * under_way / steps, len(fused))

        output: Any = pipe(
            [list(v[at]) for v in volumes], settings, generator=generators(settings.seed, len(at)), progress=step
        )
        fused[at] = output.images
        done += len(at)
    if progress:
        progress(done, len(fused))
    if stretch:
        fused -= fused.min()
        fused /= max(float(fused.max()), 1e-12)
    return fused


def images_at_once(pipe: DDFMPipeline) -> int:
    """Images of equal size per pipeline call: more than 1 is no faster on the CPU, more than 8 no faster anywhere."""
    return 1 if pipe.device.type == "cpu" else 8


def generators(seed: int, n: int) -> list[torch.Generator]:
    """n generators of the same noise."""
    import torch

    return [torch.Generator().manual_seed(seed) for _ in range(n)]


def noise_found(framed: Framed) -> list[str]:
    """A sentence for each noisy source that is cleaned on its original grid."""
    import torch

    from ddfm.colour import luma
    from ddfm.likelihoods.noise import NOISE_FLOOR, noise_std

    said = []
    for own in framed.own:
        noise = 0.0 if own is None else noise_std(torch.from_numpy(luma(own.pixels))[None, None]).item()
        if own is not None and noise > NOISE_FLOOR:
            height, width = own.pixels.shape[:2]
            said.append(
                f"{own.name} has noise with a standard deviation of {255 * noise:.0f} of 255, measured on its original "
                f"{width}x{height} pixels before resampling."
            )
    return said
