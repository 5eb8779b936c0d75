"""Downloads a published prior once, verifies it and converts it into the cache.

The cache holds a diffusers folder per prior, `<cache>/<name>/{unet,scheduler}`, which is written atomically.
A pull that is running or was interrupted keeps its files in `<cache>/.<name>.download`; that folder, with the
original `.pt` in it, is removed once the converted prior is in place.
"""

import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import requests
import urllib3
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from safetensors import SafetensorError

from ddfm import __version__
from ddfm.errors import InputError
from ddfm.io.files import quoted
from ddfm.prior.checks import regular

TIMEOUT = 30.0  # seconds without a byte after which a connection counts as broken
PATIENCE = 60.0  # seconds in which a connection must answer, and over which its rate is measured
LEAST_RATE = 1024  # bytes per second; below that it counts as broken, since a trickle never times out
RETRIES = 5  # how often in a row a download may fail without making progress
BACKOFF = 1.0  # seconds before the first retry, doubled for each further one
CHUNK = 1 << 20
FILES = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")


@dataclass(frozen=True)
class Published:
    """A guided-diffusion checkpoint: its address, size in bytes, SHA-256, and `create_model` arguments.

    args: None for those in `ddfm.prior.convert.OPENAI_256`.
    """

    url: str
    size: int
    sha256: str
    args: dict[str, Any] | None = None


PUBLISHED = {
    "openai-256": Published(
        url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        size=2_211_383_297,
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    )
}


def cache_dir() -> Path:
    """The folder for pulled priors: $DDFM_CACHE, else $XDG_CACHE_HOME/ddfm, else ~/.cache/ddfm. Raises InputError."""
    own = os.environ.get("DDFM_CACHE")
    given = own or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(given).expanduser() / ("" if own else "ddfm")
    except RuntimeError as error:  # ~user without an account, or no home at all
        raise InputError(
            f"The home folder of the cache {quoted(given)} is unknown: set DDFM_CACHE to a folder."
        ) from error


def cached(name: str = "openai-256", cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The diffusers folder of a pulled prior, or None."""
    folder = _root(cache_dir) / name
    return folder if all((folder / file).is_file() for file in FILES) else None


def pull(
    name: str = "openai-256",
    cache_dir: str | os.PathLike[str] | None = None,
    url: str | None = None,
    progress: bool = True,
) -> Path:
    """Downloads, verifies and converts a published prior, unless it is already in the cache.

    An interrupted pull resumes where it stopped. openai-256 is a 2.2 GB download and needs as much again to convert.

    Args:
        name: a key of `PUBLISHED`.
        cache_dir: a folder other than `cache_dir()`.
        url: a mirror (http or https), which must send the published file, byte for byte.
        progress: show a bar on the terminal (standard error).

    Returns:
        The diffusers folder in the cache: `unet` (float32 safetensors) and `scheduler`.

    Raises:
        InputError: an unknown name, no connection, a file other than the published one (it is deleted), too little
            disk space, or another running pull of the same prior.
        KeyboardInterrupt: on Ctrl-C, after a line on standard error that says how to resume.
    """
    if name not in PUBLISHED:
        raise InputError(f"There is no published prior {name!r}; there is {', '.join(PUBLISHED)}.")
    if done := cached(name, cache_dir):
        return done
    item, root = PUBLISHED[name], _root(cache_dir)
    _check_free(root / name)
    work = root / f".{name}.download"
    weights, part = work / "weights.pt", work / "weights.pt.part"
    try:
        work.mkdir(parents=True, exist_ok=True)
        for path in (root / f".{name}.lock", weights, part, part.with_suffix(".validator")):
            if os.path.lexists(path):
                regular(path)
        with _only_one(root / f".{name}.lock", name), _bar(progress) as bar:
            if done := cached(name, cache_dir):  # another pull finished just before we got the lock
                return done
            work.mkdir(exist_ok=True)
            _check_room(item, weights if weights.exists() else part)
            if not weights.exists():
                _download(url or item.url, item, part, bar)
                part.replace(weights)
            _verify(item, weights, url or item.url, bar)
            _convert(item, weights, root / name, bar)
            shutil.rmtree(work, ignore_errors=True)
    except KeyboardInterrupt:
        have = part.stat().st_size if part.exists() else item.size
        Console(stderr=True).print(
            f"Stopped with {have / 1e6:,.1f} of {item.size / 1e6:,.1f} MB kept in {quoted(work)}; "
            f"`ddfm prior pull {name}` resumes from there.",
            soft_wrap=True,
            markup=False,
        )
        raise
    except OSError as error:  # network errors are InputError by now, so this is the disk
        raise InputError(f"Cannot write to the cache {quoted(root)}: {error.strerror or error}.") from error
    return root / name


class _Broken(Exception):
    """The connection failed in a way that a retry may fix; str() says how."""


def _root(given: str | os.PathLike[str] | None) -> Path:
    return Path(given) if given is not None else cache_dir()


@contextmanager
def _only_one(path: Path, name: str) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends, however it ends."""
    try:
        with filelock.FileLock(path, timeout=0, thread_local=False):
            yield
    except filelock.Timeout as error:
        raise InputError(f"Another pull of {name} is running in {quoted(path.parent)}: wait for it.") from error


def _bar(show: bool) -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True), disable=not show)


def _check_free(target: Path) -> None:
    """Raise InputError if the target exists: only complete priors are renamed there, so it is not ours."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if os.path.lexists(target):
        raise InputError(f"{quoted(target)} is in the way and is not a complete prior: move it elsewhere.")


def _check_room(item: Published, partial: Path) -> None:
    """Raise InputError unless there is space for the rest of the download and for the converted copy."""
    have = partial.stat().st_size if partial.exists() else 0
    needed = max(item.size - have, 0) + item.size
    free = shutil.disk_usage(partial.parent).free
    if free < needed:
        raise InputError(
            f"The disk of {quoted(partial.parent)} has {free / 1e9:.1f} GB free but {needed / 1e9:.1f} GB are needed: "
            "free some space, or set DDFM_CACHE to a folder on another disk."
        )


def _download(url: str, item: Published, part: Path, bar: Progress) -> None:
    """Downloads `part` up to the published size, with as many connections as it takes."""
    task = bar.add_task("download", total=item.size, completed=part.stat().st_size if part.exists() else 0)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _fetch(url, item, part, bar, task)
        except _Broken as error:
            after = part.stat().st_size if part.exists() else 0
            # A connection that makes progress may break any number of times; one that does not is given up.
            failures = 0 if after - before > item.size // 100 else failures + 1
            if failures >= RETRIES:
                raise InputError(
                    f"Cannot download {url}: {error} at {after:,} of {item.size:,} bytes; they are kept, so pull again."
                ) from error
            time.sleep(BACKOFF * 2 ** max(failures - 1, 0))


def _fetch(url: str, item: Published, part: Path, bar: Progress, task: Any) -> None:
    """One connection: appends to `part` if the server can resume the same file from there, else starts over."""
    validator = part.with_suffix(".validator")  # the server's tag for the version of `part`
    have = part.stat().st_size if part.exists() else 0
    if have == item.size:
        return
    if have > item.size:
        part.unlink()
        have = 0
    headers = {"User-Agent": f"ddfm/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator.exists():
            headers["If-Range"] = validator.read_text(encoding="utf-8")
    with _network(url):
        response = _within(PATIENCE, url, headers)
        response.raise_for_status()
    with response:
        if response.status_code == 206:
            span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if total not in ("*", str(item.size)):
                raise _wrong_size(url, item, part, total)
            if span.partition("-")[0] != str(have):
                part.unlink()
                raise _Broken("the server answered with a part of the file other than the one requested")
        else:  # 200: the full file
            length = response.headers.get("Content-Length")
            if length is not None and length != str(item.size):
                raise _wrong_size(url, item, part, length)
            have = 0
            tag = response.headers.get("ETag") or ""
            if not tag or tag.startswith("W/"):  # a weak tag may not be used to resume
                tag = response.headers.get("Last-Modified") or ""
            part.unlink(missing_ok=True)
            validator.unlink(missing_ok=True)
            if tag:
                validator.write_text(tag, encoding="utf-8")
        bar.reset(task, completed=have)
        with open(part, "ab") as file:
            since, before = time.monotonic(), have
            while have < item.size:
                if (now := time.monotonic()) > since + PATIENCE:
                    if have - before < LEAST_RATE * PATIENCE:
                        raise _Broken(f"fewer than {LEAST_RATE} bytes a second arrived")
                    since, before = now, have
                with _network(url):
                    data = response.raw.read1(min(CHUNK, item.size - have))  # what has arrived: a stall loses nothing
                if not data:
                    raise _Broken("the connection broke off")
                file.write(data)
                have += len(data)
                bar.update(task, advance=len(data))
            with _network(url):
                more = response.raw.read(1)
    if more:
        raise _wrong_size(url, item, part, f"more than {item.size}")


def _within(seconds: float, url: str, headers: dict[str, str]) -> requests.Response:
    """The response, if its headers arrive in time: a socket timeout alone restarts with each byte."""
    answers: queue.Queue[requests.Response | BaseException] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, headers=headers, stream=True, timeout=TIMEOUT))
        except BaseException as error:  # for the waiting thread
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise requests.Timeout from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Turns every connection failure into `_Broken`, or into InputError if a retry is pointless."""
    try:
        yield
    except requests.HTTPError as error:
        answer: Any = error.response
        answer.close()
        status = f"the server answered {answer.status_code} {answer.reason}"
        if answer.status_code in (408, 416, 425, 429) or answer.status_code >= 500:
            raise _Broken(status) from error
        raise InputError(f"Cannot download {url}: {status}.") from error
    except requests.exceptions.SSLError as error:
        raise InputError(f"Cannot download {url}: the server's certificate is not trusted ({error}).") from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise _Broken(f"nothing arrived for {TIMEOUT:g} seconds") from error
    except urllib3.exceptions.ProtocolError as error:
        raise _Broken("the connection broke off") from error
    except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
        raise _Broken(_reason(error)) from error
    except requests.RequestException as error:  # an invalid address, or one other than http or https
        raise InputError(f"Cannot download {url}: {error}.") from error


def _reason(error: BaseException) -> str:
    """The operating system's message, if it is the cause."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
    return str(cause.strerror if isinstance(cause, OSError) and cause.strerror else error)


def _wrong_size(url: str, item: Published, part: Path, size: str) -> InputError:
    part.unlink(missing_ok=True)
    return InputError(f"{url} is not the published file: it has {size} bytes, not {item.size}; nothing was kept.")


def _verify(item: Published, weights: Path, url: str, bar: Progress) -> None:
    """Deletes the file and raises InputError unless it is the published one."""
    task = bar.add_task("verify", total=weights.stat().st_size)
    digest = hashlib.sha256()
    with open(weights, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            bar.update(task, advance=len(data))
    if digest.hexdigest() != item.sha256:
        weights.unlink()
        raise InputError(
            f"The download from {url} is not the published file (SHA-256 differs) and was deleted: pull again."
        )


def _convert(item: Published, weights: Path, target: Path, bar: Progress) -> None:
    """Writes the checkpoint as a diffusers folder, renamed into place at the end."""
    from ddfm.prior.convert import OPENAI_256, load_guided_diffusion  # takes seconds to import

    bar.add_task("convert", total=None)
    weights.with_suffix(".json").write_text(json.dumps(item.args or OPENAI_256), encoding="utf-8")
    made = weights.with_name("converted")
    shutil.rmtree(made, ignore_errors=True)
    unet, scheduler = load_guided_diffusion(weights)
    scheduler.save_pretrained(made / "scheduler")
    try:
        unet.save_pretrained(made / "unet")
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    _check_free(target)
    made.rename(target)
