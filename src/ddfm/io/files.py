"""Reads and writes bytes: the only functions that open or write a file named by the user.

Only regular files are opened: a pipe would block for ever, a device never ends. Type and size are checked on the open
file, not on the name, so it cannot be swapped in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ddfm.errors import InputError

MAX_BYTES = 2**32

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "permission is denied; check who may use the file and its folder",
    errno.EPERM: "permission is denied; check who may use the file and its folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of the path is not a folder; check the name",
    errno.EEXIST: "it is a file; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; remove one of them",
}
# O_NONBLOCK: a pipe opens at once and can then be refused. O_BINARY: Windows.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path for use in a sentence: unchanged if it prints on one line, else with escapes."""
    text = os.fspath(path)
    return text if isinstance(text, str) and text.isprintable() and text else repr(text)


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> Iterator[BinaryIO]:
    """Open a regular file of 1 to `limit` bytes for reading.

    Raises InputError, one sentence, for everything else: a missing file, a folder, pipe, device or socket, an
    empty or larger file, one that cannot be read or stops being readable within the `with`.
    """
    name = quoted(path)
    try:
        # An opener, so that `file.name` is the path, which tifffile needs.
        with open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS)) as file:
            _check(os.fstat(file.fileno()), name, limit)
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the name.") from None
    except IsADirectoryError:
        raise _folder(name) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _irregular(name) from error
        raise InputError(f"Cannot read {name}: {reason(error)}.") from error
    except ValueError as error:
        if "null" not in str(error) and not isinstance(error, UnicodeEncodeError):
            raise
        raise InputError(f"{name} is not a valid file name.") from error


def _check(status: os.stat_result, name: str, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _folder(name)
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(name)
    if status.st_size == 0:
        raise InputError(f"{name} is empty (0 bytes); save or copy it again.")
    if status.st_size > limit:
        raise InputError(f"{name} is larger than {_size(limit)}, the limit for such a file.")


def _folder(name: str) -> InputError:
    return InputError(f"{name} is a folder; give the name of a file in it.")


def _irregular(name: str) -> InputError:
    return InputError(f"{name} is not a regular file; save its contents to one.")


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"


def listed(folder: str | os.PathLike[str]) -> list[Path]:
    """The contents of a folder, sorted. Raises InputError."""
    try:
        return sorted(Path(folder).iterdir())
    except OSError as error:
        raise InputError(f"Cannot read the folder {quoted(folder)}: {reason(error)}.") from error


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of 1 to `limit` bytes. Raises InputError as `open_file` does."""
    with open_file(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular UTF-8 file of at most 16 MiB. Raises InputError."""
    try:
        return read_bytes(path, 2**24).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{quoted(path)} is not text in UTF-8; save it as such.") from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write data to a file atomically.

    A temporary file in the same folder is written, synced to disk and renamed over the target; it is removed on
    any failure, including an interrupt. Links are followed; a read-only file is not replaced. Raises InputError.
    """
    target = check_writable(path)
    part = os.path.join(os.path.dirname(target), f".ddfm-{secrets.token_hex(8)}.part")
    try:
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise InputError(f"Cannot write {quoted(path)}: {reason(error)}.") from error


def check_writable(path: str | os.PathLike[str]) -> str:
    """The file that a path means, behind all links, for `write_bytes`. Raises InputError if it cannot be written."""
    name = quoted(path)
    try:
        target = os.path.realpath(path)
        status = os.stat(target) if os.path.lexists(target) else None
        folder = os.stat(os.path.dirname(target))
    except ValueError as error:
        raise InputError(f"Cannot write {name}: that is not a valid file name.") from error
    except OSError as error:
        raise InputError(f"Cannot write {name}: {reason(error)}.") from error
    if status and stat.S_ISDIR(status.st_mode):
        raise InputError(f"Cannot write {name}: it is a folder; give the name of a file.")
    if status and not stat.S_ISREG(status.st_mode):
        raise InputError(f"Cannot write {name}: it is not a regular file; choose another name.")
    if status and not os.access(target, os.W_OK):
        raise InputError(f"Cannot write {name}: the file is read-only; choose another name or make it writable.")
    if not stat.S_ISDIR(folder.st_mode):
        raise InputError(f"Cannot write {name}: {_REASONS[errno.ENOTDIR]}.")
    if not os.access(os.path.dirname(target), os.W_OK):
        raise InputError(f"Cannot write {name}: {_REASONS[errno.EACCES]}.")
    return target


def reason(error: OSError) -> str:
    """What went wrong and what to do, as the end of a sentence without a full stop."""
    return _REASONS.get(error.errno or 0) or (error.strerror or type(error).__name__).lower()
