"""CPU threads: for PyTorch no more than the cores that other programs leave free, and some for NumPy and OpenCV."""

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
MOST = 4  # threads of `side_by_side`: its users have little more to do at a time
LOADAVG = Path("/proc/loadavg")  # "0.20 0.18 0.12 1/80 11206": the fourth field begins with how many threads run now


@contextmanager
def on_free_cores(device: torch.device) -> Iterator[None]:
    """Within it, PyTorch computes on the CPU with one thread for each core that is free, and with one at least.

    Every operation ends when its slowest thread does, and a network has thousands of them: with as many threads as
    cores beside other programs each waits for a share of a core. Measured on two cores beside six busy programs: a
    640x480 pair takes 16 to 22 s with two threads and 9 s, its fair share of the machine, with one (1.5 and 2.6 s on
    the quiet machine). Does nothing on other devices, where the system does not say what runs (only Linux does), or
    where one thread was asked for.
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
    """`work` of each item, in their order, several at a time.

    For work in NumPy, SciPy and OpenCV, which let other threads run meanwhile; PyTorch has threads of its own.
    """
    with ThreadPoolExecutor(min(MOST, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


def _other_threads() -> int | None:
    """How many threads of other programs run or wait for a core at the moment, the middle of three looks; none if
    a look sees none, None if the system does not say."""
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
    """Whether a thread of this program runs: its state is the field after the name in parentheses."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it has just ended
        return False
