"""Converts the user's images to the network's luma tensors, and back: the steps before and after the sampling loop."""

import warnings
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ddfm.colour import fused_colour, luma
from ddfm.errors import InputError
from ddfm.io.images import as_pixels, eight_bits
from ddfm.palettes import PALETTE_IGNORED, beside_photos
from ddfm.settings import FusionSettings

OutputType = Literal["np", "pil", "pt"]
SMALLEST = 16  # pixels a side


def as_batch(source: Any) -> list[np.ndarray]:
    """One sensor's images; a single image is a batch of one."""
    many = isinstance(source, (list, tuple)) or (isinstance(source, Tensor) and source.ndim == 4)
    return [as_pixels(image) for image in source] if many else [as_pixels(source)]


def check_sources(images: list[list[np.ndarray]]) -> tuple[int, int]:
    """The common height and width of the sources. Raises InputError."""
    if len(images) < 2:
        raise InputError(f"Fusion takes two or more sources, not {len(images)}.")
    if len({len(batch) for batch in images}) > 1 or not images[0]:
        raise InputError(f"Every sensor needs the same number of images, not {[len(batch) for batch in images]}.")
    sizes = list(dict.fromkeys(f"{image.shape[1]}x{image.shape[0]}" for batch in images for image in batch))
    if len(sizes) > 1:
        raise InputError(
            f"The sources differ in size ({' and '.join(sizes[:2])}); bring them into one frame with "
            "ddfm.registration.register, or use ddfm.Scene."
        )
    height, width = images[0][0].shape[:2]
    if min(height, width) < SMALLEST:
        raise InputError(f"The images are {sizes[0]}; at least {SMALLEST}x{SMALLEST} is needed.")
    return height, width


def without_false_colours(images: list[list[np.ndarray]]) -> None:
    """Replaces a false-colour image by its brightness if another source is a photo, and warns."""
    for k in range(len(images[0])):
        for source in beside_photos([batch[k] for batch in images]):
            images[source][k] = luma(images[source][k])
            warnings.warn(f"Source {source + 1} {PALETTE_IGNORED}", stacklevel=3)


def to_luma(batch: list[np.ndarray]) -> Tensor:
    """Images in [0, 1] to luma (B, 1, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([luma(image) for image in batch])).unsqueeze(1) * 2 - 1


def finished(lumas: Tensor, images: list[list[np.ndarray]], settings: FusionSettings) -> list[np.ndarray]:
    """From the network's luma to the user's images: range [0, 1], contrast, colour of the sources."""
    fused = []
    for k, y in enumerate(lumas[:, 0].cpu().numpy()):
        low, high = (y.min(), y.max()) if settings.contrast == "minmax" else (-1, 1)
        y = np.clip((y - low) / max(float(high - low), 1e-12), 0, 1)
        fused.append(fused_colour(y, [batch[k] for batch in images], settings.colour))
    return fused


def as_output(images: list[np.ndarray], output_type: str) -> np.ndarray | list[PIL.Image.Image] | Tensor:
    """Images in [0, 1], (H, W) or (H, W, 3), as `FusionOutput.images` of this type."""
    if output_type == "pil":
        return [PIL.Image.fromarray(eight_bits(image)) for image in images]
    if any(image.ndim == 3 for image in images):  # all images of a batch share one shape
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in images]
    stacked = np.stack(images)
    if output_type == "pt":
        return torch.from_numpy(stacked if stacked.ndim == 4 else stacked[..., None]).permute(0, 3, 1, 2).contiguous()
    return stacked
