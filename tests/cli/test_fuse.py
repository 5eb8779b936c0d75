"""`ddfm fuse` and `register`: what they write and what they say."""

import io
import json
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
from cli.helpers import SIZE, coloured, complaint, listing
from conftest import made_image
from rich.progress import Progress

import ddfm.cli
import ddfm.cli.loading
import ddfm.pipeline
from ddfm.colour import luma
from ddfm.io import images
from ddfm.palettes import painted
from ddfm.prior import Denoiser
from ddfm.settings import OVERLAP


def test_fuse_writes_the_picture_and_says_where(fuse, folder):
    code, out, _ = fuse()
    assert code == 0 and out.startswith(f"{folder / 'fused.png'}: 46x33, ")
    assert listing(folder) == ["fused.png", "ir.png", "vis.png"]
    fused = PIL.Image.open(folder / "fused.png")
    assert fused.size == SIZE[::-1] and fused.mode == "RGB"


def test_fuse_is_the_function(fuse, folder, prior):
    assert fuse("--seed", 3, "--steps", 2, "--likelihood", "paper", "--sampler", "ddpm", "--contrast", "minmax")[0] == 0
    expected = ddfm.pipeline.fuse(
        folder / "ir.png",
        folder / "vis.png",
        prior=prior,
        device="cpu",
        seed=3,
        likelihood="paper",
        sampler="ddpm",
        num_inference_steps=2,
        contrast="minmax",
    )
    np.testing.assert_allclose(images.read(folder / "fused.png").pixels, expected, atol=0.51 / 255)


def test_fuse_is_reproducible_by_its_seed(fuse, folder):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        assert fuse("--seed", seed, output=name)[0] == 0
    a, b, c = (255 * images.read(folder / name).pixels for name in ("a.png", "b.png", "c.png"))
    assert np.abs(a - b).max() < 1.01 and np.abs(a - b).mean() < 0.01  # rounding may differ, with where memory lies
    assert np.abs(a - c).mean() > 0.1


@pytest.mark.parametrize("likelihood", ["salient", "paper", "released"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_fuse_knows_every_likelihood_and_sampler(fuse, folder, likelihood, sampler):
    assert fuse("--likelihood", likelihood, "--sampler", sampler, "--steps", 2)[0] == 0
    assert images.read(folder / "fused.png").pixels.shape == (*SIZE, 3)


def test_steps_are_counted(fuse, monkeypatch):
    calls, denoise = [], Denoiser.__call__
    monkeypatch.setattr(Denoiser, "__call__", lambda *args: calls.append(1) or denoise(*args))
    fuse("--likelihood", "paper", "--steps", 4)
    assert len(calls) == 4


@pytest.mark.parametrize("mode, channels", [("auto", 3), ("grey", 1), ("first", 1), ("second", 3)])
def test_whose_colour(fuse, folder, mode, channels):
    assert fuse("--colour", mode)[0] == 0
    assert images.read(folder / "fused.png").pixels.ndim == (3 if channels == 3 else 2)


def test_grey_sources_give_a_grey_file(fuse, folder):
    images.write(folder / "other.png", made_image(*SIZE, seed=5) / 255)
    assert fuse(sources=("ir.png", "other.png"))[0] == 0
    assert PIL.Image.open(folder / "fused.png").mode == "L"


@pytest.mark.parametrize("coloured_ones", [(), (2,), (1, 2), (0, 1, 2)], ids=["none", "one", "two", "all"])
def test_three_sources(fuse, folder, prior, coloured_ones):
    names = ("a.png", "b.png", "c.png")
    for k, name in enumerate(names):
        images.write(folder / name, coloured(k) if k in coloured_ones else made_image(*SIZE, seed=k) / 255)
    assert fuse("--steps", 2, sources=names)[0] == 0
    fused = images.read(folder / "fused.png").pixels
    assert fused.ndim == (3 if coloured_ones else 2)
    paths = [folder / name for name in names]
    expected = ddfm.pipeline.fuse(*paths, prior=prior, device="cpu", num_inference_steps=2)
    np.testing.assert_allclose(fused, expected, atol=0.51 / 255)
    assert fuse("--steps", 2, sources=names[:2], output="two.png")[0] == 0
    assert np.abs(luma(images.read(folder / "two.png").pixels) - luma(fused)).mean() > 0.01  # the third one counts


@pytest.mark.parametrize(
    "options, tile, overlap",
    [
        (("--tile", 16, "--overlap", 8), 16, 8),
        (("--tile", 40), 40, OVERLAP),
        (("--tile", "none"), None, OVERLAP),
        ((), "auto", OVERLAP),
    ],
)
def test_tiles_are_those_of_the_function(fuse, folder, prior, options, tile, overlap):
    common = {"prior": prior, "device": "cpu", "likelihood": "paper", "num_inference_steps": 3}
    sources = folder / "ir.png", folder / "vis.png"
    assert fuse("--likelihood", "paper", "--steps", 3, *options)[0] == 0
    expected = ddfm.pipeline.fuse(*sources, tile=tile, tile_overlap=overlap, **common)
    np.testing.assert_allclose(images.read(folder / "fused.png").pixels, expected, atol=0.51 / 255)
    if isinstance(tile, int):
        assert np.abs(expected - ddfm.pipeline.fuse(*sources, tile=None, **common)).max() > 20 / 255  # tiled at all


def test_bfloat16_is_nearly_the_same_and_not_the_same(fuse, folder):
    results = []
    for options in (("--precision", "float32"), ("--precision", "bfloat16", "--overwrite")):
        assert fuse("--depth", 16, "--likelihood", "paper", "--steps", 3, *options)[0] == 0
        results.append(images.read(folder / "fused.png").pixels)
    assert 0 < np.abs(results[1] - results[0]).mean() < 0.05


def test_the_bar_moves_tile_by_tile(fuse, monkeypatch):
    seen, update = [], Progress.update

    def spy(self, task, **changes):
        seen.append((changes["completed"], changes["total"]))
        update(self, task, **changes)

    monkeypatch.setattr(Progress, "update", spy)
    monkeypatch.setattr(type(ddfm.cli.err), "is_terminal", True)
    assert fuse("--likelihood", "paper", "--steps", 2, "--tile", 24, "--overlap", 8)[0] == 0
    np.testing.assert_allclose(seen, [(k / 6, 2) for k in range(1, 13)])  # six tiles of 33 x 46 pixels, twice


@pytest.mark.parametrize(
    "source_bits, depth, output, bits",
    [
        (8, "same", "f.png", 8),
        (16, "same", "f.png", 16),
        (16, "same", "f.tif", 16),
        (16, "same", "f.jpg", 8),
        (16, "8", "f.png", 8),
        (8, "16", "f.tif", 16),
    ],
)
def test_depth_of_the_result(fuse, folder, source_bits, depth, output, bits):
    images.write(folder / "deep.png", made_image(*SIZE, seed=1) / 255, source_bits)
    assert fuse("--depth", depth, sources=("deep.png", "vis.png"), output=output)[0] == 0
    assert images.read(folder / output).bits == bits


@pytest.mark.parametrize("name", ["with space.png", "[bold]red[blue].png", "a[1].png", "ünïcode-図.png", "-dash.png"])
def test_odd_names_work_and_are_shown_as_they_are(fuse, folder, name):
    (folder / "ir.png").rename(folder / name)
    code, out, _ = fuse(sources=(name, "vis.png"), output=f"fused {name}")
    assert code == 0 and out.startswith(f"{folder / f'fused {name}'}: 46x33, ")
    assert (folder / f"fused {name}").exists()


def test_another_file_is_replaced_only_if_asked(fuse, folder):
    (folder / "fused.png").write_text("old")
    assert "exists already" in complaint(fuse())
    assert (folder / "fused.png").read_text() == "old"
    assert fuse("--overwrite")[0] == 0
    assert images.read(folder / "fused.png").pixels.shape == (*SIZE, 3)


def test_align_undoes_a_shift_and_says_so(fuse, folder):
    # Detail everywhere: each half of the image must find its way.
    spots = cv2.GaussianBlur(np.random.default_rng(3).random((140, 170)), (0, 0), 3)
    whole = 0.5 + 0.12 * (spots - spots.mean()) / spots.std()
    images.write(folder / "still.png", whole[4:-4, 4:-4])
    images.write(folder / "moved.png", whole[4:-4, 7:-1])
    results = []
    for options in ((), ("--align", "auto", "--overwrite")):
        code, _, err = fuse(*options, sources=("still.png", "moved.png"))
        assert code == 0
        error = images.read(folder / "fused.png").pixels - images.read(folder / "still.png").pixels
        results.append((np.abs(error[10:-10, 10:-10]).mean(), err.strip()))
    (before, silence), (after, sentence) = results
    assert after < 0.5 * before and sentence and not silence


def test_pictures_that_cannot_be_aligned_are_refused(fuse, folder):
    complaint(fuse("--align", "auto"))
    assert not (folder / "fused.png").exists()


@pytest.fixture
def sensors(folder):
    """small.png, half the resolution and the middle of the field of large.png."""
    spots = cv2.GaussianBlur(np.random.default_rng(3).random((140, 180)), (0, 0), 3)
    large = np.clip(0.5 + 0.12 * (spots - spots.mean()) / spots.std(), 0, 1)
    images.write(folder / "large.png", large)
    images.write(folder / "small.png", cv2.resize(1 - large[14:-14, 18:-18], None, fx=0.5, fy=0.5))
    return folder


def test_sensors_of_two_sizes_are_fused_in_the_frame_of_the_larger(fuse, sensors):
    code, out, err = fuse("--json", sources=("small.png", "large.png"))
    done = json.loads(out)
    assert code == 0 and not err and done["size"] == [180, 140]
    where, frame = done["registrations"]
    assert frame is None and where["moving_size"] == [72, 56]
    np.testing.assert_allclose(where["matrix"][0], (0.5, 0, -9.25), atol=0.5)
    assert "field of view" in done["findings"][0]


def test_a_rig_is_saved_once_and_used_again(ddfm_, fuse, sensors):
    pair = [sensors / name for name in ("small.png", "large.png")]
    rig, aligned = sensors / "rig.json", sensors / "aligned.png"
    code, out, _ = ddfm_("register", *pair, "--save", rig, "--write-aligned", aligned)
    assert code == 0 and f"{rig}: " in out and f"{aligned}: " in out and "matrix from pixels" in out
    assert images.read(aligned).pixels.shape == (140, 180)
    _, _, err = fuse("--rig", rig, "--crop", sources=("small.png", "large.png"))
    height, width = images.read(sensors / "fused.png").pixels.shape
    assert "rig.json" in err and abs(height - 112) <= 6 and abs(width - 144) <= 6
    assert "not for" in complaint(fuse("--rig", rig, "--overwrite", sources=("large.png", "large.png")))
    assert "exists already" in complaint(ddfm_("register", *pair, "--save", rig))
    assert fuse("--rig", rig, "--frame", "first", "--overwrite", sources=("small.png", "large.png"))[0] == 0
    assert images.read(sensors / "fused.png").pixels.shape == (56, 72)
    assert "does not exist" in complaint(fuse("--rig", sensors / "none.json", sources=("small.png", "large.png")))
    for more in (["--align", "auto"], ["--align", "force"], ["--assume-aligned"]):
        assert "drop one of them" in complaint(fuse("--rig", rig, *more, sources=("small.png", "large.png")))


@pytest.mark.parametrize("frame", ["first", "second"])
def test_a_rig_of_two_images_of_one_size_knows_which_is_the_frame(ddfm_, fuse, folder, frame):
    """It was applied backwards, in silence, where another frame was asked for than the default."""
    made = cv2.GaussianBlur(np.random.default_rng(3).random((150, 200), np.float32), (0, 0), 3)
    made = (made - made.min()) / np.ptp(made)
    images.write(folder / "here.png", made[10:130, 10:170])
    images.write(folder / "there.png", made[16:136, 18:178])
    pair = ("here.png", "there.png")
    rig = folder / "rig.json"
    assert ddfm_("register", *(folder / name for name in pair), "--frame", frame, "--save", rig)[0] == 0
    for asked in ("first", "second", "auto"):
        code, out, _ = fuse("--rig", rig, "--frame", asked, "--json", "--overwrite", sources=pair)
        shown = json.loads(out)
        first = asked == "first" or (asked == "auto" and frame == "first")
        assert code == 0 and "order in which they are given" in shown["findings"][0]
        [where] = [place["matrix"] for place in shown["registrations"] if place]
        expected = (-8, -6) if first else (8, 6)
        np.testing.assert_allclose([where[0][2], where[1][2]], expected, atol=0.7)


@pytest.mark.parametrize(
    "options",
    [
        ("--save", "no/rig.json"),
        ("--save", "r.json", "--write-aligned", "a.heic"),
        ("--save", "r.json", "--write-aligned", "a.nii.gz"),
        ("--write-aligned", "no/a.png"),
    ],
)
def test_where_a_registration_cannot_be_written_is_known_before(ddfm_, folder, monkeypatch, options):
    monkeypatch.setattr("ddfm.registration.register", lambda *args: pytest.fail("the images were registered"))
    before = listing(folder)
    paths = [folder / text if "." in text else text for text in options]
    assert "Cannot write" in complaint(ddfm_("register", folder / "ir.png", folder / "vis.png", *paths))
    assert listing(folder) == before


def test_an_unsure_registration_writes_nothing_and_says_so(ddfm_, folder):
    code, out, err = ddfm_("register", folder / "ir.png", folder / "vis.png", "--save", folder / "rig.json")
    assert code == 1 and "not be aligned" in out and "Nothing was written" in err
    assert not (folder / "rig.json").exists()


def test_register_reads_what_fuse_reads(ddfm_, sensors):
    """Raw counts are stretched and said; of a radiometric file the temperatures have another size than its picture."""
    counts = 2000 + np.rint(images.read(sensors / "small.png").pixels * 500).astype(np.uint16)
    tifffile.imwrite(sensors / "counts.tif", counts)
    code, _, err = ddfm_("register", sensors / "counts.tif", sensors / "large.png")
    assert code == 0 and "holds counts" in err
    aligned = sensors / "aligned.jpg"  # which holds 8 bits of the 16, as of `fuse`
    assert ddfm_("register", sensors / "counts.tif", sensors / "large.png", "--write-aligned", aligned)[0] == 0
    assert images.read(aligned).pixels.shape == (140, 180)


def test_assumed_aligned_is_resized_and_said(fuse, sensors):
    code, _, err = fuse("--assume-aligned", "--frame", "first", sources=("small.png", "large.png"))
    assert code == 0 and "resized from 180x140 to 72x56" in err
    assert "drop one" in complaint(fuse("--assume-aligned", "--align", "force", "--overwrite"))
    assert "--align must be" in complaint(fuse("--align", "yes", "--overwrite"))


def test_quiet_says_nothing(fuse):
    assert fuse("--quiet") == (0, "", "")
    _, out, err = fuse("--verbose", "--overwrite")
    assert "fused.png: 46x33" in out and "FusionSettings" in err


def test_a_name_that_the_terminal_cannot_show_is_escaped(fuse, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert fuse("--steps", 1, output="é.png")[0] == 0
    terminal.flush()
    assert rb"\xe9.png: 46x33" in terminal.buffer.getvalue()


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_errors_are_said_all_the_same(fuse, option):
    assert "absent.png does not exist" in complaint(fuse(option, sources=("ir.png", "absent.png")))


def test_a_blend_of_no_palette_is_refused(fuse):
    assert "give --palette" in complaint(fuse("--blend", "0.3"))


def test_a_palette_is_of_the_source_that_is_thermal(fuse, folder):
    """Of two grey sources it painted the first, which was the visible one."""
    images.write(folder / "grey.png", made_image(*SIZE, seed=7) / 255)
    options, pair = ("--palette", "hot", "--blend", 1, "--overwrite"), ("grey.png", "ir.png")
    for roles, name in ((("--roles", "visible thermal"), "ir.png"), ((), "grey.png")):
        code, _, err = fuse(*options, *roles, sources=pair)
        shown = images.read(folder / "fused.png").pixels
        assert code == 0 and ("first grey source" in err) == (not roles)
        np.testing.assert_allclose(shown, painted(images.read(folder / name).pixels, "hot"), atol=0.6 / 255)


def test_a_file_given_twice_is_said(fuse):
    _, _, err = fuse(sources=("ir.png", "vis.png", "ir.png"))
    assert err.count("ir.png is given twice") == 1


def test_how_to_give_a_file_whose_name_begins_with_a_dash(ddfm_, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "ir.png").rename("-ir.png")
    assert "./-ir.png" in complaint(ddfm_("fuse", "-ir.png", "vis.png", "-o", "f.png"))
    assert "./" not in complaint(ddfm_("fuse", "--absent", "vis.png", "-o", "f.png"))


@pytest.mark.parametrize("sources", [("ir.png", "vis.jpg"), ("ir.jpg", "vis.png")])
def test_the_exif_of_either_goes_to_the_result_unless_anonymised(fuse, folder, sources):
    exif = PIL.Image.Exif()
    exif[315] = "Jane Doe"
    for name in ("ir", "vis"):
        PIL.Image.open(folder / f"{name}.png").save(folder / f"{name}.jpg", exif=exif)
    for options, name in (((), "Jane Doe"), (("--anonymise", "--overwrite"), None)):
        assert fuse(*options, sources=sources)[0] == 0
        assert PIL.Image.open(folder / "fused.png").getexif().get(315) == name


def test_counts_are_stretched_by_themselves_and_left_alone_by_a_range(fuse, folder):
    shape = made_image(*SIZE, seed=1).astype(np.uint16)
    contrast = {}
    for name, offset in (("twelve bits", 0), ("raw", 2000)):
        tifffile.imwrite(folder / f"{name}.tif", shape // 4 + offset)
        for how, options in (("by itself", ()), ("normalised", ("--normalise",)), ("as is", ("--range", "0 65535"))):
            assert fuse(*options, "--overwrite", "--colour", "grey", sources=(f"{name}.tif",) * 2)[0] == 0
            contrast[name, how] = images.read(folder / "fused.png").pixels.std()
        assert contrast[name, "by itself"] == contrast[name, "normalised"] > 10 * contrast[name, "as is"]
