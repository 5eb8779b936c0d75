"""Middleware for every request: access checks, security headers, and a count."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddfm.server.problems import EXAMPLES, problem_response
from ddfm.server.telemetry import Telemetry

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guards:
    """ASGI middleware.

    Args:
        app: The application to wrap.
        telemetry: Where requests are counted.
        token: Token that /v1 and /metrics require as `Authorization: Bearer TOKEN`; None to require none.
        origins: Origins whose pages may call the API, in addition to the server's page, such as https://example.org.
        hosts: Host names that the server answers to, without the port; None for any. This stops pages that rebind
            their domain to this machine (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, telemetry: Telemetry, token: str | None, origins: Sequence[str], hosts: Sequence[str] | None
    ) -> None:
        self.app, self.telemetry, self.token, self.origins, self.hosts = app, telemetry, token, origins, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status: int | None = None

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        try:
            refused = self._refused(scope)
            await (refused or self.app)(scope, receive, counted)
        except asyncio.CancelledError:  # the server is stopping and the request took too long
            if status is not None:
                raise
            await problem_response(503, EXAMPLES[503])(scope, receive, counted)
        finally:
            route: Any = scope.get("route")
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
            self.telemetry.requests.labels(method, getattr(route, "path", "other"), status or 500).inc()

    def _refused(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if self.hosts is not None and _without_port(headers.get("host", "")) not in self.hosts:
            return problem_response(403, f"This server answers to {', '.join(self.hosts)}; use one of these names.")
        origin = headers.get("origin")
        own = {f"{scheme}://{headers.get('host', '')}" for scheme in ("http", "https")}
        if origin is not None and origin not in own and origin not in self.origins:
            return problem_response(403, EXAMPLES[403])
        path = scope["path"]
        if self.token is not None and scope["method"] != "OPTIONS" and path.startswith(("/v1/", "/metrics")):
            given = headers.get("authorization", "")
            scheme, _, token = given.partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(token.strip().encode(), self.token.encode()):
                return problem_response(401, EXAMPLES[401], {"WWW-Authenticate": "Bearer"})
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
