"""What the tests of the command line share: made images, what a folder holds, what a refusal says."""

import numpy as np
from conftest import made_image

SIZE = (33, 46)


def coloured(seed):
    y = made_image(*SIZE, seed=seed) / 255
    return np.stack([y, 0.8 * y + 0.1, 1 - y], axis=-1)


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def complaint(result):
    """The sentence of a refusal: exit code 2, nothing on stdout, one line on stderr."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and out == "" and len(lines) == 1, (code, out, err)
    assert lines[0].startswith("error: ") and "Traceback" not in err
    return lines[0]


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt
