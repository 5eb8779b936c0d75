"""A scene's files: images and volumes read together, fused, and written with the right depth, geometry and unit."""

import tracemalloc
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from conftest import made_image
from runs.folders import save_dicom

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.images import Image
from ddfm.pipeline import DDFMPipeline
from ddfm.registration import identity
from ddfm.runs.reading import Reading
from ddfm.runs.scene import Scene

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

AFFINE = np.array([[2, 0, 0, -10], [0, 1.5, 0.2, 5], [0, -0.2, 3, 7], [0, 0, 0, 1]])
QUICK = {"num_inference_steps": 2, "likelihood": "paper"}


def slices(n=4, height=18, width=22, seed=0):
    """(S, H, W) in 0..255, every slice another one."""
    return np.stack([made_image(height, width, seed=seed + k) for k in range(n)]).astype(np.float64)


def save_nifti(path, values, affine=AFFINE):
    """values (S, H, W) in the dtype they have, in millimetres and seconds."""
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"made"
    nibabel.save(image, path)
    return path


@pytest.fixture
def volumes(tmp_path):
    """[mri.nii.gz in int16, pet.nii in float32 of another affine]; the slices in their own units."""
    mri, pet = 4 * slices(seed=1) - 200, slices(seed=9) / 7
    return [
        save_nifti(tmp_path / "mri.nii.gz", mri.astype(np.int16)),
        save_nifti(tmp_path / "pet.nii", pet.astype(np.float32), np.diag([2, 2, 2, 1])),
    ]


# ------------------------------------------------------------------------------------------------------------ images


def test_a_picture_is_what_the_pipeline_gives(tiny_prior, tmp_path, colour_pair):
    paths = [tmp_path / name for name in ("ir.png", "vis.png")]
    for path, picture in zip(paths, colour_pair, strict=True):
        images.write(path, picture)
    scene = Scene.read(paths)
    assert not scene.is_volume
    expected = tiny_prior(colour_pair, generator=torch.Generator().manual_seed(5), **QUICK).images[0]
    np.testing.assert_allclose(scene.fuse(tiny_prior, seed=5, **QUICK), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "name", "depth", "expected"),
    [
        ((8, 8), "f.png", "same", 8),
        ((8, 16), "f.png", "same", 16),
        ((16, 8), "f.TIF", "same", 16),
        ((32, 8), "f.tiff", "same", 16),
        ((8, 16), "f.jpg", "same", 8),
        ((8, 16), "f.bmp", "same", 8),
        ((8, 16), "f.png", 8, 8),
        ((8, 8), "f.tif", 32, 32),
    ],
)
def test_bits_of_the_result(bits, name, depth, expected):
    scene = Scene([Image(np.zeros((16, 16), np.float32), b) for b in bits])
    assert scene.bits(name, depth) == expected


def test_whose_metadata_the_result_takes(volumes, tmp_path):
    grey, colour = (Image(np.zeros(shape, np.float32)) for shape in ((16, 16), (16, 16, 3)))
    dicom = images.read_any(save_dicom(tmp_path / "a.dcm", slices()))
    nifti = images.read_any(volumes[0])
    slice_of_nifti = replace(nifti, pixels=nifti.pixels[0])
    assert Scene([grey, colour, colour]).like("f.png") is not grey
    assert Scene([grey, grey]).like("f.png") is not None
    assert Scene([colour, slice_of_nifti]).like("f.png") is colour
    assert Scene([colour, slice_of_nifti]).like("f.nii") is slice_of_nifti
    assert Scene([nifti, dicom]).like("f.dcm") is dicom
    assert Scene([dicom, nifti]).like("f.nii.gz") is nifti


# ------------------------------------------------------------------------------------------------------------- volumes


def test_a_volume_is_fused_slice_by_slice_with_the_same_noise(tiny_prior, volumes):
    scene = Scene.read(volumes)
    fused = scene.fuse(tiny_prior, seed=3, **QUICK)
    assert fused.shape == (4, 18, 22) and fused.dtype == np.float32
    for k in range(4):
        pair = [source.pixels[k] for source in scene.sources]
        alone = tiny_prior(pair, generator=torch.Generator().manual_seed(3), **QUICK).images[0]
        np.testing.assert_allclose(fused[k], alone, atol=1e-6)


def test_slices_fused_together_are_what_they_are_alone(tiny_prior, volumes, monkeypatch):
    scene = Scene.read(volumes)
    alone = scene.fuse(tiny_prior, **QUICK)
    seen = []
    monkeypatch.setattr("ddfm.runs.fusing.images_at_once", lambda pipe: 3)
    together = scene.fuse(tiny_prior, progress=lambda done, total: seen.append((done, total)), **QUICK)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert seen == [(done, 4) for done in (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4)]


def test_flat_slices_stay_flat_and_never_meet_the_network(tiny_prior, tmp_path, monkeypatch):
    one, two = slices(5, seed=1), slices(5, seed=9)
    one[[0, 3]], two[[0, 3]] = 0, 0
    one[0], two[4] = one.max(), 0  # flat but not black; and flat in one source only
    paths = [save_nifti(tmp_path / "a.nii", one), save_nifti(tmp_path / "b.nii", two)]
    calls, call = [], DDFMPipeline.__call__
    monkeypatch.setattr(DDFMPipeline, "__call__", lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs))
    fused = Scene.read(paths).fuse(tiny_prior, **QUICK)
    assert len(calls) == 3
    assert np.ptp(fused[3]) == 0 and fused[3, 0, 0] == 0
    assert np.ptp(fused[0]) == 0 and fused[0, 0, 0] == 0.5
    assert np.ptp(fused[4]) > 0
    calls.clear()
    paths = [save_nifti(tmp_path / f"{k}.nii", np.zeros((3, 16, 16))) for k in range(2)]
    assert not Scene.read(paths).fuse(tiny_prior, **QUICK).any() and not calls


def test_slices_do_not_flicker_where_the_head_comes_to_fill_half_of_them(tiny_prior, tmp_path):
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    radii = np.linspace(0.7, 0.9, 9)  # 38 to 64 % of a slice: the median of a slice jumps from air to brain
    head = 1 / (1 + np.exp(30 * (np.hypot(x, y) - radii[:, None, None])))
    mri = head * (90 + 30 * np.sin(9 * x) * np.sin(7 * y))
    pet = head * 60 + 150 * np.exp(-((x - 0.2) ** 2 + y**2) / 0.05)
    scene = Scene.read([save_nifti(tmp_path / "mri.nii", mri), save_nifti(tmp_path / "pet.nii", pet)])

    def flicker(volume):  # the largest second difference of the slices' means, of 255
        return 255 * np.abs(np.diff(volume.mean(axis=(1, 2)), 2)).max()

    fused = scene.fuse(tiny_prior)
    assert flicker(fused) < 1.5 * max(flicker(source.pixels) for source in scene.sources)


def test_minmax_stretches_the_volume_not_its_slices(tiny_prior, tmp_path):
    one, two = slices(3, seed=1), slices(3, seed=9)
    one[1] /= 4
    two[1] /= 4
    scene = Scene.read([save_nifti(tmp_path / "a.nii", one), save_nifti(tmp_path / "b.nii", two)])
    kept, stretched = (scene.fuse(tiny_prior, contrast=contrast, **QUICK) for contrast in ("natural", "minmax"))
    assert (stretched.min(), stretched.max()) == (0, 1)
    np.testing.assert_allclose(stretched, (kept - kept.min()) / np.ptp(kept), atol=1e-6)
    assert np.ptp(stretched[1]) < 0.6


@pytest.mark.parametrize("dtype", ["i2", "f4", ">f4", "u1"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_geometry_and_unit(tmp_path, dtype, suffix):
    values = slices(3).astype(dtype)
    paths = [
        save_nifti(tmp_path / f"a{suffix}", values),
        save_nifti(tmp_path / f"b{suffix}", slices(3, seed=9)),
    ]
    scene = Scene.read(paths)
    target = tmp_path / f"f{suffix}"
    scene.check_target(target)
    scene.write(target, scene.sources[0].pixels)
    header = nibabel.load(target).header
    np.testing.assert_allclose(nibabel.load(target).affine, AFFINE, atol=1e-6)
    assert header.get_xyzt_units() == ("mm", "sec") and header["descrip"] == b"made"
    np.testing.assert_allclose(header.get_zooms(), nibabel.load(paths[0]).header.get_zooms())
    np.testing.assert_allclose(nibabel.load(target).get_fdata(), values.transpose(2, 1, 0), atol=0.01)


def test_dicom_keeps_geometry_and_unit(tiny_prior, tmp_path):
    paths = [save_dicom(tmp_path / f"{name}.dcm", slices(3, seed=k)) for k, name in enumerate(("ct", "mr"))]
    scene = Scene.read(paths)
    scene.write(tmp_path / "f.dcm", scene.fuse(tiny_prior, **QUICK))
    again = images.read_any(tmp_path / "f.dcm")
    assert again.pixels.shape == (3, 18, 22)
    assert again.header.PixelSpacing == [0.5, 0.6] and again.header.NumberOfFrames == 3
    values = again.restore(again.pixels)
    assert scene.sources[0].low - 0.1 <= values.min() and values.max() <= scene.sources[0].high + 0.1
    assert np.ptp(values) > 100  # Hounsfield, not [0, 1]


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_dicom_has_its_rescaling_in_groups(tmp_path, shared):
    dataset = pydicom.dcmread(save_dicom(tmp_path / "plain.dcm", slices(3)))
    del dataset.RescaleSlope, dataset.RescaleIntercept

    def group(slope, intercept):
        to_unit, window, outer = (pydicom.dataset.Dataset() for _ in range(3))
        to_unit.RescaleSlope, to_unit.RescaleIntercept, to_unit.RescaleType = slope, intercept, "US"
        window.WindowCenter, window.WindowWidth = "1", "2"
        outer.PixelValueTransformationSequence, outer.FrameVOILUTSequence = [to_unit], [window]
        return outer

    one = [group("3", "-7")] if shared else [pydicom.dataset.Dataset()]
    each = [pydicom.dataset.Dataset() if shared else group(str(1 + k), str(k)) for k in range(3)]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = one, each
    dataset.save_as(tmp_path / "a.dcm")
    meant = np.stack([(3 * x - 7 if shared else (1 + k) * x + k) for k, x in enumerate(slices(3))])
    scene = Scene.read([tmp_path / "a.dcm"] * 2)
    first = scene.sources[0]
    np.testing.assert_allclose(first.restore(first.pixels), meant, atol=1e-3)
    scene.write(tmp_path / "f.dcm", first.pixels)
    again = images.read_any(tmp_path / "f.dcm")
    np.testing.assert_allclose(again.restore(again.pixels), meant, atol=0.02)
    assert "PerFrameFunctionalGroupsSequence" not in again.header


def test_normalised_over_all_slices(tmp_path):
    values = np.stack([np.tile(np.linspace(a, b, 40), (40, 1)) for a, b in ((0, 100), (0, 1000))])
    values[0, 0, 0] = 1e6
    path = save_nifti(tmp_path / "a.nii", values)
    scene = Scene.read([path, path], normalise=True)
    assert scene.sources[0].pixels[0].max() == 1 and np.sort(scene.sources[0].pixels[0].ravel())[-2] < 0.11
    assert scene.sources[0].high < 2000


def test_a_volume_takes_little_more_memory_than_its_sources_and_the_result(tiny_prior, tmp_path):
    paths = [save_nifti(tmp_path / f"{k}.nii", slices(2, 16, 16, seed=k)) for k in range(2)]
    scene = Scene.read(paths)
    n = 600
    big = [replace(s, pixels=np.zeros((n, 256, 256), np.float32), grid=None) for s in scene.sources]
    for image in big:
        image.header.set_data_shape((256, 256, n))
    scene, volume = Scene(big), n * 256 * 256 * 4
    tracemalloc.start()
    fused = scene.fuse(tiny_prior, **QUICK)
    assert tracemalloc.get_traced_memory()[1] < 1.1 * volume
    tracemalloc.reset_peak()
    scene.write(tmp_path / "f.nii", fused)
    assert tracemalloc.get_traced_memory()[1] < (1 + 1.1) * volume  # beside the result, 16-bit numbers and the file
    tracemalloc.stop()


# ------------------------------------------------------------------------------------------------------------ refusals


def refusal(*paths, **options):
    with pytest.raises(InputError) as error:
        Scene.read(paths, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_refused(volumes, tmp_path):
    images.write(tmp_path / "flat.png", np.zeros((18, 22)))
    images.write(tmp_path / "tiny.png", np.zeros((15, 22)))
    tiny = save_nifti(tmp_path / "tiny.nii", slices(20, 15, 22))
    assert "flat.png is an image but" in (said := refusal(volumes[0], tmp_path / "flat.png"))
    assert "mri.nii.gz is a volume of 4 slices" in said
    assert "16x16" in refusal(tiny, tiny)
    assert "16x16" in refusal(tmp_path / "tiny.png", tmp_path / "tiny.png")
    assert "two or more" in refusal(volumes[0])
    assert "rigid" in refusal(*volumes, align=True)


def test_a_volume_of_fewer_slices_is_resampled_and_said(volumes, tmp_path):
    short = save_nifti(tmp_path / "short.nii", slices(3))
    scene = Scene.read([volumes[0], short])
    assert [source.pixels.shape for source in scene.sources] == [(4, 18, 22)] * 2
    assert any("short.nii" in finding for finding in scene.findings)


def test_where_a_result_cannot_go_is_known_before(volumes, tmp_path):
    images.write(tmp_path / "a.png", np.zeros((18, 22)))
    volume, picture = Scene.read(volumes), Scene.read([tmp_path / "a.png"] * 2)
    for scene, name, word in [
        (volume, "f.png", "volumes"),
        (volume, "f.dcm", "DICOM source"),
        (volume, "pet.nii", "one of the sources"),
        (volume, "nowhere/f.nii", "folder"),
        (picture, "f.nii.gz", "NIfTI source"),
        (picture, "a.png", "one of the sources"),
        (picture, "f.gif", "must end in"),
    ]:
        with pytest.raises(InputError, match=word) as error:
            scene.check_target(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="16 bits"):
        picture.check_target(tmp_path / "f.jpg", 16)
    one_slice = images.read_any(save_nifti(tmp_path / "slice.nii", slices(1)))
    coloured = Scene([replace(one_slice, pixels=np.zeros((18, 22))), Image(np.zeros((18, 22, 3)))])
    with pytest.raises(InputError, match="in colour"):
        coloured.check_target(tmp_path / "f.nii")
    coloured.check_target(tmp_path / "f.nii", colour="grey")
    coloured.check_target(tmp_path / "f.nii", colour="first")
    volume.check_target(tmp_path / "f.nii")


def test_a_slice_that_was_moved_does_not_lend_its_geometry(tmp_path):
    """Resized it would keep its spacing: a patient of three times the size."""
    save_dicom(tmp_path / "slice.dcm", slices(1))
    images.write(tmp_path / "photo.png", made_image(54, 66) / 255)
    paths = [tmp_path / "slice.dcm", tmp_path / "photo.png"]
    with pytest.raises(InputError, match="geometry has to come from a DICOM source"):
        Scene.read(paths, align="skip").check_target(tmp_path / "f.dcm")
    Scene.read(paths, align="skip", frame=0).check_target(tmp_path / "f.dcm")


def test_a_result_is_never_written_onto_a_source(volumes):
    scene, before = Scene.read(volumes), volumes[0].read_bytes()
    with pytest.raises(InputError, match="one of the sources"):
        scene.write(volumes[0], np.zeros((4, 18, 22)))
    assert volumes[0].read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fram": 1}, "fram is not a field of Reading; its fields are align, "),
        ({"frame": "third"}, "frame must be auto, first, second or"),
        ({"frame": 0.5}, "frame must be the number"),
        ({"align": "maybe"}, "align must be auto, dense, force or skip"),
        ({"value_range": 5}, "value_range must be two numbers"),
        ({"value_range": (1, 2, 3)}, "value_range must be two numbers"),
        ({"normalise": "maybe"}, "normalise must be true or false"),
        ({"rig": "absent.json"}, "absent.json does not exist"),
        ({"rig": identity((16, 20)), "align": "auto"}, "and so does align=auto: drop one of them"),
        ({"rig": identity((16, 20)), "align": "skip"}, "and so does align=skip: drop one of them"),
    ],
)
def test_a_reading_that_cannot_be_is_refused_in_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        Scene.read([tmp_path / "a.png", tmp_path / "b.png"], **changes)


def test_a_reading_understands_the_words_of_the_command_line(tmp_path):
    reading = Reading(frame="second", value_range="20 40", normalise="on", align=True, window="brain")
    assert reading == Reading(frame=1, value_range=(20.0, 40.0), normalise=True, align="auto", window="brain")
    identity((16, 20)).save(tmp_path / "rig.json")
    assert Reading(rig=tmp_path / "rig.json").rig.fixed_shape == (16, 20)


def test_one_path_is_one_source(tmp_path):
    images.write(tmp_path / "a.png", np.zeros((20, 20)))
    with pytest.raises(InputError, match="two or more sources, not 1"):
        Scene.read(str(tmp_path / "a.png"))


def test_a_volume_is_no_picture_in_python(volumes):
    with pytest.raises(InputError, match="volume of 4 slices"):
        images.read(volumes[0])


def test_counts_are_scaled_in_each_source_by_itself_and_said(tmp_path):
    """Raw thermal counts beside a photo: 12.12 of the faults found was a thermal image that vanished in silence."""
    ramp = np.linspace(0, 1, 20 * 24).reshape(20, 24)
    images.write(tmp_path / "photo.png", ramp.T.reshape(20, 24))
    images.write(tmp_path / "thermal.png", (7224 + ramp * 883) / 65535, 16)
    scene = Scene.read([tmp_path / "thermal.png", tmp_path / "photo.png"])
    assert scene.sources[0].pixels.std() > 0.25
    assert any("thermal.png holds counts from 7224 to 8107" in finding for finding in scene.findings)
    ranged = Scene.read([tmp_path / "thermal.png", tmp_path / "photo.png"], value_range=(0, 65535))
    assert ranged.sources[0].pixels.max() < 0.13


def test_a_source_that_shows_nothing_is_said(tmp_path):
    images.write(tmp_path / "dark.png", np.zeros((20, 24)))
    images.write(tmp_path / "vis.png", made_image(20, 24) / 255)
    (said,) = Scene.read([tmp_path / "dark.png", tmp_path / "vis.png"]).findings
    assert said.endswith("dark.png has the same value everywhere, so it shows nothing.")


def test_a_range_is_for_the_files_that_have_its_unit(tmp_path):
    counts = np.linspace(7000, 9000, 24 * 24).reshape(24, 24).astype(np.uint16)
    images.write(tmp_path / "photo.png", np.random.default_rng(0).random((24, 24, 3)))
    images.write(tmp_path / "grey.png", np.random.default_rng(1).random((24, 24)))
    PIL.Image.fromarray(counts).save(tmp_path / "counts.tif")
    scene = Scene.read([tmp_path / name for name in ("counts.tif", "photo.png", "grey.png")], value_range=(7500, 8500))
    assert (scene.sources[0].low, scene.sources[0].high) == (7500, 8500)
    assert all(np.ptp(source.pixels) > 0.9 for source in scene.sources)
    assert [("photo" in said, "grey" in said) for said in scene.findings] == [(True, False), (False, True)]


def test_a_range_beyond_which_most_of_a_file_lies_is_said(tmp_path):
    """Of degrees, on 8 bits of a grey photo: it was black and white, in silence."""
    images.write(tmp_path / "grey.png", np.random.default_rng(1).random((24, 24)))
    tifffile.imwrite(tmp_path / "celsius.tif", np.linspace(15, 65, 24 * 24, dtype=np.float32).reshape(24, 24))
    (said,) = Scene.read([tmp_path / "celsius.tif", tmp_path / "grey.png"], value_range=(20, 60)).findings
    assert "grey.png has 8" in said and said.endswith("% of its pixels outside 20 to 60; they are clipped.")
