"""DICOM and NIfTI <-> arrays (`pip install ddfm[medical]`), loaded only when such a file is given.

Both formats hold numbers with a unit (Hounsfield, counts, SUV), so a file is read with its rescaling applied
and one linear map takes the smallest value to 0 and the largest to 1, or, normalised, the 0.1 and 99.9
percentiles: one map for a whole volume, never one a slice. `Image.low` and `high` keep it. Writing inverts
the map: the result is a file of the same geometry in the unit of the source it is written `like`.

Slices of a NIfTI volume run along its third axis, and a row of the image runs along the first; nothing is
flipped.
"""

from __future__ import annotations

import copy
import gzip
import io
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddfm.errors import InputError
from ddfm.io.codecs import MAX_PIXELS, one_sentence
from ddfm.io.images import Image, is_medical, quoted, read_bytes, to_unit, write_bytes


def read_volume(path: str | os.PathLike[str], normalise: bool = False) -> Image:
    """Read a NIfTI or DICOM file as an Image whose pixels are float32 [0, 1] (S, H, W): S slices, one
    normalisation.

    A single slice gives S = 1. Raises InputError.
    """
    return _read(Path(path), read_bytes(path), normalise)


def write_volume(path: str | os.PathLike[str], pixels: np.ndarray, like: Image) -> None:
    """Write pixels, [0, 1] (S, H, W), with the geometry and in the unit of `like`, which `read_volume` gave.

    The file is of the kind that `like` came from, appears whole or not at all, and holds 16-bit numbers with
    a scale. Raises InputError.
    """
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim != 3 or not pixels.size or not np.isfinite(pixels).all():
        raise InputError(f"Cannot write {quoted(path)}: a volume is finite values (S, H, W), not {pixels.shape}.")
    write_bytes(path, _encode(path, pixels, like))


def read(path: Path, data: bytes, normalise: bool = False) -> Image:
    """The bytes of a DICOM or NIfTI file: one slice is an image, pixels (H, W); `images.read_any` calls this."""
    image = _read(path, data, normalise)
    return image if len(image.pixels) > 1 else replace(image, pixels=image.pixels[0])


def encode(path: str | os.PathLike[str], pixels: np.ndarray, like: Image | None) -> bytes:
    """The bytes of a DICOM or NIfTI file of one grey image (H, W); `images.write` calls this."""
    check_grey(path, pixels.ndim == 2)
    return _encode(path, pixels[None], like)


def check_grey(path: str | os.PathLike[str], grey: bool) -> None:
    """Raise InputError unless the image to write is grey."""
    if not grey:
        raise InputError(f"Cannot write {quoted(path)} in colour; use .png, or fuse with colour grey.")


def _read(path: Path, data: bytes, normalise: bool) -> Image:
    name = quoted(path)
    if data[128:132] == b"DICM":
        values, header = _decode_dicom(data, name)
    elif is_medical(path) and not _is_dicom(path):
        values, header = _decode_nifti(data, name)
    else:
        raise InputError(f"{name} is not a DICOM or NIfTI file; save or copy it again.")
    pixels, low, high = to_unit(values, name, normalise, own_units=True)
    return Image(pixels, 32, path, low, high, header=header)


def check_geometry(path: str | os.PathLike[str], like: Image | None) -> None:
    """Raise InputError unless `like` has the geometry for a file at `path`, DICOM or NIfTI."""
    if like is None or not lends_geometry(like, path):
        kind = "DICOM" if _is_dicom(path) else "NIfTI"
        raise InputError(
            f"Cannot write {quoted(path)}: its geometry has to come from a {kind} source; choose another kind of file."
        )


def lends_geometry(image: Image, path: str | os.PathLike[str]) -> bool:
    """Whether an image was read from a file of the kind, DICOM or NIfTI, that `path` names."""
    return image.header is not None and hasattr(image.header, "PixelData") == _is_dicom(path)


def axes(image: Image) -> str | None:
    """Where the axes of a NIfTI file point in the patient, such as "LAS", if its header says so."""
    header = image.header
    if header is None or hasattr(header, "PixelData") or not (header["sform_code"] or header["qform_code"]):
        return None
    import nibabel

    try:
        return "".join(nibabel.aff2axcodes(header.get_best_affine()))
    except Exception:  # an affine that is none: of its many kinds of errors none matters here
        return None


def _is_dicom(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith((".dcm", ".dicom"))


def _encode(path: str | os.PathLike[str], pixels: np.ndarray, like: Image | None) -> bytes:
    check_geometry(path, like)
    assert like is not None
    steps = np.empty(pixels.shape, np.uint16)
    for number, picture in zip(steps, pixels, strict=True):  # slice by slice: no float copy of a volume
        number[:] = np.rint(picture.clip(0, 1) * np.float32(65535))
    slope = (like.high - like.low) / 65535
    return (_encode_dicom if _is_dicom(path) else _encode_nifti)(quoted(path), steps, slope, like)


def _missing(package: str, name: str) -> InputError:
    return InputError(f"{name} needs the package {package}; run `pip install ddfm[medical]`.")


# ---- NIfTI
# ---------------------------------------------------------------------------------------------------------


def _decode_nifti(data: bytes, name: str) -> tuple[np.ndarray, Any]:
    try:
        import nibabel
    except ImportError as error:
        raise _missing("nibabel", name) from error
    with one_sentence(name):
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(b"\x1f\x8b") else io.BytesIO(data)
        header = nibabel.Nifti1Header.from_fileobj(unpacked)
        shape = header.get_data_shape()
        _check_size(shape, name)
        # Not a byte more than the header accounts for is unpacked: a bomb stays packed.
        unpacked.seek(0)
        needed = header.get_data_offset() + math.prod(shape) * header.get_data_dtype().itemsize
        values = np.asarray(nibabel.Nifti1Image.from_bytes(unpacked.read(needed)).dataobj)
    if values.dtype.kind not in "uif":
        raise InputError(f"{name} holds {values.dtype} values; save it as numbers, one a voxel.")
    values = values.reshape((*shape, 1)[:3])
    return np.ascontiguousarray(values.transpose(2, 1, 0)), header


def _check_size(shape: tuple[int, ...], name: str) -> None:
    if not len(shape) >= 2 or any(n > 1 for n in shape[3:]) or min(shape) < 1:
        raise InputError(f"{name} has the shape {shape}; save one volume with at most three axes.")
    if math.prod(shape) > MAX_PIXELS:
        raise InputError(f"{name} has more than 2^28 voxels; cut it into smaller volumes.")


def _encode_nifti(name: str, steps: np.ndarray, slope: float, like: Image) -> bytes:
    header = like.header.copy()
    shape = header.get_data_shape()
    if steps.shape != (*shape, 1)[2::-1]:
        raise InputError(f"Cannot write {name}: it has the shape {steps.shape[::-1]}, its source {shape}.")
    # Header and numbers are put together here: nibabel's own writer would choose a scale of its own.
    offset = 352
    header.set_data_dtype(np.uint16)
    header.set_slope_inter(slope, like.low)
    header["cal_min"] = header["cal_max"] = 0  # the display window of the source, not of the result
    header["vox_offset"], header["magic"] = offset, b"n+1"
    head = header.binaryblock.ljust(offset, b"\0")  # the four zeros behind it: no extensions
    numbers = steps.astype(header.endianness + "u2", copy=False)
    data = b"".join((head, numbers.data))  # (S, H, W) is (X, Y, Z) in Fortran's order
    return gzip.compress(data, 6, mtime=0) if name.rstrip("'").lower().endswith(".gz") else data


# ---- DICOM
# ---------------------------------------------------------------------------------------------------------


def _decode_dicom(data: bytes, name: str) -> tuple[np.ndarray, Any]:
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise _missing("pydicom", name) from error
    with one_sentence(name):
        dataset = pydicom.dcmread(io.BytesIO(data))
        rows, columns, frames = (int(dataset.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames"))
        if rows * columns * frames > MAX_PIXELS:
            raise InputError(f"{name} has more than 2^28 pixels; cut it into smaller images.")
        if "PixelData" not in dataset:
            raise InputError(f"{name} is a DICOM file without an image; choose another one.")
        kind = dataset.PhotometricInterpretation
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise InputError(f"{name} is a {kind} image; save it as a monochrome DICOM or as PNG.")
        values = _rescaled(pixel_array(dataset), dataset)
        dataset.PixelData = b""  # a header from here on: what it held is in the values
    if kind == "MONOCHROME1":  # low values are bright
        values = values.max() + values.min() - values.astype(np.float64)
    return (values if values.ndim == 3 else values[None]), dataset


def _rescaled(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values in the file's unit. An enhanced multi-frame file keeps a rescaling for all frames or for each."""
    from pydicom.pixels import apply_modality_lut

    groups = [dataset.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared")]
    each, shared = ([group.get("PixelValueTransformationSequence") for group in some] for some in groups)
    if not any([*each, *shared]):
        return np.asarray(apply_modality_lut(values, dataset))
    rescaled = np.empty(values.shape, np.float64)
    for k, (out, frame) in enumerate(zip(*(x if x.ndim == 3 else x[None] for x in (rescaled, values)), strict=True)):
        [to_unit] = (each[k] if k < len(each) else None) or shared[0]
        out[:] = frame * float(to_unit.RescaleSlope) + float(to_unit.RescaleIntercept)
    return rescaled


def _rescale_groups(dataset: Any, slope: str, intercept: str) -> None:
    """One rescaling for all frames of an enhanced file, in place of those it has; nothing in other files."""
    from pydicom.dataset import Dataset

    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*shared, *(dataset.get("PerFrameFunctionalGroupsSequence") or [])]:
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if keyword in group:
                delattr(group, keyword)
    for group in shared:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "US"
        group.PixelValueTransformationSequence = [item]


def _encode_dicom(name: str, steps: np.ndarray, slope: float, like: Image) -> bytes:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    source = like.header
    if steps.shape[1:] != (source.Rows, source.Columns) or len(steps) != int(source.get("NumberOfFrames") or 1):
        raise InputError(f"Cannot write {name}: it has the shape {steps.shape}, its source another one.")
    dataset = copy.deepcopy(source)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # A derived image with an identity of its own: it must never pass for the acquisition.
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesDescription = "DDFM fusion"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{like.low:.10g}"
    dataset.WindowCenter = f"{(like.low + like.high) / 2:.10g}"
    dataset.WindowWidth = f"{like.high - like.low:.10g}"
    for keyword in (
        "ModalityLUTSequence",
        "VOILUTSequence",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
    ):
        if keyword in dataset:
            delattr(dataset, keyword)
    _rescale_groups(dataset, dataset.RescaleSlope, dataset.RescaleIntercept)
    dataset.PixelData = steps.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()
