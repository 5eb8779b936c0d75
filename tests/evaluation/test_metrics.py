"""The metrics against the authors' evaluator, against other libraries, and at the edges."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
    visual_information_fidelity,
)

from ddfm.errors import InputError
from ddfm.evaluation import metrics as m
from ddfm.evaluation.metric_parts import gaussian, separable, separable_by_torch

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "metrics.npz")
CASES = sorted({key[:2] for key in GOLDEN if key.endswith("_values")})


def texture(seed, size=(96, 120), smooth=3):
    """Whole grey levels with structure at several scales."""
    noise = np.random.default_rng(seed).normal(size=(size[0] + smooth, size[1] + smooth))
    x = sum(noise[i : i + size[0], j : j + size[1]] for i in range(smooth) for j in range(smooth))
    return np.rint((x - x.min()) / np.ptp(x) * 255)


@pytest.fixture
def trio():
    a, b = texture(1), texture(2)
    return np.rint(0.6 * a + 0.4 * b), a, b


@pytest.mark.parametrize("case", CASES)
def test_ddfm_convention_equals_the_authors_evaluator(case):
    fused, a, b = (GOLDEN[f"{case}_{name}"] for name in ("fused", "a", "b"))
    names = [str(name) for name in GOLDEN["names"]]
    measured = m.fusion_metrics(fused, [a, b], convention="ddfm", names=names)
    assert list(measured) == names
    np.testing.assert_allclose(list(measured.values()), GOLDEN[f"{case}_values"], rtol=1e-6)


def test_the_default_is_the_evaluators_twelve():
    assert sorted(m.EVALUATOR_NAMES) == sorted(str(name) for name in GOLDEN["names"])
    x = texture(0)
    assert tuple(m.fusion_metrics(x, [x, x])) == m.EVALUATOR_NAMES


@pytest.mark.parametrize("convention", ["ddfm", "standard"])
def test_float_tensors_and_bytes_agree_and_batches_equal_single_images(trio, convention):
    f, a, b = (torch.from_numpy(x) for x in trio)
    other = torch.from_numpy(texture(7))
    for name, metric in m.METRICS.items():
        single = metric(f, [a, b], convention)
        assert single.dtype == torch.float64 and single.shape == ()
        batch = metric(torch.stack([other, f]), [torch.stack([b, a]), torch.stack([a, b])], convention)
        torch.testing.assert_close(batch[1], single, rtol=1e-9, atol=1e-12, equal_nan=True, msg=name)
    as_bytes = m.fusion_metrics(f.byte(), [a.byte().numpy(), b.byte()], convention)
    assert as_bytes == m.fusion_metrics(f.float(), [a, b], convention)


def test_ddfm_convention_rounds_to_grey_levels_and_standard_does_not(trio):
    f, a, b = trio
    shifted = f + 0.3
    assert m.fusion_metrics(shifted, [a, b]) == m.fusion_metrics(f, [a, b])
    assert m.fusion_metrics(shifted, [a, b], "standard")["MSE"] != m.fusion_metrics(f, [a, b], "standard")["MSE"]


# ---- other libraries ------------------------------------------------------------------------------------------


def test_information_is_scikit_learns(trio):
    f, a, b = trio
    flat = [x.astype(int).ravel() for x in trio]
    nats = mutual_info_score(flat[0], flat[1]) + mutual_info_score(flat[0], flat[2])
    assert float(m.mi(f, [a, b])) == pytest.approx(nats, rel=1e-10)
    assert float(m.mi(f, [a, b], "standard")) == pytest.approx(nats / 2 / np.log(2), rel=1e-10)
    shares = [normalized_mutual_info_score(flat[0], x) for x in flat[1:]]
    assert float(m.nmi(f, [a, b])) == pytest.approx(np.mean(shares), rel=1e-10)


def test_ssim_is_scikit_images_and_torchmetrics(trio):
    f, a, b = trio
    uniform = sum(structural_similarity(f, x, data_range=2) for x in (a, b))
    assert float(m.ssim(f, [a, b])) == pytest.approx(uniform, rel=1e-9)
    weighted = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    textbook = np.mean([structural_similarity(f, x, **weighted) for x in (a, b)])
    assert float(m.ssim(f, [a, b], "standard")) == pytest.approx(textbook, rel=1e-9)
    theirs, _ = torchmetrics_ssim_and_contrast(torch.from_numpy(f), torch.from_numpy(a))
    assert float(m.ssim(f, [a], "standard")) == pytest.approx(theirs, rel=1e-9)


def torchmetrics_ssim_and_contrast(x, y):
    """Both over the windows inside the image; torchmetrics' own SSIM number adds a mirrored border."""
    x, y = x[None, None], y[None, None]
    _, full = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    _, contrast = structural_similarity_index_measure(x, y, data_range=255.0, return_contrast_sensitivity=True)
    return float(full[..., 5:-5, 5:-5].mean()), float(contrast)


def test_ms_ssim_is_made_of_torchmetrics_terms():
    f, a = texture(3, (180, 201), 5), texture(4, (180, 201), 5)
    x, y = torch.from_numpy(0.8 * f + 0.2 * a), torch.from_numpy(a)
    expected, weights = 1.0, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        similarity, contrast = torchmetrics_ssim_and_contrast(x, y)
        expected *= (similarity if scale == 4 else contrast) ** weight
        if scale == 0:
            first = x, y
        x, y = (torch.nn.functional.avg_pool2d(z[None, None], 2)[0, 0] for z in (x, y))
    assert float(m.ms_ssim(first[0], [first[1]])) == pytest.approx(expected, rel=1e-9)
    theirs = multiscale_structural_similarity_index_measure(*(z[None, None] for z in first), data_range=255.0)
    assert float(theirs) == pytest.approx(expected, abs=0.05)


def test_vif_is_torchmetrics(trio):
    f, a, b = trio
    theirs = [
        visual_information_fidelity(torch.from_numpy(f)[None, None], torch.from_numpy(x)[None, None]) for x in (a, b)
    ]
    assert float(m.vif(f, [a, b], "standard")) == pytest.approx(float(sum(theirs)) / 2, rel=1e-4)
    assert float(m.vif(f, [a, b])) == pytest.approx(float(sum(theirs)), rel=1e-4)


def test_error_metrics_are_scikit_images_and_numpys(trio):
    f, a, b = trio
    assert float(m.psnr(f, [a], "standard")) == pytest.approx(peak_signal_noise_ratio(a, f, data_range=255))
    assert float(m.mse(f, [a, b])) == pytest.approx((np.mean((f - a) ** 2) + np.mean((f - b) ** 2)) / 2)
    assert float(m.psnr(f, [a, b])) == pytest.approx(10 * np.log10(f.max() ** 2 / float(m.mse(f, [a, b]))))

    def r(x, y):
        return np.corrcoef(x.ravel(), y.ravel())[0, 1]

    assert float(m.cc(f, [a, b])) == pytest.approx((r(f, a) + r(f, b)) / 2)
    assert float(m.scd(f, [a, b])) == pytest.approx(r(f - b, a) + r(f - a, b))


# ---- hand-made truths -----------------------------------------------------------------------------------------


def test_entropy_of_equally_many_of_n_levels_is_log2_n():
    levels = np.tile(np.arange(16), (8, 4))
    assert float(m.en(levels)) == pytest.approx(4)
    assert float(m.en(np.full((5, 5), 9))) == 0 and not np.signbit(float(m.en(np.full((5, 5), 9))))


def test_gradients_of_a_ramp():
    ramp = np.tile(3.0 * np.arange(20), (10, 1))
    assert float(m.sf(ramp)) == pytest.approx(3)
    assert float(m.ag(ramp)) == pytest.approx(3 / np.sqrt(2))


def test_qabf_knows_opposite_edges_are_parallel_only_in_the_standard_convention():
    y, x = np.mgrid[:40, :40]
    a = 128 + 3 * (y + 0.02 * (x - 20)) - 60  # gradient at 89 degrees
    f = 128 + 3 * (y - 0.02 * (x - 20)) - 60  # and at 91: the same edge but for 2 degrees
    inside = (slice(4, -4), slice(4, -4))
    assert float(m.qabf(f[inside], [a[inside]], "standard")) > 0.9
    assert float(m.qabf(f[inside], [a[inside]], "ddfm")) < 0.5


def test_qabf_and_nabf_of_the_source_itself(trio):
    _, a, _ = trio
    ceiling = 0.9994 / (1 + np.exp(-7.5)) * 0.9879 / (1 + np.exp(-4.4))
    assert float(m.qabf(a, [a, a], "standard")) == pytest.approx(ceiling, rel=1e-12)
    assert float(m.nabf(a, [a, a])) == 0


def test_nabf_sees_edges_that_no_source_has(trio):
    f, a, b = trio
    clean = float(m.nabf(np.rint((a + b) / 2), [a, b]))
    assert 0 <= clean < float(m.nabf(f + 40 * (np.indices(f.shape).sum(0) % 2), [a, b])) < 1


def nabf_as_published(f, a, b):
    """Shreyamsha Kumar's definition pixel by pixel, from its description."""

    def edge(x, i, j):
        w = np.pad(x, 1, mode="reflect")[i : i + 3, j : j + 3]
        gx = (w[0, 2] + 2 * w[1, 2] + w[2, 2] - w[0, 0] - 2 * w[1, 0] - w[2, 0]) / 8
        gy = (w[2, 0] + 2 * w[2, 1] + w[2, 2] - w[0, 0] - 2 * w[0, 1] - w[0, 2]) / 8
        angle = 0.0 if gx == 0 and gy == 0 else (np.pi / 2 if gx == 0 else np.arctan(gy / gx))
        return np.hypot(gx, gy), angle

    top = bottom = 0.0
    for i, j in np.ndindex(f.shape):
        gf, tf = edge(f, i, j)
        terms = []
        for source in (a, b):
            gs, ts = edge(source, i, j)
            ratio = 0.0 if gs == 0 or gf == 0 else min(gs, gf) / max(gs, gf)
            turn = abs(abs(ts - tf) - np.pi / 2) * 2 / np.pi
            q = np.sqrt(0.9999 / (1 + np.exp(-19 * (ratio - 0.5))) * 0.9995 / (1 + np.exp(-22 * (turn - 0.5))))
            weight = gs**1.5 if gs >= 2 else 0.001
            terms.append((gf > gs, (1 - q) * weight, weight))
        top += all(t[0] for t in terms) * sum(t[1] for t in terms)
        bottom += sum(t[2] for t in terms)
    return top / bottom


def test_nabf_is_the_published_definition():
    rng = np.random.default_rng(5)
    f, a, b = (rng.integers(0, 40, (12, 14)).astype(float) for _ in range(3))
    a[:5, :5] = 7  # a flat corner
    assert float(m.nabf(f, [a, b])) == pytest.approx(nabf_as_published(f, a, b), rel=1e-10)


def fmi_as_published(f, source):
    """Haghighat's definition window by window, from its description."""

    def law(w):
        w = np.ones_like(w) if np.ptp(w) == 0 else (w - w.min()) / np.ptp(w)
        return w / w.sum()

    def entropy(p):
        p = p[p != 0]
        return -(p * np.log2(abs(p))).sum()

    values = []
    for i, j in np.ndindex(f.shape[0] - 2, f.shape[1] - 2):
        u, v = (x[i : i + 3, j : j + 3].T.ravel() for x in (f, source))
        if (u == v).all():
            values.append(1.0)
            continue
        p, q = law(u), law(v)
        cp, cq, place = p.cumsum(), q.cumsum(), np.arange(9)
        r = 0.0 if p.std() < 1e-12 or q.std() < 1e-12 else np.corrcoef(p, q)[0, 1]
        sd = [np.sqrt((w * place**2).sum() - (w * place).sum() ** 2) for w in (p, q)]
        bound = np.minimum.outer(cp, cq) if r >= 0 else np.maximum(np.add.outer(cp, cq) - 1, 0)
        mixing = r * sd[0] * sd[1] / (bound - np.outer(cp, cq)).sum() if r else 0.0
        bound = np.diff(np.diff(np.pad(bound, ((1, 0), (1, 0))), axis=0), axis=1)
        joint = mixing * bound + (1 - mixing) * np.outer(p, q)
        margins = entropy(p) + entropy(q)
        values.append(2 * (margins - entropy(joint.ravel())) / margins)
    return np.mean(values)


def test_fmi_is_the_published_definition():
    rng = np.random.default_rng(8)
    f = rng.integers(0, 256, (9, 13)).astype(float)
    a = np.rint(0.5 * f + 0.5 * rng.integers(0, 256, f.shape))
    b = f[::-1].copy()
    a[:4, :4] = f[:4, :4]
    b[5:, 5:] = 3
    expected = (fmi_as_published(f, a) + fmi_as_published(f, b)) / 2
    assert float(m.fmi(f, [a, b])) == pytest.approx(expected, rel=1e-9)
    gf, ga = (np.gradient(x, axis=1) for x in (f, a))
    assert float(m.fmi(f, [a], "gradient")) == pytest.approx(fmi_as_published(gf, ga), rel=1e-9)
    assert float(m.fmi(f, [f, f])) == 1


def test_more_than_two_sources(trio):
    f, a, b = trio
    c = texture(9)
    for convention in ("ddfm", "standard"):
        two, three = (m.fusion_metrics(f, sources, convention, list(m.METRICS)) for sources in ([a, b], [a, b, c]))
        assert set(three) == set(two)
        for name in ("EN", "SD", "SF", "AG"):
            assert three[name] == two[name]
        one = m.fusion_metrics(f, [c, c], convention, ["MI", "VIF", "SSIM", "CC", "NMI", "FMI"])
        for name, value in one.items():
            summed = convention == "ddfm" and name in ("MI", "VIF", "SSIM")
            expected = two[name] + value / 2 if summed else (2 * two[name] + value) / 3
            assert three[name] == pytest.approx(expected, rel=1e-9), name
        assert all(np.isfinite(v) for k, v in three.items() if k != "MS-SSIM")


# ---- edges of the domain --------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["ddfm", "standard"])
def test_documented_limits(trio, convention):
    _, a, b = trio
    flat = np.full_like(a, 100)
    names = list(m.METRICS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = m.fusion_metrics(a, [a, a], convention, names)
        as_a = m.fusion_metrics(a, [a, b], convention, names)
        flat_fused = m.fusion_metrics(flat, [a, b], convention, names)
        all_flat = m.fusion_metrics(flat, [flat, flat], convention, names)
        black = m.fusion_metrics(0 * a, [0 * a, 0 * a], convention, names)
    n = 2 if convention == "ddfm" else 1
    assert same["SSIM"] == pytest.approx(n) and same["VIF"] == pytest.approx(n) and same["CC"] == pytest.approx(1)
    assert same["NMI"] == pytest.approx(1) and same["FMI"] == 1 and same["MSE"] == 0 and same["PSNR"] == np.inf
    assert np.isnan(same["SCD"]) and np.isnan(as_a["SCD"])
    assert np.isfinite([as_a[k] for k in names if k not in ("SCD", "MS-SSIM")]).all()
    for k in ("EN", "SD", "SF", "AG", "MI", "NMI"):
        assert flat_fused[k] == 0
    assert flat_fused["VIF"] == pytest.approx(0, abs=1e-9) and flat_fused["Qabf"] < 0.1
    assert np.isnan(flat_fused["CC"]) and flat_fused["Nabf"] == 0
    assert all_flat["VIF"] == n and all_flat["SSIM"] == pytest.approx(n) and all_flat["NMI"] == 1
    assert np.isnan(all_flat["Qabf"]) == (convention == "standard")  # "ddfm" pads with zeros: the frame is an edge
    assert np.isnan(black["Qabf"]) and black["Nabf"] == 0
    assert np.isnan(black["PSNR"]) if convention == "ddfm" else black["PSNR"] == np.inf


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 45), st.integers(1, 45), st.sampled_from(["ddfm", "standard"]), st.integers(0, 99))
def test_any_size_gives_a_number_or_nan_where_the_window_does_not_fit(height, width, convention, seed):
    rng = np.random.default_rng(seed)
    f, a, b = (rng.integers(0, 256, (height, width)) for _ in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = m.fusion_metrics(f, [a, b], convention, list(m.METRICS))
    smallest = min(height, width)
    window = {"SSIM": 7 if convention == "ddfm" else 11, "VIF": 41, "MS-SSIM": 176, "FMI": 3, "FMI_gradient": 3}
    for name, side in window.items():
        assert np.isnan(measured[name]) == (smallest < side), name
    for name in ("EN", "SD", "SF", "AG", "MI", "NMI", "MSE", "Nabf"):
        assert np.isfinite(measured[name]) and measured[name] >= 0, name


def test_ms_ssim_begins_at_176_pixels():
    a, b = texture(1, (176, 176)), texture(1, (175, 180))
    assert float(m.ms_ssim(a, [a])) == pytest.approx(1) and np.isnan(float(m.ms_ssim(b, [b])))


def test_the_two_filters_are_one():
    x = torch.from_numpy(np.stack([texture(1), texture(2)]))[:, None]
    across, down = gaussian(17, 3.4), gaussian(5, 1.0)
    torch.testing.assert_close(separable(x, across, down), separable_by_torch(x, across, down), rtol=1e-12, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(trio):
    names = [*m.EVALUATOR_NAMES, "NMI", "Nabf", "FMI"]
    cpu = m.fusion_metrics(trio[0], trio[1:], names=names)
    gpu = m.fusion_metrics(
        torch.tensor(trio[0], device="cuda"), [torch.tensor(x).cuda() for x in trio[1:]], names=names
    )
    assert gpu == pytest.approx(cpu, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((np.zeros((4, 4)), [np.zeros((4, 4))]), "two or more sources"),
        ((np.zeros((4, 4)), [np.zeros((4, 4)), np.zeros((4, 5))]), r"\(4, 4\) but a source is \(4, 5\)"),
        ((np.zeros((4, 4)), []), "got none"),
        ((np.zeros((4, 4, 3)), [np.zeros((4, 4, 3))] * 2), r"one \(H, W\) image"),
        ((np.zeros(4), [np.zeros(4)] * 2), "grey image"),
        ((np.zeros((0, 4)), [np.zeros((0, 4))] * 2), "grey image"),
        ((np.full((4, 4), np.nan), [np.zeros((4, 4))] * 2), "not finite"),
        ((np.zeros((4, 4)), [np.full((4, 4), np.inf), np.full((4, 4), -np.inf)]), "not finite"),
        ((np.zeros((4, 4)), [np.zeros((4, 4))] * 2, "textbook"), "'ddfm' or 'standard'"),
        ((np.zeros((4, 4)), [np.zeros((4, 4))] * 2, "ddfm", ["EN", "LPIPS"]), "Unknown metric LPIPS"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        m.fusion_metrics(*arguments)
    with pytest.raises(InputError, match="pixel"):
        m.fmi(np.zeros((4, 4)), [np.zeros((4, 4))], "edge")
    with pytest.raises(InputError, match="two sources"):
        m.scd(np.zeros((4, 4)), [np.zeros((4, 4))])


def test_names_in_any_case(trio):
    assert list(m.fusion_metrics(trio[0], trio[1:], names=["qabf", "ms-ssim"])) == ["Qabf", "MS-SSIM"]
