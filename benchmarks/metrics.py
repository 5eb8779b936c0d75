"""Run time of the twelve metrics, and of VIF and Qabf against a plain NumPy/SciPy implementation of their definitions.

    python benchmarks/metrics.py [--size 640 480] [--repeats 7]

Times are wall-clock, the best of the repeats after a warm-up, on a synthetic pair; the CPU seconds show whether
the machine was idle (wall much above CPU / cores means it was not).
"""

import argparse
import math
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from scipy.signal import convolve2d

from ddfm.evaluation import metrics

T = TypeVar("T")


def plain_vif(fused: np.ndarray, sources: Sequence[np.ndarray]) -> float:
    """Sum over the sources of the pixel-domain VIF, dense 2-D windows, one source after another."""
    total = 0.0
    for reference in sources:
        r, f = reference.astype(float), fused.astype(float)
        kept = whole = 0.0
        for scale, size in enumerate((17, 9, 5, 3)):
            offset = np.arange(size) - size // 2
            window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * (size / 5) ** 2))
            window /= window.sum()

            def local(x: np.ndarray, window: np.ndarray = window) -> np.ndarray:
                return np.asarray(convolve2d(x, window, mode="valid"))

            if scale:
                r, f = local(r)[::2, ::2], local(f)[::2, ::2]
            mean_r, mean_f = local(r), local(f)
            var_r = np.maximum(local(r * r) - mean_r**2, 0)
            var_f = np.maximum(local(f * f) - mean_f**2, 0)
            gain = np.maximum(local(r * f) - mean_r * mean_f, 0) / (var_r + 1e-10)
            lost = np.maximum(var_f - gain * np.maximum(local(r * f) - mean_r * mean_f, 0), 1e-10)
            kept += np.log10(1 + gain**2 * var_r / (lost + 2)).sum()
            whole += np.log10(1 + var_r / 2).sum()
        total += kept / whole
    return total


def plain_qabf(fused: np.ndarray, sources: Sequence[np.ndarray]) -> float:
    """Edge preservation with zero-padded Sobel kernels, one image after another."""
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])

    def edges(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gx, gy = convolve2d(x, across, mode="same"), convolve2d(x, -across.T, mode="same")
        with np.errstate(divide="ignore", invalid="ignore"):
            angle = np.where(gx == 0, math.pi / 2, np.arctan(gy / gx))
        return np.hypot(gx, gy), angle

    g_f, angle_f = edges(fused.astype(float))
    top = bottom = 0.0
    for source in sources:
        g, angle = edges(source.astype(float))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(g == g_f, g_f, np.minimum(g, g_f) / np.maximum(g, g_f))
        parallel = 1 - np.abs(angle - angle_f) / (math.pi / 2)
        quality = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (parallel - 0.8)))
        top, bottom = top + (quality * g).sum(), bottom + g.sum()
    return top / bottom


def made_pair(width: int, height: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    pair = []
    for _ in range(2):
        x = np.zeros((height, width))
        for k in (1, 4, 16, 64):
            x += np.kron(rng.normal(size=(-(-height // k), -(-width // k))), np.ones((k, k)))[:height, :width] * k
        pair.append(np.rint((x - x.min()) / np.ptp(x) * 255))
    a, b = pair
    return np.rint(0.6 * a + 0.4 * b), [a, b]


def best(call: Callable[[], T], repeats: int) -> tuple[float, float, T]:
    """(best wall seconds, its CPU seconds, last result) after one warm-up."""
    result = call()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return *min(times), result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs=2, type=int, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    fused, sources = made_pair(*options.size)
    print(
        f"{options.size[0]}x{options.size[1]}, torch {torch.__version__}, {torch.get_num_threads()} threads, ", end=""
    )
    print(platform.processor() or platform.machine())

    wall, cpu, _ = best(lambda: metrics.fusion_metrics(fused, sources), options.repeats)
    print(f"the twelve   {wall:7.3f} s wall  {cpu:7.3f} s CPU")
    for name, plain in (("VIF", plain_vif), ("Qabf", plain_qabf)):
        ours = partial(metrics.fusion_metrics, fused, sources, names=[name])
        wall, cpu, values = best(ours, options.repeats)
        start, start_cpu = time.perf_counter(), time.process_time()
        expected = plain(fused, sources)
        plain_wall, plain_cpu = time.perf_counter() - start, time.process_time() - start_cpu
        assert math.isclose(values[name], expected, rel_tol=1e-6), (values, expected)
        print(
            f"{name:5s} ddfm  {wall:7.3f} s wall  {cpu:7.3f} s CPU;  "
            f"plain {plain_wall:7.3f} s wall {plain_cpu:7.3f} s CPU;  "
            f"ratio {plain_wall / wall:.0f} wall, {plain_cpu / cpu:.0f} CPU"
        )


if __name__ == "__main__":
    main()
