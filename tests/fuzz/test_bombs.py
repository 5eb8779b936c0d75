"""Small files that unfold to gigabytes: refused soon, and below one GiB of memory."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from fuzz.corpus import dicom, nifti
from fuzz.test_fuzz import LARGEST, _memory
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ddfm.errors import InputError
from ddfm.io import images

pytestmark = pytest.mark.slow
GIB = 2**30


def zeros(size, wbits, head=b"", tail=b""):
    """head, `size` zeros and tail, deflated."""
    packer = zlib.compressobj(6, zlib.DEFLATED, wbits)
    parts = [packer.compress(head)]
    parts += [packer.compress(bytes(2**24)) for _ in range(size >> 24)]
    return b"".join([*parts, packer.compress(tail), packer.flush()])


def far_nifti():
    """Pixels that begin behind three GiB of zeros."""
    head = bytearray(nifti()[:352])
    head[108:112] = struct.pack("<f", 3 * GIB)
    return zeros(3 * GIB, 31, bytes(head))


def large_nifti():
    """A volume of 1500 x 1500 x 1500."""
    head = bytearray(nifti()[:352])
    head[40:48] = struct.pack("<4h", 3, 1500, 1500, 1500)
    return zeros(GIB, 31, bytes(head))


def private_dicom():
    """A private element of three GiB before the pixels."""
    whole = dicom(DeflatedExplicitVRLittleEndian)
    length = struct.unpack("<I", whole[140:144])[0]  # of the file's meta information, which is not deflated
    meta, rest = whole[: 144 + length], zlib.decompress(whole[144 + length :], -15)
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 3 * GIB)
    at = rest.index(struct.pack("<HH", 0x0010, 0x0020))  # the patient's number comes next
    return meta + zeros(3 * GIB, -15, rest[:at] + element, rest[at:])


def png(width, height, size):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zeros(size, 15)) + chunk(b"IEND", b"")


BOMBS = {
    "far.nii.gz": far_nifti,
    "large.nii.gz": large_nifti,
    "private.dcm": private_dicom,
    "large.png": lambda: png(60_000, 60_000, 3 * GIB),
    "long.png": lambda: png(20, 20, 3 * GIB),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unfolds_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name]())
    taken, start = _memory(), time.perf_counter()
    outcome = "read"
    try:
        images.read_any(tmp_path / name)
    except InputError as error:
        outcome = str(error)
    grown, seconds = _memory(peak=True) - taken, time.perf_counter() - start
    print(f"{name}: {seconds:.1f} s, {grown / 2**20:.0f} MiB: {outcome}")
    assert outcome != "read" or name == "long.png"
    assert grown < LARGEST


def test_a_sparse_file_is_refused(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(4 * GIB)
    taken = _memory()
    with pytest.raises(InputError):
        images.read_any(tmp_path / "x.png")
    assert _memory(peak=True) - taken < LARGEST
