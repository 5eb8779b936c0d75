"""The commands `evaluate` and `bench`: measuring fused images."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ddfm.cli import loading
from ddfm.cli.console import note, out, reported, say
from ddfm.cli.options import INPUT, METHOD, OUTPUT, Device, Overwrite, Prior, option
from ddfm.errors import InputError
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.evaluation.table import Evaluation
    from ddfm.io.outputs import Outputs

Convention = Annotated[str, typer.Option(help="ddfm (the authors' evaluator) or standard (textbook).")]
Sources = Annotated[list[Path], option("A folder of source images; once per sensor.", INPUT, "--sources")]
Metrics = Annotated[str | None, typer.Option(help="Comma-separated names; the evaluator's twelve if not given.")]
Published = Annotated[str | None, typer.Option(help="Show the paper's row: msrs, m3fd, roadscene, tno or harvard.")]
Csv = Annotated[Path | None, option("Write the table here.", OUTPUT, "--csv")]
Json = Annotated[Path | None, option("Write everything here.", OUTPUT, "--json")]
Html = Annotated[Path | None, option("Write a self-contained report here.", OUTPUT, "--html")]
PerImage = Annotated[bool, option("One row per image instead of means.", OUTPUT, "--per-image")]


def _claimed(inputs: "list[str | Path]", overwrite: bool, *paths: Path | None) -> "Outputs":
    """The files that a measurement writes, checked before the work."""
    from ddfm.io.outputs import Outputs

    outputs = Outputs(inputs, overwrite)
    for path in paths:
        if path is not None:
            outputs.claim(path)
    return outputs


def _report(evaluation: "Evaluation", csv: Path | None, json: Path | None, html: Path | None, per_image: bool) -> None:
    """On the terminal and to the files that were asked for."""
    table = evaluation.to_rich(per_image)
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    Console(width=max(needed, out.width)).print(table)  # whole: numbers cut to fit a narrow terminal are no numbers
    for comparison in evaluation.baseline_notes():
        say(comparison)
    for path in evaluation.unmatched:
        note(f"unmatched: {path}")
    if csv:
        evaluation.to_csv(csv, per_image)
    if json:
        evaluation.to_json(json)
    if html:
        from ddfm.evaluation.report import write_html

        write_html(evaluation, html)


def _names(metrics: str | None) -> list[str] | None:
    return [name.strip() for name in metrics.split(",")] if metrics else None


def evaluate(
    fused: Annotated[list[str], option("DIR or NAME=DIR; once per method.", INPUT, "--fused")],
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
    """Measure folders of fused images against their sources.

    Example: ddfm evaluate --fused ours=fused --sources infrared --sources visible --html report.html
    """
    from ddfm.evaluation.evaluate import evaluate_folders

    named = [text.partition("=") if "=" in text else (Path(text).name, "=", text) for text in fused]
    methods = {name: Path(folder) for name, _, folder in named}
    if len(methods) < len(named):
        raise InputError("Two --fused folders have the same name: call them NAME=DIR.")
    _claimed([*sources, *methods.values()], overwrite, csv, json, html)
    with reported("measuring") as progress:
        evaluation = evaluate_folders(
            methods,
            sources,
            convention,  # type: ignore[arg-type]  # checked there
            _names(metrics),
            progress,
            published,
            baselines,
        )
    _report(evaluation, csv, json, html, per_image)


def bench(
    sources: Sources,
    settings: FusionSettings,
    also: Annotated[list[str], option("A further likelihood to measure beside.", METHOD, "--also")] = [],  # noqa: B006
    prior: Prior = "embedded",
    device: Device = None,
    output: Annotated[Path | None, option("Keep the fused images here.", OUTPUT, "--output", "-o")] = None,
    convention: Convention = "ddfm",
    metrics: Metrics = None,
    published: Published = None,
    per_image: PerImage = False,
    csv: Csv = None,
    json: Json = None,
    html: Html = None,
    overwrite: Overwrite = False,
) -> None:
    """Fuse folders of sources with the chosen settings and the simple baselines; measure and time them all.

    Example: ddfm bench --sources infrared --sources visible --also paper
    """
    from ddfm.evaluation.evaluate import bench as run_bench

    outputs = _claimed([*sources, prior], overwrite, csv, json, html)
    methods = [settings, *(dataclasses.replace(settings, likelihood=name) for name in also)]
    pipe = loading.pipeline(prior, device)

    def method(chosen: FusionSettings) -> Any:
        return lambda images: pipe(images, chosen).images[0]  # type: ignore[union-attr]

    with reported("fusing and measuring") as progress:
        evaluation = run_bench(
            sources,
            {chosen.likelihood: method(chosen) for chosen in methods},
            output,
            convention,  # type: ignore[arg-type]  # checked there
            _names(metrics),
            progress,
            published,
            outputs=outputs,
        )
    _report(evaluation, csv, json, html, per_image)
