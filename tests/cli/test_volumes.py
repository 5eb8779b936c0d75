"""`ddfm fuse` of volumes."""

import numpy as np
import pytest
from cli.helpers import SIZE, complaint, interrupt, listing

import ddfm.cli
import ddfm.cli.loading
import ddfm.pipeline
from ddfm.io import images
from ddfm.likelihoods import Salient
from ddfm.prior import Denoiser


def test_volumes_are_fused_with_geometry_and_unit(fuse, volumes, prior):
    import nibabel

    before = listing(volumes)
    code, out, _ = fuse("--steps", 2, "--seed", 3, sources=("mri.nii.gz", "pet.nii"), output="f.nii.gz")
    assert code == 0 and out.startswith(f"{volumes / 'f.nii.gz'}: 46x33x4, ")
    assert listing(volumes) == sorted([*before, "f.nii.gz"])
    mri, fused = (nibabel.load(volumes / name) for name in ("mri.nii.gz", "f.nii.gz"))
    np.testing.assert_allclose(fused.affine, mri.affine, atol=1e-6)
    assert fused.shape == mri.shape == (*SIZE[::-1], 4) and fused.header.get_xyzt_units() == ("mm", "sec")
    slices = [images.read_any(volumes / name) for name in ("mri.nii.gz", "pet.nii")]
    settings = {"likelihood": Salient().for_volume([image.pixels for image in slices]), "num_inference_steps": 2}
    expected = ddfm.pipeline.fuse(*(image.pixels[2] for image in slices), prior=prior, device="cpu", seed=3, **settings)
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


def test_a_depth_that_a_volume_cannot_have_is_refused(fuse, volumes):
    options = {"sources": ("mri.nii.gz", "pet.nii"), "output": "f.nii"}
    assert "results have 16" in complaint(fuse("--depth", 8, **options))
    assert fuse("--depth", 16, "--steps", 1, **options)[0] == 0


def test_volumes_get_no_palette(fuse, volumes):
    said = complaint(fuse("--palette", "hot", sources=("mri.nii.gz", "pet.nii"), output="f.nii"))
    assert "A palette is for images" in said


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
