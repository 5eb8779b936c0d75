"""The terminal: results on standard output, everything else on standard error."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out, err = Console(), Console(stderr=True)
EVERY = 5.0  # seconds between two lines of progress where there is no terminal


def plain(text: object) -> str:
    """Text with rich's markup escaped (file names may hold brackets), and with bytes that are not UTF-8 escaped."""
    return escape(str(text).encode(errors="backslashreplace").decode())


def say(text: object, console: Console = out) -> None:
    """Prints a line as it is: not wrapped, highlighted or parsed as markup."""
    console.print(plain(text), highlight=False, soft_wrap=True)


def note(text: object) -> None:
    """`say` on standard error."""
    say(text, err)


def progress_bar() -> Progress:
    """A bar on standard error with counts, elapsed time and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # A tile or step of a large image may take longer than the 30 s over which rich estimates speed by default.
    return Progress(*columns, console=err, transient=True, speed_estimate_period=600)


@contextlib.contextmanager
def reported(label: str) -> Iterator[Callable[[float, int], None]]:
    """A progress bar; without a terminal, a line every few seconds for logs."""
    if err.is_terminal:
        with progress_bar() as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: float, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            note(f"{label}: {done:.0f} of {total}")

    yield line
