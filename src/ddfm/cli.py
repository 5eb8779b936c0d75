"""The command line. Thin: every option is a parameter of a function elsewhere."""

import dataclasses
import json as jsons
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ddfm import __version__
from ddfm.cli_batch import batch
from ddfm.console import err, out, plain, progress_bar, reported
from ddfm.errors import InputError, out_of_memory
from ddfm.options import (
    Aligning,
    Anonymise,
    AnyPatient,
    Assume,
    Blend,
    Crop,
    Depth,
    Device,
    Frame,
    JsonObject,
    Normalise,
    Output,
    Overwrite,
    Palette,
    Prior,
    Quiet,
    Rig,
    Rigid,
    ValueRange,
    Verbose,
    Window,
    align_from,
    depth_from,
    frame_from,
    range_from,
    rig_from,
    window_from,
    with_settings,
)
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.evaluation.table import Evaluation
    from ddfm.io.outputs import Outputs
    from ddfm.pipeline import DDFMPipeline
    from ddfm.runs.scene import Scene

app = typer.Typer(
    help="Fuse registered images of several sensors by posterior sampling with a diffusion prior (DDFM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prior_app = typer.Typer(
    help="The image prior: look at it, fetch the paper's, train the embedded one.", no_args_is_help=True
)
app.add_typer(prior_app, name="prior")

Convention = Annotated[str, typer.Option(help="ddfm (the authors' evaluator) or standard (textbook).")]
Sources = Annotated[list[Path], typer.Option("--sources", help="A folder of source images; once for each sensor.")]
Metrics = Annotated[str | None, typer.Option(help="Comma-separated names; the evaluator's twelve if not given.")]
Published = Annotated[str | None, typer.Option(help="Show the paper's row: msrs, m3fd, roadscene, tno or harvard.")]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write the table here.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything here.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained report here.")]
PerImage = Annotated[bool, typer.Option("--per-image", help="A row an image too.")]


def main() -> None:
    """The console script: one sentence and exit 2 for bad input, 130 for Ctrl-C."""
    try:
        code = app(
            prog_name="ddfm", standalone_mode=False
        )  # what typer.Exit carried; newer versions of typer make Ctrl-C a 130 of it
    except InputError as error:
        err.print(f"[bold red]error:[/] {plain(error)}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: a wrong option or argument
            err.print(f"[bold red]error:[/] {plain(error.format_message())} (see ddfm --help)", soft_wrap=True)
            sys.exit(2)
        if sentence := out_of_memory(error):
            err.print(f"[bold red]error:[/] {sentence}", soft_wrap=True, highlight=False)
            sys.exit(2)
        raise
    if code == 130:
        err.print("interrupted")
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        print(f"ddfm {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def _pipeline(prior: str, device: str | None) -> "DDFMPipeline":
    with err.status("loading the prior"):
        from ddfm.pipeline import DDFMPipeline

        pipe = DDFMPipeline.from_prior(prior, device)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return pipe


def _run(pipe: "DDFMPipeline", scene: "Scene", settings: FusionSettings, label: str) -> Any:
    """One fusion with its progress, tile by tile, over evaluations of the network or slices; the result."""
    with reported(label) as progress:
        return scene.fuse(pipe, settings, progress)


@app.command()
@with_settings
def fuse(
    sources: Annotated[
        list[Path], typer.Argument(help="Images or volumes of one scene: INFRARED VISIBLE, MRI PET ...")
    ],
    output: Output,
    settings: FusionSettings,
    prior: Prior = "embedded",
    device: Device = None,
    depth: Depth = "same",
    align: Aligning = None,
    assume_aligned: Assume = False,
    rig: Rig = None,
    crop: Crop = False,
    normalise: Normalise = False,
    value_range: ValueRange = None,
    frame: Frame = "auto",
    window: Window = None,
    rigid: Rigid = False,
    allow_different_patients: AnyPatient = False,
    palette: Palette = None,
    blend: Blend = 0.5,
    anonymise: Anonymise = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: JsonObject = False,
) -> None:
    """Fuse images of one scene, of any sizes, or volumes slice by slice, into one.

    Examples: ddfm fuse thermal.png photo.jpg -o fused.png

    ddfm fuse thermal.png photo.jpg --rig rig.json -o fused.png

    ddfm fuse MRI_FOLDER pet.nii.gz --frame first -o fused.nii.gz
    """
    from ddfm.io.outputs import Outputs
    from ddfm.runs.scene import Scene

    start, bits = time.perf_counter(), depth_from(depth)
    err.quiet = quiet or json
    Outputs([*sources, prior, *([rig] if rig else [])], overwrite).claim(output)
    with err.status("reading the sources"):
        scene = Scene.read(
            sources,
            normalise,
            align_from(align, assume_aligned),
            value_range=range_from(value_range),
            frame=frame_from(frame),
            rig=rig_from(rig),
            crop=crop,
            window=window_from(window),
            rigid=rigid,
            allow_different_patients=allow_different_patients,
        )
        scene.check_target(output, bits, settings.colour, anonymise)
        if palette:  # refused before the work
            scene.overlaid(scene.sources[0].pixels, palette, blend)
    for finding in scene.findings:
        err.print(plain(finding), highlight=False, soft_wrap=True)
    pipe = _pipeline(prior, device)
    if verbose:
        err.print(plain(f"{settings}, prior {prior} on {pipe.device}"), highlight=False, soft_wrap=True)
    fused = _run(pipe, scene, settings, "fusing")
    if palette:
        fused = scene.overlaid(fused, palette, blend)
    scene.write(output, fused, bits, anonymise)
    height, width = fused.shape[1:] if scene.is_volume else fused.shape[:2]
    done = {
        "output": str(output),
        "size": [width, height, *([len(fused)] if scene.is_volume else [])],
        "seconds": round(time.perf_counter() - start, 2),
        "findings": scene.findings,
        "registrations": [found and found.as_dict() for found in scene.registrations],
        "settings": settings.as_dict(),
    }
    if json:
        print(jsons.dumps(done))
    elif not quiet:
        size = "x".join(map(str, (width, height, *([len(fused)] if scene.is_volume else []))))
        out.print(plain(f"{output}: {size}, {done['seconds']:.1f} s"), highlight=False, soft_wrap=True)


@app.command()
def register(
    moving: Annotated[Path, typer.Argument(help="One image.")],
    fixed: Annotated[Path, typer.Argument(help="Another of the same scene, of any size.")],
    save: Annotated[Path | None, typer.Option("--save", help="Write the calibration here, for --rig.")] = None,
    write_aligned: Annotated[
        Path | None, typer.Option("--write-aligned", help="Write the image that is not the frame here, in the frame.")
    ] = None,
    frame: Frame = "auto",
    overwrite: Overwrite = False,
    json: JsonObject = False,
) -> None:
    """Find where one image lies in the frame of another; exit code 1 if the finding is unsure.

    Examples: ddfm register thermal.png photo.jpg --save rig.json

    ddfm register thermal.png photo.jpg --write-aligned thermal_in_photo.png
    """

    from ddfm.io import images
    from ddfm.io.outputs import Outputs
    from ddfm.registration import frame_of
    from ddfm.registration import register as run_register

    outputs = Outputs([moving, fixed], overwrite)
    for path in (save, write_aligned):
        if path is not None:
            outputs.claim(path)
    pair = [images.read(path) for path in (moving, fixed)]
    chosen = frame_from(frame)
    chosen = frame_of(pair, None) if chosen is None else chosen
    if chosen > 1:
        raise InputError("--frame is first or second: two images are registered.")
    source, target = pair[1 - chosen], pair[chosen]
    with err.status("registering"):
        found = run_register(source.pixels, target.pixels)
    if json:
        print(jsons.dumps(found.as_dict() | {"frame": str(target.path), "sentence": found.sentence}))
    else:
        out.print(
            plain(f"{source.path} in the frame of {target.path}: {found.sentence}"), highlight=False, soft_wrap=True
        )
        for row in found.matrix:
            out.print("  ".join(f"{value:12.6f}" for value in row), highlight=False)
    if not found.confident:
        raise typer.Exit(1)
    if save is not None:
        found.save(save)
    if write_aligned is not None:
        images.write(write_aligned, found.warp(source.pixels), 8 if source.bits == 8 else 16, source)


app.command()(with_settings(batch))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the images go.")] = Path("demo"),
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Fuse a night street and a head phantom, fuse both pairs, and show the results side by side."""
    import numpy as np

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
    pipe = _pipeline("embedded", device)
    for name, labels in shown.items():
        scene = Scene.read(scenes[name])
        pair = [source.pixels for source in scene.sources]
        fused = _run(pipe, scene, FusionSettings(), name)
        images.write(folder / f"{name}_fused.png", fused)
        averaged = fused_colour(average([luma(picture) for picture in pair]), pair)
        eight_bits = [np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in (*pair, averaged, fused)]
        panels = side_by_side(eight_bits, [*labels, "average", "ddfm"])
        images.write(folder / f"{name}_side_by_side.png", panels)
        for path in (folder / f"{name}_fused.png", folder / f"{name}_side_by_side.png"):
            out.print(plain(path), highlight=False, soft_wrap=True)


def _reports(inputs: "list[str | Path]", overwrite: bool, *paths: Path | None) -> "Outputs":
    """The files that a measurement writes, checked before the work."""
    from ddfm.io.outputs import Outputs

    outputs = Outputs(inputs, overwrite)
    for path in paths:
        if path is not None:
            outputs.claim(path)
    return outputs


def _report(evaluation: "Evaluation", csv: Path | None, json: Path | None, html: Path | None, per_image: bool) -> None:
    table = evaluation.to_rich(per_image)
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    Console(width=max(needed, out.width)).print(table)  # whole: numbers cut to fit a narrow terminal are no numbers
    for note in evaluation.baseline_notes():
        out.print(plain(note), highlight=False)
    for stem in evaluation.unmatched:
        err.print(f"unmatched: {plain(stem)}", highlight=False)
    if csv:
        evaluation.to_csv(csv, per_image)
    if json:
        evaluation.to_json(json)
    if html:
        from ddfm.evaluation.report import write_html

        write_html(evaluation, html)


def _names(metrics: str | None) -> list[str] | None:
    return [name.strip() for name in metrics.split(",")] if metrics else None


@app.command()
def evaluate(
    fused: Annotated[list[str], typer.Option("--fused", help="DIR or NAME=DIR; once for each method.")],
    sources: Sources,
    convention: Convention = "ddfm",
    metrics: Metrics = None,
    published: Published = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Measure average, maximum and pyramid too.")] = False,
    per_image: PerImage = False,
    csv: Csv = None,
    json: Json = None,
    html: Html = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure folders of fused images against their sources."""
    from ddfm.evaluation.evaluate import evaluate_folders

    named = [text.partition("=") if "=" in text else (Path(text).name, "=", text) for text in fused]
    methods = {name: Path(folder) for name, _, folder in named}
    if len(methods) < len(named):
        raise InputError("Two --fused folders have the same name: call them NAME=DIR.")
    _reports([*sources, *methods.values()], overwrite, csv, json, html)
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=None)
        evaluation = evaluate_folders(
            methods,
            sources,
            convention,  # type: ignore[arg-type]  # checked there
            _names(metrics),
            lambda done, total: bar.update(task, completed=done, total=total),
            published,
            baselines,
        )
    _report(evaluation, csv, json, html, per_image)


@app.command()
@with_settings
def bench(
    sources: Sources,
    settings: FusionSettings,
    also: Annotated[list[str], typer.Option("--also", help="A further likelihood to measure beside.")] = [],  # noqa: B006
    prior: Prior = "embedded",
    device: Device = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the fused images here.")] = None,
    convention: Convention = "ddfm",
    metrics: Metrics = None,
    published: Published = None,
    per_image: PerImage = False,
    csv: Csv = None,
    json: Json = None,
    html: Html = None,
    overwrite: Overwrite = False,
) -> None:
    """Fuse folders of sources with the chosen settings and the simple baselines; measure and time them all."""
    from ddfm.evaluation.evaluate import bench as run_bench

    outputs = _reports([*sources, prior], overwrite, csv, json, html)
    methods = [settings, *(dataclasses.replace(settings, likelihood=name) for name in also)]
    pipe = _pipeline(prior, device)

    def method(chosen: FusionSettings) -> Any:
        return lambda images: pipe(images, chosen).images[0]  # type: ignore[union-attr]

    with progress_bar() as bar:
        task = bar.add_task("fusing and measuring", total=None)
        evaluation = run_bench(
            sources,
            {chosen.likelihood: method(chosen) for chosen in methods},
            output,
            convention,  # type: ignore[arg-type]  # checked there
            _names(metrics),
            lambda done, total: bar.update(task, completed=done, total=total),
            published,
            outputs=outputs,
        )
    _report(evaluation, csv, json, html, per_image)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    prior: Prior = "embedded",
    device: Annotated[list[str], typer.Option(help="cpu, cuda:0, ...; one worker for each.")] = [],  # noqa: B006
    token: Annotated[str | None, typer.Option(envvar="DDFM_TOKEN", help="Ask clients for this bearer token.")] = None,
    cors: Annotated[list[str], typer.Option(help="A further origin whose pages may call the service.")] = [],  # noqa: B006
) -> None:
    """Serve the page and the HTTP API (needs `pip install ddfm[server]`).

    Example: ddfm serve --port 8000
    """
    from ddfm.server import serve as run_server

    run_server(host, port, prior=prior, devices=device, token=token, origins=cors)


@prior_app.command("info")
def prior_info(source: Annotated[str, typer.Argument(help="As --prior of fuse.")] = "embedded") -> None:
    """What a prior is: parameters, channels, what it predicts, and its model card if it has one."""
    from ddfm.prior.load import EMBEDDED, image_channels, load_prior, size_multiple

    prior = load_prior(source)
    parameters = sum(p.numel() for p in prior.unet.parameters())
    out.print(f"{plain(source)}: {type(prior.unet).__name__}, {parameters:,} parameters", highlight=False)
    out.print(
        f"channels {image_channels(prior.unet)}, any size (padded to multiples of {size_multiple(prior.unet)}), "
        f"predicts {prior.scheduler.config['prediction_type']}, {len(prior.scheduler.betas)} steps",
        highlight=False,
    )
    card = EMBEDDED / "MODEL_CARD.md"
    if source == "embedded" and card.exists():
        from rich.markdown import Markdown

        out.print(Markdown(card.read_text(encoding="utf-8")))


@prior_app.command("pull")
def prior_pull(
    name: Annotated[str, typer.Argument(help="openai-256, the paper's prior (2.2 GB).")] = "openai-256",
) -> None:
    """Fetch a published prior into the local cache: resumed if interrupted, verified, converted once."""
    from ddfm.prior.download import pull

    out.print(plain(pull(name)), highlight=False, soft_wrap=True)


@prior_app.command("export")
def prior_export(
    onnx: Annotated[Path, typer.Option("--onnx", help="The file to write.")],
    source: Annotated[str, typer.Argument(help="As --prior of fuse.")] = "embedded",
    overwrite: Overwrite = False,
) -> None:
    """Write a prior's network as ONNX, for images of any size (needs `pip install ddfm[onnx]`).

    Example: ddfm prior export --onnx prior.onnx
    """
    from ddfm.io.outputs import Outputs
    from ddfm.prior.export import export_onnx
    from ddfm.prior.load import load_prior

    Outputs([source, *(Path(source) / part for part in ("unet", "scheduler"))], overwrite).claim(onnx)
    out.print(plain(export_onnx(load_prior(source, "cpu"), onnx)), highlight=False, soft_wrap=True)


@prior_app.command("train")
def prior_train(
    data: Annotated[Path, typer.Argument(help="A folder of folders of images.")],
    run: Annotated[Path, typer.Option("--output", "-o", help="The run's folder; an existing one is gone on with.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps in all.")] = 8000,
    initial: Annotated[str | None, typer.Option(help="A prior of this architecture to start from.")] = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; one is best on a busy machine.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train the embedded prior, or go on with a run."""
    import torch

    from ddfm.prior import usable_device
    from ddfm.prior.train import TrainingConfig, train

    if threads:
        torch.set_num_threads(threads)
    config, found = TrainingConfig(steps=steps), str(usable_device(device))
    prior = train(data, run, config, initial=initial, device=found, overwrite=overwrite)
    out.print(plain(prior), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
