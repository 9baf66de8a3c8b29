"""The HTTP API."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from flowsep_runtime import __version__
from flowsep_runtime.app.demo import EXAMPLE
from flowsep_serve import documents
from flowsep_serve.answers import MEDIA_TYPES, PAUSE, Streamed, events, growing, zipped
from flowsep_serve.errors import ServeError
from flowsep_serve.guard import Guard, answered
from flowsep_serve.jobs import Job, Stem
from flowsep_serve.metrics import CONTENT_TYPE
from flowsep_serve.service import Service, gone

PAGE = Path(__file__).parent / "page"
LONGEST_HEADER = 2000  # bytes
WAV_HEADER = 44  # bytes before the first sample


def create_app(service: Service) -> Guard:
    """The application of a service whose worker has been started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.begin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.tidy)
            tasks.start_soon(service.end)
            yield
            tasks.cancel_scope.cancel()

    app = FastAPI(
        title="FlowSep",
        version=__version__,
        description=documents.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=_typed(lifespan),
        generate_unique_id_function=lambda route: route.name,  # short names, for links and generated clients
    )
    _add_errors(app)
    _add_state(app, service)
    _add_work(app, service)
    app.mount("/page", StaticFiles(directory=PAGE))
    # Around everything, so that the answer to an error of ours has the headers too.
    return Guard(app, service.rules, service.limits, service.metrics)


def _typed(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> Any:
    return lifespan


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ServeError)
    async def known(_: Request, error: ServeError) -> Response:
        return answered(error)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        sentence = {404: "There is nothing here.", 405: "This address does not take this method."}
        content = {"error": sentence.get(error.status_code, f"{error.detail}")}
        headers = {}
        if error.status_code == 405:  # Starlette names the methods of one route; an address may have several
            here = [each for each in app.routes if isinstance(each, APIRoute)]
            here = [each for each in here if each.path_regex.match(request.url.path)]
            methods = {method for each in here for method in each.methods or ()}
            headers["allow"] = ", ".join(sorted(methods or {"GET", "HEAD"}))  # those of the page's files
        return JSONResponse(content, error.status_code, headers)

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        sentence = f"Unexpected {type(error).__name__}: the server's log has the details."
        return JSONResponse({"error": sentence}, 500)


def _add_state(app: FastAPI, service: Service) -> None:
    worker, store, metrics = service.worker, service.store, service.metrics

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/page/example.flac", include_in_schema=False)
    async def example() -> Response:
        return FileResponse(EXAMPLE, media_type=MEDIA_TYPES["flac"])

    @app.get("/healthz", **documents.HEALTH)
    async def healthz() -> Response:
        if worker.failure is not None:
            raise ServeError(500, "The model could not be loaded.")
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", **documents.READY)
    async def readyz() -> Response:
        if worker.is_draining or not worker.is_ready:
            raise ServeError(503, "The server takes no requests now.", 10)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", **documents.METRICS)
    async def figures() -> Response:
        metrics.waiting.set(worker.waiting)
        metrics.running.set(len(worker.running))
        metrics.ready.set(await anyio.to_thread.run_sync(worker.ready))
        metrics.disk.set(store.used)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", **documents.MODELS)
    async def models() -> Response:
        return JSONResponse(
            {
                "models": [
                    {
                        "name": name,
                        "is_default": number == 0,
                        "kind": manifest.model.default_kind,
                        "sample_rate": manifest.model.sample_rate,
                        "clip_seconds": manifest.model.clip_samples / manifest.model.sample_rate,
                    }
                    for number, (name, manifest) in enumerate(service.models.items())
                ]
            }
        )


def _add_work(app: FastAPI, service: Service) -> None:
    worker, store = service.worker, service.store

    @app.post("/v1/separate", **documents.SEPARATE)
    async def separate(request: Request) -> Response:
        job = await service.accept(request, for_job=False)

        def end() -> None:
            worker.drop(job)
            store.discard(job)

        def is_late() -> bool:
            return job.finished is not None and time.time() > job.finished + service.limits.keep

        try:
            # An error before the first sample has a status of its own.
            while not job.is_over and job.written <= WAV_HEADER:
                if await request.is_disconnected():
                    raise gone()
                await anyio.sleep(PAUSE)
            if job.is_over and job.state != "done":
                raise job.error or ServeError(503, "The job was cancelled.", 10)
        except BaseException:
            end()
            raise
        headers = {"flowsep-warnings": _short(job.warnings)}
        if not job.streams and len(job.stems) > 1:
            headers |= _named("stems.zip")
            return Streamed(zipped(job.stems), end, is_late, media_type="application/zip", headers=headers)
        content = growing(job, request) if job.streams else _whole(job.stems[0])
        media_type = MEDIA_TYPES[job.order.format]
        headers |= _named("result." + job.order.format)
        return Streamed(content, end, is_late, media_type=media_type, headers=headers)

    @app.post("/v1/jobs", **documents.NEW_JOB)
    async def new_job(request: Request) -> Response:
        job = await service.accept(request, for_job=True)
        if await request.is_disconnected():  # nobody knows the name of this job
            worker.drop(job)
            store.discard(job)
            raise gone()
        place = {"location": f"/v1/jobs/{job.id}"}
        return JSONResponse(service.described(job), 202, place)

    @app.get("/v1/jobs/{job}", **documents.JOB)
    async def one_job(job: str) -> Response:
        return JSONResponse(service.described(store.get(job)))

    @app.get("/v1/jobs/{job}/events", **documents.EVENTS)
    async def job_events(job: str) -> Response:
        found = store.get(job)
        return StreamingResponse(
            events(found, lambda: service.described(found)), media_type="text/event-stream"
        )

    @app.get("/v1/jobs/{job}/stems.zip", **documents.ZIP)
    async def all_stems(job: str) -> Response:
        found = store.get(job)
        found.stem(found.stems[0].name)  # they are there
        found.fetched.update(stem.name for stem in found.stems)
        return _sent(found, zipped(found.stems), "application/zip", _named("stems.zip"))

    @app.get("/v1/jobs/{job}/stems/{name}", **documents.STEM)
    async def one_stem(job: str, name: str) -> Response:
        found = store.get(job)
        stem = found.stem(name)
        found.fetched.add(stem.name)
        headers = _named(stem.name) | {"content-length": str(stem.path.stat().st_size)}
        return _sent(found, _whole(stem), MEDIA_TYPES[found.order.format], headers)

    @app.delete("/v1/jobs/{job}", **documents.DELETE)
    async def delete_job(job: str) -> Response:
        found = store.get(job)
        worker.drop(found)
        store.discard(found)
        return Response(status_code=204)


def _sent(job: Job, content: Any, media_type: str, headers: dict[str, str]) -> Response:
    """An answer that breaks off when the job goes: a file that is open would keep its disk."""
    return Streamed(content, lambda: None, lambda: job.is_discarded, media_type=media_type, headers=headers)


async def _whole(stem: Stem) -> AsyncIterator[bytes]:
    async with await anyio.open_file(stem.path, "rb") as file:
        while content := await file.read(1 << 18):
            yield content


def _short(sentences: Sequence[str]) -> str:
    """The first sentences, cut at 200 characters, as a JSON list in ASCII that proxies take for a header."""
    content = "[]"
    for count in range(len(sentences) + 1):
        longer = json.dumps([sentence[:200] for sentence in sentences[:count]])
        if len(longer) > LONGEST_HEADER:
            break
        content = longer
    return content


def _named(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}
