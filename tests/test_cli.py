"""The command line: what it writes, what it says, and that nothing is half-written whatever goes wrong."""

import csv
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
from conftest import made_picture
from rich.progress import Progress

import ddfm.cli
import ddfm.cli.loading
import ddfm.pipeline
from ddfm.cli import main
from ddfm.colour import luma
from ddfm.io import images, medical
from ddfm.prior import Denoiser
from ddfm.runs.execution import image_generator
from ddfm.settings import OVERLAP

SIZE = (33, 46)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """The tiny prior as a folder."""
    from conftest import DDFMPipeline, DDPMScheduler, tiny_unet

    folder = tmp_path_factory.mktemp("prior")
    DDFMPipeline(tiny_unet(), DDPMScheduler(beta_start=1e-4, beta_end=0.02)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """ir.png and vis.png, grey and in colour."""
    images.write(tmp_path / "ir.png", made_picture(*SIZE, seed=1) / 255)
    images.write(tmp_path / "vis.png", coloured(2))
    return tmp_path


def coloured(seed):
    y = made_picture(*SIZE, seed=seed) / 255
    return np.stack([y, 0.8 * y + 0.1, 1 - y], axis=-1)


@pytest.fixture
def ddfm_(monkeypatch, capsys):
    """Runs the console script on arguments: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ddfm", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0  # None is success
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def fuse(ddfm_, folder, prior):
    """`ddfm fuse` on the pair in `folder` with the tiny prior: (exit code, stdout, stderr)."""

    def run(*options, sources=("ir.png", "vis.png"), output="fused.png"):
        paths = [folder / name for name in sources]
        return ddfm_("fuse", *paths, "-o", folder / output, "--prior", prior, "--device", "cpu", *options)

    return run


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def complaint(result):
    """The sentence of a refusal: exit code 2, nothing on stdout, one line on stderr."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and out == "" and len(lines) == 1, (code, out, err)
    assert lines[0].startswith("error: ") and "Traceback" not in err
    return lines[0]


# ------------------------------------------------------------------------------------------------------------- fuse


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
    images.write(folder / "other.png", made_picture(*SIZE, seed=5) / 255)
    assert fuse(sources=("ir.png", "other.png"))[0] == 0
    assert PIL.Image.open(folder / "fused.png").mode == "L"


@pytest.mark.parametrize("coloured_ones", [(), (2,), (1, 2), (0, 1, 2)], ids=["none", "one", "two", "all"])
def test_three_sources(fuse, folder, prior, coloured_ones):
    names = ("a.png", "b.png", "c.png")
    for k, name in enumerate(names):
        images.write(folder / name, coloured(k) if k in coloured_ones else made_picture(*SIZE, seed=k) / 255)
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
    images.write(folder / "deep.png", made_picture(*SIZE, seed=1) / 255, source_bits)
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
    assert ddfm_("register", *pair, "--save", rig, "--write-aligned", aligned)[0] == 0
    assert images.read(aligned).pixels.shape == (140, 180)
    _, _, err = fuse("--rig", rig, "--crop", sources=("small.png", "large.png"))
    height, width = images.read(sensors / "fused.png").pixels.shape
    assert "rig.json" in err and abs(height - 112) <= 6 and abs(width - 144) <= 6
    assert "not for" in complaint(fuse("--rig", rig, "--overwrite", sources=("large.png", "large.png")))
    assert "exists already" in complaint(ddfm_("register", *pair, "--save", rig))


def test_assumed_aligned_is_resized_and_said(fuse, sensors):
    code, _, err = fuse("--assume-aligned", "--frame", "first", sources=("small.png", "large.png"))
    assert code == 0 and "resized from 180x140 to 72x56" in err
    assert "leave one" in complaint(fuse("--assume-aligned", "--align", "force", "--overwrite"))
    assert "--align is" in complaint(fuse("--align", "yes", "--overwrite"))


def test_quiet_says_nothing(fuse):
    assert fuse("--quiet") == (0, "", "")
    _, out, err = fuse("--verbose", "--overwrite")
    assert "fused.png: 46x33" in out and "FusionSettings" in err


def test_normalise_lifts_dark_images_and_raw_counts_are_lifted_by_themselves(fuse, folder):
    shape = made_picture(*SIZE, seed=1).astype(np.uint16)
    contrast = {}
    for name, offset in (("dark", 0), ("raw", 2000)):
        tifffile.imwrite(folder / f"{name}.tif", shape // 4 + offset)
        for options in ((), ("--normalise",)):
            assert fuse(*options, "--overwrite", "--colour", "grey", sources=(f"{name}.tif",) * 2)[0] == 0
            contrast[name, len(options)] = images.read(folder / "fused.png").pixels.std()
    assert contrast["dark", 1] > 10 * contrast["dark", 0]
    assert contrast["raw", 1] == contrast["raw", 0] > 10 * contrast["dark", 0]


# -------------------------------------------------------------------------------------------------------- bad input


def truncated(folder):
    whole = (folder / "ir.png").read_bytes()
    (folder / "bad.png").write_bytes(whole[: len(whole) // 2])


def animated(folder):
    frames = [PIL.Image.fromarray(made_picture(*SIZE, seed=s)) for s in range(2)]
    frames[0].save(folder / "bad.gif", save_all=True, append_images=frames[1:])


BAD_FILES = {
    "missing": ("bad.png", lambda folder: None),
    "text": ("bad.png", lambda folder: (folder / "bad.png").write_text("no image")),
    "truncated": ("bad.png", truncated),
    "empty": ("bad.png", lambda folder: (folder / "bad.png").touch()),
    "a folder": ("bad.png", lambda folder: (folder / "bad.png").mkdir()),
    "of another size": ("bad.png", lambda folder: images.write(folder / "bad.png", np.zeros((20, 46)))),
    "animated": ("bad.gif", animated),
    "CMYK": ("bad.jpg", lambda folder: PIL.Image.new("CMYK", SIZE[::-1]).save(folder / "bad.jpg")),
    "NaN": ("bad.tif", lambda folder: tifffile.imwrite(folder / "bad.tif", np.full(SIZE, np.nan, np.float32))),
    "with brackets": ("[red]bad[/red].png", lambda folder: None),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_written(fuse, folder, what):
    name, make = BAD_FILES[what]
    make(folder)
    before = listing(folder)
    said = complaint(fuse(sources=("ir.png", name)))
    if what != "of another size":
        assert name in said
    assert listing(folder) == before


BAD_OPTIONS = {
    "likelihood": ("--likelihood", "nobody's"),
    "sampler": ("--sampler", "euler"),
    "contrast": ("--contrast", "high"),
    "colour": ("--colour", "third"),
    "depth": ("--depth", "12"),
    "no step": ("--steps", "0"),
    "steps in words": ("--steps", "six"),
    "too many steps": ("--steps", "1001"),
    "tile in words": ("--tile", "large"),
    "no tile": ("--tile", "0"),
    "tile below nothing": ("--tile", "-16"),
    "tile that the network does not take": ("--tile", "18"),
    "overlap below nothing": ("--overlap", "-1"),
    "overlap as large as the tile": ("--tile", "16", "--overlap", "16"),
    "device": ("--device", "gpu"),
    "unknown option": ("--bogus",),
    "prior": ("--prior", "no/such/prior"),
    "prior that is an image": ("--prior", __file__),
}


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_a_bad_option_is_refused_in_one_line_and_nothing_is_written(fuse, folder, what):
    before = listing(folder)
    said = complaint(fuse(*BAD_OPTIONS[what]))
    assert BAD_OPTIONS[what][-1] in said or BAD_OPTIONS[what][0] in said
    assert listing(folder) == before


@pytest.mark.parametrize("output", ["fused.webp", "fused", "nowhere/fused.png", "taken"])
def test_a_bad_output_is_refused_before_the_work(fuse, folder, monkeypatch, output):
    monkeypatch.setattr(ddfm.cli.loading, "pipeline", lambda *args: pytest.fail("the prior was loaded"))
    (folder / "taken").mkdir()
    before = listing(folder)
    complaint(fuse(output=output))
    assert listing(folder) == before


def test_16_bits_do_not_fit_a_jpeg(fuse, folder):
    assert "16 bits" in complaint(fuse("--depth", "16", output="fused.jpg"))


def test_one_source_is_not_a_pair(fuse):
    assert "two or more" in complaint(fuse(sources=("ir.png",)))


def test_three_sources_are_too_many_for_the_paper(fuse):
    assert "two sources" in complaint(fuse("--likelihood", "paper", sources=("ir.png", "vis.png", "ir.png")))


@pytest.mark.parametrize("make", ["text", "pickle"])
def test_a_checkpoint_that_is_not_one_is_refused(fuse, folder, make):
    checkpoint = folder / "model.pt"
    if make == "text":
        checkpoint.write_text("no weights")
    else:
        import torch

        torch.save({"payload": Payload(str(folder / "ran"))}, checkpoint)
    complaint(fuse("--prior", checkpoint))
    assert not (folder / "ran").exists() and not (folder / "fused.png").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_failed_run_leaves_an_older_result_alone(fuse, folder):
    (folder / "fused.png").write_text("old")
    complaint(fuse("--steps", "0"))
    assert (folder / "fused.png").read_text() == "old"


def test_a_bug_keeps_its_traceback(fuse, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Denoiser, "__call__", broken)
    with pytest.raises(ZeroDivisionError):
        fuse()


# ---------------------------------------------------------------------------------------------------------- volumes


@pytest.fixture
def volumes(folder):
    """mri.nii.gz, int16, and pet.nii, float32 in other units: 4 slices; what they hold, (X, Y, Z)."""
    nibabel = pytest.importorskip("nibabel")
    mri, pet = (np.stack([made_picture(*SIZE, seed=s + k).T for k in range(4)], axis=-1) for s in (1, 9))
    affine = np.array([[2, 0, 0, -10], [0, 1.5, 0.2, 5], [0, -0.2, 3, 7], [0, 0, 0, 1]])
    for name, values in (("mri.nii.gz", mri.astype(np.int16) - 300), ("pet.nii", pet.astype(np.float32) / 7)):
        image = nibabel.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, folder / name)
    return folder


def test_volumes_are_fused_with_geometry_and_unit(fuse, volumes, prior):
    import nibabel

    before = listing(volumes)
    code, out, _ = fuse("--steps", 2, "--seed", 3, sources=("mri.nii.gz", "pet.nii"), output="f.nii.gz")
    assert code == 0 and out.startswith(f"{volumes / 'f.nii.gz'}: 46x33x4, ")
    assert listing(volumes) == sorted([*before, "f.nii.gz"])
    mri, fused = (nibabel.load(volumes / name) for name in ("mri.nii.gz", "f.nii.gz"))
    np.testing.assert_allclose(fused.affine, mri.affine, atol=1e-6)
    assert fused.shape == mri.shape == (*SIZE[::-1], 4) and fused.header.get_xyzt_units() == ("mm", "sec")
    slices = [medical.read_volume(volumes / name) for name in ("mri.nii.gz", "pet.nii")]
    expected = ddfm.pipeline.fuse(
        *(image.pixels[2] for image in slices), prior=prior, device="cpu", seed=3, num_inference_steps=2
    )
    expected = slices[0].restore(expected)
    np.testing.assert_allclose(fused.get_fdata()[..., 2].T, expected, atol=1e-3 * np.ptp(mri.get_fdata()))


@pytest.mark.parametrize(
    "sources, output, words",
    [
        (("mri.nii.gz", "ir.png"), "f.nii.gz", ("ir.png is an image", "mri.nii.gz is a volume of 4 slices")),
        (("mri.nii.gz", "short.nii"), "f.nii.gz", ("short.nii", "mri.nii.gz", "do not overlap")),
        (("mri.nii.gz", "pet.nii"), "f.png", ("f.png", "volumes")),
        (("mri.nii.gz", "pet.nii"), "f.dcm", ("DICOM source",)),
        (("mri.nii.gz", "pet.nii"), "pet.nii", ("one of the sources",)),
        (("ir.png", "vis.png"), "f.nii", ("in colour",)),
        (("ir.png", "ir.png"), "f.nii", ("NIfTI source",)),
    ],
)
def test_volumes_that_do_not_fit_are_refused_before_the_work(fuse, volumes, monkeypatch, sources, output, words):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((*SIZE[::-1], 3)), np.eye(4)), volumes / "short.nii")
    monkeypatch.setattr(ddfm.cli.loading, "pipeline", lambda *args: pytest.fail("the prior was loaded"))
    before = listing(volumes)
    said = complaint(fuse(sources=sources, output=output))
    assert all(word in said for word in words), said
    assert listing(volumes) == before


def test_volumes_are_not_aligned(fuse, volumes):
    assert "is a volume" in complaint(fuse("--align", "auto", sources=("mri.nii.gz", "pet.nii"), output="f.nii"))


@pytest.mark.parametrize("where", ["ddfm.io.nifti.encode", "ddfm.io.images.os.replace"])
def test_an_interrupted_volume_leaves_nothing(fuse, volumes, monkeypatch, where):
    monkeypatch.setattr(where, interrupt)
    before = listing(volumes)
    code, out, err = fuse("--steps", 1, sources=("mri.nii.gz", "pet.nii"), output="f.nii.gz")
    assert (code, out, err.strip().splitlines()[-1]) == (130, "", "interrupted")
    assert listing(volumes) == before


def test_a_volume_interrupted_between_slices_leaves_nothing(fuse, volumes, monkeypatch):
    calls, denoise = [], Denoiser.__call__
    monkeypatch.setattr(
        Denoiser, "__call__", lambda *args: calls.append(1) or (interrupt if len(calls) > 5 else denoise)(*args)
    )
    before = listing(volumes)
    assert fuse("--steps", 2, sources=("mri.nii.gz", "pet.nii"), output="f.nii.gz")[0] == 130
    assert len(calls) == 6 and listing(volumes) == before


# ------------------------------------------------------------------------------------------------------- interrupts


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "where", ["ddfm.prior.denoiser.Denoiser.__call__", "ddfm.io.images.read_any", "ddfm.io.images.os.replace"]
)
def test_ctrl_c_ends_cleanly_wherever_it_comes(fuse, folder, monkeypatch, where):
    monkeypatch.setattr(where, interrupt)
    before = listing(folder)
    code, out, err = fuse()
    assert (code, out, err.strip().splitlines()[-1]) == (130, "", "interrupted")
    assert listing(folder) == before


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.fixture
def run_batch(ddfm_, sets, prior):
    def run(*options, sources=("ir", "vis")):
        paths = [sets / name for name in sources]
        common = ("-o", sets / "out", "--prior", prior, "--device", "cpu", "--steps", 2)
        return ddfm_("batch", *paths, *common, *options)

    return run


def test_batch_in_bfloat16_is_another_setting(run_batch, sets):
    assert run_batch("--resume")[1].startswith("2 fused, 0 complete before")
    assert run_batch("--resume", "--precision", "bfloat16")[1].startswith("2 fused, 0 complete before")
    assert run_batch("--resume", "--precision", "bfloat16")[1].startswith("0 fused, 2 complete before")


def test_batch_in_tiles_is_the_function(run_batch, sets, prior):
    options = ("--likelihood", "paper", "--tile", 32, "--overlap", 8, "--depth", 16)
    code, out, err = run_batch(*options)
    assert code == 0 and out.startswith("2 fused, 0 complete before, 0 failed") and "[lonely].png" in err
    pipe = ddfm.pipeline.DDFMPipeline.from_prior(prior)
    common = {"likelihood": "paper", "num_inference_steps": 2}
    sources = [sets / name / "0 [x].png" for name in ("ir", "vis")]
    tiled, whole = (
        pipe(sources, generator=image_generator(0, "0 [x]"), tile=tile, tile_overlap=8, **common).images[0]
        for tile in (32, None)
    )
    fused = images.read(sets / "out" / "0 [x].png").pixels
    np.testing.assert_allclose(fused, tiled, atol=0.51 / 65535 + 1e-5)
    assert np.abs(fused - whole).max() > 0.05
    assert run_batch("--resume", *options)[1].startswith("0 fused, 2 complete before")
    assert run_batch("--resume", *options, "--tile", "none")[1].startswith("2 fused, 0 complete before")


@pytest.mark.parametrize("option", ["--tile", "--depth"])
def test_batch_refuses_nonsense_in_one_line(run_batch, sets, option):
    before = listing(sets)
    assert f"{option} is" in complaint(run_batch(option, "large"))
    assert listing(sets) == before


def test_batch_of_three_sensors(run_batch, sets):
    assert run_batch(sources=("ir", "vis", "[old]"))[0] == 0
    assert "two sources" in complaint(run_batch("--likelihood", "paper", "--overwrite", sources=("ir", "vis", "[old]")))


def test_batch_by_patterns_after_one_option(ddfm_, sets, prior):
    line = ("batch", sets, "--pattern", "ir/{id} [x].png", "vis/{id} [x].png", "-o", sets / "out")
    more = ("--prior", prior, "--device", "cpu", "--steps", 1)
    code, out, err = ddfm_(*line, *more, "--dry-run")
    assert code == 0 and not (sets / "out").exists()
    first, second, last = out.splitlines()
    assert first == f"0: {sets}/ir/0 [x].png + {sets}/vis/0 [x].png -> {sets}/out/0.png" and second.startswith("1: ")
    assert last == "would be: 2 fused, 0 complete before, 0 failed; nothing was written"
    assert "unmatched" in err
    assert ddfm_(*line, *more)[1].startswith("2 fused")
    assert "is complete" in ddfm_(*line, *more, "--dry-run", "--resume")[1]


def test_names_that_are_not_text_are_shown_escaped(ddfm_, sets, prior):
    for folder in ("ir", "vis"):
        (sets / folder / "0 [x].png").rename(sets / folder / os.fsdecode(b"\xff.png"))
    line = ("batch", sets / "ir", sets / "vis", "-o", sets / "out", "--prior", prior, "--device", "cpu", "--steps", 1)
    code, out, _ = ddfm_(*line, "--dry-run")
    assert code == 0 and "\\udcff.png" in out
    (sets / "vis" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    code, _, err = ddfm_(*line)
    assert code == 1 and "\\udcff" in err


def test_batch_of_volumes(run_batch, volumes, sets):
    for folder, name in (("ir", "mri.nii.gz"), ("vis", "pet.nii")):
        (volumes / name).rename(sets / folder / f"head{name[3:]}")
    code, out, _ = run_batch()
    assert code == 0 and out.startswith("3 fused")
    assert listing(sets / "out") == ["0 [x].png", "1 [x].png", "head.nii.gz", "manifest.jsonl"]
    assert run_batch("--resume")[1].startswith("0 fused, 3 complete before")


# -------------------------------------------------------------------------------------------------------- measuring


@pytest.fixture
def sets(tmp_path):
    """Two scenes in ir/ and vis/, fused in ours/ and [old]/; one more in ir/ alone."""
    for k, name in enumerate(("ir", "vis", "ours", "[old]")):
        (tmp_path / name).mkdir()
        for i in range(2):
            images.write(tmp_path / name / f"{i} [x].png", made_picture(*SIZE, seed=10 * i + k) / 255)
    images.write(tmp_path / "ir" / "[lonely].png", made_picture(*SIZE) / 255)
    return tmp_path


@pytest.fixture
def evaluate(ddfm_, sets):
    def run(*options, fused=("ours",), sources=("ir", "vis")):
        arguments = [x for name in fused for x in ("--fused", sets / name if "=" not in name else name)]
        return ddfm_("evaluate", *arguments, *(x for name in sources for x in ("--sources", sets / name)), *options)

    return run


def test_evaluate_shows_every_number_whole_however_narrow_the_terminal(evaluate):
    code, out, err = evaluate(fused=("ours", "[old]"))
    assert code == 0
    assert all(name in out for name in ("ours", "[old]", "EN", "Qabf", "rank")) and "…" not in out
    assert "[lonely].png" in err


def test_evaluate_writes_what_it_shows(evaluate, sets):
    files = [sets / name for name in ("t.csv", "t.json", "t.html")]
    options = [x for file in files for x in (f"--{file.suffix[1:]}", file)]
    assert evaluate("--metrics", "EN,SD", "--published", "roadscene", *options)[0] == 0
    header, row, published = csv.reader(files[0].read_text().splitlines())
    assert header[:4] == ["method", "images", "EN mean", "EN std"]
    assert row[:2] == ["ours", "2"] and published[2] == "7.41"
    assert json.loads(files[1].read_text())["methods"][0]["mean"]["EN"] == pytest.approx(float(row[2]))
    assert "ours" in files[2].read_text() and "http" not in files[2].read_text().replace("http://www.w3.org", "")


def test_evaluate_per_image_and_standard_convention(evaluate, sets):
    code, out, _ = evaluate("--per-image", "--convention", "standard", "--metrics", "EN", "--csv", sets / "t.csv")
    assert code == 0 and "0 [x]" in out and "'standard'" in out
    assert [row[:2] for row in csv.reader((sets / "t.csv").read_text().splitlines())][1:] == [
        ["ours", "0 [x]"],
        ["ours", "1 [x]"],
    ]


def test_evaluate_with_baselines_and_names(evaluate, sets):
    code, out, _ = evaluate("--baselines", "--metrics", "EN", fused=(f"mine={sets / 'ours'}",))
    assert code == 0
    assert all(name in out for name in ("mine", "average", "maximum", "laplacian_pyramid"))


@pytest.mark.parametrize(
    "options, changes",
    [
        (["--metrics", "EN,nope"], {}),
        (["--convention", "mine"], {}),
        (["--published", "mine"], {}),
        (["--csv", "no/such/folder/t.csv"], {}),
        ([], {"sources": ["ir"]}),
        ([], {"sources": ["ir", "nowhere"]}),
        ([], {"fused": ["ours", "ours"]}),
        ([], {"fused": ["nowhere"]}),
    ],
    ids=["metric", "convention", "published", "csv", "one source", "no source", "two of a name", "no fused"],
)
def test_evaluate_refuses_in_one_line(evaluate, options, changes):
    code, _, err = evaluate(*options, **changes)
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(sentences) == 1 and "Traceback" not in err


def test_bench_fuses_measures_and_times(ddfm_, sets, prior):
    code, out, _ = ddfm_(
        *("bench", "--sources", sets / "ir", "--sources", sets / "vis", "--prior", prior, "--device", "cpu"),
        *("--likelihood", "salient", "--also", "released", "--steps", 2, "--metrics", "EN,SD"),
        *("-o", sets / "kept", "--json", sets / "t.json", "--html", sets / "t.html", "--csv", sets / "t.csv"),
        *("--published", "tno"),
    )
    assert code == 0
    assert all(word in out for word in ("salient", "released", "laplacian_pyramid", "s/pair"))
    assert "beats salient" in out or "comes nearest to salient" in out
    assert listing(sets / "kept" / "released") == ["0 [x].png", "1 [x].png"]
    methods = json.loads((sets / "t.json").read_text())["methods"]
    assert [m["name"] for m in methods][:2] == ["salient", "released"] and methods[0]["seconds_per_pair"] > 0
    assert (sets / "t.html").stat().st_size > 1000 and (sets / "t.csv").exists()


def test_bench_in_tiles(ddfm_, sets, prior, monkeypatch):
    tiles, denoise = [], Denoiser.__call__
    monkeypatch.setattr(
        Denoiser,
        "__call__",
        lambda self, *args: tiles.append((self.tile, self.tile_overlap)) or denoise(self, *args),
    )
    folders = ("--sources", sets / "ir", "--sources", sets / "vis", "--metrics", "EN", "--steps", 1)
    assert ddfm_("bench", *folders, "--prior", prior, "--tile", 16, "--overlap", 4)[0] == 0
    assert set(tiles) == {(16, 4)}
    assert "--tile is a number" in complaint(ddfm_("bench", *folders, "--prior", prior, "--tile", "large"))


def test_bench_refuses_an_unknown_likelihood(ddfm_, sets, prior):
    folders = ("--sources", sets / "ir", "--sources", sets / "vis")
    complaint(ddfm_("bench", *folders, "--prior", prior, "--likelihood", "mine"))


# ------------------------------------------------------------------------------------------------------ the others


def test_prior_info(ddfm_, prior):
    code, out, _ = ddfm_("prior", "info", prior)
    assert code == 0
    assert all(word in out for word in ("UnshuffleUNet2DModel", "channels 1", "multiples of 4", "epsilon", "1000"))


@pytest.mark.parametrize("command", [("info", "no/such/prior"), ("pull", "nobody's")])
def test_prior_refuses_what_is_not_there(ddfm_, command):
    complaint(ddfm_("prior", *command))


def test_prior_export_writes_onnx_once(ddfm_, tmp_path):
    pytest.importorskip("onnx")
    target = tmp_path / "prior.onnx"
    assert ddfm_("prior", "export", "--onnx", target)[0] == 0
    written = target.read_bytes()
    code, _, stderr = ddfm_("prior", "export", "--onnx", target)
    assert code == 2 and "--overwrite" in stderr and target.read_bytes() == written


def test_prior_train_refuses_a_folder_without_pictures(ddfm_, tmp_path):
    (tmp_path / "empty").mkdir()
    complaint(ddfm_("prior", "train", tmp_path / "empty", "-o", tmp_path / "run", "--steps", 1))


DEMO = sorted(
    [f"head_{kind}.png" for kind in ("pet_mri", "pet_pet", "spect_mri", "spect_spect", "ct_mri", "ct_ct")]
    + ["night_street_infrared.png", "night_street_visible.png"]
    + [f"{name}_{what}.png" for name in ("night_street", "head_pet") for what in ("fused", "side_by_side")]
)


def test_demo_draws_fuses_and_shows(ddfm_, tmp_path, prior, monkeypatch):
    load = ddfm.cli.loading.pipeline
    monkeypatch.setattr(ddfm.cli.loading, "pipeline", lambda name, device: load(str(prior), device))
    code, out, _ = ddfm_("demo", tmp_path / "new" / "demo", "--device", "cpu")
    assert code == 0 and len(out.splitlines()) == 4
    assert listing(tmp_path / "new" / "demo") == DEMO
    assert images.read(tmp_path / "new" / "demo" / "head_pet_fused.png").pixels.shape == (256, 256, 3)


@pytest.mark.slow
def test_demo_in_full(ddfm_, tmp_path):
    assert ddfm_("demo", tmp_path)[0] == 0
    assert listing(tmp_path) == DEMO


def test_demo_where_a_file_is_in_the_way(ddfm_, tmp_path):
    (tmp_path / "taken").touch()
    assert "taken" in complaint(ddfm_("demo", tmp_path / "taken"))


@pytest.mark.parametrize("arguments", [("nope",), ("fuse",), ("fuse", "a.png"), ("prior", "nope"), ("evaluate",)])
def test_a_wrong_call_is_refused_in_one_line(ddfm_, arguments):
    complaint(ddfm_(*arguments))


@pytest.mark.parametrize("arguments", [("--help",), ("fuse", "--help"), ("prior", "--help")])
def test_help_helps(ddfm_, arguments):
    code, out, _ = ddfm_(*arguments)
    assert code == 0 and "Usage: ddfm" in out


# ------------------------------------------------------------------------------------------------- as a real process


def process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


HEAVY = ("torch", "diffusers", "cv2", "scipy", "numpy")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fuse", "--help"]])
def test_version_and_help_import_nothing_heavy(arguments):
    code = f"""
import sys
sys.argv = ["ddfm", *{arguments}]
from ddfm.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("heavy: []")


def test_exit_code_and_sentence_of_a_real_process(tmp_path):
    done = process("-m", "ddfm.cli", "fuse", "a.png", "b.png", "-o", str(tmp_path / "c.png"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: a.png does not exist; check the name.\n"
    assert listing(tmp_path) == []
