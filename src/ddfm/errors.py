"""The one exception for what a user gave us and we cannot use."""


class InputError(ValueError):
    """Bad input: `str(error)` is one sentence that says what, which file or argument, and what to do.

    The command line prints that sentence and exits with code 2; everything else is a bug and keeps its traceback.
    """
