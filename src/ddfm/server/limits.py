"""What one server takes on: the numbers that keep its memory, its disk and its answers bounded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        upload_bytes: Of one request's body; more is answered 413 while it is still being sent.
        upload_seconds: To receive it; slower is answered 408.
        uploads: Requests whose bodies are received and decoded at one time; more are answered 429.
        pixels: Of all sources of one request together, slices included, as their headers claim; more is answered 413
            before anything is decoded.
        sources: Sources of one scene.
        samples: Largest num_samples.
        queue: Jobs that wait; more are answered 429.
        queue_pixels: Pixels of the sources that wait, together.
        batch_size: Waiting jobs of one size and with equal settings that go through the network together; None for
            1 on a CPU, where more are no faster, and 8 elsewhere.
        job_seconds: Running time of a job; a longer one is stopped and answered 503.
        kept: Finished jobs whose results can still be fetched.
        kept_pixels: Pixels of their sources together, which with the results take 8 to 32 bytes of disk each.
        keep_seconds: How long they can.
        views: Results that are made into files or previews at one time; further requests wait.
        measured_pixels: Of the largest result that is measured.
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
