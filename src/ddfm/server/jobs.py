"""Jobs, and the bounded queue between requests, which run in an event loop, and workers, which are threads."""

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
        scene: The sources, float32 in [0, 1]; their pixels are memory-mapped files once the job is finished and kept.
        folder: Temporary files, removed with the job.
        finished: Resolved when the job is over. It never holds an exception: `state` and `problem` give the outcome.
        progress: (network evaluations done, total), or (slices done, total) for a volume.
        fused: The result, once `state` is "done": float32 [0, 1] (H, W), (H, W, 3) or (S, H, W).
        std: Standard deviation of the fused luma over the samples, (H, W), if several were drawn.
        problem: (HTTP status, sentence), once `state` is "failed" or "cancelled".
        cancelled: Set when the client cancels; workers check it after each network evaluation.
        fetched: Whether the client has the result.
        measures: Metrics by slice (0 for images), stored on the first request for them.
        overlay: The overlay on the result when it is shown or written; `fused` does not include it.
        keep: Whether the job can be looked up by its id; otherwise, the request that queued it waits for it and removes
            its folder.
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
        """Mark the future as running, so that a request whose client disconnects cannot cancel it."""
        self.finished.set_running_or_notify_cancel()

    @property
    def kind(self) -> object:
        """Jobs of the same kind can go through the network together; None means that the job runs alone."""
        if self.scene.is_volume:
            return None
        return tuple(source.pixels.shape for source in self.scene.sources), replace(self.settings, seed=0)

    @property
    def is_over(self) -> bool:
        """Whether the job is done, failed or cancelled."""
        return self.finished.done()

    def remove(self) -> None:
        """Remove the temporary files; open memory maps of them stay valid."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty(self) -> None:
        """Remove the files and pixels, which are not needed without a result, but keep their shapes."""
        self.remove()
        nothing = np.float32(0)
        sources = [replace(s, pixels=np.broadcast_to(nothing, s.pixels.shape)) for s in self.scene.sources]
        self.scene = replace(self.scene, sources=sources, registrations=[None] * len(sources), framed=None)
        self.fused = self.std = None

    def shown(self, overlay: Overlay | None = None) -> np.ndarray:
        """The result with an overlay, by default the job's: float32 [0, 1] (H, W), (H, W, 3) or (S, H, W).

        Raises InputError if no source can be overlaid.
        """
        overlay = overlay or self.overlay
        assert self.fused is not None
        if overlay.palette is None:
            return self.fused
        places = [place and replace(place) for place in self.scene.registrations]  # copies: these cache their maps
        scene = replace(self.scene, registrations=places)
        return scene.overlaid(self.fused, overlay.palette, overlay.blend, self.settings.roles)

    def to_disk(self) -> None:
        """Move the pixels to memory-mapped files in the job's folder: finished jobs take no memory."""

        def mapped(name: str, pixels: np.ndarray) -> np.ndarray:
            np.save(self.folder / f"{name}.npy", pixels)
            loaded: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            return loaded

        sources = [replace(s, pixels=mapped(f"source{k}", s.pixels)) for k, s in enumerate(self.scene.sources)]
        places = [place and replace(place) for place in self.scene.registrations]  # without their cached maps
        self.scene = replace(self.scene, sources=sources, registrations=places, framed=None)
        if self.fused is not None:
            self.fused = mapped("fused", self.fused)
        if self.std is not None:
            self.std = mapped("std", self.std)


class Queue:
    """Waiting, running and kept jobs, all bounded by `Limits`. All methods are thread-safe."""

    def __init__(self, limits: Limits, telemetry: Telemetry) -> None:
        self.limits, self.telemetry = limits, telemetry
        self.draining = False
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._jobs: dict[str, Job] = {}  # those that can be looked up, oldest first
        self._admitted = [0, 0]  # jobs and pixels admitted but not yet queued
        self._seconds = 2.0  # per job, a running mean, for Retry-After
        self._changed = threading.Condition()

    # ---- for requests

    def check_room(self) -> None:
        """Raise Problem 429 or 503 if a request can be refused without reading it."""
        with self._changed:
            self._check_room(0)

    def admit(self, pixels: int) -> None:
        """Reserve room, to be released by `put` or `give_up`. Raises Problem 413, 429 or 503."""
        if pixels > self.limits.pixels:
            together = f"{pixels:,} pixels together, more than the limit of {self.limits.pixels:,}"
            raise Problem(413, f"The sources have {together}; send smaller images.")
        with self._changed:
            self._check_room(pixels)
            self._admitted[0] += 1
            self._admitted[1] += pixels

    def give_up(self, pixels: int) -> None:
        """Release the room that `admit` reserved."""
        with self._changed:
            self._admitted[0] -= 1
            self._admitted[1] -= pixels

    def put(self, job: Job) -> None:
        """Queue a job in the room that `admit` reserved. Raises Problem 503."""
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
        """The job with this id. Raises Problem 404."""
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None:
            raise Problem(404, "There is no job with this id; it may have expired.")
        return job

    def position(self, job: Job) -> int:
        """The job's place in the queue, from 1; 0 if it is not waiting."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def remove(self, job: Job) -> None:
        """Cancel the job if it is not over, and delete it."""
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
        """Wait for a job; return the oldest and waiting ones of its kind, or None when the server stops."""
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
        """End a running job, with its result in `job.fused` or with the error that ended it."""
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
        """Refuse waiting and new jobs; running ones continue."""
        with self._changed:
            self.draining = True
            while self._waiting:
                self._end(self._waiting.popleft(), "failed", (503, STOPPING))
            self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether no job is waiting or running."""
        with self._changed:
            return not self._waiting and not self._running

    @property
    def is_fetched(self) -> bool:
        """Whether all results have been fetched."""
        with self._changed:
            return all(job.fetched or job.state != "done" for job in self._jobs.values())

    def expire(self) -> None:
        """Delete finished jobs that are too old, and the oldest if there are too many or their total is too large."""
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
        """Cancel all jobs and remove their files."""
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
