"""Common parts of the console scripts: exit codes, and errors of one sentence."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import click

from flowsep_runtime.errors import FlowSepError, OptionError
from flowsep_runtime.options import JOININGS, KINDS, MOST_GUIDANCE, Options

Function = TypeVar("Function", bound=Callable[..., None])

#: Settings of every command.
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
FILE = click.Path(path_type=Path)


def only_one(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option that must not be repeated, where the last one would count without a word."""
    if len(values) > 1:
        raise OptionError(f"{parameter.opts[0]} takes one value: leave the others out.")
    return values[0] if values else None


def options(*each: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of --help."""

    def decorated(command: Function) -> Function:
        for option in reversed(each):
            command = option(command)
        return command

    return decorated


bundle_option = click.option(
    "--bundle",
    metavar="FOLDER|OWNER/NAME",
    help="Folder that flowsep-export wrote, or a name on the Hugging Face hub, fetched once.  "
    "[default: the model that ships with the package]",
)

backend_option = click.option(
    "--backend", default="auto", help="Backend: auto, tensorrt, cuda, openvino or cpu."
)

#: Where a model runs and how.
backend_options = options(
    backend_option,
    click.option(
        "--precision",
        type=click.Choice(["exact", "fast", "auto"]),
        default="exact",
        help="exact: float32. fast: half or bf16 where it stays close. auto: fast if the backend has it.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Threads of the backend.  [default: the backend's choice]",
    ),
)

clip_mode_option = click.option(
    "--clip-mode",
    type=click.Choice(["clamp", "rescale", "float"]),
    default="clamp",
    help="Samples beyond full scale: clamp clips them, rescale lowers the whole result, float keeps them.",
)

#: The fields of `Options`, by the same names and with the same defaults.
separation_options = options(
    click.option(
        "--kind",
        type=click.Choice(KINDS),
        help="generated: the model's own waveform, up to 8 kHz. masked: the mixture filtered by a mask.  "
        "[default: the bundle's]",
    ),
    click.option("--mono", is_flag=True, help="Separate the mean of the channels only, which is quicker."),
    click.option(
        "--steps", type=click.IntRange(min=1), help="Solver steps.  [default: the bundle's, 20 as published]"
    ),
    click.option("--seed", type=click.IntRange(min=0), default=Options.seed, help="Seed of the noise."),
    click.option("--solver", help="Solver of the flow.  [default: the bundle's, euler as published]"),
    click.option(
        "--guidance",
        type=click.FloatRange(0, MOST_GUIDANCE),
        default=Options.guidance,
        help="Guidance scale. Above 1, the difference to the result for no query, or for --negative, is "
        "exaggerated.",
    ),
    click.option("--negative", help="Query for the sounds to keep out."),
    click.option(
        "--windows",
        type=click.Choice(JOININGS),
        default=Options.windows,
        help="How the windows of a long recording are joined.",
    ),
    click.option(
        "--window",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Length of the windows; shorter ones are faster for a short recording, and less exact.  "
        "[default: the model's]",
    ),
)


def run(command: click.Command, program: str, without_memory: str) -> NoReturn:
    """Runs a command and ends the process with 0, 1 (failure), 2 (misuse), 130 (interrupted), 143
    (terminated) or 129 (hung up).

    Args:
        command: What to run, on the process's arguments.
        program: The console script's name, for messages.
        without_memory: The sentence for a machine with too little memory.
    """
    steady_streams()
    # As exceptions, so that temporary files are removed on the way out.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no terminal that could hang up
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, lambda number, _: _fail(program, "terminated.", 128 + number))
    sys.unraisablehook = _raise_again
    try:
        code = command.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail(program, "interrupted.", 130)
    except click.ClickException as error:
        _fail(program, f"{error.format_message()} (see {program} --help)", error.exit_code)
    except FlowSepError as error:
        _fail(program, str(error), error.exit_code)
    except MemoryError:
        _fail(program, without_memory, 1)
    except BrokenPipeError:
        # As other programs of a pipe do: a reader that has gone gets no message.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        _fail(program, unexpected(error), 1)
    finally:
        if getattr(sys.exc_info()[1], "code", None) in (129, 130, 143):
            _leave_by_the_next_signal()


def _leave_by_the_next_signal() -> None:
    """Lets the next signal end the process, in silence.

    All is tidied up by now, but Python waits for threads that load graphs, for seconds. An exception in that
    wait would crash the process, and what the graphs warn of is for nobody any more.
    """
    warnings.simplefilter("ignore")
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Sends a signal again whose exception was raised where it is ignored, in a finaliser."""
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = int(signal.SIGINT)
    elif isinstance(error, SystemExit) and error.code in (129, 143):
        number = int(error.code) - 128
    else:
        sys.__unraisablehook__(unraisable)
        return
    # by another thread, and later: here it would be ignored again
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def steady_streams() -> None:
    """Makes sure that standard input, output and error exist, and that every text can be written to them.

    A process may be started without them (`2>&-`, a daemon, pythonw). The next file that it opens would then
    be its standard error, and libraries in C would write their messages into it. And a console may not have
    every letter of a file's name: that letter is then escaped.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # the lowest free descriptor, which is this one
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for good
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_closed(stream: TextIO) -> bool:
    """True for a standard stream that `steady_streams` has set."""
    return getattr(stream, "name", None) == os.devnull


def unexpected(error: Exception) -> str:
    """The sentence for what this project did not foresee."""
    return f"Unexpected {type(error).__name__} ({error}): set FLOWSEP_DEBUG=1 to see where, and report it."


def one_line(sentence: str) -> str:
    """A message without line breaks, whatever it quotes."""
    return " ".join(sentence.split())


def _fail(program: str, sentence: str, code: int) -> NoReturn:
    if os.environ.get("FLOWSEP_DEBUG") == "1":
        traceback.print_exc()
    click.echo(f"{program}: {one_line(sentence)}", err=True)
    sys.exit(code)
