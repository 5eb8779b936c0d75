"""Receives multipart forms as temporary files and text, checking every limit before the work it bounds.

Client file names are only displayed: the files are named 1.png, 2.nii.gz ..., with an extension from a fixed list.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import PIL.Image
import tifffile
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ddfm.errors import InputError
from ddfm.io import thermal
from ddfm.io.codecs import OPENERS, TIFF_MAGIC, one_sentence
from ddfm.io.pairing import stem
from ddfm.io.thermal import is_radiometric
from ddfm.server.limits import Limits
from ddfm.server.problems import DISK_FULL, Problem, is_disk_full

_LONGEST_NAME, _FIELDS, _FIELD_BYTES = 80, 64, 4096
_EMBEDDED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # first bytes of the images inside a radiometric JPEG
_MOST_EMBEDDED = 16
_DEFLATED = "1.2.840.10008.1.2.1.99"  # DICOM transfer syntax: unpacked in full before anything can be checked


@dataclass(frozen=True)
class Upload:
    """The sources and fields of a request.

    Attributes:
        paths: The temporary files, in the client's order.
        names: The client's names for them, for messages.
        fields: The other form fields.
    """

    paths: list[Path]
    names: list[str]
    fields: dict[str, str]

    def sources(self, number: int) -> list[str]:
        """The names of `number` sources, which exceed the number of files if one file holds two."""
        return self.names if number == len(self.names) else [f"{self.names[0]} ({k + 1})" for k in range(number)]

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Replaces temporary paths with the client's names in the message of an InputError."""
        try:
            yield
        except Problem:
            raise
        except InputError as error:
            if is_disk_full(error.__cause__):
                raise Problem(503, DISK_FULL) from error
            raise InputError(self.in_words(str(error))) from error

    def in_words(self, sentence: str) -> str:
        """The sentence with the client's names in place of the temporary paths."""
        for path, name in zip(self.paths, self.names, strict=True):
            sentence = sentence.replace(str(path), name)
        return sentence


async def receive(request: Request, limits: Limits, folder: Path) -> Upload:
    """The form of a request, with its files saved in `folder`.

    Raises Problem: 400 for an invalid form, 408 and 413 for one that is too slow or too large, 415 for another content
    type, 422 for the wrong number of sources.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "multipart/form-data":
        raise Problem(415, "The request is not multipart/form-data; send the images in its `sources` field.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.upload_bytes:
        raise _too_large(limits)
    try:
        with anyio.fail_after(limits.upload_seconds):
            items = await _parse(request, limits)
    except TimeoutError:
        seconds = f"{limits.upload_seconds:g} s"
        raise Problem(408, f"The upload took longer than {seconds}; send it again over a faster connection.") from None
    files = [value for _, value in items if isinstance(value, UploadFile)]
    try:
        upload = _sorted(items, folder, limits)
        for file, path in zip(files, upload.paths, strict=True):
            await anyio.to_thread.run_sync(_save, file, path)
    finally:
        for file in files:
            file.file.close()
    return upload


def claimed_pixels(upload: Upload) -> int:
    """Total pixels of all sources, resized to the largest, according to their headers; nothing is decoded.

    Raises Problem 415 for a file that is not an image, InputError for a header that cannot be read.
    """
    with upload.named():
        claimed = [_claimed(path, name) for path, name in zip(upload.paths, upload.names, strict=True)]
    return max(2, len(claimed)) * max(claimed)


def _too_large(limits: Limits) -> Problem:
    return Problem(413, f"The upload is larger than {limits.upload_bytes / 2**20:g} MiB; send smaller images.")


class _Form(MultiPartParser):
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def _parse(request: Request, limits: Limits) -> list[tuple[str, str | UploadFile]]:
    async def bounded() -> AsyncIterator[bytes]:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > limits.upload_bytes:
                raise _too_large(limits)
            yield chunk

    parser = _Form(
        request.headers,
        bounded(),  # type: ignore[arg-type]  # typed as a generator, but only iterated over
        max_files=_FIELDS,
        max_fields=_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise Problem(400, f"{error.message.rstrip('.')}.") from error
    except (Problem, OSError):  # too slow, or the disk is full
        raise
    except Exception as error:  # the parser trusts its input in places: KeyError, AssertionError, UnicodeError ...
        raise Problem(400, "The form is not valid multipart/form-data; send it again.") from error
    if not parser.complete:
        for _, value in items:
            if isinstance(value, UploadFile):
                value.file.close()
        raise Problem(400, "The form ends before its closing boundary; send it again.")
    return items


def _sorted(items: list[tuple[str, Any]], folder: Path, limits: Limits) -> Upload:
    paths, names, fields = list[Path](), list[str](), dict[str, str]()
    for field, value in items:
        if isinstance(value, UploadFile) != (field == "sources"):
            what = "a file, not text" if field == "sources" else "text, not a file"
            raise Problem(422, f"The field {field[:_LONGEST_NAME]!r} must be {what}; send the images as `sources`.")
        if isinstance(value, UploadFile):
            given = value.filename or ""
            name, ending = _shown(given, len(paths) + 1), given[len(stem(given)) :].lower()
            paths.append(folder / f"{len(paths) + 1}{ending}")
            names.append(name if name not in names else f"{name} (source {len(names) + 1})")
        elif field in fields:
            raise Problem(422, f"The field {field[:_LONGEST_NAME]!r} was sent twice; send it once.")
        else:
            fields[field] = value
    if not 1 <= len(paths) <= limits.sources:  # one file may hold two
        raise Problem(422, f"Fusion takes two to {limits.sources} sources, not {len(paths)}.")
    return Upload(paths, names, fields)


def _shown(name: str, number: int) -> str:
    """The last part of a client's path, shortened if it is long; "Source N" if it is empty or unprintable."""
    name = name.replace("\\", "/").rpartition("/")[2].strip()
    if not name or not name.isprintable():
        return f"Source {number}"
    return name if len(name) <= _LONGEST_NAME else f"{name[:40]}...{name[-36:]}"


def _save(upload: UploadFile, path: Path) -> None:
    with open(path, "xb") as file:
        shutil.copyfileobj(upload.file, file, 2**20)


def _claimed(path: Path, name: str) -> int:
    with open(path, "rb") as file:
        head = file.read(352)
    if not head:
        raise InputError(f"{name} is empty (0 bytes); save or copy it again.")
    if head[128:132] == b"DICM":
        return _claimed_dicom(path, name)
    with one_sentence(name):
        if path.name.endswith((".nii", ".nii.gz")):
            return _claimed_nifti(path, name)
        if head.startswith(TIFF_MAGIC):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                return int(page.imagewidth * page.imagelength)
        try:
            with PIL.Image.open(path, formats=("PNG", "JPEG", "BMP", "GIF", "WEBP")) as image:
                own = int(image.width * image.height)
            return max(own, _claimed_inside(path)) if is_radiometric(path) else own
        except PIL.Image.DecompressionBombError as error:
            raise Problem(413, f"{name} has more pixels than this server accepts; send a smaller image.") from error
        except PIL.UnidentifiedImageError as error:
            if head.startswith(tuple(magic for magic, _ in OPENERS)):
                raise  # a damaged image
            raise Problem(
                415, f"{name} is not an image that can be read; use PNG, JPEG, BMP, TIFF, DICOM or NIfTI."
            ) from error


def _claimed_inside(path: Path) -> int:
    """Pixels of the largest image inside a radiometric JPEG, whose photo may be larger than the JPEG image itself."""
    if path.stat().st_size > thermal.LARGEST:
        return 0  # will be refused before it is decoded
    data, flir, at = path.read_bytes(), bytearray(), 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        if data[at : at + 2] == thermal.MARKER and data[at + 4 : at + 9] == b"FLIR\0":
            flir += data[at + 12 : end]  # after "FLIR", a zero byte, the part's number and the number of parts
        at = end
    starts = sorted(match.start() for begin in _EMBEDDED for match in re.finditer(re.escape(begin), flir))
    if len(starts) > _MOST_EMBEDDED:
        raise InputError(f"{path} holds more images than any camera stores in one file; save or copy it again.")
    largest = 0
    for start in starts:
        inside = io.BytesIO(flir[start:])
        with contextlib.suppress(OSError, ValueError), PIL.Image.open(inside, formats=("PNG", "JPEG")) as image:
            largest = max(largest, image.width * image.height)  # else not an image, despite its first bytes
    return largest


def _claimed_nifti(path: Path, name: str) -> int:
    import gzip

    from ddfm.io.nifti import read_header

    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as file:
        return math.prod(read_header(file.read(540), name).get_data_shape())


def _claimed_dicom(path: Path, name: str) -> int:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"{name} needs the package pydicom; run `pip install ddfm[medical]`.") from error
    with one_sentence(name):
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == _DEFLATED:
            raise Problem(415, f"{name} is a deflated DICOM file; save it uncompressed.")
        tags = ["Rows", "Columns", "NumberOfFrames"]
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        return math.prod(int(header.get(tag) or 1) for tag in tags)
