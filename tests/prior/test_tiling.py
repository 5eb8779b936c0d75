"""Tiles of the prior: layout and weights, equality with the whole, seams, and what the network gets to see."""

import itertools
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_unet
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import ddfm.prior.denoiser
import ddfm.prior.tiling
from ddfm.errors import InputError
from ddfm.pipeline import DDFMPipeline
from ddfm.prior import Denoiser
from ddfm.prior.tiling import (
    MOST_PER_CALL,
    TILES,
    auto_tile,
    blend,
    bytes_per_pixel,
    free_memory,
    layout,
    mirror,
    tiles_per_call,
    windows,
)
from ddfm.settings import OVERLAP

CPU = torch.device("cpu")
SAMPLE = DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type="sample")  # x0 is what the network says


def denoise(network, scheduler, x, t, tile=None, overlap=OVERLAP):
    return Denoiser(network, scheduler, tile, overlap)(x, t)


class Network:
    """As much of a `UNet2DModel` as the prior asks for, around a function of (N, C, h, w)."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, function, levels=3):
        self.config = {"block_out_channels": (8,) * levels, "in_channels": 1}
        self.function = function
        self.seen = []

    def __call__(self, x, t):
        self.seen.append(tuple(x.shape))
        return UNet2DOutput(sample=self.function(x))


def two_convolutions(x):
    """A receptive field of 5 x 5 and zero padding, so that borders of tiles are wrong; bits do not depend on shapes."""
    for weights in ((0.5, -1.25, 0.3), (1.1, 0.7, -0.4)):
        for dim in (-1, -2):
            padded = F.pad(x, (1, 1, 0, 0) if dim == -1 else (0, 0, 1, 1))
            x = sum(w * padded.narrow(dim, k, x.shape[dim]) for k, w in enumerate(weights))
        x = x * (1 + x.abs())
    return x


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ layout and weights

sides = st.integers(16, 300)
grids = st.tuples(st.sampled_from([1, 2, 4, 16]), st.integers(1, 20)).flatmap(  # (multiple, tile, overlap)
    lambda mt: st.tuples(st.just(mt[0]), st.just(mt[0] * mt[1]), st.integers(0, mt[0] * (mt[1] - 1)))
)


@settings(deadline=None)
@given(size=sides, grid=grids)
def test_tiles_cover_a_side_and_overlap(size, grid):
    multiple, tile, overlap = grid
    starts = layout(size, tile, overlap, multiple)
    padded = -(-size // multiple) * multiple
    assert starts[0] == 0
    assert starts[-1] == max(padded - tile, 0)  # the last tile has the full size and ends with the image
    assert all(start % multiple == 0 for start in starts)
    assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(starts))


@settings(deadline=None)
@given(size=sides, grid=grids)
def test_weights_are_a_partition_of_unity(size, grid):
    multiple, tile, overlap = grid
    total = torch.zeros(-(-size // multiple) * multiple)
    weights = windows(size, tile, overlap, multiple)
    for start, weight in zip(layout(size, tile, overlap, multiple), weights, strict=True):
        total[start : start + len(weight)] += weight
    assert weights.min() >= 0
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


def test_weights_are_smooth_and_drop_what_the_border_spoils():
    weight = windows(512, 128, 32, 16)[1]
    assert weight[:8].eq(0).all() and weight[-8:].eq(0).all()
    assert weight[32:-32].eq(1).all()
    assert weight.diff().abs().max() < 0.1
    assert weight.diff().diff().abs().max() < 0.02  # no kink where the cosine begins


def test_mirror_continues_by_reflection():
    assert mirror(5, 4).tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert mirror(2, 8).tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert mirror(1, 4).tolist() == [0, 0, 0, 0]
    assert mirror(8, 4).tolist() == list(range(8))


# ---------------------------------------------------------------------------------------------- equality with the whole


@settings(deadline=None, max_examples=30)
@given(height=st.integers(16, 150), width=st.integers(16, 150), grid=grids, together=st.integers(1, 5))
def test_blending_an_identity_gives_the_picture(height, width, grid, together):
    multiple, tile, overlap = grid
    tile, overlap = max(tile, 3 * multiple), min(overlap, max(tile, 3 * multiple) // 2 // multiple * multiple)
    x = noise(2, 3, height, width)
    torch.testing.assert_close(blend(lambda part: part, x, tile, overlap, multiple, together), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (100, 133), (61, 200), (16, 129)])
@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_equal_the_whole_where_the_receptive_field_is_small(size, tile):
    x = noise(2, 1, *size)
    network = Network(two_convolutions)
    whole = denoise(network, SAMPLE, x, 10)
    tiled = denoise(network, SAMPLE, x, 10, tile, 16)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-6)
    alone = [windows(n, tile, 16, 4).eq(1) for n in size]  # one tile's own ground: not a bit differs
    for i, top in enumerate(layout(size[0], tile, 16, 4)):
        for j, left in enumerate(layout(size[1], tile, 16, 4)):
            own = alone[0][i][:, None] & alone[1][j]
            here = (slice(None), slice(None), slice(top, top + own.shape[0]), slice(left, left + own.shape[1]))
            own = own[: tiled[here].shape[-2], : tiled[here].shape[-1]]
            assert tiled[here][..., own].equal(whole[here][..., own])


def test_without_overlap_the_borders_show():
    x = noise(1, 1, 64, 64)
    network = Network(two_convolutions)
    assert (denoise(network, SAMPLE, x, 10, 32, 0) - denoise(network, SAMPLE, x, 10)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_tiles_are_denoised_whatever_the_network_predicts(kind):
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type=kind)
    x = noise(1, 1, 70, 90)
    network = Network(two_convolutions)
    whole, tiled = denoise(network, scheduler, x, 400), denoise(network, scheduler, x, 400, 48, 16)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-5)


def test_tiles_of_a_batch_do_not_mix(tiny_prior):
    x = noise(3, 1, 50, 71)
    together = tiny_prior.denoiser(tile=32, tile_overlap=16)(x, 300)
    for k in range(3):
        torch.testing.assert_close(
            together[k : k + 1], tiny_prior.denoiser(tile=32, tile_overlap=16)(x[k : k + 1], 300), atol=1e-5, rtol=1e-5
        )


def test_learned_variance_is_dropped_from_tiles():
    network = Network(lambda x: torch.cat([x, 0 * x + 7], dim=1))
    x = noise(1, 1, 60, 60)
    torch.testing.assert_close(denoise(network, SAMPLE, x, 10, 32, 8), x, atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------------- what the network sees


@pytest.mark.parametrize(("size", "batch"), [((200, 300), 1), ((199, 45), 2), ((33, 300), 1)])
@pytest.mark.parametrize("together", [1, 3])
def test_the_network_sees_full_tiles_a_few_at_a_time(monkeypatch, size, batch, together):
    monkeypatch.setattr(ddfm.prior.denoiser, "tiles_per_call", lambda *args: together)
    network = Network(lambda x: x)
    denoise(network, SAMPLE, noise(batch, 1, *size), 10, 64, 16)
    h, w = (min(64, -(-n // 4) * 4) for n in size)
    tiles = batch * len(layout(size[0], 64, 16, 4)) * len(layout(size[1], 64, 16, 4))
    assert sum(shape[0] for shape in network.seen) == tiles
    assert len(network.seen) == -(-tiles // together)
    assert all(shape[0] <= together and shape[1:] == (1, h, w) for shape in network.seen)


def test_as_many_tiles_go_together_as_two_gigabytes_hold(monkeypatch):
    network = Network(None)
    assert tiles_per_call(network, 64, 64, network.device) == 1  # on the CPU
    network.device = torch.device("cuda")
    assert tiles_per_call(network, 64, 64, network.device) == MOST_PER_CALL
    monkeypatch.setattr(ddfm.prior.tiling, "SMALL", 5 * 64 * 64 // 2 * bytes_per_pixel(network))
    assert tiles_per_call(network, 64, 64, network.device) == 2
    assert tiles_per_call(network, 640, 64, network.device) == 1


def test_on_the_cpu_no_bit_depends_on_the_batch(tiny_prior):
    x = noise(3, 1, 40, 60)
    together = tiny_prior.denoiser()(x, 900)
    for k in range(3):
        assert together[k : k + 1].equal(tiny_prior.denoiser()(x[k : k + 1], 900))


def test_none_is_one_evaluation():
    network = Network(lambda x: x)
    denoise(network, SAMPLE, noise(12, 1, 61, 90), 10)
    assert network.seen == [(12, 1, 64, 92)]


def busy(monkeypatch, free):
    monkeypatch.setattr(ddfm.prior.tiling, "free_memory", lambda device: free)


@pytest.mark.parametrize("size", [(16, 16), (33, 46), (480, 640), (1024, 1280)])
def test_auto_never_tiles_a_small_picture(monkeypatch, size):
    busy(monkeypatch, 0)
    unet = SimpleNamespace(**vars(Network(None)), unshuffle=2, device="cpu", dtype=torch.float32)
    unet.config["block_out_channels"] = (32, 64, 128, 192)  # the embedded prior's
    assert auto_tile(unet, *size, CPU) >= max(size)


def test_auto_takes_the_largest_tile_that_the_free_memory_holds(monkeypatch):
    network = Network(None)
    network.config["block_out_channels"] = (256,) * 6  # OpenAI's
    cost = bytes_per_pixel(network)
    for tile in TILES[:-1]:
        busy(monkeypatch, 2.01 * tile**2 * cost)
        assert auto_tile(network, 3000, 5000, CPU) == tile
    busy(monkeypatch, 0)
    assert auto_tile(network, 3000, 5000, CPU) == TILES[-1]
    assert auto_tile(network, 256, 250, CPU) == 256  # no smaller than the smallest tile, whatever it takes
    busy(monkeypatch, 2.01 * 3000 * 5000 * cost)
    assert auto_tile(network, 3000, 5000, CPU) >= 5000


def test_auto_gives_what_the_whole_gives_where_it_fits(tiny_prior):
    x = noise(2, 1, 41, 60)
    torch.testing.assert_close(
        tiny_prior.denoiser()(x, 200), tiny_prior.denoiser(tile=None)(x, 200), atol=1e-6, rtol=1e-6
    )


def test_free_memory_is_some_bytes():
    assert 2**20 < free_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_free_memory_counts_what_the_allocator_keeps():
    device = torch.device("cuda")
    before = free_memory(device)
    block = torch.zeros(2**28, dtype=torch.uint8, device=device)
    assert before - free_memory(device) > 2**27
    del block
    assert before - free_memory(device) < 2**27


# ------------------------------------------------------------------------------------------------------- the pipeline


def test_a_run_in_tiles_is_near_the_whole_one(tiny_prior, pair):
    options = {"num_inference_steps": 4, "likelihood": "paper"}
    whole, tiled = (
        tiny_prior(pair, **options, **tiles, generator=torch.Generator().manual_seed(0)).images
        for tiles in ({"tile": None}, {"tile": 32, "tile_overlap": 16})
    )
    assert whole.shape == tiled.shape
    assert abs(whole - tiled).max() > 0  # it was tiled
    assert abs(whole - tiled).mean() < 0.05


def test_auto_is_decided_once_a_run(monkeypatch, pair):
    asked = []
    pipe = DDFMPipeline(tiny_unet(), DDPMScheduler(beta_start=1e-4, beta_end=0.02))
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr("ddfm.prior.denoiser.auto_tile", lambda unet, *size: asked.append(size[:2]) or 32)
    pipe(pair, num_inference_steps=3, tile_overlap=16)
    assert asked == [(33, 46)]


@pytest.mark.parametrize("tile", [0, -16, 33, 2.5, "half"])
def test_a_tile_that_the_network_does_not_take_is_refused(tiny_prior, pair, tile):
    with pytest.raises(InputError, match="tile"):
        tiny_prior(pair, tile=tile)


def test_an_overlap_without_tiles_is_refused(tiny_prior, pair):
    with pytest.raises(InputError, match="tile_overlap has no effect without tiling"):
        tiny_prior(pair, tile=None, tile_overlap=16)


@pytest.mark.parametrize("overlap", [-1, 30, 32])
def test_an_overlap_that_leaves_nothing_of_the_tile_is_refused(tiny_prior, pair, overlap):
    with pytest.raises(InputError, match=r"overlap must be (a whole number|between 0 and)"):
        tiny_prior(pair, tile=32, tile_overlap=overlap)


# --------------------------------------------------------------------------------------------------------------- seams


@pytest.fixture(scope="module")
def embedded():
    return DDFMPipeline.from_prior("embedded")


def texture(height, width):
    """An image (1, 1, H, W) in [-1, 1] that is statistically the same everywhere, with the spectrum of photographs."""
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    x = torch.fft.ifft2(torch.fft.fft2(noise(1, 1, height, width)) / (1 + (30 * frequency) ** 1.5)).real
    return (0.35 * x / x.std()).clamp(-1, 1)


def seam_ratio(x, tile, overlap):
    """Mean |difference| of neighbouring columns across borders of tiles over that elsewhere."""
    width = x.shape[-1]
    steps = x.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    starts = layout(width, tile, overlap, 16)
    across = sorted({c - 1 for s in starts for c in (s, s + tile) if 0 < c < width})
    elsewhere = [c for c in range(width - 1) if c not in across]
    return (steps[across].mean() / steps[elsewhere].mean()).item()


@pytest.mark.parametrize(("tile", "t"), [(64, 300), (96, 100)])
def test_no_seams(embedded, tile, t):
    x0 = texture(192, 256)
    a = embedded.scheduler.alphas_cumprod[t].item()
    x_t = a**0.5 * x0 + (1 - a) ** 0.5 * noise(*x0.shape, seed=1)
    whole = embedded.denoiser(tile=None)(x_t, t)
    tiled = embedded.denoiser(tile=tile, tile_overlap=OVERLAP)(x_t, t)
    assert seam_ratio(tiled, tile, OVERLAP) == pytest.approx(seam_ratio(whole, tile, OVERLAP), rel=0.04)
    assert seam_ratio(tiled - whole, tile, OVERLAP) < 1.25  # what tiling changes does not gather at the borders
    hard = embedded.denoiser(tile=tile, tile_overlap=0)(x_t, t)
    assert seam_ratio(hard - whole, tile, 0) > 1.5  # where seams would show if there were any
