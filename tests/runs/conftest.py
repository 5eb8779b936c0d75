"""A tiny prior, folders of pairs, and the calls of the pipeline."""

import inspect

import pytest
from conftest import tiny_unet
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from runs.folders import make_pair

from ddfm.pipeline import DDFMPipeline


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """A tiny random prior in a folder, as `load_prior` takes it."""
    folder = tmp_path_factory.mktemp("prior")
    tiny_unet().save_pretrained(folder / "unet")
    DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type="epsilon").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def scenes(tmp_path):
    """Five pairs, three of them of one size; [ir, vi]."""
    for stem in ("a", "c", "e"):
        make_pair(tmp_path, stem)
    make_pair(tmp_path, "b", (17, 41))
    make_pair(tmp_path, "d", (40, 24))
    return [tmp_path / "ir", tmp_path / "vi"]


@pytest.fixture
def calls(monkeypatch):
    """The shape of the sources of each call of the pipeline, (sensors, batch, height, width)."""
    seen = []
    original = DDFMPipeline.__call__

    def spy(self, sources, *args, **kwargs):
        seen.append((len(sources), len(sources[0]), *sources[0][0].shape[:2]))
        return original(self, sources, *args, **kwargs)

    monkeypatch.setattr(DDFMPipeline, "__call__", spy)
    spy.__signature__ = inspect.signature(original)
    return seen
