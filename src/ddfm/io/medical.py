"""Reads and writes DICOM and NIfTI (`pip install ddfm[medical]`); imported only when such a file is given.

Both formats hold values with a unit (Hounsfield, counts, SUV), so a file is read with its rescaling applied, and one
linear map takes the full volume to [0, 1]; `Image.low` and `high` keep it, and `Image.grid` the world coordinates.
Writing inverts the map: the result has the geometry and unit of the source `like`.

nifti, dicom and dicom_write handle the formats, volume the map, grid the geometry; docs/medical.md gives the rules.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ddfm.errors import InputError
from ddfm.io import dicom, dicom_write, nifti
from ddfm.io.codecs import one_sentence
from ddfm.io.files import MAX_BYTES, listed, quoted, read_bytes, write_bytes
from ddfm.io.images import Image, is_medical
from ddfm.io.volume import WINDOWS, Volume, Window, hounsfield, to_image

__all__ = [
    "WINDOWS",
    "Window",
    "check_grey",
    "check_target",
    "encode",
    "frame_of_reference",
    "from_dicom",
    "hounsfield",
    "lends_geometry",
    "patient",
    "read",
    "read_series",
    "write_volume",
]

MAX_FILES = 10_000


def write_volume(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    like: Image,
    sources: Sequence[Image] = (),
    anonymise: bool = False,
) -> None:
    """Write pixels, [0, 1] (S, H, W), with the geometry and unit of `like`, as scaled 16-bit numbers.

    A DICOM file takes patient and study from `like`, which must be a DICOM image, and references all DICOM `sources`;
    a NIfTI file needs a `like` with world coordinates. `anonymise` applies the PS3.15 basic profile to DICOM and
    removes free text from NIfTI. The file is written atomically. Raises InputError.
    """
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim != 3 or not pixels.size or not np.isfinite(pixels).all():
        raise InputError(f"Cannot write {quoted(path)}: a volume must be finite, (S, H, W), not {pixels.shape}.")
    write_bytes(path, _encode(path, pixels, like, sources, anonymise))


def read(path: Path, data: bytes, normalise: bool, window: Window | None) -> Image:
    """The image in the bytes of a DICOM or NIfTI file: float32 [0, 1], (S, H, W), or (H, W) for a single slice.

    `images.read_any` calls this. normalise: stretch the 0.1 to 99.9 percentiles of the volume. window: for CT, one of
    `WINDOWS` or (low, high) in Hounsfield units. Raises InputError.
    """
    name = quoted(path)
    if dicom.is_dicom(data):
        decode = dicom.decode
    elif is_medical(path) and not _is_dicom(path):
        decode = nifti.decode
    else:
        raise InputError(f"{name} is not a DICOM or NIfTI file; save or copy it again.")
    with _reading(name):
        return to_image(decode(data, name), path, normalise, window)


def read_series(folder: Path, normalise: bool, window: Window | None) -> Image:
    """Read the DICOM series in a folder, as `read` does; `images.read_any` calls this. Raises InputError."""
    name = quoted(folder)
    with _reading(name):
        return to_image(_decode_folder(folder, name), folder, normalise, window)


def encode(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    like: Image | None,
    sources: Sequence[Image] = (),
    anonymise: bool = False,
) -> bytes:
    """The bytes of a DICOM or NIfTI file of one grey image (H, W); `images.write` calls this."""
    check_grey(path, pixels.ndim == 2)
    return _encode(path, pixels[None], like, sources, anonymise)


def check_grey(path: str | os.PathLike[str], grey: bool) -> None:
    """Raise InputError unless the image to write is grey."""
    if not grey:
        raise InputError(f"Cannot write {quoted(path)} in colour; use .png, or fuse with colour grey.")


def check_target(
    path: str | os.PathLike[str], like: Image | None, sources: Sequence[Image] = (), anonymise: bool = False
) -> None:
    """Raise InputError if `write_volume` or `encode` would: builds a trial header, before the long computation."""
    if like is None or not lends_geometry(like, path):
        kind = "DICOM" if _is_dicom(path) else "NIfTI"
        raise InputError(
            f"Cannot write {quoted(path)}: its geometry has to come from a {kind} source; choose another format."
        )
    folders = [source.path for source in sources if source.path is not None and source.path.is_dir()]
    if _is_dicom(path) and os.path.realpath(Path(path).parent) in map(os.path.realpath, folders):
        raise InputError(
            f"Cannot write {quoted(path)}: its folder is a series and one of the sources; choose another folder."
        )
    with _writing(path):
        if _is_dicom(path):
            dicom_write.encode(quoted(path), None, _slope(like), like, sources, anonymise)
        else:
            shape = (like.pixels if like.pixels.ndim == 3 else like.pixels[None]).shape
            nifti.encode_header(quoted(path), shape, _slope(like), like, anonymise)


def lends_geometry(image: Image, path: str | os.PathLike[str]) -> bool:
    """Whether a file at `path` can be written like this image.

    DICOM needs the patient from a DICOM image, NIfTI a NIfTI header or a DICOM image with world coordinates.
    """
    if image.header is None:
        return False
    if _is_dicom(path):
        return from_dicom(image)
    return not from_dicom(image) or (image.grid is not None and image.grid.placed)


def from_dicom(image: Image) -> bool:
    """Whether an image was read from DICOM."""
    return hasattr(image.header, "PixelData")


def patient(image: Image) -> str:
    """The patient ID of a DICOM image; "" if unknown."""
    return dicom.patient(image.header) if from_dicom(image) else ""


def frame_of_reference(image: Image) -> str:
    """The UID of the coordinate system of a DICOM image; "" if unknown."""
    return str(image.header.get("FrameOfReferenceUID") or "") if from_dicom(image) else ""


def _decode_folder(folder: Path, name: str) -> Volume:
    paths = [path for path in listed(folder) if path.is_file() and not path.name.startswith(".")]
    if len(paths) > MAX_FILES:
        raise InputError(f"{name} holds more than {MAX_FILES} files; put one DICOM series in a folder of its own.")
    series: dict[str, list[tuple[str, bytes]]] = {}
    titles, size = {}, 0
    for path in paths:
        with path.open("rb") as file:
            if not dicom.is_dicom(file.read(132)):
                continue
        data = read_bytes(path)
        header = dicom.parse(data, quoted(path), stop_before_pixels=True)
        if "Rows" not in header:  # a DICOMDIR or a report
            continue
        size += len(data)
        if size > MAX_BYTES:
            raise InputError(f"{name} holds more than 4 GiB; cut it into smaller volumes.")
        uid = str(header.get("SeriesInstanceUID") or "")
        series.setdefault(uid, []).append((quoted(path), data))
        titles[uid] = str(header.get("SeriesDescription") or header.get("Modality") or "without a name")
    if not series:
        raise InputError(
            f"{name} is a folder without DICOM images; give the name of an image, or a folder of one series."
        )
    if len(series) > 1:
        found = "; ".join(f"{quoted(titles[uid])} ({len(files)})" for uid, files in series.items())
        raise InputError(f"{name} holds {len(series)} series: {found}; put one of them in a folder of its own.")
    [files] = series.values()
    return dicom.decode(files[0][1], files[0][0]) if len(files) == 1 else dicom.decode_series(files, name)


def _is_dicom(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith((".dcm", ".dicom"))


def _slope(like: Image) -> float:
    return (like.high - like.low) / 65535


def _encode(
    path: str | os.PathLike[str], pixels: np.ndarray, like: Image | None, sources: Sequence[Image], anonymise: bool
) -> bytes:
    check_target(path, like, sources, anonymise)
    assert like is not None
    steps = np.empty(pixels.shape, np.uint16)
    for number, image in zip(steps, pixels, strict=True):  # slice by slice: no float copy of a volume
        number[:] = np.rint(image.clip(0, 1) * np.float32(65535))
    with _writing(path):
        if _is_dicom(path):
            return dicom_write.encode(quoted(path), steps, _slope(like), like, sources or [like], anonymise)
        return nifti.encode(quoted(path), steps, _slope(like), like, nifti.is_packed(path), anonymise)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        import nibabel  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"{name} needs the package {error.name}; run `pip install ddfm[medical]`.") from error
    with one_sentence(name):
        yield


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """As `one_sentence`, for a source whose header cannot be written again."""
    try:
        with one_sentence(quoted(path)):
            yield
    except InputError as error:
        if error.__cause__ is None or isinstance(error.__cause__, (InputError, ImportError, MemoryError)):
            raise
        raise InputError(
            f"Cannot write {quoted(path)}: the header of its source is damaged; choose another format."
        ) from error.__cause__
