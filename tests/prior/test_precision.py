"""bfloat16 where it is fast, and what it changes."""

import numpy as np
import pytest
import torch
from conftest import made_image

from ddfm.pipeline import DDFMPipeline
from ddfm.prior.precision import best_dtype

FLAGS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_arm_bf16_supported")


@pytest.mark.parametrize("flag", [None, *FLAGS])
def test_the_processor_decides(flag, monkeypatch):
    for name in FLAGS:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == flag, raising=False)
    assert best_dtype("cpu") == (torch.bfloat16 if flag else torch.float32)


def test_a_pytorch_that_cannot_tell_means_float32(monkeypatch):
    for name in FLAGS:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert best_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_the_gpu_decides(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_dtype("cuda") == dtype
    assert best_dtype("meta") == torch.float32


@pytest.mark.parametrize("seed", [1, 5])
def test_bfloat16_changes_a_clean_pair_by_less_than_a_grey_level(seed):
    pair = [made_image(64, 80, seed=seed), made_image(64, 80, seed=seed + 1)]
    fused = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = DDFMPipeline.from_prior("embedded", "cpu", dtype)
        pipe.set_progress_bar_config(disable=True)
        fused.append(pipe(pair, generator=torch.Generator().manual_seed(0)).images[0])
    assert np.sqrt(np.mean((fused[0] - fused[1]) ** 2)) < 1 / 255
