"""`flowsep-eval`: test sets, and scores of models."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flowsep_runtime import __version__
from flowsep_runtime.app.console import (
    FILE,
    SETTINGS,
    backend_options,
    bundle_option,
    run,
    separation_options,
)
from flowsep_runtime.errors import FlowSepWarning, shown
from flowsep_runtime.options import KINDS, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flowsep_eval.builder import Phrasings
    from flowsep_runtime.options import OptionFields

PROGRAM = "flowsep-eval"


@click.group(name=PROGRAM, context_settings=SETTINGS)
@click.version_option(__version__, prog_name=PROGRAM)
def command() -> None:
    """Make test sets of recordings, and measure on them how well a model separates."""


@command.command()
@click.option("--sounds", type=FILE, required=True, help="Recordings, as flowsep-train takes them.")
@click.option("--captions", type=FILE, required=True, help="Table of label, caption, use (tab-separated).")
@click.option("-o", "--output", type=FILE, required=True, help="Folder of the test set.")
@click.option("--split", type=click.Choice(["train", "test"]), default="train", help="Recordings to mix.")
@click.option("--count", type=click.IntRange(1), default=300, help="Number of queries.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.24, help="Length of a mixture.")
@click.option(
    "--loudness",
    type=click.FloatRange(-60, 60),
    default=0.0,
    help="Level of the target against the other sound, in dB.",
)
@click.option(
    "--phrasings",
    type=click.Choice(["trained", "held-out"]),
    default="trained",
    help="Captions that become queries.",
)
@click.option("--absent", is_flag=True, help="Ask for sounds that are not in the mixture.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of all random choices.")
@click.option("--force", is_flag=True, help="Replace an existing test set.")
def build(
    sounds: Path,
    captions: Path,
    output: Path,
    split: str,
    count: int,
    seconds: float,
    loudness: float,
    phrasings: Phrasings,
    absent: bool,
    seed: int,
    force: bool,
) -> None:
    """Make a test set: mixtures of two classes, every class queried equally often."""
    from flowsep_eval.builder import MANIFEST, Recipe, build_test_set

    recipe = Recipe(count, seconds, loudness, absent, seed)
    with _progress_bar("mixing", count) as progress:
        left_out = build_test_set(sounds, captions, output, split, phrasings, recipe, force, progress)
    if left_out:
        _warn(f"{shown(captions)} has no {phrasings} caption for {', '.join(left_out)}: left out.")
    click.echo(f"{shown(output / MANIFEST)}: {count} mixtures of {seconds:g} s")


@command.command(name="run")
@click.argument("manifests", metavar="MANIFEST...", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Folder of the report.")
@bundle_option
@separation_options
@backend_options
@click.option("--limit", type=click.IntRange(1), help="Score only the first queries of each manifest.")
@click.option(
    "--clap",
    type=FILE,
    help="Also compute CLAPScore and FAD, with the CLAP checkpoint (transformers) in this folder.",
)
@click.option("--no-ceiling", is_flag=True, help="Do not score the ceilings, which is faster.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("--force", is_flag=True, help="Replace an existing report.")
def run_command(
    manifests: tuple[Path, ...],
    output: Path,
    bundle: str | None,
    backend: str,
    precision: Literal["exact", "fast", "auto"],
    threads: int | None,
    limit: int | None,
    clap: Path | None,
    no_ceiling: bool,
    as_json: bool,
    force: bool,
    **options: Unpack[OptionFields],
) -> None:
    """Separate every mixture of the test sets and report how well it went."""
    from flowsep_eval.clap import Clap
    from flowsep_eval.evaluation import check_audio, evaluate
    from flowsep_eval.manifest import read_manifest
    from flowsep_eval.report import closing_line, report, set_title
    from flowsep_eval.writing import about, check_folder, check_pictures, set_names, write_report
    from flowsep_runtime import Separator

    wanted = Options(**options)
    check_pictures()
    sets = dict(zip(set_names(manifests), (read_manifest(path, limit) for path in manifests), strict=True))
    check_folder(output, force)
    embedder = None if clap is None else Clap(clap)
    separator = Separator.load(bundle, backend, precision, threads)
    pipeline = separator.pipeline
    model = pipeline.manifest.model
    kinds = (
        sorted(KINDS, key=lambda kind: kind != model.default_kind) if wanted.kind is None else [wanted.kind]
    )
    resolved = [replace(wanted, kind=kind).resolved(model, pipeline.precision) for kind in kinds]
    settings = {
        **asdict(resolved[0]),
        "kinds": {found.kind: {"steps": found.steps, "solver": found.solver} for found in resolved},
        "precision": pipeline.precision,
        "threads": threads,
        "limit": limit,
        "clap": None if clap is None else str(clap),
        "ceiling": not no_ceiling,
    }
    total = sum(len(items) for items in sets.values())
    with _remarks():
        with _progress_bar("reading", total) as progress:
            for items in sets.values():
                check_audio(items, progress)
        scores, asked = {}, {}
        with _progress_bar("evaluating", total * len(kinds)) as progress:
            for name, items in sets.items():
                for found in resolved:
                    title = set_title(name, found.kind, kinds)
                    asked[title] = found
                    scores[title] = evaluate(
                        separator,
                        items,
                        ceiling=not no_ceiling,
                        clap=embedder,
                        progress=progress,
                        **found.fields(),
                    )
        facts = about(separator, settings, dict(zip(sets, manifests, strict=True)))
        write_report(output, scores, facts, separator, asked)
    if as_json:
        content = report(scores, facts)
        for found in content["sets"].values():
            del found["items"], found["queries"]
        click.echo(json.dumps({"report": str(output)} | content))
    else:
        click.echo(closing_line(scores))
        click.echo(f"{shown(output)}: report.md, report.json, classes.png, examples.png")


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, "There is not enough memory for these mixtures: give shorter ones.")


def _warn(sentence: str) -> None:
    click.echo(f"{PROGRAM}: warning: {sentence}", err=True)


@contextmanager
def _remarks() -> Iterator[None]:
    """Print every warning once, at the end, when there is no progress bar."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FlowSepWarning)
        yield
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        _warn(sentence)


@contextmanager
def _progress_bar(label: str, length: int) -> Iterator[Callable[[], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, show_pos=True, show_eta=True) as bar:
        yield lambda: bar.update(1)


if __name__ == "__main__":
    main()
