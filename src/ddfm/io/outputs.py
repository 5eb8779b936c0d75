"""The rule against overwriting: a run never overwrites its inputs, nor a file that it did not make.

    outputs = Outputs([infrared, visible], overwrite=False)
    outputs.claim("fused.png")  # InputError before the work, not after it

Files are compared by device and inode, not by name, so that links, hard links, `./x`, `a//x` and, on a
case-insensitive disk, names that differ in case are all recognised.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ddfm.errors import InputError
from ddfm.io.files import quoted, reason

PathLike = str | os.PathLike[str]
_File = tuple[int, int] | tuple[object, str]  # (device, inode), or (folder, name) of a file that does not exist yet


class Outputs:
    """The files that one run may write.

    Args:
        inputs: All files that the run reads: sources, tables, priors. A folder stands for the files directly in it.
            Missing files are ignored; reading them will fail.
        overwrite: Whether files that the run did not make may be replaced. Inputs never are.
    """

    def __init__(self, inputs: Iterable[PathLike], overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self._inputs: set[_File] = set()
        self._folders: set[_File] = set()
        self._claimed: dict[_File, Path] = {}
        self._names: dict[tuple[object, str], Path] = {}  # by folder and case-folded name
        for path in inputs:
            self.add_input(path)

    def add_input(self, path: PathLike) -> None:
        """Add an input, as in the constructor."""
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            self._inputs.add((status.st_dev, status.st_ino))
            if os.path.isdir(path):
                self._folders.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    for entry in entries:
                        with contextlib.suppress(OSError):  # a broken link
                            inside = entry.stat()
                            self._inputs.add((inside.st_dev, inside.st_ino))

    def claim(self, path: PathLike, ours: bool = False) -> Path:
        """Reserve a file for a result; returns the given path.

        ours: whether an existing file is known to be from an earlier run.

        Raises:
            InputError: it is an input, it was claimed before, it exists and is neither ours nor to be overwritten, or
                the name is invalid.
        """
        name, path = quoted(path), Path(path)
        file, exists = _identity(path, name)
        if file in self._inputs:
            raise InputError(f"{name} is one of the sources or other inputs of this run: give the result another name.")
        if (other := self._claimed.get(file) or self._same_on_this_disk(path)) is not None:
            raise InputError(f"Two results would go to {name} (also given as {quoted(other)}); give each its own name.")
        if exists and not (ours or self.overwrite) and not path.is_dir():
            raise InputError(
                f"{name} exists already; give the result another name, or allow replacing it (--overwrite, or "
                "overwrite=True in Python)."
            )
        self._claimed[file] = path
        self._names[_folded(path)] = path
        return path

    def folder(self, path: PathLike, shared: bool = False) -> Path:
        """Create a folder for results, and remove the temporary files of killed runs.

        shared: other runs may be writing there now, so leave temporary files alone.

        Raises InputError if it cannot be created or is one of the inputs.
        """
        name = quoted(path)
        try:
            os.makedirs(path, exist_ok=True)
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in self._folders:
                raise InputError(f"The results cannot go to {name}: it is a folder of sources; choose another one.")
            for part in [] if shared else Path(path).glob(".ddfm-*.part"):
                part.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            why = reason(error) if isinstance(error, OSError) else "that is not a valid name"
            raise InputError(f"Cannot use the folder {name}: {why}.") from error
        return Path(path)

    def _same_on_this_disk(self, path: Path) -> Path | None:
        """A claimed file whose name differs only in case or Unicode normalisation, if the disk ignores that."""
        other = self._names.get(_folded(path))
        return other if other is not None and _one_name(path.parent, path.name, other.name) else None


def _identity(path: Path, name: str) -> tuple[_File, bool]:
    """The file that a path leads to, through all links, and whether it exists. Raises InputError."""
    try:
        try:
            status = os.stat(path)
            return (status.st_dev, status.st_ino), True
        except (FileNotFoundError, NotADirectoryError):
            target = os.path.realpath(path)  # for a dangling link: where writing would put the file
            return (_folder_identity(os.path.dirname(target)), os.path.basename(target)), False
    except OSError as error:
        raise InputError(f"Cannot write {name}: {reason(error)}.") from error
    except ValueError as error:  # NUL, or a lone surrogate
        raise InputError(f"Cannot write {name}: that is not a valid file name; choose another one.") from error


def _folder_identity(folder: str) -> object:
    try:
        status = os.stat(folder)
    except OSError:
        return folder
    return status.st_dev, status.st_ino


def _folded(path: Path) -> tuple[object, str]:
    folder = _folder_identity(os.path.realpath(path.parent))
    return folder, unicodedata.normalize("NFC", path.name).casefold()


def _one_name(folder: Path, name: str, other: str) -> bool:
    """Whether two names denote the same file on this folder's disk, which only a trial can tell."""
    try:
        with tempfile.TemporaryDirectory(prefix=".ddfm-names-", dir=folder) as trial:
            (Path(trial) / name).touch()
            return (Path(trial) / other).exists()
    except OSError:
        return name == other
