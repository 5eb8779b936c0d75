"""The one exception for what a user gave us and we cannot use, and the sentence for a machine that is too small."""

import re


class InputError(ValueError):
    """Bad input: `str(error)` is one sentence that says what, which file or argument, and what to do.

    The command line prints that sentence and exits with code 2; everything else is a bug and keeps its traceback.
    """


def out_of_memory(error: BaseException) -> str | None:
    """A sentence if memory was too small, of the machine or of its GPU; None for all other errors.

    NumPy raises MemoryError, torch a RuntimeError, OpenCV an error of its own.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(
        r"out of memory|allocate memory|insufficient memory", text, re.I
    ):
        return None
    import psutil

    wanted = re.search(r"allocate (?:about )?([\d.,]+) ?(bytes|[KMGTPE]i?B)", text)
    amount = f"{wanted[1]} {wanted[2]} more were asked for and " if wanted else ""
    if wanted and wanted[2] == "bytes":
        amount = f"{float(wanted[1].replace(',', '')) / 2**30:.1f} GiB more were asked for and "
    where = "" if "CUDA" in text else f" ({amount}{psutil.virtual_memory().available / 2**30:.1f} GiB are free)"
    return f"There is not enough memory{where}; try --tile 512, --batch-size 1 or smaller images."
