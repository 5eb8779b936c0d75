"""Worker threads, one per device, which take jobs from the queue and fuse those of one size together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch

from ddfm.pipeline import DDFMPipeline
from ddfm.prior import Progress
from ddfm.runs.fusing import fuse_images, images_at_once
from ddfm.runs.scene import Scene
from ddfm.server.jobs import Job, Queue
from ddfm.server.problems import Problem
from ddfm.settings import FusionSettings

_log = logging.getLogger(__name__)


class _Stopped(Exception):
    """All jobs of the batch were cancelled."""


def fuse_scenes(
    pipe: DDFMPipeline, scenes: Sequence[Scene], settings: Sequence[FusionSettings], progress: Progress
) -> tuple[np.ndarray, np.ndarray | None]:
    """Fuse scenes of one size whose settings differ only in the seed: (fused (B, ...), std (B, H, W) or None).

    A scene's result does not depend on the scenes it is fused with. A volume must come alone.
    """
    if scenes[0].is_volume:
        return scenes[0].fuse(pipe, settings[0], progress)[None], None
    generators = [torch.Generator().manual_seed(each.seed) for each in settings]
    return fuse_images(pipe, scenes, generators, settings[0], progress)


class Worker(threading.Thread):
    """Fuses the queue's jobs on one pipeline until the queue is drained."""

    def __init__(self, pipe: DDFMPipeline, queue: Queue) -> None:
        super().__init__(name=f"ddfm-worker-{pipe.device}", daemon=True)
        self.pipe, self.queue = pipe, queue
        self.batch_size = queue.limits.batch_size or images_at_once(pipe)

    def run(self) -> None:
        """Fuse jobs until `Queue.take` returns None."""
        while (batch := self.queue.take(self.batch_size)) is not None:
            self._run(batch)

    def _run(self, batch: list[Job]) -> None:
        self.queue.telemetry.batches.observe(len(batch))
        try:
            fused, std = self._fuse(batch)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, (_Stopped, Problem)):  # one is at fault, or all are too much
                for job in batch:
                    self._run([job])
                return
            if not isinstance(error, (_Stopped, ValueError)):
                _log.exception("a job failed")
            for job in batch:
                self.queue.finish(job, error)
            return
        for k, job in enumerate(batch):
            job.fused, job.std = fused[k], None if std is None else std[k]
            self.queue.finish(job)

    def _fuse(self, batch: list[Job]) -> tuple[np.ndarray, np.ndarray | None]:
        limit = self.queue.limits.job_seconds
        deadline = time.monotonic() + limit

        def progress(done: float, total: int) -> None:
            """Called after each network evaluation, the only point where a fusion can be stopped."""
            for job in batch:
                job.progress = (done, total)
            if all(job.cancelled for job in batch):
                raise _Stopped
            if time.monotonic() > deadline:
                raise Problem(503, f"The job took longer than {limit:g} s; send smaller images or ask for fewer steps.")

        if all(job.cancelled for job in batch):
            raise _Stopped
        return fuse_scenes(self.pipe, [job.scene for job in batch], [job.settings for job in batch], progress)
