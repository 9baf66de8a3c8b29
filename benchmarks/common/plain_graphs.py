"""Plain ONNX graphs, one per stage: the reference's methods through `torch.onnx.export`, with its defaults,
at the measured shapes.

They have none of `flowsep_export`'s rewrites; the benchmark shows the gain of those.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from benchmarks.common.inputs import STAGE_INPUTS, make_inputs
from flowsep_ref import FlowSep

OUTPUTS = {"encode_mixture": ("mean", "std")}


class Stage(nn.Module):
    """One method of the reference as a module."""

    def __init__(self, model: FlowSep, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The result of the method."""
        result: Tensor | tuple[Tensor, Tensor] = getattr(self.model, self.name)(*inputs)
        return result


def graph_path(folder: Path, stage: str) -> Path:
    """The path of a stage's graph."""
    return folder / f"{stage}.onnx"


def export_plain(
    model: FlowSep, folder: Path, frames: int, batch: int = 1, stages: Iterable[str] = tuple(STAGE_INPUTS)
) -> None:
    """Write a graph for each stage, for a batch of clips of `frames` mel frames."""
    arrays = make_inputs(model.config, frames, batch, 0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for stage in stages:
        names = STAGE_INPUTS[stage]
        inputs = tuple(torch.from_numpy(arrays[name]) for name in names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Stage(model, stage),
                inputs,
                graph_path(folder, stage),
                input_names=list(names),
                output_names=list(OUTPUTS.get(stage, (stage,))),
                dynamo=True,
                verbose=False,
            )


@click.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="The checkpoint's sizes (YAML).")
@click.option("--frames", type=click.IntRange(1), required=True, help="Mel frames of a clip.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Batch size.")
def main(weights: Path, folder: Path, config: Path | None, frames: int, batch: int) -> None:
    """Export WEIGHTS to plain graphs in FOLDER."""
    export_plain(FlowSep.from_checkpoint(weights, config), folder, frames, batch)


if __name__ == "__main__":
    main()
