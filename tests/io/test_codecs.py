"""Codecs: files that other programs write, in every storage of TIFF, come out as what they show."""

import io
import warnings

import numpy as np
import PIL.Image
import pytest
import tifffile

from ddfm.errors import InputError
from ddfm.io import images

SHAPE = (20, 24)
RANDOM = np.random.default_rng(0)
COMPRESSIONS = [None, "lzw", "zlib", "packbits"]


def grey(dtype):
    ramp = np.add.outer(np.arange(SHAPE[0]), 2 * np.arange(SHAPE[1])) / (SHAPE[0] + 2 * SHAPE[1])
    return ramp.astype(dtype) if np.dtype(dtype).kind == "f" else (ramp * np.iinfo(dtype).max).astype(dtype)


def colour(dtype):
    return np.stack([grey(dtype), grey(dtype)[::-1], grey(dtype)[:, ::-1]], axis=-1)


def unit(values):
    return values / (1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)


def read(tmp_path, values, **options):
    tifffile.imwrite(tmp_path / "a.tif", values, **{"metadata": None, **options})
    return images.read(tmp_path / "a.tif").pixels


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_applied_once(tmp_path, compression, dtype):
    alpha = np.full((*SHAPE, 1), np.iinfo(dtype).max // 2, dtype)
    rgba = np.concatenate([colour(dtype), alpha], axis=-1)
    pixels = read(tmp_path, rgba, photometric="rgb", extrasamples=["unassalpha"], compression=compression)
    np.testing.assert_allclose(pixels, unit(colour(dtype)) / 2, atol=3e-3)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone_once(tmp_path, compression, orientation):
    upright = grey(np.uint16)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: upright.T[:, ::-1].T[::-1].T[::-1], 7: upright[::-1, ::-1].T, 8: upright.T,
    }[orientation]  # fmt: skip
    if orientation in (6, 8):  # row 0 is the right or the left side of the scene
        stored = np.rot90(upright, 1 if orientation == 6 else -1)
    tags = [(274, "H", 1, orientation, True)]
    pixels = read(tmp_path, np.ascontiguousarray(stored), compression=compression, extratags=tags)
    np.testing.assert_allclose(pixels, unit(upright), atol=1e-6)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero(tmp_path, compression, dtype):
    pixels = read(tmp_path, grey(dtype), photometric="miniswhite", compression=compression)
    np.testing.assert_allclose(pixels, 1 - unit(grey(dtype)), atol=1e-6)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_separate_planes(tmp_path, compression, dtype):
    planes = np.moveaxis(colour(dtype), -1, 0)
    pixels = read(tmp_path, planes, photometric="rgb", planarconfig="separate", compression=compression)
    np.testing.assert_allclose(pixels, unit(colour(dtype)), atol=1e-6)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_packed_counts_of_sensors(tmp_path, bits, photometric):
    values = (grey(np.uint16) >> (16 - bits)).astype(np.uint16)
    pixels = read(tmp_path, values, bitspersample=bits, photometric=photometric)
    expected = values / (2**bits - 1)
    np.testing.assert_allclose(pixels, expected if photometric == "minisblack" else 1 - expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_a_few_bits(tmp_path, bits):
    values = (grey(np.uint8) >> (8 - bits)).astype(np.uint8)
    pixels = read(tmp_path, values, bitspersample=bits)
    np.testing.assert_allclose(pixels, values / (2**bits - 1), atol=1e-6)


def test_a_palette_of_two_colours(tmp_path):
    image = PIL.Image.fromarray((grey(np.uint8) > 100).astype(np.uint8))
    image.putpalette([10, 20, 200, 250, 130, 0])
    image.save(tmp_path / "a.png", bits=1)
    image.save(tmp_path / "a.tif")
    expected = np.where((grey(np.uint8) > 100)[..., None], [250, 130, 0], [10, 20, 200]) / 255
    for name in ("a.png", "a.tif"):
        np.testing.assert_allclose(images.read(tmp_path / name).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"truncate": True}, {"imagej": True}, {}])
def test_a_stack_is_not_its_first_image(tmp_path, options):
    kwargs = {"metadata": {"axes": "ZYX"}} if options.get("imagej") else {}
    tifffile.imwrite(tmp_path / "a.tif", np.stack([grey(np.uint8)] * 5), **options, **kwargs)
    with pytest.raises(InputError, match="several pages"):
        images.read(tmp_path / "a.tif")


def test_png_of_sixteen_bits_with_alpha_and_interlace(tmp_path):
    import imagecodecs

    alpha = np.full((*SHAPE, 1), 2**15, np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.concatenate([colour(np.uint16), alpha], axis=-1)))
    np.testing.assert_allclose(images.read(tmp_path / "a.png").pixels, unit(colour(np.uint16)) / 2, atol=1e-4)


def test_counts_of_a_narrow_range_are_scaled_for_fusion_and_said(tmp_path):
    """A thermal camera's 7224..8107 of 65535, which would be one tone of grey beside a photo."""
    counts = (7224 + grey(np.float64) * (8107 - 7224)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", counts)
    source = images.read_any(tmp_path / "a.tif")
    assert source.pixels.min() == 0 and source.pixels.max() == 1
    assert "7224 to" in source.findings[0] and "black and white" in source.findings[0]
    np.testing.assert_allclose(source.restore(source.pixels)[4:-4, 4:-4], counts[4:-4, 4:-4], atol=1)
    as_they_are = images.read(tmp_path / "a.tif")
    np.testing.assert_allclose(as_they_are.pixels, counts / 65535, atol=1e-6)
    assert not as_they_are.findings


@pytest.mark.parametrize("white", [4095, 16383])
def test_counts_of_twelve_or_fourteen_bits_are_scaled_for_fusion_and_said(tmp_path, white):
    """Taken as they are they would vanish beside another image."""
    counts = np.rint(grey(np.float64) * white).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", counts)
    source = images.read_any(tmp_path / "a.tif")
    assert source.pixels.max() == 1 and f"counts from {counts.min()} to {counts.max()}" in source.findings[0]
    as_they_are = images.read_any(tmp_path / "a.tif", value_range=(0, 65535))
    np.testing.assert_allclose(as_they_are.pixels, counts / 65535, atol=1e-6)
    assert not as_they_are.findings


def test_infinity_is_one_sentence_and_no_warning(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.where(grey(np.float32) < 0.1, np.inf, 20.0).astype(np.float32))
    with warnings.catch_warnings(), pytest.raises(InputError, match="NaN or infinity"):
        warnings.simplefilter("error")
        images.read_any(tmp_path / "a.tif")


def test_a_range_in_the_unit_of_the_file(tmp_path):
    celsius = (grey(np.float32) * 80 - 20).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", celsius)
    pixels = images.read(tmp_path / "a.tif", value_range=(0, 40)).pixels
    np.testing.assert_allclose(pixels, np.clip(celsius / 40, 0, 1), atol=1e-5)
    whole = images.read(tmp_path / "a.tif", normalise=True, value_range=(-100, 100)).pixels
    np.testing.assert_allclose(whole, (celsius + 100) / 200, atol=1e-5)  # no percentile clips what is in the range
    with pytest.raises(InputError, match="lower to a higher"):
        images.read(tmp_path / "a.tif", value_range=(40, 0))


@pytest.mark.parametrize("no_data", [-9999, np.nan])
def test_pixels_without_data_are_black_and_count_in_no_percentile(tmp_path, no_data):
    """A thermal map: a quarter of the rectangle is not covered."""
    celsius = (grey(np.float32) * 30 + 5).astype(np.float32)
    celsius[: len(celsius) // 4] = no_data
    tifffile.imwrite(tmp_path / "map.tif", celsius, extratags=[(42113, 2, 0, f"{no_data}", True)])
    image = images.read_any(tmp_path / "map.tif")
    inside = celsius[len(celsius) // 4 :]
    assert image.low >= inside.min() and image.high <= inside.max() and np.ptp(image.pixels[len(inside) :]) > 0.5
    assert (image.pixels[: len(celsius) // 4] == 0).all()
    assert "map.tif has no data in " in image.findings[0]
    hot = images.read_any(tmp_path / "map.tif", value_range=(-20000, 100))
    assert (hot.pixels[: len(celsius) // 4] == 0).all() and hot.pixels.max() > 0.99
    celsius[:] = no_data
    tifffile.imwrite(tmp_path / "map.tif", celsius, extratags=[(42113, 2, 0, f"{no_data}", True)])
    with pytest.raises(InputError, match="no data in any"):
        images.read_any(tmp_path / "map.tif")


def test_exif_goes_to_the_result(tmp_path):
    exif = PIL.Image.Exif()
    exif[271], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8825)[1] = "N"
    PIL.Image.fromarray(grey(np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    source = images.read(tmp_path / "a.jpg")
    assert source.pixels.shape == SHAPE[::-1]
    for suffix in (".jpg", ".png", ".tif"):
        images.write(tmp_path / f"b{suffix}", source.pixels, like=source)
        again = PIL.Image.open(tmp_path / f"b{suffix}").getexif()
        assert again[271].strip("\0") == "Maker" and again.get(0x0112, 1) == 1 and again.get_ifd(0x8825)[1] == "N"


def test_no_library_speaks_on_standard_error(tmp_path, capfd):
    tifffile.imwrite(tmp_path / "a.tif", grey(np.uint8))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for cut in range(8, len(data), 97):
        (tmp_path / "b.tif").write_bytes(data[:cut])
        with pytest.raises(InputError):
            images.read(tmp_path / "b.tif")
    assert capfd.readouterr().err == ""


def test_a_sparse_file_of_gigabytes_is_refused_at_once(tmp_path):
    buffer = io.BytesIO()
    PIL.Image.fromarray(grey(np.uint8)).save(buffer, "PNG")
    with (tmp_path / "a.png").open("wb") as file:
        file.write(buffer.getvalue())
        file.truncate(2**32)
    with pytest.raises(InputError, match="larger than"):
        images.read(tmp_path / "a.png")


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once(tmp_path):
    """Each costs a pass over all pixels and a few bytes: 100 KiB would take the decoder minutes."""
    buffer = io.BytesIO()
    PIL.Image.new("L", (64, 48)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(data)
    assert images.read(tmp_path / "a.jpg").pixels.shape == (48, 64)
    many = data[:-2] + 200 * data[data.rindex(b"\xff\xda") : -2] + data[-2:]
    (tmp_path / "a.jpg").write_bytes(many)
    with pytest.raises(InputError, match="more than 100 scans"):
        images.read(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "a.tif", iter([many]), shape=(48, 64), dtype=np.uint8, rowsperstrip=48, compression=7)
    with pytest.raises(InputError, match="more than 100 scans"):
        images.read(tmp_path / "a.tif")
