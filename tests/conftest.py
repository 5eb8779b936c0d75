"""Fixtures: two tiny priors, made images. Nothing here, or in any test, needs the network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddfm.pipeline import DDFMPipeline
from ddfm.prior.unet import UnshuffleUNet2DModel
from ddfm.schedulers import shorthand

torch.set_num_threads(1)  # the arrays are small: threads would only get in each other's way

DATA = Path(__file__).parent / "data"


def tiny_unet(channels: int = 1, seed: int = 0) -> UnshuffleUNet2DModel:
    """The embedded prior's kind of network with random weights and some 20 thousand parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UnshuffleUNet2DModel(
            in_channels=4 * channels,
            out_channels=4 * channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
            norm_num_groups=4,
        )
    return unet.eval().requires_grad_(False)


def made_image(height: int, width: int, kind: str = "scene", seed: int = 0) -> np.ndarray:
    """uint8 (H, W): "random" is noise in every pixel, "scene" a ramp, stripes and a warm disc as cameras see them."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.integers(0, 256, (height, width), dtype=np.uint8)
    y, x = np.mgrid[:height, :width] / max(height, width)
    a, b, phase = rng.uniform(0.2, 0.8, 3)
    image = 0.3 * a * x + 0.3 * b * y + 0.15 * np.sin(25 * (a * x - b * y) + 6 * phase) + 0.3
    image[(x - 0.5 * a) ** 2 + (y - 0.5 * b) ** 2 < 0.02] = 0.95
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def fused_with_seed(pipe, sources, **options):
    """The images of three steps from the same noise."""
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), **options}
    return pipe(sources, **options).images


@pytest.fixture
def pair() -> list[np.ndarray]:
    """[infrared, visible], grey uint8, of an odd size."""
    return [made_image(33, 46, seed=1), made_image(33, 46, seed=2)]


@pytest.fixture
def colour_pair(pair: list[np.ndarray]) -> list[np.ndarray]:
    """[grey infrared, colour visible]."""
    rgb = np.stack([pair[1], pair[1] // 2 + 40, 255 - pair[0] // 2], axis=-1)
    return [pair[0], rgb]


@pytest.fixture(scope="session")
def tiny_prior() -> DDFMPipeline:
    """A pipeline around a random luma network: right in shape and schedule, no judge of images."""
    schedule = DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type="epsilon")
    pipe = DDFMPipeline(tiny_unet(), shorthand(schedule.config, "ddim"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def prior(tiny_prior: DDFMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny prior, as `load_prior` and the command line take it. Tests only read it."""
    folder = tmp_path_factory.mktemp("prior")
    tiny_prior.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rgb_pipe() -> DDFMPipeline:
    """A pipeline around the random RGB network that the reference runs were made with."""
    pipe = DDFMPipeline.from_prior(DATA / "tiny_adm.pt")
    pipe.set_progress_bar_config(disable=True)
    return pipe
