"""Scenes through the pipeline: what resampling would hide is cleaned before, and every door fuses them alike."""

import numpy as np
import pytest
from conftest import made_image
from likelihoods.made import noisy, texture

from ddfm.io import images
from ddfm.io.images import Image
from ddfm.pipeline import DDFMPipeline
from ddfm.registration import from_matrix
from ddfm.runs.scene import Scene
from ddfm.server.worker import fuse_scenes
from ddfm.settings import FusionSettings


@pytest.fixture(scope="module")
def pipe():
    pipe = DDFMPipeline.from_prior("embedded")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read(tmp_path, small, large, **reading):
    images.write(tmp_path / "small.png", small)
    images.write(tmp_path / "large.png", large)
    return Scene.read([tmp_path / "small.png", tmp_path / "large.png"], **reading)


def test_noise_of_a_source_that_is_enlarged_is_removed_on_its_own_grid(pipe, tmp_path):
    small, large = texture(64, 80, seed=1), texture(128, 160, seed=2)
    reading = {"align": "skip"}
    clean = read(tmp_path, small, large, **reading)
    scene = read(tmp_path, noisy(small, 25, seed=0), large, **reading)
    (said,) = [finding for finding in scene.findings if "standard deviation" in finding]
    assert "small.png" in said and "80x64 pixels" in said
    assert not [finding for finding in clean.findings if "standard deviation" in finding]
    reference, fused = clean.fuse(pipe), scene.fuse(pipe)
    counts = []
    for each in (clean, scene):
        each.fuse(pipe, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(1, 2), (2, 2), (1, 3), (2, 4), (3, 4), (4, 4)]  # two evaluations remove the noise
    counts.clear()
    scene.fuse(pipe, progress=lambda done, total: counts.append((done, total)), tile=64, tile_overlap=16)
    assert counts[0] == (0.5, 3) and all(done <= total for done, total in counts)  # tile by tile from the start
    late = Scene(scene.sources, [], scene.frame, scene.registrations).fuse(pipe)
    assert np.square(fused - reference).mean() < 0.5 * np.square(late - reference).mean()
    np.testing.assert_array_equal(
        reference, Scene(clean.sources, [], clean.frame, clean.registrations).fuse(pipe)
    )  # a clean source is what it was


def test_colour_and_crop_are_kept_by_what_is_cleaned(pipe, tmp_path):
    small = np.stack([noisy(texture(64, 80, seed=1), 25, seed=k) for k in range(3)], axis=-1)
    for crop in (False, True):
        scene = read(tmp_path, small, texture(128, 160, seed=2), align="skip", crop=crop)
        assert scene.fuse(pipe).shape == (128, 160, 3)


def test_only_likelihoods_that_clean_their_sources_do(pipe):
    source = noisy(texture(64, 80, seed=1), 25, seed=0)
    assert pipe.clean(source, likelihood="paper") is None
    assert pipe.clean(texture(64, 80, seed=1)) is None
    cleaned = pipe.clean(source)
    assert np.square(cleaned - texture(64, 80, seed=1)).mean() < 0.3 * (25 / 255) ** 2


def test_what_is_averaged_down_is_not_cleaned_before(tmp_path):
    scene = read(tmp_path, texture(64, 80, seed=1), noisy(texture(128, 160, seed=2), 25, seed=0), align="skip", frame=0)
    assert scene.framed.own == [None, None]


def test_the_server_fuses_a_narrow_view_as_the_library_does(tiny_prior):
    place = from_matrix(np.array([[0.5, 0, -10.0], [0, 0.5, -8]]), (30, 30), (64, 80))
    sources = [
        Image(place.warp(made_image(30, 30) / 255)),
        Image(made_image(64, 80, seed=1).astype(np.float32) / 255),
    ]
    scene = Scene(sources, [], 1, [place, None])
    settings = FusionSettings(num_inference_steps=2, likelihood="paper")
    fused, std = fuse_scenes(tiny_prior, [scene], [settings], lambda done, total: None)
    np.testing.assert_array_equal(fused[0], scene.fuse(tiny_prior, settings))
    np.testing.assert_allclose(fused[0][~place.inside], sources[1].pixels[~place.inside], atol=1e-6)
    assert std is None
