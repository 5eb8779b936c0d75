"""What a batch is to do: its scenes, each with its sources and the file that the result goes to."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.pairing import SUFFIXES, pair_by_stem


@dataclass(frozen=True)
class Pair:
    """Images to fuse, or volumes; `error` says what is wrong with its row of the CSV."""

    name: str
    sources: list[Path]
    output: Path
    volume_output: Path  # if they turn out to be volumes
    error: str | None = None


def plan(pairs: str | Path | Sequence[str | Path], out: Path, suffix: str) -> tuple[list[Pair], list[Path]]:
    """The pairs of folders or of a CSV file, as `batch` takes them, and the images without a partner.

    Args:
        pairs: As of `batch`.
        out: The folder of the results.
        suffix: Of the results, with its dot.

    Raises:
        InputError: a folder or the CSV cannot be used.
    """
    if isinstance(pairs, (str, Path)):
        return _from_csv(Path(pairs), out, suffix), []
    return _from_folders([Path(folder) for folder in pairs], out, suffix)


def _from_folders(folders: list[Path], out: Path, suffix: str) -> tuple[list[Pair], list[Path]]:
    if len(folders) < 2:
        raise InputError(f"Fusion takes two or more folders of sources, or a CSV file; {len(folders)} folder given.")
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"The results cannot go to {images.quoted(out)}: it is a folder of sources.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("The same folder is given twice: give a folder for each sensor.")
    matched, unmatched = pair_by_stem(folders)
    pairs = [
        Pair(stem, paths, out / f"{stem}{suffix}", out / f"{stem}{_volume_suffix(suffix, paths[0])}")
        for stem, paths in matched.items()
    ]
    return pairs, unmatched


def _from_csv(path: Path, out: Path, suffix: str) -> list[Pair]:
    name = images.quoted(path)
    if path.is_dir():
        raise InputError(f"{name} is one folder: give two or more folders of sources, or a CSV file.")
    try:
        rows = list(csv.DictReader(io.StringIO(images.read_bytes(path).decode("utf-8-sig"), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not a CSV file in UTF-8 ({error}).") from error
    sensors = [column for column in rows[0] if column not in (None, "output")] if rows else []
    if len(sensors) < 2:
        raise InputError(f"{name} needs a header of two or more columns, one a sensor, and a row a scene.")
    pairs = [_from_row(row, number, sensors, path, out, suffix) for number, row in enumerate(rows, start=2)]
    sources = {source.resolve() for pair in pairs for source in pair.sources}
    taken: set[str] = set()
    for pair in pairs:
        if pair.name in taken:
            raise InputError(f"{name} has two rows that write {images.quoted(pair.output)}: give each an `output`.")
        for output in (pair.output, pair.volume_output):
            if output.resolve() in sources:
                raise InputError(f"{name} would write {images.quoted(output)} over a source.")
        taken.add(pair.name)
    return pairs


def _from_row(row: dict[str, Any], number: int, sensors: list[str], path: Path, out: Path, suffix: str) -> Pair:
    files = [row[column] or "" for column in sensors]
    name = os.path.normpath(row["output"]) if row.get("output") else _stem(Path(files[0]).name) or f"row {number}"
    stem, volume_suffix = _stem(name), _volume_suffix(suffix, Path(files[0]))
    if stem != name:
        suffix = volume_suffix = name[len(stem) :]
    pair = Pair(stem, [path.parent / file for file in files], out / f"{stem}{suffix}", out / f"{stem}{volume_suffix}")
    if not all(files) or None in row:
        return replace(pair, error=f"Row {number} of {images.quoted(path)} needs {len(sensors)} sources.")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return replace(pair, error=f"Row {number} of {images.quoted(path)} has an output outside the output folder.")
    return pair


def _stem(name: str) -> str:
    """A name without the extension of an image."""
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _volume_suffix(suffix: str, source: Path) -> str:
    """Of the file for a volume: that of its source if the format is one of images."""
    return suffix if images.is_medical(f"x{suffix}") else source.name[len(_stem(source.name)) :]
