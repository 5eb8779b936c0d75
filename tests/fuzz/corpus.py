"""Small files of real encoders, for mutation; and JSON and CSV as the program reads them."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator

import cv2
import nibabel
import numpy as np
import PIL.Image
import pydicom
import tifffile
from conftest import DATA, made_image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

GREY = made_image(20, 18, seed=1)
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)
DEEP = GREY.astype(np.uint16) * 257


def pil(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def dicom(syntax: str = ExplicitVRLittleEndian, frames: int = 0, **changes: object) -> bytes:
    """A CT slice, or `frames` of them."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID, file.Modality, file.PatientID = (
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.3",
        "CT",
        "7",
    )
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 20, 18, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.PixelSpacing, file.SliceThickness, file.RescaleSlope, file.RescaleIntercept = [2, 3], 4, 1, -1024
    file.ImageOrientationPatient, file.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    if frames:
        file.NumberOfFrames = frames
    file.PixelData = (np.stack([DEEP] * frames) if frames else DEEP).tobytes()
    for name, value in changes.items():
        setattr(file, name, value)
    if syntax == RLELossless:
        file.compress(RLELossless)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def nifti(shape: tuple[int, ...] = (18, 20, 3), dtype: type = np.int16, kind: type = nibabel.Nifti1Image) -> bytes:
    values = np.resize(GREY, shape).astype(dtype)
    return kind(values, np.diag([2.0, 3.0, 4.0, 1.0])).to_bytes()


def _exif(image: PIL.Image.Image) -> PIL.Image.Exif:
    exif = image.getexif()
    exif[274] = 6
    return exif


def _png() -> Iterator[bytes]:
    grey, rgb = PIL.Image.fromarray(GREY), PIL.Image.fromarray(RGB)
    yield pil(grey, "PNG")
    yield pil(rgb, "PNG", dpi=(72, 72))
    yield pil(rgb.convert("RGBA"), "PNG")
    yield pil(rgb.quantize(16), "PNG", transparency=3)
    yield pil(grey.convert("1"), "PNG")
    yield cv2.imencode(".png", DEEP)[1].tobytes()
    yield cv2.imencode(".png", np.stack([DEEP] * 3, -1))[1].tobytes()


def _jpeg() -> Iterator[bytes]:
    grey, rgb = PIL.Image.fromarray(GREY), PIL.Image.fromarray(RGB)
    yield pil(grey, "JPEG")
    yield pil(rgb, "JPEG", quality=95, subsampling=0)
    yield pil(rgb, "JPEG", progressive=True)
    yield pil(rgb, "JPEG", exif=_exif(rgb))
    yield pil(rgb.convert("CMYK"), "JPEG")


def _tiff() -> Iterator[bytes]:
    for values in (GREY, DEEP, RGB, (GREY / 255).astype(np.float32)):
        yield tiff(values)
        yield tiff(values, compression="zlib", tile=(16, 16))
    yield tiff(DEEP, bigtiff=True, byteorder=">")
    yield tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate")
    yield tiff(np.stack([GREY] * 3), photometric="minisblack")
    yield pil(PIL.Image.fromarray(GREY), "TIFF", compression="tiff_lzw")
    yield pil(PIL.Image.fromarray(GREY).convert("1"), "TIFF", compression="group4")


def _others() -> Iterator[bytes]:
    rgb = PIL.Image.fromarray(RGB)
    yield pil(rgb, "BMP")
    yield pil(rgb.quantize(16), "GIF")
    yield pil(rgb.quantize(16), "GIF", save_all=True, append_images=[rgb.quantize(8)])
    yield pil(rgb, "WEBP")
    yield pil(rgb, "WEBP", lossless=True)


def _nifti() -> Iterator[bytes]:
    yield nifti()
    yield nifti((18, 20), np.float32)
    yield nifti((18, 20, 3), np.uint8)
    yield nifti((18, 20, 2, 2), np.float64)
    yield nifti(kind=nibabel.Nifti2Image)
    yield gzip.compress(nifti())


def _dicom() -> Iterator[bytes]:
    yield dicom()
    yield dicom(ImplicitVRLittleEndian)
    yield dicom(DeflatedExplicitVRLittleEndian)
    yield dicom(RLELossless)
    yield dicom(frames=3)
    yield dicom(WindowCenter=[40, 400], WindowWidth=[80, 1500], PixelPaddingValue=0)


FILES: dict[str, tuple[str, list[bytes]]] = {  # kind: (extension, files)
    "png": (".png", list(_png())),
    "jpeg": (".jpg", list(_jpeg())),
    "tiff": (".tif", list(_tiff())),
    "others": (".bmp", list(_others())),
    "nifti": (".nii", list(_nifti())),
    "nifti.gz": (".nii.gz", [gzip.compress(data) if data[:2] != b"\x1f\x8b" else data for data in _nifti()]),
    "dicom": (".dcm", list(_dicom())),
}

MANIFEST = "\n".join(
    json.dumps(line)
    for line in (
        {"ddfm": "0", "settings": {}, "settings_sha256": "x"},
        {
            "name": "a",
            "output": "a.png",
            "sha256": "0",
            "sources": [{"path": "a", "sha256": "0"}],
            "settings": "x",
            "kind": [2, 2, 2, 2],
        },
        {"name": "b", "begun": "b.png"},
        {"name": "c", "error": "It is damaged."},
    )
).encode()
TABLE = (
    'infrared,visible,output\nir/a.png,vi/a.png,\n"ir/b, c.png",vi/b.png,day 1/ü.tif\nir/d.png,vi/d.png,x\n'.encode()
)
CREATE_MODEL = (DATA / "tiny_adm.json").read_bytes()
HOSTILE = [
    "1e30",
    "-1e30",
    "NaN",
    "Infinity",
    "1" + "0" * 400,
    "-1",
    "0",
    '""',
    "null",
    "[]",
    "{}",
    "true",
    "[" * 2000,
    '"' + "9" * 5000 + '"',
]

zlib, pydicom, sys  # noqa: B018  (what encoders need is imported before the clock runs)
