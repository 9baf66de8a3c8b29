"""`flowsep-export`: converts a checkpoint to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowsep_export.tensorrt.options import EngineRequest, engine_options
from flowsep_runtime import __version__
from flowsep_runtime.app.console import FILE, SETTINGS, run
from flowsep_runtime.bundle.model_entry import MOST_EXPONENT, words_of
from flowsep_runtime.errors import OptionError, shown
from flowsep_runtime.options import KINDS, Kind
from flowsep_runtime.solvers import SOLVERS, solver_taking

if TYPE_CHECKING:
    from flowsep_export.export import Source
    from flowsep_ref import FlowSep
    from flowsep_runtime.backends.axes import Range

PROGRAM = "flowsep-export"
PUBLISHED = "published"
PUBLISHED_PLACE = Path("model_logs/pretrained/v2_100k.ckpt")
EXAMPLE = Path("examples/mix.wav")
FAST_STEPS, FAST_SOLVER = 4, "euler-start"  # see docs/benchmarks.md, Quality


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option(
    "--checkpoint",
    metavar="PATH|published",
    help=f"A .ckpt or .safetensors file, a folder with model.safetensors, or 'published': download it.  "
    f"[default: pretrained_ckpt of --config, {PUBLISHED_PLACE} if it is there, or the model that ships with "
    "the package]",
)
@click.option(
    "--config",
    type=FILE,
    help="YAML of the model's sizes.  [default: the checkpoint's own, or the published sizes]",
)
@click.option(
    "--tokenizer",
    metavar="FILE|FOLDER|NAME",
    help="tokenizer.json, a folder with one, or a name on the Hugging Face hub.  "
    "[default: the checkpoint's own, or google/flan-t5-large]",
)
@click.option("-o", "--output", type=FILE, help="The bundle.  [default: bundles/NAME or bundles/NAME-fp16]")
@click.option(
    "--fp16", is_flag=True, help="Half precision, with float32 where half overflows or loses accuracy."
)
@click.option(
    "--recording",
    type=FILE,
    help=f"A mixture to calibrate and verify on.  [default: {EXAMPLE} if it is there, else a synthetic one]",
)
@click.option(
    "--no-verify", is_flag=True, help="Write the bundle without measuring it against the reference."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=20,
    help="Solver steps that flowsep-run takes with this bundle by default.",
)
@click.option(
    "--fast-steps", type=click.IntRange(1), default=FAST_STEPS, help="The same for --precision fast."
)
@click.option(
    "--fast-solver",
    type=click.Choice(list(SOLVERS)),
    default=FAST_SOLVER,
    help="Solver that --precision fast takes by default.",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="generated",
    help="The result that this bundle gives by default.",
)
@click.option(
    "--complement",
    metavar="SENTENCE",
    help="Query for everything but a sound: 'everything except {query}'.  "
    "[default: none, the model was not trained for one]",
)
@click.option(
    "--masked-steps", type=click.IntRange(1), help="Solver steps for masked results.  [default: as for all]"
)
@click.option(
    "--masked-solver",
    type=click.Choice(list(SOLVERS)),
    help="Solver for masked results; mean is one evaluation.  [default: as for all]",
)
@click.option(
    "--mask-exponent",
    type=click.FloatRange(0, MOST_EXPONENT, min_open=True),
    default=1.0,
    help="Power of the magnitudes in the mask of a sound and its complement.",
)
@click.option(
    "--captions",
    type=FILE,
    multiple=True,
    help="Table of label, caption, use that the model was trained on; may be repeated. flowsep-run warns of "
    "words that no caption has.  [default: none, it warns of no word]",
)
@engine_options
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.version_option(__version__, prog_name=PROGRAM)
def command(
    checkpoint: str | None,
    config: Path | None,
    tokenizer: str | None,
    output: Path | None,
    fp16: bool,
    recording: Path | None,
    no_verify: bool,
    steps: int,
    fast_steps: int,
    fast_solver: str,
    kind: Kind,
    complement: str | None,
    masked_steps: int | None,
    masked_solver: str | None,
    mask_exponent: float,
    captions: tuple[Path, ...],
    tensorrt: bool,
    bundle: Path | None,
    batch: Range | None,
    frames: Range | None,
    builder_level: int,
    workspace: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export a FlowSep model, stage by stage, to a bundle of ONNX graphs that flowsep-run runs.

    Every stage is verified against PyTorch; beyond tolerance nothing is written.
    """
    if complement is not None and complement.count("{query}") != 1:
        raise OptionError("--complement must have {query} in the sound's place, once.")
    _masked(masked_steps, masked_solver, steps)
    heard = recording or (EXAMPLE if EXAMPLE.is_file() else None)
    request = EngineRequest(batch, frames, builder_level, workspace, heard, not no_verify)
    if tensorrt:
        request.check()
    if not no_verify:
        _require_a_runtime()
    if bundle is not None:
        if checkpoint is not None or not tensorrt:
            raise OptionError(
                "--bundle takes engines for a bundle that is there: give it with --tensorrt alone."
            )
        answer = request.build(bundle)
        if as_json:
            click.echo(json.dumps(answer.content()))
        else:
            answer.show()
        return
    from flowsep_export.bundle import check_destination
    from flowsep_export.export import export_bundle
    from flowsep_export.report import export_progress, print_report

    started = time.monotonic()
    path = _checkpoint_path(checkpoint, config)
    name = _name(path)
    if output is None:
        output = Path("bundles") / (f"{name}-fp16" if fp16 else name)
    check_destination(output, force)
    source = _source(path, name, config, tokenizer, recording)
    with export_progress() as progress:
        manifest = export_bundle(
            source,
            output,
            half=fp16,
            verified=not no_verify,
            force=force,
            defaults={
                "default_steps": steps,
                "fast_steps": min(fast_steps, steps),
                "fast_solver": fast_solver,
                "default_kind": kind,
                "complement": complement,
                "mask_exponent": mask_exponent,
                "words": _words(captions),
                **_masked(masked_steps, masked_solver, steps),
            },
            progress=progress,
        )
    engines = request.build(output, source.model) if tensorrt else None
    seconds = time.monotonic() - started
    if as_json:
        content = asdict(manifest)
        kept = {key: content[key] for key in ("name", "precision", "stages", "ranges", "provenance")}
        kept |= {} if engines is None else {"engines": engines.content()}
        click.echo(json.dumps({"bundle": str(output), "seconds": round(seconds, 1)} | kept))
        return
    if no_verify:
        click.echo("not verified: the bundle was not measured against the reference")
    else:
        print_report(manifest)
    size = sum(file.bytes for file in manifest.files()) / 1e6
    click.echo(f"{shown(output)}: {manifest.precision}, {size:.0f} MB, {seconds:.0f} s")
    if engines is not None:
        engines.show()


def _require_a_runtime() -> None:
    """Before hours of work are spent: what is exported is verified on ONNX Runtime."""
    from flowsep_runtime.backends import why_not

    reason = why_not("cpu")
    if reason is not None:
        raise OptionError(f"An export is verified on ONNX Runtime, but {reason}; or give --no-verify.")


def _words(tables: Sequence[Path]) -> str | None:
    """The words of the captions in tables, with blanks between them, without those that were held out."""
    found: set[str] = set()
    for table in tables:
        try:
            lines = table.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{shown(table)} cannot be read as a table of captions: {error}.") from None
        for number, line in enumerate(lines, 1):
            columns = line.split("\t")
            if len(columns) < 2:
                raise OptionError(
                    f"{shown(table)}, line {number}: label and caption need a tab between them."
                )
            if number > 1 and columns[2:3] != ["held-out"]:
                found.update(words_of(columns[1]))
    return " ".join(sorted(found)) if tables else None


def _masked(masked_steps: int | None, masked_solver: str | None, steps: int) -> dict[str, object]:
    """The manifest's fields for masked results; one option alone goes with what holds for all."""
    if masked_steps is None and masked_solver is None:
        return {}
    solver = masked_solver or "euler"
    chosen = masked_steps or SOLVERS[solver].only_steps or steps
    solver_taking(solver, chosen)
    return {"masked_steps": chosen, "masked_solver": solver}


def _checkpoint_path(checkpoint: str | None, config: Path | None) -> Path:
    from flowsep_export.download import CHECKPOINT, published_checkpoint
    from flowsep_export.report import download_progress

    if checkpoint == PUBLISHED:
        with download_progress(CHECKPOINT) as progress:
            return published_checkpoint(progress)
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.exists():
            raise OptionError(
                f"There is no checkpoint {shown(path)}: give a .ckpt or .safetensors file, a folder, or "
                "'published'."
            )
        return path
    from flowsep_ref import FlowSep

    named = None if config is None else _named_in(config)
    if config is not None and named is not None:
        click.echo(f"{PROGRAM}: exporting {shown(named)}, pretrained_ckpt of {shown(config)}", err=True)
        return named
    default = PUBLISHED_PLACE if PUBLISHED_PLACE.is_file() else FlowSep.bundled_path()
    kind = (
        "the published checkpoint" if default == PUBLISHED_PLACE else "the model that ships with the package"
    )
    click.echo(f"{PROGRAM}: exporting {kind}, {shown(default)}", err=True)
    return default


def _name(path: Path) -> str:
    """The model's name: the weights of every folder of `FlowSep.save` are called alike."""
    from flowsep_ref.checkpoint import WEIGHTS

    return path.absolute().parent.name if path.name == WEIGHTS else path.stem


def _named_in(config: Path) -> Path | None:
    """The checkpoint that a published YAML says to evaluate, if it says one."""
    import yaml

    from flowsep_ref import ConfigError, FlowSepConfig
    from flowsep_ref.config import at, file_named

    try:
        FlowSepConfig.from_yaml(config)
    except ConfigError as error:
        raise OptionError(str(error)) from error
    name = at(yaml.safe_load(config.read_text(encoding="utf-8")), "pretrained_ckpt")
    found = file_named(config, name)
    if name and found is None:
        raise OptionError(
            f"{shown(config)} has pretrained_ckpt: {name}, which is not there: give --checkpoint."
        )
    return found


def _source(
    path: Path, name: str, config: Path | None, tokenizer: str | None, recording: Path | None
) -> Source:
    from flowsep_export.export import Source
    from flowsep_export.stage_inputs import read_recording, synthetic_mixture
    from flowsep_export.tokenizer import FILE, PUBLISHED, load_tokenizer
    from flowsep_ref.checkpoint import WEIGHTS
    from flowsep_runtime.bundle.checksums import remembered_sha256

    model = _model(path, config)
    own = (path if path.is_dir() else path.parent) / FILE
    is_own = own.is_file() and (path.is_dir() or path.suffix == ".safetensors")
    text = load_tokenizer(tokenizer or (own if is_own else PUBLISHED), model.config.text)
    if recording is None and EXAMPLE.is_file():
        recording = EXAMPLE
    if recording is None:
        click.echo(f"{PROGRAM}: no --recording given: calibrating on a synthetic mixture", err=True)
    sizes = model.config
    samples = (
        synthetic_mixture(sizes)
        if recording is None
        else read_recording(recording, sizes.audio.sampling_rate, sizes.clip_samples)
    )
    return Source(
        model=model,
        name=name,
        checkpoint=path,
        sha256=remembered_sha256(path / WEIGHTS if path.is_dir() else path),
        tokenizer=text,
        recording=samples,
        is_real=recording is not None,
    )


def _model(path: Path, config: Path | None) -> FlowSep:
    from flowsep_ref import CheckpointError, ConfigError, FlowSep

    try:
        return FlowSep.from_checkpoint(path, config)
    except (CheckpointError, ConfigError) as error:
        raise OptionError(str(error)) from error


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, "There is not enough memory to export this model.")


if __name__ == "__main__":
    main()
