"""Jobs and the bounded queue between the requests, which run in an event loop, and the workers, which are threads."""

from __future__ import annotations

import math
import secrets
import shutil
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ddfm.runs.scene import Scene
from ddfm.server.fields import PLAIN, Overlay
from ddfm.server.limits import Limits
from ddfm.server.problems import DISK_FULL, Problem, problem_of
from ddfm.server.schemas import Metric
from ddfm.server.telemetry import Telemetry
from ddfm.server.uploads import Upload
from ddfm.settings import FusionSettings

State = Literal["queued", "running", "done", "failed", "cancelled"]
STOPPING = "The server is stopping; send the request again later."


@dataclass(eq=False)
class Job:
    """One scene on its way through the queue.

    Attributes:
        scene: Its sources, float32 in [0, 1]; their pixels are memory-mapped files once the job is finished and kept.
        folder: Temporary files, removed with the job.
        finished: Done when the job is: it never holds an exception, `state` and `problem` say how it went.
        progress: (evaluations of the network done, of how many), of a volume (slices done, of how many).
        fused: The result, once `state` is "done": float32 [0, 1] (H, W), (H, W, 3) or (S, H, W).
        std: Standard deviation over the samples of the fused luma, (H, W), if several were drawn.
        problem: (HTTP status, sentence), once `state` is "failed" or "cancelled".
        cancelled: Set by the client; a worker looks at it after each evaluation of the network.
        fetched: Whether the client has the result.
        measures: By slice, 0 of images, once somebody has asked for them.
        overlay: What is laid over the result where it is shown or written; `fused` is without it.
        keep: Whether it can be asked for by its id; else whoever put it waits for it and removes its folder.
    """

    scene: Scene
    settings: FusionSettings
    upload: Upload
    folder: Path
    pixels: int
    overlay: Overlay = PLAIN
    keep: bool = True
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = "queued"
    progress: tuple[float, int] = (0.0, 0)
    finished: Future[None] = field(default_factory=Future)
    fused: np.ndarray | None = None
    std: np.ndarray | None = None
    problem: tuple[int, str] | None = None
    cancelled: bool = False
    fetched: bool = False
    measures: dict[int, list[Metric]] = field(default_factory=dict)
    created: float = field(default_factory=time.monotonic)
    started: float = math.nan
    ended: float = math.nan

    def __post_init__(self) -> None:
        """The future may not be cancelled, as a request that goes away would."""
        self.finished.set_running_or_notify_cancel()

    @property
    def kind(self) -> object:
        """Jobs of one kind can go through the network together; None goes alone."""
        if self.scene.is_volume:
            return None
        return tuple(source.pixels.shape for source in self.scene.sources), replace(self.settings, seed=0)

    @property
    def is_over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.finished.done()

    def remove(self) -> None:
        """Remove its temporary files; maps of them stay valid for whoever is reading them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty(self) -> None:
        """Remove its files and its pixels, which nobody asks for where there is no result; their shapes stay."""
        self.remove()
        nothing = np.float32(0)
        sources = [replace(s, pixels=np.broadcast_to(nothing, s.pixels.shape)) for s in self.scene.sources]
        self.scene = replace(self.scene, sources=sources, registrations=[None] * len(sources), framed=None)
        self.fused = self.std = None

    def shown(self, overlay: Overlay | None = None) -> np.ndarray:
        """The result with an overlay, by default its own: float32 [0, 1] (H, W), (H, W, 3) or (S, H, W).

        Raises InputError where no source can be a palette's colours.
        """
        overlay = overlay or self.overlay
        assert self.fused is not None
        if overlay.palette is None:
            return self.fused
        places = [place and replace(place) for place in self.scene.registrations]  # which keep the maps they make
        scene = replace(self.scene, registrations=places)
        return scene.overlaid(self.fused, overlay.palette, overlay.blend, self.settings.roles)

    def to_disk(self) -> None:
        """Put the pixels into its folder and map them: finished jobs take no memory."""

        def mapped(name: str, pixels: np.ndarray) -> np.ndarray:
            np.save(self.folder / f"{name}.npy", pixels)
            loaded: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            return loaded

        sources = [replace(s, pixels=mapped(f"source{k}", s.pixels)) for k, s in enumerate(self.scene.sources)]
        places = [place and replace(place) for place in self.scene.registrations]  # without the maps they have made
        self.scene = replace(self.scene, sources=sources, registrations=places, framed=None)
        if self.fused is not None:
            self.fused = mapped("fused", self.fused)
        if self.std is not None:
            self.std = mapped("std", self.std)


class Queue:
    """Jobs that wait, run, and are kept: all bounded by `Limits`. Every method may be called from any thread."""

    def __init__(self, limits: Limits, telemetry: Telemetry) -> None:
        self.limits, self.telemetry = limits, telemetry
        self.draining = False
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._jobs: dict[str, Job] = {}  # all that can be asked for, oldest first
        self._admitted = [0, 0]  # jobs and pixels on their way into the queue
        self._seconds = 2.0  # of a job, a running mean: for Retry-After
        self._changed = threading.Condition()

    # ---- for requests

    def check_room(self) -> None:
        """Raise Problem, 429 or 503, if a request need not even be read."""
        with self._changed:
            self._check_room(0)

    def admit(self, pixels: int) -> None:
        """Reserve room, which `put` or `give_up` takes back. Raises Problem 413, 429 or 503."""
        if pixels > self.limits.pixels:
            together = f"{pixels:,} pixels together, more than {self.limits.pixels:,}"
            raise Problem(413, f"The sources have {together}; send smaller images.")
        with self._changed:
            self._check_room(pixels)
            self._admitted[0] += 1
            self._admitted[1] += pixels

    def give_up(self, pixels: int) -> None:
        """Take back what `admit` reserved."""
        with self._changed:
            self._admitted[0] -= 1
            self._admitted[1] -= pixels

    def put(self, job: Job) -> None:
        """A job into the room that `admit` reserved."""
        with self._changed:
            self._admitted[0] -= 1
            self._admitted[1] -= job.pixels
            if self.draining:
                raise Problem(503, STOPPING)
            if job.keep:
                self._jobs[job.id] = job
            self._waiting.append(job)
            self._tell()

    def find(self, job_id: str) -> Job:
        """The job of this id. Raises Problem 404."""
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None:
            raise Problem(404, "There is no job of this id; it may have expired.")
        return job

    def position(self, job: Job) -> int:
        """How many go first; 0 for one that does not wait."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def remove(self, job: Job) -> None:
        """Cancel the job if it is not over, and forget it."""
        with self._changed:
            job.cancelled = True
            self._jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled", (409, "The job was cancelled."))
            self._tell()
        if job.is_over:
            job.remove()

    # ---- for workers

    def take(self, batch_size: int) -> list[Job] | None:
        """The oldest job and those of its kind that wait behind it; waits for one. None when the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.draining)
            if not self._waiting:
                return None
            first = self._waiting[0]
            kind = first.kind
            batch = [first]
            if batch_size > 1 and kind is not None:
                batch += [job for job in list(self._waiting)[1:] if job.kind == kind][: batch_size - 1]
            for job in batch:
                self._waiting.remove(job)
                job.state, job.started = "running", time.monotonic()
            self._running += batch
            self._tell()
            return batch

    def finish(self, job: Job, error: Exception | None = None) -> None:
        """A running job is over: with `job.fused`, or with what ended it."""
        if error is None and job.keep and not job.cancelled:
            try:
                job.to_disk()
            except OSError:
                error = Problem(503, DISK_FULL)
        if error is not None:
            job.empty()
        with self._changed:
            self._running.remove(job)
            if job.cancelled:
                self._end(job, "cancelled", (409, "The job was cancelled."))
            elif error is not None:
                status, sentence = problem_of(error)
                self._end(job, "failed", (status, job.upload.in_words(sentence)))
            else:
                self._end(job, "done", None)
                self._seconds += 0.2 * (job.ended - job.started - self._seconds)
            forgotten = job.keep and job.id not in self._jobs
            self._tell()
        if forgotten:
            job.remove()

    # ---- for the server

    def drain(self) -> None:
        """Refuse what waits and what comes; what runs goes on."""
        with self._changed:
            self.draining = True
            while self._waiting:
                self._end(self._waiting.popleft(), "failed", (503, STOPPING))
            self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        with self._changed:
            return not self._waiting and not self._running

    @property
    def is_fetched(self) -> bool:
        """Whether no client still has a result to fetch."""
        with self._changed:
            return all(job.fetched or job.state != "done" for job in self._jobs.values())

    def expire(self) -> None:
        """Forget finished jobs that are too old, and the oldest where they are too many or too large together."""
        with self._changed:
            over = [job for job in self._jobs.values() if job.is_over]
            oldest, pixels, gone = time.monotonic() - self.limits.keep_seconds, 0, list[Job]()
            for k, job in enumerate(reversed(over)):
                pixels += job.pixels
                too_many = k >= self.limits.kept or (k > 0 and pixels > self.limits.kept_pixels)
                if too_many or job.ended < oldest:
                    gone.append(job)
                    del self._jobs[job.id]
        for job in gone:
            job.remove()

    def stop(self) -> None:
        """Cancel everything and remove its files."""
        self.drain()
        with self._changed:
            jobs, self._jobs = list(self._jobs.values()), {}
            for job in (*jobs, *self._running):
                job.cancelled = True
        for job in jobs:
            job.remove()

    def _check_room(self, pixels: int) -> None:
        if self.draining:
            raise Problem(503, STOPPING)
        ahead = len(self._waiting) + self._admitted[0]
        waiting_pixels = sum(job.pixels for job in self._waiting) + self._admitted[1]
        if ahead >= self.limits.queue or (ahead and waiting_pixels + pixels > self.limits.queue_pixels):
            seconds = max(1, math.ceil(ahead * self._seconds / 2))
            self.telemetry.refused.inc()
            sentence = f"The queue is full; send the request again in {seconds} s."
            raise Problem(429, sentence, {"Retry-After": str(seconds)})

    def _end(self, job: Job, state: State, problem: tuple[int, str] | None) -> None:
        job.state, job.problem, job.ended = state, problem, time.monotonic()
        self.telemetry.ended(state, job.started - job.created, job.ended - job.started)
        job.finished.set_result(None)

    def _tell(self) -> None:
        self.telemetry.waiting.set(len(self._waiting))
        self.telemetry.running.set(len(self._running))
        self._changed.notify_all()
