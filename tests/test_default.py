"""The default's results, so that a change that was not meant to move them is seen."""

import numpy as np
import pytest
from conftest import DATA

from ddfm import fuse


@pytest.mark.parametrize("scene", ["street", "head"])
def test_default_is_what_it_was(scene):
    with np.load(DATA / "default.npz") as golden:
        first, second, expected = (golden[f"{scene}_{name}"] for name in ("first", "second", "fused"))
    fused = fuse(first, second, device="cpu", precision="float32")
    assert fused.shape == expected.shape and fused.dtype == np.float32
    # Another processor's convolutions and FFTs round otherwise; what they differ by is far below a grey level.
    assert np.abs(fused - expected).max() < 0.2 / 255
