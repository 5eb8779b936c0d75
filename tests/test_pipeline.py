"""The sampling loop: the released runs, samplers, several samples, saving, fuse()."""

import math
import shutil

import numpy as np
import pytest
import torch
from conftest import DATA, fused_with_seed, made_image
from diffusers import DDPMScheduler
from known import Ignore, known_pipe

import ddfm.pipeline
from ddfm.likelihoods import LIKELIHOODS, Paper
from ddfm.pipeline import DDFMPipeline, fuse
from ddfm.schedulers import make_sampler, shorthand

RUNS = np.load(DATA / "sampling_runs.npz")
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Halfway(Ignore):
    """A likelihood that moves the guess half of the way to the mean of the sources."""

    def start(self, sources, *args, **kwargs):
        return sum(sources) / len(sources)

    def rectify(self, x0, state, *args, **kwargs):
        return (x0 + state) / 2, state


def step_times(sampler, steps, strength):
    trained = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    return np.array(make_sampler(shorthand(trained.config, sampler), steps, strength)[1])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    pictures = [made_image(16, 16)] * 2
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
        [made_image(96, 96)] * 2,
        likelihood=Ignore(),
        sampler="ddpm",
        num_inference_steps=400,
        generator=torch.Generator().manual_seed(1),
    )
    assert out.samples.mean().item() == pytest.approx(MU, abs=4 * S / 96)  # four standard errors
    assert out.samples.std().item() == pytest.approx(S, rel=4 / (96 * math.sqrt(2)) + 0.02)


@pytest.mark.parametrize("likelihood", ["released", "paper"])
def test_two_equal_sources_give_that_source_back(tiny_prior, likelihood):
    picture = made_image(32, 32)
    out = tiny_prior([picture, picture], likelihood=likelihood, num_inference_steps=20, generator=torch.Generator())
    np.testing.assert_allclose(out.images[0], picture / 255, atol=0.02)


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
    infrared, visible = ([made_image(20, 24, seed=10 * k + j) for j in range(2)] for k in (1, 2))
    options = {"likelihood": Ignore(), "sampler": "ddpm", "num_inference_steps": 3, "num_samples": 2}
    both = tiny_prior([infrared, visible], generator=[torch.Generator().manual_seed(s) for s in (4, 5)], **options)
    alone = tiny_prior([infrared[1], visible[1]], generator=[torch.Generator().manual_seed(5)], **options)
    torch.testing.assert_close(both.samples[:, 1], alone.samples[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pipe", ["tiny_prior", "tiny_rgb_pipe"])
def test_a_saved_pipeline_loads_and_fuses_the_same(request, pair, pipe, tmp_path):
    pipe = request.getfixturevalue(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = DDFMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.unet) is type(pipe.unet)
    np.testing.assert_allclose(fused_with_seed(loaded, pair), fused_with_seed(pipe, pair), atol=1e-4)


def test_from_prior_reads_a_saved_pipeline_too(tiny_prior, pair, prior):
    loaded = DDFMPipeline.from_prior(prior)
    np.testing.assert_allclose(fused_with_seed(loaded, pair), fused_with_seed(tiny_prior, pair), atol=1e-4)


def test_fuse_loads_a_prior_once(pair, prior, tmp_path, monkeypatch):
    unknown = shutil.copytree(prior, tmp_path / "unknown")  # no other test has loaded it
    loads, load_prior = [], ddfm.pipeline.load_prior

    def counted(source, *args, **kwargs):
        loads.append(source)
        return load_prior(source, *args, **kwargs)

    monkeypatch.setattr(ddfm.pipeline, "load_prior", counted)
    for _ in range(3):
        fuse(*pair, prior=unknown, device="cpu", num_inference_steps=1)
    assert len(loads) == 1


def test_fuse_is_reproducible_by_its_seed(pair, prior):
    options = {"prior": prior, "device": "cpu", "num_inference_steps": 2}
    first, again, other = (fuse(*pair, seed=seed, **options) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fuse_is_the_pipeline_with_a_seeded_generator(tiny_prior, colour_pair, prior):
    fused = fuse(
        *colour_pair,
        prior=prior,
        device="cpu",
        seed=0,
        num_inference_steps=3,
        likelihood=Paper(eta=1.0),
        precision="float32",
    )
    assert fused.dtype == np.float32
    expected = fused_with_seed(tiny_prior, colour_pair, likelihood=Paper(eta=1.0), precision="float32")[0]
    np.testing.assert_allclose(fused, expected, atol=1e-4)


def test_fuse_leaves_the_global_random_state_alone(pair, prior):
    state = torch.get_rng_state()
    fuse(*pair, prior=prior, device="cpu", sampler="ddpm", num_inference_steps=3)
    assert torch.equal(torch.get_rng_state(), state)
