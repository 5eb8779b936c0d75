"""The prior as files: fp16 diffusers folder, a training run's checkpoint, ONNX."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_unet
from diffusers import DDPMScheduler

from ddfm.errors import InputError
from ddfm.prior.export import export_onnx, from_checkpoint, save_prior
from ddfm.prior.load import Prior, load_prior
from ddfm.prior.unet import ResidualUNet

SMALL = {"block_out_channels": (8, 16), "layers_per_block": (1, 1)}


def residual() -> ResidualUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = ResidualUNet(**SMALL)
        torch.nn.init.normal_(unet.tail.weight, std=0.1)
    return unet.eval().requires_grad_(False)


def test_a_saved_prior_is_half_precision_and_loads(tmp_path):
    unet = residual()
    prior = load_prior(save_prior(unet, unet.schedule, tmp_path / "prior"))
    assert unet.dtype == torch.float32
    for old, new in zip(unet.parameters(), prior.unet.parameters(), strict=True):
        assert torch.equal(old.half().float(), new)


@pytest.mark.parametrize("small", [True, False])
def test_a_checkpoint_gives_the_moving_average(small, tmp_path):
    unet = residual() if small else ResidualUNet()
    state = {"ema": unet.state_dict(), "net": {}, "step": 3} | ({"network": SMALL} if small else {})
    torch.save(state, tmp_path / "checkpoint.pt")
    read, scheduler = from_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), unet.parameters(), strict=True))
    assert scheduler.config["prediction_type"] == "sample"


@pytest.mark.parametrize("what", ["missing", "garbage", "no ema", "another network", "not a dict", "a folder"])
def test_what_is_no_checkpoint_is_refused(what, tmp_path):
    path = tmp_path / "checkpoint.pt"
    if what == "garbage":
        path.write_bytes(b"\x80\x04 not a checkpoint")
    elif what == "a folder":
        path.mkdir()
    elif what != "missing":
        other = {"no ema": {"net": {}}, "another network": {"ema": residual().state_dict()}, "not a dict": [1]}
        torch.save(other[what], path)
    with pytest.raises(InputError, match="not the checkpoint.pt of a training run"):  # noqa: RUF043
        from_checkpoint(path)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("make", [residual, tiny_unet], ids=["residual", "unshuffle"])
def test_onnx_computes_what_torch_computes_at_any_size(make, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    unet = make()
    path = export_onnx(Prior(unet, DDPMScheduler(), "tiny"), tmp_path / "prior.onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 64, 48), (3, 1, 16, 80)):
        sample, t = torch.randn(shape), torch.randint(1000, shape[:1])
        out = session.run(None, {"sample": sample.numpy(), "timestep": t.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(out), unet(sample, t).sample, atol=1e-4, rtol=1e-4)


def test_onnx_into_a_folder_that_is_not_there(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match="cannot be written"):
        export_onnx(Prior(residual(), DDPMScheduler(prediction_type="sample"), "tiny"), tmp_path / "no" / "prior.onnx")


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match="ddfm\\[onnx\\]"):
        export_onnx(Prior(residual(), DDPMScheduler(), "tiny"), Path(tmp_path / "prior.onnx"))
