"""Reads, fuses and writes the pairs of a batch in three threads; images of equal size share a network call.

A kill at any moment leaves only complete files. An image's noise depends on the seed and its name.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddfm.errors import InputError, out_of_memory
from ddfm.io import images
from ddfm.pipeline import DDFMPipeline
from ddfm.prior import Progress
from ddfm.runs.fusing import fuse_images
from ddfm.runs.manifest import Manifest, sha256
from ddfm.runs.plan import Pair
from ddfm.runs.reading import Reading
from ddfm.runs.scene import Depth, Scene
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.runs.records import Records

GROUP_PIXELS = 2**24  # per sensor, in one group or waiting for others of equal size: bounds the memory
WRITES_WAITING = 2  # groups


@dataclass
class BatchResult:
    """The result of `batch`.

    Attributes:
        manifest: The file of JSON lines next to the results.
        pairs: All pairs, in order.
        fused: Files written by this run, or that a dry run would write.
        skipped: Files that were already complete.
        failed: {name: one sentence} for the pairs that could not be fused.
        findings: {name: sentences} with assumptions about the sources of pairs that were read.
        unmatched: Images without a partner.
        notes: A sentence for each decision about names.
        seconds: Wall time, from the first file to the last, without loading the prior.
        network_share: The fraction of it spent in the pipeline, in [0, 1]; the rest was waiting for files.
    """

    manifest: Path
    pairs: list[Pair] = field(default_factory=list)
    fused: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)
    unmatched: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    network_share: float = 0.0


@dataclass(frozen=True)
class Job:
    """A pair in progress: the hashes and contents of its files.

    A complete one is kept only to reproduce the group that it was in, and read only if that group has work left.
    """

    pair: Pair
    hashes: list[str]
    kind: list[int]  # height, width, dimensions of each source: jobs of one kind can be grouped; [] for a volume: alone
    output: Path
    complete: bool
    scene: Scene | None


def image_generator(seed: int, name: str) -> torch.Generator:
    """The noise generator of an image: `pipe(sources, generator=image_generator(seed, stem))` reproduces `batch`."""
    digest = hashlib.sha256(f"{seed} ".encode() + os.fsencode(name)).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Run:
    """The state shared by the three threads.

    Args:
        manifest: The record of complete pairs, on one machine or on a cluster.
        result: Holds the pairs to fuse; the other fields are filled in.
        depth: As in `batch`.
        reading: How sources are read.
        overwrite: As in `batch`.
        batch_size: Images of equal size per network call.
    """

    manifest: "Manifest | Records"
    result: BatchResult
    depth: Depth
    reading: Reading
    overwrite: bool
    batch_size: int

    def rehearse(self, progress: Progress | None) -> None:
        """Fill the result with what `fuse` would do."""
        for done, pair in enumerate(self.result.pairs):
            if progress:
                progress(done, len(self.result.pairs))
            for job in self.jobs([pair]):
                if not job.complete:
                    self.result.fused.append(job.output)

    def fuse(self, pipe: DDFMPipeline, settings: FusionSettings, progress: Progress | None) -> None:
        """Reader thread -> network in this thread -> writer thread; reads one group ahead, writes up to two behind."""
        result, computed, network, start = self.result, 0, 0.0, time.perf_counter()
        pairs = result.pairs

        def report(under_way: float = 0.0) -> None:
            if progress:
                done = len(result.skipped) + len(result.failed) + computed + under_way
                progress(min(done, len(pairs)), len(pairs))

        writes: deque[Future[None]] = deque()
        # Leaving the block waits for both threads, even after Ctrl-C, so that files being written are finished.
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            groups = self.ahead(reader)
            alone: deque[list[Job]] = deque()  # the pairs of a group that failed, one by one
            while (group := alone.popleft() if alone else next(groups, None)) is not None:
                new = sum(not job.complete for job in group)

                def step(done: float, total: int, new: int = new) -> None:
                    report(new * done / total)

                began = time.perf_counter()
                try:
                    fused = self.network(pipe, group, settings, step)
                except Exception as error:
                    if isinstance(error, InputError) and not computed and self.all_alike:
                        raise  # the settings cannot be used with such pairs
                    if len(group) > 1:
                        alone.extend([job] for job in group if not job.complete)
                    else:
                        result.failed[group[0].pair.name] = sentence_of(error)
                    report()
                    continue
                seconds = time.perf_counter() - began
                network += seconds
                computed += new
                writes.append(writer.submit(self.write, group, fused, seconds / len(group)))
                # Volumes are large: each is written before the next one is requested.
                while len(writes) > (WRITES_WAITING if group[0].kind else 0):
                    writes.popleft().result()
                report()
            for write in writes:
                write.result()
        for name, sentence in result.failed.items():
            self.manifest.add_failure(name, sentence)
        report()
        result.seconds = time.perf_counter() - start
        result.network_share = network / result.seconds

    @property
    def all_alike(self) -> bool:
        """Whether all pairs have the same number of sources."""
        return len({len(pair.sources) for pair in self.result.pairs}) == 1

    def ahead(self, reader: ThreadPoolExecutor) -> Iterator[list[Job]]:
        """The groups, each read while the previous one is fused."""
        groups = self.groups(self.jobs(self.result.pairs))
        coming = reader.submit(next, groups, None)
        while (group := coming.result()) is not None:
            coming = reader.submit(next, groups, None)
            yield group

    def network(self, pipe: DDFMPipeline, group: list[Job], settings: FusionSettings, progress: Progress) -> np.ndarray:
        """The fused images of a group, (B, H, W) or (B, H, W, 3), or its only volume, (1, S, H, W)."""
        scenes = [job.scene for job in group if job.scene is not None]  # all of them, see `groups`
        generators = [image_generator(settings.seed, job.pair.name) for job in group]
        if scenes[0].is_volume:
            return scenes[0].fuse(pipe, replace(settings, seed=generators[0].initial_seed()), progress)[None]
        return fuse_images(pipe, scenes, generators, settings, progress)[0]

    def jobs(self, pairs: list[Pair]) -> Iterator[Job]:
        """The pairs in order, read unless they are complete; those that cannot be read are left out and listed."""
        for pair in pairs:
            try:
                job = self.job(pair)
            except Exception as error:  # of any kind: the other pairs continue
                self.result.failed[pair.name] = sentence_of(error)
                continue
            if job.complete:
                self.result.skipped.append(job.output)
            elif job.scene and job.scene.findings:
                self.result.findings[pair.name] = job.scene.findings
            yield job

    def job(self, pair: Pair) -> Job:
        """A pair, read unless it is complete. Raises InputError."""
        if pair.error is not None:
            raise InputError(pair.error)
        hashes = [sha256(path) for path in pair.sources]
        for output in {pair.output, pair.volume_output}:
            if line := self.manifest.complete(pair.name, output, hashes):
                return Job(pair, hashes, line["kind"], output, complete=True, scene=None)
        scene = self.read(pair)
        output = pair.volume_output if scene.is_volume else pair.output
        if output.is_file() and not self.overwrite and not self.manifest.made(pair.name, output):
            raise InputError(
                f"{images.quoted(output)} was changed since it was written, or is not from this batch: move it, or "
                "replace it with --overwrite."
            )
        scene.check_target(existing(output.parent) / output.name, self.depth)
        kind = [*scene.sources[0].pixels.shape[:2], *(image.pixels.ndim for image in scene.sources)]
        return Job(pair, hashes, [] if scene.is_volume else kind, output, complete=False, scene=scene)

    def read(self, pair: Pair) -> Scene:
        """Its sources. Raises InputError."""
        return Scene.read(pair.sources, self.reading)

    def groups(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        """The groups that have work left, with all their jobs read."""
        for group in self.planned(jobs):
            if not all(job.complete for job in group):
                yield [job if job.scene else replace(job, scene=self.read(job.pair)) for job in group]

    def planned(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        """Groups of up to `batch_size` jobs of one kind. They depend only on the pairs, not on which are complete, so
        that the network calls are the same, bit for bit."""
        waiting: dict[tuple[int, ...], list[Job]] = {}
        pixels = 0
        for job in jobs:
            if not job.kind:
                yield [job]
                continue
            kind, size = tuple(job.kind), job.kind[0] * job.kind[1]
            waiting.setdefault(kind, []).append(job)
            pixels += size
            if len(waiting[kind]) >= min(self.batch_size, GROUP_PIXELS // size):
                pixels -= size * len(waiting[kind])
                yield waiting.pop(kind)
            while pixels > GROUP_PIXELS:
                kind = next(iter(waiting))  # waiting longest
                pixels -= kind[0] * kind[1] * len(waiting[kind])
                yield waiting.pop(kind)
        yield from waiting.values()

    def write(self, group: list[Job], fused: np.ndarray, seconds: float) -> None:
        """Write each file, then its line in the manifest, so that a file with a line is complete."""
        self.manifest.begin({job.pair.name: job.output for job in group if not job.complete})
        for job, image in zip(group, fused, strict=True):
            if job.complete or job.scene is None:
                continue
            try:
                job.scene.write(job.output, image, self.depth)
            except Exception as error:  # of any kind: the other pairs continue
                self.result.failed[job.pair.name] = sentence_of(error)
                continue
            self.manifest.add(
                job.pair.name,
                job.output,
                job.pair.sources,
                job.hashes,
                kind=job.kind,
                seconds=round(seconds, 3),
                findings=self.result.findings.get(job.pair.name, []),
                **_registered(job.scene),
            )
            self.result.fused.append(job.output)


def _registered(scene: Scene) -> dict[str, Any]:
    """For the manifest: where each source lay in the frame, if any was moved."""
    return {"registrations": [x and x.as_dict() for x in scene.registrations]} if scene.registrations else {}


def check_format(out: Path, suffix: str, depth: Depth) -> None:
    """Raise InputError if no result with this extension and depth can be written in the folder."""
    images.check_target(existing(out) / f"x{suffix}", 8 if depth == "same" else depth)


def earlier_results(out: str | Path) -> InputError:
    """The error for a folder with results that the run was told neither to resume nor to replace."""
    return InputError(
        f"{images.quoted(out)} has results of an earlier run: resume it (--resume), replace them (--overwrite), or "
        "choose another folder."
    )


def existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent if it does not exist, as in a dry run."""
    return next((x for x in (folder, *folder.parents) if x.exists()), folder)


def sentence_of(error: Exception) -> str:
    """A sentence about what went wrong with a pair."""
    if isinstance(error, InputError):
        return str(error)
    if sentence := out_of_memory(error):
        return sentence
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return f"An unexpected error ({type(error).__name__}: {first}); please report it."
