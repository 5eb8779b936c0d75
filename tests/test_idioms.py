"""What a person who knows diffusers expects of a pipeline."""

import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import tiny_unet
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import PipelineCallback

import ddfm
from ddfm import DDFMPipeline, FusionSettings, InputError, Paper
from ddfm.schedulers import shorthand


@pytest.fixture
def pipe() -> DDFMPipeline:
    made = DDFMPipeline(tiny_unet(), shorthand(DDPMScheduler(beta_start=1e-4, beta_end=0.02).config, "ddim"))
    made.set_progress_bar_config(disable=True)
    return made


def samples(pipe, pair, **options):
    options = {"num_inference_steps": 4, "strength": 0.5, **options}
    return pipe(pair, generator=torch.Generator().manual_seed(0), **options).samples


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_the_registered_scheduler_is_the_sampler(pipe, pair, scheduler):
    before = samples(pipe, pair)
    pipe.scheduler = scheduler.from_config(
        pipe.scheduler.config, **{"solver_order": 2} if "Multi" in str(scheduler) else {}
    )
    after = samples(pipe, pair)
    assert torch.isfinite(after).all() and after.abs().max() < 3
    assert (after - before).abs().max() > 1e-4


def test_a_shorthand_equals_the_scheduler_it_stands_for(pipe, pair):
    by_name = samples(pipe, pair, sampler="ddpm")
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(samples(pipe, pair), by_name)
    assert not torch.equal(samples(pipe, pair, sampler="ddim"), by_name)


def test_diffusers_ddim_steps_at_its_own_time_steps(pipe, pair):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    seen = []
    samples(pipe, pair, callback_on_step_end=lambda pipe, i, t, tensors: seen.append(t))
    assert len(seen) == 4 and seen[-1] == 0 and seen[0] <= 500


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_scheduler_that_cannot_step_from_x0_is_refused(pipe, pair, scheduler):
    pipe.scheduler = scheduler()
    with pytest.raises(InputError, match=scheduler.__name__):
        samples(pipe, pair)


@pytest.mark.parametrize("arguments", [{"settings": np.zeros((16, 16))}, {"likelihood": Paper}])
def test_what_is_in_the_wrong_place_is_refused_in_a_line(pipe, pair, arguments):
    with pytest.raises(InputError, match=r"in one list|likelihood must be one of") as error:
        pipe(pair, **arguments)
    assert "\n" not in str(error.value)


def test_settings_in_words():
    assert FusionSettings(roles="thermal, visible").roles == ("thermal", "visible")
    assert FusionSettings.from_strings({"roles": "thermal visible"}).roles == ("thermal", "visible")
    with pytest.raises(InputError, match=r"num_inference_steps must be a whole number, not '2\.5'"):
        FusionSettings.from_strings({"num_inference_steps": "2.5"})


def test_return_dict(pipe, pair):
    settings = FusionSettings(num_inference_steps=2)
    output = pipe(pair, settings)
    images, last, std = pipe(pair, settings, return_dict=False)
    assert np.array_equal(images, output.images) and torch.equal(last, output.samples) and std is None


def test_the_seed_of_the_settings_counts_where_there_is_no_generator(pipe, pair):
    first, again = (pipe(pair, seed=5, num_inference_steps=2).images for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, pipe(pair, seed=6, num_inference_steps=2).images)


def test_callback_gets_the_tensors_it_asks_for(pipe, pair):
    seen = []
    for wanted in (["latents"], ["x0"], ["latents", "x0"]):
        samples(
            pipe,
            pair,
            callback_on_step_end=lambda pipe, i, t, tensors: seen.append(list(tensors)),
            callback_on_step_end_tensor_inputs=wanted,
        )
        assert seen[-1] == wanted
    with pytest.raises(InputError, match="prompt_embeds"):
        samples(pipe, pair, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_pipeline_callback_of_diffusers_works(pipe, pair):
    class Stop(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            pipeline._interrupt = step_index == 1
            return callback_kwargs

    times = []
    stop = Stop(cutoff_step_ratio=None, cutoff_step_index=1)
    pipe(pair, num_inference_steps=5, callback_on_step_end=stop)
    assert pipe.interrupt
    pipe(pair, num_inference_steps=5, callback_on_step_end=lambda pipe, i, t, tensors: times.append(i))
    assert times == [0, 1, 2, 3, 4] and not pipe.interrupt


@pytest.mark.parametrize(
    "load", [DiffusionPipeline.from_pretrained, DDFMPipeline.from_pretrained, DDFMPipeline.from_prior]
)
@pytest.mark.parametrize("scheduler", [None, DDIMScheduler])
def test_a_saved_pipeline_loads_everywhere(pipe, pair, tmp_path, load, scheduler):
    if scheduler:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, DDFMPipeline)
    if load != DDFMPipeline.from_prior:  # which takes the prior alone
        assert type(loaded.scheduler) is type(pipe.scheduler)
        torch.testing.assert_close(samples(loaded, pair), samples(pipe, pair))


def test_a_saved_embedded_pipeline_loads(tmp_path):
    DDFMPipeline.from_prior("embedded", "cpu").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDFMPipeline"
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path), DDFMPipeline)
    assert diffusers.DDFMPipeline is DDFMPipeline


def test_offload_needs_an_accelerator_and_says_so_itself(pipe, pair):
    assert pipe.model_cpu_offload_seq == "unet"
    assert pipe._execution_device == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="accelerator"):
            pipe.enable_model_cpu_offload()
        return
    pipe.enable_model_cpu_offload()
    assert torch.isfinite(samples(pipe, pair)).all()


def test_a_pipeline_in_bfloat16_works(pipe, pair):
    exact = samples(pipe, pair, precision="float32")
    rough = samples(pipe.to(torch.bfloat16), pair)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.5


@dataclass(frozen=True)
class Middle:
    """A user's own likelihood: x0 is pulled towards the mean of the sources."""

    pull: float = 0.5
    steps: int = 3
    strength: float = 0.2

    def start(self, sources, denoise=None):
        return sum(sources) / len(sources)

    def initial_estimate(self, state):
        return state

    def rectify(self, x0, state, sigma=0.0):
        return (1 - self.pull) * x0 + self.pull * state, state


def test_a_users_own_likelihood(pipe, pair):
    assert np.isfinite(pipe(pair, likelihood=Middle()).images).all()


@pytest.mark.parametrize("member", ["start", "initial_estimate", "rectify"])
def test_a_likelihood_that_lacks_a_member_is_refused_by_its_name(pipe, pair, member):
    class Partial(Middle):
        pass

    broken = type(
        "Broken", (), {name: getattr(Middle, name) for name in dir(Middle) if name[0] != "_" and name != member}
    )
    with pytest.raises(InputError, match=member):
        pipe(pair, likelihood=broken())


@pytest.mark.parametrize(
    "options, word",
    [
        ({"likelihood": None}, "likelihood"),
        ({"likelihood": "nothing"}, "likelihood"),
        ({"num_inference_steps": 2.0}, "num_inference_steps"),
        ({"generator": 0}, "generator"),
        ({"latents": torch.full((1, 1, 33, 46), float("nan"))}, "NaN"),
        ({"strength": float("nan")}, "strength"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"tile": "half"}, "tile"),
        ({"contrast": "keep"}, "contrast"),
        ({"guidance_scale": 7.5}, "guidance_scale"),
        ({"output_type": "latent"}, "output_type"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(pipe, pair, options, word):
    with pytest.raises(InputError, match=word) as caught:
        pipe(pair, **options)
    assert str(caught.value)[-1] == "." and "\n" not in str(caught.value)


@pytest.mark.parametrize("sources", ["ir.png", Path("ir.png"), {"ir": 0}, PIL.Image.new("L", (32, 32)), None])
def test_sources_that_are_no_list_are_refused_in_a_sentence(pipe, sources):
    with pytest.raises(InputError, match=rf"a list with one entry per sensor, not {type(sources).__name__}\."):
        pipe(sources)


def test_images_of_other_libraries_are_refused_with_what_to_do(pipe):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.zeros((32, 32), np.int16))
    with pytest.raises(
        InputError, match=r"not SimpleITK\.Image; pass its values as an array, or its file to ddfm\.Scene"
    ):
        pipe([image, image])
    with pytest.raises(InputError, match=r"read from files, not ndarray; pass arrays to DDFMPipeline\."):
        ddfm.Scene.read([np.zeros((32, 32)), np.zeros((32, 32))])


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ({"latents": None}, r"a tensor of shape \(1, 1, 33, 46\)"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, r"a tensor of shape"),
        ({"x0": torch.zeros(1, 1, 33, 46)}, "but not x0"),
        ({"prompt_embeds": 0}, "but not prompt_embeds"),
    ],
)
def test_what_a_callback_returns_is_used_or_refused(pipe, pair, returned, sentence):
    with pytest.raises(InputError, match=sentence):
        samples(pipe, pair, callback_on_step_end=lambda *state: returned)


def test_fuse_refuses_what_it_would_not_return(prior, pair):
    for options in ({"output_type": "pil"}, {"return_dict": False}):
        with pytest.raises(InputError, match=f"to set {min(options)}, call a DDFMPipeline"):
            ddfm.fuse(*pair, prior=prior, **options)
    with pytest.raises(InputError, match="one image per sensor"):
        ddfm.fuse(pair, pair, prior=prior)


@pytest.mark.parametrize("name", ["embedded", "openai-256", "model.pt"])
def test_priors_are_loaded_by_from_prior(name):
    with pytest.raises(InputError, match=rf"use DDFMPipeline\.from_prior\('{name}'\)"):
        DDFMPipeline.from_pretrained(name)


def test_a_pipeline_is_made_from_another(pair):
    network = UNet2DModel(
        *(None, 1, 1),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = DDFMPipeline.from_pipe(DDPMPipeline(network, DDPMScheduler()))
    assert pipe.unet is network and np.isfinite(pipe(pair, num_inference_steps=1).images).all()


def test_a_mask_is_not_ignored(pipe):
    image = np.ma.array(np.full((32, 32), 0.5, np.float32), mask=np.eye(32, dtype=bool))
    with pytest.raises(InputError, match="masked"):
        pipe([image, image])


def test_whole_numbers_of_numpy_are_whole_numbers(pipe, pair):
    options = {"seed": np.int64(3), "num_inference_steps": np.int32(2), "num_samples": np.uint8(1)}
    assert np.array_equal(pipe(pair, **options).images, pipe(pair, seed=3, num_inference_steps=2).images)


def test_public_names():
    for name in ddfm.__all__:
        assert getattr(ddfm, name).__doc__
    assert Paper is ddfm.likelihoods.Paper
