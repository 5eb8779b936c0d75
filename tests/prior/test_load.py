"""p(f): x_t -> x0 at any size, what load_prior reads and refuses, and the prior in the package."""

import json
import math
import pickle

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import made_image, tiny_unet
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddfm.errors import InputError
from ddfm.pipeline import DDFMPipeline
from ddfm.prior import EMBEDDED, Denoiser, image_channels, load_prior, size_multiple
from ddfm.prior.denoiser import reflect_pad

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SMALL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}


# --------------------------------------------------------------------------------------------------------- padding


def padded_by_numpy(x, multiple):
    """np.pad's "reflect", which mirrors again and again, at the bottom and right."""
    grow = [(0, -size % multiple) for size in x.shape[-2:]]
    return np.pad(x, [(0, 0), (0, 0), *grow], mode="reflect")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.integers(0, 9))
def test_reflect_pad_grows_to_the_multiple_by_mirroring(h, w, multiple, seed):
    x = torch.from_numpy(np.random.default_rng(seed).random((2, 1, h, w), np.float32))
    padded = reflect_pad(x, multiple)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-2] - h < multiple
    assert padded.shape[-1] % multiple == 0 and padded.shape[-1] - w < multiple
    np.testing.assert_array_equal(padded.numpy(), padded_by_numpy(x.numpy(), multiple))


def test_size_multiple_counts_the_levels_and_the_unshuffle():
    assert size_multiple(UNet2DModel(**SMALL)) == 2
    assert size_multiple(tiny_unet()) == 4


@pytest.mark.parametrize("unet", [UNet2DModel(**SMALL), tiny_unet(), tiny_unet(3)], ids=["plain", "luma", "rgb"])
def test_the_network_runs_at_its_size_multiple_and_keeps_the_size(unet):
    h, w = 4 * size_multiple(unet), 5 * size_multiple(unet)
    assert unet(torch.zeros(1, image_channels(unet), h, w), 5).sample.shape[-2:] == (h, w)


# ------------------------------------------------------------------------------------------------------- denoising


class Knowing(UNet2DModel):
    """A network that would know x0 = tanh(x_t) and says so in the terms of its prediction type."""

    def __init__(self, kind, further_channels=0):
        super().__init__(in_channels=1, out_channels=1 + further_channels, **SMALL)
        self.kind, self.further_channels = kind, further_channels

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        a = schedule().alphas_cumprod[int(timestep)].item()
        x0 = torch.tanh(sample)
        eps = (sample - math.sqrt(a) * x0) / math.sqrt(1 - a)
        v = math.sqrt(a) * eps - math.sqrt(1 - a) * x0
        out = {"epsilon": eps, "v_prediction": v, "sample": x0}[self.kind]
        variance = torch.full_like(out, 9.0).expand(-1, self.further_channels, -1, -1)
        return UNet2DOutput(sample=torch.cat([out, variance], dim=1))


def denoise(unet, scheduler, x, t):
    return Denoiser(unet, scheduler, tile=None, precision="float32")(x, t)


def schedule(kind="epsilon"):
    return DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type=kind)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 56, 999])
def test_denoise_is_x0_whatever_the_network_predicts(kind, t):
    x_t = torch.randn(2, 1, 17, 22, generator=torch.Generator().manual_seed(0))
    x0 = denoise(Knowing(kind), schedule(kind), x_t, t)
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, torch.tanh(x_t), atol=2e-4 if t == 999 else 1e-5, rtol=0)  # 1/sqrt(a) is 157


def test_denoise_drops_a_learned_variance():
    x_t = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    x0 = denoise(Knowing("epsilon", further_channels=1), schedule(), x_t, 100)
    torch.testing.assert_close(x0, torch.tanh(x_t))


def test_denoise_treats_the_pictures_of_a_batch_alone(tiny_prior):
    x_t = torch.randn(3, 1, 17, 22, generator=torch.Generator().manual_seed(0))
    together = tiny_prior.denoiser()(x_t, 300)
    for k in range(3):
        torch.testing.assert_close(
            together[k : k + 1], tiny_prior.denoiser()(x_t[k : k + 1], 300), atol=1e-5, rtol=1e-5
        )


def test_pipeline_denoises_with_its_schedule(tiny_prior):
    np.testing.assert_allclose(tiny_prior.scheduler.alphas_cumprod.numpy(), ALPHAS_CUMPROD, rtol=1e-4)
    x_t = torch.randn(1, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    eps = tiny_prior.unet(x_t, 400).sample
    expected = (x_t - math.sqrt(1 - ALPHAS_CUMPROD[400]) * eps) / math.sqrt(ALPHAS_CUMPROD[400])
    torch.testing.assert_close(tiny_prior.denoiser(precision="float32")(x_t, 400), expected, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------- loading


def test_the_network_computes_in_the_dtype_asked_for_and_guesses_nearly_the_same():
    x_t = torch.randn(1, 1, 32, 48, generator=torch.Generator().manual_seed(0)) / 4
    priors = [load_prior("embedded", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert [prior.unet.dtype for prior in priors] == [torch.float32, torch.bfloat16]
    exact, rough = (denoise(prior.unet, prior.scheduler, x_t, 40) for prior in priors)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).square().mean().sqrt() < 0.01


def refusal(source):
    """The sentence with which load_prior refuses."""
    with pytest.raises(InputError) as caught:
        load_prior(source)
    sentence = str(caught.value)
    assert len(sentence) > 20 and "\n" not in sentence
    return sentence


def save(folder, unet, scheduler=None):
    """A diffusers folder, as an unconditional pipeline is saved."""
    unet.save_pretrained(folder / "unet")
    (scheduler or schedule()).save_pretrained(folder / "scheduler")
    return folder


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_diffusers_folder_loads_frozen_and_in_float32(tmp_path, channels):
    unet = UNet2DModel(in_channels=channels, out_channels=channels, **SMALL).half()
    prior = load_prior(save(tmp_path, unet, schedule("v_prediction")))
    assert image_channels(prior.unet) == channels
    assert prior.unet.dtype == torch.float32 and not prior.unet.training
    assert not any(p.requires_grad for p in prior.unet.parameters())
    assert same_weights(prior.unet, unet.float())
    assert prior.scheduler.config["prediction_type"] == "v_prediction"


def test_an_old_repository_in_one_folder_with_old_attention_names_loads(tmp_path):
    unet = UNet2DModel(in_channels=3, out_channels=3, **SMALL)
    unet.save_pretrained(tmp_path)
    schedule().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, value in load_file(weights).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{new}.", f".{old}.")
        renamed[key] = value
    assert any(".proj_attn." in key for key in renamed)
    save_file(renamed, weights, metadata={"format": "pt"})
    assert same_weights(load_prior(tmp_path).unet, unet)


def test_a_hub_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns=None, **kwargs):
        asked.append((name, allow_patterns))
        return str(save(tmp_path, tiny_unet()))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert same_weights(load_prior("someone/their-ddpm").unet, tiny_unet())
    assert asked[0][0] == "someone/their-ddpm"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked[0][1])


@pytest.mark.parametrize("name", ["embeded", "nobody/nothing", "no/such/folder", "two\nlines"])
def test_a_wrong_name_is_refused_without_the_network(name, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "embedded" in refusal(name)  # it says what there is


def test_a_missing_checkpoint_is_refused(tmp_path):
    assert "absent.pt" in refusal(tmp_path / "absent.pt")


def test_a_checkpoint_that_is_not_one_is_refused(tmp_path):
    for content in (b"", b"not a checkpoint", made_image(40, 40, "random").tobytes()):
        (tmp_path / "noise.pt").write_bytes(content)
        assert "noise.pt" in refusal(tmp_path / "noise.pt")


class Payload:
    """Unpickled, it would create the file `target`."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("as_zip", [True, False], ids=["torch.save", "bare pickle"])
def test_a_pickle_payload_is_refused_and_never_run(tmp_path, as_zip):
    target = tmp_path / "it-ran"
    payload = {"input_blocks.0.0.weight": Payload(str(target))}
    if as_zip:
        torch.save(payload, tmp_path / "hostile.pt")
    else:
        (tmp_path / "hostile.pt").write_bytes(pickle.dumps(payload, protocol=2))
    refusal(tmp_path / "hostile.pt")
    assert not target.exists()


def test_a_folder_with_pickled_weights_only_is_refused_and_nothing_run(tmp_path):
    save(tmp_path / "prior", tiny_unet())
    (tmp_path / "prior/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(
        {"conv_in.weight": Payload(str(tmp_path / "it-ran"))}, tmp_path / "prior/unet/diffusion_pytorch_model.bin"
    )
    refusal(tmp_path / "prior")
    assert not (tmp_path / "it-ran").exists()


def test_an_empty_folder_is_refused(tmp_path):
    assert tmp_path.name in refusal(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "prior.zip").write_bytes(b"PK")
    assert "prior.zip" in refusal(tmp_path / "prior.zip")


def test_a_folder_without_its_scheduler_is_refused(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    refusal(tmp_path)


def test_a_class_conditional_network_is_refused(tmp_path):
    unet = UNet2DModel(in_channels=3, out_channels=3, num_class_embeds=10, **SMALL)
    assert "unconditional" in refusal(save(tmp_path, unet))


def test_a_network_of_latents_is_refused(tmp_path):
    unet = UNet2DModel(in_channels=4, out_channels=4, **SMALL)
    assert "4" in refusal(save(tmp_path, unet))


@pytest.mark.parametrize("class_name", ["UNet2DConditionModel", "AutoencoderKL"])
def test_a_model_of_another_class_is_refused(tmp_path, class_name):
    config = save(tmp_path, tiny_unet()) / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": class_name}))
    refusal(tmp_path)


def test_a_scheduler_of_another_kind_of_model_is_refused(tmp_path):
    config = save(tmp_path, tiny_unet()) / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "flow_prediction"}))
    refusal(tmp_path)


def drop_one(weights):
    weights.pop("conv_in.bias")


def add_one(weights):
    weights["further.weight"] = torch.zeros(2)


def reshape_one(weights):
    weights["conv_in.bias"] = torch.zeros(2)


@pytest.mark.parametrize("change", [drop_one, add_one, reshape_one])
def test_weights_that_do_not_fit_are_never_made_up(tmp_path, change):
    path = save(tmp_path, tiny_unet()) / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    refusal(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    path = save(tmp_path, tiny_unet()) / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refusal(tmp_path)


# ---------------------------------------------------------------------------------------------- the embedded prior


@pytest.fixture(scope="module")
def embedded():
    return DDFMPipeline.from_prior("embedded")


def noised(pipe, x0, sigma, seed=0):
    """(x_t, t, the noisy image itself) for Gaussian noise of `sigma` of 255; x0 in [-1, 1]."""
    alphas = pipe.scheduler.alphas_cumprod
    t = int((((1 - alphas) / alphas).sqrt() - 2 * sigma / 255).abs().argmin())
    a = alphas[t].item()
    x_t = a**0.5 * x0 + (1 - a) ** 0.5 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    return x_t, t, x_t / a**0.5


def decibels(x, x0):
    return -10 * math.log10((x - x0).square().mean().item() / 4)


def as_luma(picture):
    return torch.from_numpy(picture / np.float32(127.5) - 1)[None, None]


def test_embedded_prior_is_small(embedded):
    assert sum(p.numel() for p in embedded.unet.parameters()) <= 8_000_000
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*.safetensors")) <= 16 * 2**20


def test_embedded_prior_is_luma_and_predicts_the_image_on_the_linear_schedule(embedded):
    assert image_channels(embedded.unet) == 1
    assert embedded.scheduler.config["prediction_type"] == "sample"
    np.testing.assert_allclose(embedded.scheduler.alphas_cumprod.numpy(), ALPHAS_CUMPROD, rtol=1e-4)


def test_embedded_prior_denoises_by_three_decibels_at_least(embedded):
    x0 = as_luma(made_image(96, 96, seed=3))
    x_t, t, noisy = noised(embedded, x0, sigma=25)
    assert decibels(embedded.denoiser()(x_t, t), x0) > decibels(noisy, x0) + 3


@pytest.mark.parametrize("size", [(16, 16), (17, 33)])
def test_embedded_prior_denoises_small_and_odd_pictures(embedded, size):
    x0 = as_luma(made_image(*size, seed=3))
    x_t, t, noisy = noised(embedded, x0, sigma=25)
    x0_guess = embedded.denoiser()(x_t, t)
    assert x0_guess.shape == x0.shape
    assert decibels(x0_guess, x0) > decibels(noisy, x0) + 0.5


@pytest.mark.parametrize("grey", [0.2, 0.5, 0.8])
def test_embedded_prior_does_not_drift_in_brightness(embedded, grey):
    x0 = torch.full((4, 1, 48, 48), 2 * grey - 1)
    x_t, t, noisy = noised(embedded, x0, sigma=25)
    drift = 127.5 * (embedded.denoiser()(x_t, t) - noisy).mean().item()  # the noise has a mean of its own
    assert abs(drift) < 1.5  # of 255
