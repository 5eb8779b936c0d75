"""The salient likelihood: its transforms against scipy, statistics on made images, the EM step on its own terms."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from conftest import made_picture

from ddfm.errors import InputError
from ddfm.likelihoods.noise import noise_std
from ddfm.likelihoods.operators import (
    dct,
    gradient,
    gradient_adjoint,
    guided_filter,
    idct,
    laplacian_spectrum,
    screened_poisson,
    smooth,
)
from ddfm.likelihoods.salient import Salient, SalientState
from ddfm.likelihoods.target import fusion_target, strongest_gradient, within_bounds
from ddfm.pipeline import DDFMPipeline


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scenes(count, height=48, width=64, first=0):
    """Images in [0, 1], (1, 1, H, W), of different content."""
    return [torch.tensor(made_picture(height, width, seed=first + k) / 255)[None, None].float() for k in range(count)]


def texture(height, width, seed, contrast=0.18):
    """A smooth random image in [0, 1], (H, W) float32, about mid-grey."""
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 2.0)
    return np.clip(0.5 + contrast * field / field.std(), 0, 1).astype(np.float32)


def noisy(picture, sigma, seed):
    """With white noise of `sigma` grey levels, clipped and rounded as a camera does; NumPy or torch, [0, 1]."""
    noise = np.random.default_rng(seed).standard_normal(tuple(picture.shape)) * sigma / 255
    levels = np.rint(255 * np.clip(np.asarray(picture) + noise, 0, 1)).astype(np.float32) / 255
    return torch.tensor(levels) if isinstance(picture, torch.Tensor) else levels


# ------------------------------------------------------------------------------------------------------- transforms

SIZES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 100]


@pytest.mark.parametrize("n", SIZES)
def test_dct_is_scipys(n):
    x = uniform(2, 1, 3, n)
    np.testing.assert_allclose(dct(x), scipy.fft.dct(x.numpy(), type=2), atol=1e-6 * n)


@pytest.mark.parametrize("n", SIZES)
def test_idct_is_scipys(n):
    c = uniform(2, 1, 3, n)
    np.testing.assert_allclose(idct(c), scipy.fft.idct(c.numpy(), type=2), atol=1e-7)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (5, 4), (16, 17)])
def test_gradient_and_its_adjoint_are_adjoint(size):
    k, ux, uy = (uniform(1, 1, *size, seed=s) for s in range(3))
    gx, gy = gradient(k)
    torch.testing.assert_close((gx * ux + gy * uy).sum(), (k * gradient_adjoint((ux, uy))).sum())


def test_gradient_is_the_forward_difference_and_nothing_across_the_border():
    gx, gy = gradient(torch.tensor([[[[1.0, 4.0, 9.0], [2.0, 2.0, 2.0]]]]))
    assert gx.tolist() == [[[[3, 5, 0], [0, 0, 0]]]]
    assert gy.tolist() == [[[[1, -2, -7], [0, 0, 0]]]]


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 5), (6, 1)])
def test_the_spectrum_is_that_of_the_laplacian(size):
    x = uniform(1, 1, *size)
    along_y, along_x = laplacian_spectrum(x)
    through_dct = idct(idct((dct(dct(x).mT).mT * (along_y + along_x)).mT).mT)
    torch.testing.assert_close(through_dct, gradient_adjoint(gradient(x)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("size", [(3, 4), (5, 5), (6, 1)])
def test_screened_poisson_is_the_least_squares_solution(size, kappa):
    x, ux, uy = (uniform(1, 1, *size, seed=s) for s in range(3))
    pixels = torch.eye(x.numel(), dtype=x.dtype).view(-1, 1, *size)
    gx, gy = (g.reshape(x.numel(), -1).T for g in gradient(pixels))  # the operators as matrices
    normal = torch.eye(x.numel(), dtype=x.dtype) + kappa * (gx.T @ gx + gy.T @ gy)
    rhs = x.flatten() + kappa * (gx.T @ ux.flatten() + gy.T @ uy.flatten())
    k = screened_poisson(x, (ux, uy), kappa)
    torch.testing.assert_close(k.flatten(), torch.linalg.solve(normal, rhs), atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------------------- the blur


@pytest.mark.parametrize("sigma", [0.7, 2.0, 4.9])
@pytest.mark.parametrize("size", [(33, 46), (64, 20)])
def test_a_narrow_blur_is_the_gaussian_mirrored_at_the_edges(size, sigma):
    x = uniform(2, 1, *size)
    exact = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="reflect", radius=int(3 * sigma + 0.5))
    np.testing.assert_allclose(smooth(x, sigma), exact, atol=1e-6)


@pytest.mark.parametrize("sigma", [10.0, 30.0])
@pytest.mark.parametrize("size", [(96, 120), (97, 121)])
def test_a_wide_blur_is_nearly_the_gaussian_up_to_the_edges(size, sigma):
    x = texture(*size, seed=1) + np.linspace(0, 0.5, size[1])
    exact = scipy.ndimage.gaussian_filter(x, sigma, mode="reflect", truncate=6)
    error = smooth(torch.tensor(x)[None, None], sigma)[0, 0].numpy() - exact
    assert np.abs(error).max() < 0.15 * exact.std() and error.std() < 0.05 * exact.std()


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (16, 16), (17, 33), (120, 90)])
def test_a_blur_keeps_a_constant_and_the_range(size, sigma):
    torch.testing.assert_close(smooth(torch.full((1, 1, *size), 0.3), sigma), torch.full((1, 1, *size), 0.3))
    x = uniform(1, 1, *size)
    blurred = smooth(x, sigma)
    assert blurred.shape == x.shape
    assert blurred.min() >= x.min() - 1e-9 and blurred.max() <= x.max() + 1e-9


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (120, 90)])
def test_a_blur_keeps_the_mean(size, sigma):
    x = uniform(1, 1, *size)
    assert smooth(x, sigma).mean().item() == pytest.approx(x.mean().item(), abs=0.005)


def test_a_blur_takes_pictures_and_channels_one_by_one():
    x = uniform(2, 3, 20, 24)
    for picture in range(2):
        for channel in range(3):
            alone = smooth(x[picture : picture + 1, channel : channel + 1], 6.0)
            torch.testing.assert_close(smooth(x, 6.0)[picture, channel], alone[0, 0])


# -------------------------------------------------------------------------------------------------------- the noise


def clean_pictures():
    y, x = np.mgrid[:96, :128] / 100
    waves = np.sin(5 * x + 2 * y) * np.cos(4 * y)
    return {
        "mid-grey": 0.5 + 0.3 * waves,
        "clipped at both ends": np.clip(0.5 + 0.55 * waves, 0, 1),
        "night": np.clip(0.15 + 0.2 * waves, 0, 1),
        "half black": np.where(x < 0.64, 0, 0.5 + 0.2 * waves),
    }


@pytest.mark.parametrize("sigma", [5, 10, 25, 40])
@pytest.mark.parametrize("name", clean_pictures())
def test_noise_is_measured_within_15_per_cent(name, sigma):
    picture = torch.tensor(clean_pictures()[name])[None, None]
    assert 255 * noise_std(noisy(picture, sigma, seed=sigma)).item() == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize("name", clean_pictures())
def test_a_clean_smooth_picture_has_no_noise(name):
    picture = np.rint(255 * clean_pictures()[name]) / 255
    assert 255 * noise_std(torch.tensor(picture)[None, None].float()).item() < 1


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (22, 100), (40, 40)])
def test_noise_is_seen_in_small_pictures_too(size):
    levels = [255 * noise_std(noisy(torch.full((1, 1, *size), 0.5), 20, seed=s)).item() for s in range(5)]
    assert np.mean(levels) == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_a_picture_all_black_or_white_has_no_noise(grey):
    assert noise_std(torch.full((2, 1, 20, 33), grey)).tolist() == [[[[0.0]]], [[[0.0]]]]


def test_noise_is_each_pictures_own():
    x = scenes(1, 64, 96)[0]
    pictures = [x, noisy(x, 10, seed=1), noisy(x, 30, seed=2)]
    together = noise_std(torch.cat(pictures))
    assert together.shape == (3, 1, 1, 1)
    torch.testing.assert_close(together, torch.cat([noise_std(picture) for picture in pictures]))
    assert 0 <= together[0] < together[1] < together[2]


def test_texture_is_not_taken_for_noise():
    """Noise is everywhere, fine texture only somewhere."""
    x = torch.full((1, 1, 128, 128), 0.5)
    x[..., :64] = noisy(x[..., :64], 30, seed=0)
    assert 255 * noise_std(x).item() < 1


# ----------------------------------------------------------------------------------------------- what they show


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_sources_superpose_to_that_source(count):
    s = scenes(1)[0]
    torch.testing.assert_close(fusion_target([s] * count), s, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "statistic", [fusion_target, lambda s: torch.cat(strongest_gradient(s, s[0] * 0))], ids=["b", "g"]
)
def test_the_order_of_the_sources_does_not_matter(statistic, count):
    sources = scenes(count)
    expected = statistic(sources)
    for order in permutations(sources):
        torch.testing.assert_close(statistic(list(order)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", [0.2, 0.4, 0.7])
def test_what_only_one_source_shows_enters_whole(level):
    """With its contrast, its edges and its background; a second source is flat, at any level, and so shows nothing."""
    one = torch.full((1, 1, 64, 64), 0.4)
    one[..., 20:40, 24:44] = 0.6
    b = fusion_target([one, torch.full_like(one, level)])
    torch.testing.assert_close(b, one, atol=0.03, rtol=0)


def test_things_that_different_sources_show_in_different_places_all_enter():
    base = torch.full((1, 1, 64, 128), 0.4)
    left, right = base.clone(), base.clone()
    left[..., 24:40, 20:36] = 0.8
    right[..., 24:40, 92:108] = 0.1
    b = fusion_target([left, right])
    expected = base.clone()
    expected[..., 24:40, 20:36], expected[..., 24:40, 92:108] = 0.8, 0.1
    torch.testing.assert_close(b, expected, atol=0.01, rtol=0)


def test_black_where_all_are_black_and_white_where_all_are_white():
    sources = scenes(3)
    for s in sources:
        s[..., :10, :], s[..., -10:, :] = 0, 1
    b = fusion_target(sources)
    assert (b[..., :10, :] == 0).all() and (b[..., -10:, :] == 1).all()


@pytest.mark.parametrize("size", [(16, 16), (16, 33), (1, 1), (2, 3)])
def test_tiny_pictures_superpose(size):
    b = fusion_target([uniform(1, 1, *size, seed=s) for s in range(2)])
    assert b.shape == (1, 1, *size) and (b >= 0).all() and (b <= 1).all()


def bounds(*levels):
    """Where within_bounds keeps f at one pixel of the given levels."""
    s = [torch.tensor([float(level)]) for level in levels]
    return tuple(within_bounds(torch.tensor([f]), s).item() for f in (0.0, 1.0))


def test_bounds_leave_what_is_between_alone():
    s = [torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.5])]
    assert within_bounds(torch.tensor([0.3, 0.6]), s).tolist() == pytest.approx([0.3, 0.6])


def test_black_stays_black_and_white_stays_white():
    assert bounds(0, 0) == (0, 0)
    assert bounds(0, 1) == pytest.approx((0.92, 1))


@pytest.mark.parametrize("level", [0.8, 0.9, 1.0])
def test_what_one_source_shows_bright_stays_bright(level):
    assert bounds(level, 0.1)[0] == pytest.approx(level - 0.08)
    assert bounds(0.5, 0.6)[0] == 0


def test_lights_together_saturate_below_white():
    """Two bright roads do not burn out; two dim things add as independent lights do."""
    assert bounds(0.9, 0.9)[1] == pytest.approx(0.97 * (1 - (1 - 0.9 / 0.97) ** 2))
    assert bounds(0.95, 0.95)[1] < 250 / 255 < bounds(0.99, 0.2)[1]
    assert bounds(0.1, 0.2)[1] == pytest.approx(0.3, abs=0.03)


def test_a_cold_sky_leaves_a_bright_one_bright():
    """A noon sky in the visible, featureless and cold in the infrared, whose ground is warm."""
    visible, infrared = torch.full((1, 1, 64, 96), 0.35), torch.full((1, 1, 64, 96), 0.6)
    visible[..., :30, :], infrared[..., :30, :] = 0.9, 0.1
    infrared += 0.02 * uniform(1, 1, 64, 96, dtype=torch.float32)
    model = Salient()
    f = (model.initial_estimate(model.start([2 * infrared - 1, 2 * visible - 1])) + 1) / 2
    assert (f[..., :28, :] >= 0.8 - 1e-4).all()


def test_with_roles_the_visible_sets_the_brightness_and_the_thermal_adds_what_is_warm():
    visible, thermal = torch.full((1, 1, 64, 96), 0.5), torch.full((1, 1, 64, 96), 0.4)
    visible[..., ::7] = 0.4
    thermal[..., 20:40, 10:30], thermal[..., 20:40, 60:80] = 0.8, 0.1  # a warm and a cold thing
    b = fusion_target([thermal, visible], ("thermal", "visible"))
    assert (b - visible)[..., 26:34, 16:24].mean() > 0.1
    assert (b - visible)[..., 26:34, 66:74].abs().mean() < 0.03
    assert (b - visible)[..., :10, :].abs().mean() < 0.03
    swapped = fusion_target([visible, thermal], ("visible", "thermal"))
    torch.testing.assert_close(swapped, b, atol=1e-6, rtol=0)


def test_roles_are_one_a_source():
    with pytest.raises(InputError, match="There are 3 sources but 2 roles"):
        Salient(roles=("thermal", "visible")).start([s * 2 - 1 for s in scenes(3)])


def test_strong_contrast_is_stronger():
    sources = [2 * s - 1 for s in scenes(2)]
    natural, strong = (m.initial_estimate(m.start(sources)) for m in (Salient(), Salient(contrast="strong")))
    assert strong.std() > 1.03 * natural.std()


def test_a_weight_snaps_to_the_edges_of_its_guide():
    guide = torch.full((1, 1, 64, 64), 0.2)
    guide[..., 32:] = 0.8
    blurred = smooth((guide > 0.5).float(), 5.0)
    sharp = guided_filter(blurred, guide, 20.0)
    jump = (sharp[..., 33] - sharp[..., 30]).mean()
    assert jump > 0.8 > 2 * (blurred[..., 33] - blurred[..., 30]).mean()


def test_a_weight_is_only_smoothed_where_its_guide_is_flat():
    weight = uniform(1, 1, 40, 40)
    torch.testing.assert_close(
        guided_filter(weight, torch.full_like(weight, 0.5), 6.0), smooth(smooth(weight, 6.0), 6.0), atol=1e-6, rtol=0
    )


def test_a_filtered_constant_stays():
    torch.testing.assert_close(guided_filter(torch.ones(1, 1, 48, 64), scenes(1)[0], 30.0), torch.ones(1, 1, 48, 64))


def test_the_strongest_gradient_of_equal_sources_is_theirs():
    s = scenes(1)[0]
    for g, own in zip(strongest_gradient([s, s, s], s), gradient(s), strict=True):
        torch.testing.assert_close(g, own)


def test_the_strongest_gradient_takes_each_structure_from_who_has_it():
    left, right = torch.full((1, 1, 40, 80), 0.5), torch.full((1, 1, 40, 80), 0.5)
    left[..., 20:], right[..., 60:] = 0.7, 0.1
    gx, gy = strongest_gradient([left, right], 0 * left)
    expected = torch.zeros_like(gx)
    expected[..., 19], expected[..., 59] = 0.2, -0.4
    torch.testing.assert_close(gx, expected, atol=1e-3, rtol=0)
    assert (gy == 0).all()


def test_of_two_edges_in_one_place_the_stronger_wins():
    weak, strong = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    weak[..., 10:], strong[..., 10:, :] = 0.1, 0.5
    gx, gy = strongest_gradient([weak, strong], 0 * weak)
    assert gy[..., 9, 10].item() == pytest.approx(0.5, abs=0.01) and gx[..., 9, 9].abs().item() < 0.01


# ------------------------------------------------------------------------------------------------------ the EM step


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

    after, new = model.rectify(x0, replace(state, sources=[state.b * 0 + 0.5] * 9))  # bounds 0 and 0.97
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


# ------------------------------------------------------------------------------------------- through the whole loop


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [2, 3])
def test_equal_sources_give_that_source_back(tiny_prior, count):
    """Even where the prior knows nothing: this one is random."""
    picture = made_picture(48, 64)
    fused = tiny_prior([picture] * count, generator=seeded()).images[0]
    assert np.abs(fused - picture / 255).mean() < 0.03
    assert np.abs(gradient(torch.tensor(fused))[0] - gradient(torch.tensor(picture / 255))[0]).mean() < 0.004


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_exchanging_the_sources_changes_nothing(tiny_prior, pair, sampler):
    one, other = (tiny_prior(p, sampler=sampler, generator=seeded()).images for p in (pair, pair[::-1]))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_three_sources_in_any_order(tiny_prior):
    three = [made_picture(33, 46, seed=s) for s in range(3)]
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
    clean = [texture(96, 96, seed=1), made_picture(96, 96, seed=2) / np.float32(255)]
    dirty = [noisy(s, sigma, seed=k) for k, s in enumerate(clean)]
    wanted = embedded(clean, generator=seeded()).images[0]
    with_prior = embedded(dirty, generator=seeded()).images[0]
    without = embedded(dirty, likelihood=Salient(denoise_sources=False), generator=seeded()).images[0]
    assert psnr(with_prior, wanted) > psnr(without, wanted) + 2


def test_equal_sources_pass_the_embedded_prior_unharmed(embedded):
    picture = made_picture(64, 80, seed=4)
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
    sources = [texture(96, 96, seed=1), made_picture(96, 96, seed=2) / np.float32(255)]
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
