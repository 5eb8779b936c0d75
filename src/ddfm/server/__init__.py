"""The web page and HTTP API (`pip install ddfm[server]`): `serve` runs them, `create_app` is for other ASGI servers."""

from ddfm.errors import InputError

try:
    import fastapi as _fastapi  # noqa: F401
    import prometheus_client as _prometheus  # noqa: F401
    import python_multipart as _multipart  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise InputError(f"The server needs the package {error.name}; run `pip install ddfm[server]`.") from error

from ddfm.server.app import create_app, serve
from ddfm.server.limits import Limits

__all__ = ["Limits", "create_app", "serve"]
