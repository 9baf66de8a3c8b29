"""An ONNX graph that passes change: the makers and readers of its tensors, and its constants."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Values = NDArray[Any]

#: The domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"

#: Changes a graph in place, whose external weights lie in the folder; says how often it found its pattern.
Pass: TypeAlias = Callable[[onnx.ModelProto, Path], int]


class Editor:
    """Looks into a graph and changes it in place; new nodes may go anywhere, `finish` puts them in order.

    Args:
        model: The graph; its external weights need not be loaded.
        folder: Where they lie.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._model = model
        self.graph = model.graph
        self._folder = folder
        self._stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self._outputs = {value.name for value in self.graph.output}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant; None for anything else."""
        tensor = self._stored.get(name)
        return None if tensor is None else tuple(tensor.dims)

    def constant(self, name: str) -> Values:
        """The values of a constant."""
        return numpy_helper.to_array(self._stored[name], str(self._folder))

    def source(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of that kind."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == kind else None

    def chain(self, name: str, *kinds: str) -> list[onnx.NodeProto]:
        """The nodes behind a tensor, each the maker of the next one's first input; none if one is of another
        kind."""
        found: list[onnx.NodeProto] = []
        for kind in kinds:
            node = self.source(name, kind)
            if node is None:
                return []
            found.append(node)
            name = node.input[0]
        return found

    def only_user(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor, if it is of that kind."""
        readers = self.users.get(name, [])
        alone = len(readers) == 1 and name not in self._outputs
        return readers[0] if alone and readers[0].op_type == kind else None

    def store(self, name: str, values: Values) -> str:
        """Adds a constant, once; gives its name."""
        if name not in self._stored:
            self._stored[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self.graph.initializer.append(self._stored[name])
        return name

    def put(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        """Adds a node in place of whatever made its outputs."""
        node = helper.make_node(
            kind, inputs, outputs, name=f"{outputs[0]}.{kind}", domain=domain, **attributes
        )
        self.graph.node.append(node)
        added = self.graph.node[-1]
        self.maker |= dict.fromkeys(filter(None, outputs), added)
        for name in inputs:
            self.users.setdefault(name, []).append(added)

    def finish(self) -> None:
        """Takes out what nobody reads, puts every node behind what it reads, and names the domains in use."""
        wanted: set[int] = set()
        in_order: list[onnx.NodeProto] = []
        stack = [(name, False) for name in reversed([value.name for value in self.graph.output])]
        while stack:
            name, is_ready = stack.pop()
            node = self.maker.get(name)
            if node is None:
                continue
            if is_ready:
                if id(node) not in wanted:
                    wanted.add(id(node))
                    in_order.append(node)
            elif id(node) not in wanted:
                stack.append((name, True))
                stack += [(read, False) for read in reversed(node.input) if read]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in in_order]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input} | self._outputs
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        known = {entry.domain for entry in self._model.opset_import}
        if MICROSOFT in {node.domain for node in nodes} - known:
            self._model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def at_every(kind: str) -> Callable[[Callable[[Editor, onnx.NodeProto], bool]], Pass]:
    """Makes a pass of a function that changes the pattern around one node of a kind, where it finds it."""

    def pass_of(change: Callable[[Editor, onnx.NodeProto], bool]) -> Pass:
        @wraps(change)
        def spell(model: onnx.ModelProto, folder: Path) -> int:
            editor = Editor(model, folder)
            found = sum(change(editor, node) for node in list(model.graph.node) if node.op_type == kind)
            if found:
                editor.finish()
            return found

        return spell

    return pass_of


def casts_to(node: onnx.NodeProto, kind: int) -> bool:
    """True for a Cast to that type."""
    return node.op_type == "Cast" and bool(node.attribute[0].i == kind)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node, by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
