"""A Ray cluster, found or started, and the devices that it has for workers."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import click

from flowsep_runtime.app.console import Function, one_line, options
from flowsep_runtime.errors import BackendError, OptionError

LOCAL = "local"
OBJECT_STORE = 200 << 20  # bytes; Ray puts on the disk what is beyond


@dataclass(frozen=True)
class Device:
    """Processors and GPUs that Ray keeps free for one worker."""

    cpus: float
    gpus: float


def device_options(of: str) -> Callable[[Function], Function]:
    """The options for what each worker takes; `of` is the command's word for it."""
    return options(
        click.option(
            "--cpus",
            type=click.IntRange(min=1),
            help=f"Processors of a {of}, and its threads.  [default: all of a node; 1 beside a GPU]",
        ),
        click.option(
            "--gpus",
            type=click.FloatRange(min=0, min_open=True),
            help=f"GPUs of a {of}; 0.5 lets two share one.  [default: 1 where there are GPUs]",
        ),
    )


def set_up_ray(address: str) -> None:
    """Sets the variables that Ray reads when it is imported."""
    # Ray would report to its makers; a cluster that others started has its own setting.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A thread of Ray Serve's that asks something after the end would start another cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if address == LOCAL:
        # Nobody else on this machine or its network may use it, and its token is in no file.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray would give its workers only what other programs leave.
        os.environ.setdefault("RAY_worker_niceness", "0")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a Ray cluster, or one of this process's own that ends with the block.

    Raises:
        OptionError: If there is none at the address.
        BackendError: If it does not start.
    """
    import ray

    from flowsep_runtime.processors import usable_processors

    of_our_own: dict[str, Any] = {}
    if address == LOCAL:
        of_our_own = {
            "num_cpus": usable_processors(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    # Ray puts others in their place, which end the process on the spot.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, log_to_driver=False, logging_level="ERROR", **of_our_own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionError(f"There is no Ray cluster at {address}: {error}") from None
    except Exception as error:  # Ray knows no other name for a start that takes too long
        raise BackendError(f"Ray does not start: {one_line(str(error))}") from None
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        with redirect_stdout(sys.stderr):  # where Ray's own messages belong
            yield
    finally:
        ray.shutdown()


def devices(backend: str, cpus: int | None, gpus: float | None, workers: int | None) -> list[Device]:
    """One device for each worker of the cluster.

    Args:
        backend: "auto" takes GPUs where there are any.
        cpus: Processors of a worker; None is all of a node, or one beside a GPU.
        gpus: GPUs of a worker, or a part of one; None is one.
        workers: Their number; None is as many as the nodes that are there hold.

    Raises:
        OptionError: If no node holds one.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_gpu = any(node.get("GPU", 0) > 0 for node in nodes)
    found = []
    if gpus is not None or backend in ("cuda", "tensorrt") or (backend == "auto" and has_gpu):
        device = Device(cpus or 1, gpus or 1)
        for node in nodes:
            count = min(node.get("GPU", 0) / device.gpus, node.get("CPU", 0) / device.cpus)
            found += [device] * int(count + 1e-6)
    else:
        for node in nodes:
            here = int(node.get("CPU", 0))
            each = cpus or here
            found += [Device(each, 0)] * (here // each if each else 0)
    if not found:
        raise OptionError("No node has what a worker needs: give fewer --cpus or --gpus.")
    return found if workers is None else list(islice(cycle(found), workers))
