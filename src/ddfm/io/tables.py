"""Reads and writes CSV files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddfm.errors import InputError
from ddfm.io.files import quoted, read_bytes, write_bytes
from ddfm.io.pairing import is_image_name

LARGEST = 2**26  # bytes; a row has about a hundred


def read_table(path: Path, needed: int) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a UTF-8 CSV file of file names; rows may differ in length.

    Cells are separated by commas, semicolons or tabs, see `dialect`; spaces around them are ignored.

    Args:
        path: The file.
        needed: The minimum number of columns besides "output".

    Raises:
        InputError: no such file, not a CSV file in UTF-8, no header or one that names files instead of columns, no row.
    """
    name = quoted(path)
    data = read_bytes(path)
    if len(data) > LARGEST:
        raise InputError(f"{name} is larger than {LARGEST >> 20} MiB: that is not a table of file names.")
    if b"\0" in data:
        raise InputError(f"{name} is not a CSV file in UTF-8 (it contains a NUL); save it as such.")
    try:
        text = data.decode("utf-8-sig")
        cells = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect(text))
        rows = [[cell.strip() for cell in row] for row in cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not a CSV file in UTF-8 ({error}); save it as such.") from error
    header, *rows = [row for row in rows if row] or [[]]
    for cell in header:
        if is_image_name(cell) or os.path.isfile(path.parent / cell):
            raise InputError(
                f"{name} has no header: its first row names {quoted(cell[:80])}; put infrared,visible above it."
            )
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise InputError(f"{name} has two columns {quoted(twice[:80])} in its header; rename one.")
    if len([column for column in header if column != "output"]) < needed or not rows:
        raise InputError(
            f"{name} needs a header of {needed} or more columns, one for each sensor, and a row per scene."
        )
    return header, rows


def dialect(text: str) -> dict[str, Any]:
    """The dialect for `csv.reader`: the most frequent separator in the first line, since spreadsheets write semicolons
    in many locales, and no spaces after it."""
    header = text.lstrip().partition("\n")[0]
    return {"delimiter": max(",;\t", key=header.count), "skipinitialspace": True}


def write_table(path: str | os.PathLike[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows as CSV in UTF-8, atomically; a cell that a spreadsheet would take for a formula gets a `'` before it.

    Raises InputError.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
