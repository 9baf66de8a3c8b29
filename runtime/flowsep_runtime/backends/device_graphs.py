"""Tiny graphs between the stages, for backends that keep arrays in their own memory.

They are the same for every model, so they are no part of a bundle. `flowsep_export.onnx.device_graphs` makes
them; on the host the pipeline does the same arithmetic in numpy.

    posterior  mean, std, noise [batch, 8, t, 16] -> mixture_latent = mean + std * noise
    pick       values [many, 8, t, 16], index [rows] -> picked [rows, 8, t, 16] = values[index]
    guide      rows [batch, 8, t, 16], wanted, unwanted [batch], scale [batch, 1, 1, 1]
               -> guided = rows[unwanted] + scale * (rows[wanted] - rows[unwanted])
    advance    x, velocity, before [batch, 8, t, 16], weights [2], row [1, E]
               -> next_x = x + weights[0] * velocity + weights[1] * before,
                  time_features [batch, E] = row for every batch

`before` is the velocity before, and `weights` are a row of `Solver.weights`. TensorRT has the same sum in its
engine of a step, and copies rows without a graph. `guide` is `solvers.guided`, for both halves of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowsep_runtime.arrays import Array, Floats

#: The names of inputs and outputs, as `manifest.GRAPHS` has those of a bundle.
DEVICE_GRAPHS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "posterior": (("mean", "std", "noise"), ("mixture_latent",)),
    "pick": (("values", "index"), ("picked",)),
    "guide": (("rows", "wanted", "unwanted", "scale"), ("guided",)),
    "advance": (("x", "velocity", "before", "weights", "row"), ("next_x", "time_features")),
}

_LATENT = ("batch", "channels", "t", "frequencies")

#: Inputs that are numbers of rows, int64.
INDICES = ("index", "wanted", "unwanted")

#: Shapes that are not a latent's; a text is a dynamic axis.
DEVICE_GRAPH_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "values": ("many", *_LATENT[1:]),
    "index": ("rows",),
    "picked": ("rows", *_LATENT[1:]),
    "wanted": ("batch",),
    "unwanted": ("batch",),
    "scale": ("batch", 1, 1, 1),
    "weights": (2,),
    "row": (1, "shifts"),
    "time_features": ("batch", "shifts"),
}


def device_graph_shape(tensor: str) -> tuple[int | str, ...]:
    """The shape of an input or output."""
    return DEVICE_GRAPH_SHAPES.get(tensor, _LATENT)


def guide_inputs(guidance: Floats) -> dict[str, Array]:
    """The inputs of `guide` besides the rows, for scales [B / 2]."""
    wanted = np.tile(np.arange(len(guidance)), 2)
    scale = np.tile(guidance, 2).astype(np.float32)[:, None, None, None]
    return {"wanted": wanted, "unwanted": wanted + len(guidance), "scale": scale}


def device_graph_path(name: str) -> Path:
    """The ONNX file of one of them."""
    return Path(__file__).parents[1] / "assets" / "device_graphs" / f"{name}.onnx"
