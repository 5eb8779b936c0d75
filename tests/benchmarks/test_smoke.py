"""The benchmarks run: on as little as they can be given, so that none of them rots between releases."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A benchmark as a module; they are scripts, not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    load("metrics").main(["--size", "64", "48", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "64x48" in printed and "VIF" in printed and "Qabf" in printed


def test_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y, x = np.mgrid[:48, :64]
    for name, image in (
        ("first", 127 + 100 * np.sin(x / 5)),
        ("coloured", np.stack([y * 5, 100 + 0 * x, x * 3], axis=-1)),
    ):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), image.astype(np.uint8))
    load("colour").main([str(tmp_path / "first"), str(tmp_path / "coloured")])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["ddfm", "clipped", "average"]


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read the POSIX way")
def test_sizes(prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("sizes").main(["--shape", "48", "64", "--steps", "1", "--prior", str(prior)])
    assert capsys.readouterr().out.startswith("64x48")


def test_runtimes(prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    load("runtimes").main(["--prior", str(prior), "--shape", "16", "16", "--repeats", "1"])
    assert "ONNX Runtime: least" in capsys.readouterr().out


def test_misaligned() -> None:
    benchmark = load("misaligned")
    rng = np.random.default_rng(0)
    moving = cv2.GaussianBlur(rng.random((96, 128)).astype(np.float32), (0, 0), 3)
    fixed = np.roll(moving, (0, 2), axis=(0, 1))  # what lies at x in fixed lies at x - 2 in moving
    displacement = np.zeros((96, 128, 2), np.float32)
    displacement[..., 0] = 2  # and x in moving belongs to x + 2
    assert benchmark.error(benchmark.untouched(moving, fixed), displacement) == pytest.approx(2, abs=0.01)
    assert benchmark.error(benchmark.ecc(moving, fixed), displacement) < 0.3


def test_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # it imports another
    benchmark = load("resampled")
    infrared = cv2.GaussianBlur(np.random.default_rng(0).random((96, 128)).astype(np.float32), (0, 0), 4)
    small, place = benchmark.smaller(infrared, 2.0, 0.8)
    assert small.shape == (38, 51)
    np.testing.assert_allclose(place.warp(small)[20:-20, 25:-25], infrared[20:-20, 25:-25], atol=0.02)
