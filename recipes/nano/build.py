"""Make the bundled model from scratch: `python -m recipes.nano.build --work DIR`.

Recordings, phrasings, the four trainings, the model, its bundle and its scores.  Each stage is a
command that anybody could type (`--dry-run` prints them), and each goes on where it was stopped, so
that the whole can be run again after an interruption.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click

from recipes.nano.phrasings import CAPTIONS

HERE = Path(__file__).parent
CONFIG = HERE / "model.yaml"

# For two CPU cores: hours, not days. Discriminators double the cost of a step; in these hours more steps gain
# more, so --adversarial-from lies after the end.
VOCODER = ["--steps", "3650", "--batch", "8", "--learning-rate", "1e-3", "--adversarial-from", "3650"]
VAE = ["--steps", "2200", "--batch", "6"]
FLOW = ["--steps", "36000", "--batch", "4", "--learning-rate", "1.2e-3", "--skew", "2", "--naming", "0.05"]
FLOW += ["--mean", "0.8", "--masking", "2"]
SHARDS = 230
#: Solver steps of the bundle.
STEPS = 4
#: Options of the bundle: it filters the mixture by default, against the complement, by one evaluation.
MASKED = ["--kind", "masked", "--complement", "everything except {query}", "--masked-solver", "mean"]
#: Chosen on mixtures of held-out recordings that the sets below do not have (docs/nano.md).
MASKED += ["--mask-exponent", "0.8"]

#: Options of the trainings and test sets whose numbers `--scale` multiplies.
SCALED = {"--steps", "--adversarial-from", "--shards", "--count"}

#: The sets of the model card. The third has mixtures of the first.
TEST_SETS = {
    "trained recordings": ["--split", "train", "--phrasings", "trained", "--count", "300"],
    "held-out recordings": ["--split", "test", "--phrasings", "trained", "--count", "300"],
    "held-out phrasings": ["--split", "train", "--phrasings", "held-out", "--count", "150"],
    "absent sounds": ["--split", "train", "--phrasings", "trained", "--absent", "--count", "150"],
}


@dataclass(frozen=True)
class Stage:
    """One command of the recipe."""

    name: str
    module: str
    arguments: list[str]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    def scaled(self, scale: float) -> Stage:
        """The same command with `scale` times the steps, mixtures and queries, at least two of each."""
        if self.name == "bundle":
            return self
        before = ["", *self.arguments[:-1]]
        arguments = [
            str(max(2, round(int(value) * scale))) if option in SCALED else value
            for option, value in zip(before, self.arguments, strict=True)
        ]
        return replace(self, arguments=arguments)


def stages(work: Path, threads: int) -> list[Stage]:
    """All commands, in order.

    Args:
        work: folder for everything that is made.
        threads: CPU threads of the trainings and the evaluation.
    """
    sounds, latents, texts = (str(work / name) for name in ("sounds", "latents", "texts"))
    model, bundle = str(work / "nano"), str(work / "bundle")
    captions, tokenizer = str(CAPTIONS), f"{texts}/tokenizer.json"
    tables = [captions, f"{texts}/sentences.tsv", f"{texts}/complements.tsv"]
    common = ["--work", str(work), "--config", str(CONFIG)]
    audio = [*common, "--sounds", sounds, "--threads", str(threads)]
    text = [
        *common,
        "--captions",
        captions,
        "--sentences",
        f"{texts}/sentences.tsv",
        "--tokenizer",
        tokenizer,
    ]

    def fit(part: str, *arguments: str) -> Stage:
        return Stage(part, "flowsep_train.cli", ["fit", part, *arguments])

    recipe = [
        Stage("sounds", "recipes.nano.prepare", ["--work", str(work)]),
        Stage("phrasings", "recipes.nano.phrasings", ["--output", texts]),
        fit("text", *text, "--steps", "600"),
        fit("vocoder", *audio, *VOCODER),
        fit("vae", *audio, *VAE),
        Stage(
            "latents",
            "flowsep_train.cli",
            ["latents", *audio, "--output", latents, "--shards", str(SHARDS)],
        ),
        fit("flow", *text, "--latents", latents, "--threads", str(threads), *FLOW),
        Stage(
            "model",
            "flowsep_train.cli",
            ["collect", *common, "--tokenizer", tokenizer, "--output", model],
        ),
        Stage(
            "bundle",
            "flowsep_export.cli",
            [
                "--checkpoint",
                model,
                "--tokenizer",
                tokenizer,
                "--output",
                bundle,
                "--steps",
                str(STEPS),
                *MASKED,
                *(option for table in tables for option in ("--captions", table)),
                "--force",
            ],
        ),
    ]
    manifests = []
    for name, arguments in TEST_SETS.items():
        folder = work / "sets" / name.replace(" ", "-")
        manifests.append(str(folder / "manifest.jsonl"))
        options = [
            "--sounds",
            sounds,
            "--captions",
            captions,
            "--output",
            str(folder),
            "--seed",
            "1",
            "--force",
        ]
        recipe.append(Stage(f"set of {name}", "flowsep_eval.cli", ["build", *options, *arguments]))
    scoring = [
        *manifests,
        "--bundle",
        bundle,
        "--output",
        str(work / "report"),
        "--threads",
        str(threads),
        "--force",
    ]
    recipe.append(Stage("scores", "flowsep_eval.cli", ["run", *scoring]))
    return recipe


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
@click.option("--only", multiple=True, metavar="STAGE", help="Run these stages alone; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print the commands.")
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Factor for training steps, latents and test sets. 0.003 checks the whole recipe in minutes.",
)
def main(work: Path, threads: int, only: tuple[str, ...], dry_run: bool, scale: float) -> None:
    """Make the bundled model from nothing."""
    recipe = [stage.scaled(scale) for stage in stages(work, threads)]
    unknown = set(only) - {stage.name for stage in recipe}
    if unknown:
        raise click.UsageError(
            f"no stage {', '.join(sorted(unknown))}; there are: {', '.join(s.name for s in recipe)}."
        )
    for number, stage in enumerate(recipe, 1):
        if only and stage.name not in only:
            continue
        click.echo(f"[{number}/{len(recipe)}] {stage.name}: {shlex.join(stage.command)}", err=True)
        if dry_run:
            continue
        started = time.monotonic()
        code = subprocess.run(stage.command, check=False).returncode
        if code:
            click.echo(f"{stage.name} ended with {code}; the same command goes on from here.", err=True)
            sys.exit(1)
        click.echo(f"{stage.name}: {(time.monotonic() - started) / 60:.1f} min", err=True)


if __name__ == "__main__":
    main()
