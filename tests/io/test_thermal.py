"""Radiometric JPEG: two sources of one file, where the camera says they lie, and refusals in a sentence."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from ddfm.errors import InputError
from ddfm.io import thermal
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
    )
    monkeypatch.setitem(sys.modules, "flyr", SimpleNamespace(unpack=lambda file: found))
    return found


def test_only_flir_files_are_radiometric(tmp_path):
    assert thermal.is_radiometric(jpeg(tmp_path / "a.jpg"))
    assert not thermal.is_radiometric(jpeg(tmp_path / "b.jpg", b"Exif\0\0"))
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff\xe1\0\0")
    assert not thermal.is_radiometric(tmp_path / "c.jpg")


def test_one_file_is_two_sources_in_the_frame_of_the_photo(tmp_path, camera):
    scene = Scene.read([jpeg(tmp_path / "a.jpg")])
    heat, photo = scene.sources
    assert heat.pixels.shape == (120, 160) and photo.pixels.shape == (120, 160, 3) and heat.unit == "°C"
    # s = 160 / 40 / 2 = 2: the spot at (20, 10) lies at 80 - 8 + 2 (20.5 - 20) - 0.5, 60 + 4 + 2 (10.5 - 15) - 0.5
    y, x = np.unravel_index(heat.pixels.argmax(), heat.pixels.shape)
    assert abs(x - 72.5) <= 2 and abs(y - 54.5) <= 2
    assert any("20.0 to 80.0 °C" in finding for finding in scene.findings)
    assert any("camera's own geometry" in finding for finding in scene.findings)


def test_the_frame_may_be_that_of_the_temperatures_and_their_range_given(tmp_path, camera):
    scene = Scene.read([jpeg(tmp_path / "a.jpg")], frame=0, value_range=(0, 100))
    assert scene.sources[0].pixels.shape == (30, 40) and scene.sources[1].pixels.shape == (30, 40, 3)
    assert scene.sources[0].pixels.max() == pytest.approx(0.8)


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
@pytest.mark.parametrize(("name", "shape"), [("FLIR_AX8.jpg", (480, 640))])
def test_the_file_of_a_camera(name, shape):
    pytest.importorskip("flyr")
    scene = Scene.read([SAMPLES / name])
    assert [source.pixels.shape[:2] for source in scene.sources] == [shape, shape]
