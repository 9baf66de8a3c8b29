"""`flowsep-serve`: the API and the page."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import click

from flowsep_runtime import __version__
from flowsep_runtime.app.console import FILE, SETTINGS, backend_options, options, run
from flowsep_runtime.errors import OptionError
from flowsep_serve.addresses import hosts_for, is_loopback
from flowsep_serve.limits import Limits

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
@click.option("--api-key-file", type=FILE, help="Keys, one per line; requests must then give one of them.")
@click.option("--insecure", is_flag=True, help="Let other machines in without a key.")
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
    api_key_file: Path | None,
    insecure: bool,
    **limits: Any,
) -> None:
    """Serve separation over HTTP: a page at /, and an API below /v1 that /openapi.json describes."""
    if not (is_loopback(host) or api_key_file or insecure):
        raise OptionError(
            f"{host} can be reached from other machines: give --api-key-file, or --insecure if everybody may "
            "use it."
        )
    # Imported here, so that --help answers at once.
    try:
        from flowsep_serve.api import create_app
        from flowsep_serve.server import Server
        from flowsep_serve.service import Service
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("flowsep_serve", "flowsep_runtime"):
            raise
        raise OptionError("The server needs FastAPI, run: pip install 'flowsep-engine[serve]'.") from None
    from flowsep_runtime.separator import Separator
    from flowsep_serve.guard import Rules, read_keys
    from flowsep_serve.models import Models

    keys = () if api_key_file is None else read_keys(api_key_file)
    models = Models(bundle, bundle_dir, lambda path: Separator.load(path, backend, precision, threads))
    listener = _listen(host, port)
    rules = Rules(keys, hosts_for(host, keys))
    service = Service(
        models, Limits(**limits), rules, tell=lambda sentence: click.echo(f"{PROGRAM}: {sentence}", err=True)
    )
    try:
        service.worker.start()
        service.worker.wait_until_ready()
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"{PROGRAM}: http://{shown}:{listener.getsockname()[1]}")
        Server(create_app(service), service).run([listener])
    finally:
        service.close()
        listener.close()
        if sys.exc_info()[0] is None and service.worker.is_alive:
            # Python would end the model's libraries under the thread that is inside of them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        OptionError: If the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"{host} port {port} cannot be had ({reason}): give another --port or --host."
        ) from None


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, WITHOUT_MEMORY)


if __name__ == "__main__":
    main()
