"""Splits images into luma and chroma and joins them again: the only module that knows about colour spaces.

There are two. User images (NumPy, [0, 1]) are split in the full-range YCbCr of ITU-R BT.601, as in JPEG
and OpenCV: Y = 0.299 R + 0.587 G + 0.114 B, Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402, without rounding.
The released DDFM code (torch, [-1, 1]) uses scikit-image's *limited-range* luma instead; that quirk is in
`studio_luma`, `studio_split` and `studio_join`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ddfm.settings import Colour
from ddfm.threads import side_by_side

if TYPE_CHECKING:
    from torch import Tensor

_R, _G, _B = 0.299, 0.587, 0.114

# How far Y gives way to the chroma. On six PET pairs, 0, 0.5 and 1 keep 52, 79 and 99 % of the chroma in bright
# regions; with 0 hot spots are white, and with 1 they lose all structure of the MRI.
ROOM = 0.5

BAND = 2**16  # pixels coloured at a time, so that the dozen temporary copies stay in the cache

# ITU-R BT.601 limited range as in skimage.color.rgb2ycbcr: RGB in [0, 1] to Y in [16, 235], Cb and Cr in [16,
# 240].
_STUDIO = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_STUDIO_OFFSET = np.array([16.0, 128.0, 128.0]) / 255


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of an image: (H, W, 3) in [0, 1] to float32 (H, W) in [0, 1]; a grey (H, W) image is its own luma."""
    rgb = np.asarray(rgb, np.float32)
    if rgb.ndim == 2:
        return rgb
    # Clipped because the three weights add up to 1 only within rounding.
    return np.clip(_R * rgb[..., 0] + _G * rgb[..., 1] + _B * rgb[..., 2], 0, 1)


def split(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) in [0, 1] to Y (H, W) in [0, 1] and chroma (H, W, 2), Cb and Cr in [-0.5, 0.5], float32."""
    y = luma(rgb)
    return y, np.stack([(rgb[..., 2] - y) / 1.772, (rgb[..., 0] - y) / 1.402], axis=-1).astype(np.float32)


def join(y: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Y (H, W) in [0, 1] and chroma (H, W, 2) to RGB (H, W, 3) in [0, 1], float32; the inverse of `split`.

    A new Y may put the colour outside [0, 1]. Clipping each channel would change hue and Y; instead
    the chroma of that pixel is multiplied by the largest factor in [0, 1] that fits, so Y and hue are
    preserved.
    """
    y, offset, least = np.clip(np.asarray(y, np.float32), 0, 1), chroma_offset(chroma), np.float32(1e-12)
    up, down = _over_channels(np.maximum, offset), -_over_channels(np.minimum, offset)  # 0 both, or both positive
    factor = np.minimum(1, np.minimum((1 - y) / np.maximum(up, least), y / np.maximum(down, least)))
    image: np.ndarray = np.clip(y[..., None] + factor[..., None] * offset, 0, 1)
    return image


def make_room(y: np.ndarray, chroma: np.ndarray, share: float = ROOM) -> np.ndarray:
    """Y (H, W) in [0, 1] moved by a fraction `share` towards the nearest Y that can show the whole chroma (H, W, 2).

    White has no colour: where `join` would have to remove much of the chroma, as in the hot spots of a PET
    over a bright MRI, Y gives way. share = 0 keeps Y, share = 1 keeps the chroma.
    """
    y, offset = np.clip(np.asarray(y, np.float32), 0, 1), chroma_offset(chroma)
    low = np.maximum(0, -_over_channels(np.minimum, offset))
    high = 1 - np.maximum(0, _over_channels(np.maximum, offset))
    moved: np.ndarray = y + share * (np.clip(y, low, np.maximum(low, high)) - y)
    return moved


def chroma_offset(chroma: np.ndarray) -> np.ndarray:
    """RGB - Y of a chroma, (H, W, 2) to (H, W, 3)."""
    red, blue = 1.402 * chroma[..., 1], 1.772 * chroma[..., 0]
    return np.stack([red, -(_R * red + _B * blue) / _G, blue], axis=-1).astype(np.float32)


def merge_chroma(chroma: Sequence[np.ndarray]) -> np.ndarray:
    """Merges the chroma of several coloured sources, (H, W, 2) each: the mean weighted by saturation, |(Cb, Cr)|.

    Where one source is grey the other's colour is unchanged; where all are grey, so is the result.
    """
    weights = [np.hypot(c[..., 0], c[..., 1])[..., None] for c in chroma]
    total = np.maximum(sum(weights), np.float32(1e-12))
    mean: np.ndarray = sum(w * c for w, c in zip(weights, chroma, strict=True)) / total
    return mean


def lent_chroma(y_fused: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The chroma (H, W, 2) that a source (H, W, 3) gives to the fused luma (H, W), all in [0, 1]: its own, or less.

    Where the fused image is darker than the source, chroma fades with luma, as light does, so no pixel becomes more
    saturated. Where the fused image is brighter than all of the source's channels, chroma is scaled by the largest
    channel over the fused luma: a lamp's faint halo does not tint trees that the infrared makes bright, while PET's
    blue, dark in luma, stays blue.
    """
    y, chroma = split(source)
    fused, least = np.clip(y_fused, 0, 1), np.float32(1e-6)
    kept = np.minimum(fused / np.maximum(y, least), _over_channels(np.maximum, source) / np.maximum(fused, least))
    lent: np.ndarray = np.minimum(1, kept)[..., None].astype(np.float32) * chroma
    return lent


def _over_channels(ufunc: np.ufunc, image: np.ndarray) -> np.ndarray:
    """`ufunc` over the channels of (H, W, 3), as (H, W); reducing an axis of length 3 is twenty times slower."""
    found: np.ndarray = ufunc(ufunc(image[..., 0], image[..., 1]), image[..., 2])
    return found


def lends_colour(sources: Sequence[np.ndarray], mode: Colour = "auto") -> list[np.ndarray]:
    """The sources, each (H, W) or (H, W, 3), whose chroma `fused_colour` uses; empty for a grey result."""
    chosen = {"auto": slice(None), "grey": slice(0), "first": slice(0, 1), "second": slice(1, 2)}[mode]
    return [source for source in sources[chosen] if source.ndim == 3]


def fused_colour(y_fused: np.ndarray, sources: Sequence[np.ndarray], mode: Colour = "auto") -> np.ndarray:
    """Give the fused luma, (H, W) in [0, 1], the colour of its sources, each (H, W) or (H, W, 3) in [0, 1].

    mode: "auto" uses the chroma of every coloured source (merged by saturation if several), "first" and
    "second" that of one source, "grey" none; `lent_chroma` says how much of it. Where the colour would wash out, Y
    gives way a little, see `make_room`. Returns (H, W, 3), or (H, W) if there is no colour.
    """
    coloured = lends_colour(sources, mode)
    if not coloured:
        return y_fused
    rgb = np.empty((*y_fused.shape, 3), np.float32)

    def fill(rows: slice) -> None:
        each = [lent_chroma(y_fused[rows], source[rows]) for source in coloured]
        chroma = each[0] if len(each) == 1 else merge_chroma(each)
        rgb[rows] = join(make_room(y_fused[rows], chroma), chroma)

    height = max(1, BAND // y_fused.shape[1])
    side_by_side(fill, (slice(top, top + height) for top in range(0, len(rgb), height)))
    return rgb


def studio_luma(x: Tensor) -> Tensor:
    """The released code's luma of an image in [-1, 1]: (B, 3, H, W) to (B, 1, H, W).

    It applies a formula for [0, 1] to data in [-1, 1]: Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255,
    so grey -1, 0, 1 become -0.796, 0.063, 0.922.
    """
    return studio_split(x)[0]


def studio_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """RGB (B, 3, H, W) to Y (B, 1, H, W) and CbCr (B, 2, H, W): skimage.color.rgb2ycbcr / 255, any range."""
    ycc = _mix(_STUDIO, x) + x.new_tensor(_STUDIO_OFFSET).view(1, 3, 1, 1)
    return ycc[:, :1], ycc[:, 1:]


def studio_join(y: Tensor, cbcr: Tensor) -> Tensor:
    """The inverse of `studio_split`: skimage.color.ycbcr2rgb of 255 times its input, not clipped."""
    import torch

    ycc = torch.cat([y, cbcr], dim=1) - y.new_tensor(_STUDIO_OFFSET).view(1, 3, 1, 1)
    return _mix(np.linalg.inv(_STUDIO), ycc)


def _mix(matrix: np.ndarray, x: Tensor) -> Tensor:
    """A 3x3 matrix applied to the channels of (B, 3, H, W)."""
    import torch

    return torch.einsum("ij,bjhw->bihw", x.new_tensor(matrix), x)


def prior_split(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The luma of a network image, and the chroma that `prior_join` needs to replace that luma.

    x: (B, C, H, W) in [-1, 1]; luma (B, 1, H, W), full range, so that grey -1 .. 1 stays -1 .. 1. With C = 1 the image
    is its own luma and the chroma is None.
    """
    if x.shape[1] == 1:
        return x, None
    y = (x * x.new_tensor([_R, _G, _B]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return y, x - y


def prior_join(y: Tensor, chroma: Tensor | None) -> Tensor:
    """The inverse of `prior_split`; not clipped."""
    return y if chroma is None else y + chroma
