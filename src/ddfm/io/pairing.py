"""Which files belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddfm.errors import InputError
from ddfm.io import images

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"),
    *(".nii.gz", ".nii", ".dcm", ".dicom"),
)


def pair_by_stem(folders: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The images that all folders have, by stem: {stem: [path in each folder]} in order of stem, and the unmatched.

    Extensions may differ between folders. Raises InputError for something that is no folder, an empty folder, two
    files of one stem in a folder, and where nothing matches.
    """
    tables = [_pictures_in(Path(folder)) for folder in folders]
    common = set.intersection(*(set(table) for table in tables))
    if not common:
        names = " and ".join(images.quoted(folder) for folder in folders)
        raise InputError(f"No file name (without extension) is in all of {names}; corresponding files share a name.")
    pairs = {stem: [table[stem] for table in tables] for stem in sorted(common)}
    unmatched = sorted({path for table in tables for stem, path in table.items() if stem not in common})
    return pairs, unmatched


def _pictures_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{images.quoted(folder)} is not a folder; check the name.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.name[: -len(suffix)]
        if stem in found:
            raise InputError(
                f"{images.quoted(folder)} has both {found[stem].name} and {path.name}; remove one of them."
            )
        found[stem] = path
    if not found:
        raise InputError(f"{images.quoted(folder)} has no images in it ({', '.join(SUFFIXES)}).")
    return found
