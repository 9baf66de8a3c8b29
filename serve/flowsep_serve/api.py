"""The HTTP API."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import CapacityLimiter
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flowsep_runtime import __version__
from flowsep_runtime.app.demo import EXAMPLE
from flowsep_runtime.audio.writing import encoding_for
from flowsep_runtime.errors import FlowSepError
from flowsep_serve import decoding, documents
from flowsep_serve.answers import MEDIA_TYPES, PAUSE, Streamed, events, growing, zipped
from flowsep_serve.errors import ServeError
from flowsep_serve.guard import Guard, Rules, answered
from flowsep_serve.jobs import Job, Store
from flowsep_serve.limits import MIB, Limits
from flowsep_serve.metrics import CONTENT_TYPE, Metrics
from flowsep_serve.models import Models
from flowsep_serve.orders import Order, read_order
from flowsep_serve.worker import Worker

PAGE = Path(__file__).parent / "page"
DECODERS = 2  # at a time
WAV_HEADER = 44  # bytes before the first sample
LARGEST_FIELD = 1 << 14  # bytes of a text field
MOST_FIELDS = 64


@dataclass
class Service:
    """Parts that the routes work with."""

    models: Models
    limits: Limits
    rules: Rules = field(default_factory=Rules)
    metrics: Metrics = field(default_factory=Metrics)
    #: Set by a signal: what runs then comes to its end, and nothing else begins.
    asked_to_end: bool = False
    on_drained: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.store = Store(self.limits)
        self.worker = Worker(self.models, self.store, self.limits, self.metrics)

    def described(self, job: Job) -> dict[str, Any]:
        """A job as JSON."""
        return job.described(self.limits.keep, self.worker.position(job))

    def close(self) -> None:
        """Stops what runs and removes everything that was kept."""
        self.worker.stop()
        self.store.close()

    async def accept(self, request: Request, for_job: bool) -> Job:
        """Reads, decodes and queues what a request brings.

        Raises:
            ServeError: If it is refused.
        """
        self.worker.admit()
        folder: Path | None = None
        try:
            # Twice: while it is read, and as the file that is decoded.
            length = request.headers.get("content-length") or self.limits.max_upload * MIB
            folder = self.store.new_folder(2 * int(length))
            order = await self._receive(request, folder, for_job)
            sound = await anyio.to_thread.run_sync(
                decoding.decode, folder, self.limits, limiter=_decoders(request)
            )
            is_single = not for_job and len(order.queries) == 1
            job = Job(folder, order, sound, is_single)
            # 8 bytes a sample at most, and the samples themselves.
            self.store.reserve(folder.name, sound.bytes * (1 + 2 * len(job.stems)))
            self._check(order, sound)
        except BaseException:
            self.worker.leave()
            if folder is not None:
                self.store.remove(folder.name)
            raise
        if for_job:
            self.store.add(job)
        self.worker.put(job)
        return job

    async def _receive(self, request: Request, folder: Path, for_job: bool) -> Order:
        """Takes the form apart: the recording into a file of the server's own, the fields into an order."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ServeError(415, "Send a form (multipart/form-data) with a recording and a query.")
        with anyio.move_on_after(self.limits.upload_time) as timer:
            try:
                form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=LARGEST_FIELD)
            except ClientDisconnect:
                raise gone() from None
        if timer.cancelled_caught:
            raise ServeError(408, f"The upload took more than {self.limits.upload_time} s.")
        try:
            fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
            files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            if [name for name, _ in files] != ["recording"]:
                raise ServeError(422, "There is no recording: send one file in the field 'recording'.")
            order = read_order(fields, self.models, self.limits)
            if for_job and order.remove:
                raise ServeError(422, "remove is for /v1/separate: a job has the rest among its stems.")
            upload = files[0][1]
            await anyio.to_thread.run_sync(_copy, upload, folder / decoding.UPLOAD)
        finally:
            await form.close()
        return order

    def _check(self, order: Order, sound: decoding.Sound) -> None:
        """Refuses now what the worker would refuse later.

        Raises:
            ServeError: If an option does not suit the model, or the format the recording.
        """
        manifest = self.models[order.model]
        try:
            options = order.options.resolved(manifest.model, "exact")
            encoding_for(Path(f"The result.{order.format}"), sound, order.clip_mode)
        except FlowSepError as error:
            raise ServeError(422, str(error)) from None
        if options.steps > self.limits.max_steps:
            raise ServeError(413, f"There are more than {self.limits.max_steps} steps: ask for fewer.")

    async def tidy(self) -> None:
        """Lets jobs expire, for ever."""
        while True:
            self.worker.drop_late()
            await anyio.to_thread.run_sync(self.store.expire)
            await anyio.sleep(1)

    async def end(self) -> None:
        """Waits until the server is asked to end, then for what runs, then for those who want its result."""
        while not self.asked_to_end:
            await anyio.sleep(PAUSE)
        wanted = [job for job in self.store.all() if job is self.worker.running]
        self.worker.drain()
        while not self.worker.is_idle:
            await anyio.sleep(PAUSE)
        with anyio.move_on_after(self.limits.grace):
            while not all(job.is_fetched or job.state != "done" for job in wanted):
                await anyio.sleep(PAUSE)
        self.on_drained()


def gone() -> ServeError:
    """The end of a request that nobody waits for any more; nobody reads it either."""
    return ServeError(499, "The client has gone.")


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)


def _decoders(request: Request) -> CapacityLimiter:
    limiter: CapacityLimiter = request.app.state.decoders
    return limiter


def create_app(service: Service) -> Guard:
    """The application of a service whose worker has been started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.decoders = CapacityLimiter(DECODERS)
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
    async def of_http(_: Request, error: HTTPException) -> Response:
        sentence = {404: "There is nothing here.", 405: "This address does not take this method."}
        return JSONResponse({"error": sentence.get(error.status_code, f"{error.detail}")}, error.status_code)

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
        metrics.running.set(worker.running is not None)
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
        if not job.streams and len(job.stems) > 1:
            return Streamed(zipped(job.stems), end, media_type="application/zip", headers=_named("stems.zip"))
        content = growing(job, request) if job.streams else _whole(job)
        media_type = MEDIA_TYPES[job.order.format]
        return Streamed(content, end, media_type=media_type, headers=_named("result." + job.order.format))

    @app.post("/v1/jobs", **documents.NEW_JOB)
    async def new_job(request: Request) -> Response:
        job = await service.accept(request, for_job=True)
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
        found.is_fetched = True
        return StreamingResponse(
            zipped(found.stems), media_type="application/zip", headers=_named("stems.zip")
        )

    @app.get("/v1/jobs/{job}/stems/{name}", **documents.STEM)
    async def one_stem(job: str, name: str) -> Response:
        found = store.get(job)
        stem = found.stem(name)
        found.is_fetched = True
        media_type = MEDIA_TYPES[found.order.format]
        return FileResponse(stem.path, media_type=media_type, filename=stem.name)

    @app.delete("/v1/jobs/{job}", **documents.DELETE)
    async def delete_job(job: str) -> Response:
        found = store.get(job)
        worker.drop(found)
        store.discard(found)
        return Response(status_code=204)


async def _whole(job: Job) -> AsyncIterator[bytes]:
    async with await anyio.open_file(job.stems[0].path, "rb") as file:
        while content := await file.read(1 << 18):
            yield content


def _named(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}
