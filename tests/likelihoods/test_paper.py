"""The EM steps, against the released code's outputs and, where there are none, against their own definitions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.integrate
import torch
from conftest import DATA

from ddfm.errors import InputError
from ddfm.likelihoods import LIKELIHOODS, Paper, Released
from ddfm.likelihoods.operators import gradient, gradient_adjoint, screened_poisson

EM_STEPS = np.load(DATA / "em_steps.npz")


def uniform(*shape, seed=0, low=-1.0, high=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=dtype)


def scene(*shape, seed=0, dtype=torch.float32):
    """x0, infrared, visible in [-1, 1]."""
    return [uniform(*shape, seed=seed + k, dtype=dtype) for k in (10, 20, 30)]


# ------------------------------------------------------------------------------------------- the building blocks


@pytest.mark.parametrize("size", [(2, 3), (5, 4), (16, 17)])
def test_gradient_and_its_adjoint_are_adjoint(size):
    k, ux, uy = (uniform(1, 1, *size, seed=s, dtype=torch.float64) for s in range(3))
    gx, gy = gradient(k)
    torch.testing.assert_close((gx * ux + gy * uy).sum(), (k * gradient_adjoint((ux, uy))).sum())


def dense_gradient(h, w):
    """The gradient as a matrix (2HW, HW), written from its definition with wrapped indices."""
    matrix = np.zeros((2, h, w, h, w))
    for i in range(h):
        for j in range(w):
            matrix[:, i, j, i, j] -= 1
            matrix[0, i, j, i, (j + 1) % w] += 1
            matrix[1, i, j, (i + 1) % h, j] += 1
    return matrix.reshape(2 * h * w, h * w)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (3, 4)])
def test_screened_poisson_is_the_dense_least_squares_solution(size):
    x, ux, uy = (uniform(1, 1, *size, seed=s, dtype=torch.float64) for s in range(3))
    g = dense_gradient(*size)
    u = torch.stack([ux, uy]).numpy().ravel()
    expected = np.linalg.lstsq(np.vstack([np.eye(x.numel()), g]), np.concatenate([x.numpy().ravel(), u]), rcond=None)[0]
    k = screened_poisson(x, (ux, uy), periodic=True)
    np.testing.assert_allclose(k.numpy().ravel(), expected, atol=1e-6)


# ----------------------------------------------------------------------------------------------- the paper's E-step


def posterior_moment(power, r, gamma):
    """E[m^power | r] under m ~ Exp(mean gamma), r ~ N(0, m), by quadrature over s = log m."""

    def density(s, power):
        m = np.exp(s)
        return np.exp(s / 2 + power * s - r**2 / (2 * m) - m / gamma)  # m^-1/2 of N and dm = m ds

    limits = 2 * np.log(r) - 8, np.log(gamma) + 6
    norm, moment = (scipy.integrate.quad(density, *limits, args=(p,), limit=500)[0] for p in (0, power))
    return moment / norm


@pytest.mark.parametrize("r", [0.003, 0.1, 0.7, 2.0])
@pytest.mark.parametrize("gamma", [0.02, 0.5, 1.0, 3.0])
def test_e_step_is_the_posterior_expectation(r, gamma):
    inv_m, scale = Paper.e_step(torch.full((1, 1, 2, 2), -r), torch.full((1, 1, 1, 1), gamma))
    assert inv_m[0, 0, 0, 0].item() == pytest.approx(posterior_moment(-1, r, gamma), rel=1e-4)
    assert scale.item() == pytest.approx(posterior_moment(1, r, gamma), rel=1e-4)


def test_new_scale_is_the_mean_over_the_picture():
    residual = uniform(1, 1, 4, 5)
    expected = np.mean([posterior_moment(1, abs(r), 0.5) for r in residual.flatten().tolist()])
    assert Paper.e_step(residual, torch.full((1, 1, 1, 1), 0.5))[1].item() == pytest.approx(expected, rel=1e-4)


def test_rectify_carries_both_scales_to_the_next_step():
    x0, i, v = scene(1, 1, 6, 7)
    state = replace(Paper().start([i, v]), gamma=torch.full((1, 1, 1, 1), 0.3), rho=torch.full((1, 1, 1, 1), 0.8))
    _, after = Paper().rectify(x0, state)
    torch.testing.assert_close(after.gamma, Paper.e_step(i - x0, state.gamma)[1])
    torch.testing.assert_close(after.rho, Paper.e_step(x0 - v, state.rho)[1])


# ----------------------------------------------------------------------------------------------- the paper's M-step


def q(model, x, k, u, y, inv_m, inv_n):
    """Q of the M-step's docstring, written independently."""
    tv_x, tv_y = torch.roll(k, -1, 3) - k, torch.roll(k, -1, 2) - k
    data = (inv_m * (y - x) ** 2 + inv_n * x**2).sum()
    shrinkage = model.psi * (u[0] ** 2 + u[1] ** 2).sum()
    splitting = ((k - x) ** 2).sum() + ((u[0] - tv_x) ** 2).sum() + ((u[1] - tv_y) ** 2).sum()
    return data + shrinkage + model.eta / 2 * splitting


@pytest.fixture(params=[(0.1, 0.5), (1.0, 0.2), (5.0, 2.0)], ids=lambda p: f"eta{p[0]}-psi{p[1]}")
def m_step_problem(request):
    """A model, and x, y, E[1/m], E[1/n] and a state with a u of its own, in double precision."""
    model = Paper(*request.param)
    size = (1, 1, 6, 9)
    x, y, ux, uy = (uniform(*size, seed=s, dtype=torch.float64) for s in range(4))
    inv_m, inv_n = (uniform(*size, seed=s, low=0.5, high=4, dtype=torch.float64) for s in (4, 5))
    return model, x, y, inv_m, inv_n, replace(model.start([y, torch.zeros_like(y)]), u=(ux, uy))


def test_each_m_step_block_is_the_exact_minimiser_of_q(m_step_problem):
    model, x, y, inv_m, inv_n, state = m_step_problem
    k = screened_poisson(x, state.u, periodic=True)
    new_x, new_u = model.m_step(x, y, inv_m, inv_n, state)
    for block, at in [  # in the order of the pass: each with the newest of the others; Q is convex
        ("k", {"x": x, "k": k, "u": torch.stack(state.u)}),
        ("u", {"x": x, "k": k, "u": torch.stack(new_u)}),
        ("x", {"x": new_x, "k": k, "u": torch.stack(new_u)}),
    ]:
        at[block].requires_grad_()
        (slope,) = torch.autograd.grad(q(model, y=y, inv_m=inv_m, inv_n=inv_n, **at), at[block])
        at[block].requires_grad_(False)
        assert slope.abs().max() < 2e-6, block


def test_q_does_not_rise_over_a_pass(m_step_problem):
    model, x, y, inv_m, inv_n, state = m_step_problem
    values = []
    for _ in range(6):
        k = screened_poisson(x, state.u, periodic=True)
        values.append(q(model, x, k, state.u, y, inv_m, inv_n).item())
        x, u = model.m_step(x, y, inv_m, inv_n, state)
        state = replace(state, u=u)
    assert np.diff(values).max() < 1e-9
    assert values[-1] < values[0]


def test_m_step_converges_to_the_brute_force_minimiser(m_step_problem):
    model, x, y, inv_m, inv_n, state = m_step_problem
    for _ in range(300):
        x, u = model.m_step(x, y, inv_m, inv_n, state)
        state = replace(state, u=u)

    n, g = y.numel(), dense_gradient(*y.shape[-2:])  # the normal equations in (x, k, u)
    eye, weight_m, weight_n = np.eye(n), inv_m.numpy().ravel(), inv_n.numpy().ravel()
    h = model.eta / 2
    system = np.block(
        [
            [np.diag(weight_m + weight_n) + h * eye, -h * eye, np.zeros((n, 2 * n))],
            [-h * eye, h * (eye + g.T @ g), -h * g.T],
            [np.zeros((2 * n, n)), -h * g, (model.psi + h) * np.eye(2 * n)],
        ]
    )
    solution = np.linalg.solve(system, np.concatenate([weight_m * y.numpy().ravel(), np.zeros(3 * n)]))
    np.testing.assert_allclose(x.numpy().ravel(), solution[:n], atol=1e-6)
    np.testing.assert_allclose(torch.stack(state.u).numpy().ravel(), solution[2 * n :], atol=1e-6)


# --------------------------------------------------------------------------------------------- the paper's objective


def map_objective(model, f, state):
    """-log p(y, x) with m and n integrated out, plus the half-quadratic TV penalty at its best k, up to a constant.

    A Gaussian whose variance is Exp(mean gamma) is a Laplace law: -log p(y | x) = |y - x| sqrt(2/gamma) + log(gamma)/2.
    EM bounds it by E[1/m] (y - x)^2 / 2, half of what stands in Q, so that the penalty counts half, too.
    """
    y, x = state.i - state.v, f - state.v
    laplace = [(r.abs() * (2 / s).sqrt() + s.log() / 2).sum() for r, s in ((y - x, state.gamma), (x, state.rho))]
    k = screened_poisson(x, state.u, periodic=True)
    penalty = q(model, x, k, state.u, y, inv_m=torch.zeros(()), inv_n=torch.zeros(()))
    return (laplace[0] + laplace[1] + penalty / 2).item()


@pytest.mark.parametrize("eta, psi", [(0.1, 0.5), (1.0, 0.5), (4.0, 3.0)])
@pytest.mark.parametrize("scales", ["fixed", "learnt"])
def test_em_never_raises_the_map_objective(eta, psi, scales):
    model = Paper(eta, psi)
    f, i, v = scene(1, 1, 8, 9, dtype=torch.float64)
    fixed = {"gamma": torch.full((1, 1, 1, 1), 0.4), "rho": torch.full((1, 1, 1, 1), 0.9)}
    state = replace(model.start([i, v]), **(fixed if scales == "fixed" else {}))
    values = [map_objective(model, f, state)]
    for _ in range(25):
        f, state = model.rectify(f, state)
        if scales == "fixed":
            state = replace(state, **fixed)
        values.append(map_objective(model, f, state))
    rises = np.diff(values)
    assert rises.max() < 1e-4
    assert rises[0] < -0.1  # and it does go down


# --------------------------------------------------------------------------------------------------- what must hold


@pytest.mark.parametrize("model", [Paper(), Released()], ids=["paper", "released"])
def test_two_equal_sources_give_that_source_back(model):
    x0, i, _ = scene(1, 1, 12, 13)
    state = model.start([i, i])
    f, state = model.rectify(x0, state)
    assert (f - i).abs().max() < 0.02 * (x0 - i).abs().max()
    for _ in range(20):
        f, state = model.rectify(f, state)
    torch.testing.assert_close(f, i, atol=1e-5, rtol=0)


def rectified(model, x0, i, v, steps=4):
    """The guesses after each step, and the last state; the guess goes back in, a little moved, as a network's."""
    state, guesses = model.start([i, v]), []
    for _ in range(steps):
        f, state = model.rectify(x0, state)
        guesses.append(f)
        x0 = 0.7 * f + 0.3 * x0
    return torch.stack(guesses), state


def assert_mirrored(model, x0, i, v):
    """Swapping i and v turns x into x - y and y into -y: gamma and rho change places, the fused image stays."""
    one, one_state = rectified(model, x0, i, v)
    other, other_state = rectified(model, x0, v, i)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one_state.gamma, other_state.rho)
    torch.testing.assert_close(one_state.rho, other_state.gamma)


def test_swapping_the_sources_changes_nothing_without_the_tv_term():
    assert_mirrored(Paper(eta=0.0), *scene(1, 1, 9, 10))


def test_swapping_sources_a_constant_apart_changes_nothing():
    x0, i, _ = scene(1, 1, 9, 10)  # the penalty is on the gradient of f - v, which then is that of f - i
    assert_mirrored(Paper(eta=1.0), x0, i, i - 0.4)


def test_tv_term_breaks_the_symmetry_elsewhere():
    x0, i, v = scene(1, 1, 9, 10)
    assert (rectified(Paper(eta=1.0), x0, i, v)[0] - rectified(Paper(eta=1.0), x0, v, i)[0]).abs().max() > 0.01


@pytest.mark.parametrize("model", [Paper(eta=1.0), Released(eta=1.0)], ids=["paper", "released"])
def test_a_photographic_negative_is_fused_to_the_negative(model):
    x0, i, v = scene(1, 1, 9, 10)
    torch.testing.assert_close(rectified(model, -x0, -i, -v)[0], -rectified(model, x0, i, v)[0])


def test_without_tv_the_guess_is_pulled_between_the_sources():
    x0, i, v = scene(1, 1, 9, 10)
    f, _ = Paper(eta=0.0).rectify(x0, Paper().start([i, v]))
    assert (f >= torch.minimum(i, v) - 1e-6).all() and (f <= torch.maximum(i, v) + 1e-6).all()


@pytest.mark.parametrize("model", [Paper(), Released()], ids=["paper", "released"])
def test_a_batch_gives_what_its_pictures_give_alone(model):
    x0, i, v = scene(3, 1, 9, 10)
    i = i * torch.tensor([1, 0.2, 0.5]).view(3, 1, 1, 1)  # images of unlike scales
    together, state = rectified(model, x0, i, v)
    for k in range(3):
        alone, state_alone = rectified(model, *(t[k : k + 1] for t in (x0, i, v)))
        torch.testing.assert_close(together[:, k : k + 1], alone, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(state.gamma[k], state_alone.gamma[0])


@pytest.mark.parametrize("model", [Paper(), Released()], ids=["paper", "released"])
@pytest.mark.parametrize("zero", ["x0 = infrared", "x0 = visible", "infrared = visible", "all equal", "all black"])
def test_residuals_of_exactly_zero_stay_finite(model, zero):
    x0, i, v = scene(1, 1, 4, 5)
    x0, i, v = {
        "x0 = infrared": (i, i, v),
        "x0 = visible": (v, i, v),
        "infrared = visible": (x0, i, i),
        "all equal": (i, i, i),
        "all black": (-torch.ones_like(i),) * 3,
    }[zero]
    state = model.start([i, v])
    for _ in range(200):  # a scale that halved at every one would be 0 in float32
        f, state = model.rectify(x0, state)
    assert f.dtype == torch.float32
    assert torch.isfinite(f).all() and f.abs().max() < 3
    assert torch.isfinite(state.gamma).all() and torch.isfinite(state.rho).all()


@pytest.mark.parametrize("name", ["released", "paper"])
@pytest.mark.parametrize("count", [1, 3])
def test_other_than_two_sources_are_refused_in_one_sentence(name, count):
    with pytest.raises(InputError) as caught:
        LIKELIHOODS[name].start([torch.zeros(1, 1, 16, 16)] * count)
    assert name in str(caught.value) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- the released code's


@pytest.mark.parametrize("run", ["0", "1", "2"])
def test_released_reproduces_the_reference_steps(run):
    psi, eta = EM_STEPS[f"{run}_lamb_rho"].tolist()
    model = Released(eta=eta, psi=psi)
    infrared, visible = torch.tensor(EM_STEPS[f"{run}_V"]), torch.tensor(EM_STEPS[f"{run}_I"])  # as that code has them
    state = model.start([infrared, visible])
    for k, x0 in enumerate(torch.tensor(EM_STEPS[f"{run}_f_pre"])):
        f, state = model.rectify(x0, state)
        np.testing.assert_allclose(f.numpy(), EM_STEPS[f"{run}_F"][k], atol=1e-5, rtol=0)
        assert state.gamma.item() == pytest.approx(EM_STEPS[f"{run}_tau_a"][k], abs=1e-5)
        assert state.rho.item() == pytest.approx(EM_STEPS[f"{run}_tau_b"][k], abs=1e-5)


def test_released_mirrors_a_guess_between_the_sources_about_their_mean():
    _, i, v = scene(1, 1, 9, 10)
    x0 = i + uniform(1, 1, 9, 10, seed=1, low=0.45, high=0.55) * (v - i)  # where its clamp does not bite
    f, _ = Released(eta=0.0).rectify(x0, Released().start([i, v]))
    apart = (i - v).abs() > 0.05  # its sqrt(r^2 + 1e-6) is not |r| below that
    torch.testing.assert_close(f[apart], (i + v - x0)[apart], atol=1e-4, rtol=0)


def test_released_clamp_keeps_a_guess_at_the_infrared_from_jumping_all_the_way():
    _, i, v = scene(1, 1, 9, 10)
    f, _ = Released(eta=0.0).rectify(i, Released().start([i, v]))  # E[1/n] would be 1000 times 2 E[1/m]
    apart = (i - v).abs() > 0.05
    torch.testing.assert_close(f[apart], (i + (v - i) * 2 / 3)[apart], atol=1e-4, rtol=0)
