"""The cost of a cluster compared with one machine: throughput, overhead per pair, memory of the driver.

    python benchmarks/scale.py throughput [--pairs 500] [--rounds 3]   # 2 workers of 1 thread against 1 process of 2
    python benchmarks/scale.py overhead [--pairs 4000]                 # rows without files: the engine alone
    python benchmarks/scale.py listing [--rows 1000000]                # memory of the driver while listing

Needs Ray (`pip install ddfm[ray]`). Starting the workers (a few seconds: torch, diffusers, the prior) is not counted:
times run from the first finished block to the last.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from ddfm.runs.batch import batch
from ddfm.runs.cluster import ROWS, Progress, batch_on_cluster, listing, refuse_doubles

BLOCK = 8192  # rows generated at a time


def make_pairs(folder: Path, count: int, height: int, width: int) -> list[Path]:
    """Smooth random images, 8 bits, grey and colour."""
    rng = np.random.default_rng(0)
    for sensor, channels in (("infrared", 1), ("visible", 3)):
        (folder / sensor).mkdir(parents=True)
        for n in range(count):
            image = cv2.GaussianBlur(rng.uniform(0, 1, (height, width, channels)), (0, 0), 3)
            image = (image - image.min()) / (image.max() - image.min())
            cv2.imwrite(str(folder / sensor / f"{n:05}.png"), np.rint(255 * image).astype(np.uint8))
    return [folder / "infrared", folder / "visible"]


class Clock:
    """Pairs per second from the first reported block to the last."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def __call__(self, now: Progress) -> None:
        self.seen.append((time.perf_counter(), now.done))

    @property
    def rate(self) -> float:
        (start, first), (end, last) = self.seen[0], self.seen[-1]
        return (last - first) / (end - start)


def throughput(folder: Path, count: int, rounds: int) -> None:
    pairs = make_pairs(folder, count, 192, 256)
    rates: dict[str, list[float]] = {"one process, 2 threads": [], "2 workers, 1 thread each": []}
    for k in range(rounds):
        torch.set_num_threads(2)
        one = batch(pairs, folder / f"one{k}", device="cpu")
        rates["one process, 2 threads"].append(len(one.fused) / one.seconds)
        clock = Clock()
        batch_on_cluster(pairs, folder / f"ray{k}", device="cpu", concurrency=2, progress=clock)
        rates["2 workers, 1 thread each"].append(clock.rate)
        print("  ".join(f"{name}: {rate[-1]:.2f} pairs per second" for name, rate in rates.items()), flush=True)
    ratios = [there / here for here, there in zip(*rates.values(), strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def overhead(folder: Path, count: int) -> None:
    write_rows(folder / "pairs.parquet", count, error="not to be fused")
    clock = Clock()
    done = batch_on_cluster(folder / "pairs.parquet", folder / "out", device="cpu", concurrency=1, progress=clock)
    print(f"{done.failed} rows without files: {1000 / clock.rate:.2f} ms per row with blocks of {ROWS}")


def listing_memory(folder: Path, count: int) -> None:
    write_rows(folder / "pairs.parquet", count)
    ray.init(log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    before, start = peak(), time.perf_counter()
    rows, _, _ = listing(folder / "pairs.parquet", str(folder / "out"))
    total = refuse_doubles(rows)
    print(
        f"{total} rows listed and compared in {time.perf_counter() - start:.0f} s: {peak() - before:.0f} MiB",
        flush=True,
    )
    blocks = rows.repartition(target_num_rows_per_block=ROWS).iter_batches(batch_size=None, batch_format="pyarrow")
    count = sum(1 for _ in blocks)
    print(
        f"and passed on in {count} blocks, {time.perf_counter() - start:.0f} s: {peak() - before:.0f} MiB above start"
    )


def write_rows(path: Path, count: int, error: str | None = None) -> None:
    """Write rows of names without files."""
    with pq.ParquetWriter(
        path,
        row_schema := pa.schema([("sources", pa.list_(pa.string())), ("name", pa.string()), ("error", pa.string())]),
    ) as writer:
        for first in range(0, count, BLOCK):
            names = [f"flight/{n:08}" for n in range(first, min(first + BLOCK, count))]
            sources = [[f"s3://survey/thermal/{name}.jpg", f"s3://survey/visible/{name}.jpg"] for name in names]
            table = {"sources": sources, "name": names, "error": [error] * len(names)}
            writer.write_table(pa.table(table, row_schema))


def peak() -> float:
    """The peak memory of this process, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    measured: dict[str, tuple[Callable[..., None], dict[str, int]]] = {
        "throughput": (throughput, {"pairs": 500, "rounds": 3}),
        "overhead": (overhead, {"pairs": 4000}),
        "listing": (listing_memory, {"rows": 1_000_000}),
    }
    for name, (_, options) in measured.items():
        command = commands.add_parser(name)
        for option, value in options.items():
            command.add_argument(f"--{option}", type=int, default=value)
    args = vars(parser.parse_args(argv))
    measure, options = measured[args["what"]]
    folder = Path(tempfile.mkdtemp(prefix="ddfm-scale-"))
    try:
        measure(folder, *(args[option] for option in options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
