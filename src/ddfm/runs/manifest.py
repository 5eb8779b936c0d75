"""What a batch has done, beside its results: JSON lines that survive a kill and tell a later run what is complete."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch

from ddfm import __version__
from ddfm.errors import InputError
from ddfm.io import images


class Manifest:
    """One file of JSON lines: the settings and versions, then a line an image, appended when its file is in place.

    A line that a kill cut short is not JSON and does not count; the next run leaves it out. Nothing is written before
    the first line: a run that fails at once does not cost an earlier one its record.

    Args:
        path: Where it is, in the folder of the results.
        settings: All that the results depend on besides the sources; JSON.
        resume: Keep the lines that an earlier run with the same settings wrote.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        kept = (line for line in _lines(path) if resume and line["settings"] == self.settings)
        self.lines = {line["name"]: line for line in kept}
        versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
        self.header = {
            "ddfm": __version__,
            "versions": versions,
            "settings": settings,
            "settings_sha256": self.settings,
        }
        self.file: int | None = None

    def __enter__(self) -> "Manifest":
        """Nothing yet: see `add`."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        if self.file is not None:
            os.close(self.file)

    def complete(self, name: str, output: Path, hashes: list[str]) -> dict[str, Any] | None:
        """The line of an image that these settings made of these sources, if its file is as it was written."""
        line = self.lines.get(name)
        if line is None or self.path.parent / line["output"] != output:
            return None
        if [source["sha256"] for source in line["sources"]] != hashes:
            return None
        try:
            return line if sha256(output) == line["sha256"] else None
        except InputError:  # it is gone
            return None

    def add(self, name: str, output: Path, sources: list[Path], hashes: list[str], **more: Any) -> None:
        """A line for an image whose file is in place. Raises InputError."""
        self._append(
            {
                "name": name,
                "output": os.path.relpath(output, self.path.parent),
                "sha256": sha256(output),
                "sources": [{"path": str(p), "sha256": digest} for p, digest in zip(sources, hashes, strict=True)],
                "settings": self.settings,
                **more,
            }
        )

    def add_failure(self, name: str, sentence: str) -> None:
        """A line for a pair that was not fused; a later run tries it again. Raises InputError."""
        self._append({"name": name, "error": sentence})

    def _append(self, line: dict[str, Any]) -> None:
        data = _json_line(line)
        if self.file is None:
            images.write_bytes(self.path, b"".join(map(_json_line, [self.header, *self.lines.values()])))
        try:
            if self.file is None:
                self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            if os.write(self.file, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self.file)
        except OSError as error:
            raise InputError(f"Cannot write {images.quoted(self.path)}: {error.strerror or error}.") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The images' lines of a manifest, if there is one."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return
        text = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            continue
        if _whole(line):
            yield line


def _whole(line: Any) -> bool:
    """Whether a line has all that is read of it: damaged ones do not count."""
    return (
        isinstance(line, dict)
        and all(isinstance(line.get(key), str) for key in ("name", "output", "sha256", "settings"))
        and "\0" not in line["output"]
        and isinstance(line.get("sources"), list)
        and all(isinstance(x, dict) and isinstance(x.get("sha256"), str) for x in line["sources"])
        and isinstance(line.get("kind"), list)
        and (not line["kind"] or len(line["kind"]) > 2)
        and all(type(x) is int and 0 < x < 2**31 for x in line["kind"])
    )


def _json_line(line: dict[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal. Raises InputError."""
    return hashlib.sha256(images.read_bytes(path)).hexdigest()
