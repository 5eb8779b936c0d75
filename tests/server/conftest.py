"""The application on loopback, for clients that need a real server."""

import contextlib
import socket
import threading
import time

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
