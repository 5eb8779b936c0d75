"""The pairs of a cluster run as rows of a Ray dataset: from folders, or from a table that is never loaded in full."""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.pairing import is_image_name, stem
from ddfm.io.tables import dialect
from ddfm.runs.plan import Pairs, Plan, plan
from ddfm.runs.records import Row, is_remote

# The output of `listing` and input of `ddfm.runs.cluster.FuseBatch`.
LISTED = pa.schema(
    [("name", pa.string()), ("sources", pa.list_(pa.string())), ("output", pa.string()), ("error", pa.string())]
)


def listing(pairs: Pairs, out: str, patterns: Sequence[str] = ()) -> tuple[Dataset, int | None, Plan]:
    """The rows for `FuseBatch`, their number if known, and the decisions about names.

    A table stays where it is, and Ray reads it block by block. Folders are listed here.

    Raises:
        InputError: a folder or the table cannot be used.
    """
    paths = [str(pairs)] if isinstance(pairs, (str, os.PathLike)) else [str(path) for path in pairs]
    if len(paths) == 1 and not os.path.isdir(paths[0]):
        if patterns:
            raise InputError(f"{images.quoted(paths[0])} is not a folder, and patterns are for names in a folder.")
        return _table_rows(paths[0]), None, Plan([])
    found = plan(paths, Path(out), ".png", patterns)
    rows = [
        {"name": pair.name, "sources": [os.path.abspath(source) for source in pair.sources]} for pair in found.pairs
    ]
    return ray.data.from_items(rows), len(rows), found


def _table_rows(path: str) -> Dataset:
    """The rows of a table with a column per sensor and optionally `output`, as in `batch`, or with `FuseBatch`'s
    columns."""
    parent = posixpath.dirname(path) if is_remote(path) else os.path.dirname(os.path.abspath(path))
    separated: dict[str, Any] = {}
    try:
        if path.endswith((".parquet", ".pq")):
            table = ray.data.read_parquet(path)
            header = list(table.schema().names)
        else:
            with fsspec.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                separated = dialect(first := file.readline())
                header = [cell.strip() for cell in next(csv.reader([first], **separated), [])]
            table = ray.data.read_text(path, encoding="utf-8-sig")
    except (OSError, ValueError, csv.Error, pa.ArrowException, ray.exceptions.RayError) as error:
        raise InputError(f"Cannot read {images.quoted(path)}: {str(error).splitlines()[0]}.") from error
    sensors = [name for name in header if name not in ("name", "output", "error")]
    if "sources" not in header and (len(sensors) < 2 or any(map(is_image_name, header))):
        raise InputError(
            f"{images.quoted(path)} needs a header and a column for each sensor; it has {', '.join(header) or 'none'}."
        )

    def rows(batch: dict[str, np.ndarray]) -> pa.Table:
        if "sources" in batch:
            listed = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        elif "text" in batch and "text" not in header:
            cells = ([cell.strip() for cell in row] for row in csv.reader(batch["text"], **separated))
            listed = [_row_of(header, row, sensors) for row in cells if row != header]
        else:
            listed = [_row_of(list(batch), list(values), sensors) for values in zip(*batch.values(), strict=True)]
        for row in listed:
            row["sources"] = [_beside(parent, str(source)) for source in row["sources"]]
        return pa.Table.from_pylist(listed, LISTED)

    return table.map_batches(rows, batch_size=4096)


def _row_of(header: list[str], cells: list[Any], sensors: list[str]) -> Row:
    row: Row = dict(zip(header, cells, strict=False))
    out: Row = {"sources": [row[sensor] for sensor in sensors if row.get(sensor)], "output": row.get("output") or None}
    if len(cells) > len(header) or len(out["sources"]) < len(sensors):
        out["error"] = f"The row {','.join(map(str, cells))[:200]} needs {len(sensors)} sources."
    return out


def _beside(parent: str, cell: str) -> str:
    return cell if not cell or is_remote(cell) or os.path.isabs(cell) else f"{parent}/{cell}"


def refuse_doubles(rows: Dataset) -> int:
    """The number of rows; raises InputError if two write the same file, by 64-bit hashes (8 MB for a million names)."""

    def hashed(batch: dict[str, np.ndarray]) -> Row:
        each = zip(batch["output"], batch["name"], batch["sources"], strict=True)
        names = [
            stem(os.path.normpath(output)) if output else name or stem(posixpath.basename([*sources, ""][0]))
            for output, name, sources in each
        ]
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
        return {"hash": np.frombuffer(b"".join(digests), np.uint64)}

    hashes = rows.map_batches(hashed, batch_size=4096)
    every = np.concatenate([np.zeros(0, np.uint64), *(block["hash"] for block in hashes.iter_batches(batch_size=None))])
    if len(every) > len(np.unique(every)):
        raise InputError("Two rows write to the same file: give each its own `output`.")
    return len(every)
