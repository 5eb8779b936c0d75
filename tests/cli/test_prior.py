"""`ddfm prior`."""

import pytest
from cli.helpers import complaint


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
