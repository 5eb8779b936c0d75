"""Fuses archives too large for one machine: the same pairs and results as `batch`, as a stage of Ray Data.

    rows = ray.data.read_parquet("s3://survey/pairs.parquet")  # name, sources, output
    done = rows.map_batches(
        FuseBatch, fn_constructor_kwargs={"out_dir": "s3://survey/fused"}, batch_size=16, concurrency=8, num_cpus=1
    )
    done.write_parquet("s3://survey/manifest")

A record of each result is kept in `.ddfm/`, next to the results, and written after it. A task that runs again, because
its worker died or the job was resumed, verifies complete results instead of repeating them, and workers share no state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import posixpath
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.outputs import Outputs
from ddfm.io.pairing import stem
from ddfm.io.sources import read_source
from ddfm.pipeline import quiet_pipeline
from ddfm.runs.batch import recorded_settings
from ddfm.runs.execution import BatchResult, Run, check_format, earlier_results, sentence_of
from ddfm.runs.fusing import images_at_once
from ddfm.runs.listing import listing, refuse_doubles
from ddfm.runs.plan import Pair, Pairs, leaves, named_pair, pair_of, suffix_of
from ddfm.runs.reading import Reading, with_changes
from ddfm.runs.records import RECORDS, Records, Row, fetched, is_remote
from ddfm.runs.scene import Depth
from ddfm.settings import FusionSettings, changed

MANIFEST = "manifest.parquet"
ROWS = 16  # pairs per task: those verified again if a worker dies
SHOWN = 100  # failures that the driver keeps; the manifest has all

# The output of `FuseBatch`, one row per pair.
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("status", pa.string()),  # fused, complete (already before) or failed
        ("output", pa.string()),
        ("sha256", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("source_sha256", pa.list_(pa.string())),
        ("settings_sha256", pa.string()),
        ("seconds", pa.float64()),
        ("findings", pa.list_(pa.string())),
        ("metrics", pa.string()),  # JSON
        ("error", pa.string()),
    ]
)


class FuseBatch:
    """A callable class for `ray.data.Dataset.map_batches`: from rows of file names to one row of `SCHEMA` each.

    A row has `sources` (two or more paths or URIs that fsspec opens) and optionally `output` (a path within `out_dir`)
    or `name` (default: that of the first source), and `error` (a sentence: do not fuse this row). A pair that fails,
    for whatever reason, becomes a row with a sentence. Each worker loads the prior once.

    Args:
        out_dir: Path or URI for the results.
        prior, device, settings, depth, format, reading: As in `batch`; each pair has the same noise as in `batch`.
        batch_size: As in `batch`; above 1, images are grouped differently from `batch`, and results differ by rounding.
        resume: Skip unchanged results with a record of these settings and sources. Those completed by this very run are
            skipped in any case.
        overwrite: Replace files that have no record. Sources are never replaced.
        measure: (fused, sources) -> {name: value}, such as `fusion_metrics`, of luma in 0..255; None for no metrics.
        threads: torch threads in this worker, the CPUs that the stage requests; None leaves them unchanged.
        run: The name of the run to which the workers of a stage belong.
        changes: Fields of `FusionSettings` and of `Reading`.

    Raises:
        InputError: the prior, the settings or the format cannot be used.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        *,
        prior: str | Path = "embedded",
        device: str | None = None,
        settings: FusionSettings | None = None,
        resume: bool = True,
        overwrite: bool = False,
        batch_size: int | None = None,
        depth: Depth = "same",
        format: str = "png",
        reading: Reading | None = None,
        measure: Callable[[np.ndarray, list[np.ndarray]], dict[str, float]] | None = None,
        threads: int | None = None,
        run: str = "",
        **changes: Any,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.reading, changes = with_changes(reading, changes)
        self.out, self.settings, self.measure = str(out_dir).rstrip("/"), changed(settings, changes), measure
        self.depth, self.overwrite, self.suffix = depth, overwrite, suffix_of(format)
        self.pipe = quiet_pipeline(prior, device)
        self.batch_size = batch_size or images_at_once(self.pipe)
        recorded = json.dumps(
            recorded_settings(self.pipe, self.settings, self.reading, depth, self.suffix), sort_keys=True
        )
        self.digest, self.resume, self.run = hashlib.sha256(recorded.encode()).hexdigest(), resume, run

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Fuse a block of rows, given as columns, in their order."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        with tempfile.TemporaryDirectory(prefix="ddfm-") as folder:
            return pa.Table.from_pylist(self._fused(rows, Path(folder)), SCHEMA)

    def _fused(self, rows: list[Row], folder: Path) -> list[Row]:
        """`Run` on these rows, with local copies of remote files."""
        records = Records(self.out, self.digest, self.resume, self.run)
        pairs: list[Pair | None] = []
        failed: dict[int, str] = {}
        for k, row in enumerate(rows):
            try:
                pairs.append(pair := self._pair(row, folder / str(k)))
                records.expect(pair)
            except Exception as error:  # of any kind: the other pairs continue
                failed[k] = sentence_of(error)
                pairs.append(None)
        result = BatchResult(Path(MANIFEST), [pair for pair in pairs if pair])
        try:
            Run(records, result, self.depth, self.reading, self.overwrite, self.batch_size).fuse(
                self.pipe, self.settings, None
            )
        except InputError as error:  # the settings do not suit such pairs
            done = {*records.added, *result.failed}
            result.failed |= {pair.name: str(error) for pair in result.pairs if pair.name not in done}
        each = enumerate(zip(rows, pairs, strict=True))
        return [self._row(row, pair, result, records, failed.get(k)) for k, (row, pair) in each]

    def _pair(self, row: Row, folder: Path) -> Pair:
        """The pair of a row, with remote files copied to `folder`. Raises InputError."""
        uris, given = [str(source) for source in row["sources"]], row.get("output")
        if row.get("error"):
            raise InputError(str(row["error"]))
        if not uris or not all(uris) or len(set(uris)) < len(uris):  # one may hold two sensors
            raise InputError(f"A pair needs two or more different sources; this one has {', '.join(uris) or 'none'}.")
        name = str(given or row.get("name") or stem(posixpath.basename(uris[0])))
        if leaves(name):
            raise InputError(f"{images.quoted(name)} is outside the folder of the results.")
        out = folder / "out" if is_remote(self.out) else Path(self.out)
        sources = [fetched(uri, folder / str(k)) if is_remote(uri) else Path(uri) for k, uri in enumerate(uris)]
        pair = (named_pair if given else pair_of)(name, sources, out, self.suffix)
        outputs = Outputs(sources, overwrite=True)
        outputs.folder(pair.output.parent, shared=True)
        for output in {pair.output, pair.volume_output}:
            outputs.claim(output)
            if output.is_symlink():
                raise InputError(f"{images.quoted(output)} is a link; remove it or choose another folder.")
            if output.parent.resolve() in {source.parent.resolve() for source in sources}:
                raise InputError(f"The results cannot go to {images.quoted(output.parent)}: it is a folder of sources.")
        return pair

    def _row(self, row: Row, pair: Pair | None, result: BatchResult, records: Records, error: str | None) -> Row:
        name = pair.name if pair else str(row.get("output") or row.get("name") or "")
        error = error or result.failed.get(name)
        out: Row = {"name": name, "sources": [str(source) for source in row["sources"]], "error": error}
        line = records.lines.get(name)
        if error or line is None or pair is None:
            return out | {"status": "failed", "error": error or "It was not fused."}
        measured = self._measured(pair, line) if self.measure else None
        return out | {
            "status": "fused" if name in records.added else "complete",
            "output": f"{self.out}/{line['output']}",
            "sha256": line["sha256"],
            "source_sha256": line["sources"],
            "settings_sha256": line["settings"],
            "seconds": line.get("seconds"),
            "findings": line.get("findings", []),
            "metrics": measured,
        }

    def _measured(self, pair: Pair, line: Row) -> str | None:
        """The metrics as JSON; None for volumes and for sources that were registered."""
        if not (self.measure and line["kind"]) or line.get("registrations"):
            return None
        fused = pair.output.parent / posixpath.basename(line["output"])
        how = self.reading
        sources = [read_source(path, how.normalise, how.value_range, how.window) for path in pair.sources]
        grey = [255 * luma(image.pixels) for image in (images.read(fused), *sources)]
        return json.dumps(self.measure(grey[0], grey[1:]))


@dataclass
class Progress:
    """The progress of a run on a cluster; `total` is None while it is unknown."""

    total: int | None
    done: int = 0
    fused: int = 0
    complete: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass
class ClusterResult(Progress):
    """The result of `batch_on_cluster`.

    Attributes:
        manifest: Parquet file with `SCHEMA`.
        failures: {name: sentence} for the first pairs that could not be fused; the manifest has all.
        unmatched, notes: As in `BatchResult`.
    """

    manifest: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    unmatched: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def batch_on_cluster(
    pairs: Pairs,
    out_dir: str | os.PathLike[str],
    *,
    patterns: Sequence[str] = (),
    format: str = "png",
    depth: Depth = "same",
    resume: bool = False,
    overwrite: bool = False,
    address: str | None = None,
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> ClusterResult:
    """`batch` on Ray: the same results for any number of workers, byte for byte if images are fused one by one.

    Args:
        pairs: As in `batch`; a table, CSV or Parquet, may be a URI, and so may its entries. It is never loaded in full.
        out_dir: Path or URI, accessible from all nodes.
        patterns, format, depth, resume, overwrite: As in `batch`.
        address: Address of the cluster; "auto" for the one that this machine belongs to; None for the one from an
            earlier `ray.init`, or else a new one on this machine.
        concurrency: Number of workers; None for as many as the CPUs or GPUs of the cluster allow.
        num_cpus, num_gpus: Per worker; a worker uses `num_cpus` threads. With 0.5, two workers share a GPU.
        progress: Called after every block.
        options: Arguments of `FuseBatch`.

    Raises:
        InputError: for problems that affect all pairs.
    """
    if num_cpus < 1 and not num_gpus:
        raise InputError(f"A worker needs at least 1 CPU, or part of a GPU, not {num_cpus} CPUs.")
    out = str(out_dir).rstrip("/")
    check_format(Path("." if is_remote(out) else out), suffix_of(format), depth)
    if not (resume or overwrite) and _exists(f"{out}/{RECORDS}"):
        raise earlier_results(out)
    _start(address)
    rows, total, found = listing(pairs, out, patterns)
    if total is None:
        total = refuse_doubles(rows)
    workers = _workers(concurrency, num_cpus, num_gpus)
    arguments = options | {"format": format, "depth": depth, "resume": resume, "overwrite": overwrite}
    arguments |= {"threads": max(1, int(num_cpus)), "run": uuid.uuid4().hex}
    fused = rows.repartition(target_num_rows_per_block=ROWS).map_batches(
        FuseBatch,
        fn_constructor_args=(out,),
        fn_constructor_kwargs=arguments,
        batch_size=ROWS,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )  # workers that die are restarted and their tasks repeated without limit, by Ray Data's defaults
    result = ClusterResult(total, manifest=f"{out}/{MANIFEST}", unmatched=found.unmatched, notes=found.findings)
    start = time.perf_counter()
    try:
        with _table(result.manifest) as manifest:
            for block in fused.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                assert isinstance(block, pa.Table)
                manifest.write_table(block.cast(SCHEMA))
                for name, status, error in zip(
                    *(block[key].to_pylist() for key in ("name", "status", "error")), strict=True
                ):
                    setattr(result, status, getattr(result, status) + 1)
                    if error and len(result.failures) < SHOWN:
                        result.failures[name] = error
                result.done, result.seconds = result.done + len(block), time.perf_counter() - start
                if progress:
                    progress(result)
    except ray.exceptions.RayError as error:
        raise _root(error) from error
    if not is_remote(out):  # temporary files of killed workers: none is running any more
        for part in Path(out).rglob(".ddfm-*.part"):
            part.unlink(missing_ok=True)
    return result


def _workers(wanted: int | None, num_cpus: float, num_gpus: float) -> int:
    """The number of workers; leaves one CPU for the stages that handle names, which would otherwise wait for ever."""
    resources: Any = ray.cluster_resources
    have = resources()
    most = (have.get("CPU", 1) - 1) / num_cpus if num_cpus else float("inf")
    if num_gpus:
        most = min(most, have.get("GPU", 0) / num_gpus)
    if (wanted or 1) > most:
        raise InputError(
            f"The cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs; {wanted or 1} workers of "
            f"{num_cpus:g} CPUs and {num_gpus:g} GPUs each, and one CPU for the listing, do not fit."
        )
    return wanted or int(most)


def _start(address: str | None) -> None:
    """Start or join a cluster, unless this process already has one."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = None if address else (os.cpu_count() or 1) + 1  # one for the listing, see `_workers`
        try:
            ray.init(
                address=address,
                num_cpus=cpus,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"No Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # `progress` is called instead
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _root(error: BaseException) -> Exception:
    """The InputError from a worker, if that is what ended the run, such as one about the prior."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return seen if isinstance(seen, InputError) else InputError(f"The cluster ended the run: {lines[-1].strip()}")


def _exists(path: str) -> bool:
    files, where = fsspec.core.url_to_fs(path)
    return bool(files.exists(where))


@contextlib.contextmanager
def _table(path: str) -> Iterator[pq.ParquetWriter]:
    """A Parquet file with `SCHEMA`, renamed into place at the end; an interrupted run leaves a readable .part file."""
    files, where = fsspec.core.url_to_fs(path)
    files.makedirs(posixpath.dirname(where), exist_ok=True)
    part = f"{where}.part"
    with files.open(part, "wb") as file:
        writer = pq.ParquetWriter(file, SCHEMA)
        try:
            yield writer
        finally:
            writer.close()
    files.mv(part, where)
