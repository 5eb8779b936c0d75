"""Limits of a server, which bound its memory, disk space and response times."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload_bytes: Size of a request body; a larger one is answered with 413 while it is still being sent.
        upload_seconds: Time to receive a body; a slower one is answered with 408.
        uploads: Requests whose bodies are received and decoded at the same time; more are answered with 429.
        pixels: Total pixels of a request's sources, slices included, according to their headers; more are answered with
            413 before anything is decoded.
        sources: Number of sources per scene.
        samples: Largest num_samples.
        queue: Waiting jobs; more are answered with 429.
        queue_pixels: Total pixels of the sources of waiting jobs.
        batch_size: Waiting jobs of equal size and settings that go through the network together; None for 1 on a CPU,
            where more are no faster, and 8 elsewhere.
        job_seconds: Running time of a job; one that takes longer is stopped and answered with 503.
        kept: Finished jobs whose results can still be fetched.
        kept_pixels: Total pixels of their sources; with the results, each takes 8 to 32 bytes on disk.
        keep_seconds: How long they are kept.
        views: Results encoded as files or images for display at the same time; further requests wait.
        measured_pixels: Pixels of the largest result whose metrics are computed.
    """

    upload_bytes: int = 256 * 2**20
    upload_seconds: float = 60.0
    uploads: int = 8
    pixels: int = 2**26
    sources: int = 8
    samples: int = 32
    queue: int = 16
    queue_pixels: int = 2**27
    batch_size: int | None = None
    job_seconds: float = 600.0
    kept: int = 64
    kept_pixels: int = 2**28
    keep_seconds: float = 900.0
    views: int = 4
    measured_pixels: int = 2**24
