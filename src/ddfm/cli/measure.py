"""The commands `evaluate` and `bench`: measuring fused images."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from ddfm.cli import loading
from ddfm.cli.console import note, out, reported, say
from ddfm.cli.options import INPUT, METHOD, OUTPUT, Device, Overwrite, Prior, option, options_of, with_options
from ddfm.errors import InputError
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.evaluation.table import Evaluation
    from ddfm.io.outputs import Outputs

Sources = Annotated[list[Path], option("Folder of source images; repeat for each sensor.", INPUT, "--sources")]


@dataclass(frozen=True)
class Measuring:
    """What to measure and where to write it: the options that `evaluate` and `bench` share."""

    convention: Annotated[str, option("ddfm (the authors' evaluator) or standard (textbook).", METHOD)] = "ddfm"
    metrics: Annotated[str | None, option("Comma-separated metrics. (Default: the evaluator's twelve.)", METHOD)] = None
    published: Annotated[str | None, option("Add the paper's row: msrs, m3fd, roadscene, tno, harvard.", OUTPUT)] = None
    per_image: Annotated[bool, option("One row per image instead of means.", OUTPUT, "--per-image")] = False
    csv: Annotated[Path | None, option("Write the table to this file.", OUTPUT)] = None
    json: Annotated[Path | None, option("Write all results to this file.", OUTPUT)] = None
    html: Annotated[Path | None, option("Write a self-contained report to this file.", OUTPUT)] = None
    overwrite: Overwrite = False

    @property
    def names(self) -> list[str] | None:
        """The chosen metrics, None for the default."""
        return [name.strip() for name in self.metrics.split(",")] if self.metrics else None

    def claimed(self, inputs: "list[str | Path]") -> "Outputs":
        """The files that will be written, checked before any work."""
        from ddfm.io.files import check_writable
        from ddfm.io.outputs import Outputs

        outputs = Outputs(inputs, self.overwrite)
        for path in (self.csv, self.json, self.html):
            if path is not None:
                check_writable(outputs.claim(path))
        return outputs

    def report(self, evaluation: "Evaluation") -> None:
        """Prints the evaluation and writes the requested files."""
        table = evaluation.to_rich(self.per_image)
        needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
        Console(width=max(needed, out.width)).print(table)  # never truncated: half a number is worse than none
        for comparison in evaluation.baseline_notes():
            say(comparison)
        for path in evaluation.unmatched:
            note(f"unmatched: {path}")
        for finding in evaluation.findings:
            note(finding)
        if self.csv:
            evaluation.to_csv(self.csv, self.per_image)
        if self.json:
            evaluation.to_json(self.json)
        if self.html:
            from ddfm.evaluation.report import write_html

            write_html(evaluation, self.html)


def with_measuring(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its parameter `measuring` replaced by the options of `Measuring`."""
    return with_options(command, "measuring", options_of(Measuring), lambda values: Measuring(**values))


@with_measuring
def evaluate(
    fused: Annotated[list[str], option("DIR or NAME=DIR; repeat for each method.", INPUT, "--fused")],
    sources: Sources,
    measuring: Measuring,
    baselines: Annotated[bool, option("Measure average, maximum and pyramid too.", METHOD, "--baselines")] = False,
) -> None:
    """Measure folders of fused images against their sources.

    Example: ddfm evaluate --fused ours=fused --sources infrared --sources visible --html report.html
    """
    from ddfm.evaluation.evaluate import evaluate_folders

    # "lr=0.1" may be a folder's name
    named = [(Path(x).name, x) if "=" not in x or Path(x).is_dir() else x.split("=", 1) for x in fused]
    methods = {name: Path(folder) for name, folder in named}
    if len(methods) < len(named):
        raise InputError("Two --fused folders have the same name: give them as NAME=DIR.")
    measuring.claimed([*sources, *methods.values()])
    with reported("measuring") as progress:
        evaluation = evaluate_folders(
            methods,
            sources,
            measuring.convention,  # type: ignore[arg-type]  # checked there
            measuring.names,
            progress,
            measuring.published,
            baselines,
        )
    measuring.report(evaluation)


@with_measuring
def bench(
    sources: Sources,
    settings: FusionSettings,
    measuring: Measuring,
    also: Annotated[list[str], option("A likelihood to compare with; repeatable.", METHOD, "--also")] = [],  # noqa: B006
    prior: Prior = "embedded",
    device: Device = None,
    output: Annotated[Path | None, option("Keep the fused images in this folder.", OUTPUT, "--output", "-o")] = None,
) -> None:
    """Fuse folders of sources with the chosen settings and the simple baselines; measure and time all of them.

    Example: ddfm bench --sources infrared --sources visible --also paper
    """
    from ddfm.evaluation.evaluate import bench as run_bench

    outputs = measuring.claimed([*sources, prior])
    methods = [settings, *(dataclasses.replace(settings, likelihood=name) for name in also)]
    pipe = loading.pipeline(prior, device)

    def method(chosen: FusionSettings) -> Any:
        return lambda images: pipe(images, chosen).images[0]  # type: ignore[union-attr]

    with reported("fusing and measuring") as progress:
        evaluation = run_bench(
            sources,
            {chosen.likelihood: method(chosen) for chosen in methods},
            output,
            measuring.convention,  # type: ignore[arg-type]  # checked there
            measuring.names,
            progress,
            measuring.published,
            outputs=outputs,
        )
    measuring.report(evaluation)
