"""Reads and writes NIfTI-1 and NIfTI-2 (.nii, .nii.gz) with nibabel.

The third axis is slices, the second rows, the first columns; nothing is flipped. The affine is the sform's, or else
the qform's; a header with neither gives the voxel size but no world coordinates.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from typing import Any

import numpy as np

from ddfm.errors import InputError
from ddfm.io.codecs import MAX_PIXELS
from ddfm.io.grid import RAS_FROM_LPS, Grid, problem
from ddfm.io.images import Image
from ddfm.io.volume import Volume

MAX_OFFSET = 2**24  # bytes before the voxels: the header and its extensions
CHUNK = 2**22
IDENTIFYING = ("descrip", "aux_file", "db_name", "intent_name")  # free text


def decode(data: bytes, name: str) -> Volume:
    """The bytes of a NIfTI file. Raises InputError, and whatever nibabel does on a damaged one."""
    packed = data.startswith(b"\x1f\x8b")
    unpacked: Any = gzip.GzipFile(fileobj=io.BytesIO(data)) if packed else io.BytesIO(data)
    header = read_header(unpacked.read(540), name)
    shape = header.get_data_shape()
    _check_size(shape, name)
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif":
        raise InputError(f"{name} holds {dtype} values; save it as one number per voxel.")
    offset = header.get_data_offset()
    if not 0 <= offset <= MAX_OFFSET:
        raise InputError(f"{name} claims that its voxels begin at byte {offset}; save it again.")
    needed = offset + math.prod(shape) * dtype.itemsize
    # Nothing beyond the size in the header is unpacked, as a defence against decompression bombs.
    if packed and not _reaches(data, needed):
        raise EOFError
    unpacked.seek(0)
    values = np.asarray(header.data_from_fileobj(io.BytesIO(unpacked.read(needed))))
    values = values.reshape((*shape, 1)[:3])
    findings: list[str] = []
    grid = _grid(header, values.shape, name, findings)
    return Volume(np.ascontiguousarray(values.transpose(2, 1, 0)), header, grid, findings)


def read_header(start: bytes, name: str) -> Any:
    """nibabel's header of a file that starts with these 540 bytes or fewer, without extensions. Raises InputError."""
    import nibabel

    if _kind(start, name) == 1:
        return nibabel.Nifti1Header(start[:348], check=False)  # type: ignore[no-untyped-call]
    return nibabel.Nifti2Header(start, check=False)  # type: ignore[no-untyped-call]


def encode(name: str, steps: np.ndarray, slope: float, like: Image, compress: bool, anonymise: bool) -> bytes:
    """A NIfTI file of 16-bit numbers (S, H, W), `slope` apart from `like.low` on, where `like` lies."""
    head, order = encode_header(name, steps.shape, slope, like, anonymise)
    numbers = steps.astype(order + "u2", copy=False)
    data = b"".join((head, numbers.data))  # (S, H, W) is (X, Y, Z) in Fortran's order
    return gzip.compress(data, 6, mtime=0) if compress else data


def encode_header(
    name: str, shape: tuple[int, ...], slope: float, like: Image, anonymise: bool = False
) -> tuple[bytes, str]:
    """(all bytes before the voxels, the byte order of the voxels).

    The header is that of `like` if it is a NIfTI file that was not resampled, else a new one. anonymise:
    without free text. Raises InputError.
    """
    header = _header(shape, like, name)
    if anonymise:
        for field in IDENTIFYING:
            header[field] = b""
    # Header and voxels are assembled here, because nibabel's writer would choose its own scale.
    offset = 544 if header["sizeof_hdr"] == 540 else 352
    header.set_data_dtype(np.uint16)
    header.set_slope_inter(slope, like.low)
    header["cal_min"] = header["cal_max"] = 0  # the display window of the source, not of the result
    header["vox_offset"], header["magic"] = offset, header.single_magic
    return header.binaryblock.ljust(offset, b"\0"), header.endianness  # the four zeros after it: no extensions


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a name asks for compression."""
    return os.fspath(path).lower().endswith(".gz")


def _kind(start: bytes, name: str) -> int:
    """1 or 2, the version. `start` is the file's first 540 bytes or fewer."""
    for version, size, at in ((1, 348, 344), (2, 540, 4)):
        if len(start) >= size and start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            magic = start[at : at + 3]
            if magic == f"n+{version}".encode():
                return version
            if magic == f"ni{version}".encode():
                raise InputError(f"{name} is the header of a pair of files; save the volume as one .nii file.")
    raise InputError(f"{name} is not a NIfTI file, or a damaged one; save or copy it again.")


def _reaches(data: bytes, needed: int) -> bool:
    """Whether gzipped data unpacks to at least this many bytes; keeps only a chunk of them in memory."""
    if needed > 1032 * len(data):  # the most that deflate achieves
        return False
    if needed < 2**26:
        return True  # left to the decoder
    unpacked, length = gzip.GzipFile(fileobj=io.BytesIO(data)), 0
    try:
        while length < needed and (chunk := unpacked.read(min(CHUNK, needed - length))):
            length += len(chunk)
    except (EOFError, OSError, zlib.error):
        return False
    return length >= needed


def _check_size(shape: tuple[int, ...], name: str) -> None:
    if not len(shape) >= 2 or any(n > 1 for n in shape[3:]) or min(shape) < 1:
        raise InputError(f"{name} has the shape {shape}; save one volume with at most three axes.")
    if math.prod(shape) > MAX_PIXELS:
        raise InputError(f"{name} has more than 2^28 voxels; cut it into smaller volumes.")


def _grid(header: Any, size: tuple[int, ...], name: str, findings: list[str]) -> Grid | None:
    """The grid of the voxels. An invalid affine is refused, since any replacement would be a guess."""
    width, height, depth = size
    known = {}
    for form in ("sform", "qform"):
        if header[f"{form}_code"] > 0:
            affine = np.asarray(getattr(header, f"get_{form}")(), np.float64)
            known[form] = RAS_FROM_LPS @ affine * _millimetres(header)
            known[form][3] = 0, 0, 0, 1
    if not known:
        spacing = np.abs(np.array(header.get_zooms()[:3] + (1.0,) * 3, np.float64)[:3]) * _millimetres(header)
        if not np.isfinite(spacing).all() or not spacing.all():
            return None
        return Grid((depth, height, width), np.diag([*spacing, 1.0]), placed=False)
    form = next(iter(known))
    if wrong := problem(known[form]):
        raise InputError(f"The affine of {name} (its {form}) {wrong}; write a valid one.")
    grid = Grid((depth, height, width), known[form])
    if len(known) > 1 and not problem(known["qform"]):
        corners = grid.corners()
        apart = np.linalg.norm((known["sform"] - known["qform"]) @ corners, axis=0).max()
        if apart > max(grid.spacing):
            findings.append(f"{name} has an sform and a qform that differ by up to {apart:.3g} mm; the sform is used.")
    return grid


def _millimetres(header: Any) -> float:
    """The header's unit of length in millimetres."""
    return {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)


def _header(shape: tuple[int, ...], like: Image, name: str) -> Any:
    import nibabel

    depth, height, width = shape
    own = not hasattr(like.header, "PixelData")
    if own and _is_own_grid(like):
        header = like.header.copy()
        size = header.get_data_shape()
        if (width, height, depth) != (*size, 1)[:3]:
            raise InputError(f"Cannot write {name}: its shape is {shape[::-1]}, that of its source {size}.")
        return header
    if like.grid is None or not like.grid.placed:
        raise InputError(f"Cannot write {name}: its geometry has to come from a source with world coordinates.")
    if like.grid.shape != shape:
        raise InputError(f"Cannot write {name}: its shape is {shape[::-1]}, that of its source {like.grid.size}.")
    header = nibabel.Nifti1Header() if max(shape) < 2**15 else nibabel.Nifti2Header()  # type: ignore[no-untyped-call]
    header.set_data_shape((width, height, depth))  # type: ignore[no-untyped-call]
    affine = RAS_FROM_LPS @ like.grid.affine
    header.set_sform(affine, code=1)  # type: ignore[no-untyped-call]
    directions = affine[:3, :3] / like.grid.spacing
    right_angled = np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)
    header.set_qform(affine, code=1 if right_angled else 0, strip_shears=True)  # type: ignore[no-untyped-call]
    header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    return header


def _is_own_grid(like: Image) -> bool:
    """Whether a NIfTI source is still on the grid in its header, not resampled into another frame."""
    size = (*like.header.get_data_shape(), 1)[:3]
    if like.grid is None or not like.grid.placed:
        return True
    own = _grid(like.header, size, "", [])
    return own is not None and own.is_same(like.grid)
