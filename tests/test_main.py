"""The command line as a process: interrupts, and a machine that is too small."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ddfm.cli
import ddfm.runs.scene
from ddfm.errors import InputError, out_of_memory

INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
CAUGHT = """import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    raise ImportError("half")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("text", [INTERRUPTED, CAUGHT], ids=["interrupted", "interrupt turned into an ImportError"])
@pytest.mark.parametrize("module", ["typer", "cv2", "torch"])
def test_ctrl_c_while_libraries_are_imported(tmp_path, module, text):
    (tmp_path / f"{module}.py").write_text(text)
    paths = [str(tmp_path), str(Path(__file__).parents[1] / "src")]
    line = [sys.executable, "-m", "ddfm", "demo", str(tmp_path / "demo")]
    done = subprocess.run(
        line,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "ddfm", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("ddfm ")


def test_memory_that_does_not_suffice_is_a_sentence():
    for ask in (lambda: np.zeros(2**60, np.uint8), lambda: torch.zeros(2**60, dtype=torch.uint8)):
        with pytest.raises((MemoryError, RuntimeError)) as error:
            ask()
        sentence = out_of_memory(error.value)
        assert sentence is not None and "more were requested" in sentence and "are free" in sentence
    for error in (
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        Exception("Insufficient memory (Failed to allocate memory)"),
    ):
        assert "not enough memory" in (out_of_memory(error) or "")
    for error in (InputError("x"), RuntimeError("shapes"), KeyError("memory")):
        assert out_of_memory(error) is None


def test_a_command_that_runs_out_of_memory_says_so(tmp_path, monkeypatch, capsys):
    def read(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(ddfm.runs.scene.Scene, "read", read)
    monkeypatch.setattr(sys, "argv", ["ddfm", "fuse", "a.png", "b.png", "-o", str(tmp_path / "c.png")])
    with pytest.raises(SystemExit) as stop:
        ddfm.cli.main()
    assert stop.value.code == 2 and "not enough memory" in capsys.readouterr().err
