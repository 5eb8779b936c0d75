"""Folders of made pairs, and what a batch left in one."""

import io
import json

import numpy as np
from conftest import made_image

from ddfm.io import images
from ddfm.runs.batch import MANIFEST

QUICK = {"num_inference_steps": 3, "likelihood": "paper"}


def make_pair(root, stem, size=(24, 32), suffix=".png", dtype=np.uint8, colour=False):
    """One image for each of root/ir and root/vi."""
    for k, sensor in enumerate(("ir", "vi")):
        (root / sensor).mkdir(exist_ok=True)
        picture = made_image(*size, seed=sum(map(ord, stem)) + k)
        if colour and k:
            picture = np.stack([picture, picture // 2, 255 - picture], axis=-1)
        bits = 8 * np.dtype(dtype).itemsize
        images.write(root / sensor / f"{stem}{suffix}", picture.astype(np.float32) / 255, bits)


def files(folder):
    """{name: bytes} of the images in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".tif")}


def lines(folder):
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def table(tmp_path, text):
    (tmp_path / "scenes.csv").write_text(text, encoding="utf-8")
    return tmp_path / "scenes.csv"


def save_series(folder, stored, uid="1.2.3.9"):
    """A file for each slice of (S, H, W), 3 mm apart, in no order of their names."""
    folder.mkdir(parents=True)
    for k, image in enumerate(stored):
        place = {"ImagePositionPatient": [0, 0, 3 * k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save_dicom(folder / f"IM{7 * k % 10}.dcm", image[None], SeriesInstanceUID=uid, **place)
    return folder


def save_dicom(path, stored, **more):
    """Stored values (S, H, W) of which 2 v - 1024 is meant; more: of the header."""
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"  # multi-frame grayscale word secondary capture
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-1024"
    dataset.PixelSpacing = ["0.5", "0.6"]
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = stored.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return path
