"""`ddfm serve` as a process: what it does on SIGTERM and SIGINT."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

for package in ("fastapi", "python_multipart", "prometheus_client", "uvicorn"):
    pytest.importorskip(package, reason="needs ddfm[server]")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from ddfm.demo import SCENES
from ddfm.demo import __file__ as demo_file

if os.name == "nt":
    pytest.skip("signals of POSIX", allow_module_level=True)

pytestmark = pytest.mark.slow  # two starts of a server
LONG = {"num_inference_steps": "61"}


@pytest.fixture
def server(tmp_path):
    """A server's process, and a client of it; its temporary files are in tmp_path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ddfm.cli", "serve", "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                until = time.monotonic() + 60
                while not _is_ready(client):
                    assert process.poll() is None and time.monotonic() < until
                    time.sleep(0.1)
                yield process, client
        finally:
            process.kill()


def _is_ready(client):
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _submit(client, **fields):
    folder = Path(demo_file).parent
    paths = [folder / f"night_street_{source}.png" for source in SCENES["night_street"]]
    files = [("sources", (path.name, path.read_bytes(), "image/png")) for path in paths]
    return client.post("/v1/jobs", files=files, data=fields).headers["location"]


def _wait(client, at, state):
    until = time.monotonic() + 60
    while (status := client.get(at).json())["state"] != state:
        assert time.monotonic() < until, status
        time.sleep(0.02)
    return status


def test_sigterm_finishes_what_runs_and_refuses_the_rest(server, tmp_path):
    process, client = server
    running, waiting = _submit(client, num_inference_steps="3"), _submit(client)
    _wait(client, running, "running")
    process.send_signal(signal.SIGTERM)
    assert _wait(client, waiting, "failed")["problem"]["status"] == 503
    assert client.get("/readyz").status_code == 503
    _wait(client, running, "done")
    assert client.get(f"{running}/result").content.startswith(b"\x89PNG")
    assert process.wait(30) == 0
    assert not list(tmp_path.glob("ddfm-server-*"))


def test_a_second_signal_stops_at_once(server, tmp_path):
    process, client = server
    running = _submit(client, **LONG)
    _wait(client, running, "running")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # still at work
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert not list(tmp_path.glob("ddfm-server-*"))
    assert "Traceback" not in process.stderr.read()
