"""The routes under /v1: fuse a scene in one request, or as a job that can be watched, cancelled and fetched."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path as Folder
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from ddfm import __version__, demo
from ddfm.server import describe, schemas, views
from ddfm.server.fields import PALETTE_NAMES, Overlay
from ddfm.server.formats import FORMATS, possible
from ddfm.server.jobs import Job
from ddfm.server.limits import Limits
from ddfm.server.problems import Problem, document, problem_body
from ddfm.server.service import Service, check_done

JobId = Annotated[str, Path(max_length=64, examples=["Jf3wqk2vRrYb6n0sT1uXcA"])]
SliceNumber = Annotated[int, Query(alias="slice", ge=0, le=2**31, description="Slice number, for volumes.")]
_DEMO = Folder(demo.__file__).parent
_EVENT_SECONDS = 0.1  # minimum interval between two events of one job
_HEARTBEAT_SECONDS = 15.0
_EXAMPLES = {"night_street": "Night street, infrared and visible", "head_pet": "Head, MRI and PET"}
_PALETTE = Query(description="Palette to use instead of the job's.", json_schema_extra={"enum": list(PALETTE_NAMES)})
_SUBMIT = (400, 408, 413, 415, 422, 429, 503)


def _laid(
    palette: Annotated[str, _PALETTE] = "",
    blend: Annotated[float, Query(ge=0, le=1, description="Opacity of the palette.")] = 0.5,
) -> Overlay | None:
    """The overlay that a query asks for; None for that of the job."""
    return None if palette == "" else Overlay.of(palette, str(blend))


Laid = Annotated[Overlay | None, Depends(_laid)]


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(prefix="/v1", tags=["fusion"])
    _add_fuse(router, service)
    _add_jobs(router, service)
    _add_results(router, service)
    _add_form(router, service)
    return router


def _add_fuse(router: APIRouter, service: Service) -> None:
    described = "The fused image or volume. DDFM-Findings lists, as JSON, the assumptions made about the sources."

    @router.post(
        "/fuse",
        response_class=Response,
        responses=document(*_SUBMIT, 406, 500) | _answer(described, *FORMATS),
        openapi_extra=_form(service.limits),
    )
    async def fuse(request: Request) -> Response:
        """Fuse the images of one scene and return the result, in the available format that Accept ranks highest."""
        job = await service.submit(request, keep=False)
        try:
            await _until_over(request, job)
            data, kind = await service.view(service.file, job, request.headers.get("accept", ""))
            return _file(data, kind, job)
        finally:
            service.queue.remove(job)
            await anyio.to_thread.run_sync(job.remove)


def _add_jobs(router: APIRouter, service: Service) -> None:
    queue = service.queue

    @router.post("/jobs", status_code=202, responses=document(*_SUBMIT), openapi_extra=_form(service.limits))
    async def submit(request: Request, response: Response) -> schemas.JobStatus:
        """Queue the images of one scene as a job, whose address is in Location."""
        job = await service.submit(request, keep=True)
        queue.expire()
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return _status(service, job)

    @router.get("/jobs/{job_id}", responses=document(422))
    async def status(job_id: JobId) -> schemas.JobStatus:
        """The status of a job."""
        return _status(service, queue.find(job_id))

    @router.delete("/jobs/{job_id}", status_code=204, responses=document(422))
    async def cancel(job_id: JobId) -> None:
        """Stop the job, at the latest after the current network evaluation, and delete it and its files."""
        await anyio.to_thread.run_sync(queue.remove, queue.find(job_id))

    @router.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses=document(422) | _answer("Events.", "text/event-stream", binary=False),
    )
    async def events(job_id: JobId) -> StreamingResponse:
        """Server-sent events, each named after the job's state, with its status as data, until the job ends."""
        return StreamingResponse(_events(service, queue.find(job_id)), media_type="text/event-stream")


def _add_results(router: APIRouter, service: Service) -> None:
    queue = service.queue

    @router.get(
        "/jobs/{job_id}/result",
        response_class=Response,
        responses=document(406, 409, 422, 500, 503) | _answer("The fused image or volume.", *FORMATS),
    )
    async def result(request: Request, job_id: JobId, overlay: Laid) -> Response:
        """The result, in the available format that Accept ranks highest, with the metadata of its sources."""
        job = queue.find(job_id)
        data, kind = await service.view(service.file, job, request.headers.get("accept", ""), overlay)
        return _file(data, kind, job)

    @router.get(
        "/jobs/{job_id}/layers/{layer}",
        response_class=Response,
        responses=document(409, 422, 500, 503) | _answer("PNG.", "image/png"),
    )
    async def layer(
        job_id: JobId,
        layer: Annotated[str, Path(max_length=40, examples=["fused"])],
        overlay: Laid,
        number: SliceNumber = 0,
    ) -> Response:
        """An 8-bit PNG for display: `fused`, `uncertainty` (scaled so that its maximum is white), `source-1` ..."""
        job = queue.find(job_id)
        check_done(job)
        data = await service.view(views.layer, job, layer, number, overlay)
        return Response(data, media_type="image/png")

    @router.get("/jobs/{job_id}/metrics", responses=document(409, 413, 422, 500, 503))
    async def metrics(job_id: JobId, number: SliceNumber = 0) -> list[schemas.Metric]:
        """Quality metrics of the result, compared with the plain average of its sources."""
        job = queue.find(job_id)
        check_done(job)
        return await service.measure(job, number)


def _add_form(router: APIRouter, service: Service) -> None:
    @router.post("/preview", responses=document(*_SUBMIT), openapi_extra=_form(service.limits))
    async def preview(request: Request) -> schemas.Preview:
        """The sources as they would be fused, aligned if requested, for display."""
        upload, sources, findings = await service.preview(request)

        def shown() -> list[schemas.PreviewSource]:
            return [_preview(name, source) for name, source in zip(upload.sources(len(sources)), sources, strict=True)]

        return schemas.Preview(sources=await anyio.to_thread.run_sync(shown), findings=findings)

    @router.get("/about", responses=document())
    async def about() -> schemas.About:
        """The settings with their names, values and help texts, the limits and the examples."""
        return schemas.About(
            version=__version__,
            settings=[schemas.Setting(**field) for field in describe.fields()],
            formats=FORMATS,
            sources=service.limits.sources,
            upload_bytes=service.limits.upload_bytes,
            pixels=service.limits.pixels,
            examples=[
                schemas.Example(
                    name=name,
                    label=label,
                    sources=[f"/v1/examples/{name}/{source}.png" for source in demo.SCENES[name]],
                )
                for name, label in _EXAMPLES.items()
            ],
        )

    @router.get(
        "/examples/{name}/{source}.png",
        response_class=FileResponse,
        responses=document(422) | _answer("PNG.", "image/png"),
    )
    async def example(
        name: Annotated[str, Path(max_length=40, examples=["night_street"])],
        source: Annotated[str, Path(max_length=40, examples=["infrared"])],
    ) -> FileResponse:
        """One image of an example."""
        if name not in _EXAMPLES or source not in demo.SCENES[name]:
            raise Problem(404, "There is no such example; /v1/about lists the available ones.")
        return FileResponse(_DEMO / f"{name}_{source}.png", media_type="image/png")


def _answer(description: str, *kinds: str, binary: bool = True) -> dict[int | str, dict[str, Any]]:
    """A route's successful response, for OpenAPI: one of these media types."""
    schema = {"type": "string", "format": "binary"} if binary else {"type": "string"}
    return {200: {"description": description, "content": {kind: {"schema": schema} for kind in kinds}}}


def _form(limits: Limits) -> dict[str, Any]:
    """The request body, for OpenAPI; `uploads` parses the form and enforces the limits."""
    schema = describe.form_schema(limits.sources)
    example = {"sources": ["infrared.png", "visible.png"], "contrast": "natural", "seed": "0"}
    content = {"schema": schema, "example": example, "encoding": {"sources": {"contentType": "image/*"}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


def _status(service: Service, job: Job) -> schemas.JobStatus:
    first = job.scene.sources[0]
    height, width = first.plane
    until = time.monotonic() if math.isnan(job.ended) else job.ended
    return schemas.JobStatus(
        id=job.id,
        state=job.state,
        position=service.queue.position(job),
        done=job.progress[0],
        total=job.progress[1],
        seconds=0.0 if math.isnan(job.started) else round(until - job.started, 3),
        names=job.upload.sources(len(job.scene.sources)),
        width=width,
        height=height,
        slices=len(first.pixels) if first.is_volume else 0,
        findings=job.scene.findings,
        formats=possible(job.scene, job.settings.colour, job.overlay.palette),
        uncertainty=None if job.std is None else float(job.std.max()),
        problem=None if job.problem is None else schemas.Problem(**problem_body(*job.problem)),
    )


async def _events(service: Service, job: Job) -> AsyncIterator[str]:
    over = asyncio.wrap_future(job.finished)
    sent, sent_at = "", time.monotonic()
    while True:
        is_over = over.done()
        status = _status(service, job)
        text = status.model_dump_json(exclude={"seconds"})
        if text != sent:
            yield f"event: {status.state}\ndata: {status.model_dump_json()}\n\n"
            sent, sent_at = text, time.monotonic()
        elif time.monotonic() - sent_at > _HEARTBEAT_SECONDS:
            yield ": still here\n\n"
            sent_at = time.monotonic()
        if is_over:
            return
        await asyncio.wait({over}, timeout=_EVENT_SECONDS)


async def _until_over(request: Request, job: Job) -> None:
    """Wait until the job is over or the client has disconnected, in which case the route cancels the job."""
    over: asyncio.Future[Any] = asyncio.wrap_future(job.finished)
    gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({over, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()


def _file(data: bytes, kind: str, job: Job) -> Response:
    headers = {
        "Content-Disposition": f'inline; filename="fused{FORMATS[kind]}"',
        "DDFM-Findings": json.dumps(job.scene.findings),
    }
    return Response(data, media_type=kind, headers=headers)


def _preview(name: str, source: Any) -> schemas.PreviewSource:
    pixels = source.pixels[len(source.pixels) // 2] if source.is_volume else source.pixels
    return schemas.PreviewSource(
        name=name,
        width=pixels.shape[1],
        height=pixels.shape[0],
        slices=len(source.pixels) if source.is_volume else 0,
        bits=source.bits,
        coloured=pixels.ndim == 3,
        image="data:image/png;base64," + base64.b64encode(views.png(pixels)).decode(),
    )
