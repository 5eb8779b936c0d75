"""images, decode, medical: whatever comes in, an image or one sentence goes out."""

import contextlib
import errno
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ImageCms

from ddfm.errors import InputError
from ddfm.io import codecs as decode
from ddfm.io import images
from ddfm.io.encode import encode

LOSSLESS = [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".tif", 32), (".tiff", 16), (".bmp", 8)]
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60, derandomize=True)


def picture(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def sentence(error):
    """The text of an InputError, checked to be one line that ends as a sentence does."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) > 20
    return text


def encoded(mode="RGB", format="PNG", size=(20, 15), **options):
    values = (picture((size[1], size[0], 4)) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values, "RGBA").convert("RGB").convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, bits=8, colour=0):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


# ---- there and back
# --------------------------------------------------------------------------------------------


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


# ---- what a file may carry
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "PNG16", "TIFF16"])
def test_orientation(tmp_path, orientation, kind):
    stored = (np.add.outer(np.arange(16) * 4, np.arange(24) * 5)).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = PIL.Image.fromarray(stored)
    path = tmp_path / "a"
    if kind == "TIFF16":
        tifffile.imwrite(path, stored.astype(np.uint16) * 257, extratags=[(274, 3, 1, orientation, True)])
    elif kind == "PNG16":
        buffer = io.BytesIO()
        PIL.Image.fromarray(stored.astype(np.uint16) * 257).save(buffer, "PNG", exif=exif)
        path.write_bytes(buffer.getvalue())
    elif kind == "TIFF":
        image.save(path, kind, tiffinfo={274: orientation})
    else:
        image.save(path, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    # Written out by hand from the TIFF standard, not by the code under test.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).T,
        8: np.rot90(stored, 1),
    }[orientation]
    np.testing.assert_allclose(images.read(path).pixels, upright / 255, atol=3 / 255)


def test_alpha(tmp_path):
    values = (picture((6, 7, 4)) * 255).astype(np.uint8)
    opaque = values.copy()
    opaque[..., 3] = 255
    PIL.Image.fromarray(opaque, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_allclose(images.read(tmp_path / "a.png").pixels, values[..., :3] / 255, atol=1e-6)
    over_black = values[..., :3] / 255 * (values[..., 3:] / 255)
    PIL.Image.fromarray(values, "RGBA").save(tmp_path / "b.png")
    np.testing.assert_allclose(images.read(tmp_path / "b.png").pixels, over_black, atol=0.51 / 255)
    sixteen = values.astype(np.uint16) * 257
    for extra, expected in (("unassalpha", over_black), ("assocalpha", values[..., :3] / 255)):
        tifffile.imwrite(tmp_path / "c.tif", sixteen, photometric="rgb", extrasamples=[extra])
        np.testing.assert_allclose(images.read(tmp_path / "c.tif").pixels, expected, atol=1e-4)


def test_grey_in_three_channels_is_grey(tmp_path):
    grey = (picture((9, 8)) * 255).astype(np.uint8)
    for suffix in ("png", "bmp", "tif"):
        PIL.Image.fromarray(grey).convert("RGB").save(tmp_path / f"a.{suffix}")
        assert np.array_equal(images.read(tmp_path / f"a.{suffix}").pixels, grey / np.float32(255))


def other_profile():
    """sRGB with red and green primaries exchanged: a profile whose effect nobody can overlook."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"RGBs"))
    entries = {
        bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    }
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_profile_becomes_srgb(tmp_path):
    flat = np.zeros((8, 8, 3), np.uint8)
    flat[..., 0] = 255
    PIL.Image.fromarray(flat).save(tmp_path / "a.png", icc_profile=other_profile())
    image = images.read(tmp_path / "a.png")
    assert image.icc is None
    np.testing.assert_allclose(image.pixels[4, 4], [0, 1, 0], atol=0.02)
    PIL.Image.fromarray(flat).save(tmp_path / "b.png", icc_profile=b"nonsense" * 20)
    assert np.array_equal(images.read(tmp_path / "b.png").pixels, flat / np.float32(255))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_like_lends_profile_and_resolution(tmp_path, suffix):
    profile = other_profile()
    like = images.Image(picture((5, 6, 3)), 16, icc=profile, dpi=(300.0, 150.0))
    images.write(tmp_path / f"a{suffix}", like.pixels, 16, like)
    again = images.read(tmp_path / f"a{suffix}")
    assert again.icc == profile and again.dpi == pytest.approx((300, 150), abs=0.02)
    images.write(tmp_path / f"b{suffix}", like.pixels[..., 0], 16, like)  # a colour profile on grey would be wrong
    assert images.read(tmp_path / f"b{suffix}").icc is None


def test_normalise_is_off_robust_and_invertible(tmp_path):
    counts = np.random.default_rng(0).integers(7000, 9000, (100, 120)).astype(np.uint16)
    counts[0, 0], counts[0, 1] = 0, 16383  # a dead and a hot pixel
    images.write(tmp_path / "a.png", counts, 16)
    assert images.read(tmp_path / "a.png").pixels.max() < 0.26
    image = images.read(tmp_path / "a.png", normalise=True)
    assert 7000 <= image.low < 7010 and 8990 < image.high < 9000
    inside = (counts > image.low) & (counts < image.high)
    np.testing.assert_allclose(image.restore(image.pixels)[inside], counts[inside], atol=0.01)
    assert image.pixels.std() > 0.25
    images.write(tmp_path / "b.png", np.full((5, 5), 0.25), 16)
    flat = images.read(tmp_path / "b.png", normalise=True)
    np.testing.assert_allclose(flat.restore(flat.pixels), 16384, atol=0.6)


# ---- bad files
# ---------------------------------------------------------------------------------------------------


def bad_files():
    png, tiff = encoded(), encoded("RGB", "TIFF")
    frames = [PIL.Image.new("L", (20, 15), level) for level in (10, 90, 200)]
    several = {}
    for format in ("GIF", "PNG", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        several[format] = buffer.getvalue()
    nan = io.BytesIO()
    tifffile.imwrite(nan, np.array([[0, np.nan], [1, 0]], np.float32))
    counts = io.BytesIO()
    tifffile.imwrite(counts, np.array([[0, 300.0]], np.float32))
    return {
        "empty": (b"", "empty"),
        "text": (b"hello, I am an image" * 9, "not an image"),
        "cut PNG": (png[: len(png) // 2], "truncated"),
        "cut JPEG": (encoded("RGB", "JPEG")[:400], "truncated"),
        "cut TIFF": (tiff[: len(tiff) // 2], "truncated"),
        "cut BMP": (encoded("RGB", "BMP")[:100], "truncated"),
        "only a header": (png[:20], "truncated"),
        "animated GIF": (several["GIF"], "animated"),
        "animated PNG": (several["PNG"], "animated"),
        "animated WebP": (several["WEBP"], "animated"),
        "pages": (several["TIFF"], "several pages"),
        "CMYK JPEG": (encoded("CMYK", "JPEG"), "CMYK"),
        "CMYK TIFF": (encoded("CMYK", "TIFF"), "CMYK"),
        "Lab": (encoded("LAB", "TIFF"), "CIELAB"),
        "bomb": (png_header(60000, 60000) + chunk(b"IDAT", zlib.compress(bytes(10**6))), "60000x60000"),
        "16-bit bomb": (png_header(15000, 15000, 16) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "15000x15000"),
        "zero width": (png_header(0, 10) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "damaged"),
        "NaN": (nan.getvalue(), "NaN"),
        "float counts": (counts.getvalue(), "normalised"),
    }


@pytest.mark.parametrize("kind", sorted(bad_files()))
def test_bad_file(tmp_path, kind):
    data, word = bad_files()[kind]
    path = tmp_path / "night street.png"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        images.read(path)
    assert word in sentence(error) and "night street.png" in str(error.value)


def test_bad_path(tmp_path):
    for path, word in [
        (tmp_path / "none.png", "not exist"),
        (tmp_path, "folder"),
        ("a\0b.png", "file name"),
        (tmp_path / ("x" * 3000), "too long"),
    ]:
        with pytest.raises(InputError, match=word) as error:
            images.read(path)
        sentence(error)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular"):
        images.read(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permission(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    path.chmod(0)
    with pytest.raises(InputError, match="permission"):
        images.read(path)
    path.chmod(0o444)
    with pytest.raises(InputError, match="read-only"):
        images.write(path, picture((4, 4)))
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="permission"):
        images.write(tmp_path / "b.png", picture((4, 4)))
    tmp_path.chmod(0o755)


def test_ten_thousand_square_is_no_bomb():
    decode._check_size((10_000, 10_000), 97_000, "a flat one")
    with pytest.raises(InputError):
        decode._check_size((20_000, 20_000), 10**9, "too large")


def seeds():
    pixels = picture((24, 19, 3))
    sixteen = (pixels * 65535).astype(np.uint16)
    made = [encoded(*kind) for kind in [("RGB", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("L", "BMP"), ("P", "GIF")]]
    made += [encoded("RGB", "TIFF", compression=c) for c in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    made += [encoded("RGB", "WEBP"), encode(".png", sixteen)]
    for values in (sixteen, pixels, sixteen[..., 0]):
        made.append(encode(".tif", values))
    return made


SEEDS = seeds()


@settings(relaxed, max_examples=500)
@given(
    data=st.sampled_from(SEEDS),
    cut=st.floats(0, 1.5),
    hits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.booleans(), st.integers(0, 255)), max_size=12),
    normalise=st.booleans(),
)
def test_damaged_bytes_give_a_picture_or_a_sentence(tmp_path_factory, data, cut, hits, normalise):
    broken = bytearray(data[: round(cut * len(data))])
    for where, head, value in hits:
        if broken:
            broken[int(where * (min(len(broken), 200) if head else len(broken)))] = value
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(broken)
    try:
        image = images.read(path, normalise)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert image.pixels.dtype == np.float32 and image.pixels.shape[2:] in ((), (3,))
        assert image.pixels.min() >= 0 and image.pixels.max() <= 1


def test_decoders_stay_silent(tmp_path, capfd):
    rng = np.random.default_rng(0)
    for data in SEEDS:
        for _ in range(12):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                broken[at] = rng.integers(256)
            (tmp_path / "broken").write_bytes(broken[: rng.integers(1, 2 * len(data))])
            with contextlib.suppress(InputError):
                images.read(tmp_path / "broken")
    assert capfd.readouterr() == ("", "")


def test_tiff_pages_in_a_circle_end(tmp_path):
    entries = [(256, 20), (257, 10), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 10), (279, 200)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries)
    looped = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)
    (tmp_path / "a.tif").write_bytes(looped.ljust(400, b"\0"))
    code = "import sys; from ddfm.io import images\ntry: images.read(sys.argv[1])\nexcept ValueError: pass"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], timeout=60, check=True)


# ---- writing
# -----------------------------------------------------------------------------------------------------


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
        ("a\0.png", 8, "possible"),
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


# ---- arrays
# ------------------------------------------------------------------------------------------------------


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
