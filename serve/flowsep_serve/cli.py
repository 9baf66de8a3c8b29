"""`flowsep-serve`: the API and the page."""

from __future__ import annotations

import errno
import importlib
import os
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from flowsep_batch.cluster import LOCAL, connected, device_options, devices, set_up_ray
from flowsep_runtime import __version__
from flowsep_runtime.app.console import FILE, SETTINGS, backend_options, options, run
from flowsep_runtime.errors import OptionError
from flowsep_serve.addresses import hosts_for, is_loopback
from flowsep_serve.limits import Limits

if TYPE_CHECKING:
    from flowsep_serve.models import Settings
    from flowsep_serve.worker import Owner

PROGRAM = "flowsep-serve"
WITHOUT_MEMORY = "There is not enough memory for this model: give a smaller one."

#: A switch for every field of `Limits`.
limit_options = options(
    *(
        click.option(
            f"--{limit.name.replace('_', '-')}",
            type=click.IntRange(min=1),
            default=limit.default,
            metavar=limit.metadata["unit"],
            help=limit.metadata["help"],
        )
        for limit in fields(Limits)
    )
)


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 is any that is free."
)
@click.option(
    "--bundle",
    type=FILE,
    help="Folder that flowsep-export wrote.  [default: the model that ships with the package]",
)
@click.option("--bundle-dir", type=FILE, help="Folder of bundles that requests may name.")
@backend_options
@click.option(
    "--alone",
    is_flag=True,
    help="Compute one request after the other on a GPU too, where several go through the model together.",
)
@click.option("--api-key-file", type=FILE, help="Keys, one per line; requests must then give one of them.")
@click.option("--insecure", is_flag=True, help="Let other machines in without a key.")
@click.option(
    "--ray",
    "cluster",
    is_flag=False,
    flag_value=LOCAL,
    metavar="[ADDRESS]",
    help="Compute in replicas on a Ray cluster: an address, auto for the one of this machine, or local (as "
    "without an address) for a new one here.",
)
@click.option("--min-replicas", type=click.IntRange(min=1), help="Replicas that always run.  [default: 1]")
@click.option(
    "--max-replicas",
    type=click.IntRange(min=1),
    help="Replicas that run when there is work for them.  [default: one for each GPU, or for each node]",
)
@device_options("replica")
@limit_options
@click.version_option(__version__, prog_name=PROGRAM)
def command(
    host: str,
    port: int,
    bundle: Path | None,
    bundle_dir: Path | None,
    backend: str,
    precision: Literal["exact", "fast", "auto"],
    threads: int | None,
    alone: bool,
    api_key_file: Path | None,
    insecure: bool,
    cluster: str | None,
    min_replicas: int | None,
    max_replicas: int | None,
    cpus: int | None,
    gpus: float | None,
    **limits: Any,
) -> None:
    """Serve separation over HTTP: a page at /, and an API below /v1 that /openapi.json describes."""
    if not (is_loopback(host) or api_key_file or insecure):
        raise OptionError(
            f"{host} can be reached from other machines: give --api-key-file, or --insecure if everybody may "
            "use it."
        )
    if cluster is not None:
        set_up_ray(cluster)
    # Imported here, so that --help answers at once.
    try:
        from flowsep_serve.api import create_app
        from flowsep_serve.server import Server
        from flowsep_serve.service import Service
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("flowsep_serve", "flowsep_runtime"):
            raise
        raise OptionError("The server needs FastAPI, run: pip install 'flowsep-engine[serve]'.") from None
    from flowsep_serve.guard import Rules, read_keys
    from flowsep_serve.models import Settings

    def tell(sentence: str) -> None:
        click.echo(f"{PROGRAM}: {sentence}", err=True)

    if cluster is None and (min_replicas or max_replicas or cpus or gpus):
        raise OptionError("Replicas, and what they take, are for a cluster: add --ray.")
    keys = () if api_key_file is None else read_keys(api_key_file)
    settings = Settings(bundle, bundle_dir, backend, precision, threads, alone)
    out = sys.stdout  # the cluster's own messages go elsewhere
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        port = listener.getsockname()[1]
        models = settings.models()
        owner: Owner | None = None
        if cluster is not None:
            tell("connecting to Ray, and starting replicas.")
            stack.enter_context(_cluster(cluster))
            owner = _replicas(port, settings, cpus, gpus, min_replicas or 1, max_replicas, tell)
        else:
            tell("loading the model; the address comes when it is ready.")
        rules = Rules(keys, hosts_for(host, keys))
        service = Service(models, Limits(**limits), rules, tell=tell, owner=owner)
        try:
            service.worker.start()
            service.worker.wait_until_ready()
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"{PROGRAM}: http://{shown}:{port}", file=out)
            Server(create_app(service), service).run([listener])
        finally:
            service.close()
            cause = sys.exc_info()[1]
            by_signal = isinstance(cause, (KeyboardInterrupt, SystemExit))
            if service.worker.is_alive and (cause is None or (by_signal and owner is None)):
                _leave(cause)


def _leave(cause: BaseException | None) -> NoReturn:
    """Ends the process while a thread is inside of the model's libraries, which Python would end under it.

    Args:
        cause: What a signal has raised while the model was loaded; None at the end of the server.
    """
    code = 0
    if isinstance(cause, KeyboardInterrupt):
        click.echo(f"{PROGRAM}: interrupted.", err=True)
        code = 130
    elif isinstance(cause, SystemExit):  # of SIGTERM or SIGHUP, which has said so
        code = int(cause.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _cluster(address: str) -> AbstractContextManager[None]:
    """A connection to a cluster.

    Raises:
        OptionError: If there is none, or Ray Serve is missing.
    """
    try:
        importlib.import_module("ray.serve")
    except ImportError:
        raise OptionError("Replicas need Ray, run: pip install 'flowsep-engine[cluster]'.") from None
    return connected(address)


def _replicas(
    port: int,
    settings: Settings,
    cpus: int | None,
    gpus: float | None,
    fewest: int,
    most: int | None,
    tell: Callable[[str], None],
) -> Owner:
    """The replicas of this server on the cluster that it is connected to, not yet deployed."""
    from flowsep_serve.replicas import Replicas

    places = devices(settings.backend, cpus, gpus, None)
    device = min(places, key=lambda place: place.cpus)  # the same for all, and nodes differ
    threads = settings.threads or (int(device.cpus) if device.gpus == 0 else None)
    bundle, folder = (path and path.absolute() for path in (settings.bundle, settings.bundle_dir))
    settings = replace(settings, bundle=bundle, bundle_dir=folder, threads=threads, alone=True)
    # The one who restarts a server that was killed gets its replicas out of the way.
    name = f"flowsep-serve-{socket.gethostname()}-{port}"
    return Replicas(name, settings, device, fewest, max(fewest, most or len(places)), tell)


def _listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        OptionError: If the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise OptionError(
                f"Port {port} of {host} is in use: give another --port; 0 takes any that is free."
            ) from None
        # Python adds the address in brackets
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise OptionError(
            f"{host} port {port} cannot be had ({reason}): give another --port or --host."
        ) from None


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, WITHOUT_MEMORY)


if __name__ == "__main__":
    main()
