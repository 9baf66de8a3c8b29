"""The model of a benchmark, in every form that a contestant needs, made once and cached.

Each form has a key of its sources (sizes, seed, this project's code, PyTorch's version) and is made again
when one of them changes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import click

from benchmarks.common.progress import say
from flowsep_runtime.app.console import run
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.caches import cache_folder
from flowsep_runtime.errors import BackendError, OptionError, shown
from flowsep_runtime.separator import BUNDLED

Sizes = Literal["published", "bundled", "tiny"]

ROOT = Path(__file__).parents[2]
MADE_FROM = "made-from.txt"
SEED = 0


@dataclass(frozen=True)
class Model:
    """The folders of a model.

    Attributes:
        name: For tables.
        weights: A checkpoint that `FlowSep.from_checkpoint` takes.
        config: Its sizes (YAML), where it does not carry them.
        bundle: What flowsep-export made of it; None until `with_bundle`.
        half_bundle: The same in half precision; None until `with_half_bundle`.
        plain: A folder of one plain ONNX graph a stage; None until `with_plain_graphs`.
    """

    name: str
    weights: Path
    config: Path | None = None
    bundle: Path | None = None
    half_bundle: Path | None = None
    plain: Path | None = None

    @property
    def any_bundle(self) -> Path | None:
        """A bundle, in half precision where there is one."""
        return self.half_bundle or self.bundle


def default_work() -> Path:
    """The folder for stand-in weights and exports."""
    return cache_folder() / "benchmarks"


def choose(
    sizes: Sizes, work: Path, checkpoint: Path | None, config: Path | None, bundle: Path | None
) -> Model:
    """The model of the options, its weights on disk.

    Raises:
        OptionError: If files that are named are not there, or a bundle comes without its weights.
    """
    if bundle is not None and checkpoint is None:
        raise OptionError("A --bundle is compared with its --checkpoint: give both.")
    for path in (checkpoint, config, bundle):
        if path is not None and not path.exists():
            raise OptionError(f"There is no {shown(path)}.")
    if checkpoint is not None:
        given = [path and path.resolve() for path in (config, bundle)]
        # a name of its own, so that its exports do not push out a stand-in's
        return Model(f"given {checkpoint.stem}", checkpoint.resolve(), *given)
    if sizes == "bundled":
        from flowsep_ref import FlowSep

        return Model(sizes, FlowSep.bundled_path(), bundle=BUNDLED)
    key = _digest(f"{sizes} {SEED}", Path(__file__).with_name("standin.py"))
    return Model(sizes, kept(work / sizes / "weights", key, lambda folder: _write_weights(sizes, folder)))


def with_bundle(model: Model, work: Path) -> Model:
    """The model with a bundle made by `flowsep-export`."""
    if model.bundle is not None:
        return model
    return replace(model, bundle=_exported(model, work / model.name / "bundle", []))


def with_half_bundle(model: Model, work: Path) -> Model:
    """The model with a half-precision bundle: the given one, or one made by `flowsep-export --fp16`."""
    if model.bundle is not None and Manifest.read(model.bundle).precision == "float16":
        return replace(model, half_bundle=model.bundle)
    return replace(model, half_bundle=_exported(model, work / model.name / "bundle-fp16", ["--fp16"]))


def _exported(model: Model, folder: Path, options: list[str]) -> Path:
    code = [
        path
        for package in ("flowsep_ref", "flowsep_export", "flowsep_runtime")
        for path in _sources(package)
        # the code that runs a bundle does not change its content
        if "backends" not in path.parts
    ]
    key = _digest(f"{_stamp(model)} torch {version('torch')} onnx {version('onnx')}", *code)

    def export(temporary: Path) -> None:
        command = ["flowsep_export.cli", "--checkpoint", str(model.weights), "-o", str(temporary), "--force"]
        command += options
        if model.config is not None:
            command += ["--config", str(model.config)]
        if not (model.weights / "tokenizer.json").is_file():
            # no query is read here, and a tokenizer of the model's own may have to be downloaded
            command += ["--tokenizer", str(BUNDLED / "tokenizer.json")]
        if model.name == "tiny":
            command.append("--no-verify")  # takes longer than everything else
        _run(command, f"exporting the {model.name} model")

    return kept(folder, key, export)


def build_engines(bundle: Path, batch: int, frames: int) -> None:
    """Build TensorRT engines of a bundle for this GPU and one shape; existing ones are kept.

    Raises:
        BackendError: If they cannot be built.
    """
    shape = ["--batch", str(batch), "--frames", str(frames)]
    # their results are compared with the reference anyway
    command = ["flowsep_export.cli", "--tensorrt", "--bundle", str(bundle), *shape, "--no-verify"]
    _run(command, f"building TensorRT engines for batch {batch}")


def with_plain_graphs(model: Model, work: Path, frames: int, batch: int) -> Model:
    """The same model with plain graphs for a batch of clips of `frames` mel frames."""
    code = [Path(__file__).with_name("plain_graphs.py"), *_sources("flowsep_ref")]
    key = _digest(f"{_stamp(model)} torch {version('torch')} {frames} {batch}", *code)

    def export(folder: Path) -> None:
        command = ["benchmarks.common.plain_graphs", str(model.weights), str(folder)]
        command += ["--frames", str(frames), "--batch", str(batch)]
        if model.config is not None:
            command += ["--config", str(model.config)]
        _run(command, f"exporting plain graphs of the {model.name} model")

    return replace(model, plain=kept(work / model.name / "plain", key, export))


def kept(folder: Path, key: str, make: Callable[[Path], None]) -> Path:
    """A folder with a key, made if there is none with the same key; it appears whole or not at all."""
    note = folder / MADE_FROM
    if note.is_file() and note.read_text(encoding="utf-8") == key:
        return folder
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    made = temporary / folder.name  # a program that is stopped may leave something beside it
    try:
        made.mkdir(parents=True)
        make(made)
        (made / MADE_FROM).write_text(key, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    except OSError as error:
        raise OptionError(f"{shown(folder)} cannot be made: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _write_weights(sizes: Sizes, folder: Path) -> None:
    from benchmarks.common.standin import write_stand_in
    from flowsep_ref import FlowSepConfig

    say(f"filling a model of {sizes} sizes with numbers")
    if sizes == "published":
        config = FlowSepConfig.published()
    else:
        import flowsep_ref

        config = FlowSepConfig.from_yaml(Path(flowsep_ref.__file__).parent / "configs" / f"{sizes}.yaml")
    write_stand_in(config, folder, SEED)


def _run(command: list[str], doing: str) -> None:
    """Run a module in a process of its own, so that an export's memory is freed afterwards."""
    say(doing)
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"{doing} failed: {last}")


def _stamp(model: Model) -> str:
    """Key of the weights without reading gigabytes: it changes when they change."""
    files = [model.weights] if model.weights.is_file() else sorted(model.weights.iterdir())
    files += [model.config] if model.config else []
    found = [(path, path.stat()) for path in files]
    return " ".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in found)


def _sources(package: str) -> list[Path]:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))


def _digest(text: str, *files: Path) -> str:
    digest = hashlib.sha256(text.encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@click.command()
@click.option("--sizes", type=click.Choice(["published", "bundled", "tiny"]), required=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where it is kept.")
def main(sizes: Sizes, work: Path | None) -> None:
    """Make the half-precision bundle of a stand-in model, if it is not there."""
    folder = (work or default_work()).resolve()
    bundle = with_half_bundle(choose(sizes, folder, None, None, None), folder).half_bundle
    assert bundle is not None
    click.echo(f"{shown(bundle)}: {size_of(bundle) / 1e6:.0f} MB")


if __name__ == "__main__":
    run(main, "benchmarks.common.models", "There is not enough memory for the model.")
