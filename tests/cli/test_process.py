"""The command line as a whole: help, wrong calls, interrupts, a real process."""

import subprocess
import sys

import pytest
from cli.helpers import complaint, interrupt, listing


@pytest.mark.parametrize("arguments", [("nope",), ("fuse",), ("fuse", "a.png"), ("prior", "nope"), ("evaluate",)])
def test_a_wrong_call_is_refused_in_one_line(ddfm_, arguments):
    complaint(ddfm_(*arguments))


def test_no_arguments_show_the_help_and_no_empty_error(ddfm_):
    code, out, err = ddfm_()
    assert code == 2 and "register" in out + err and "error:" not in out + err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "register"),
        (("fuse",), "--likelihood"),
        (("evaluate",), "Example: ddfm evaluate"),
        (("serve",), "`pip install ddfm[server]`"),  # brackets are rich's markup
        (("prior", "export"), "`pip install ddfm[onnx]`"),
    ],
)
def test_help_helps(ddfm_, arguments, word):
    code, out, _ = ddfm_(*arguments, "--help")
    assert code == 0 and "Usage: ddfm" in out and word in " ".join(out.split())


@pytest.mark.parametrize(
    "where", ["ddfm.prior.denoiser.Denoiser.__call__", "ddfm.io.images.read_any", "ddfm.io.images.os.replace"]
)
def test_ctrl_c_ends_cleanly_wherever_it_comes(fuse, folder, monkeypatch, where):
    monkeypatch.setattr(where, interrupt)
    before = listing(folder)
    code, out, err = fuse()
    assert (code, out, err.strip().splitlines()[-1]) == (130, "", "interrupted")
    assert listing(folder) == before


def process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


HEAVY = ("torch", "diffusers", "cv2", "scipy", "numpy")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fuse", "--help"]])
def test_version_and_help_import_nothing_heavy(arguments):
    code = f"""
import sys
sys.argv = ["ddfm", *{arguments}]
from ddfm.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("heavy: []")


def test_exit_code_and_sentence_of_a_real_process(tmp_path):
    done = process("-m", "ddfm.cli", "fuse", "a.png", "b.png", "-o", str(tmp_path / "c.png"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: a.png does not exist; check the name.\n"
    assert listing(tmp_path) == []
