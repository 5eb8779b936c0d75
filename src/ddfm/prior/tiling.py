"""Applies a function of small images to a large one: overlapping tiles, blended with a smooth window."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ddfm.errors import InputError
from ddfm.prior.load import size_multiple

SMALL = 2**31  # bytes: an image that needs less is never tiled, however busy the machine is
TILES = (1024, 512, 256)  # pixels a side, for "auto"
MOST_PER_CALL = 8  # tiles on a GPU: more are not faster
PLANES = 24  # the network's memory per pixel, in planes of its first level: 15 to 23 were measured


def blend(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    multiple: int,
    at_once: int,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Applies `function` to overlapping tiles of x and blends the results; only x and the result are full-size.

    Along a side longer than a tile, every tile has the full tile size: the last one ends at the image border. Tile
    origins are multiples of `multiple`, so that a network's downsampling grid is the same in all tiles. Weights are
    raised cosines that add up to 1 everywhere.

    Args:
        function: (N, C, h, w) -> (N, C, h, w) float32, h and w multiples of `multiple`, N <= `at_once`.
        x: (B, C, H, W), any size; padded by mirroring at the bottom and right to a multiple of `multiple`.
        tile: Tile size in pixels a side.
        overlap: Minimum number of pixels that neighbours share; rounded up to a multiple of `multiple`.
        multiple: Tile sizes and origins are multiples of this.
        at_once: Tiles per call.
        progress: Called with the fraction done, in (0, 1], after each call.

    Raises:
        InputError: a tile that is not such a multiple, or not larger than the overlap.
    """
    if tile < 1 or tile % multiple:
        raise InputError(f"The tile must be a multiple of {multiple} pixels, as the prior's network is, not {tile}.")
    if max(x.shape[-2:]) > tile and (overlap < 0 or overlap > tile - multiple):
        raise InputError(
            f"The tile overlap must be between 0 and {tile - multiple} pixels for a tile of {tile}, not {overlap}."
        )
    (height, width), (rows, cols) = x.shape[-2:], (mirror(n, multiple).to(x.device) for n in x.shape[-2:])
    tops, across = (layout(n, tile, overlap, multiple) for n in (height, width))
    down, right = (windows(n, tile, overlap, multiple).to(x.device) for n in (height, width))
    h, w = down.shape[1], right.shape[1]
    places = [(b, i, j) for b in range(len(x)) for i in range(len(tops)) for j in range(len(across))]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for k in range(0, len(places), at_once):
        some = places[k : k + at_once]
        cut = [x[b][:, rows[tops[i] : tops[i] + h, None], cols[across[j] : across[j] + w]] for b, i, j in some]
        for (b, i, j), done in zip(some, function(torch.stack(cut)), strict=True):
            part = out[b, :, tops[i] : tops[i] + h, across[j] : across[j] + w]  # the image may end before the tile
            part += (down[i][:, None] * right[j] * done)[:, : part.shape[-2], : part.shape[-1]]
        if progress is not None:
            progress(min(k + at_once, len(places)) / len(places))
    return out


def mirror(size: int, multiple: int) -> Tensor:
    """The indices 0 .. size - 1 continued to a multiple by mirroring, however short the side is."""
    index = torch.arange(-(-size // multiple) * multiple) % max(2 * size - 2, 1)
    return torch.minimum(index, 2 * size - 2 - index) if size > 1 else index * 0


def layout(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Origins of the tiles along a side: evenly spread multiples of `multiple`; neighbours share at least `overlap`."""
    n, t, o = (-(-pixels // multiple) for pixels in (size, tile, overlap))
    if n <= t:
        return [0]
    last = -(-(n - o) // (t - o)) - 1
    return [multiple * (k * (n - t) // last) for k in range(last + 1)]


def windows(size: int, tile: int, overlap: int, multiple: int) -> Tensor:
    """The tile weights along a side, (tiles, h) float32 with h <= tile; at every pixel they add up to 1."""
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


def bytes_per_pixel(unet: Any) -> int:
    """A conservative estimate of the memory that a network evaluation takes per image pixel."""
    return PLANES * _first_channels(unet) * int(unet.dtype.itemsize) // int(getattr(unet, "unshuffle", 1)) ** 2


def free_memory(device: torch.device) -> int:
    """Free memory on the device, in bytes; on the CPU limited by the container, if there is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return free
    return min(free, max(limit - used, 0))


def auto_tile(unet: Any, height: int, width: int, device: torch.device) -> int:
    """The tile size for `tile="auto"`: the whole image if it fits in half of the free memory, else a smaller tile.

    It does not depend on the batch size: images that do not fit together go through the network in turn. Call it once
    per run, not once per step, because the free memory changes.
    """
    multiple, cost = size_multiple(unet), bytes_per_pixel(unet)
    whole = -(-max(height, width) // multiple) * multiple
    if height * width * cost <= SMALL or whole <= TILES[-1]:
        return whole
    room = max(free_memory(device) // 2, SMALL)
    if height * width * cost <= room:
        return whole
    return next((tile for tile in TILES if tile**2 * cost <= room), TILES[-1])


def tiles_per_call(unet: Any, height: int, width: int, device: torch.device) -> int:
    """Number of tiles, or of images that are a single tile, per network call; depends only on size and device.

    One on the CPU: more are not faster there, and this way an image never depends on the others in its batch.
    """
    if device.type == "cpu":
        return 1
    return min(max(SMALL // (max(height * width, 1) * bytes_per_pixel(unet)), 1), MOST_PER_CALL)


def _first_channels(unet: Any) -> int:
    return int((unet.config.get("block_out_channels") or unet.config["channels"])[0])
