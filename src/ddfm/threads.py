"""CPU threads: PyTorch uses only the cores that other programs leave free; NumPy and OpenCV get a small pool."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

TASKS = Path("/proc/self/task")
MOST = 4  # threads of `side_by_side`; its callers have little more to do in parallel
LOADAVG = Path("/proc/loadavg")  # "0.20 0.18 0.12 1/80 11206": the fourth field begins with how many threads run now


@contextmanager
def on_free_cores(device: torch.device) -> Iterator[None]:
    """Within this context, PyTorch computes on the CPU with one thread per free core, and at least one.

    An operation ends only when its slowest thread does, and a network has thousands of operations: with one thread per
    core while other programs run, each operation waits for a share of a core. Measured on two cores with six other
    programs busy: a 640x480 pair takes 16 to 22 s with two threads and 9 s, its fair share of the machine, with one
    (1.5 and 2.6 s on an idle machine). Does nothing on other devices, where the system does not report running threads
    (only Linux does), or if a single thread was requested.
    """
    import torch

    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1 or (others := _other_threads()) is None:
        yield
        return
    torch.set_num_threads(min(before, max(1, before - others)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` applied to each item, several at a time; the results in order.

    For work in NumPy, SciPy and OpenCV, which release the interpreter lock; PyTorch has its own threads.
    """
    with ThreadPoolExecutor(min(MOST, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


def _other_threads() -> int | None:
    """Number of other programs' threads that run or wait for a core now: the median of three looks; 0 if any look
    sees none, None if the system does not report it."""
    looks: list[int] = []
    try:
        while len(looks) < 3 and 0 not in looks:  # a busy program shows in every look
            if looks:
                time.sleep(0.001)
            running = int(LOADAVG.read_text().split()[3].split("/")[0])
            looks.append(max(0, running - sum(_runs(task) for task in TASKS.iterdir())))
    except (OSError, ValueError, IndexError):
        return None
    return 0 if 0 in looks else statistics.median_low(looks)


def _runs(task: Path) -> bool:
    """Whether a thread of this program is running: its state is the field after the name in parentheses."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it has just ended
        return False
