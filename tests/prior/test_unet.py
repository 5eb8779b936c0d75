"""The networks: what they return in each prediction type, precision, and diffusers' own ways to save and load them."""

import pytest
import torch
from conftest import tiny_unet
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline

from ddfm.errors import InputError
from ddfm.pipeline import DDFMPipeline
from ddfm.prior.denoiser import Denoiser
from ddfm.prior.load import image_channels, load_prior, size_multiple
from ddfm.prior.precision import cpu_has
from ddfm.prior.unet import ResidualBlock, ResidualUNet, UnshuffleUNet2DModel, _fuses

KINDS = ("sample", "epsilon", "v_prediction")


def residual(seed: int = 0, **config) -> ResidualUNet:
    """Random weights everywhere, the last layer's too, which begin as zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = ResidualUNet(block_out_channels=(8, 16), layers_per_block=(1, 2), **config)
        torch.nn.init.normal_(unet.tail.weight, std=0.1)
    return unet.eval().requires_grad_(False)


@pytest.mark.parametrize("t", [0, 1, 37, 500, 999])
def test_every_prediction_type_says_the_same_x0(t):
    x_t = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    told = []
    for kind in KINDS:
        unet = residual(prediction_type=kind)
        told.append(Denoiser(unet, DDPMScheduler(prediction_type=kind), tile=None)(x_t, t))
    torch.testing.assert_close(told[1], told[0], atol=2e-3, rtol=1e-3)  # eps at t = 999 is divided by 0.006
    torch.testing.assert_close(told[2], told[0], atol=1e-4, rtol=1e-4)


def test_an_untrained_network_is_the_wiener_estimate():
    """Tweedie for Gaussian data of deviation s: x0 = s^2 / (s^2 + sigma^2) y."""
    y = torch.randn(3, 1, 16, 16)
    sigma = torch.tensor([0.01, 0.5, 100.0])
    expected = 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2) * y
    torch.testing.assert_close(ResidualUNet().denoise(y, sigma), expected)


def test_a_time_step_for_each_image_or_one_for_all():
    unet, x = residual(), torch.randn(2, 1, 8, 8)
    each = unet(x, torch.tensor([5, 700])).sample
    torch.testing.assert_close(each[:1], unet(x[:1], 5).sample)
    torch.testing.assert_close(each[1:], unet(x[1:], torch.tensor(700), return_dict=False)[0])


@pytest.mark.skipif(not cpu_has("avx512_bf16"), reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_convolutions_that_clamp_and_add_change_nothing_but_roundings(weights, monkeypatch):
    block, x = ResidualBlock(16).to(weights), torch.randn(2, 16, 24, 40).bfloat16()
    assert _fuses(x) is False  # gradients are wanted
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert _fuses(x) and not _fuses(x.float())
        fused = block(x)
        monkeypatch.setattr("ddfm.prior.unet._fuses", lambda x: False)
        plain = block(x)
    assert fused.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(fused, plain, atol=0.03, rtol=0.01)
    assert (fused - x).abs().max() > 0.05


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_size_multiple_and_image_channels(channels, unshuffle):
    unet = residual(in_channels=channels, unshuffle=unshuffle)
    assert (image_channels(unet), size_multiple(unet)) == (channels, 2 * unshuffle)
    h, w = 3 * size_multiple(unet), size_multiple(unet)
    assert unet(torch.zeros(1, channels, h, w), 9).sample.shape == (1, channels, h, w)


def test_bfloat16_weights_keep_float32_around_them():
    unet, x = residual(), torch.rand(1, 1, 32, 32) * 2 - 1
    half = residual().to(torch.bfloat16)
    for t in (1, 100, 900):
        out = half(x, t).sample
        assert out.dtype == torch.float32
        # c_out is what the network's own error is multiplied by: next to nothing where there is hardly any noise.
        assert (out - unet(x, t).sample).abs().max() < 0.02 * min(1, DDPMScheduler().betas[:t].sum().sqrt() * 2)


@pytest.mark.parametrize("make", [residual, tiny_unet], ids=["residual", "unshuffle"])
def test_save_and_load_as_diffusers_does(make, tmp_path):
    unet, x = make(), torch.randn(1, 1, 16, 16)
    unet.save_pretrained(tmp_path / "unet")
    for options in ({}, {"low_cpu_mem_usage": False}, {"torch_dtype": torch.float32}):
        again = type(unet).from_pretrained(tmp_path / "unet", **options).eval()
        assert torch.equal(again(x, 50).sample, unet(x, 50).sample)


@pytest.mark.parametrize("make", [residual, tiny_unet], ids=["residual", "unshuffle"])
@pytest.mark.parametrize("saved, loader", [(DDPMPipeline, DiffusionPipeline), (DDFMPipeline, DDFMPipeline)])
def test_a_pipeline_is_saved_and_loaded(make, saved, loader, tmp_path):
    unet = make()
    kind = "sample" if isinstance(unet, ResidualUNet) else "epsilon"
    saved(unet, DDPMScheduler(prediction_type=kind)).save_pretrained(tmp_path)
    again = loader.from_pretrained(tmp_path)
    assert type(again) is saved and type(again.unet) is type(unet)
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(again.unet(x, 50).sample, unet(x, 50).sample)
    assert again.scheduler.config["prediction_type"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_load_prior_reads_it(kind, tmp_path):
    unet = residual(prediction_type=kind)
    unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler(prediction_type=kind).save_pretrained(tmp_path / "scheduler")
    prior = load_prior(tmp_path)
    assert isinstance(prior.unet, ResidualUNet) and prior.scheduler.config["prediction_type"] == kind


@pytest.mark.parametrize("other", [{"prediction_type": "epsilon"}, {"prediction_type": "sample", "beta_end": 0.03}])
def test_a_scheduler_that_contradicts_the_network_is_refused(other, tmp_path):
    residual().save_pretrained(tmp_path / "unet")
    DDPMScheduler(**other).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InputError, match="not that of scheduler_config"):
        load_prior(tmp_path)


def test_the_unshuffled_unet_still_counts_its_channels():
    assert [UnshuffleUNet2DModel.image_channels.fget(tiny_unet(c)) for c in (1, 3)] == [1, 3]
