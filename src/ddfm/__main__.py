"""`ddfm` and `python -m ddfm`: the command line, which Ctrl-C ends with code 130 even while libraries are imported."""

import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line."""
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it may be ignored
        signal.signal(signal.SIGINT, interrupt)
    try:
        from ddfm.cli import main as command_line

        command_line()
    except BaseException as error:
        # A library that is interrupted in the middle of its import may fail in any way.
        if not interrupts or (isinstance(error, SystemExit) and error.code in (0, None, 130)):
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
