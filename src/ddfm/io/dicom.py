"""Reads DICOM with pydicom: one image, a multi-frame image, or a series of images in a folder.

Values are read in the file's unit (Hounsfield units, Bq/ml; SUV if the header suffices), padding is recognised,
and frames are sorted along their normal.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddfm.errors import InputError
from ddfm.io.codecs import MAX_PIXELS, check_scans, one_sentence
from ddfm.io.dicom_geometry import Frames, arranged, frames_of
from ddfm.io.files import open_file, quoted
from ddfm.io.suv import standardised
from ddfm.io.volume import Volume

DEFLATED = "1.2.840.10008.1.2.1.99"
MAX_INFLATED = 2**29  # bytes: a deflated file that holds more is refused as soon as this is exceeded
CHUNK = 2**22
PLACED = ("SeriesInstanceUID", "NumberOfFrames", "ImagePositionPatient")
HEADER_ONLY = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(data: bytes) -> bool:
    """Whether these are the bytes of a DICOM file."""
    return data[128:132] == b"DICM"


def decode(data: bytes, name: str) -> Volume:
    """Decode one file. Raises InputError, and for a damaged file whatever pydicom raises."""
    dataset = parse(data, name)
    check(dataset, name)
    values, void = _values(dataset, name)
    findings: list[str] = []
    frames, dataset.SourceImageSequence = frames_of(dataset, len(values), name), _references([dataset])
    order, grid = arranged(frames, values.shape, name, findings)
    if order is not None:
        values, void = values[order], void if void is None else void[order]
    return _volume(dataset, values, void, grid, findings, name)


def decode_series(files: Sequence[tuple[str, bytes]], name: str) -> Volume:
    """Decode the images of a series, each (name, bytes), in any order; `name` is the folder's. Raises InputError."""
    datasets = [parse(data, file) for file, data in files]
    first = datasets[0]
    for (file, _), dataset in zip(files, datasets, strict=True):
        check(dataset, file)
        if (dataset.Rows, dataset.Columns) != (first.Rows, first.Columns):
            raise InputError(f"{name} holds images of different sizes; put one series in a folder of its own.")
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{name} holds several multi-frame images; give one of the files.")
    for what, keyword in (("patients", "PatientID"), ("kinds", "Modality"), ("kinds", "PhotometricInterpretation")):
        if len({str(dataset.get(keyword) or "") for dataset in datasets} - {""}) > 1:
            raise InputError(f"{name} holds images of different {what} in one series; put each in its own folder.")
    if len(datasets) * first.Rows * first.Columns > MAX_PIXELS:
        raise InputError(f"{name} has more than 2^28 voxels; cut it into smaller volumes.")
    findings: list[str] = []
    places = [frames_of(dataset, 1, file) for (file, _), dataset in zip(files, datasets, strict=True)]
    if any(place is None or not place.placed for place in places):
        raise InputError(f"{name} has images without a position, which cannot be sorted; give one of the files.")
    place = Frames.joined([p for p in places if p is not None], name)
    order, grid = arranged(place, (len(datasets), first.Rows, first.Columns), name, findings)
    datasets = [datasets[k] for k in order] if order is not None else datasets
    values = np.empty((len(datasets), first.Rows, first.Columns), np.float32)
    voids = np.zeros(values.shape, bool)
    for k, dataset in enumerate(datasets):
        one, void = _values(dataset, name)
        values[k] = one[0]
        if void is not None:
            voids[k] = void[0]
    header = datasets[0]
    header.SourceImageSequence = _references(datasets)
    return _volume(header, values, voids if voids.any() else None, grid, findings, name)


def slices_among(paths: Iterable[Path]) -> list[Path]:
    """The files that are slices of a volume: single-frame images of one series at different positions.

    Empty without pydicom. Files that cannot be read are left out; reading them later reports why.
    """
    series: dict[str, dict[Path, tuple[str, ...]]] = {}
    for path in paths:
        with contextlib.suppress(InputError), open_file(path) as file, one_sentence(quoted(path)):
            if not is_dicom(file.read(132)) or _meta(file).get("TransferSyntaxUID") == DEFLATED:
                continue
            import pydicom

            file.seek(0)
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*PLACED])
            uid, frames, place = (header.get(keyword) for keyword in PLACED)
            if uid and place and int(frames or 1) == 1:
                series.setdefault(str(uid), {})[path] = tuple(map(str, place))
    return [path for places in series.values() if len(set(places.values())) > 1 for path in places]


def parse(data: bytes, name: str, stop_before_pixels: bool = False) -> Any:
    """The dataset in a file; at most `MAX_INFLATED` bytes of a deflated file are inflated. Raises InputError."""
    import pydicom

    if _meta(io.BytesIO(data)).get("TransferSyntaxUID") == DEFLATED:
        data = _inflated(data, name)
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels)


def check(dataset: Any, name: str) -> None:
    """Raise InputError unless the dataset holds a grey image of a supported size and encoding."""
    if not any(keyword in dataset for keyword in HEADER_ONLY):
        raise InputError(f"{name} is a DICOM file without an image; choose another one.")
    rows, columns, frames = (int(dataset.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames"))
    if rows * columns * frames > MAX_PIXELS:
        raise InputError(f"{name} has more than 2^28 pixels; cut it into smaller images.")
    kind = dataset.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"{name} is not monochrome but {kind}; save it as a monochrome DICOM or as PNG.")
    _check_decoder(dataset.file_meta.TransferSyntaxUID, name)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        check_scans(dataset.PixelData, name, frames)


def patient(dataset: Any) -> str:
    """The patient's ID in the header; "" if there is none."""
    return str(dataset.get("PatientID") or "").strip()


def _meta(file: BinaryIO) -> Any:
    """The file meta information, group 2, always explicit little endian; leaves the file positioned after it."""
    from pydicom.filereader import read_dataset

    file.seek(132)
    return read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)


def _inflated(data: bytes, name: str) -> bytes:
    """A deflated file (PS3.5, A.5: all after the file meta information) as explicit little endian."""
    import pydicom
    from pydicom.filebase import DicomIO
    from pydicom.filewriter import write_file_meta_info

    file = io.BytesIO(data)
    meta = pydicom.dataset.FileMetaDataset(_meta(file))
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    out = io.BytesIO(bytes(128) + b"DICM")
    out.seek(0, io.SEEK_END)
    write_file_meta_info(DicomIO(out), meta, enforce_standard=False)
    inflate, packed, length = zlib.decompressobj(-zlib.MAX_WBITS), data[file.tell() :], 0
    while packed and not inflate.eof:
        chunk = inflate.decompress(packed, CHUNK)
        packed, length = inflate.unconsumed_tail, length + len(chunk)
        if length > MAX_INFLATED:
            raise InputError(f"{name} holds more than 512 MiB when inflated; save it without deflation.")
        out.write(chunk)
    out.write(inflate.flush())
    return out.getvalue()


def _check_decoder(syntax: Any, name: str) -> None:
    """Name the packages that a compressed image needs, before pydicom fails."""
    from pydicom.pixels import get_decoder

    if not syntax.is_encapsulated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise InputError(
            f"{name} is compressed as {syntax.name}, which cannot be read; save it uncompressed."
        ) from None
    if not decoder.is_available:
        packages = [missing.split(" requires ")[-1] for missing in decoder.missing_dependencies]
        packages = [text.replace("numpy and ", "") for text in packages if not text.startswith("gdcm")]
        install = " or ".join(packages) or "python-gdcm"
        raise InputError(f"{name} is compressed as {syntax.name}; install {install}, or save it uncompressed.")


def _values(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(values (S, H, W) in the file's unit, a mask of padding or None); the dataset's pixel data is removed."""
    from pydicom.pixels import pixel_array

    stored = pixel_array(dataset)
    stored = stored if stored.ndim == 3 else stored[None]
    void = _padding(stored, dataset)
    values = _rescaled(stored, dataset)
    for keyword in HEADER_ONLY:
        if keyword in dataset:
            del dataset[keyword]
    dataset.PixelData = b""
    return values, void


def _padding(stored: np.ndarray, dataset: Any) -> np.ndarray | None:
    """A mask of stored values equal to PixelPaddingValue or in its range (PS3.3, C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None or stored.dtype.kind == "f":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(end) for end in (value, value if limit is None else limit)]
    if dataset.PixelRepresentation == 1:  # with implicit VR these are often read as unsigned
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    void = (stored >= min(ends)) & (stored <= max(ends))
    return void if void.any() else None


def _rescaled(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values in the file's unit. An enhanced multi-frame file has one rescaling for all frames or one each."""
    from pydicom.pixels import apply_modality_lut

    groups = [dataset.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared")]
    each, shared = ([group.get("PixelValueTransformationSequence") for group in some] for some in groups)
    if not any([*each, *shared]):
        return np.asarray(apply_modality_lut(values, dataset))
    rescaled = np.empty(values.shape, np.float64)
    for k, (out, frame) in enumerate(zip(rescaled, values, strict=True)):
        [to_unit] = (each[k] if k < len(each) else None) or shared[0]
        out[:] = frame * float(to_unit.RescaleSlope) + float(to_unit.RescaleIntercept)
    return rescaled


def _volume(
    dataset: Any, values: np.ndarray, void: np.ndarray | None, grid: Any, findings: list[str], name: str
) -> Volume:
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # low values are bright: invert, a series by one map for all
        valid = values if void is None or void.all() else values[~void]
        values = float(valid.max()) + float(valid.min()) - values.astype(np.float64)
    modality = str(dataset.get("Modality") or "")
    if modality == "PT":
        factor, finding = standardised(dataset, name)
        findings.append(finding)
        if factor != 1:
            values = values * np.float32(factor)
    if void is not None:
        findings.append(f"{name} has padding in {void.mean():.0%} of its pixels, which are treated as background.")
    return Volume(values, dataset, grid, findings, void, modality)


def _references(datasets: Sequence[Any]) -> list[Any]:
    """References to these images for a result derived from them; the header keeps them in SourceImageSequence."""
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    purpose, items = codes.cid7202.SourceImageForImageProcessingOperation, []
    for dataset in datasets:
        item = Dataset()
        item.ReferencedSOPClassUID = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        item.ReferencedSOPInstanceUID = dataset.get("SOPInstanceUID") or ""
        item.PurposeOfReferenceCodeSequence = [coded(*purpose[:3])]
        if item.ReferencedSOPClassUID and item.ReferencedSOPInstanceUID:
            items.append(item)
    return items


def coded(value: str, scheme: str, meaning: str) -> Any:
    """A concept as the item of a code sequence (PS3.3, 8.8)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
