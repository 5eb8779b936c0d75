"""The sampling loop: whole runs against the released code, samplers against textbooks, and what a caller may pass."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import DATA, made_picture
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput

import ddfm.pipeline
from ddfm.colour import luma, make_room, split
from ddfm.errors import InputError
from ddfm.likelihoods import LIKELIHOODS, Paper
from ddfm.pipeline import DDFMPipeline, FusionOutput, fuse
from ddfm.schedulers import make_sampler, shorthand

RUNS = np.load(DATA / "sampling_runs.npz")
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class KnownUNet(UNet2DModel):
    """A network whose noise prediction is a function that the test gives: answer(x_t, t)."""

    def __init__(self, answer, channels=1):
        super().__init__(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(4, 4),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=2,
            add_attention=False,
        )
        self.answer = answer

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return UNet2DOutput(sample=self.answer(sample, int(timestep)))


def known_pipe(answer, channels=1):
    pipe = DDFMPipeline(KnownUNet(answer, channels), DDPMScheduler(beta_start=1e-4, beta_end=0.02))
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Ignore:
    """A likelihood that leaves the prior's guess as it is: the unconditional chain."""

    steps = 5
    strength = 1.0

    def start(self, sources, *args, **kwargs):
        return None

    def initial_estimate(self, state):
        return state

    def rectify(self, x0, state, *args, **kwargs):
        return x0, state


class Halfway(Ignore):
    """A likelihood that moves the guess half of the way to the mean of the sources."""

    def start(self, sources, *args, **kwargs):
        return sum(sources) / len(sources)

    def rectify(self, x0, state, *args, **kwargs):
        return (x0 + state) / 2, state


class TakeVisible(Ignore):
    """A likelihood that knows best: the fused image is the second source."""

    def start(self, sources, *args, **kwargs):
        return sources[1]

    def rectify(self, x0, state, *args, **kwargs):
        return state, state


def step_times(sampler, steps, strength):
    trained = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    return np.array(make_sampler(shorthand(trained.config, sampler), steps, strength)[1])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ the released code


@pytest.mark.parametrize(
    "run",
    [
        pytest.param("0", id="10 steps"),
        pytest.param("1", id="25 steps"),
        pytest.param("2", id="100 steps", marks=pytest.mark.slow),
    ],
)
def test_released_reproduces_a_whole_reference_run(tiny_rgb_pipe, run):
    out = tiny_rgb_pipe(
        [RUNS[f"{run}_infrared_u8"], RUNS[f"{run}_visible_u8"]],
        likelihood="released",
        sampler="ddim",
        num_inference_steps=int(RUNS[f"{run}_steps"]),
        latents=torch.tensor(RUNS[f"{run}_x_start"]),
        contrast="minmax",
    )
    np.testing.assert_allclose(out.samples.numpy(), RUNS[f"{run}_sample"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(out.images[0] * 255, RUNS[f"{run}_saved_luma"], atol=0.05, rtol=0)


# ---------------------------------------------------------------------------------------------------- the samplers


def bent(x, t):
    """Some noise prediction that is neither linear nor the same at every time step."""
    return (0.8 * torch.sin(x) if isinstance(x, torch.Tensor) else 0.8 * np.sin(x)) + t / 4000


def reverse_chain(x, sources, steps):
    """(t, x_t, rectified x0, alpha_bar_t, alpha_bar_prev) of a chain whose steps the caller takes with `send`."""
    times = [int(t) for t in np.round(np.linspace(999, 0, steps))]
    for t, previous in zip(times, [*times[1:], None], strict=True):
        a, a_prev = ALPHAS_CUMPROD[t], 1.0 if previous is None else ALPHAS_CUMPROD[previous]
        x0 = np.clip((x - math.sqrt(1 - a) * bent(x, t)) / math.sqrt(a), -1, 1)
        x0 = (x0 + sum(2.0 * s / 255 - 1 for s in sources) / len(sources)) / 2
        x = yield t, x, x0, a, a_prev


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_ddim_equals_the_textbook_written_in_numpy(pair, steps):
    start = noise(1, 1, *pair[0].shape)
    out = known_pipe(bent)(pair, likelihood=Halfway(), sampler="ddim", num_inference_steps=steps, latents=start)
    chain = reverse_chain(start.double().numpy(), pair, steps)
    x = None
    for _ in range(steps):
        _, x, x0, a, a_prev = chain.send(x)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        x = math.sqrt(a_prev) * x0 + math.sqrt(1 - a_prev) * eps
    np.testing.assert_allclose(out.samples.numpy(), x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_ddpm_step_is_the_posterior_mean_and_variance(pair, steps):
    start = noise(1, 1, *pair[0].shape)
    generator, same = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    out = known_pipe(bent)(
        pair, likelihood=Halfway(), sampler="ddpm", num_inference_steps=steps, latents=start, generator=generator
    )
    chain = reverse_chain(start.double().numpy(), pair, steps)
    x = None
    for _ in range(steps):
        t, x, x0, a, a_prev = chain.send(x)
        alpha = a / a_prev
        x = (math.sqrt(a_prev) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - a_prev) * x) / (1 - a)
        if t > 0:
            z = torch.randn(start.shape, generator=same).double().numpy()
            x = x + math.sqrt((1 - a_prev) / (1 - a) * (1 - alpha)) * z
    np.testing.assert_allclose(out.samples.numpy(), x, atol=5e-5, rtol=0)


def times_of(pipe, pair, sampler, **options):
    """The time steps that a run takes."""
    seen = []
    pipe(
        pair,
        likelihood="paper",
        sampler=sampler,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append((i, t)),
        **options,
    )
    assert [i for i, _ in seen] == list(range(len(seen)))
    return [t for _, t in seen]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_time_steps_are_even_from_the_last_to_zero(tiny_prior, pair, sampler):
    assert times_of(tiny_prior, pair, sampler, num_inference_steps=7) == [999, 832, 666, 500, 333, 166, 0]


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("steps", [2, 3, 6, 10, 20])
def test_time_steps_of_the_second_order_solver_are_even_in_log_sigma(steps, strength):
    times = step_times("dpm++", steps, strength)
    log_sigma = np.log((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)
    even = np.interp(np.linspace(log_sigma[times[0]], log_sigma[0], steps), log_sigma, np.arange(1000))
    assert times[0] == round(999 * strength) and times[-1] == 0
    assert np.abs(times - even).max() < 1  # half of it by rounding, half by keeping neighbours apart


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("steps, strength", [(1, 1.0), (100, 0.1), (101, 0.1), (500, 1.0), (1000, 1.0)])
def test_no_time_step_is_taken_twice_however_many_there_are(sampler, steps, strength):
    times = step_times(sampler, steps, strength)
    assert len(times) == steps and (np.diff(times) < 0).all()
    assert times[0] == round(999 * strength) and (times[-1] == 0 or steps == 1)


def test_strength_below_one_starts_from_the_noised_guess(pair):
    seen = []

    def looking(x, t):
        seen.append((t, x))
        return bent(x, t)

    latents = noise(1, 1, 32, 44)
    sources = [picture[:32, :44] for picture in pair]  # a size that needs no padding
    known_pipe(looking)(sources, likelihood=Halfway(), num_inference_steps=3, strength=0.4, latents=latents)
    assert [t for t, _ in seen] == [400, 200, 0]
    a = ALPHAS_CUMPROD[400]
    guess = torch.tensor(sum(s / 127.5 - 1 for s in sources) / 2)
    torch.testing.assert_close(seen[0][1][0, 0], (math.sqrt(a) * guess + math.sqrt(1 - a) * latents[0, 0]).float())


def test_steps_and_strength_are_the_likelihoods_unless_given(tiny_prior, pair):
    class Short(Halfway):
        steps, strength = 3, 0.5

    times = []
    tiny_prior(pair, likelihood=Short(), callback_on_step_end=lambda pipe, i, t, tensors: times.append(t))
    assert times == [500, 250, 0]


MU, S = 0.1, 0.2  # a prior N(MU, S^2) in every pixel, for which E[x0 | x_t] is a line


def gaussian_noise_prediction(x, t):
    a = ALPHAS_CUMPROD[t]
    x0 = (MU * (1 - a) + S**2 * math.sqrt(a) * x) / (a * S**2 + 1 - a)
    return (x - math.sqrt(a) * x0) / math.sqrt(1 - a)


def gaussian_map(sampler, steps):
    """(mean, standard deviation) of the samples of a deterministic sampler, which maps the noise linearly."""
    pictures = [made_picture(16, 16)] * 2
    latents = torch.linspace(-1.5, 1.5, 256).view(1, 1, 16, 16)
    out = known_pipe(gaussian_noise_prediction)(
        pictures, likelihood=Ignore(), sampler=sampler, num_inference_steps=steps, latents=latents
    )
    slope, offset = np.polyfit(latents.flatten().double().numpy(), out.samples.flatten().double().numpy(), 1)
    return offset, slope


@pytest.mark.parametrize("sampler, steps", [("ddim", 400), ("dpm++", 20), ("dpm++", 50)])
def test_deterministic_samplers_draw_from_a_gaussian_prior(sampler, steps):
    mean, deviation = gaussian_map(sampler, steps)
    assert mean == pytest.approx(MU, abs=0.002)
    assert deviation == pytest.approx(S, rel=0.02)  # seen: 1.8 % by ddim; 1.4 % and 0.1 % by dpm++


def test_ddpm_draws_from_a_gaussian_prior():
    out = known_pipe(gaussian_noise_prediction)(
        [made_picture(96, 96)] * 2,
        likelihood=Ignore(),
        sampler="ddpm",
        num_inference_steps=400,
        generator=torch.Generator().manual_seed(1),
    )
    assert out.samples.mean().item() == pytest.approx(MU, abs=4 * S / 96)  # four standard errors
    assert out.samples.std().item() == pytest.approx(S, rel=4 / (96 * math.sqrt(2)) + 0.02)


@pytest.mark.parametrize("likelihood", ["released", "paper"])
def test_two_equal_sources_give_that_source_back(tiny_prior, likelihood):
    picture = made_picture(32, 32)
    out = tiny_prior([picture, picture], likelihood=likelihood, num_inference_steps=20, generator=torch.Generator())
    np.testing.assert_allclose(out.images[0], picture / 255, atol=0.02)


# -------------------------------------------------------------------------------------------------- what goes in


@pytest.mark.parametrize("pipe", ["tiny_prior", "tiny_rgb_pipe"])
@pytest.mark.parametrize("size", [(16, 16), (16, 31), (17, 33), (45, 18)])
def test_any_size_from_16_is_kept(request, pipe, size):
    out = request.getfixturevalue(pipe)([made_picture(*size, seed=s) for s in (1, 2)], num_inference_steps=2)
    assert out.images[0].shape == size
    assert out.samples.shape[-2:] == size
    assert torch.isfinite(out.samples).all()


def fused_with_seed(pipe, sources, **options):
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), **options}
    return pipe(sources, **options).images


def test_every_form_of_a_picture_gives_the_same(tiny_prior, colour_pair, tmp_path):
    grey, rgb = colour_pair
    expected = fused_with_seed(tiny_prior, [grey, rgb])
    for name, picture in (("grey.png", grey), ("rgb.png", rgb)):
        PIL.Image.fromarray(picture).save(tmp_path / name)
    forms = {
        "uint16": [grey.astype(np.uint16) * 257, rgb.astype(np.uint16) * 257],
        "float": [grey / np.float32(255), rgb / np.float64(255)],
        "tensor": [torch.tensor(grey), torch.tensor(rgb)],
        "tensor, channels first": [torch.tensor(grey)[None], torch.tensor(rgb).permute(2, 0, 1) / 255],
        "PIL": [PIL.Image.fromarray(grey), PIL.Image.fromarray(rgb)],
        "path": [tmp_path / "grey.png", str(tmp_path / "rgb.png")],
        "batch of one": [[grey], [rgb]],
    }
    for form, sources in forms.items():
        np.testing.assert_allclose(fused_with_seed(tiny_prior, sources), expected, atol=1e-5, err_msg=form)


def test_sources_are_not_changed(tiny_prior, colour_pair):
    sources = [colour_pair[0] / np.float32(255), torch.tensor(colour_pair[1])]
    before = [sources[0].copy(), sources[1].clone()]
    fused_with_seed(tiny_prior, sources)
    assert np.array_equal(sources[0], before[0]) and torch.equal(sources[1], before[1])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_batch_equals_its_pictures_alone(tiny_prior, sampler, likelihood):
    infrared, visible = ([made_picture(24, 30, seed=10 * k + j) for j in range(3)] for k in (1, 2))
    options = {"likelihood": likelihood, "sampler": sampler, "num_inference_steps": 8}
    together = tiny_prior(
        [infrared, visible], generator=[torch.Generator().manual_seed(s) for s in range(3)], **options
    )
    assert len(together.images) == 3
    for k in range(3):
        alone = tiny_prior([infrared[k], visible[k]], generator=[torch.Generator().manual_seed(k)], **options)
        torch.testing.assert_close(together.samples[k], alone.samples[0], atol=1e-4, rtol=0)


def test_the_noise_can_be_given(tiny_prior, pair):
    latents = noise(1, 1, *pair[0].shape, seed=7)
    drawn = tiny_prior(pair, num_inference_steps=3, generator=torch.Generator().manual_seed(7))
    given = tiny_prior(pair, num_inference_steps=3, latents=latents)
    assert torch.equal(drawn.samples, given.samples)


# -------------------------------------------------------------------------------------------------- what comes out


def test_grey_sources_give_a_grey_picture(tiny_prior, pair):
    assert fused_with_seed(tiny_prior, pair).shape == (1, *pair[0].shape)


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1, 1]], ids=["grey+colour", "colour+grey", "colour+colour"])
def test_a_coloured_source_gives_a_coloured_picture(tiny_prior, colour_pair, order):
    fused = fused_with_seed(tiny_prior, [colour_pair[k] for k in order])
    assert fused.shape == (1, *colour_pair[0].shape, 3)
    assert fused.min() >= 0 and fused.max() <= 1 and np.ptp(fused, axis=-1).max() > 0.05


def test_colour_touches_the_fused_luma_only_where_it_needs_room(tiny_prior, colour_pair):
    coloured = fused_with_seed(tiny_prior, colour_pair)[0]
    grey = fused_with_seed(tiny_prior, colour_pair, colour="grey")[0]
    assert grey.ndim == 2
    expected = make_room(grey, split(colour_pair[1].astype(np.float32) / 255)[1])
    np.testing.assert_allclose(luma(coloured), expected, atol=1e-5)
    assert (np.abs(expected - grey) < 1e-6).mean() > 0.9


def test_the_visible_picture_passes_through_unharmed_if_the_likelihood_wants_it(tiny_prior, colour_pair):
    fused = fused_with_seed(tiny_prior, colour_pair, likelihood=TakeVisible())[0]
    np.testing.assert_allclose(fused, colour_pair[1] / 255, atol=1e-5)


def test_an_rgb_prior_takes_the_rectified_luma(tiny_rgb_pipe, pair):
    fused = fused_with_seed(tiny_rgb_pipe, pair, likelihood=TakeVisible())[0]
    np.testing.assert_allclose(fused, pair[1] / 255, atol=1e-5)


def test_a_batch_of_grey_and_colour_has_one_shape(tiny_prior, colour_pair):
    grey, rgb = colour_pair
    assert fused_with_seed(tiny_prior, [[grey, grey], [grey, rgb]]).shape == (2, *grey.shape, 3)


def test_output_types_hold_the_same_picture(tiny_prior, colour_pair):
    as_np = fused_with_seed(tiny_prior, colour_pair)
    as_pt = fused_with_seed(tiny_prior, colour_pair, output_type="pt")
    as_pil = fused_with_seed(tiny_prior, colour_pair, output_type="pil")
    assert as_np.dtype == np.float32
    assert torch.equal(as_pt, torch.tensor(as_np).permute(0, 3, 1, 2))
    assert isinstance(as_pil, list) and as_pil[0].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(as_pil[0]), np.rint(as_np[0] * 255))


def test_grey_output_types(tiny_prior, pair):
    h, w = pair[0].shape
    assert fused_with_seed(tiny_prior, pair, output_type="pt").shape == (1, 1, h, w)
    assert fused_with_seed(tiny_prior, pair, output_type="pil")[0].mode == "L"


@pytest.mark.parametrize("pipe, channels", [("tiny_prior", 1), ("tiny_rgb_pipe", 3)])
def test_samples_are_as_the_network_sees_them(request, pair, pipe, channels):
    out = request.getfixturevalue(pipe)(pair, num_inference_steps=2)
    assert isinstance(out, FusionOutput)
    assert out.samples.shape == (1, channels, *pair[0].shape) and out.samples.dtype == torch.float32


def test_keep_is_the_clipped_sample_itself(tiny_prior, pair):
    out = tiny_prior(pair, num_inference_steps=3)
    np.testing.assert_allclose(out.images[0], (out.samples[0, 0].numpy() / 2 + 0.5).clip(0, 1), atol=1e-6)


def test_minmax_stretches_every_picture_to_the_full_range(tiny_prior):
    infrared, visible = ([made_picture(20, 20, seed=s) // 2 for s in pair] for pair in ((1, 2), (3, 4)))
    out = tiny_prior([infrared, visible], num_inference_steps=3, contrast="minmax")
    assert out.images.min(axis=(1, 2)) == pytest.approx([0, 0])
    assert out.images.max(axis=(1, 2)) == pytest.approx([1, 1])


def test_minmax_of_a_constant_picture_is_finite(tiny_prior):
    flat = np.full((16, 16), 90, np.uint8)
    out = tiny_prior([flat, flat], likelihood=TakeVisible(), num_inference_steps=2, contrast="minmax")
    assert np.isfinite(out.images).all()


# ------------------------------------------------------------------------------------------------- several samples


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_several_samples_are_as_many_runs_with_one_generator(tiny_prior, pair, sampler, likelihood):
    options = {"likelihood": likelihood, "sampler": sampler, "num_inference_steps": 4}
    together = tiny_prior(pair, num_samples=3, generator=torch.Generator().manual_seed(2), **options)
    generator = torch.Generator().manual_seed(2)
    runs = [tiny_prior(pair, generator=generator, **options).samples for _ in range(3)]
    torch.testing.assert_close(together.samples, torch.stack(runs), atol=1e-4, rtol=0)
    assert (runs[0] - runs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pipe", ["tiny_prior", "tiny_rgb_pipe"])
def test_the_picture_is_the_mean_of_the_samples_and_std_their_spread(request, pair, pipe):
    out = request.getfixturevalue(pipe)(
        pair, likelihood=Ignore(), num_inference_steps=2, num_samples=4, generator=torch.Generator().manual_seed(0)
    )
    samples = out.samples[:, 0].numpy()
    if samples.shape[1] == 3:
        samples = np.einsum("c,kchw->khw", [0.299, 0.587, 0.114], samples)
    lumas = samples.reshape(4, *pair[0].shape) / 2 + 0.5
    np.testing.assert_allclose(out.images[0], lumas.mean(axis=0).clip(0, 1), atol=1e-6)
    np.testing.assert_allclose(out.std[0], lumas.std(axis=0, ddof=1), atol=1e-6)


def test_a_single_sample_has_no_spread(tiny_prior, pair):
    assert tiny_prior(pair, num_inference_steps=1).std is None


def test_shapes_of_several_samples(tiny_prior, colour_pair):
    h, w = colour_pair[0].shape
    out = tiny_prior([[picture] * 2 for picture in colour_pair], num_inference_steps=2, num_samples=3)
    assert out.images.shape == (2, h, w, 3)
    assert out.samples.shape == (3, 2, 1, h, w)
    assert out.std.shape == (2, h, w)


def test_a_generator_a_picture_makes_its_samples_independent_of_the_batch(tiny_prior):
    infrared, visible = ([made_picture(20, 24, seed=10 * k + j) for j in range(2)] for k in (1, 2))
    options = {"likelihood": Ignore(), "sampler": "ddpm", "num_inference_steps": 3, "num_samples": 2}
    both = tiny_prior([infrared, visible], generator=[torch.Generator().manual_seed(s) for s in (4, 5)], **options)
    alone = tiny_prior([infrared[1], visible[1]], generator=[torch.Generator().manual_seed(5)], **options)
    torch.testing.assert_close(both.samples[:, 1], alone.samples[:, 0], atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------ callbacks


@pytest.mark.parametrize("tile", [None, 16])
def test_progress_counts_evaluations_up_to_their_number(tiny_prior, tile):
    seen = []
    big = [made_picture(40, 48, seed=s) for s in range(2)]
    tiny_prior(big, num_inference_steps=3, tile=tile, tile_overlap=4, progress=lambda *now: seen.append(now))
    done = [now for now, _ in seen]
    assert done == sorted(done) and done[0] > 0
    assert seen[-1] == (3, 3) and {total for _, total in seen} == {3}
    assert len(seen) == 3 if tile is None else len(seen) > 12


def test_progress_counts_the_cleaning_of_a_noisy_source(tiny_prior):
    seen = []
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (48, 48)).clip(0.12, 0.88).astype(np.float32)
    tiny_prior([noisy, made_picture(48, 48)], progress=lambda *now: seen.append(now))
    assert seen[0] == (1, 4) and seen[-1] == (4, 4)


def test_callback_sees_every_step_and_the_last_latents_are_the_sample(tiny_prior, pair):
    seen = []
    out = tiny_prior(
        pair,
        num_inference_steps=4,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append((pipe, tensors)),
        callback_on_step_end_tensor_inputs=["latents", "x0"],
    )
    assert len(seen) == 4 and all(pipe is tiny_prior for pipe, _ in seen)
    assert all(tensors["x0"].shape == out.samples.shape for _, tensors in seen)
    assert torch.equal(seen[-1][1]["latents"], out.samples)


def test_callback_can_replace_the_latents(tiny_prior, pair):
    replaced = tiny_prior(
        pair,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(1),
        callback_on_step_end=lambda pipe, i, t, tensors: {"latents": torch.full_like(tensors["latents"], i / 4)},
    )
    assert torch.equal(replaced.samples, torch.full_like(replaced.samples, 0.5))


class Cancelled(Exception):
    pass


def test_cancelling_from_the_callback_leaves_no_state_behind(tiny_prior, pair):
    def cancel(pipe, i, t, tensors):
        if i == 2:
            raise Cancelled

    for sampler in ("ddpm", "dpm++"):
        options = {"likelihood": "paper", "sampler": sampler, "num_inference_steps": 6}
        before = fused_with_seed(tiny_prior, pair, **options)
        with pytest.raises(Cancelled):
            fused_with_seed(tiny_prior, pair[::-1], callback_on_step_end=cancel, **options)
        assert np.array_equal(fused_with_seed(tiny_prior, pair, **options), before)


# ------------------------------------------------------------------------------------------------------ bad input


def bad_calls():
    good = made_picture(20, 24)
    nan = np.full((20, 24), np.nan, np.float32)
    return {
        "no source": ([], {}),
        "one source": ([good], {}),
        "three sources for a pair": ([good, good, good], {"likelihood": "paper"}),
        "sizes that differ": ([good, made_picture(20, 25)], {}),
        "sizes that differ within a sensor": ([[good, made_picture(20, 25)], [good, good]], {}),
        "batches that differ": ([[good, good], [good]], {}),
        "empty batches": ([[], []], {}),
        "too small": ([made_picture(15, 40)] * 2, {}),
        "NaN": ([good, nan], {}),
        "out of range": ([good, good * 1.0], {}),
        "no image": ([good, None], {}),
        "a missing file": ([good, "no-such-image.png"], {}),
        "latents of another size": ([good, good], {"latents": torch.zeros(1, 1, 24, 20)}),
        "latents of another batch": ([good, good], {"latents": torch.zeros(2, 1, 20, 24)}),
        "latents of other channels": ([good, good], {"latents": torch.zeros(1, 3, 20, 24)}),
        "latents of several samples": ([good, good], {"latents": torch.zeros(1, 1, 20, 24), "num_samples": 2}),
        "no sample": ([good, good], {"num_samples": 0}),
        "no step": ([good, good], {"num_inference_steps": 0}),
        "too many steps": ([good, good], {"num_inference_steps": 1001}),
        "no strength": ([good, good], {"strength": 0.0}),
        "too much strength": ([good, good], {"strength": 1.5}),
        "more steps than the strength spans": ([good, good], {"strength": 0.1, "num_inference_steps": 102}),
        "unknown likelihood": ([good, good], {"likelihood": "nobody's"}),
        "unknown sampler": ([good, good], {"sampler": "euler"}),
        "unknown contrast": ([good, good], {"contrast": "high"}),
        "unknown output type": ([good, good], {"output_type": "jpeg"}),
        "unknown colour mode": ([good, good], {"colour": "third"}),
    }


@pytest.mark.parametrize("what", bad_calls())
def test_bad_input_is_refused_in_one_sentence_before_any_work(what):
    sources, options = bad_calls()[what]

    def untouched(x, t):
        raise AssertionError("the network ran")

    with pytest.raises(InputError) as caught:
        known_pipe(untouched)(sources, **options)
    sentence = str(caught.value)
    assert 10 < len(sentence) < 300 and "\n" not in sentence


def test_an_unknown_name_is_answered_with_the_known_ones(tiny_prior, pair):
    with pytest.raises(InputError) as caught:
        tiny_prior(pair, likelihood="nobody's")
    assert all(name in str(caught.value) for name in LIKELIHOODS)


# ------------------------------------------------------------------------------------------------ saving and fuse()


@pytest.mark.parametrize("pipe", ["tiny_prior", "tiny_rgb_pipe"])
def test_a_saved_pipeline_loads_and_fuses_the_same(request, pair, pipe, tmp_path):
    pipe = request.getfixturevalue(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = DDFMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.unet) is type(pipe.unet)
    np.testing.assert_allclose(fused_with_seed(loaded, pair), fused_with_seed(pipe, pair), atol=1e-4)


@pytest.fixture
def saved_prior(tiny_prior, tmp_path):
    """A folder that no other test has loaded."""
    tiny_prior.save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def test_from_prior_reads_a_saved_pipeline_too(tiny_prior, pair, saved_prior):
    loaded = DDFMPipeline.from_prior(saved_prior)
    np.testing.assert_allclose(fused_with_seed(loaded, pair), fused_with_seed(tiny_prior, pair), atol=1e-4)


def test_fuse_loads_a_prior_once(pair, saved_prior, monkeypatch):
    loads, load_prior = [], ddfm.pipeline.load_prior

    def counted(source, *args, **kwargs):
        loads.append(source)
        return load_prior(source, *args, **kwargs)

    monkeypatch.setattr(ddfm.pipeline, "load_prior", counted)
    for _ in range(3):
        fuse(*pair, prior=saved_prior, device="cpu", num_inference_steps=1)
    assert len(loads) == 1


def test_fuse_is_reproducible_by_its_seed(pair, saved_prior):
    options = {"prior": saved_prior, "device": "cpu", "num_inference_steps": 2}
    first, again, other = (fuse(*pair, seed=seed, **options) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fuse_is_the_pipeline_with_a_seeded_generator(tiny_prior, colour_pair, saved_prior):
    fused = fuse(
        *colour_pair,
        prior=saved_prior,
        device="cpu",
        seed=0,
        num_inference_steps=3,
        likelihood=Paper(eta=1.0),
        precision="float32",
    )
    assert fused.dtype == np.float32
    expected = fused_with_seed(tiny_prior, colour_pair, likelihood=Paper(eta=1.0), precision="float32")[0]
    np.testing.assert_allclose(fused, expected, atol=1e-4)


def test_fuse_leaves_the_global_random_state_alone(pair, saved_prior):
    state = torch.get_rng_state()
    fuse(*pair, prior=saved_prior, device="cpu", sampler="ddpm", num_inference_steps=3)
    assert torch.equal(torch.get_rng_state(), state)
