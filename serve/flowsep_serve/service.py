"""The service behind the routes: what a request brings becomes a job; and an orderly end of the server."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import CancelScope, CapacityLimiter
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from flowsep_runtime.audio.writing import encoding_for
from flowsep_runtime.errors import FlowSepError
from flowsep_serve import decoding
from flowsep_serve.answers import PAUSE
from flowsep_serve.errors import ServeError, full_disk, is_full_disk
from flowsep_serve.guard import Rules
from flowsep_serve.jobs import Job, Store
from flowsep_serve.limits import MIB, Limits
from flowsep_serve.metrics import Metrics
from flowsep_serve.models import Models
from flowsep_serve.orders import Order, read_order
from flowsep_serve.worker import Owner, Worker, stopping

LOG = logging.getLogger("flowsep_serve")
DECODERS = 2  # at a time
LARGEST_FIELD = 1 << 14  # bytes of a text field
MOST_FIELDS = 64
AT_ONCE = "A second signal (Ctrl-C) ends at once."


@dataclass
class Service:
    """Parts that the routes work with."""

    models: Models
    limits: Limits
    rules: Rules = field(default_factory=Rules)
    metrics: Metrics = field(default_factory=Metrics)
    #: Tells the one who runs the server a sentence.
    tell: Callable[[str], None] = LOG.info
    #: Set by a signal: what runs then comes to its end, and nothing else begins.
    asked_to_end: bool = False
    on_drained: Callable[[], None] = lambda: None
    #: Computes in the place of `models`, whose manifests are read all the same.
    owner: Owner | None = None

    def __post_init__(self) -> None:
        self.store = Store(self.limits)
        self.worker = Worker(self.owner or self.models, self.store, self.limits, self.metrics)
        self.models.on_run = self.metrics.rows.observe
        self._uploads: set[CancelScope] = set()

    def begin(self) -> None:
        """Makes what belongs to the event loop that runs."""
        self._decoders = CapacityLimiter(DECODERS)

    def described(self, job: Job) -> dict[str, Any]:
        """A job as JSON."""
        return job.described(self.limits.keep, self.worker.position(job))

    def close(self) -> None:
        """Stops what runs and removes everything that was kept."""
        decoding.stop()
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
            length = self._length(request)
            folder = self.store.new_folder(length)
            order = await self._receive(request, folder, for_job)
            job = await self._job(folder, order, for_job, length)
        except BaseException as error:
            self.worker.leave()
            if folder is not None:
                self.store.remove(folder.name)
            if self.worker.is_draining and isinstance(error, Exception):
                raise stopping() from None
            if is_full_disk(error):
                raise full_disk() from None
            raise
        if for_job:
            self.store.add(job)
        self.worker.put(job)
        return job

    def _length(self, request: Request) -> int:
        """Bytes of disk that an upload takes: once while it is read, and once as the file that is decoded."""
        given = request.headers.get("content-length")
        if given is not None:
            return 2 * int(given)
        return min(2 * self.limits.max_upload, self.limits.max_disk) * MIB

    async def _receive(self, request: Request, folder: Path, for_job: bool) -> Order:
        """Takes the form apart: the recording into a file of the server's own, the fields into an order."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ServeError(415, "Send a form (multipart/form-data) with a recording and a query.")
        with anyio.move_on_after(self.limits.upload_time) as timer:
            self._uploads.add(timer)
            try:
                form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=LARGEST_FIELD)
            except ClientDisconnect:
                raise gone() from None
            except HTTPException as error:  # Starlette's sentences end as they like
                raise ServeError(422, f"The form cannot be read: {error.detail.rstrip('.')}.") from None
            finally:
                self._uploads.discard(timer)
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

    async def _job(self, folder: Path, order: Order, for_job: bool, length: int) -> Job:
        """Decodes the upload of a folder, whose results are promised their room before."""
        is_single = not for_job and len(order.queries) == 1
        stems = 1 if is_single else len(order.queries) + 1

        def reserve(samples: int, upload: int = length) -> None:
            # The samples themselves, and 8 bytes of a result for each at most.
            self.store.reserve(folder.name, upload + samples * (4 + 8 * stems))

        def decoded() -> decoding.Sound:
            if self.worker.is_draining:  # while this waited for its turn
                raise stopping()
            return decoding.decode(folder, self.limits, reserve)

        sound = await anyio.to_thread.run_sync(decoded, limiter=self._decoders)
        reserve(sound.frames * sound.channels, 0)
        self._check(order, sound)
        clip = self.models[order.model].model
        # A shorter one is computed in one piece: there is nothing to send before its end.
        is_long = sound.seconds > clip.clip_samples / clip.sample_rate
        return Job(folder, order, sound, is_single, streams=is_single and is_long and order.format == "wav")

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
            try:
                self.worker.drop_late()
                await anyio.to_thread.run_sync(self.store.expire)
            except Exception:
                LOG.exception("Old jobs could not be removed; the next try is in a second.")
            await anyio.sleep(1)

    async def end(self) -> None:
        """Waits until the server is asked to end, then for what runs, then for those who want its result."""
        while not self.asked_to_end:
            await anyio.sleep(PAUSE)
        self.worker.drain()
        for upload in list(self._uploads):
            upload.cancel()
        decoding.stop()
        running = self.worker.running
        if running:
            self.tell(f"What runs is finished before the end. {AT_ONCE}")
        while not self.worker.is_idle:
            await anyio.sleep(PAUSE)
        results = [job for job in running if job in self.store.all() and job.state == "done"]
        if results:
            self.tell(f"The results can be fetched for {self.limits.grace} s more. {AT_ONCE}")
            with anyio.move_on_after(self.limits.grace):
                while not all(job.is_fetched for job in results):
                    await anyio.sleep(PAUSE)
        self.on_drained()


def gone() -> ServeError:
    """The end of a request that nobody waits for any more; nobody reads it either."""
    return ServeError(499, "The client has gone.")


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)
