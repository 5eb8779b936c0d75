"""Image files and arrays: there and back, writing."""

import errno
import os

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, picture, relaxed, sentence

from ddfm.errors import InputError
from ddfm.io import images

LOSSLESS = [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".tif", 32), (".tiff", 16), (".bmp", 8)]


@pytest.mark.parametrize(("suffix", "bits"), LOSSLESS)
@relaxed
@given(height=st.integers(1, 300), width=st.integers(1, 300), colour=st.booleans(), seed=st.integers(0, 9))
def test_round_trip_rounds_and_nothing_else(tmp_path_factory, suffix, bits, height, width, colour, seed):
    height, width = (height, 1 + width % 8) if seed % 2 else (1 + height % 8, width)  # thin ones: quick, and odd
    pixels = picture((height, width, 3) if colour else (height, width), seed)
    path = tmp_path_factory.mktemp("trip") / f"a{suffix}"
    images.write(path, pixels, bits)
    image = images.read(path)
    full = {8: 255, 16: 65535, 32: None}[bits]
    expected = pixels if full is None else np.rint(pixels * full) / full
    assert image.bits == bits and image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels, expected, atol=1e-7, rtol=0)
    images.write(path, image.pixels, bits)  # once more: nothing moves
    assert np.array_equal(images.read(path).pixels, image.pixels)


def test_every_16_bit_value_survives(tmp_path):
    counts = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for suffix in (".png", ".tif"):
        images.write(tmp_path / f"a{suffix}", counts, 16)
        image = images.read(tmp_path / f"a{suffix}")
        assert np.array_equal(np.rint(image.restore(image.pixels)), counts)
    colour = np.stack([counts, counts.T, counts[::-1]], -1)
    images.write(tmp_path / "c.png", colour, 16)
    assert np.array_equal(np.rint(images.read(tmp_path / "c.png").pixels * 65535), colour)


def test_half_goes_to_even(tmp_path):
    images.write(tmp_path / "a.png", np.array([[0.5, 1.5, 2.5, 3.5]]) / 255)
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "a.png")), [[0, 2, 2, 4]])


def test_jpeg_is_close(tmp_path):
    y, x = np.mgrid[0:64, 0:80] / 80
    pixels = np.stack([x, y, 1 - x], -1).astype(np.float32)
    images.write(tmp_path / "a.jpg", pixels)
    assert np.abs(images.read(tmp_path / "a.jpg").pixels - pixels).max() < 0.03


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_tiff_of_others(tmp_path, mode, options):
    (tmp_path / "a.tif").write_bytes(encoded(mode, "TIFF", **options))
    (tmp_path / "a.png").write_bytes(encoded(mode, "PNG"))
    assert np.array_equal(images.read(tmp_path / "a.tif").pixels, images.read(tmp_path / "a.png").pixels)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_tiff_of_tifffile(tmp_path, planar, dtype):
    pixels = picture((12, 17, 3))
    values = (pixels * 65535).astype(dtype) if dtype == np.uint16 else pixels.astype(dtype)
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    options = {"photometric": "rgb", "planarconfig": planar, "byteorder": ">"}
    tifffile.imwrite(tmp_path / "a.tif", stored, compression="zlib", **options)
    image = images.read(tmp_path / "a.tif")
    np.testing.assert_allclose(image.pixels, pixels, atol=1.1 / 65535)
    assert image.bits == (16 if dtype == np.uint16 else 32)


def test_white_is_zero(tmp_path):
    values = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    np.testing.assert_allclose(images.read(tmp_path / "a.tif").pixels, (65535 - values) / 65535, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["a b.png", "nächtliche Straße 夜.tif", "two\nlines.png", "-o.png", ".png.jpg", "%s{}.bmp"]
)
def test_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images.write(name, picture((8, 9, 3)))
    assert images.read(name).pixels.shape == (8, 9, 3)
    assert os.listdir() == [name]
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError) as error:
        images.read(name)
    sentence(error)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "no space"), OSError(errno.EIO, "I/O"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_leaves_the_old_file(tmp_path, monkeypatch, fault, call):
    path = tmp_path / "a.png"
    images.write(path, picture((8, 9)))
    before = path.read_bytes()

    def fail(*_):
        raise fault

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError if isinstance(fault, OSError) else KeyboardInterrupt) as error:
        images.write(path, picture((30, 30)))
    if fault.args and fault.errno == errno.ENOSPC:
        assert "disk is full" in sentence(error)
    assert os.listdir(tmp_path) == ["a.png"] and path.read_bytes() == before


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for target, bits, word in [
        (tmp_path / "a.xyz", 8, "must end in"),
        (tmp_path / "a", 8, "must end in"),
        (tmp_path / "a.jpg", 16, "16 bits"),
        (tmp_path / "none" / "a.png", 8, "does not exist"),
        (tmp_path / "file" / "a.png", 8, "folder"),
        ("a\0.png", 8, "valid file name"),
    ]:
        with pytest.raises(InputError, match=word) as error:
            images.write(target, picture((4, 4)), bits)
        sentence(error)
        with pytest.raises(InputError, match=word):  # known before the long work, too
            images.check_target(target, bits)
    (tmp_path / "d.png").mkdir()
    with pytest.raises(InputError, match="folder"):
        images.write(tmp_path / "d.png", picture((4, 4)))
    assert sorted(os.listdir(tmp_path)) == ["d.png", "file"]


def test_link_is_followed(tmp_path):
    images.write(tmp_path / "a.png", picture((4, 4)))
    (tmp_path / "b.png").symlink_to("a.png")
    images.write(tmp_path / "b.png", picture((5, 5)))
    assert (tmp_path / "b.png").is_symlink() and images.read(tmp_path / "a.png").pixels.shape == (5, 5)


@relaxed
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 9),
    channels=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from(["u1", "<u2", ">u2", "f2", "<f4", ">f4", "f8"]),
)
def test_arrays_of_every_kind(height, width, channels, dtype):
    unit = picture((height, width) + ((channels,) if channels else ()), height)
    full = {"u1": 255, "u2": 65535}.get(dtype.lstrip("<>"), 1)
    values = (unit * full).astype(dtype)[::-1]
    pixels = images.as_pixels(values)
    assert pixels.dtype == np.float32 and pixels.flags.c_contiguous and not np.shares_memory(pixels, values)
    expected = values.astype(np.float64) / full
    np.testing.assert_allclose(pixels, expected[..., 0] if channels == 1 else expected, atol=1e-7)
    if dtype not in ("<u2", ">u2", ">f4"):
        tensor = torch.from_numpy(values.copy())
        if not channels or height > 3:  # else channels first wins
            assert np.array_equal(images.as_pixels(tensor), pixels)
        if channels:
            chw = tensor.permute(2, 0, 1)
            assert np.array_equal(images.as_pixels(chw), pixels)


def test_other_things_than_arrays(tmp_path):
    grey = (picture((9, 8)) * 255).astype(np.uint8)
    images.write(tmp_path / "a.png", grey)
    for x in (str(tmp_path / "a.png"), tmp_path / "a.png", images.read(tmp_path / "a.png"), PIL.Image.fromarray(grey)):
        assert np.array_equal(images.as_pixels(x), grey / np.float32(255))
    assert images.as_pixels(torch.rand(1, 5, 6).bfloat16()).shape == (5, 6)
    assert images.as_pixels(torch.rand(5, 6, requires_grad=True)).shape == (5, 6)
    assert images.as_pixels(np.stack([grey] * 3, -1)).shape == (9, 8, 3)
    assert images.as_pixels(np.full((2, 2), 1.00005)).max() == 1


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf), "infinity"),
        (np.full((4, 4), 1.5), "\\[0, 1\\]"),
        (np.full((4, 4), -0.5), "\\[0, 1\\]"),
        (np.zeros(4), "shape"),
        (np.zeros((2, 4, 4)), "shape"),
        (np.zeros((4, 4, 2)), "shape"),
        (np.zeros((1, 4, 4, 3)), "shape"),
        (np.zeros((0, 4)), "empty"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), complex), "complex"),
        (np.zeros((4, 4), object), "object"),
        (np.array([["a"]]), "not"),
        (torch.zeros(2, 5, 6), "shape"),
        (PIL.Image.new("CMYK", (4, 4)), "CMYK"),
        ([[0.5]], "list"),
        (None, "NoneType"),
    ],
)
def test_bad_array(x, word):
    with pytest.raises(InputError, match=word) as error:
        images.as_pixels(x)
    sentence(error)


def test_what_is_assumed_about_a_path_is_a_warning(tmp_path):
    """Of a sensor's counts: as one tone, which they are by their full scale, they would vanish from a fusion."""
    counts = 7000 + np.arange(20 * 24, dtype=np.uint16).reshape(20, 24)
    PIL.Image.fromarray(counts).save(tmp_path / "counts.png")
    with pytest.warns(UserWarning, match=r"counts\.png holds counts from 7000 to 7479"):
        assert np.ptp(images.as_pixels(tmp_path / "counts.png")) == 1
    with pytest.warns(UserWarning, match=r"The PIL image is transparent in places; black"):
        assert images.as_pixels(PIL.Image.new("RGBA", (4, 4), (255, 255, 255, 51)))[0, 0] == pytest.approx(0.2)
