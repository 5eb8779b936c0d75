"""The record of a cluster's workers: one file per result, on any file system that fsspec opens."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any

import fsspec

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.runs.manifest import sha256
from ddfm.runs.plan import Pair

RECORDS = ".ddfm"  # folder of the records, within that of the results
Row = dict[str, Any]


class Records:
    """The record of complete results; unlike `Manifest`, one JSON file per result, so that workers are independent.

    Args:
        out: Folder of the results, path or URI.
        settings: Hash of everything that results depend on besides the sources.
        resume: Whether records of other runs count.
        run: Name of this run.
    """

    def __init__(self, out: str, settings: str, resume: bool, run: str) -> None:
        self.out, self.settings, self.resume, self.run = out, settings, resume, run
        self.lines: dict[str, Row] = {}
        self.added: set[str] = set()
        self._found: dict[str, Row] = {}

    def expect(self, pair: Pair) -> None:
        """Fetch a pair's record and, if remote, its result. Raises InputError if two rows write the same file."""
        if pair.name in self._found:
            raise InputError(f"Two rows write to {images.quoted(pair.output)}: give each its own `output`.")
        self._found[pair.name] = read_json(self._record(pair.name))
        if is_remote(self.out):
            for output in {pair.output, pair.volume_output}:
                fetched(self._uri(pair.name, output), output.parent, missing=True)

    def complete(self, name: str, output: Path, hashes: list[str]) -> Row | None:
        """As `Manifest.complete`."""
        line = self._found[name]
        ours = line.get("run") == self.run or self.resume
        if not ours or line.get("settings") != self.settings or line.get("sources") != hashes:
            return None
        if line.get("output") != self._name(name, output) or not isinstance(line.get("kind"), list):
            return None
        if not output.is_file() or sha256(output) != line.get("sha256"):
            return None
        self.lines[name] = line
        return line

    def made(self, name: str, output: Path) -> bool:
        """As `Manifest.made`."""
        line = self._found[name]
        if self._name(name, output) == line.get("begun"):
            return True
        return line.get("output") == self._name(name, output) and sha256(output) == line.get("sha256")

    def begin(self, outputs: dict[str, Path]) -> None:
        """As `Manifest.begin`."""
        for name, output in outputs.items():
            write_json(self._record(name), {"begun": self._name(name, output), "run": self.run})

    def add(self, name: str, output: Path, sources: list[Path], hashes: list[str], **more: Any) -> None:
        """As `Manifest.add`; a remote result is uploaded first."""
        if is_remote(self.out):
            with fsspec.open(self._uri(name, output), "wb") as file:
                file.write(output.read_bytes())
        line = {"name": name, "output": self._name(name, output), "sha256": sha256(output), "sources": hashes}
        line |= {"settings": self.settings, "run": self.run} | more
        write_json(self._record(name), line)
        self.lines[name] = line
        self.added.add(name)

    def add_failure(self, name: str, sentence: str) -> None:
        """Does nothing: failures are in the rows."""

    def _record(self, name: str) -> str:
        return f"{self.out}/{RECORDS}/{name}.json"

    def _uri(self, name: str, output: Path) -> str:
        return f"{self.out}/{self._name(name, output)}"

    @staticmethod
    def _name(name: str, output: Path) -> str:
        """The path within the folder of the results; `name` may contain folders."""
        return posixpath.join(posixpath.dirname(name), output.name)


def is_remote(path: str) -> bool:
    """Whether a path is a URI."""
    return "://" in path


def fetched(uri: str, folder: Path, missing: bool = False) -> Path:
    """The path of a file's copy in `folder`; with `missing`, the file may not exist. Raises InputError."""
    target = folder / posixpath.basename(uri)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with fsspec.open(uri, "rb") as source:
            target.write_bytes(source.read())
    except FileNotFoundError:
        if not missing:
            raise InputError(f"{images.quoted(uri)} does not exist; check the name.") from None
    except Exception as error:  # every protocol has its own exceptions
        raise InputError(f"Cannot read {images.quoted(uri)}: {type(error).__name__}: {error}.") from error
    return target


def read_json(path: str) -> Row:
    """The JSON object in a file; empty if there is none."""
    try:
        with fsspec.open(path, "rb") as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, value: Row) -> None:
    """Write a JSON file, atomically if it is local."""
    data = json.dumps(value).encode()
    if is_remote(path):
        with fsspec.open(path, "wb") as file:
            file.write(data)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        images.write_bytes(path, data)
