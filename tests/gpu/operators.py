"""The operators of a graph and their types, and the tables of what a GPU's libraries have for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, defs

from benchmarks.cost.operators import SizedGraph

TABLES = Path(__file__).parent / "tables"
#: Types as schemas name them.
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
}


@dataclass(frozen=True)
class Kernel:
    """A row of a table: versions of an operator that it computes, and types by the schema's variables."""

    first: int
    last: int | None  # None: no later version was known
    types: Mapping[str, Sequence[str]]

    def takes(self, need: Need) -> bool:
        """ONNX Runtime's rule: with an open end, it is for the version alone that it begins with."""
        in_range = need.version == self.first
        if self.last is not None:
            in_range = self.first <= need.version <= self.last
        return in_range and all(
            need.types[variable] in kinds for variable, kinds in self.types.items() if variable in need.types
        )


@dataclass(frozen=True)
class Need:
    """An operator as a graph has it; `version` is the opset in which it last changed."""

    operator: str
    version: int
    types: Mapping[str, str]


def table_lines(name: str) -> list[str]:
    """The rows of a table, without its source."""
    lines = (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def cuda_kernels(version: str) -> dict[str, list[Kernel]]:
    """The kernels of an onnxruntime-gpu, by operator."""
    found: dict[str, list[Kernel]] = {}
    for line in table_lines(f"cuda-{version}"):
        operator, versions, *types = line.split()
        first, _, last = versions.removesuffix("+").partition("-")
        kinds = {variable: names.split(",") for variable, names in (entry.split("=") for entry in types)}
        kernel = Kernel(int(first), int(last) if last else None, kinds)
        found.setdefault(operator, []).append(kernel)
    return found


def needs(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Iterator[Need]:
    """Operators that a graph at fixed sizes asks for, node by node; what is folded at load asks for none."""
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    graph = SizedGraph(onnx.ModelProto.FromString(model.SerializeToString()), sizes)
    for node in graph.nodes:
        if graph.constants.issuperset(filter(None, node.output)):
            continue
        if node.domain:
            yield Need(f"{node.domain}::{node.op_type}", 1, {"T": NAMES[graph.types[node.input[0]]]})
            continue
        schema = defs.get_schema(node.op_type, opset)
        types = {}
        for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for place, name in enumerate(names):
                if name:
                    variable = formal[min(place, len(formal) - 1)].type_str
                    types[variable] = NAMES[graph.types[name]]
        yield Need(node.op_type, schema.since_version, types)
