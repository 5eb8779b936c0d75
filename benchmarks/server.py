"""The server under load, its overhead over the library, and its memory, with a real `ddfm serve` on loopback.

    python benchmarks/server.py load [--clients 50] [--seconds 60]      # 640x480 jobs
    python benchmarks/server.py overhead [--pairs 20]                   # 640x480, one step, interleaved
    python benchmarks/server.py memory [--requests 1000]                # 64x64, one step

Clients and server share the machine, so times are upper bounds. Limits: no 5xx, no lost job, the 95th percentile
of accepted jobs <= (maximum queue length + the running job) x the time of a single one x 1.3, peak memory within 20 %
of its plateau; overhead <= 30 ms per pair; memory flat over 1,000 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from ddfm.demo import SCENES
from ddfm.demo import __file__ as demo_file
from ddfm.io import images
from ddfm.io.images import Image
from ddfm.server import Limits

DEMO = [Path(demo_file).parent / f"night_street_{source}.png" for source in SCENES["night_street"]]
MIB = 2**20


@contextlib.contextmanager
def serving() -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """`ddfm serve` on a free port: yields a client and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ddfm.cli", "serve", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if client.get("/readyz").status_code == 200:
                            break
                    if process.poll() is not None:
                        raise SystemExit("The server did not start.")
                    time.sleep(0.1)
                yield client, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def form(paths: Sequence[Path]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """The form field `sources`."""
    return [("sources", (path.name, path.read_bytes(), "image/png")) for path in paths]


@dataclass
class Tally:
    """The clients' observations."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of accepted jobs, from the request to the end
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)


async def client_loop(client: httpx.AsyncClient, until: float, tally: Tally) -> None:
    """One user: submits, retries when told to, polls, downloads, deletes; repeats until the time is over."""
    while (begin := time.monotonic()) < until:
        answer = await client.post("/v1/jobs", files=form(DEMO))
        tally.statuses[answer.status_code] += 1
        if answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["retry-after"]))
            continue
        if answer.status_code != 202:
            tally.wrong.append(answer.text)
            continue
        tally.accepted += 1
        at, last = answer.headers["location"], ""
        async with client.stream("GET", f"{at}/events") as events:
            tally.statuses[events.status_code] += 1
            async for line in events.aiter_lines():
                last = line.removeprefix("event: ") if line.startswith("event: ") else last
        if last != "done":
            tally.wrong.append(f"{at} is {last}")
            continue
        tally.seconds.append(time.monotonic() - begin)
        result = await client.get(f"{at}/result")
        tally.statuses[result.status_code] += 1
        if not result.content.startswith(b"\x89PNG"):
            tally.wrong.append(f"{at}: no image")
        tally.statuses[(await client.delete(at)).status_code] += 1


async def clients(address: str, number: int, seconds: float) -> Tally:
    tally, until = Tally(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        await asyncio.gather(*(client_loop(client, until, tally) for _ in range(number)))
    return tally


def load(number: int, seconds: float) -> None:
    with serving() as (client, process):
        files, singles = form(DEMO), list[float]()
        for _ in range(6):  # the first warms up
            begin = time.monotonic()
            client.post("/v1/fuse", files=files).raise_for_status()
            singles.append(time.monotonic() - begin)
        single = statistics.median(singles[1:])
        memory, over = list[int](), threading.Event()

        def sample() -> None:
            while not over.wait(0.25):
                memory.append(process.memory_info().rss)

        sampler = threading.Thread(target=sample)
        sampler.start()
        tally = asyncio.run(clients(str(client.base_url), number, seconds))
        over.set()
        sampler.join()
    ahead = Limits().queue + 1
    p95 = float(np.percentile(tally.seconds, 95))
    plateau = statistics.median(memory[len(memory) // 2 :])
    print(f"{number} clients, {seconds:g} s: {dict(sorted(tally.statuses.items()))}")
    print(f"accepted {tally.accepted}, done {len(tally.seconds)}, wrong {tally.wrong or 0}")
    print(f"single {single:.2f} s; p95 {p95:.2f} s, limit {ahead} x {single:.2f} x 1.3 = {ahead * single * 1.3:.2f} s")
    print(
        f"memory: plateau {plateau / MIB:.0f} MiB, peak {max(memory) / MIB:.0f} MiB ({max(memory) / plateau - 1:+.0%})"
    )


def overhead(pairs: int) -> None:
    """The overhead excluding the fusion itself, whose time varies by more than the overhead on a shared machine."""
    from ddfm.pipeline import quiet_pipeline
    from ddfm.runs.scene import Scene

    pipe = quiet_pipeline("embedded", None)
    files, times, work = form(DEMO), list[tuple[float, float, float, float]](), 0.0
    with serving() as (client, process), tempfile.TemporaryDirectory() as folder:
        for k in range(pairs + 2):
            if k == 2:  # the first two warm up
                work, served = 0.0, cpu_seconds(process)
            begin, cpu = time.perf_counter(), time.process_time()
            scene = Scene.read(DEMO)
            read, own = time.perf_counter(), time.thread_time()
            fused = scene.fuse(pipe, num_inference_steps=1)
            done, own = time.perf_counter(), time.thread_time() - own
            scene.write(Path(folder, "fused.png"), fused)
            written, work = time.perf_counter(), work + time.process_time() - cpu - own
            ran = run_seconds(client)
            asked = time.perf_counter()
            client.post("/v1/fuse", files=files, data={"num_inference_steps": "1"}).raise_for_status()
            answered = time.perf_counter()
            times.append((written - begin, done - read, answered - asked, run_seconds(client) - ran))
        used = cpu_seconds(process) - served
        service_work = used.pop(-1) - max(used.values())  # the busiest thread is the worker, if it uses one core
    library, fusion, service, run = (1e3 * np.array(column) for column in zip(*times[2:], strict=True))
    print(f"median of {pairs} pairs: library {np.median(library):.0f} ms, service {np.median(service):.0f} ms")
    print(
        f"without the fusion: library {np.median(library - fusion):.0f} ms, service {np.median(service - run):.0f} ms"
    )
    print(f"overhead: {np.median((service - run) - (library - fusion)):.0f} ms per pair")
    print(f"CPU time of the server, without the fusion: {1e3 * (service_work - work) / pairs:+.0f} ms per pair")


def cpu_seconds(process: psutil.Process) -> Counter[int]:
    """CPU time so far by thread; -1 is the process as a whole, including threads that have ended."""
    used = process.cpu_times()
    by_thread = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    return Counter({-1: used.user + used.system} | by_thread)


def run_seconds(client: httpx.Client) -> float:
    """Seconds that the server's worker has spent on jobs so far."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("ddfm_run_seconds_sum"))


def memory(requests: int) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, serving() as (client, process):
        paths = [Path(folder, name) for name in ("infrared.png", "visible.png")]
        for path in paths:
            images.write(path, rng.random((64, 64), dtype=np.float32), 8, Image(np.zeros((64, 64), np.float32)))
        files, found = form(paths), list[float]()
        for k in range(1, requests + 1):
            route = ("/v1/fuse", "/v1/jobs", "/v1/preview")[k % 3]
            answer = client.post(route, files=files, data={"num_inference_steps": "1"})
            while answer.status_code == 429:
                time.sleep(0.05)
                answer = client.post(route, files=files, data={"num_inference_steps": "1"})
            answer.raise_for_status()
            if k % max(1, requests // 10) == 0:
                found.append(process.memory_info().rss / MIB)
                print(f"after {k} requests {found[-1]:.0f} MiB", flush=True)
    print(f"from the first tenth to the last {found[-1] / found[0] - 1:+.1%}, between halves {_halves(found):+.1%}")


def _halves(found: Sequence[float]) -> float:
    half = len(found) // 2
    return statistics.mean(itertools.islice(found, half, None)) / statistics.mean(found[:half] or found) - 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    loaded = what.add_parser("load")
    loaded.add_argument("--clients", type=int, default=50)
    loaded.add_argument("--seconds", type=float, default=60)
    what.add_parser("overhead").add_argument("--pairs", type=int, default=20)
    what.add_parser("memory").add_argument("--requests", type=int, default=1000)
    given = parser.parse_args(arguments)
    if given.what == "load":
        load(given.clients, given.seconds)
    elif given.what == "overhead":
        overhead(given.pairs)
    else:
        memory(given.requests)


if __name__ == "__main__":
    main()
