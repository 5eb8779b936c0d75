"""The record of a batch, next to its results: JSON lines that survive a kill and tell a later run what is complete."""

import contextlib
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
from ddfm.io.files import listed, read_bytes


class Manifest:
    """One file of JSON lines: the settings and versions, then one line per image, appended when its file is in place.

    A line cut short by a kill is not JSON and is ignored; the next run drops it. Nothing is written before
    the first line, so that a run that fails immediately does not destroy an earlier one's record. Files are noted
    before they are written, so that those of a killed run can be recognised.

    Args:
        path: The file, in the folder of the results.
        settings: Everything that results depend on besides the sources; JSON.
        resume: Keep the lines of earlier runs, with these settings or others.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        kept = list(_lines(path)) if resume else []
        self.lines = {line["name"]: line for line in kept if _whole(line)}
        self.begun: dict[str, str] = {}  # name: output, of files that may or may not have been written
        for line in kept:
            if _whole(line):
                self.begun.pop(line["name"], None)
            elif isinstance(line.get("name"), str) and isinstance(line.get("begun"), str):
                self.begun[line["name"]] = line["begun"]
        versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
        self.header = {
            "ddfm": __version__,
            "versions": versions,
            "settings": settings,
            "settings_sha256": self.settings,
        }
        self.failures: dict[str, str] = {}
        self.file: int | None = None

    def __enter__(self) -> "Manifest":
        """Writes nothing yet: see `add`."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file and rewrite it with one line per image."""
        if self.file is not None:
            os.close(self.file)
            with contextlib.suppress(InputError):  # on a full disk the longer file stays
                images.write_bytes(self.path, self._text())

    def complete(self, name: str, output: Path, hashes: list[str]) -> dict[str, Any] | None:
        """The line of an image made with these settings from these sources, if its file is unchanged."""
        line = self.lines.get(name)
        if line is None or line["settings"] != self.settings or self.path.parent / line["output"] != output:
            return None
        if [source["sha256"] for source in line["sources"]] != hashes:
            return None
        return line if self._is_as_written(line, output) else None

    def made(self, name: str, output: Path) -> bool:
        """Whether the file at `output` was written by an earlier run and is unchanged since."""
        if name in self.begun and self.path.parent / self.begun[name] == output:
            return True
        line = self.lines.get(name)
        return line is not None and self.path.parent / line["output"] == output and self._is_as_written(line, output)

    def begin(self, outputs: dict[str, Path]) -> None:
        """Note the files, {name: path}, that are about to be written. Raises InputError."""
        begun = {name: os.path.relpath(output, self.path.parent) for name, output in outputs.items()}
        self.begun |= begun
        self._append(*({"name": name, "begun": output} for name, output in begun.items()))

    def add(self, name: str, output: Path, sources: list[Path], hashes: list[str], **more: Any) -> None:
        """Add a line for an image whose file is in place. Raises InputError."""
        line = {
            "name": name,
            "output": os.path.relpath(output, self.path.parent),
            "sha256": sha256(output),
            "sources": [{"path": str(p), "sha256": digest} for p, digest in zip(sources, hashes, strict=True)],
            "settings": self.settings,
            **more,
        }
        self._append(line)
        self.lines[name] = line
        self.begun.pop(name, None)

    def add_failure(self, name: str, sentence: str) -> None:
        """Add a line for a pair that was not fused; a later run tries it again. Raises InputError."""
        self.failures[name] = sentence
        self.begun.pop(name, None)  # a file that could not be written is unchanged
        self._append({"name": name, "error": sentence})

    def _text(self) -> bytes:
        begun = ({"name": name, "begun": output} for name, output in self.begun.items())
        failures = ({"name": name, "error": sentence} for name, sentence in self.failures.items())
        return b"".join(map(_json_line, [self.header, *self.lines.values(), *begun, *failures]))

    def _is_as_written(self, line: dict[str, Any], output: Path) -> bool:
        try:
            return bool(sha256(output) == line["sha256"])
        except InputError:  # it is gone
            return False

    def _append(self, *lines: dict[str, Any]) -> None:
        data = b"".join(map(_json_line, lines))
        if self.file is None:
            images.write_bytes(self.path, self._text())
        try:
            if self.file is None:
                self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            if os.write(self.file, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self.file)
        except OSError as error:
            raise InputError(f"Cannot write {images.quoted(self.path)}: {error.strerror or error}.") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The valid JSON objects in a manifest, none if it does not exist."""
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
        if isinstance(line, dict):
            yield line


def _whole(line: dict[str, Any]) -> bool:
    """Whether a line is for a finished image and has all required fields: damaged lines are ignored."""
    return (
        all(isinstance(line.get(key), str) for key in ("name", "output", "sha256", "settings"))
        and "\0" not in line["output"]
        and isinstance(line.get("sources"), list)
        and all(isinstance(x, dict) and isinstance(x.get("sha256"), str) for x in line["sources"])
        and isinstance(line.get("kind"), list)
        and (not line["kind"] or len(line["kind"]) > 2)
        and all(type(x) is int and 0 < x < 2**31 for x in line["kind"])
    )


def is_manifest(path: Path) -> bool:
    """Whether a file was written by `Manifest`, even if some lines are damaged."""
    return any("settings_sha256" in line or _whole(line) for line in _lines(path))


def _json_line(line: dict[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


def sha256(path: Path) -> str:
    """The hash, in hexadecimal, of a file or of the names and contents of all files in a folder. Raises InputError."""
    if path.is_dir():
        files = [file for file in listed(path) if file.is_file() and file.stat().st_size]
        return hashlib.sha256(json.dumps([[file.name, sha256(file)] for file in files]).encode()).hexdigest()
    return hashlib.sha256(read_bytes(path)).hexdigest()
