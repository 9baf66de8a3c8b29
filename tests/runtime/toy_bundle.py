"""A tiny bundle of nine real ONNX graphs: a test double of a model.

The graphs have the contract's names, types and shapes and do small real arithmetic (matrix products and
reshapes), so that every input reaches the output. They separate nothing; `reference` says in numpy what they
compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import models, pre_tokenizers, processors

from flowsep_runtime.bundle.manifest import (
    GRAPHS,
    STAGES,
    FileEntry,
    GraphEntry,
    Manifest,
    ModelEntry,
    Provenance,
    StageEntry,
    StageError,
    TensorEntry,
    TokenizerEntry,
)

Floats = NDArray[np.float32]

WIDTH, KEYS, FEATURES, TIME_WIDTH, WORDS = 6, 5, 4, 3, 64
MODEL = ModelEntry(text_width=WIDTH, clip_samples=2 * 32 * 160, default_steps=3)
PAD, END = 0, 1
ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def weights() -> dict[str, Floats]:
    """Every weight of the toy model, the same at each call."""
    random = np.random.default_rng(20)
    shapes = {
        "analysis": (160, 64),
        "synthesis": (64, 160),
        "embedding": (WORDS, WIDTH),
        "to_mean": (256, 128),
        "to_mel": (128, 256),
        "to_keys": (WIDTH, KEYS),
        "to_features": (8, FEATURES),
        "from_features": (FEATURES, 8),
        "to_time": (1, TIME_WIDTH),
        "from_time": (TIME_WIDTH, 1),
        "from_keys": (KEYS, 16),
    }
    return {
        # what comes out is quiet enough for an integer type
        name: (random.standard_normal(shape) / np.sqrt(shape[0]) / (8 if name == "synthesis" else 1)).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def write_toy_bundle(
    folder: Path,
    others: Mapping[str, Callable[[Builder], None]] | None = None,
    model: ModelEntry = MODEL,
) -> Path:
    """Writes the bundle into a new folder and returns the folder; `others` replaces the nodes of graphs."""
    folder.mkdir()
    nodes = {**NODES, **(others or {})}
    graphs = {name: _write_graph(folder, name, nodes[name]) for name in GRAPHS}
    _write_tokenizer(folder / "tokenizer.json")
    entry = FileEntry.of(folder / "tokenizer.json")
    Manifest(
        name="toy",
        precision="float32",
        model=model,
        tokenizer=TokenizerEntry(entry.name, entry.sha256, PAD),
        graphs=graphs,
        stages={stage: StageEntry(names, StageError(tolerance=5e-5)) for stage, names in STAGES.items()},
        provenance=Provenance("toy.ckpt", "0" * 64, {"onnx": onnx.__version__}, "2026-01-01T00:00:00Z"),
    ).write(folder)
    return folder


SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "waveform": ("batch", "samples"),
    "log_mel": ("batch", "frames", 64),
    "input_ids": ("batch", 50),
    "attention_mask": ("batch", 50),
    "text": ("batch", 50, WIDTH),
    "mask": ("batch", 50),
    "mean": ("batch", 8, "t", 16),
    "std": ("batch", 8, "t", 16),
    "keys_values": ("batch", 50, KEYS),
    "mask_bias": ("batch", 1, 1, 50),
    "mixture_latent": ("batch", 8, "t", 16),
    "mixture_features": ("batch", FEATURES, "t", 16),
    "t": ("steps",),
    "time_features": ("steps", TIME_WIDTH),
    "x": ("batch", 8, "t", 16),
    "velocity": ("batch", 8, "t", 16),
    "latent": ("batch", 8, "t", 16),
}


def _tensor(name: str, graph: str) -> TensorEntry:
    # the loop takes a row of the schedule's for each of its batch
    shape = ("batch", TIME_WIDTH) if (name, graph) == ("time_features", "velocity") else SHAPES[name]
    return TensorEntry(name, "int64" if name in ("input_ids", "attention_mask") else "float32", shape)


def _write_graph(folder: Path, name: str, nodes: Callable[[Builder], None]) -> GraphEntry:
    inputs = tuple(_tensor(tensor, name) for tensor in GRAPHS[name][0])
    outputs = tuple(_tensor(tensor, name) for tensor in GRAPHS[name][1])
    builder = Builder()
    nodes(builder)
    graph = helper.make_graph(
        builder.nodes,
        name,
        [helper.make_tensor_value_info(i.name, ONNX_TYPES[i.dtype], i.shape) for i in inputs],
        [helper.make_tensor_value_info(o.name, ONNX_TYPES[o.dtype], o.shape) for o in outputs],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return GraphEntry((FileEntry.of(path),), inputs, outputs)


class Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, weights()[name])

    def reshape(self, source: str, shape: Sequence[int], output: str) -> str:
        return self.node("Reshape", [source, self.constant(f"{output}_shape", np.array(shape))], output)

    def matmul(self, source: str, weight: str, output: str) -> str:
        return self.node("MatMul", [source, self.weight(weight)], output)

    def channels(self, source: str, weight: str, output: str) -> str:
        """A product over the channels of [B, C, t, 16]."""
        last = self.node("Transpose", [source], f"{output}_last", perm=[0, 2, 3, 1])
        product = self.matmul(last, weight, f"{output}_product")
        return self.node("Transpose", [product], output, perm=[0, 3, 1, 2])


def _log_mel(b: Builder) -> None:
    b.matmul(b.reshape("waveform", (0, -1, 160), "hops"), "analysis", "log_mel")


def _encode_text(b: Builder) -> None:
    words = b.node("Gather", [b.weight("embedding"), "input_ids"], "words")
    mask = b.node("Cast", ["attention_mask"], "float_mask", to=TensorProto.FLOAT)
    b.node("Mul", [words, b.node("Unsqueeze", [mask, b.constant("last", np.array([2]))], "column")], "text")


def _encode_mixture(b: Builder) -> None:
    latent = b.matmul(b.reshape("log_mel", (0, -1, 256), "quads"), "to_mean", "flat")
    split = b.reshape(latent, (0, 0, 8, 16), "split")
    b.node("Transpose", [split], "mean", perm=[0, 2, 1, 3])
    b.node("Sigmoid", ["mean"], "std")


def _velocity_text(b: Builder) -> None:
    b.matmul("text", "to_keys", "keys_values")
    hidden = b.node("Sub", [b.constant("one", np.float32(1)), "mask"], "hidden")
    bias = b.node("Mul", [hidden, b.constant("low", np.float32(-1e9))], "bias")
    b.node("Unsqueeze", [bias, b.constant("axes", np.array([1, 2]))], "mask_bias")


def _velocity_mixture(b: Builder) -> None:
    b.channels("mixture_latent", "to_features", "mixture_features")


def _velocity_time(b: Builder) -> None:
    b.matmul(b.reshape("t", (-1, 1), "column"), "to_time", "time_features")


def _velocity(b: Builder) -> None:
    attention = b.node("Softmax", ["mask_bias"], "attention", axis=-1)
    keys = b.node("Unsqueeze", ["keys_values", b.constant("axis", np.array([1]))], "keys")
    context = b.matmul(b.node("MatMul", [attention, keys], "mixed"), "from_keys", "context")
    time = b.reshape(b.matmul("time_features", "from_time", "speed"), (-1, 1, 1, 1), "time")
    drive = b.channels("mixture_features", "from_features", "drive")
    first = b.node("Add", [drive, context], "first")
    second = b.node("Add", [first, time], "second")
    b.node("Sub", [second, "x"], "velocity")


def _decode_latent(b: Builder) -> None:
    last = b.node("Transpose", ["latent"], "last", perm=[0, 2, 1, 3])
    quads = b.matmul(b.reshape(last, (0, 0, 128), "flat"), "to_mel", "quads")
    b.reshape(quads, (0, -1, 64), "log_mel")


def _vocode(b: Builder) -> None:
    flat = b.reshape(b.matmul("log_mel", "synthesis", "hops"), (0, -1), "flat")
    padded = b.node("Pad", [flat, b.constant("tail", np.array([0, 0, 0, 32]))], "padded")
    b.node("Tanh", [padded], "waveform")


NODES = {
    "log_mel": _log_mel,
    "encode_text": _encode_text,
    "encode_mixture": _encode_mixture,
    "velocity_text": _velocity_text,
    "velocity_mixture": _velocity_mixture,
    "velocity_time": _velocity_time,
    "velocity": _velocity,
    "decode_latent": _decode_latent,
    "vocode": _vocode,
}


def _write_tokenizer(path: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "dog", "barking", "rain", "a", "man", "speaking"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", END)])
    tokenizer.save(str(path))


class Reference:
    """The toy model in numpy: what the graphs must give, stage by stage."""

    def __init__(self) -> None:
        self.w = weights()

    def log_mel(self, waveform: Floats) -> Floats:
        return waveform.reshape(len(waveform), -1, 160) @ self.w["analysis"]

    def encode_text(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
        return self.w["embedding"][ids] * mask[..., None].astype(np.float32)

    def encode_mixture(self, log_mel: Floats) -> tuple[Floats, Floats]:
        flat = log_mel.reshape(len(log_mel), -1, 256) @ self.w["to_mean"]
        mean = flat.reshape(*flat.shape[:2], 8, 16).transpose(0, 2, 1, 3)
        return mean, 1 / (1 + np.exp(-mean))

    def velocity(self, x: Floats, t: float | Floats, mixture: Floats, text: Floats, mask: Any) -> Floats:
        drive = np.einsum("bcts,cf,fd->bdts", mixture, self.w["to_features"], self.w["from_features"])
        attention = np.asarray(mask, np.float32) / np.sum(mask, axis=1, keepdims=True)
        context = np.einsum("bn,bnw->bw", attention, text) @ self.w["to_keys"] @ self.w["from_keys"]
        time = np.reshape(t, (-1, 1, 1, 1)) * (self.w["to_time"] @ self.w["from_time"])
        result: Floats = drive + context[:, None, None, :] + time - x
        return result

    def euler(self, x: Floats, mixture: Floats, text: Floats, mask: Any, steps: int) -> Floats:
        for step in range(steps):
            x = x + self.velocity(x, step / steps, mixture, text, mask) * np.float32(1 / steps)
        return x

    def decode_latent(self, latent: Floats) -> Floats:
        flat = latent.transpose(0, 2, 1, 3).reshape(len(latent), latent.shape[2], 128)
        return (flat @ self.w["to_mel"]).reshape(len(latent), -1, 64)

    def vocode(self, log_mel: Floats) -> Floats:
        flat = (log_mel @ self.w["synthesis"]).reshape(len(log_mel), -1)
        return np.tanh(np.pad(flat, ((0, 0), (0, 32))))
