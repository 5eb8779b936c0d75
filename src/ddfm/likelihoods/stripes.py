"""Stripes of an infrared sensor, one offset a column or a row: measured by their whiteness, removed as offsets."""

import numpy as np
import scipy.fft
import torch
from torch import Tensor

BANDS = 4  # of rows; what they share is a stripe, what they do not is the scene
FAINTEST = 1 / 255  # std below which offsets are left alone; clean images have less (measured)


def remove_stripes(s: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] without the offsets of its columns and rows; the same tensor where there are none."""
    return torch.stack([_columns(_columns(image).T).T for image in s[:, 0]]).unsqueeze(1)


def _columns(image: Tensor) -> Tensor:
    offsets = column_offsets(image)
    if not offsets.any():
        return image
    clipped = (image <= 0) | (image >= 1)  # an offset that was cut off there is not known
    return torch.where(clipped, image, (image - offsets).clamp(0, 1))


def column_offsets(image: Tensor) -> Tensor:
    """The white offset of each column, (H, W) in [0, 1] -> (W,); zeros where there are no stripes.

    The profile of the columns is taken for white offsets of variance v over a scene that is a random walk of steps of
    variance q. Steps over one column then have the variance 2 v + q, over two 2 v + 2 q, both measured as covariances
    between BANDS of rows: a scene seldom has the same steps from top to bottom. The offsets are their posterior mean,
    by the cosine transform. Steps are means near the median over rows, which the edges of objects do not move.
    """
    height, width = image.shape
    if min(height, width) < 8 * BANDS:
        return image.new_zeros(width)
    bands = torch.stack([_steps(band) for band in image.tensor_split(BANDS)])
    one, two = _shared_variance(bands), _shared_variance(bands[:, 1:] + bands[:, :-1])
    v = torch.minimum(one - two / 2, one / 2)  # the second where the scene runs against itself from band to band
    if v <= FAINTEST**2:
        return image.new_zeros(width)
    q = (two - one).clamp_min(0.01 * v)
    profile = torch.cat([image.new_zeros(1), _steps(image).cumsum(0)])
    roughness = 2 - 2 * torch.cos(torch.pi / width * torch.arange(width, device=image.device))
    gain = (v * roughness / (v * roughness + q)).cpu().numpy()
    offsets = scipy.fft.idct(scipy.fft.dct((profile - profile.mean()).cpu().numpy()) * gain)
    return torch.from_numpy(offsets).to(image)


def _steps(image: Tensor) -> Tensor:
    """The usual step from each column to the next, (H, W) -> (W - 1,)."""
    steps = image[:, 1:] - image[:, :-1]
    median = _median(steps)
    spread = _median((steps - median).abs())
    near = (steps - median).abs() <= 3 * spread + 1.5 / 255  # 8-bit steps have a median of whole levels, a mean has not
    return (steps * near).sum(dim=0) / near.sum(dim=0)


def _median(rows: Tensor) -> Tensor:
    """`rows.median(dim=0).values`; on the CPU by NumPy, which is six times as fast at it."""
    if rows.device.type != "cpu":
        return rows.median(dim=0).values
    middle = (len(rows) - 1) // 2
    return torch.from_numpy(np.partition(rows.numpy(), middle, axis=0)[middle])


def _shared_variance(bands: Tensor) -> Tensor:
    """Mean product of two different bands, (BANDS, n) -> ()."""
    product = bands.sum(dim=0).square() - bands.square().sum(dim=0)
    return product.mean() / (len(bands) * (len(bands) - 1))
