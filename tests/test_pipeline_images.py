"""What the pipeline takes and gives, and what it refuses."""

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import fused_with_seed, made_image
from known import Ignore, known_pipe

from ddfm.colour import lent_chroma, luma, make_room
from ddfm.errors import InputError
from ddfm.likelihoods import LIKELIHOODS
from ddfm.pipeline import FusionOutput


class TakeVisible(Ignore):
    """A likelihood that knows best: the fused image is the second source."""

    def start(self, sources, *args, **kwargs):
        return sources[1]

    def rectify(self, x0, state, *args, **kwargs):
        return state, state


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pipe", ["tiny_prior", "tiny_rgb_pipe"])
@pytest.mark.parametrize("size", [(16, 16), (16, 31), (17, 33), (45, 18)])
def test_any_size_from_16_is_kept(request, pipe, size):
    out = request.getfixturevalue(pipe)([made_image(*size, seed=s) for s in (1, 2)], num_inference_steps=2)
    assert out.images[0].shape == size
    assert out.samples.shape[-2:] == size
    assert torch.isfinite(out.samples).all()


def test_every_form_of_a_picture_gives_the_same(tiny_prior, colour_pair, tmp_path):
    grey, rgb = colour_pair
    expected = fused_with_seed(tiny_prior, [grey, rgb])
    for name, picture in (("grey.png", grey), ("rgb.png", rgb)):
        PIL.Image.fromarray(picture).save(tmp_path / name)
    forms = {
        "uint16": [grey.astype(np.uint16) * 257, rgb.astype(np.uint16) * 257],
        "float": [grey / np.float32(255), rgb / np.float64(255)],
        "tensor": [torch.tensor(grey), torch.tensor(rgb)],
        "tensor, channels first": [torch.tensor(grey)[None], torch.tensor(rgb).permute(2, 0, 1) / 255],
        "PIL": [PIL.Image.fromarray(grey), PIL.Image.fromarray(rgb)],
        "path": [tmp_path / "grey.png", str(tmp_path / "rgb.png")],
        "batch of one": [[grey], [rgb]],
    }
    for form, sources in forms.items():
        np.testing.assert_allclose(fused_with_seed(tiny_prior, sources), expected, atol=1e-5, err_msg=form)


def test_sources_are_not_changed(tiny_prior, colour_pair):
    sources = [colour_pair[0] / np.float32(255), torch.tensor(colour_pair[1])]
    before = [sources[0].copy(), sources[1].clone()]
    fused_with_seed(tiny_prior, sources)
    assert np.array_equal(sources[0], before[0]) and torch.equal(sources[1], before[1])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_batch_equals_its_pictures_alone(tiny_prior, sampler, likelihood):
    infrared, visible = ([made_image(24, 30, seed=10 * k + j) for j in range(3)] for k in (1, 2))
    options = {"likelihood": likelihood, "sampler": sampler, "num_inference_steps": 8}
    together = tiny_prior(
        [infrared, visible], generator=[torch.Generator().manual_seed(s) for s in range(3)], **options
    )
    assert len(together.images) == 3
    for k in range(3):
        alone = tiny_prior([infrared[k], visible[k]], generator=[torch.Generator().manual_seed(k)], **options)
        torch.testing.assert_close(together.samples[k], alone.samples[0], atol=1e-4, rtol=0)


def test_the_noise_can_be_given(tiny_prior, pair):
    latents = noise(1, 1, *pair[0].shape, seed=7)
    drawn = tiny_prior(pair, num_inference_steps=3, generator=torch.Generator().manual_seed(7))
    given = tiny_prior(pair, num_inference_steps=3, latents=latents)
    assert torch.equal(drawn.samples, given.samples)


def test_grey_sources_give_a_grey_picture(tiny_prior, pair):
    assert fused_with_seed(tiny_prior, pair).shape == (1, *pair[0].shape)


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1, 1]], ids=["grey+colour", "colour+grey", "colour+colour"])
def test_a_coloured_source_gives_a_coloured_picture(tiny_prior, colour_pair, order):
    fused = fused_with_seed(tiny_prior, [colour_pair[k] for k in order])
    assert fused.shape == (1, *colour_pair[0].shape, 3)
    assert fused.min() >= 0 and fused.max() <= 1 and np.ptp(fused, axis=-1).max() > 0.05


def test_colour_touches_the_fused_luma_only_where_it_needs_room(tiny_prior, colour_pair):
    coloured = fused_with_seed(tiny_prior, colour_pair)[0]
    grey = fused_with_seed(tiny_prior, colour_pair, colour="grey")[0]
    assert grey.ndim == 2
    expected = make_room(grey, lent_chroma(grey, colour_pair[1].astype(np.float32) / 255))
    np.testing.assert_allclose(luma(coloured), expected, atol=1e-5)
    assert (np.abs(expected - grey) < 1e-6).mean() > 0.9


def test_the_visible_picture_passes_through_unharmed_if_the_likelihood_wants_it(tiny_prior, colour_pair):
    fused = fused_with_seed(tiny_prior, colour_pair, likelihood=TakeVisible())[0]
    np.testing.assert_allclose(fused, colour_pair[1] / 255, atol=1e-5)


def test_an_rgb_prior_takes_the_rectified_luma(tiny_rgb_pipe, pair):
    fused = fused_with_seed(tiny_rgb_pipe, pair, likelihood=TakeVisible())[0]
    np.testing.assert_allclose(fused, pair[1] / 255, atol=1e-5)


def test_a_batch_of_grey_and_colour_has_one_shape(tiny_prior, colour_pair):
    grey, rgb = colour_pair
    assert fused_with_seed(tiny_prior, [[grey, grey], [grey, rgb]]).shape == (2, *grey.shape, 3)


def test_output_types_hold_the_same_picture(tiny_prior, colour_pair):
    as_np = fused_with_seed(tiny_prior, colour_pair)
    as_pt = fused_with_seed(tiny_prior, colour_pair, output_type="pt")
    as_pil = fused_with_seed(tiny_prior, colour_pair, output_type="pil")
    assert as_np.dtype == np.float32
    assert torch.equal(as_pt, torch.tensor(as_np).permute(0, 3, 1, 2))
    assert isinstance(as_pil, list) and as_pil[0].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(as_pil[0]), np.rint(as_np[0] * 255))


def test_grey_output_types(tiny_prior, pair):
    h, w = pair[0].shape
    assert fused_with_seed(tiny_prior, pair, output_type="pt").shape == (1, 1, h, w)
    assert fused_with_seed(tiny_prior, pair, output_type="pil")[0].mode == "L"


@pytest.mark.parametrize("pipe, channels", [("tiny_prior", 1), ("tiny_rgb_pipe", 3)])
def test_samples_are_as_the_network_sees_them(request, pair, pipe, channels):
    out = request.getfixturevalue(pipe)(pair, num_inference_steps=2)
    assert isinstance(out, FusionOutput)
    assert out.samples.shape == (1, channels, *pair[0].shape) and out.samples.dtype == torch.float32


def test_keep_is_the_clipped_sample_itself(tiny_prior, pair):
    out = tiny_prior(pair, num_inference_steps=3)
    np.testing.assert_allclose(out.images[0], (out.samples[0, 0].numpy() / 2 + 0.5).clip(0, 1), atol=1e-6)


def test_minmax_stretches_every_picture_to_the_full_range(tiny_prior):
    infrared, visible = ([made_image(20, 20, seed=s) // 2 for s in pair] for pair in ((1, 2), (3, 4)))
    out = tiny_prior([infrared, visible], num_inference_steps=3, contrast="minmax")
    assert out.images.min(axis=(1, 2)) == pytest.approx([0, 0])
    assert out.images.max(axis=(1, 2)) == pytest.approx([1, 1])


def test_minmax_of_a_constant_picture_is_finite(tiny_prior):
    flat = np.full((16, 16), 90, np.uint8)
    out = tiny_prior([flat, flat], likelihood=TakeVisible(), num_inference_steps=2, contrast="minmax")
    assert np.isfinite(out.images).all()


def bad_calls():
    good = made_image(20, 24)
    nan = np.full((20, 24), np.nan, np.float32)
    return {
        "no source": ([], {}),
        "one source": ([good], {}),
        "three sources for a pair": ([good, good, good], {"likelihood": "paper"}),
        "sizes that differ": ([good, made_image(20, 25)], {}),
        "sizes that differ within a sensor": ([[good, made_image(20, 25)], [good, good]], {}),
        "batches that differ": ([[good, good], [good]], {}),
        "empty batches": ([[], []], {}),
        "too small": ([made_image(15, 40)] * 2, {}),
        "NaN": ([good, nan], {}),
        "out of range": ([good, good * 1.0], {}),
        "no image": ([good, None], {}),
        "a missing file": ([good, "no-such-image.png"], {}),
        "latents of another size": ([good, good], {"latents": torch.zeros(1, 1, 24, 20)}),
        "latents of another batch": ([good, good], {"latents": torch.zeros(2, 1, 20, 24)}),
        "latents of other channels": ([good, good], {"latents": torch.zeros(1, 3, 20, 24)}),
        "latents of several samples": ([good, good], {"latents": torch.zeros(1, 1, 20, 24), "num_samples": 2}),
        "no sample": ([good, good], {"num_samples": 0}),
        "no step": ([good, good], {"num_inference_steps": 0}),
        "too many steps": ([good, good], {"num_inference_steps": 1001}),
        "no strength": ([good, good], {"strength": 0.0}),
        "too much strength": ([good, good], {"strength": 1.5}),
        "more steps than the strength spans": ([good, good], {"strength": 0.1, "num_inference_steps": 102}),
        "unknown likelihood": ([good, good], {"likelihood": "nobody's"}),
        "unknown sampler": ([good, good], {"sampler": "euler"}),
        "unknown contrast": ([good, good], {"contrast": "high"}),
        "unknown output type": ([good, good], {"output_type": "jpeg"}),
        "unknown colour mode": ([good, good], {"colour": "third"}),
    }


@pytest.mark.parametrize("what", bad_calls())
def test_bad_input_is_refused_in_one_sentence_before_any_work(what):
    sources, options = bad_calls()[what]

    def untouched(x, t):
        raise AssertionError("the network ran")

    with pytest.raises(InputError) as caught:
        known_pipe(untouched)(sources, **options)
    sentence = str(caught.value)
    assert 10 < len(sentence) < 300 and "\n" not in sentence


def test_an_unknown_name_is_answered_with_the_known_ones(tiny_prior, pair):
    with pytest.raises(InputError) as caught:
        tiny_prior(pair, likelihood="nobody's")
    assert all(name in str(caught.value) for name in LIKELIHOODS)
