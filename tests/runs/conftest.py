"""Folders of pairs, and the calls of the pipeline."""

import inspect

import pytest
from runs.folders import make_pair

from ddfm.pipeline import DDFMPipeline


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
