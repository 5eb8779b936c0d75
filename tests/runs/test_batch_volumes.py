"""Folders of volumes, and of three sensors."""

import numpy as np
import pytest
from conftest import made_image
from runs.folders import QUICK, files, make_pair, save_dicom, save_series, table

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.pipeline import DDFMPipeline
from ddfm.runs.batch import batch
from ddfm.runs.execution import image_generator
from ddfm.runs.scene import Scene


def make_volumes(root, stem, suffix=".nii.gz", shape=(17, 20, 3), seed=0):
    """One volume for each of root/ir and root/vi, of shape (X, Y, Z)."""
    nibabel = pytest.importorskip("nibabel")
    for k, sensor in enumerate(("ir", "vi")):
        (root / sensor).mkdir(exist_ok=True)
        values = np.stack([made_image(*shape[:2], seed=seed + 9 * k + z) for z in range(shape[2])], axis=-1)
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.int16), np.diag([2, 3, 4, 1])), root / sensor / (stem + suffix)
        )


def test_volumes_are_scenes_beside_pictures(scenes, prior, tmp_path, calls):
    nibabel = pytest.importorskip("nibabel")
    make_volumes(tmp_path, "head")
    make_volumes(tmp_path, "knee", ".nii", seed=30)
    out, seen = tmp_path / "out", []
    common = {"prior": prior, "seed": 4, "batch_size": 2} | QUICK
    result = batch(scenes, out, progress=lambda done, total: seen.append(done), **common)
    assert result.failed == {}
    pictures = {f"{stem}.png" for stem in "abcde"}
    assert {path.name for path in result.fused} == pictures | {"head.nii.gz", "knee.nii"}
    assert calls.count((2, 1, 20, 17)) == 6  # slice by slice
    assert seen == sorted(seen) and seen[-1] == 7
    fused = nibabel.load(out / "head.nii.gz")
    assert fused.header.get_zooms() == (2, 3, 4) and fused.get_fdata().max() > 100
    scene = Scene.read([folder / "head.nii.gz" for folder in scenes])
    pipe = DDFMPipeline.from_prior(prior)
    pipe.set_progress_bar_config(disable=True)
    alone = scene.fuse(pipe, seed=image_generator(4, "head").initial_seed(), **QUICK)
    np.testing.assert_allclose(fused.get_fdata(), scene.sources[0].restore(alone).transpose(2, 1, 0), atol=0.01)

    before = (out / "knee.nii").read_bytes()
    (out / "knee.nii").write_bytes(before[:-2])
    calls.clear()
    again = batch(scenes, out, resume=True, overwrite=True, **common)
    assert [path.name for path in again.fused] == ["knee.nii"] and len(again.skipped) == 6
    assert len(calls) == 3 and (out / "knee.nii").read_bytes() == before
    assert len(batch(scenes, out, resume=True, **common).skipped) == 7


def test_a_table_names_folders_of_dicom_series(prior, tmp_path):
    pytest.importorskip("pydicom")
    for name, seed in (("ct", 1), ("mri", 9)):
        (tmp_path / "p1" / name).mkdir(parents=True)
        save_dicom(tmp_path / "p1" / name / "IM1", np.stack([made_image(17, 20, seed=seed + k) for k in range(3)]))
    rows, out = table(tmp_path, "ct,mri,output\np1/ct,p1/mri,p1\n"), tmp_path / "out"
    result = batch(rows, out, prior=prior, **QUICK)
    assert result.failed == {} and result.fused == [out / "p1.dcm"]
    assert batch(rows, out, prior=prior, resume=True, **QUICK).skipped == result.fused
    save_dicom(tmp_path / "p1" / "mri" / "IM1", np.stack([made_image(17, 20, seed=k) for k in range(3)]))
    assert batch(rows, out, prior=prior, resume=True, **QUICK).fused == result.fused  # a source was changed


def test_a_folder_of_a_dicom_series_is_a_volume_not_its_slices(prior, tmp_path):
    pytest.importorskip("pydicom")
    volume = np.stack([made_image(17, 20, seed=k) for k in range(3)]).astype(np.int16)
    for k, patient in enumerate(("p1", "day 2/p2")):
        save_series(tmp_path / "mri" / patient, volume + k, f"1.2.{k}")
        save_series(tmp_path / "pet" / patient, volume[::-1] + k, f"1.3.{k}")
    save_dicom(tmp_path / "mri" / "x.dcm", volume[:1])
    save_dicom(tmp_path / "pet" / "x.dcm", volume[:1])
    out = tmp_path / "out"
    result = batch([tmp_path / "mri", tmp_path / "pet"], out, prior=prior, **QUICK)
    assert result.failed == {} and "4 folders are read as DICOM series" in result.notes[0]
    assert {str(path.relative_to(out)) for path in result.fused} == {"p1.dcm", "day 2/p2.dcm", "x.png"}
    assert images.read_any(out / "p1.dcm").pixels.shape == (3, 17, 20)


def test_volumes_that_do_not_fit_are_listed_and_the_rest_goes_on(prior, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for stem in ("beside an image", "elsewhere", "whole"):
        make_volumes(tmp_path, stem)
    (tmp_path / "vi" / "beside an image.nii.gz").unlink()
    images.write(tmp_path / "vi" / "beside an image.png", made_image(20, 17) / np.float32(255))
    away = np.eye(4)
    away[:3, 3] = 900
    nibabel.save(nibabel.Nifti1Image(np.zeros((17, 20, 2)), away), tmp_path / "vi" / "elsewhere.nii.gz")
    result = batch([tmp_path / "ir", tmp_path / "vi"], tmp_path / "out", prior=prior, **QUICK)
    assert [path.name for path in result.fused] == ["whole.nii.gz"]
    assert "volume of 3 slices" in result.failed["beside an image"]
    assert "do not overlap" in result.failed["elsewhere"]


def test_a_format_of_volumes_holds_for_volumes(prior, tmp_path):
    make_volumes(tmp_path, "head")
    folders = [tmp_path / "ir", tmp_path / "vi"]
    result = batch(folders, tmp_path / "out", prior=prior, format="nii", **QUICK)
    assert [path.name for path in result.fused] == ["head.nii"]
    result = batch(folders, tmp_path / "dicom", prior=prior, format="dcm", **QUICK)
    assert "DICOM source" in result.failed["head"]


def test_rows_of_volumes(prior, tmp_path):
    make_volumes(tmp_path, "head")
    rows = table(
        tmp_path,
        "ir,vi,output\nir/head.nii.gz,vi/head.nii.gz,\nir/head.nii.gz,vi/head.nii.gz,sub/x.nii\n"
        "ir/head.nii.gz,vi/head.nii.gz,y.png\n",
    )
    out = tmp_path / "out"
    result = batch(rows, out, prior=prior, **QUICK)
    assert {path.relative_to(out).as_posix() for path in result.fused} == {"head.nii.gz", "sub/x.nii"}
    assert result.failed.keys() == {"y"} and "volumes" in result.failed["y"]
    with pytest.raises(InputError, match="one of the sources"):
        batch(table(tmp_path / "ir", "a,b\nhead.nii.gz,../vi/head.nii.gz\n"), tmp_path / "ir", prior=prior, **QUICK)


def make_third(root, stem, colour):
    (root / "third").mkdir(exist_ok=True)
    picture = made_image(24, 32, seed=7)
    images.write(root / "third" / f"{stem}.png", (np.stack([picture] * 2 + [255 - picture], -1) if colour else picture))


def test_three_folders_and_three_columns(prior, tmp_path, calls):
    for stem, colours in (("none", (0, 0)), ("one", (0, 1)), ("two", (1, 1))):
        make_pair(tmp_path, stem, colour=colours[0])
        make_third(tmp_path, stem, colours[1])
    folders = [tmp_path / name for name in ("ir", "vi", "third")]
    quick = {"prior": prior, "num_inference_steps": 2}
    result = batch(folders, tmp_path / "out", **quick)
    assert result.failed == {} and set(calls) == {(3, 1, 24, 32)}
    pixels = {path.stem: images.read(path).pixels for path in result.fused}
    assert {stem: picture.ndim for stem, picture in pixels.items()} == {"none": 2, "one": 3, "two": 3}
    rows = "".join(f"ir/{stem}.png,vi/{stem}.png,third/{stem}.png\n" for stem in ("none", "one", "two"))
    by_table = batch(table(tmp_path, "a,b,c\n" + rows), tmp_path / "table", **quick)
    assert files(tmp_path / "table") == files(tmp_path / "out") and len(by_table.fused) == 3
    with pytest.raises(InputError, match="two sources"):
        batch(folders, tmp_path / "paper", **QUICK | quick)
