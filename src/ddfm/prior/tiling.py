"""A function of a small image applied to a large one: overlapping tiles, blended by a smooth window."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddfm.errors import InputError

OVERLAP = 32  # pixels that neighbouring tiles share; the outer quarter of them, which the border spoils, is dropped


def blend(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    multiple: int,
    together: int,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """`function` of overlapping tiles of x, blended into one image; what is full-size is x and the result.

    Along a side longer than a tile every tile has the full size: the last one ends where the image ends. The origins
    are multiples of `multiple`, so a network that halves its input does so on one grid in all tiles. Weights are
    raised cosines that add up to 1 everywhere.

    Args:
        function: (N, C, h, w) -> (N, C, h, w) float32, h and w multiples of `multiple`, N <= `together`.
        x: (B, C, H, W), any size; mirrored at the bottom and right where `multiple` asks for more.
        tile: Pixels a side.
        overlap: Pixels that neighbours share at least; rounded up to a multiple.
        multiple: What tiles are multiples of.
        together: Tiles to a call.
        progress: Called with the fraction done, in (0, 1], after each call.

    Raises:
        InputError: a tile that is no multiple, or no larger than the overlap.
    """
    if tile < 1 or tile % multiple:
        raise InputError(f"the tile must be a multiple of {multiple} pixels, as the prior's network is, not {tile}")
    if max(x.shape[-2:]) > tile and (overlap < 0 or overlap > tile - multiple):
        raise InputError(f"the overlap must be 0 or more pixels and smaller than the tile of {tile}, not {overlap}")
    (height, width), (rows, cols) = x.shape[-2:], (mirror(n, multiple).to(x.device) for n in x.shape[-2:])
    tops, across = (layout(n, tile, overlap, multiple) for n in (height, width))
    down, right = (windows(n, tile, overlap, multiple).to(x.device) for n in (height, width))
    h, w = down.shape[1], right.shape[1]
    places = [(b, i, j) for b in range(len(x)) for i in range(len(tops)) for j in range(len(across))]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for k in range(0, len(places), together):
        some = places[k : k + together]
        cut = [x[b][:, rows[tops[i] : tops[i] + h, None], cols[across[j] : across[j] + w]] for b, i, j in some]
        for (b, i, j), done in zip(some, function(torch.stack(cut)), strict=True):
            part = out[b, :, tops[i] : tops[i] + h, across[j] : across[j] + w]  # the image may end before the tile
            part += (down[i][:, None] * right[j] * done)[:, : part.shape[-2], : part.shape[-1]]
        if progress is not None:
            progress(min(k + together, len(places)) / len(places))
    return out


def mirror(size: int, multiple: int) -> Tensor:
    """The indices 0 .. size - 1 continued to a multiple by mirroring, however short the side is."""
    index = torch.arange(-(-size // multiple) * multiple) % max(2 * size - 2, 1)
    return torch.minimum(index, 2 * size - 2 - index) if size > 1 else index * 0


def layout(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Where the tiles of a side begin: evenly spread multiples of `multiple`, neighbours sharing `overlap` or more."""
    n, t, o = (-(-pixels // multiple) for pixels in (size, tile, overlap))
    if n <= t:
        return [0]
    last = -(-(n - o) // (t - o)) - 1
    return [multiple * (k * (n - t) // last) for k in range(last + 1)]


def windows(size: int, tile: int, overlap: int, multiple: int) -> Tensor:
    """The weights of the tiles of a side, (tiles, h) float32 with h <= tile; at every pixel they add up to 1."""
    padded = -(-size // multiple) * multiple
    starts, h = layout(size, tile, overlap, multiple), min(tile, padded)
    flank = -(-overlap // multiple) * multiple
    margin = flank // 4
    position = (torch.arange(h, dtype=torch.float64) + 0.5 - margin) / max(flank - 2 * margin, 1)
    rise = (torch.pi / 2 * position.clamp(0, 1)).sin().square()
    weights, total = [], torch.zeros(padded, dtype=torch.float64)
    for start in starts:
        weight = torch.ones(h, dtype=torch.float64)
        if start > 0:
            weight *= rise
        if start + h < padded:
            weight *= rise.flip(0)
        total[start : start + h] += weight
        weights.append(weight)
    return torch.stack([weight / total[s : s + h] for s, weight in zip(starts, weights, strict=True)]).float()
