"""Metrics for Prometheus."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Telemetry:
    """The metrics of one application, in a separate registry."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("ddfm_requests", "Requests answered.", ("method", "route", "status"), registry=registry)
        self.refused = Counter("ddfm_refused", "Requests refused because the queue was full.", registry=registry)
        self.jobs = Counter("ddfm_jobs", "Finished jobs, by state.", ("state",), registry=registry)
        self.waiting = Gauge("ddfm_jobs_waiting", "Jobs in the queue.", registry=registry)
        self.running = Gauge("ddfm_jobs_running", "Jobs being fused.", registry=registry)
        self.wait_seconds = Histogram(
            "ddfm_wait_seconds", "Seconds from the creation of a job to its start.", registry=registry, buckets=_SECONDS
        )
        self.run_seconds = Histogram(
            "ddfm_run_seconds", "Seconds from the start of a job to its end.", registry=registry, buckets=_SECONDS
        )
        self.batches = Histogram("ddfm_batch_size", "Jobs fused together.", registry=registry, buckets=(1, 2, 4, 8, 16))

    def ended(self, state: str, waited: float, ran: float) -> None:
        """Record the end of a job; the seconds are NaN if it never ran."""
        self.jobs.labels(state).inc()
        if not math.isnan(ran):
            self.wait_seconds.observe(waited)
            self.run_seconds.observe(ran)

    def text(self) -> bytes:
        """The metrics in the Prometheus text format."""
        return generate_latest(self._registry)
