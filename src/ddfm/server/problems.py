"""Errors as RFC 9457 problem details, with the same one-sentence message that the command line prints."""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ddfm.errors import InputError, out_of_memory

MEDIA_TYPE = "application/problem+json"
DISK_FULL = "The server's disk is full; send the request again later."


class Problem(InputError):
    """An error that is answered with `status` and one sentence, `detail`."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def problem_of(error: Exception) -> tuple[int, str]:
    """The status and sentence for an exception that ended a job."""
    if isinstance(error, Problem):
        return error.status, error.detail
    if isinstance(error, InputError):
        return 422, str(error)
    if is_disk_full(error):
        return 503, DISK_FULL
    if out_of_memory(error):
        return 503, "The images do not fit in the server's memory; send smaller ones."
    return 500, EXAMPLES[500]


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error means that the disk is full or a quota is exceeded."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def problem_response(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response: {"type", "title", "status", "detail"} as application/problem+json."""
    return JSONResponse(problem_body(status, detail), status, headers, MEDIA_TYPE)


def problem_body(status: int, detail: str) -> dict[str, Any]:
    """The members of a problem."""
    detail = detail.encode(errors="backslashreplace").decode()  # a form may contain a lone surrogate
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def install(app: FastAPI) -> None:
    """Make the application answer every error with a problem."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for OpenAPI: these statuses and those that all routes have."""
    return {status: _documented(status) for status in sorted({401, 403, 404, 405, *statuses})}


EXAMPLES = {
    400: "The form is not valid multipart/form-data; send it again.",
    401: "This server requires a token; send it as `Authorization: Bearer TOKEN`.",
    403: "The request came from a page of another origin; allow that origin with --cors.",
    404: "There is no job with this id; it may have expired.",
    405: "The method is not allowed here.",
    406: "The result can be image/png, image/tiff or image/jpeg; ask for one of them in Accept.",
    408: "The upload took longer than 60 s; send it again over a faster connection.",
    409: "The job is still running; wait until it is done.",
    413: "The sources have 70,000,000 pixels together, more than the limit of 67,108,864; send smaller images.",
    415: "notes.txt is not an image that can be read; use PNG, JPEG, BMP, TIFF, DICOM or NIfTI.",
    422: "visible.png is 640x480 but infrared.png is 320x240; register them to one size first.",
    429: "The queue is full; send the request again in 4 s.",
    500: "The server failed to process this request; its log gives the reason.",
    503: "The server is stopping; send the request again later.",
}


def _documented(status: int) -> dict[str, Any]:
    example = problem_body(status, EXAMPLES[status])
    documented: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
    }
    if status == 429:
        documented["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return documented


def _problem(request: Request, error: Any) -> JSONResponse:
    return problem_response(error.status, error.detail, error.headers)


def _input_error(request: Request, error: Exception) -> JSONResponse:
    return problem_response(422, str(error))


def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "The request"
    return problem_response(422, f"{name}: {str(first['msg']).rstrip('.')}.")


def _http(request: Request, error: Any) -> JSONResponse:
    sentences = {404: f"There is nothing at {request.url.path[:200]!r}.", 405: "The method is not allowed here."}
    detail = sentences.get(error.status_code, f"{str(error.detail).rstrip('.')}.")
    return problem_response(error.status_code, detail, error.headers)


def _bug(request: Request, error: Exception) -> JSONResponse:
    return problem_response(*problem_of(error))
