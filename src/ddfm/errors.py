"""The exception for unusable input, and the sentence for running out of memory."""

import re


class InputError(ValueError):
    """Bad input: `str(error)` is one sentence that says what is wrong, with which file or argument, and what to do.

    The command line prints that sentence and exits with code 2; everything else is a bug and keeps its traceback.
    """


def out_of_memory(error: BaseException) -> str | None:
    """A sentence if the machine or its GPU ran out of memory; None for all other errors.

    NumPy raises MemoryError, torch RuntimeError, OpenCV cv2.error.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(
        r"out of memory|allocate memory|insufficient memory", text, re.I
    ):
        return None
    import psutil

    wanted = re.search(r"allocate (?:about )?([\d.,]+) ?(bytes|[KMGTPE]i?B)", text)
    amount = f"{wanted[1]} {wanted[2]} more were requested and " if wanted else ""
    if wanted and wanted[2] == "bytes":
        amount = f"{float(wanted[1].replace(',', '')) / 2**30:.1f} GiB more were requested and "
    where = "" if "CUDA" in text else f" ({amount}{psutil.virtual_memory().available / 2**30:.1f} GiB are free)"
    return f"There is not enough memory{where}; try --tile 512, --batch-size 1 or smaller images."
