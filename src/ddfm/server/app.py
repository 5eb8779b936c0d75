"""The application: routes, page, health checks and metrics around one `Service`; and `serve`, which runs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from ddfm import __version__
from ddfm.errors import InputError
from ddfm.pipeline import DDFMPipeline, quiet_pipeline
from ddfm.server import api, problems, schemas
from ddfm.server.guards import LOOPBACK, Guards
from ddfm.server.limits import Limits
from ddfm.server.problems import Problem
from ddfm.server.service import Service
from ddfm.server.telemetry import MEDIA_TYPE

PAGE = Path(__file__).parent / "static"
FETCH_SECONDS = 10.0  # a stopping server waits this long for finished results to be fetched
CLOSE_SECONDS = 2  # then allowed for requests in progress, such as a slow upload
_log = logging.getLogger("uvicorn.error")


def create_app(
    pipes: DDFMPipeline | Sequence[DDFMPipeline],
    limits: Limits | None = None,
    *,
    token: str | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The page and the API as an ASGI application, for any single-process server.

    Args:
        pipes: One pipeline, or one per device.
        limits: Limits of the server; None for the defaults.
        token: Token that the API and the metrics require as `Authorization: Bearer TOKEN`; None to require none.
        origins: Origins whose pages may call the API (CORS), such as "https://example.org"; none by default.
        hosts: Host names that the server answers to; None for any.
    """
    service = Service([pipes] if isinstance(pipes, DDFMPipeline) else list(pipes), limits or Limits())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        expiring = asyncio.create_task(_expire(service))
        try:
            yield
        finally:
            expiring.cancel()
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="ddfm",
        version=__version__,
        summary="Fuse images from several sensors by diffusion posterior sampling.",
        description="Errors are RFC 9457 problem details with a one-sentence `detail`.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from other servers
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    app.include_router(api.routes(service))
    _add_health(app, service)
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)(_page)
    app.add_middleware(Guards, telemetry=service.telemetry, token=token, origins=origins, hosts=hosts)
    if origins:  # outside the guards, so that pages of these origins can read their refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization"],
            expose_headers=["Location", "Retry-After", "DDFM-Findings"],
        )
    _document(app, token)
    return app


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    prior: str | Path = "embedded",
    devices: Sequence[str] = (),
    limits: Limits | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
) -> None:
    """Run the server until SIGINT or SIGTERM; running jobs are then finished, and all others refused.

    Args:
        host: Address to listen on. On a loopback address, such as the default, only requests to loopback names are
            answered.
        port: Port to listen on.
        prior: As in `load_prior`.
        devices: "cpu", "cuda:0" ..., with one worker each; if empty, the best device is used.
        limits: As for `create_app`.
        token: As for `create_app`.
        origins: As for `create_app`.

    Raises:
        InputError: the prior cannot be loaded, or the address cannot be listened on.
    """
    pipes = [quiet_pipeline(prior, device) for device in devices or (None,)]
    is_loopback = host in ("127.0.0.1", "::1", "localhost")
    app = create_app(pipes, limits, token=token, origins=origins, hosts=LOOPBACK if is_loopback else None)
    config = uvicorn.Config(
        app,
        host,
        port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    if not is_loopback and token is None:
        _log.warning("Anyone who can reach this machine can use this server; set --token to require a token.")
    with _listening(host, port) as listening:
        _log.info("The page is at http://%s:%d", f"[{host}]" if ":" in host else host, listening.getsockname()[1])
        _Server(config, app.state.service).run([listening])


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError if the port is in use or the address is not one of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio delays answers
    try:
        if os.name == "posix":  # on Windows this would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
        return listening
    except OSError as error:
        listening.close()
        raise InputError(
            f"Cannot listen on {host}, port {port}: {str(error.strerror).partition(' (')[0]}; choose another."
        ) from error


class _Server(uvicorn.Server):
    """uvicorn that on a signal first finishes running jobs while still answering; a second signal stops it at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM."""
        if self._draining:
            self._service.queue.stop()
            self.should_exit = True  # not force_exit, which would skip the application's shutdown
            return
        self._draining = True
        _log.info("Stopping once running jobs are finished; the same signal again stops at once.")
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        queue = self._service.queue
        queue.drain()
        while not queue.is_idle:
            time.sleep(0.05)
        until = time.monotonic() + FETCH_SECONDS
        while not queue.is_fetched and time.monotonic() < until:
            time.sleep(0.05)
        self.should_exit = True


async def _expire(service: Service) -> None:
    while True:
        await asyncio.sleep(5)
        await asyncio.to_thread(service.queue.expire)


def _page() -> FileResponse:
    return FileResponse(PAGE / "index.html")


def _add_health(app: FastAPI, service: Service) -> None:
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_class=Response, responses=text | problems.document(), tags=["operation"])
    async def healthz() -> Response:
        """Whether the server process is alive."""
        return Response("ok\n", media_type="text/plain")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_class=Response, responses=text | problems.document(503), tags=["operation"])
    async def readyz() -> Response:
        """Whether the server accepts jobs."""
        if not service.is_ready:
            raise Problem(503, "The server is stopping; send the request again later.")
        return Response("ready\n", media_type="text/plain")

    @app.get("/metrics", response_class=Response, responses=text | problems.document(), tags=["operation"])
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        return Response(service.telemetry.text(), media_type=MEDIA_TYPE)


def _document(app: FastAPI, token: str | None) -> None:
    """Add to the OpenAPI document what FastAPI cannot know: the schema of errors, and the token."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = schemas.Problem.model_json_schema()
        if token is not None:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
