"""What an image file may carry, and bad files."""

import contextlib
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
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, picture, relaxed, sentence
from PIL import ImageCms

from ddfm.errors import InputError
from ddfm.io import codecs as decode
from ddfm.io import images
from ddfm.io.encode import encode


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, bits=8, colour=0):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


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
    assert [len(images.read(tmp_path / name).findings) for name in ("a.png", "b.png")] == [0, 1]  # said
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
    """What is called sRGB, with red and green primaries exchanged: a profile whose effect nobody can overlook."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
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
    np.testing.assert_allclose(image.pixels[4, 4], [0, 1, 0], atol=0.02)
    images.write(tmp_path / "c.jpg", image.pixels, like=image)  # and the result says that it is sRGB
    described = ImageCms.getProfileName(io.BytesIO(PIL.Image.open(tmp_path / "c.jpg").info["icc_profile"]))
    assert "sRGB" in described
    PIL.Image.fromarray(flat).save(tmp_path / "b.png", icc_profile=b"nonsense" * 20)
    broken = images.read(tmp_path / "b.png")
    assert np.array_equal(broken.pixels, flat / np.float32(255)) and broken.icc is None


@pytest.mark.parametrize("name", ["sRGB", "mine"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_srgb_by_any_name_reaches_the_result_and_moves_no_pixel(tmp_path, suffix, name):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))
    assert name.encode("utf-16-be") in profile
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(tmp_path / "a.png", icc_profile=profile)
    image = images.read(tmp_path / "a.png")
    assert np.array_equal(image.pixels, values / np.float32(255))
    images.write(tmp_path / f"b{suffix}", image.pixels, like=image)
    assert PIL.Image.open(tmp_path / f"b{suffix}").info["icc_profile"] == profile


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
