"""Reading OpenVINO graphs: shapes, images, constants and inputs of nodes."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends import offline

if TYPE_CHECKING:
    from openvino import Node, Output


class Image(NamedTuple):
    """The sizes of an image of batch 1."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


def part_of_openvino(name: str) -> ModuleType:
    """A module of OpenVINO, imported so that it opens no connection."""
    return import_module(f"{offline.openvino().__name__}.{name}")


def key_of(output: Output) -> tuple[str, int]:
    """The name of an output that no other has."""
    return output.get_node().get_name(), output.get_index()


def shape_of(output: Output) -> list[int]:
    """A fixed shape."""
    return list(output.get_shape())


def is_image(output: Output) -> bool:
    """True for [1, C, H, W]."""
    shape = shape_of(output)
    return len(shape) == 4 and shape[0] == 1


def image_of(output: Output) -> Image:
    """The sizes of an output that is an image."""
    return Image(*shape_of(output)[1:])


def turned(transpose: Node, shape: list[int]) -> list[int]:
    """The shape that goes into a Transpose of the last two axes with this result; empty for another one."""
    order = constant_of(transpose.input_value(1))
    if order is None or order.tolist() != [0, 2, 1] or shape_of(transpose.output(0)) != shape:
        return []
    return [shape[0], shape[2], shape[1]]


def input_of(node: Node | None, kind: str) -> Node | None:
    """The first input of a node of this kind."""
    return node.input_value(0).get_node() if node is not None and node.get_type_name() == kind else None


def constant_of(output: Output) -> Array | None:
    """The values of a constant; None for another node."""
    node: Any = output.get_node()
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None


def weights_of(output: Output) -> Array | None:
    """A constant weight in the precision that it is stored in."""
    node = output.get_node()
    return constant_of(node.input_value(0) if node.get_type_name() == "Convert" else output)


def is_all(node: Node | None, value: float) -> bool:
    """True if a node's second input is this value everywhere."""
    values = None if node is None else constant_of(node.input_value(1))
    return values is not None and bool(np.array_equal(values, np.full_like(values, value)))


def divisor_of(number: int) -> int:
    """The largest power of two that divides a number and is no larger than its root."""
    divisor = 1
    while number % (2 * divisor) == 0 and (2 * divisor) ** 2 <= number:
        divisor *= 2
    return divisor
