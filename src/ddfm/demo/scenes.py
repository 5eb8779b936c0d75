"""The demo's scenes: image files in this folder, drawn by `examples/draw_scenes.py`."""

import os
from pathlib import Path

from ddfm.io import images
from ddfm.io.outputs import Outputs

SCENES = {
    "night_street": ("infrared", "visible"),
    "head_pet": ("mri", "pet"),
    "head_spect": ("mri", "spect"),
    "head_ct": ("mri", "ct"),
}


def save_scenes(folder: str | os.PathLike[str], overwrite: bool = False) -> dict[str, tuple[Path, Path]]:
    """Copy the scenes into `folder`.

    Args:
        folder: The target folder, created if it does not exist.
        overwrite: Whether other files with these names may be replaced.

    Returns:
        For each scene, its two files in the order of `ddfm.fuse`: (infrared, visible) or (MRI, the other).

    Raises:
        InputError: a file cannot be written, or another file with its name exists.
    """
    folder = Path(folder)
    outputs, files = Outputs([], overwrite), {}
    shipped = {
        folder / f"{scene}_{name}.png": _shipped(scene, name) for scene, names in SCENES.items() for name in names
    }
    for path, data in shipped.items():
        outputs.claim(path, ours=_holds(path, data))
    outputs.folder(folder)
    for scene, names in SCENES.items():
        first, second = (folder / f"{scene}_{name}.png" for name in names)
        for path in (first, second):
            images.write_bytes(path, shipped[path])
        files[scene] = (first, second)
    return files


def _shipped(scene: str, name: str) -> bytes:
    return (Path(__file__).parent / f"{scene}_{name}.png").read_bytes()


def _holds(path: Path, data: bytes) -> bool:
    """Whether the file exists with these contents, from an earlier demo."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
