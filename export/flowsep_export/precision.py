"""Half precision, strongly typed: the weights that become half, and the parts that stay float32.

The reference computes normalisation statistics, softmax, the snake and T5's residual stream in
float32 whatever the weights' type is, and every layer casts its input to its weights' type.  So the
precision of a graph is decided by the weights: convolutions and linear layers become half, but for
the islands below, and the casts at the borders come out of the trace as ONNX `Cast`s that every
backend must honour.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from flowsep_ref import FlowSep

HALF_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.Linear, nn.Embedding)

#: Layers whose weights, and so whose arithmetic, stay float32: patterns of qualified names.
FLOAT32_ISLANDS = (
    "text_encoder.*.DenseReluDense.wo",  # T5's overflow: its product and the residual beyond half's range
    "text_encoder.*.relative_attention_bias",  # added to scores in float32
    "unet.time_embed.*",  # angles: half is too coarse, and it runs once a schedule
    "unet.*.emb_layers.*",
)

#: Half-precision layers whose results go on in float32.
FLOAT32_OUTPUTS = (
    "text_encoder.*.SelfAttention.[qk]",  # T5 does not scale its scores: they are large and need accuracy
    "text_encoder.*.DenseReluDense.wi_[01]",  # their gated product overflows, not they
)


def halve(model: FlowSep) -> FlowSep:
    """A copy of the model whose layers compute in half precision; the float32 parts are shared."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, layer in model.named_modules():
        if isinstance(layer, HALF_LAYERS) and not _matches(name, FLOAT32_ISLANDS):
            for parameter in layer.parameters(recurse=False):
                # deepcopy takes what the memo holds: no second copy of the float32 weights is ever made
                memo[id(parameter)] = nn.Parameter(parameter.detach().half(), requires_grad=False)
    result = copy.deepcopy(model, memo)
    for name, layer in result.named_modules():
        if _matches(name, FLOAT32_OUTPUTS):
            layer.register_forward_hook(_to_float32)
    return result


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _to_float32(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()


def mixed_nodes(path: Path) -> list[str]:
    """The nodes of an ONNX file that break strong typing: operands that must be of one type and are not.

    A node whose types do not follow from the graph is among them.
    """
    model = onnx.load(path, load_external_data=False)
    # not strict, because that stops at the first fault and names no node
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return [
        f"{node.op_type} {node.name}" for node in graph.node if not _is_strongly_typed(node, types, opset)
    ]


def _is_strongly_typed(node: onnx.NodeProto, types: dict[str, int], opset: int) -> bool:
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    seen: dict[str, int] = {}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            if not name:
                continue
            formal = formals[min(index, len(formals) - 1)]  # the last may be variadic
            if name not in types:
                return False
            if seen.setdefault(formal.type_str, types[name]) != types[name]:
                return False
    return True
