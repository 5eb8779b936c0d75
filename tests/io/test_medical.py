"""medical: DICOM and NIfTI there and back, with unit and geometry, and refusals in one sentence."""

import gzip
import io
import tracemalloc

import numpy as np
import pytest

from ddfm.errors import InputError
from ddfm.io import images, medical

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

AFFINE = np.array([[2, 0, 0, -10], [0, 1.5, 0.2, 5], [0, -0.2, 3, 7], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).normal(300, 200, (7, 9, 5)).astype(np.float32)


def dicom(photometric="MONOCHROME2", frames=1):
    """A made CT of 9 rows and 7 columns: stored values, the numbers they mean, the file's bytes."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 9, 7, 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-1024"
    dataset.PixelSpacing, dataset.ImagePositionPatient = ["0.5", "0.6"], ["1", "2", "3"]
    if frames > 1:
        dataset.NumberOfFrames = frames
    stored = np.random.default_rng(1).integers(0, 1000, (frames, 9, 7)).astype("<i2")
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return stored * 2.0 - 1024, buffer.getvalue()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["f4", "i2", ">i2", "u1"])
@pytest.mark.parametrize("shape", [(7, 9, 5), (7, 9), (7, 9, 1), (7, 9, 5, 1)])
def test_nifti_there_and_back(tmp_path, suffix, dtype, shape):
    values = VOXELS.clip(0, 255) if dtype == "u1" else VOXELS
    values = values.reshape(-1)[: np.prod(shape)].reshape(shape).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / f"a{suffix}")
    image = images.read_any(tmp_path / f"a{suffix}")
    slices = values.reshape(7, 9, -1)
    assert image.pixels.shape == ((slices.shape[2], 9, 7) if slices.shape[2] > 1 else (9, 7))
    pixels = image.pixels.reshape(-1, 9, 7)
    assert pixels.min() == 0 and pixels.max() == 1  # one normalisation for the volume
    np.testing.assert_allclose(image.restore(pixels)[0], slices[..., 0].T, atol=1e-3)
    medical.write_volume(tmp_path / f"b{suffix}", pixels, image)
    again = nibabel.load(tmp_path / f"b{suffix}")
    assert again.shape == shape
    np.testing.assert_allclose(again.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(again.get_fdata(), values, atol=0.51 * (image.high - image.low) / 65535 + 1e-4)


def test_one_slice_is_a_picture(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS[..., 0], AFFINE), tmp_path / "a.nii")
    image = images.read(tmp_path / "a.nii")
    assert image.pixels.shape == (9, 7)
    images.write(tmp_path / "b.nii.gz", image.pixels, like=image)
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii.gz").get_fdata(), VOXELS[..., 0], atol=0.02)
    images.write(tmp_path / "c.png", image.pixels, 16, like=image)
    assert images.read(tmp_path / "c.png").pixels.shape == (9, 7)


def test_normalised_by_percentiles_of_the_volume(tmp_path):
    values = np.random.default_rng(0).random((40, 40, 10)).astype(np.float32)
    values[0, 0, 0] = 1e4
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
    assert images.read_any(tmp_path / "a.nii", normalise=True).high < 1.01
    assert images.read_any(tmp_path / "a.nii").high == 1e4


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("frames", [1, 3])
def test_dicom_there_and_back(tmp_path, photometric, frames):
    meant, data = dicom(photometric, frames)
    (tmp_path / "a.dcm").write_bytes(data)
    image = images.read_any(tmp_path / "a.dcm")
    bright = (meant - meant.min()) / np.ptp(meant)
    pixels = image.pixels.reshape(meant.shape)
    np.testing.assert_allclose(pixels, 1 - bright if photometric == "MONOCHROME1" else bright, atol=1e-6)
    assert (image.low, image.high) == (meant.min(), meant.max())
    medical.write_volume(tmp_path / "b.dcm", pixels, image)
    again = images.read_any(tmp_path / "b.dcm")
    np.testing.assert_allclose(again.pixels, image.pixels, atol=1e-5)
    assert (again.low, again.high) == pytest.approx((image.low, image.high), abs=1e-3)
    assert again.header.PixelSpacing == [0.5, 0.6]
    # The result must not pass for the acquisition.
    assert again.header.SOPInstanceUID != image.header.SOPInstanceUID and again.header.ImageType[0] == "DERIVED"


def test_dicom_without_a_suffix(tmp_path):
    (tmp_path / "IM0001").write_bytes(dicom()[1])
    assert images.read(tmp_path / "IM0001").pixels.shape == (9, 7)


def test_refusals(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), tmp_path / "volume.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2, 3)), AFFINE), tmp_path / "series.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4), np.nan), AFFINE), tmp_path / "nan.nii")
    bomb = nibabel.Nifti1Header()
    bomb.set_data_shape((30000, 30000, 30000))
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bomb.binaryblock + bytes(10**6)))
    (tmp_path / "text.nii").write_text("hello")
    (tmp_path / "text.dcm").write_text("hello" * 100)
    for name, word in [
        ("volume.nii", "volume of 5 slices"),
        ("series.nii", "shape"),
        ("nan.nii", "NaN"),
        ("bomb.nii.gz", "voxels"),
        ("text.nii", "damaged"),
        ("text.dcm", "not a DICOM"),
    ]:
        with pytest.raises(InputError, match=word) as error:
            images.read(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)
    like = images.read_any(tmp_path / "volume.nii")
    for name, pixels, source, word in [
        ("a.nii", like.pixels[:2], like, "shape"),
        ("a.dcm", like.pixels, like, "DICOM source"),
        ("a.nii", like.pixels[0], like, "volume"),
    ]:
        with pytest.raises(InputError, match=word):
            medical.write_volume(tmp_path / name, pixels, source)
    with pytest.raises(InputError, match="geometry"):
        images.write(tmp_path / "a.nii", np.zeros((4, 4)))
    with pytest.raises(InputError, match="colour"):
        images.write(tmp_path / "a.nii", np.zeros((4, 4, 3)), like=like)
    assert not (tmp_path / "a.nii").exists() and not (tmp_path / "a.dcm").exists()


@pytest.mark.parametrize("kind", ["dcm", "nii", "nii.gz"])
def test_damage(tmp_path, kind, capfd):
    if kind == "dcm":
        data = dicom()[1]
    else:
        nibabel.save(nibabel.Nifti1Image(VOXELS[..., 0], AFFINE), tmp_path / f"whole.{kind}")
        data = (tmp_path / f"whole.{kind}").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 360), 4):
            broken[at] = rng.integers(256)
        (tmp_path / f"broken.{kind}").write_bytes(broken[: rng.integers(1, 2 * len(data))])
        try:
            pixels = images.read(tmp_path / f"broken.{kind}").pixels
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert pixels.ndim == 2 and pixels.min() >= 0 and pixels.max() <= 1
    assert capfd.readouterr() == ("", "")


def changed(data: bytes, **elements) -> bytes:
    """A DICOM file with some elements set."""
    dataset, buffer = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
    for name, value in elements.items():
        setattr(dataset, name, value)
    pydicom.dcmwrite(buffer, pydicom.filewriter.correct_ambiguous_vr(dataset, True))
    return buffer.getvalue()


def compressed(data: bytes, syntax: str, frame: bytes) -> bytes:
    """A DICOM file whose only frame is these bytes."""
    dataset, buffer = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_in_jpeg_2000_is_read(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    values, data = dicom()
    stored = ((values[0] + 1024) / 2).astype(np.int16)
    packed = imagecodecs.jpeg2k_encode(stored, reversible=True, codecformat="j2k")
    (tmp_path / "a.dcm").write_bytes(compressed(data, pydicom.uid.JPEG2000Lossless, packed))
    image = images.read_any(tmp_path / "a.dcm")
    np.testing.assert_allclose(image.restore(image.pixels), values[0], atol=1e-2)


@pytest.mark.parametrize("syntax", ["JPEGLosslessSV1", "JPEGLSLossless", "HTJ2KLossless", "MPEG2MPML"])
def test_a_decoder_that_is_missing_is_named(tmp_path, syntax):
    uid = getattr(pydicom.uid, syntax)
    missing = syntax != "MPEG2MPML"  # which no package of pydicom's decodes
    if missing and pydicom.pixels.get_decoder(uid).is_available:
        pytest.skip(f"there is a decoder of {uid.name} here")
    (tmp_path / "a.dcm").write_bytes(compressed(dicom()[1], uid, bytes(100)))
    with pytest.raises(InputError, match="install pylibjpeg" if missing else "cannot be read; save it uncompressed"):
        images.read_any(tmp_path / "a.dcm")


def test_padding_is_background_and_said(tmp_path):
    values, data = dicom()
    stored = ((values[0] + 1024) / 2).astype(np.int16)
    stored[:3] = -2000
    padded = changed(data, PixelPaddingValue=-2000, PixelData=stored.tobytes())
    (tmp_path / "a.dcm").write_bytes(padded)
    image = images.read_any(tmp_path / "a.dcm")
    assert not image.pixels[..., :3, :].any() and image.low >= values.min() and "padding" in " ".join(image.findings)


def test_values_beyond_all_units_are_refused(tmp_path):
    values = VOXELS.astype(np.float64)
    values[0, 0, 0] = 1e200
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"1e\+200"):
        images.read_any(tmp_path / "a.nii")


def test_an_extension_of_a_nifti_is_not_unpacked(tmp_path):
    """Its header may claim gigabytes of it, which zeros pack into a thousandth."""
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(4, bytes(2**27)))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="begin at byte"):
            images.read_any(tmp_path / "a.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_nifti_2_and_names_of_two_lines(tmp_path):
    nibabel.save(nibabel.Nifti2Image(VOXELS, AFFINE), tmp_path / "two.nii")
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), tmp_path / "one.nii")
    two, one = (images.read_any(tmp_path / f"{name}.nii") for name in ("two", "one"))
    np.testing.assert_array_equal(two.pixels, one.pixels)
    medical.write_volume(tmp_path / "it's\n.nii.gz", one.pixels, one)
    assert gzip.decompress((tmp_path / "it's\n.nii.gz").read_bytes())[344:347] == b"n+1"


def test_a_derived_dicom_is_an_object_of_its_own(tmp_path):
    """Neither the scanner's class of object nor its thumbnail; the sources are named."""
    thumbnail = pydicom.dataset.Dataset()
    thumbnail.Rows = thumbnail.Columns = 1
    (tmp_path / "a.dcm").write_bytes(changed(dicom()[1], IconImageSequence=[thumbnail]))
    image = images.read_any(tmp_path / "a.dcm")
    medical.write_volume(tmp_path / "f.dcm", image.pixels[None], image, [image, image])
    before, after = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "f.dcm"))
    assert "IconImageSequence" not in after and after.SOPClassUID != before.SOPClassUID
    assert after.SOPInstanceUID != before.SOPInstanceUID and after.ImageType[0] == "DERIVED"
    assert "Fused" in after.DerivationDescription
    assert after.SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID


def test_a_negative_spacing_is_refused(tmp_path):
    """It would mirror the image, and lie about where it is."""
    dataset = pydicom.dcmread(io.BytesIO(dicom()[1]))
    dataset.PixelSpacing = ["-0.5", "0.6"]
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm has a negative pixel spacing"):
        images.read_any(tmp_path / "a.dcm")


def test_a_result_does_not_go_into_the_folder_of_its_series(tmp_path):
    """The folder would hold two series then, and could not be read again."""
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "1.dcm").write_bytes(dicom(frames=5)[1])
    ct = images.read_any(tmp_path / "ct")
    with pytest.raises(InputError, match="its folder is a series"):
        medical.check_target(tmp_path / "ct" / "fused.dcm", ct, [ct])
    medical.check_target(tmp_path / "fused.dcm", ct, [ct])
