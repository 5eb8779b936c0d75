"""The EM step of the default likelihood, and whole fusions."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import made_image
from likelihoods.made import noisy, scenes, texture, uniform

from ddfm.likelihoods.noise import noise_std
from ddfm.likelihoods.operators import (
    gradient,
    screened_poisson,
    smooth,
)
from ddfm.likelihoods.salient import Salient, SalientState
from ddfm.likelihoods.target import within_bounds
from ddfm.pipeline import DDFMPipeline


def started(count=2, dtype=torch.float64, **constants):
    """A likelihood and its first state, sources without noise."""
    model = Salient(**constants)
    return model, model.start([2 * s.to(dtype) - 1 for s in scenes(count)])


def weights(model, state, k):
    """E[1/m] and E[1/n] at k."""
    dk = gradient(k)
    return (
        model.intensity * model.e_step(k - state.b, state.disagreement),
        [model.gradient * model.e_step(d - g) for d, g in zip(dk, state.g, strict=True)],
    )


def split_objective(model, state, inv_m, inv_n, f, k, u):
    """Q = E[1/m] (f - b)^2 + E[1/n] |u - g|^2 + eta/2 (|f - k|^2 + kappa |u - grad k|^2)."""
    data = (inv_m * (f - state.b).square()).sum()
    for w, ux, g, d in zip(inv_n, u, state.g, gradient(k), strict=True):
        data = data + (w * (ux - g).square()).sum() + model.eta * model.kappa / 2 * (ux - d).square().sum()
    return data + model.eta / 2 * (f - k).square().sum()


def auxiliary(model, state, x0):
    """The k of a step from x0."""
    return screened_poisson((x0 + 1) / 2, state.u, model.kappa)


def test_the_e_step_is_one_over_the_residual_but_bounded():
    model = Salient()
    far = torch.tensor([-50.0, 20.0]) * model.tolerance
    torch.testing.assert_close(model.e_step(far), 1 / far.abs(), rtol=2e-3, atol=0)
    assert model.e_step(torch.zeros(1)).item() == pytest.approx(1 / model.tolerance)
    steps = model.e_step(torch.linspace(0, 1, 100))
    assert (steps.diff() < 0).all()


def test_an_m_step_minimises_over_each_block():
    """k given f and u; then u and f given k: with the weights of the E-step the gradient of Q is zero."""
    model, state = started()
    model = replace(model, passes=1)
    state = replace(state, u=tuple(0.7 * g + 0.01 for g in state.u))
    x0 = 2 * (0.5 * state.b + 0.25) - 1
    k = auxiliary(model, state, x0).requires_grad_()
    inv_m, inv_n = (w if isinstance(w, list) else w.detach() for w in weights(model, state, k.detach()))
    before = split_objective(model, state, inv_m, inv_n, (x0 + 1) / 2, k, state.u)
    (dk,) = torch.autograd.grad(before, k)
    assert dk.abs().max() < 1e-3 * model.eta  # k minimises its two terms

    after, new = model.rectify(x0, replace(state, low=state.b * 0, high=state.b * 0 + 0.97))
    f, u = ((after + 1) / 2).requires_grad_(), [x.clone().requires_grad_() for x in new.u]
    value = split_objective(model, state, inv_m, inv_n, f, k.detach(), u)
    inside, everywhere = f.detach() < 0.968, torch.ones_like(f, dtype=torch.bool)
    assert inside.double().mean() > 0.99
    for derivative, where in zip(torch.autograd.grad(value, [f, *u]), (inside, everywhere, everywhere), strict=True):
        assert derivative[where].abs().max() < 1e-5 * model.eta
    assert value < before


def test_a_step_lowers_the_rounded_laplace_objective():
    """From f = k, u = grad k: the weights majorise the objective there, and f and u minimise the majoriser."""
    model, state = started()

    def objective(f, k, u):
        def rho(r, uncertainty=torch.tensor(0.0)):  # noqa: B008
            return 2 * (r.square() + model.tolerance**2 + uncertainty.square()).sqrt().sum()

        ties = split_objective(replace(model, intensity=0.0, gradient=0.0), state, *none(f), f, k, u)
        data = sum(rho(x - g) for x, g in zip(u, state.g, strict=True))
        return model.intensity * rho(f - state.b, state.disagreement) + model.gradient * data + ties

    def none(f):
        return torch.zeros_like(f), [torch.zeros_like(f)] * 2

    x0 = 2 * uniform(*state.b.shape, seed=3) - 1
    for _ in range(5):
        k = auxiliary(model, state, x0)
        x0, state = model.rectify(x0, state)
        assert objective((x0 + 1) / 2, k, state.u) < objective(k, k, gradient(k))


@pytest.mark.parametrize("sigma", [1.0, 0.05, 0.0])
def test_the_new_f_lies_between_the_guess_the_target_and_k(sigma):
    model, state = started()
    model = replace(model, passes=1)
    x0 = 2 * uniform(*state.b.shape, seed=3) - 1
    f, k = (x0 + 1) / 2, auxiliary(model, state, x0)
    hull = torch.stack([f, k, state.b])
    new = (model.rectify(x0, state, sigma)[0] + 1) / 2
    low, high = (within_bounds(x, state.sources) for x in (hull.amin(dim=0), hull.amax(dim=0)))
    assert (new >= low - 1e-6).all() and (new <= high + 1e-6).all()


def test_many_steps_settle_at_one_picture_whatever_the_guess():
    model, first = started()
    limits = []
    for start in (model.initial_estimate(first), torch.zeros_like(first.b), 2 * uniform(*first.b.shape) - 1):
        x0, state = start, first
        for _ in range(60):
            before = x0
            x0, state = model.rectify(x0, state)
        assert (x0 - before).abs().max() < 1e-3
        limits.append(x0)
    for limit in limits[1:]:
        torch.testing.assert_close(limit, limits[0], atol=2e-3, rtol=0)


def test_the_guess_has_the_gradients_and_the_level_and_keeps_the_bounds():
    model, state = started()
    f = (model.initial_estimate(state) + 1) / 2
    for got, wanted in zip(gradient(f), state.g, strict=True):
        assert np.corrcoef(got.flatten(), wanted.flatten())[0, 1] > 0.88  # g is no gradient where its source changes
    assert f.mean().item() == pytest.approx(state.b.mean().item(), abs=0.02)
    torch.testing.assert_close(f, within_bounds(f, state.sources))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_sources_is_rectified(count):
    model, state = started(count)
    assert isinstance(state, SalientState) and len(state.sources) == count
    x0, after = model.rectify(model.initial_estimate(state), state, 0.5)
    assert x0.shape == state.b.shape and x0.isfinite().all() and x0.abs().max() <= 1
    assert after.b is state.b and after.g is state.g


def test_a_batch_equals_its_pictures_alone():
    sources = [2 * torch.cat(scenes(3, first=10 * k)) - 1 for k in range(2)]
    sources[1] = 2 * noisy(sources[1] / 2 + 0.5, 20, seed=0) - 1
    model = Salient()

    def two_steps(s):
        state = model.start(s)
        x0, state = model.rectify(model.initial_estimate(state), state, 0.5)
        return model.rectify(x0, state, 0.1)[0]

    together = two_steps(sources)
    for k in range(3):
        torch.testing.assert_close(together[k], two_steps([s[k : k + 1] for s in sources])[0], atol=1e-5, rtol=0)


def test_sources_are_denoised_at_the_noise_they_have():
    clean, dirty = 2 * scenes(1)[0] - 1, 2 * noisy(torch.full((1, 1, 48, 64), 0.5), 25, seed=1) - 1
    asked = []

    def denoise(x, sigma):
        asked.append((x, sigma))
        return torch.zeros_like(x)

    state = Salient().start([clean, dirty], denoise)
    assert len(asked) == 2 and torch.allclose(asked[0][0], dirty, atol=1e-6)
    assert asked[0][1] == pytest.approx(2 * 25 / 255, rel=0.15)  # in the range [-1, 1]
    share = asked[1][1] / asked[0][1]  # a second time, turned round, with that share of the noise put back
    assert 0 < share < 0.5 and torch.allclose(asked[1][0], share * dirty.flip(-2, -1), atol=1e-6)
    assert torch.allclose(state.sources[0], (clean + 1) / 2, atol=1e-6) and (state.sources[1] == 0.5).all()
    untouched = Salient(denoise_sources=False).start([clean, dirty], denoise)
    assert len(asked) == 2 and torch.equal(untouched.sources[1], (dirty + 1) / 2)


def test_a_fusion_of_noisy_sources_passes_the_prior_too_unless_one_of_them_is_clean():
    clean = [2 * torch.full((1, 1, 48, 64), level) - 1 for level in (0.4, 0.6)]
    dirty = [2 * noisy(s / 2 + 0.5, 25, seed=k) - 1 for k, s in enumerate(clean)]
    asked = []

    def denoise(x, sigma):
        asked.append(sigma)
        return x

    Salient().start(dirty, denoise)
    assert len(asked) == 5 and asked[4] < asked[0] / 2
    asked.clear()
    Salient().start([clean[0], dirty[1]], denoise)
    assert len(asked) == 2


def test_sources_are_left_as_they_were():
    dirty = 2 * noisy(torch.full((1, 1, 48, 64), 0.5), 25, seed=1) - 1
    before = dirty.clone()
    Salient().start([dirty, dirty], lambda x, sigma: torch.zeros_like(x))
    assert torch.equal(dirty, before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [2, 3])
def test_equal_sources_give_that_source_back(tiny_prior, count):
    """Even where the prior knows nothing: this one is random."""
    picture = made_image(48, 64)
    fused = tiny_prior([picture] * count, generator=seeded()).images[0]
    assert np.abs(fused - picture / 255).mean() < 0.03
    assert np.abs(gradient(torch.tensor(fused))[0] - gradient(torch.tensor(picture / 255))[0]).mean() < 0.004


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_exchanging_the_sources_changes_nothing(tiny_prior, pair, sampler):
    one, other = (tiny_prior(p, sampler=sampler, generator=seeded()).images for p in (pair, pair[::-1]))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_three_sources_in_any_order(tiny_prior):
    three = [made_image(33, 46, seed=s) for s in range(3)]
    fused = [tiny_prior(list(order), generator=seeded()).images for order in permutations(three)]
    for picture in fused[1:]:
        np.testing.assert_allclose(picture, fused[0], atol=1e-4)


@pytest.fixture(scope="module")
def embedded():
    pipe = DDFMPipeline.from_prior("embedded")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def head(size=96):
    """Two images of a disc on black, and where there is nothing near."""
    y, x = np.mgrid[:size, :size] / (size / 2) - 1
    r = np.hypot(x, y)
    inside = r < 0.75
    first = np.where(inside, texture(size, size, seed=3), 0).astype(np.float32)
    second = np.where(inside, 0.2 + 0.6 * (np.hypot(x - 0.2, y) < 0.3), 0).astype(np.float32)
    return [first, second], r > 0.75 + 6 / size


@pytest.mark.parametrize("sigma", [0, 20])
def test_a_black_background_stays_black(embedded, sigma):
    sources, background = head()
    inside = sources[0] > 0
    noise = [np.where(inside, noisy(s, sigma, seed=k), 0).astype(np.float32) for k, s in enumerate(sources)]
    assert (255 * noise_std(torch.tensor(np.stack(noise))[:, None]) > 10).all() == (sigma > 10)
    fused = embedded(noise, generator=seeded()).images[0]
    assert fused[background].max() <= 1 / 255
    assert fused[inside].mean() > 0.3


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


@pytest.mark.parametrize("sigma", [15, 30])
def test_the_prior_takes_the_noise_out_of_the_fusion(embedded, sigma):
    clean = [texture(96, 96, seed=1), made_image(96, 96, seed=2) / np.float32(255)]
    dirty = [noisy(s, sigma, seed=k) for k, s in enumerate(clean)]
    wanted = embedded(clean, generator=seeded()).images[0]
    with_prior = embedded(dirty, generator=seeded()).images[0]
    without = embedded(dirty, likelihood=Salient(denoise_sources=False), generator=seeded()).images[0]
    assert psnr(with_prior, wanted) > psnr(without, wanted) + 2


def test_equal_sources_pass_the_embedded_prior_unharmed(embedded):
    picture = made_image(64, 80, seed=4)
    fused = embedded([picture, picture], generator=seeded()).images[0]
    assert np.abs(255 * fused - picture).mean() < 1.5


def test_equal_sources_are_never_taken_for_noise(embedded):
    """A chessboard of pixels and a dithered ramp look like noise; what both sensors show alike is none."""
    y, x = np.mgrid[:64, :96]
    chessboard = ((x + y) % 2).astype(np.float32)
    dithered = (np.random.default_rng(0).random((64, 96)) < x / 95).astype(np.float32)
    for image in (chessboard, dithered):
        fused = embedded([image, image], generator=seeded()).images[0]
        assert np.abs(fused - image).max() <= 1 / 255


def test_the_seed_hardly_matters(embedded):
    sources = [texture(96, 96, seed=1), made_image(96, 96, seed=2) / np.float32(255)]
    fused = [embedded(sources, generator=seeded(seed)).images[0] for seed in range(3)]
    assert np.std(fused, axis=0).mean() < 2 / 255


def test_the_spread_over_samples_is_larger_where_the_sources_contradict(embedded):
    """On the left both sources show one texture, on the right one is the negative of the other."""
    a = smooth(torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(5)), 2.0)
    a = ((a - a.mean()) / a.std() * 0.12 + 0.5).clamp(0, 1)
    b = a.clone()
    b[..., 64:] = 1 - a[..., 64:]
    out = embedded([a[0, 0], b[0, 0]], num_samples=6, generator=torch.Generator().manual_seed(0))
    agree, contradict = out.std[0][:, 8:56], out.std[0][:, 72:120]
    assert np.median(contradict) > 1.1 * np.median(agree)
