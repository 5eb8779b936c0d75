"""The plan of a batch: its scenes, each with its sources and output file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.pairing import find_groups, stem
from ddfm.io.tables import read_table

Pairs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Pair:
    """Images or volumes to fuse; `error` says what is wrong with its row in the CSV."""

    name: str
    sources: list[Path]
    output: Path
    volume_output: Path  # if they turn out to be volumes
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """The pairs, the images without a partner, and a sentence for each decision about names."""

    pairs: list[Pair]
    unmatched: list[Path] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def plan(given: Pairs, out: Path, suffix: str, patterns: Sequence[str] = ()) -> Plan:
    """The pairs in folders or in a CSV file.

    Args:
        given: As `pairs` in `batch`.
        out: The folder of the results.
        suffix: Extension of the results, with its dot.
        patterns: As in `find_groups`.

    Raises:
        InputError: a folder or the CSV cannot be used.
    """
    paths = [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(path) for path in given]
    if not paths:
        raise InputError("A batch needs a folder for each sensor, a single folder, or a CSV file; none was given.")
    if len(paths) == 1 and not paths[0].is_dir():
        if patterns:
            raise InputError(f"{images.quoted(paths[0])} is not a folder, and patterns are for names in a folder.")
        return Plan(_from_csv(paths[0], out, suffix))
    folders = {os.path.realpath(path) for path in paths}
    if os.path.realpath(out) in folders:
        raise InputError(f"The results cannot go to {images.quoted(out)}: it is a folder of sources; choose another.")
    if len(folders) < len(paths) and not patterns:
        raise InputError("The same folder is given twice: give a folder for each sensor.")
    found = find_groups(paths, patterns, leave_out=out)
    pairs = [pair_of(name, files, out, suffix) for name, files in found.groups.items()]
    return Plan(pairs, found.unmatched, found.findings)


def _from_csv(path: Path, out: Path, suffix: str) -> list[Pair]:
    header, rows = read_table(path, needed=2)
    pairs = [_from_row(row, number, header, path, out, suffix) for number, row in enumerate(rows, start=2)]
    taken: set[str] = set()
    for pair in pairs:
        if pair.name in taken:
            raise InputError(
                f"{images.quoted(path)} has two rows that write to {images.quoted(pair.output)}: give each an `output`."
            )
        taken.add(pair.name)
    return pairs


def _from_row(row: list[str], number: int, header: list[str], path: Path, out: Path, suffix: str) -> Pair:
    cells = dict(zip(header, row, strict=False))
    files = [cells.get(column, "") for column in header if column != "output"]
    name = cells.get("output") or stem(Path(files[0]).name) or f"row {number}"
    pair = named_pair(name, [path.parent / file for file in files], out, suffix)
    if not all(files) or len(row) > len(header):
        return replace(pair, error=f"Row {number} of {images.quoted(path)} needs {len(files)} sources.")
    if leaves(name):
        return replace(pair, error=f"Row {number} of {images.quoted(path)} has an output outside the output folder.")
    if len({os.path.realpath(source) for source in pair.sources}) < len(files):
        return replace(pair, error=f"Row {number} of {images.quoted(path)} names the same file twice.")
    return pair


def named_pair(name: str, files: list[Path], out: Path, suffix: str) -> Pair:
    """A pair whose result has the given name, which gets the suffix if it has no extension."""
    base = stem(name := os.path.normpath(name))
    if base == name:
        return pair_of(name, files, out, suffix)
    return Pair(base, files, out / name, out / name)


def leaves(name: str) -> bool:
    """Whether a result with this name would be outside the folder of the results."""
    return Path(name).is_absolute() or ".." in Path(os.path.normpath(name)).parts


def pair_of(name: str, files: list[Path], out: Path, suffix: str) -> Pair:
    """A pair whose result is named after its sources."""
    return Pair(name, files, out / f"{name}{suffix}", out / f"{name}{volume_suffix(suffix, files[0])}")


def suffix_of(format: str) -> str:
    """The extension of results: "png", ".PNG" and ".png" are all ".png"."""
    return f".{format.lstrip('.').lower()}"


def volume_suffix(suffix: str, source: Path) -> str:
    """The extension for a volume: `suffix` if that is a volume format, else that of the source (.dcm for a folder)."""
    return suffix if images.is_medical(f"x{suffix}") else source.name[len(stem(source.name)) :] or ".dcm"
