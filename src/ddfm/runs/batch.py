"""Whole folders: images of one size go through the network together while others are read and written.

Killed at any moment it leaves whole files, and resumed it gives what it would have given: an image's noise is drawn
from the seed and its name, groups are made up of all images, the finished ones included, and what counts as
finished is verified.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddfm import __version__
from ddfm.errors import InputError, out_of_memory
from ddfm.io import images
from ddfm.io.outputs import Outputs
from ddfm.pipeline import DDFMPipeline, likelihood_of
from ddfm.prior import Progress
from ddfm.registration import Align, Registration
from ddfm.runs.manifest import Manifest, is_manifest, sha256
from ddfm.runs.plan import Pair, Pairs, plan
from ddfm.runs.scene import Depth, Scene, fuse_images
from ddfm.settings import FusionSettings, changed

MANIFEST = "manifest.jsonl"
GROUP_PIXELS = 2**24  # of a sensor, that go together or wait for others of their size: keeps the memory bounded
WRITES_WAITING = 2  # groups


@dataclass
class BatchResult:
    """What `batch` did.

    Attributes:
        manifest: The JSON lines beside the results.
        pairs: What there was to do, in order.
        fused: Files written by this run; of a dry run, that would be.
        skipped: Files that were complete before.
        failed: {name: one sentence} of the pairs that could not be fused.
        findings: {name: sentences} of what was assumed about the sources of a pair that was read.
        unmatched: Images without a partner.
        notes: What was decided about names, a sentence each.
        seconds: Wall time, from the first file to the last, without loading the prior.
        network_share: The share of it spent in the pipeline, in [0, 1]; the rest was waiting for files.
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
class _Job:
    """A pair on its way: its files' hashes and what was read of them.

    A complete one comes along only to make up the group that it was in, and is read only if that has anything to do.
    """

    pair: Pair
    hashes: list[str]
    kind: list[int]  # height, width, dimensions of each source: jobs of one kind can go together; [] of a volume: alone
    output: Path
    complete: bool
    scene: Scene | None


def batch(
    pairs: Pairs,
    out_dir: str | Path,
    *,
    patterns: Sequence[str] = (),
    prior: str | Path = "embedded",
    device: str | None = None,
    settings: FusionSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    batch_size: int | None = None,
    depth: Depth = "same",
    format: str = "png",
    normalise: bool = False,
    align: Align | bool | None = None,
    rig: Registration | None = None,
    crop: bool = False,
    progress: Progress | None = None,
    **changes: Any,
) -> BatchResult:
    """Fuse folders of images, each scene to `out_dir/<name>.<format>`, with a manifest beside them.

    Volumes go to `out_dir/<name>` with the extension of their first source, unless `format` is one of volumes. A pair
    that cannot be read, aligned or written is listed in the result and the others go on.

    Args:
        pairs: Folders, one for each sensor or one of all, with their subfolders (see `pairing.find_groups`); or a CSV
            file with a header and a row per scene: one column for each sensor, paths relative to the CSV, and
            optionally `output`, a path within `out_dir` (else the first source's name; one without extension gets
            `format`).
        out_dir: Made if it is not there. One run at a time.
        patterns: A name for each sensor, such as "{id}_T.jpg" and "{id}_V.jpg", as of `pairing.find_groups`.
        prior: As in `load_prior`.
        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        settings: How to fuse; `changes` are fields of it. Each image has its own noise,
            `image_generator(settings.seed, name)`, whatever it is batched with.
        resume: Skip what the manifest has with these settings, this version and these sources, and whose file is as
            it was written. A file that was changed since, or that no run wrote, is listed as failed.
        overwrite: Replace files that this run does not know as its own: what was there before, and with `resume` what
            was changed since it was written. Sources never are.
        dry_run: Write nothing and fuse nothing, but read all pairs: the result says what would be done.
        batch_size: Images of one size that go through the network together; None for 1 on the CPU, else 8.
        depth: Bits of the results: "same" (16 if a source has more than 8 and the format holds them), 8, 16 or 32.
        format: Extension of the results, as in `images.write`.
        normalise: As in `Scene.read`.
        align, rig, crop: As in `Scene.read`.
        progress: Called with (images done, images in all) while the network works; done may be fractional.

    Raises:
        InputError: what concerns all pairs: a folder, the CSV, the prior, an option, an output folder that cannot be
            used, names that fit together in several ways.
    """
    settings = changed(settings, changes)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"The batch size is 1 or more, not {batch_size}.")
    out, suffix = Path(out_dir), f".{format.lstrip('.').lower()}"
    todo = plan(pairs, out, suffix, patterns)
    inputs = [prior, *([pairs] if isinstance(pairs, (str, os.PathLike)) else pairs)]
    _claim(todo.pairs, out, inputs, resume, overwrite, dry_run)
    images.check_target(_existing(out) / f"image{suffix}", 8 if depth == "same" else depth)

    pipe = DDFMPipeline.from_prior(prior, device)
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"depth": depth, "format": suffix, "normalise": normalise}
    options |= {"align": align or None, "crop": crop, "rig": rig and rig.as_dict()}
    recorded = _recorded(pipe, settings) | {"prior": str(prior)} | options
    result = BatchResult(out / MANIFEST, todo.pairs, unmatched=todo.unmatched, notes=todo.findings)
    with Manifest(result.manifest, recorded, resume) as manifest:
        together = batch_size or (1 if pipe.device.type == "cpu" else 8)
        reading = {"normalise": normalise, "align": align, "rig": rig, "crop": crop}
        run = _Run(manifest, result, depth, reading, overwrite, together)
        if dry_run:
            run.rehearse(progress)
        else:
            run.fuse(pipe, settings, progress)
    return result


def _claim(todo: list[Pair], out: Path, inputs: list[Any], resume: bool, overwrite: bool, dry_run: bool) -> None:
    """Make the folders of the results and check that none goes onto an input, another result or somebody's file.

    What an earlier run wrote is looked at file by file where one resumes, see `_Run.job`.
    """
    manifest = out / MANIFEST
    if os.path.lexists(manifest) and not overwrite:
        if not resume:
            raise InputError(
                f"{images.quoted(out)} has the results of an earlier run: go on with it (--resume), replace them "
                "(--overwrite), or choose another folder."
            )
        if not is_manifest(manifest):
            raise InputError(f"{images.quoted(manifest)} is not the manifest of a batch: move it, or --overwrite it.")
    outputs = Outputs([source for pair in todo for source in pair.sources], overwrite=overwrite or resume)
    for path in inputs:
        outputs.add_input(path)
    whole = [pair for pair in todo if pair.error is None]
    for folder in dict.fromkeys([out, *(pair.output.parent for pair in whole)] if not dry_run else []):
        outputs.folder(folder)
    for pair in whole:
        outputs.claim(pair.output)
        if pair.volume_output != pair.output:
            outputs.claim(pair.volume_output, ours=not images.is_medical(pair.sources[0]))
    outputs.claim(manifest, ours=True)


def image_generator(seed: int, name: str) -> torch.Generator:
    """An image's own noise: `pipe(sources, generator=image_generator(seed, stem))` gives what `batch` gives it."""
    digest = hashlib.sha256(f"{seed} ".encode() + os.fsencode(name)).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class _Run:
    """What the three threads of one `batch` share."""

    manifest: Manifest
    result: BatchResult
    depth: Depth
    reading: dict[str, Any]  # arguments of Scene.read
    overwrite: bool
    together: int

    def rehearse(self, progress: Progress | None) -> None:
        """Find out what `fuse` would do."""
        for done, pair in enumerate(self.result.pairs):
            if progress:
                progress(done, len(self.result.pairs))
            for job in self.jobs([pair]):
                if not job.complete:
                    self.result.fused.append(job.output)

    def fuse(self, pipe: DDFMPipeline, settings: FusionSettings, progress: Progress | None) -> None:
        """Reader thread -> network, in this thread -> writer thread; one group ahead, two behind."""
        result, computed, network, start = self.result, 0, 0.0, time.perf_counter()
        pairs = result.pairs

        def report(under_way: float = 0.0) -> None:
            if progress:
                done = len(result.skipped) + len(result.failed) + computed + under_way
                progress(min(done, len(pairs)), len(pairs))

        writes: deque[Future[None]] = deque()
        # Leaving the block waits for both threads, after Ctrl-C too: what is being written is finished.
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            groups = self.ahead(reader)
            alone: deque[list[_Job]] = deque()  # of a group that failed: each pair by itself
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
                        result.failed[group[0].pair.name] = _sentence(error)
                    report()
                    continue
                seconds = time.perf_counter() - began
                network += seconds
                computed += new
                writes.append(writer.submit(self.write, group, fused, seconds / len(group)))
                # A volume is large: it is written before the next one is asked for.
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
        """Whether all pairs have as many sources."""
        return len({len(pair.sources) for pair in self.result.pairs}) == 1

    def ahead(self, reader: ThreadPoolExecutor) -> Iterator[list[_Job]]:
        """The groups, each read while the one before it is fused."""
        groups = self.groups(self.jobs(self.result.pairs))
        coming = reader.submit(next, groups, None)
        while (group := coming.result()) is not None:
            coming = reader.submit(next, groups, None)
            yield group

    def network(
        self, pipe: DDFMPipeline, group: list[_Job], settings: FusionSettings, progress: Progress
    ) -> np.ndarray:
        """The fused images of a group, (B, H, W) or (B, H, W, 3), or its only volume, (1, S, H, W)."""
        scenes = [job.scene for job in group if job.scene is not None]  # all of them, see `groups`
        generators = [image_generator(settings.seed, job.pair.name) for job in group]
        if scenes[0].is_volume:
            return scenes[0].fuse(pipe, replace(settings, seed=generators[0].initial_seed()), progress)[None]
        return fuse_images(pipe, scenes, generators, settings, progress)

    def jobs(self, pairs: list[Pair]) -> Iterator[_Job]:
        """The pairs in order, read unless they are complete; those that cannot be read are left out and listed."""
        for pair in pairs:
            try:
                job = self.job(pair)
            except Exception as error:  # whatever it is, the others go on
                self.result.failed[pair.name] = _sentence(error)
                continue
            if job.complete:
                self.result.skipped.append(job.output)
            elif job.scene and job.scene.findings:
                self.result.findings[pair.name] = job.scene.findings
            yield job

    def job(self, pair: Pair) -> _Job:
        if pair.error is not None:
            raise InputError(pair.error)
        hashes = [sha256(path) for path in pair.sources]
        for output in {pair.output, pair.volume_output}:
            if line := self.manifest.complete(pair.name, output, hashes):
                return _Job(pair, hashes, line["kind"], output, complete=True, scene=None)
        scene = self.read(pair)
        output = pair.volume_output if scene.is_volume else pair.output
        if output.is_file() and not self.overwrite and not self.manifest.made(pair.name, output):
            raise InputError(
                f"{images.quoted(output)} was changed since it was written, or is not of this batch: move it away, or "
                "replace it with --overwrite."
            )
        scene.check_target(_existing(output.parent) / output.name, self.depth)
        kind = [*scene.sources[0].pixels.shape[:2], *(image.pixels.ndim for image in scene.sources)]
        return _Job(pair, hashes, [] if scene.is_volume else kind, output, complete=False, scene=scene)

    def read(self, pair: Pair) -> Scene:
        return Scene.read(pair.sources, **self.reading)

    def groups(self, jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
        """Jobs of one kind, up to `together`, those of groups that have anything to do; all read."""
        for group in self.planned(jobs):
            if not all(job.complete for job in group):
                yield [job if job.scene else replace(job, scene=self.read(job.pair)) for job in group]

    def planned(self, jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
        """The groups. They depend on the pairs alone, not on what is complete: the same network calls, bit for bit."""
        waiting: dict[tuple[int, ...], list[_Job]] = {}
        pixels = 0
        for job in jobs:
            if not job.kind:
                yield [job]
                continue
            kind, size = tuple(job.kind), job.kind[0] * job.kind[1]
            waiting.setdefault(kind, []).append(job)
            pixels += size
            if len(waiting[kind]) >= min(self.together, GROUP_PIXELS // size):
                pixels -= size * len(waiting[kind])
                yield waiting.pop(kind)
            while pixels > GROUP_PIXELS:
                kind = next(iter(waiting))  # waits longest
                pixels -= kind[0] * kind[1] * len(waiting[kind])
                yield waiting.pop(kind)
        yield from waiting.values()

    def write(self, group: list[_Job], pictures: np.ndarray, seconds: float) -> None:
        """First the file, then its line in the manifest: what has a line is whole."""
        self.manifest.begin({job.pair.name: job.output for job in group if not job.complete})
        for job, picture in zip(group, pictures, strict=True):
            if job.complete or job.scene is None:
                continue
            try:
                job.scene.write(job.output, picture, self.depth)
            except Exception as error:  # whatever it is, the others go on
                self.result.failed[job.pair.name] = _sentence(error)
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


def _existing(folder: Path) -> Path:
    """The folder, or in a dry run the one that it would be made in."""
    return next((x for x in (folder, *folder.parents) if x.exists()), folder)


def _sentence(error: Exception) -> str:
    """What went wrong with a pair, in one sentence."""
    if isinstance(error, InputError):
        return str(error)
    if sentence := out_of_memory(error):
        return sentence
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return f"An unexpected error ({type(error).__name__}: {first}); please report it."


def _recorded(pipe: DDFMPipeline, settings: FusionSettings) -> dict[str, Any]:
    """What the result depends on: the settings, the likelihood's constants, the prior's weights, the version."""
    weights = hashlib.sha256()
    for name, tensor in pipe.unet.state_dict().items():
        weights.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return {
        "ddfm": __version__,
        "prior_sha256": weights.hexdigest(),
        "scheduler": type(pipe.scheduler).__name__,
        "settings": settings.as_dict() | {"likelihood": repr(likelihood_of(settings))},
    }
