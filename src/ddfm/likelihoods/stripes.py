"""Stripes of an infrared sensor, one offset per column or row: detected by their whiteness, removed as offsets."""

from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from torch import Tensor

BANDS = 4  # of rows; stripes are common to all bands, the scene is not
FAINTEST = 1 / 255  # std below which offsets are left alone; clean images stay below it (measured)


@dataclass(frozen=True)
class Stripes:
    """The variance v of the offsets (0 if there are none) and the variance q of the scene's steps."""

    v: float
    q: float


def stripes_of(images: Tensor) -> Stripes:
    """The column stripes in images of one sensor, (S, H, W) in [0, 1]; for several images, the medians.

    The column profile is modelled as white offsets of variance v on a scene that is a random walk with steps of
    variance q. Steps across one column then have variance 2 v + q, and across two columns 2 v + 2 q. Both are measured
    as covariances between BANDS of rows, since a scene seldom has the same steps from top to bottom.
    """
    if min(images.shape[-2:]) < 8 * BANDS:
        return Stripes(0.0, 0.0)
    found = torch.stack([_variances(image) for image in images])
    v, q = found.median(dim=0).values.tolist()
    return Stripes(v, q) if v > FAINTEST**2 else Stripes(0.0, 0.0)


def _variances(image: Tensor) -> Tensor:
    """v and q of one image."""
    bands = torch.stack([_steps(band) for band in image.tensor_split(BANDS)])
    one, two = _shared_variance(bands), _shared_variance(bands[:, 1:] + bands[:, :-1])
    v = torch.minimum(one - two / 2, one / 2)  # the second if the scene's steps oppose each other between bands
    return torch.stack([v, (two - one).maximum(0.01 * v)])


def without_columns(images: Tensor, stripes: Stripes) -> Tensor:
    """(S, H, W) in [0, 1] without their column offsets; the same tensor if there are none."""
    return torch.stack([_without(image, stripes) for image in images]) if stripes.v else images


def without_rows(images: Tensor, stripes: Stripes) -> Tensor:
    """The same for rows; `stripes` are those of the transposed images."""
    return without_columns(images.mT, stripes).mT if stripes.v else images


def _without(image: Tensor, stripes: Stripes) -> Tensor:
    clipped = (image <= 0) | (image >= 1)  # clipped there, so the offset is unknown
    return torch.where(clipped, image, (image - column_offsets(image, stripes)).clamp(0, 1))


def column_offsets(image: Tensor, stripes: Stripes) -> Tensor:
    """The posterior mean of the offset of each column, (H, W) -> (W,), by the cosine transform.

    A step is the mean of the values near the median over the rows, which object edges do not affect.
    """
    width = image.shape[1]
    if stripes.v == 0:
        return image.new_zeros(width)
    profile = torch.cat([image.new_zeros(1), _steps(image).cumsum(0)])
    roughness = 2 - 2 * torch.cos(torch.pi / width * torch.arange(width, device=image.device))
    gain = (stripes.v * roughness / (stripes.v * roughness + stripes.q)).cpu().numpy()
    offsets = scipy.fft.idct(scipy.fft.dct((profile - profile.mean()).cpu().numpy()) * gain)
    return torch.from_numpy(offsets).to(image)


def _steps(image: Tensor) -> Tensor:
    """The typical step from each column to the next, (H, W) -> (W - 1,)."""
    columns = image.mT.contiguous()
    steps = columns[1:] - columns[:-1]
    median = medians(steps)[:, None]
    away = (steps - median).abs()
    spread = medians(away)[:, None]
    near = away <= 3 * spread + 1.5 / 255  # the median of 8-bit steps is a whole level, their mean is not
    return (steps * near).sum(dim=1) / near.sum(dim=1)


def medians(rows: Tensor) -> Tensor:
    """`rows.nanmedian(dim=1).values`, (n, m) -> (n,), by NumPy's sort, which is ten times as fast on a CPU."""
    ordered = np.sort(rows.cpu().numpy(), axis=1)  # NaN comes last
    known = (~np.isnan(ordered)).sum(axis=1) if np.isnan(ordered[:, -1]).any() else np.full(len(ordered), rows.shape[1])
    return torch.from_numpy(ordered[np.arange(len(ordered)), np.maximum(known - 1, 0) // 2]).to(rows.device)


def _shared_variance(bands: Tensor) -> Tensor:
    """Mean product of two different bands, (BANDS, n) -> ()."""
    product = bands.sum(dim=0).square() - bands.square().sum(dim=0)
    return product.mean() / (len(bands) * (len(bands) - 1))
