"""The command `batch`: on this machine, or on a cluster."""

import functools
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddfm.cli.console import EVERY, err, note, progress_bar, reported, say
from ddfm.cli.options import (
    INPUT,
    OUTPUT,
    PERFORMANCE,
    Depth,
    Device,
    Overwrite,
    Prior,
    depth_from,
    option,
)
from ddfm.errors import InputError
from ddfm.io.files import quoted
from ddfm.runs.reading import Reading
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.runs.cluster import ClusterResult
    from ddfm.runs.execution import BatchResult

RAY = "On a cluster"


def batch(
    sources: Annotated[
        list[str], typer.Argument(help="One folder per sensor, a single folder, or a CSV with a row per scene.")
    ],
    output: Annotated[str, option("Folder for the results.", OUTPUT, "--output", "-o")],
    settings: FusionSettings,
    reading: Reading,
    prior: Prior = "embedded",
    device: Device = None,
    depth: Depth = "same",
    format: Annotated[str, option("png, tif, jpg or bmp; volumes keep their format.", OUTPUT)] = "png",
    batch_size: Annotated[int | None, option("Images of equal size per network call.", PERFORMANCE)] = None,
    resume: Annotated[bool, option("Skip completed pairs.", OUTPUT, "--resume")] = False,
    pattern: Annotated[list[str], option("A pattern per sensor: '{id}_T.jpg' '{id}_V.jpg'.", INPUT)] = [],  # noqa: B006
    dry_run: Annotated[bool, option("Print the pairs and what would be done.", OUTPUT, "--dry-run")] = False,
    overwrite: Overwrite = False,
    engine: Annotated[str, option("local, or ray for a cluster (docs/scale.md).", RAY)] = "local",
    address: Annotated[
        str | None,
        option("Cluster address; auto finds a running one. (Default: start one on this machine.)", RAY),
    ] = None,
    concurrency: Annotated[int | None, option("Number of workers. (Default: as many as fit.)", RAY)] = None,
    num_cpus: Annotated[float, option("CPUs and threads per worker.", RAY)] = 1,
    num_gpus: Annotated[float, option("GPUs per worker; with 0.5 two workers share one.", RAY)] = 0,
    metrics: Annotated[str | None, option("Fusion metrics for the manifest, comma-separated.", RAY)] = None,
) -> None:
    """Fuse folders of images or volumes, matched by name; lists failures at the end.

    Example: ddfm batch flight7 --pattern '{id}_T.jpg' '{id}_V.jpg' -o fused
    """
    bits = depth_from(depth)
    # An option takes one value: the second pattern arrives among the sources.
    patterns = [*pattern, *(path for path in sources if "{id}" in path and not os.path.exists(path))]
    sources = [path for path in sources if path not in patterns]
    pairs = sources[0] if len(sources) == 1 else sources
    options: dict[str, Any] = {
        "patterns": patterns,
        "prior": prior,
        "device": device,
        "settings": settings,
        "resume": resume,
        "batch_size": batch_size,
        "depth": bits,
        "format": format,
        "reading": reading,
        "overwrite": overwrite,
    }
    cluster = {"address": address, "concurrency": concurrency, "num_cpus": num_cpus, "num_gpus": num_gpus}
    if engine == "ray":
        if dry_run:
            raise InputError("--dry-run works on this machine only: drop --engine ray.")
        _on_cluster(pairs, output, metrics, options | cluster)
        return
    if engine != "local":
        raise InputError(f"--engine must be local or ray, not {engine[:80]}.")
    if metrics or cluster != {"address": None, "concurrency": None, "num_cpus": 1, "num_gpus": 0}:
        raise InputError("--address, --concurrency, --num-cpus, --num-gpus and --metrics need --engine ray.")
    from ddfm.runs.batch import batch as run_batch

    with reported("reading" if dry_run else "fusing") as progress:
        result = run_batch(pairs, output, dry_run=dry_run, progress=progress, **options)
    _batch_report(result, dry_run)
    if result.failed:
        raise typer.Exit(1)


def _batch_report(result: "BatchResult", dry_run: bool) -> None:
    """Prints what a batch did, or would do: a summary on standard output, for a dry run after one line per pair."""
    fused = {str(path) for path in result.fused}
    for pair in result.pairs if dry_run else []:
        target = pair.output if str(pair.output) in fused else pair.volume_output
        what = (
            "fails" if pair.name in result.failed else f"-> {quoted(target)}" if str(target) in fused else "is complete"
        )
        say(f"{quoted(pair.name)}: {' + '.join(map(quoted, pair.sources))} {what}")
    counts = f"{len(result.fused)} fused, {len(result.skipped)} complete before, {len(result.failed)} failed"
    if dry_run:
        say(f"would be: {counts}; nothing was written")
    else:
        time = f"{result.seconds:.1f} s, {result.network_share:.0%} of it fusing"
        say(f"{counts} in {time}; {result.manifest}")
    _note_names(result)
    for name, findings in result.findings.items() if dry_run else []:
        note(f"{quoted(name)}: {' '.join(findings)}")
    if result.findings and not dry_run:
        note(f"Assumptions were made for {len(result.findings)} of them: see `findings` in the manifest.")
    for name, sentence in result.failed.items():
        note(f"{quoted(name)}: {sentence}")


def _note_names(result: "BatchResult | ClusterResult") -> None:
    """Prints files without a partner, and decisions about names."""
    for path in result.unmatched:
        note(f"unmatched: {quoted(path)}")
    for sentence in result.notes:
        note(sentence)


def _on_cluster(pairs: str | list[str], output: str, metrics: str | None, options: dict[str, Any]) -> None:
    """`batch` on Ray, with progress; exits with 1 if a pair failed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise InputError("A cluster needs Ray: pip install ddfm[ray].") from None
    from ddfm.evaluation.metrics import check_names, fusion_metrics
    from ddfm.runs.cluster import Progress, batch_on_cluster

    measure = metrics and functools.partial(fusion_metrics, names=check_names(metrics.split(",")))
    last = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("fusing", total=None)

        def show(now: Progress) -> None:
            nonlocal last
            rate = f"{now.done / now.seconds:.1f} a second"
            text = f"fusing, {rate}, {now.failed} failed"
            bar.update(task, description=text, completed=now.done, total=now.total)
            if not err.is_terminal and time.monotonic() - last > EVERY:
                last = time.monotonic()
                note(f"{now.done} of {now.total}, {rate}, {now.failed} failed")

        result = batch_on_cluster(pairs, output, measure=measure, progress=show, **options)
    counts = f"{result.fused} fused, {result.complete} complete before, {result.failed} failed"
    say(f"{counts} in {result.seconds:.1f} s; {result.manifest}")
    _note_names(result)
    for name, sentence in result.failures.items():
        note(f"{quoted(name)}: {sentence}")
    if result.failed > len(result.failures):
        note("More failed: see `error` in the manifest.")
    if result.failed:
        raise typer.Exit(1)
