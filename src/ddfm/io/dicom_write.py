"""Writes a fused image as a DICOM file: a new, derived object, composed rather than copied.

It is a Multi-frame Grayscale Word Secondary Capture (PS3.3, A.8.4): its values were not measured by a scanner, so no
modality's object fits. Patient and study come from the source that serves as template; position, orientation and
spacing of each frame from the grid; the sources are referenced. Nothing else is copied from a source: no icon, overlay,
acquisition parameter or private element.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from ddfm.errors import InputError
from ddfm.io.dicom import coded
from ddfm.io.grid import Grid
from ddfm.io.images import Image

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.3"
KEPT = (  # identity: patient, study, frame of reference
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("DeidentificationMethodCodeSequence", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyDescription", "BodyPartExamined", "FrameOfReferenceUID"),
    "PositionReferenceIndicator",
)
EMPTY = (  # required in every image, but may be empty (type 2)
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def encode(
    name: str, steps: np.ndarray | None, slope: float, like: Image, sources: Sequence[Image], anonymise: bool
) -> bytes:
    """The bytes of a file of 16-bit `steps` (S, H, W), meaning `like.low` + `slope` * steps; None: a header alone.

    like: a DICOM image that gives the patient and, by its grid, the geometry. sources: the fused images.
    anonymise: by the basic profile, see `_anonymise`. Raises InputError, and whatever pydicom raises for odd headers.
    """
    import pydicom

    shape = like.pixels.shape if like.pixels.ndim == 3 else (1, *like.pixels.shape)
    if steps is not None and steps.shape != shape:
        raise InputError(f"Cannot write {name}: its shape is {steps.shape}, that of its source {shape}.")
    dataset = _identity(like.header)
    if anonymise:
        _anonymise(dataset)
    else:
        headers = [source.header for source in sources if hasattr(source.header, "PixelData")]
        dataset.SourceImageSequence = [item for header in headers for item in header.get("SourceImageSequence") or []]
    _describe(dataset, like)
    _pixel_module(dataset, shape, slope, like)
    _place(dataset, shape, like, name)
    dataset.PixelData = b"" if steps is None else steps.astype("<u2", copy=False).tobytes()
    dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _identity(source: Any) -> Any:
    """A new dataset with the identity of a source, see `KEPT`."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for keyword in KEPT:
        if keyword in source:
            dataset[keyword] = source[keyword]
    for keyword in EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if not dataset.get("StudyInstanceUID"):
        dataset.StudyInstanceUID = generate_uid()
    return dataset


def _anonymise(dataset: Any) -> None:
    """PS3.15, E.1, basic application confidentiality profile without options, by dicom-anonymizer's table.

    The dataset holds only the identity, see `KEPT`. The table's rules cover one level, so they are applied to the items
    of each sequence separately. The pixels are not examined.
    """
    try:
        from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions
    except ImportError as error:
        raise InputError("Anonymising needs dicom-anonymizer: run `pip install ddfm[medical]`.") from error
    from pydicom.sr.codedict import codes

    def rules(dataset: Any) -> None:
        anonymize_dataset(dataset, base_rules_gen=functools.partial(initialize_actions, "dicomfields_2026c"))
        for element in dataset:
            if element.VR == "SQ":
                for item in element.value:
                    rules(item)

    for keyword in ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"):
        if keyword in dataset:
            del dataset[keyword]
    rules(dataset)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 basic profile"
    profile = codes.cid7050.BasicApplicationConfidentialityProfile
    dataset.DeidentificationMethodCodeSequence = [coded(*profile[:3])]


def _describe(dataset: Any, like: Image) -> None:
    """Mark the image as derived, by this software, with new UIDs: it must never pass for an acquisition."""
    from pydicom.uid import generate_uid

    from ddfm import __version__

    now = datetime.now(timezone.utc)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesNumber, dataset.InstanceNumber = None, "1"
    dataset.SeriesDescription = "DDFM image fusion"
    dataset.DerivationDescription = "Fused from the source images by DDFM; not measured by a scanner"
    # PS3.16 has no code for it; its context group may be extended.
    dataset.DerivationCodeSequence = [coded("FUSION", "99DDFM", "Image fusion")]
    dataset.Manufacturer, dataset.ManufacturerModelName = "DDFM", "ddfm"
    dataset.SoftwareVersions = __version__
    if dataset.get("PatientIdentityRemoved") != "YES":
        dataset.ContentDate, dataset.ContentTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
        dataset.TimezoneOffsetFromUTC = "+0000"
    else:
        dataset.ContentDate = dataset.ContentTime = ""
    burned = str(like.header.get("BurnedInAnnotation") or "")
    original = str((like.header.get("ImageType") or [""])[0]) == "ORIGINAL"
    dataset.BurnedInAnnotation = "NO" if burned == "NO" or (original and burned != "YES") else "YES"
    dataset.LossyImageCompression = "01" if like.header.get("LossyImageCompression") == "01" else "00"


def _pixel_module(dataset: Any, shape: tuple[int, ...], slope: float, like: Image) -> None:
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    # At the root for all frames (PS3.3, C.8.6.3): never in the functional groups of this object.
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = _decimal(slope), _decimal(like.low), "US"
    dataset.WindowCenter = _decimal((like.low + like.high) / 2)
    dataset.WindowWidth = _decimal(like.high - like.low)
    dataset.PresentationLUTShape = "IDENTITY"


def _place(dataset: Any, shape: tuple[int, ...], like: Image, name: str) -> None:
    """Spacing, and for each frame its position and orientation in the patient."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    grid = like.grid
    if shape[0] > 1:
        between = grid.spacing[2] if grid is not None else 1.0
        dataset.FrameIncrementPointer = 0x00182005  # SliceLocationVector
        dataset.SliceLocationVector = [_decimal(k * between) for k in range(shape[0])]
    if grid is None:
        return
    x, y, _ = grid.spacing
    dataset.PixelSpacing = [_decimal(y), _decimal(x)]
    if not grid.placed:
        return
    row, column = grid.affine[:3, 0] / x, grid.affine[:3, 1] / y
    if abs(row @ column) > 1e-3:
        raise InputError(f"Cannot write {name}: DICOM needs rows and columns at right angles; use .nii.gz.")
    if not dataset.get("FrameOfReferenceUID"):
        dataset.FrameOfReferenceUID = generate_uid()
    if "PositionReferenceIndicator" not in dataset:
        dataset.PositionReferenceIndicator = ""
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = dataset.PixelSpacing
    measures.SliceThickness = measures.SpacingBetweenSlices = _decimal(_distance(grid))
    orientation.ImageOrientationPatient = [_decimal(v) for v in (*row, *column)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in range(shape[0]):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [_decimal(v) for v in grid.affine[:3, 3] + k * grid.affine[:3, 2]]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    # The same for readers without support for functional groups.
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = (
        frames[0].PlanePositionSequence[0].ImagePositionPatient,
        orientation.ImageOrientationPatient,
    )
    dataset.SpacingBetweenSlices = measures.SpacingBetweenSlices


def _distance(grid: Grid) -> float:
    """The distance between neighbouring slices along their normal: in a sheared grid less than the length of a step."""
    normal = np.cross(grid.affine[:3, 0], grid.affine[:3, 1])
    return float(abs(grid.affine[:3, 2] @ normal) / np.linalg.norm(normal))


def _decimal(value: float) -> str:
    """A decimal string: at most 16 characters."""
    return f"{value:.9g}"
