"""CPU threads: no more of them than the cores that other programs leave free."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")
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
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1 or (others := _other_threads()) is None:
        yield
        return
    torch.set_num_threads(min(before, max(1, before - others)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _other_threads() -> int | None:
    """How many threads of other programs run or wait for a core at the moment, the middle of three looks; None if
    the system does not say."""
    looks = []
    try:
        for _ in range(3):
            running = int(LOADAVG.read_text().split()[3].split("/")[0])
            looks.append(running - sum(_runs(task) for task in TASKS.iterdir()))
            time.sleep(0.001)
    except (OSError, ValueError, IndexError):
        return None
    return max(0, statistics.median_low(looks))


def _runs(task: Path) -> bool:
    """Whether a thread of this program runs: its state is the field after the name in parentheses."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it has just ended
        return False
