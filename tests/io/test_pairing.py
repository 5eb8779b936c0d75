"""Which files belong together, and what is not guessed."""

import os
import unicodedata

import numpy as np
import pytest
from runs.folders import save_dicom, save_series

import ddfm.io.pairing
from ddfm.errors import InputError
from ddfm.io.pairing import find_groups, pair_by_stem
from ddfm.io.sensors import sensor_of


@pytest.fixture
def made(tmp_path):
    """Empty files of these names below a folder, which is returned."""

    def make(*names, root="data"):
        for name in names:
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).touch()
        return tmp_path / root

    return make


def groups(pairing, root):
    return {name: [path.relative_to(root).as_posix() for path in paths] for name, paths in pairing.groups.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["FLIR_0001.jpg", "FLIR_0001_T.jpg"], {"FLIR_0001": ["FLIR_0001_T.jpg", "FLIR_0001.jpg"]}),
        (["DJI_0001_R.JPG", "DJI_0001.JPG"], {"DJI_0001": ["DJI_0001_R.JPG", "DJI_0001.JPG"]}),
        (["DJI_0001_T.JPG", "DJI_0001_V.JPG"], {"DJI_0001": ["DJI_0001_T.JPG", "DJI_0001_V.JPG"]}),
        (
            ["DJI_20240101_0001_T.JPG", "DJI_20240101_0001_W.JPG", "DJI_20240101_0001_Z.JPG"],
            {"DJI_20240101_0001": ["DJI_20240101_0001_T.JPG", "DJI_20240101_0001_W.JPG"]},
        ),
        (
            ["a_vis.png", "a_ir.png", "b-VIS.tif", "b-IR.png"],
            {"a": ["a_ir.png", "a_vis.png"], "b": ["b-IR.png", "b-VIS.tif"]},
        ),
        (["7-PET.nii.gz", "7-MR.nii.gz"], {"7": ["7-MR.nii.gz", "7-PET.nii.gz"]}),
        (["7 ct.dcm", "7 mri.dcm", "7 spect.dcm"], {"7": ["7 mri.dcm", "7 ct.dcm", "7 spect.dcm"]}),
        (["IR_12.png", "VIS_12.png"], {"12": ["IR_12.png", "VIS_12.png"]}),
        (["thermal/x/1.png", "rgb/x/1.png"], {"x/1": ["thermal/x/1.png", "rgb/x/1.png"]}),
        (["x/thermal/1_T.png", "x/rgb/1_V.png"], {"x/1": ["x/thermal/1_T.png", "x/rgb/1_V.png"]}),
        (["3/MRI.nii", "3/PET.nii", "4/PET.nii"], {"3": ["3/MRI.nii", "3/PET.nii"]}),
        (["ir.png", "vis.png"], {"data": ["ir.png", "vis.png"]}),
        (["d1/a_ir.png", "d1/a_vis.png", "d2/a_ir.png", "d2/a_vis.png", "notes.txt", ".a_ir.png"], None),
    ],
)
def test_how_cameras_and_scanners_call_them(made, names, expected):
    root = made(*names)
    found = groups(find_groups([root]), root)
    assert found == (expected or {f"{d}/a": [f"{d}/a_ir.png", f"{d}/a_vis.png"] for d in ("d1", "d2")})


@pytest.mark.parametrize("patterns", [(), ("{id}.png", "{id}.png")])
def test_accents_apart_from_their_letters_are_the_same_name(made, tmp_path, patterns):
    """As macOS has written them, beside another system."""
    folders = [made(f"{unicodedata.normalize(form, 'ü')}.png", root=form) for form in ("NFC", "NFD")]
    assert list(find_groups(folders, patterns).groups) == [unicodedata.normalize("NFC", "ü")]


def test_what_is_left_out_is_said(made):
    root = made("DJI_0001_T.JPG", "DJI_0001_W.JPG", "DJI_0001_Z.JPG", "DJI_0002_W.JPG")
    pairing = find_groups([root])
    assert [path.name for path in pairing.unmatched] == ["DJI_0002_W.JPG"]
    assert len(pairing.findings) == 1 and "zoom" in pairing.findings[0]


@pytest.mark.parametrize(
    ("names", "candidates"),
    [
        (["DJI_0001_T.JPG", "DJI_0001_V.JPG", "DJI_0001_W.JPG"], "DJI_0001_V.JPG or DJI_0001_W.JPG"),
        (["a_ir.png", "a_thermal.png", "a_vis.png"], "a_ir.png or a_thermal.png"),
        (["1_T1.nii", "1_T2.nii", "1_PET.nii"], "1_T1.nii or 1_T2.nii"),
        ([f"{k}_{s}.png" for k in range(5) for s in ("ir", "tir", "vis")], "and 2 more"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_candidates(made, names, candidates):
    with pytest.raises(InputError, match=r"ambiguous.*--pattern") as error:
        find_groups([made(*names)])
    assert candidates in str(error.value)


def test_nothing_to_tell_sensors_by(made):
    with pytest.raises(InputError, match=r"tell two sensors apart \(1\.png.*--pattern"):
        find_groups([made("1.png", "2.png")])
    with pytest.raises(InputError, match=r"same but for the sensor \(a_T\.jpg as thermal, b_W\.jpg as visible"):
        find_groups([made("a_T.jpg", "b_W.jpg", root="other")])


def test_radiometric_files_are_groups_of_their_own(made):
    root = made("1.jpg", "d/2.JPG", "3.jpg", "4.png")
    flir = b"\xff\xd8\xff\xe1\x00\x20FLIR\0" + bytes(40)
    for name in ("1.jpg", "d/2.JPG"):
        (root / name).write_bytes(flir)
    pairing = find_groups([root])
    assert groups(pairing, root) == {"1": ["1.jpg"], "d/2": ["d/2.JPG"]} and "radiometric" in pairing.findings[0]
    assert [path.name for path in pairing.unmatched] == ["3.jpg", "4.png"]


def test_a_dicom_series_is_one_source(made, tmp_path):
    pytest.importorskip("pydicom")
    slices = np.zeros((3, 4, 4), np.int16)
    for name in ("p1/mri", "p1/pet", "p2/mri", "p2/pet"):
        save_series(tmp_path / "one" / name, slices)
    root = made("p1/mri/preview_ir.png", "p1/mri/preview_vis.png", "p3/mri.nii", "p3/pet.nii", root="one")
    expected = {
        "p1": ["p1/mri", "p1/pet"],
        "p1/mri/preview": ["p1/mri/preview_ir.png", "p1/mri/preview_vis.png"],
        "p2": ["p2/mri", "p2/pet"],
        "p3": ["p3/mri.nii", "p3/pet.nii"],
    }
    assert groups(find_groups([root]), root) == expected
    by_pattern = find_groups([root], ["{id}/mri", "{id}/pet"])
    assert groups(by_pattern, root) == {name: expected[name] for name in ("p1", "p2")}
    itself = find_groups([root / "p1/mri", root / "p1/pet"])  # each folder is a series
    assert itself.groups == {"mri": [root / "p1/mri", root / "p1/pet"]}


def test_dicom_images_that_are_no_slices_are_paired_by_name(tmp_path):
    """Of a series each, or of one without positions, as screenshots are."""
    pytest.importorskip("pydicom")
    for name in ("ct", "mri"):
        (tmp_path / name).mkdir()
        for k in range(3):
            more = {"SeriesInstanceUID": f"1.2.{k}", "ImagePositionPatient": [0, 0, 0]} if k else {}
            save_dicom(tmp_path / name / f"{k}.dcm", np.zeros((1, 4, 4), np.int16), **more)
    assert list(find_groups([tmp_path / "ct", tmp_path / "mri"]).groups) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["{id}_T.jpg", "{id}_V.jpg"], {"d/1": ["d/1_T.JPG", "d/1_V.jpg"], "2": ["2_T.jpg", "2_V.jpg"]}),
        (["{id}_V.jpg", "{id}_T.jpg"], {"d/1": ["d/1_V.jpg", "d/1_T.JPG"], "2": ["2_V.jpg", "2_T.jpg"]}),
        (["{id}.jpg", "{id}_T.jpg"], {"3": ["3.jpg", "3_T.jpg"]}),
        (["hot/{id}_*.raw", "cold/{id}.png"], {"e/5": ["e/hot/5_x.raw", "e/cold/5.png"]}),
        (["{id}/{id}_a.png", "{id}/b?.png"], {"6": ["6/6_a.png", "6/b1.png"]}),
        (["{id}_T.jpg", "{id}_V.jpg", "{id}_W.jpg"], {"2": ["2_T.jpg", "2_V.jpg", "2_W.jpg"]}),
    ],
)
def test_patterns(made, patterns, expected):
    root = made(
        *("d/1_T.JPG", "d/1_V.jpg", "2_T.jpg", "2_V.jpg", "2_W.jpg", "3.jpg", "3_T.jpg"),
        *("e/hot/5_x.raw", "e/cold/5.png", "6/6_a.png", "6/b1.png", "6/c.png"),
    )
    assert groups(find_groups([root], patterns), root) == expected


def test_a_pattern_for_each_folder(made, tmp_path):
    a, b = made("x-1.png", "x-2.png", root="a"), made("1 [y].png", root="b")
    pairing = find_groups([a, b], ["x-{id}.png", "{id} [y].png"])
    assert pairing.groups == {"1": [a / "x-1.png", b / "1 [y].png"]} and pairing.unmatched == [a / "x-2.png"]


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (["{id}_T.jpg"], "two or more"),
        (["{id}_T.jpg", "V.jpg"], r"needs \{id\}"),
        (["{id}_T.jpg", "{name}{id}_V.jpg"], r"needs \{id\}"),
        (["{id}_T.jpg", "{id}_X.jpg"], "No files match"),
        (["{id}_*.jpg", "{id}.jpg"], "ambiguous"),
    ],
)
def test_patterns_that_do_not_do(made, patterns, sentence):
    with pytest.raises(InputError, match=sentence):
        find_groups([made("1_T.jpg", "1_V.jpg", "1.jpg")], patterns)
    with pytest.raises(InputError, match="one folder or one for each"):
        find_groups([made("1.png")] * 3, ["{id}_T.jpg", "{id}_V.jpg"])


def test_a_folder_for_each_sensor(made):
    a = made("1.png", "day/2.png", "3_ir.png", "MRI/4.png", "5.png", root="a")
    b = made("1.tif", "day/2.jpg", "3_vis.png", "PET/4.png", "6.png", root="b")
    pairing = find_groups([a, b])
    assert pairing.groups == {
        "1": [a / "1.png", b / "1.tif"],
        "3": [a / "3_ir.png", b / "3_vis.png"],
        "4": [a / "MRI/4.png", b / "PET/4.png"],
        "day/2": [a / "day/2.png", b / "day/2.jpg"],
    }
    assert pairing.unmatched == [a / "5.png", b / "6.png"]


def test_a_folder_for_each_sensor_that_do_not_fit(made):
    with pytest.raises(InputError, match="ambiguous"):
        find_groups([made("1_ir.png", "1_tir.png", root="a"), made("1_vis.png", root="b")])
    with pytest.raises(InputError, match="share a name"):
        find_groups([made("1.png", root="c"), made("2.png", root="d")])
    with pytest.raises(InputError, match="has both"):
        find_groups([made("1.png", "1.jpg", root="e"), made("1.png", root="f")])


def test_results_and_links_in_a_circle_are_not_walked(made):
    root = made("a_ir.png", "a_vis.png", "out/a_ir.png")
    (root / "circle").symlink_to(root)
    assert groups(find_groups([root], leave_out=root / "out"), root) == {"a": ["a_ir.png", "a_vis.png"]}


def test_a_folder_that_may_not_be_read(made, monkeypatch):
    root = made("a_ir.png", "closed/a_vis.png")
    iterdir = type(root).iterdir

    def refusing(self):
        if self.name == "closed":
            raise PermissionError(13, "Permission denied")
        return iterdir(self)

    monkeypatch.setattr(type(root), "iterdir", refusing)
    for search in (lambda: find_groups([root]), lambda: pair_by_stem([root, root / "closed"])):
        with pytest.raises(InputError, match=r"Cannot read the folder .*closed: permission is denied"):
            search()


def test_names_that_are_not_text(made):
    name = os.fsdecode(b"\xff_")
    root = made(f"{name}ir.png", f"{name}vis.png", "a\nb_ir.png", "a\nb_vis.png")
    assert find_groups([root]).groups.keys() == {os.fsdecode(b"\xff"), "a\nb"}
    assert ddfm.io.pairing.stem("x.nii.GZ") == "x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FLIR_0001_T", ("FLIR_0001", "thermal")),
        ("size_t", ("size_t", None)),
        ("LEFT", ("LEFT", None)),
        ("a.b_VIS", ("a.b", "visible")),
        ("thermal/street_vis", ("thermal/street", "visible")),
        ("PET/MRI/25", ("PET/25", "MR")),
    ],
)
def test_what_a_name_tells(name, expected):
    assert sensor_of(name) == expected
