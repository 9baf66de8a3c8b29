"""Models in the processes of a Ray cluster: the replicas of a deployment of Ray Serve.

The server in front keeps requests, jobs and results as it does without a cluster. It hands a job to the
deployment, which gives it to a replica that is free, and sends back what becomes known. Ray Serve starts and
ends replicas with the number of jobs that were handed to it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from flowsep_batch.cluster import Device
from flowsep_runtime import __version__
from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import BackendError, FlowSepWarning, OutputError
from flowsep_serve.decoding import Sound, read_samples
from flowsep_serve.errors import CancelledError, ServeError
from flowsep_serve.jobs import Job
from flowsep_serve.models import Blocks, Settings
from flowsep_serve.orders import Order

LOG = logging.getLogger("flowsep_serve")
DEPLOYMENT = "Replica"
AHEAD = 16  # news that a replica has not sent yet; it then waits
TRIES = 2  # replicas that may die over one job
MORE_AFTER, FEWER_AFTER = 3.0, 300.0  # seconds of more or less work until there are more or fewer replicas
LONGEST_JOB = 3600.0  # seconds that a replica which is to end has for its last job
PATIENCE = 30.0  # seconds without a replica after which that is said


@dataclass(frozen=True)
class News:
    """A message of a replica about its job; the first one is empty and says that it has begun.

    Attributes:
        progress: Steps done, and steps in all.
        warning: A sentence.
        blocks: The next piece of the results.
    """

    progress: tuple[int, int | None] | None = None
    warning: str | None = None
    blocks: Sequence[Floats] | None = None


class Replica:
    """The process that owns the models, and computes one job after the other in one thread."""

    def __init__(self, settings: Settings, version: str) -> None:
        """Opens the default model.

        Raises:
            FlowSepError: If it cannot be opened here.
        """
        if version != __version__:
            raise BackendError(f"A node has version {__version__} of this package: install {version}.")
        self._models = settings.models()
        self._thread = ThreadPoolExecutor(1, "flowsep-replica")
        self._thread.submit(self._models.open).result()

    async def separate(
        self, order: Order, sound: Sound, wanted: Sequence[int | None], samples: Sequence[Any]
    ) -> AsyncIterator[News]:
        """The course of a job. Left alone, or cancelled, it ends within a solver step.

        Args:
            order: What to make of the recording.
            sound: What it is.
            wanted: As for `Models.separated`.
            samples: References to its blocks in the cluster.
        """
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[News | None] = asyncio.Queue()
        room = threading.Semaphore(AHEAD)
        is_unwanted = threading.Event()

        def tell(each: News) -> None:
            room.acquire()
            if is_unwanted.is_set():
                room.release()  # threads that load graphs may tell too
                raise CancelledError
            loop.call_soon_threadsafe(news.put_nowait, each)

        def work() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", FlowSepWarning)
                warnings.showwarning = lambda message, *_, **__: tell(News(warning=str(message)))
                tell(News())
                read = (ray.get(each) for each in samples)
                advance: Callable[[int, int | None], None] = lambda *steps: tell(News(progress=steps))  # noqa: E731
                for blocks in self._models.separated(read, sound, order, wanted, advance):
                    tell(News(blocks=blocks))

        done = loop.run_in_executor(self._thread, work)
        done.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (each := await news.get()) is not None:
                yield each
                room.release()
            await done
        finally:
            is_unwanted.set()
            room.release()


class Replicas:
    """The owner of models on a cluster to which this process is connected."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        device: Device,
        fewest: int,
        most: int,
        tell: Callable[[str], None],
    ) -> None:
        """
        Args:
            name: Of the application in Ray Serve.
            settings: For every replica.
            device: For every replica.
            fewest: Replicas that there are at least.
            most: The largest number of replicas, and of jobs that they get at a time.
            tell: Tells the one who runs the server a sentence.
        """
        self._name, self._settings, self._device = name, settings, device
        self._fewest, self.side_by_side, self._tell = fewest, most, tell
        self._handle: Any = None
        self._is_closed = False
        self.is_computing = False  # in this process
        self._is_opening = threading.Lock()

    def open(self) -> None:
        """Deploys the application, and waits for its first replicas.

        Raises:
            BackendError: If they cannot open the model.
        """
        with self._is_opening:
            self._deploy()

    def _deploy(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"location": "NoServer"})
        self._delete_former()
        deployment = serve.deployment(
            Replica,
            name=DEPLOYMENT,
            ray_actor_options={"num_cpus": self._device.cpus, "num_gpus": self._device.gpus},
            max_ongoing_requests=1,
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=LONGEST_JOB,
            graceful_shutdown_wait_loop_s=0.5,
            # a replica that gets free is found in no more time than that
            request_router_config=RequestRouterConfig(max_backoff_s=0.1),
            autoscaling_config={
                "min_replicas": self._fewest,
                "max_replicas": self.side_by_side,
                "target_ongoing_requests": 1,
                "upscale_delay_s": MORE_AFTER,
                "downscale_delay_s": FEWER_AFTER,
                "look_back_period_s": MORE_AFTER,
                "metrics_interval_s": 1,
            },
        )
        target = serve.RunTarget(deployment.bind(self._settings, __version__), self._name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        self._wait()
        self._handle = serve.get_app_handle(self._name).options(stream=True)

    def _delete_former(self) -> None:
        """Ends the replicas of a server of this name that was killed, after what they compute."""
        while not self._is_closed:
            try:
                serve.delete(self._name)
                return
            except TimeoutError:  # after a minute
                self._tell("Replicas of a server that was killed still compute: waiting for their end.")

    def _wait(self) -> None:
        said = time.monotonic()
        while not self._is_closed:
            application = serve.status().applications[self._name]
            if application.status == ApplicationStatus.RUNNING:
                return
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                text = " ".join(
                    [application.message, *(each.message for each in application.deployments.values())]
                )
                known = re.search(r"flowsep_runtime\.errors\.\w+: (.*)", text)
                raise BackendError(known[1] if known else f"No replica starts: {text[-300:]}")
            if time.monotonic() - said > PATIENCE:
                self._tell("No replica is ready yet: waiting for a node with room.")
                said = time.monotonic()
            time.sleep(0.1)

    def blocks(self, job: Job) -> Blocks:
        """The results of a job; one whose replica dies is computed again by another one.

        Raises:
            OutputError: If neither memory nor disk of a node has room for it.
            ServeError: If that one dies too.
        """
        try:
            samples = [ray.put(block) for block in read_samples(job.folder, job.sound)]
            yield from self._tried(job, samples)
        except (ObjectStoreFullError, OutOfDiskError) as error:
            LOG.warning("A node has no room: %s", str(error).partition("\n")[0])
            raise OutputError("A node has no room for this recording.") from None

    def _tried(self, job: Job, samples: Sequence[Any]) -> Blocks:
        given = 0  # samples of each channel
        for _ in range(TRIES):
            place = 0
            try:
                for blocks in self._computed(job, samples):
                    first = min(len(blocks[0]), max(0, given - place))  # what is known from the try before
                    place += len(blocks[0])
                    if place > given:
                        given = place
                        yield [block[first:] for block in blocks]
                return
            except (ObjectStoreFullError, OutOfDiskError):
                raise
            except (RayError, RayServeException) as error:
                job.go_on()  # it may be cancelled
                job.wait_again()  # a cluster may have no other replica for long
                LOG.warning("A replica has died: %s", str(error).partition("\n")[0])
        raise ServeError(500, f"{TRIES} replicas died over this recording: is it too long for their memory?")

    def _computed(self, job: Job, samples: Sequence[Any]) -> Iterator[Sequence[Floats]]:
        answer = self._handle.separate.remote(job.order, job.sound, job.wanted, samples)
        job.on_cancel = answer.cancel
        try:
            job.go_on()  # it may have been cancelled just before
            for news in answer:
                if news.progress is not None:
                    job.advance(*news.progress)
                elif news.warning is not None:
                    if news.warning not in job.warnings:  # the try before may have told it
                        warnings.warn(news.warning, FlowSepWarning, stacklevel=1)
                elif news.blocks is not None:
                    yield news.blocks
                elif not job.has_begun:
                    job.begin()
        except RayTaskError as error:
            raise error.cause from None
        finally:
            job.on_cancel = lambda: None
            answer.cancel()

    def ready(self) -> int:
        """The replicas that run; 0 if Ray Serve does not answer."""
        try:
            application = serve.status().applications.get(self._name)
        except (RayError, RayServeException):
            return 0
        deployment = application.deployments.get(DEPLOYMENT) if application else None
        return deployment.replica_states.get("RUNNING", 0) if deployment else 0

    def close(self) -> None:
        """Ends the replicas, if Ray Serve answers."""
        self._is_closed = True
        # The connection ends next, which under a thread that uses it may be the end of the process.
        self._is_opening.acquire(timeout=PATIENCE)
        # Its threads outlive the connection, and would tell of their own failure.
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        if not ray.is_initialized():
            return
        try:
            serve.delete(self._name)
        except (RayError, RayServeException, TimeoutError) as error:  # it may not even have begun
            LOG.warning("The replicas could not be ended: %s", str(error).partition("\n")[0])
