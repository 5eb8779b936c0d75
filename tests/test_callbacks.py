"""Callbacks of the pipeline, and interrupting it."""

import numpy as np
import pytest
import torch
from conftest import fused_with_seed, made_image


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tile", [None, 16])
def test_progress_counts_evaluations_up_to_their_number(tiny_prior, tile):
    seen = []
    big = [made_image(40, 48, seed=s) for s in range(2)]
    tiles = {"tile": None} if tile is None else {"tile": tile, "tile_overlap": 4}
    tiny_prior(big, num_inference_steps=3, **tiles, progress=lambda *now: seen.append(now))
    done = [now for now, _ in seen]
    assert done == sorted(done) and done[0] > 0
    assert seen[-1] == (3, 3) and {total for _, total in seen} == {3}
    assert len(seen) == 3 if tile is None else len(seen) > 12


def test_progress_counts_the_cleaning_of_a_noisy_source(tiny_prior):
    seen = []
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (48, 48)).clip(0.12, 0.88).astype(np.float32)
    tiny_prior([noisy, made_image(48, 48)], progress=lambda *now: seen.append(now))
    assert seen[0] == (1, 3) and seen[-1] == (4, 4)  # twice, which the first call does not know yet


def test_callback_sees_every_step_and_the_last_latents_are_the_sample(tiny_prior, pair):
    seen = []
    out = tiny_prior(
        pair,
        num_inference_steps=4,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append((pipe, tensors)),
        callback_on_step_end_tensor_inputs=["latents", "x0"],
    )
    assert len(seen) == 4 and all(pipe is tiny_prior for pipe, _ in seen)
    assert all(tensors["x0"].shape == out.samples.shape for _, tensors in seen)
    assert torch.equal(seen[-1][1]["latents"], out.samples)


def test_callback_can_replace_the_latents(tiny_prior, pair):
    replaced = tiny_prior(
        pair,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(1),
        callback_on_step_end=lambda pipe, i, t, tensors: {"latents": torch.full_like(tensors["latents"], i / 4)},
    )
    assert torch.equal(replaced.samples, torch.full_like(replaced.samples, 0.5))


class Cancelled(Exception):
    pass


def test_cancelling_from_the_callback_leaves_no_state_behind(tiny_prior, pair):
    def cancel(pipe, i, t, tensors):
        if i == 2:
            raise Cancelled

    for sampler in ("ddpm", "dpm++"):
        options = {"likelihood": "paper", "sampler": sampler, "num_inference_steps": 6}
        before = fused_with_seed(tiny_prior, pair, **options)
        with pytest.raises(Cancelled):
            fused_with_seed(tiny_prior, pair[::-1], callback_on_step_end=cancel, **options)
        assert np.array_equal(fused_with_seed(tiny_prior, pair, **options), before)
