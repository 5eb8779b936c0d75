"""The application: in this process, and on loopback for clients that need a real server."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest


@pytest.fixture(scope="module")
def address(serving, tiny_prior):
    """Where it listens, with a final slash."""
    with serving(tiny_prior) as address:
        yield address


@pytest.fixture(scope="session")
def serving():
    """`_serving`."""
    return _serving


@contextlib.contextmanager
def _serving(pipe, **options):
    """Where the application of these options listens."""
    import uvicorn

    from ddfm.server import create_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(pipe, **options), "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(tiny_prior):
    from fastapi.testclient import TestClient
    from server.forms import BASE

    from ddfm.server import create_app

    with TestClient(create_app(tiny_prior), base_url=BASE) as client:
        yield client


@pytest.fixture
def gate(monkeypatch):
    """Fusions that go on, evaluation by evaluation, until the gate is set."""
    from ddfm.server import worker

    gate = threading.Event()

    def slow(pipe, scenes, settings, progress):
        for k in range(1, 1001):
            progress(float(k), 1000)
            if gate.wait(0.01):
                break
        return np.stack([scene.sources[0].pixels for scene in scenes]), None

    monkeypatch.setattr(worker, "fuse_scenes", slow)
    yield gate
    gate.set()
