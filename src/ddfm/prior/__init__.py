"""p(f): the image prior, an unconditional diffusion model."""

from ddfm.prior.denoiser import Denoiser, Progress
from ddfm.prior.load import EMBEDDED, Prior, image_channels, load_prior, size_multiple, usable_device
from ddfm.prior.tiling import auto_tile

__all__ = [
    "EMBEDDED",
    "Denoiser",
    "Prior",
    "Progress",
    "auto_tile",
    "image_channels",
    "load_prior",
    "size_multiple",
    "usable_device",
]
