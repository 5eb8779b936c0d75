"""The console script in this process, on a tiny prior."""

import sys

import numpy as np
import pytest
from cli.helpers import SIZE, coloured
from conftest import made_image

from ddfm.cli import main
from ddfm.io import images


@pytest.fixture
def folder(tmp_path):
    """ir.png and vis.png, grey and in colour."""
    images.write(tmp_path / "ir.png", made_image(*SIZE, seed=1) / 255)
    images.write(tmp_path / "vis.png", coloured(2))
    return tmp_path


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


@pytest.fixture
def volumes(folder):
    """mri.nii.gz, int16, and pet.nii, float32 in other units: 4 slices; what they hold, (X, Y, Z)."""
    nibabel = pytest.importorskip("nibabel")
    mri, pet = (np.stack([made_image(*SIZE, seed=s + k).T for k in range(4)], axis=-1) for s in (1, 9))
    affine = np.array([[2, 0, 0, -10], [0, 1.5, 0.2, 5], [0, -0.2, 3, 7], [0, 0, 0, 1]])
    for name, values in (("mri.nii.gz", mri.astype(np.int16) - 300), ("pet.nii", pet.astype(np.float32) / 7)):
        image = nibabel.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, folder / name)
    return folder


@pytest.fixture
def sets(tmp_path):
    """Two scenes in ir/ and vis/, fused in ours/ and [old]/; one more in ir/ alone."""
    for k, name in enumerate(("ir", "vis", "ours", "[old]")):
        (tmp_path / name).mkdir()
        for i in range(2):
            images.write(tmp_path / name / f"{i} [x].png", made_image(*SIZE, seed=10 * i + k) / 255)
    images.write(tmp_path / "ir" / "[lonely].png", made_image(*SIZE) / 255)
    return tmp_path
