"""The baselines: known answers, any size, any number of sources."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfm.errors import InputError
from ddfm.evaluation.baselines import BASELINES, average, laplacian_pyramid, maximum


def test_average_and_maximum_are_what_they_say():
    a, b, c = np.random.default_rng(0).random((3, 5, 7))
    np.testing.assert_allclose(average([a, b, c]), (a + b + c) / 3, rtol=1e-6)
    np.testing.assert_allclose(maximum([a, b, c]), np.maximum(np.maximum(a, b), c), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 4), st.sampled_from(sorted(BASELINES)))
def test_equal_sources_come_back_at_any_size(height, width, number, name):
    source = np.random.default_rng(height * 100 + width).random((height, width))
    fused = BASELINES[name]([source] * number)
    assert fused.shape == source.shape and fused.dtype == np.float32
    np.testing.assert_allclose(fused, source, atol=1e-6)


def test_laplacian_pyramid_keeps_the_detail_of_each_source():
    y, x = np.mgrid[:64, :64]
    left = 0.5 + 0.2 * np.sin(x * 2.5) * (x < 32)
    right = 0.5 + 0.2 * np.sin(y * 2.5) * (x >= 32)
    fused = laplacian_pyramid([left, right])
    whole = left + right - 0.5
    assert np.abs(fused - whole)[8:-8, 8:-8].mean() < 0.02 < np.abs(average([left, right]) - whole).mean()
    assert fused.min() >= 0 and fused.max() <= 1


def test_laplacian_pyramid_stays_in_range():
    a, b = np.random.default_rng(1).integers(0, 2, (2, 33, 47)).astype(float)
    fused = laplacian_pyramid([a, b])
    assert fused.min() == 0 and fused.max() == 1


@pytest.mark.parametrize(
    "sources", [[], [np.zeros((3, 3))], [np.zeros((3, 3)), np.zeros((3, 4))], [np.zeros((3, 3, 3))] * 2]
)
def test_what_cannot_be_fused_is_refused(sources):
    for fuse in BASELINES.values():
        with pytest.raises(InputError, match="two or more grey images"):
            fuse(sources)
