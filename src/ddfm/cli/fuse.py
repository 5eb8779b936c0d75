"""The commands `fuse`, `register` and `demo`: one scene at a time."""

import json as jsons
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ddfm.cli import loading
from ddfm.cli.console import err, note, say
from ddfm.cli.options import (
    Anonymise,
    Blend,
    Depth,
    Device,
    Frame,
    JsonObject,
    Output,
    Overwrite,
    Palette,
    Prior,
    Quiet,
    Verbose,
    depth_from,
    naming,
)
from ddfm.errors import InputError
from ddfm.runs.reading import Reading
from ddfm.settings import FusionSettings


def fuse(
    sources: Annotated[
        list[Path], typer.Argument(help="Images or volumes of one scene: INFRARED VISIBLE, MRI PET ...")
    ],
    output: Output,
    settings: FusionSettings,
    reading: Reading,
    prior: Prior = "embedded",
    device: Device = None,
    depth: Depth = "same",
    palette: Palette = None,
    blend: Blend = None,
    anonymise: Anonymise = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: JsonObject = False,
) -> None:
    """Fuse images of one scene, of any size, or volumes slice by slice.

    Examples: ddfm fuse thermal.png photo.jpg -o fused.png

    ddfm fuse thermal.png photo.jpg --rig rig.json -o fused.png

    ddfm fuse MRI_FOLDER pet.nii.gz --frame first -o fused.nii.gz
    """
    from ddfm.io.outputs import Outputs
    from ddfm.runs.scene import Scene

    if blend is not None and not palette:
        raise InputError("--blend has no effect without a palette: give --palette too.")
    blend = 0.5 if blend is None else blend
    start, bits = time.perf_counter(), depth_from(depth)
    err.quiet = quiet or json
    rig = [reading.rig.path] if reading.rig and reading.rig.path else []
    Outputs([*sources, prior, *rig], overwrite).claim(output)
    with err.status("reading the sources"):
        scene = Scene.read(sources, reading)
        scene.check_target(output, bits, settings.colour, anonymise)
        if palette:  # refused before the work
            scene.overlaid(scene.sources[0].pixels, palette, blend)
            if settings.roles is None and sum(source.pixels.ndim == 2 for source in scene.sources) > 1:
                scene.findings.append("The palette shows the first grey source; --roles says which is thermal.")
    for finding in scene.findings:
        note(finding)
    pipe = loading.pipeline(prior, device)
    if verbose:
        note(f"{settings}, prior {prior} on {pipe.device}")
    fused = loading.run(pipe, scene, settings, "fusing")
    if palette:
        fused = scene.overlaid(fused, palette, blend, settings.roles)
    scene.write(output, fused, bits, anonymise)
    height, width = fused.shape[1:] if scene.is_volume else fused.shape[:2]
    size = [width, height, *([len(fused)] if scene.is_volume else [])]
    done = {
        "output": str(output),
        "size": size,
        "seconds": round(time.perf_counter() - start, 2),
        "findings": scene.findings,
        "registrations": [found and found.as_dict() for found in scene.registrations],
        "settings": settings.as_dict(),
    }
    if json:
        print(jsons.dumps(done))
    elif not quiet:
        say(f"{output}: {'x'.join(map(str, size))}, {done['seconds']:.1f} s")


def register(
    moving: Annotated[Path, typer.Argument(help="One image.")],
    fixed: Annotated[Path, typer.Argument(help="Another image of the same scene, of any size.")],
    save: Annotated[Path | None, typer.Option("--save", help="Write the calibration to this file, for --rig.")] = None,
    write_aligned: Annotated[
        Path | None, typer.Option("--write-aligned", help="Write the other image here, resampled into the frame.")
    ] = None,
    frame: Frame = "auto",
    dense: Annotated[
        bool, typer.Option("--dense", help="Refine locally, for --write-aligned; a calibration is only affine.")
    ] = False,
    overwrite: Overwrite = False,
    json: JsonObject = False,
) -> None:
    """Register one image to the frame of another; exits with 1 if the result is unreliable.

    Examples: ddfm register thermal.png photo.jpg --save rig.json

    ddfm register thermal.png photo.jpg --write-aligned thermal_in_photo.png
    """
    from ddfm.io import images
    from ddfm.io.files import check_writable
    from ddfm.io.outputs import Outputs
    from ddfm.io.sources import read_source
    from ddfm.registration import frame_of, registered
    from ddfm.runs.scene import Scene

    outputs = Outputs([moving, fixed], overwrite)
    for path in (save, write_aligned):
        if path is not None:
            check_writable(outputs.claim(path))
    if write_aligned is not None:
        if images.is_medical(write_aligned):
            raise InputError(
                f"Cannot write {images.quoted(write_aligned)}: an image that was moved no longer lies where its header "
                "says; use .png or .tif."
            )
        images.check_target(write_aligned)
    pair = [read_source(path) for path in (moving, fixed)]  # as `fuse` reads them, so that the rig file's sizes agree
    if volume := next((image for image in pair if image.is_volume), None):
        raise InputError(f"{images.quoted(str(volume.path))} is a volume; `ddfm fuse --rigid` registers volumes.")
    with naming({}):
        chosen = Reading.from_strings({"frame": frame}).frame
    chosen = frame_of(pair, None) if chosen is None else chosen
    if chosen > 1:
        raise InputError("--frame must be first or second, since two images are registered.")
    source, target = pair[1 - chosen], pair[chosen]
    with err.status("registering"):
        found = registered(source, target, dense)
    for finding in (*source.findings, *target.findings):
        note(finding)
    said = [f"{source.path} in the frame of {target.path}: {found.sentence}"]
    said.append(f"The matrix from pixels (x, y, 1) of {target.path} to those of {source.path}:")
    said += ["  ".join(f"{value:12.6f}" for value in row) for row in found.matrix]
    if found.confident and save is not None:
        replace(found, frame=chosen).save(save)
        said.append(f"{save}: the calibration, for --rig{', without the local refinement' if dense else ''}")
    if found.confident and write_aligned is not None:
        images.write(write_aligned, found.warp(source.pixels), Scene([source]).bits(write_aligned), source)
        said.append(f"{write_aligned}: {source.path} in the frame")
    if json:
        print(jsons.dumps(found.as_dict() | {"frame": str(target.path), "sentence": found.sentence}))
    else:
        say("\n".join(said))
    if not found.confident:
        if save is not None or write_aligned is not None:
            note("Nothing was written because the registration is unreliable.")
        raise typer.Exit(1)


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for the images.")] = Path("demo"),
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Fuse two bundled scenes, a night street and a head, and write side-by-side comparisons.

    Example: ddfm demo demo --overwrite
    """
    from ddfm.colour import fused_colour, luma
    from ddfm.demo import save_scenes, side_by_side
    from ddfm.evaluation.baselines import average
    from ddfm.io import images
    from ddfm.io.outputs import Outputs
    from ddfm.runs.scene import Scene

    shown, outputs = {"night_street": ("infrared", "visible"), "head_pet": ("MRI", "PET")}, Outputs([], overwrite)
    for name in shown:
        outputs.claim(folder / f"{name}_fused.png")
        outputs.claim(folder / f"{name}_side_by_side.png")
    scenes = save_scenes(folder, overwrite)
    pipe = loading.pipeline("embedded", device)
    for name, labels in shown.items():
        scene = Scene.read(scenes[name])
        pair = [source.pixels for source in scene.sources]
        fused = loading.run(pipe, scene, FusionSettings(), name)
        images.write(folder / f"{name}_fused.png", fused)
        averaged = fused_colour(average([luma(image) for image in pair]), pair)
        panels = [images.eight_bits(image) for image in (*pair, averaged, fused)]
        images.write(folder / f"{name}_side_by_side.png", side_by_side(panels, [*labels, "average", "ddfm"]))
        for path in (folder / f"{name}_fused.png", folder / f"{name}_side_by_side.png"):
            say(path)
