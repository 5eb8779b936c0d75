"""Is another runtime worth a dependency? Times a prior's network in PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/runtimes.py [--prior embedded] [--shape 480 640] [--threads 2] [--repeats 7]

Float32, interleaved, so that all share the machine's load; prints the minimum and the median of each in milliseconds,
the speed-up over PyTorch (medians), and the largest difference from it. Needs onnx, onnxruntime and openvino.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddfm.prior import load_prior
from ddfm.prior.export import export_onnx

Run = Callable[[np.ndarray], np.ndarray]


def pytorch(unet: Any) -> Run:
    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            out: np.ndarray = unet(torch.from_numpy(x), torch.tensor([100]), return_dict=False)[0].numpy()
        return out

    return run


def onnx_runtime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> np.ndarray:
        out: np.ndarray = session.run(None, {"sample": x, "timestep": np.array([100])})[0]
        return out

    return run


def openvino(path: Path, threads: int) -> Run:
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = ov.Core().compile_model(str(path), "CPU", config)

    def run(x: np.ndarray) -> np.ndarray:
        out: np.ndarray = model({"sample": x, "timestep": np.array([100])})[0]
        return out

    return run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--shape", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    prior = load_prior(args.prior, "cpu", dtype=torch.float32)
    x = np.random.default_rng(0).standard_normal((1, 1, *args.shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(prior, Path(folder) / "prior.onnx")
        runtimes = {
            "PyTorch": pytorch(prior.unet),
            "ONNX Runtime": onnx_runtime(path, args.threads),
            "OpenVINO": openvino(path, args.threads),
        }
        reference = runtimes["PyTorch"](x)
        difference = {name: np.abs(run(x) - reference).max() for name, run in runtimes.items()}  # and a warm-up
        seconds: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(args.repeats):
            for name, run in runtimes.items():
                begin = time.perf_counter()
                run(x)
                seconds[name].append(time.perf_counter() - begin)
    plain = statistics.median(seconds["PyTorch"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name}: least {1e3 * min(times):.0f} ms, median {1e3 * median:.0f} ms, {plain / median:.2f} times, "
            f"difference {difference[name]:.1e}"
        )


if __name__ == "__main__":
    main()
