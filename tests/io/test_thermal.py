"""Radiometric JPEG: two sources of one file, where the camera says they lie, and refusals in a sentence."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest

from ddfm.colour import luma
from ddfm.errors import InputError
from ddfm.io import thermal
from ddfm.io.images import as_pixels
from ddfm.runs.scene import Scene

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "dev" / "thermal"


def jpeg(path, marker=b"FLIR\0\x01\x00\x00"):
    """A JPEG of 64x48 with one more application segment behind its first."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(buffer, "JPEG")
    data, segment = buffer.getvalue(), marker + bytes(20)
    path.write_bytes(data[:20] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[20:])
    return path


@pytest.fixture
def camera(monkeypatch):
    """Stands in for flyr: a spot of 80 degrees at pixel (20, 10) of 40x30, a photo of 160x120."""
    celsius = np.full((30, 40), 20.0) + np.linspace(0, 5, 40)
    celsius[9:12, 19:22] = 80
    found = SimpleNamespace(
        celsius=celsius,
        optical=np.full((120, 160, 3), 128, np.uint8),
        pip_info=SimpleNamespace(real_to_ir=2.0, offset_x=-8, offset_y=4),
        embedded_range=lambda unit: (0.0, 100.0),
    )
    monkeypatch.setitem(sys.modules, "flyr", SimpleNamespace(unpack=lambda file: found))
    return found


def test_only_flir_files_are_radiometric(tmp_path):
    assert thermal.is_radiometric(jpeg(tmp_path / "a.jpg"))
    assert not thermal.is_radiometric(jpeg(tmp_path / "b.jpg", b"Exif\0\0"))
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff\xe1\0\0")
    assert not thermal.is_radiometric(tmp_path / "c.jpg")


def spot(pixels):
    """(x, y) of the middle of what is brightest."""
    y, x = np.nonzero(pixels > 0.9 * pixels.max())
    return float(x.mean()), float(y.mean())


def test_in_the_frame_of_the_photo_the_spot_lies_where_the_camera_says(tmp_path, camera):
    scene = Scene.read([jpeg(tmp_path / "a.jpg")], frame=1)
    heat, photo = scene.sources
    assert heat.pixels.shape == (120, 160) and photo.pixels.shape == (120, 160, 3) and heat.unit == "°C"
    assert (photo.pixels == 128 / 255).all()
    # s = 160 / 40 / 2 = 2: the spot at (20, 10) lies at 80 - 8 + 2 (20.5 - 20) - 0.5, 60 + 4 + 2 (10.5 - 15) - 0.5
    assert spot(heat.pixels) == pytest.approx((72.5, 54.5), abs=0.5)
    assert any("20.0 to 80.0 °C" in finding for finding in scene.findings)
    assert any("camera's own geometry" in finding for finding in scene.findings)


def test_the_frame_is_what_the_temperatures_show_with_the_photos_pixels(tmp_path, camera):
    camera.optical[:] = np.linspace(0, 255, 160, dtype=np.uint8)[:, None]  # brighter to the right: that is no heat
    camera.optical[62:64, 88:90] = (255, 0, 0)
    scene = Scene.read([jpeg(tmp_path / "a.jpg")])
    heat, photo = scene.sources
    assert scene.frame == 0 and heat.pixels.shape == (60, 80) and photo.pixels.shape == (60, 80, 3)
    assert abs(luma(photo.pixels)[:, :20].mean() - luma(photo.pixels)[:, -20:].mean()) < 0.05
    red = photo.pixels[..., 0] - photo.pixels[..., 2]
    assert spot(red) == pytest.approx((88.5 - 72 + 40, 62.5 - 64 + 30), abs=0.6)
    assert any("80x60 pixels" in finding for finding in scene.findings)
    own = scene.framed.own
    assert (
        own[0].pixels.shape == (30, 40) and own[1].pixels.shape[0] == 120
    )  # both can be cleaned before they are moved
    for k, source in enumerate(scene.sources):
        np.testing.assert_array_equal(scene.framed.bring(k, own[k]).pixels, source.pixels)


def test_what_the_camera_enlarged_counts_for_its_geometry(tmp_path, camera):
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA404] = 1.5  # DigitalZoomRatio
    path = jpeg(tmp_path / "a.jpg")
    segment = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:])
    _, matrix = thermal.read_sources(path)
    assert matrix[0, 0] == pytest.approx(1 / 3) and matrix[1, 1] == pytest.approx(1 / 3)


def test_a_black_border_of_the_photo_is_left_out_but_not_a_night(tmp_path, camera):
    camera.optical[:20] = 3
    (_, photo), matrix = thermal.read_sources(jpeg(tmp_path / "a.jpg"))
    assert photo.pixels.shape == (98, 160, 3) and photo.findings
    assert (matrix @ (72.5, 54.5 - 22, 1))[:2] == pytest.approx((20, 10))
    camera.optical[20:60] = 3
    camera.optical[20:60, ::12] = 128
    (_, photo), _ = thermal.read_sources(tmp_path / "a.jpg")
    assert photo.pixels.shape == (120, 160, 3) and not photo.findings
    camera.optical[:], camera.optical[50] = 0, 255
    assert thermal.read_sources(tmp_path / "a.jpg")[0][1].pixels.shape == (120, 160, 3)


def test_python_reads_the_temperatures_as_the_command_line_does(tmp_path, camera):
    photo = np.full((30, 40, 3), 90, np.uint8)
    PIL.Image.fromarray(photo).save(tmp_path / "photo.png")
    paths = [jpeg(tmp_path / "a.jpg"), tmp_path / "photo.png"]
    (heat, _) = Scene.read(paths).sources
    with pytest.warns(UserWarning, match=r"a\.jpg holds temperatures from 20\.0 to 80\.0 °C"):
        np.testing.assert_array_equal(as_pixels(paths[0]), heat.pixels)


@pytest.mark.parametrize(
    ("own", "expected"), [((22.0, 60.0), (22, 60)), ((-40.0, 500.0), None), ((90.0, 99.0), None), ((5.0, 5.0), None)]
)
def test_the_cameras_scale_as_far_as_the_scene_reaches(tmp_path, camera, own, expected):
    camera.embedded_range = lambda unit: own
    image = thermal.read_temperatures(jpeg(tmp_path / "a.jpg"))
    assert (image.low, image.high) == pytest.approx(expected or tuple(np.percentile(camera.celsius, (0.1, 99.9))))
    assert ("camera's own scale" in image.findings[0]) == (expected is not None)
    assert thermal.read_temperatures(tmp_path / "a.jpg", (0, 100)).pixels.max() == pytest.approx(0.8)


def test_what_is_for_volumes_is_refused(tmp_path, camera):
    for changes in ({"rigid": True}, {"window": "brain"}):
        with pytest.raises(InputError, match="are for DICOM and NIfTI"):
            Scene.read([jpeg(tmp_path / "a.jpg")], **changes)


def test_the_frame_may_be_that_of_the_temperatures_and_their_range_given(tmp_path, camera):
    scene = Scene.read([jpeg(tmp_path / "a.jpg")], frame=0, value_range=(0, 100))
    assert scene.sources[0].pixels.shape == (30, 40) and scene.sources[1].pixels.shape == (30, 40, 3)
    assert scene.sources[0].pixels.max() == pytest.approx(0.8)
    with pytest.raises(InputError, match="none of them between 200 and 300"):
        Scene.read([tmp_path / "a.jpg"], value_range=(200, 300))
    with pytest.raises(InputError, match=r"first \(temperatures\) or second"):
        Scene.read([tmp_path / "a.jpg"], frame=2)


def test_the_geometry_is_refined_by_what_both_show(tmp_path, camera):
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.uniform(size=(240, 320)).astype(np.float32), (0, 0), 4)
    scene = cv2.normalize(scene, None, 0, 1, cv2.NORM_MINMAX)
    camera.celsius = 20 + 30 * scene[60:180, 80:240].astype(np.float64)
    moved = np.roll(scene, (3, -4), (0, 1))  # by a parallax of which the file does not know
    camera.optical = np.repeat(np.uint8(255 * moved)[..., None], 3, axis=-1)
    camera.pip_info = SimpleNamespace(real_to_ir=2.0, offset_x=0, offset_y=0)
    path = jpeg(tmp_path / "a.jpg")
    found = Scene.read([path]).registrations[1]
    assert found.map[60, 80] == pytest.approx((80 + 80 - 4, 60 + 60 + 3), abs=0.5)
    assert "up to 5 pixels from where the camera" in found.sentence
    alone = Scene.read([path], align="skip").registrations[1]
    assert alone.map[60, 80] == pytest.approx((160, 120))
    camera.optical = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)  # nothing in common
    unsure = Scene.read([path]).registrations[1]
    assert unsure.map[60, 80] == pytest.approx((160, 120)) and "too little" in unsure.sentence


def test_beside_another_file_its_temperatures_are_read(tmp_path, camera, monkeypatch):
    path, other = jpeg(tmp_path / "a.jpg"), tmp_path / "b.png"
    PIL.Image.fromarray(np.full((30, 40, 3), (200, 100, 50), np.uint8)).save(other)
    assert Scene.read([path, other]).sources[0].unit == "°C"
    ranged = Scene.read([path, other], value_range=(200, 300))  # for another file: not a reason to take the picture
    assert ranged.sources[0].unit == "°C" and "was not applied" in " ".join(ranged.findings)
    monkeypatch.setitem(sys.modules, "flyr", None)
    scene = Scene.read([path, other], align="skip")
    assert scene.sources[0].unit == "" and "is used instead of its temperatures" in scene.findings[0]


def test_what_a_camera_cannot_have_meant_is_refused(tmp_path, camera, monkeypatch):
    path = jpeg(tmp_path / "a.jpg")
    camera.pip_info.real_to_ir = float("nan")
    with pytest.raises(InputError, match="cannot be right"):
        Scene.read([path])
    camera.optical = None
    with pytest.raises(InputError, match="no photo"):
        Scene.read([path])

    def broken(file):
        raise KeyError(1)

    monkeypatch.setitem(sys.modules, "flyr", SimpleNamespace(unpack=broken))
    with pytest.raises(InputError, match="layout that is not known"):
        Scene.read([path])
    monkeypatch.setitem(sys.modules, "flyr", None)
    with pytest.raises(InputError, match=r"ddfm\[thermal\]"):
        Scene.read([path])


@pytest.mark.skipif(not SAMPLES.exists(), reason="cameras' own files are not part of the project")
@pytest.mark.parametrize(("name", "shape"), [("FLIR_AX8.jpg", (413, 551))])
def test_the_file_of_a_camera(name, shape):
    pytest.importorskip("flyr")
    scene = Scene.read([SAMPLES / name])
    assert [source.pixels.shape[:2] for source in scene.sources] == [shape, shape]
