"""The layer between routes and workers: turns requests into queued jobs, and finished jobs into files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
from fastapi import Request

from ddfm.errors import InputError
from ddfm.io.images import Image
from ddfm.io.sources import read_source
from ddfm.pipeline import DDFMPipeline
from ddfm.runs.reading import Reading
from ddfm.runs.scene import Scene
from ddfm.server import views
from ddfm.server.fields import PLAIN, Asked, Overlay, asked
from ddfm.server.formats import FORMATS, negotiate
from ddfm.server.jobs import Job, Queue
from ddfm.server.limits import Limits
from ddfm.server.problems import Problem
from ddfm.server.schemas import Metric
from ddfm.server.telemetry import Telemetry
from ddfm.server.uploads import Upload, claimed_pixels, receive
from ddfm.server.worker import Worker

T = TypeVar("T")


@dataclass
class Service:
    """One server's queue, workers and folder of temporary files.

    Attributes:
        pipes: One pipeline per device.
        limits: Limits of the server.
    """

    pipes: Sequence[DDFMPipeline]
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Create everything except the running threads and the folder, which are left to `start`."""
        self.telemetry = Telemetry()
        self.queue = Queue(self.limits, self.telemetry)
        self.workers = [Worker(pipe, self.queue) for pipe in self.pipes]
        self._folder: Path | None = None
        self._uploads = 0
        self._viewing = anyio.CapacityLimiter(self.limits.views)
        self._measuring = anyio.CapacityLimiter(1)

    def start(self) -> None:
        """Create the folder and start the workers."""
        self._folder = Path(tempfile.mkdtemp(prefix="ddfm-server-"))
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """Stop everything and remove all files."""
        self.queue.stop()
        for worker in self.workers:
            worker.join(timeout=60)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def is_ready(self) -> bool:
        """Whether the server accepts jobs."""
        return not self.queue.draining and all(worker.is_alive() for worker in self.workers)

    async def submit(self, request: Request, keep: bool) -> Job:
        """Queue the scene of a request as a job; `keep` as in `Job`.

        Raises Problem or InputError for sources that cannot be fused, before using the network.
        """
        self.queue.check_room()
        folder = self._new_folder()
        try:
            with self._uploading():
                upload, wanted, pixels = await self._admitted(request, folder)
                try:
                    scene = await anyio.to_thread.run_sync(_read, upload, wanted.reading, wanted.overlay)
                    if not keep:  # the waiting client has already chosen the format
                        negotiate(
                            request.headers.get("accept", ""), scene, wanted.settings.colour, wanted.overlay.palette
                        )
                except BaseException:
                    self.queue.give_up(pixels)
                    raise
            job = Job(scene, wanted.settings, upload, folder, pixels, wanted.overlay, keep)
            self.queue.put(job)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job

    async def preview(self, request: Request) -> tuple[Upload, list[Image], list[str]]:
        """The upload of a request, its sources as they would be fused, with pixels in memory, and the findings.

        A single source, or sources of different sizes, which cannot be fused yet, are returned unchanged.
        """
        folder = self._new_folder()
        try:
            with self._uploading():
                upload, wanted, pixels = await self._admitted(request, folder)
                try:
                    return upload, *await anyio.to_thread.run_sync(_read_for_preview, upload, wanted.reading)
                finally:
                    self.queue.give_up(pixels)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def view(self, make: Callable[..., T], *arguments: Any) -> T:
        """The result of `make`, called in a thread; `Limits.views` such calls run at a time."""
        return await anyio.to_thread.run_sync(make, *arguments, limiter=self._viewing)

    async def measure(self, job: Job, number: int) -> list[Metric]:
        """`views.metrics`, computed one at a time and only once per result and slice. Raises Problem."""
        async with self._measuring:
            if number not in job.measures:
                job.measures[number] = await anyio.to_thread.run_sync(views.metrics, job, number, self.limits)
            return job.measures[number]

    def file(self, job: Job, accept: str, overlay: Overlay | None = None) -> tuple[bytes, str]:
        """(bytes, media type) of a finished job's result, in the format that `accept` ranks highest, with metadata.

        overlay: replaces that of the job. Raises Problem: 406, 409 if there is no result yet, or the job's problem.
        """
        check_done(job)
        overlay = overlay or job.overlay
        kind = negotiate(accept, job.scene, job.settings.colour, overlay.palette)
        folder = self._new_folder()  # not the job's, which may be removed meanwhile
        path = folder / f"result{FORMATS[kind]}"
        try:
            with job.upload.named():
                job.scene.write(path, job.shown(overlay))
            data = path.read_bytes()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        job.fetched = True
        return data, kind

    def _new_folder(self) -> Path:
        assert self._folder is not None
        return Path(tempfile.mkdtemp(dir=self._folder))

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        """Counts, and limits, the requests whose bodies are being received and decoded."""
        if self._uploads >= self.limits.uploads:
            self.telemetry.refused.inc()
            raise Problem(429, "Too many uploads are in progress; send the request again in 1 s.", {"Retry-After": "1"})
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _admitted(self, request: Request, folder: Path) -> tuple[Upload, Asked, int]:
        """A request's files, its fields, and the number of pixels reserved for it in the queue."""
        upload = await receive(request, self.limits, folder)
        wanted = asked(upload.fields)
        if wanted.settings.num_samples > self.limits.samples:
            raise InputError(
                f"num_samples must be at most {self.limits.samples} here, not {wanted.settings.num_samples}."
            )
        pixels = await anyio.to_thread.run_sync(claimed_pixels, upload)
        self.queue.admit(pixels)
        return upload, wanted, pixels


def check_done(job: Job) -> None:
    """Raise Problem if a job has no result: 409 if it is not over, else the problem that ended it."""
    if job.problem is not None:
        raise Problem(*job.problem)
    if job.state != "done":
        raise Problem(409, f"The job is still {job.state}; wait until it is done.")


def _read(upload: Upload, reading: Reading, overlay: Overlay = PLAIN) -> Scene:
    with upload.named():
        scene = Scene.read(upload.paths, reading)
        if overlay.palette is not None:  # refused before fusing
            scene.overlaid(scene.sources[0].pixels, overlay.palette, overlay.blend)
        return replace(scene, findings=[upload.in_words(finding) for finding in scene.findings])


def _read_for_preview(upload: Upload, reading: Reading) -> tuple[list[Image], list[str]]:
    try:
        scene = _read(upload, reading)
    except InputError as error:
        if reading.align or reading.rigid:
            raise
        with upload.named():
            sources = [read_source(path, reading.normalise, reading.value_range) for path in upload.paths]
        return sources, [str(error)] if len(sources) > 1 else []
    return scene.sources, scene.findings
