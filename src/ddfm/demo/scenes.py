"""The demo's scenes: image files in this folder, made by `examples/draw_scenes.py`."""

import os
from pathlib import Path

from ddfm.errors import InputError
from ddfm.io import images

SCENES = {
    "night_street": ("infrared", "visible"),
    "head_pet": ("mri", "pet"),
    "head_spect": ("mri", "spect"),
    "head_ct": ("mri", "ct"),
}


def save_scenes(folder: str | os.PathLike[str]) -> dict[str, tuple[Path, Path]]:
    """Copy the scenes into `folder`, which is made if need be.

    Returns:
        By scene, its two files in the order of `ddfm.fuse`: (infrared, visible) or (MRI, the other).

    Raises:
        InputError: a file cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder {images.quoted(folder)}: {error.strerror}.") from error
    files = {}
    for scene, names in SCENES.items():
        first, second = (folder / f"{scene}_{name}.png" for name in names)
        for path in (first, second):
            images.write_bytes(path, (Path(__file__).parent / path.name).read_bytes())
        files[scene] = (first, second)
    return files
