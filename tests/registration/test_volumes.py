"""volumes: phantoms on any two grids, written as DICOM series and NIfTI, come to lie where they belong."""

import io

import numpy as np
import pytest

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.grid import RAS_FROM_LPS, Grid
from ddfm.registration import volumes
from ddfm.runs.scene import Scene

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

LANDMARKS = np.array([[0, 0, 0], [14, 3, -6], [-12, 10, 8], [5, -15, 10], [-8, -9, -11]], float)  # LPS mm
WEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6)


def turned(x, y, z):
    out = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[a, a], step[b, b], step[a, b], step[b, a] = c, c, -s, s
        out = step @ out
    return out


def grid(shape, spacing, turn=(0, 0, 0), centre=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = turned(*turn) * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return Grid(shape, affine)


def phantom(at):
    """Blobs of 4 mm at the landmarks, in 0..1000, sampled at the voxels of a grid."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in at.shape), indexing="ij")[::-1], -1)
    world = index @ at.affine[:3, :3].T + at.affine[:3, 3]
    blobs = [w * np.exp(-((world - p) ** 2).sum(-1) / (2 * 4.0**2)) for w, p in zip(WEIGHTS, LANDMARKS, strict=True)]
    return np.rint(1000 * np.sum(blobs, axis=0)).astype(np.int16)


def save_nifti(path, at, values=None):
    values = phantom(at) if values is None else values
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), RAS_FROM_LPS @ at.affine), path)
    return path


def save_series(folder, at, values=None, patient="p1", frame="1.2.3.4", **more):
    folder.mkdir()
    values = phantom(at) if values is None else values
    for k in np.random.default_rng(0).permutation(len(values)):  # in no order
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{k + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality = "1.2.9", "1.2.8", "CT"
        one.PatientID, one.PatientName, one.FrameOfReferenceUID = patient, "Doe^Jane", frame
        one.Rows, one.Columns = values.shape[1:]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        x, y, _ = at.spacing
        one.PixelSpacing = [f"{y:.9g}", f"{x:.9g}"]
        cosines = (*(at.affine[:3, 0] / x), *(at.affine[:3, 1] / y))
        one.ImageOrientationPatient = [f"{v:.9g}" for v in cosines]
        one.ImagePositionPatient = [f"{v:.9g}" for v in at.affine[:3, 3] + k * at.affine[:3, 2]]
        for keyword, value in more.items():
            setattr(one, keyword, value)
        one.PixelData = values[k].astype("<i2").tobytes()
        one["PixelData"].VR = "OW"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, one, enforce_file_format=True)
        (folder / f"IM{k:03}").write_bytes(buffer.getvalue())
    return folder


def found(pixels, at):
    """World coordinates of the blobs in an array on a grid: centroids around the brightest voxel near each."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in at.shape), indexing="ij")[::-1], -1)
    world = index @ at.affine[:3, :3].T + at.affine[:3, 3]
    near = [np.linalg.norm(world - p, axis=-1) < 7 for p in LANDMARKS]
    return np.array([(world[m] * pixels[m][:, None] ** 2).sum(0) / (pixels[m] ** 2).sum() for m in near])


FRAME = grid((28, 40, 44), (1.2, 1.2, 1.5), (3, -4, 10), (1, 0, -1))
OTHERS = [
    grid((30, 44, 46), (1.1, 1.3, 1.4), (-12, 6, 35), (2, -3, 1)),  # rotated, anisotropic, shifted
    grid((44, 46, 46), (1.0, 1.0, 1.0), (90, 0, 0)),  # coronal
    grid((24, 90, 90), (0.5, 0.5, 1.8)),  # finer in the plane
]


@pytest.mark.parametrize("kinds", ["nn", "nd", "dn", "dd"])
@pytest.mark.parametrize("other", range(len(OTHERS)))
def test_landmarks_within_half_a_voxel(tmp_path, kinds, other):
    save = {
        "n": lambda name, at: save_nifti(tmp_path / f"{name}.nii.gz", at),
        "d": lambda name, at: save_series(tmp_path / name, at),
    }
    paths = [save[kinds[0]]("frame", FRAME), save[kinds[1]]("moving", OTHERS[other])]
    scene = Scene.read(paths)
    fixed, moving = scene.sources
    assert moving.pixels.shape == FRAME.shape and moving.grid.is_same(FRAME)
    off = (found(moving.pixels, FRAME) - found(fixed.pixels, FRAME)) / FRAME.spacing
    assert np.abs(off).max() < 0.5, np.abs(off).max()
    assert any("resampled into the frame" in said for said in scene.findings)


def test_a_ct_and_its_own_conversion_lie_the_same_way_up(tmp_path):
    at = grid((8, 20, 24), (1, 1, 3))
    flipped = Grid(at.shape, at.affine @ np.array([[1, 0, 0, 0], [0, -1, 0, 19], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    values = phantom(at)
    ct = save_series(tmp_path / "ct", at, values)
    scene = Scene.read([ct, save_nifti(tmp_path / "ct.nii.gz", flipped, np.ascontiguousarray(values[:, ::-1]))])
    np.testing.assert_array_equal(scene.sources[1].pixels, scene.sources[0].pixels)
    assert any("reordered" in said for said in scene.findings)


@pytest.mark.parametrize("name", ["f.nii.gz", "f.dcm"])
def test_the_result_lies_where_the_frame_does(tmp_path, name):
    scene = Scene.read([save_series(tmp_path / "ct", FRAME), save_nifti(tmp_path / "pet.nii", OTHERS[0])])
    scene.check_target(tmp_path / name)
    scene.write(tmp_path / name, scene.sources[0].pixels)
    image = sitk.ReadImage(str(tmp_path / name))  # what 3D Slicer reads with
    np.testing.assert_allclose(image.GetOrigin(), FRAME.affine[:3, 3], atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing(), FRAME.spacing, atol=1e-4)
    cosines = np.array(image.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(cosines, FRAME.affine[:3, :3] / FRAME.spacing, atol=1e-4)
    assert images.read_any(tmp_path / name).grid.is_same(FRAME)


def test_rigid_registration_finds_how_a_patient_moved(tmp_path):
    """Heads of two contrasts, one moved by 6 degrees and 7 mm: the landmarks come back to within half a voxel."""

    def head(at, kind):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in at.shape), indexing="ij")[::-1], -1)
        world = index @ at.affine[:3, :3].T + at.affine[:3, 3]
        inside = 1 / (1 + np.exp(40 * (np.linalg.norm(world / (22, 26, 20), axis=-1) - 1)))
        return np.rint(600 * inside + phantom(at) * (0.5 if kind == "mri" else -0.4)).astype(np.int16)

    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turned(4, -3, 4), (5, -4, 3)
    fixed, moving = grid((40, 50, 50), (1.2, 1.2, 1.5)), grid((44, 44, 48), (1.4, 1.4, 1.4), (3, 5, -8))
    paths = [
        save_nifti(tmp_path / "mri.nii", fixed, head(fixed, "mri")),
        save_nifti(tmp_path / "pet.nii", Grid(moving.shape, motion @ moving.affine), head(moving, "pet")),
    ]
    sources = [images.read_any(path) for path in paths]
    found = volumes.register(sources[1], sources[0]).matrix
    points = np.c_[LANDMARKS, np.ones(5)].T
    assert np.linalg.norm(((found - motion) @ points)[:3], axis=0).max() < 0.5 * 1.2
    said = Scene.read(paths, rigid=True).findings
    assert any("registered rigidly" in sentence for sentence in said)


def test_a_window_is_for_the_ct_and_a_range_for_the_rest(tmp_path):
    at = grid((4, 20, 20), (1, 1, 3))
    ct = save_series(tmp_path / "ct", at, RescaleSlope="1", RescaleIntercept="0", RescaleType="HU")
    scene = Scene.read([ct, save_nifti(tmp_path / "pet.nii", at)], window="brain", value_range=(0, 500))
    assert [(source.low, source.high) for source in scene.sources] == [(0, 80), (0, 500)]


def test_patients(tmp_path):
    at = grid((4, 20, 20), (1, 1, 3))
    one, two = save_series(tmp_path / "one", at), save_series(tmp_path / "two", at, patient="p2", frame="1.2.3.5")
    with pytest.raises(InputError, match="another patient"):
        Scene.read([one, two])
    findings = Scene.read([one, two], allow_different_patients=True).findings
    assert any("another patient" in said for said in findings) and any("frame of reference" in s for s in findings)


def test_a_series_of_which_low_values_are_bright_keeps_one_scale(tmp_path):
    """Each slice was turned over about its own extremes, so that its neighbours shifted against it."""
    at = grid((4, 16, 18), (2, 2, 3))
    meant = np.arange(4)[:, None, None] * 100 + np.arange(16 * 18).reshape(16, 18)
    folder = save_series(tmp_path / "mr", at, 1000 - meant, PhotometricInterpretation="MONOCHROME1")
    image = images.read_any(folder)
    np.testing.assert_allclose(image.pixels, (meant - meant.min()) / np.ptp(meant), atol=1e-6)


@pytest.mark.parametrize(("keyword", "value"), [("PatientID", "p2"), ("Modality", "MR")])
def test_slices_of_two_patients_or_scanners_are_no_series(tmp_path, keyword, value):
    folder = save_series(tmp_path / "ct", grid((4, 16, 18), (2, 2, 3)))
    one = pydicom.dcmread(folder / "IM002")
    setattr(one, keyword, value)
    one.save_as(folder / "IM002")
    with pytest.raises(InputError, match=r"ct holds images of different (patients|kinds) in one series"):
        images.read_any(folder)


def test_far_apart_and_unplaced(tmp_path):
    near = save_nifti(tmp_path / "near.nii", FRAME)
    far = save_nifti(tmp_path / "far.nii", grid(FRAME.shape, FRAME.spacing, centre=(500, 0, 0)), phantom(FRAME))
    with pytest.raises(InputError, match="do not overlap"):
        Scene.read([near, far])
    for affine, word in ((np.diag([0, 1, 1, 1.0]), "length zero"), (np.full((4, 4), np.nan), "NaN")):
        image = nibabel.Nifti1Image(phantom(FRAME).transpose(2, 1, 0), np.eye(4))
        image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
        image.header["sform_code"] = 1
        head = image.header
        head["vox_offset"], head["magic"] = 352, b"n+1"
        (tmp_path / "bad.nii").write_bytes(head.binaryblock.ljust(352, b"\0") + phantom(FRAME).tobytes())
        with pytest.raises(InputError, match=word):
            Scene.read([near, tmp_path / "bad.nii"])


def test_a_file_without_world_coordinates_is_named_with_what_to_do(tmp_path):
    near = save_nifti(tmp_path / "near.nii", FRAME)
    for name, shape, reading, word in (
        ("small", (20, 20, 20), {}, r"small\.nii is 20x20x20 and .*near\.nii 44x40x28, and .*small\.nii has no world"),
        ("thick", FRAME.shape[::-1], {}, r"thick\.nii has .* mm and .*near\.nii .* mm, and .*thick\.nii has no world"),
        ("rigid", FRAME.shape[::-1], {"rigid": True}, r"rigid\.nii has no world coordinates"),
    ):
        image = nibabel.Nifti1Image(np.ones(shape, np.int16), None)
        image.header.set_zooms((1.0, 1.0, 9.0))
        nibabel.save(image, tmp_path / f"{name}.nii")
        with pytest.raises(InputError, match=rf"{word}.*; write its geometry.* first.*\.$"):
            Scene.read([near, tmp_path / f"{name}.nii"], **reading)


def test_an_anonymised_result_names_nobody(tmp_path):
    at = grid((4, 20, 20), (1, 1, 3))
    scene = Scene.read([save_series(tmp_path / "a", at), save_nifti(tmp_path / "b.nii", at)])
    scene.check_target(tmp_path / "f.dcm", anonymise=True)
    scene.write(tmp_path / "f.dcm", scene.sources[0].pixels, anonymise=True)
    data = (tmp_path / "f.dcm").read_bytes()
    assert b"Doe" not in data and b"1.2.8\0" not in data and b"1.2.3.4" not in data and b"p1" not in data
    assert pydicom.dcmread(tmp_path / "f.dcm").PatientIdentityRemoved == "YES"


def test_the_command_line_fuses_two_grids_where_the_frame_lies(tmp_path, capsys, monkeypatch):
    """An MRI of 2 mm and a turned PET of 3 mm; the result lies on the second's grid and says what was done."""
    import sys

    from ddfm.cli import main

    fine, coarse = grid((20, 24, 28), (2, 2, 2)), grid((16, 18, 20), (3, 3, 3), turn=(5, 0, 10))
    paths = [save_nifti(tmp_path / "mri.nii", fine), save_nifti(tmp_path / "pet.nii", coarse)]
    target = tmp_path / "fused.nii.gz"
    monkeypatch.setattr(sys, "argv", ["ddfm", "fuse", *map(str, paths), "-o", str(target), "--frame", "second"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, capsys.readouterr()
    fused = nibabel.load(target)
    assert fused.shape == (20, 18, 16)
    np.testing.assert_allclose(fused.affine, RAS_FROM_LPS @ coarse.affine, atol=1e-4)
    assert "mri.nii" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [("--frame", "third", "--frame"), ("--frame", "7", "frame"), ("--window", "1 2 3", "--window")],
)
def test_what_cannot_be_a_frame_or_window_is_refused(tmp_path, capsys, monkeypatch, option, value, word):
    import sys

    from ddfm.cli import main

    path = save_nifti(tmp_path / "a.nii", grid((16, 18, 20), (3, 3, 3)))
    argv = ["ddfm", "fuse", str(path), str(path), "-o", str(tmp_path / "out.nii"), option, value]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and word in capsys.readouterr().err
