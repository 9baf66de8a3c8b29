"""Exact rewrites of a graph for OpenVINO on a CPU, when it is loaded and its shapes are known.

A graph of a bundle keeps images as [1, C, H, W]. OpenVINO's convolutions and matrix products work with a
pixel's channels side by side, so it transposes the images many times. Here all operations on images, from the
first convolution to the last, become operations on *pixels*, [H·W, C]. On them

- a 1×1 convolution is a matrix product,
- a 3×3 convolution is Winograd's in float32 (`winograd.py`); so is a transposed one of 4×4 and stride 2,
  which is four filters of 2×2,
- a group normalisation is two means over pixels.

What is not known here stays as it is, between two transpositions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends.openvino import weights as openvino_weights
from flowsep_runtime.backends.openvino.graph_nodes import (
    Image,
    constant_of,
    divisor_of,
    image_of,
    input_of,
    is_all,
    is_image,
    key_of,
    part_of_openvino,
    shape_of,
    turned,
    weights_of,
)
from flowsep_runtime.backends.openvino.winograd import Tiling, cheapest

if TYPE_CHECKING:
    from openvino import Model, Node, Output

#: With fewer channels, the transforms cost more than the products save.
LEAST_CHANNELS = 96
#: In bf16 only where rows are so narrow that OpenVINO's own convolution is slow: elsewhere the transforms
#: cost what the products gain.
NARROW = 4

_UNFOLDED = "DisableConstantFolding_0"  # OpenVINO's mark

_ELEMENTWISE = {"Add": "add", "Multiply": "multiply", "Subtract": "subtract", "Sigmoid": "sigmoid"}


def rewrite(model: Model, quick: bool) -> int:
    """Rewrite a graph of fixed shapes in place; return the number of changed convolutions.

    Args:
        model: A graph of a bundle with batch 1.
        quick: For bf16: with 3×3 convolutions left to OpenVINO where those are quicker.
    """
    return _Rewriter(model, quick).run()


class _Rewriter:
    def __init__(self, model: Model, quick: bool) -> None:
        self._model = model
        self._quick = quick
        self._op: Any = part_of_openvino("opset13")
        self._pixels: dict[tuple[str, int], Output] = {}  # of an output of the graph, [H·W, C]
        self._done: dict[str, tuple[Node, Node]] = {}  # by unique name: what was rewritten, and as what
        self._left: set[str] = set()  # convolutions by name
        self._shapes: dict[tuple[int, ...], Node] = {}  # constants: a graph with fewer is loaded sooner

    def run(self) -> int:
        self._fold_shapes()
        convolutions = 0
        for node in self._model.get_ordered_ops():
            result = self._rewritten(node)
            if result is not None:
                self._pixels[key_of(node.output(0))] = result.output(0)
                self._done[node.get_name()] = node, result
                convolutions += "Convolution" in node.get_type_name()
        for node, result in self._done.values():
            self._reconnect(node, result)
        self._model.validate_nodes_and_infer_types()
        return convolutions

    def _fold_shapes(self) -> None:
        """Fold computations of the graph's own shapes; half-precision weights stay half precision."""
        library = part_of_openvino("passes")
        passes = library.Manager()
        passes.register_pass(library.ConstantFolding())
        stored = openvino_weights.casts(self._model)
        for cast in stored:
            cast.get_rt_info()[_UNFOLDED] = ""
        passes.run_passes(self._model)
        for cast in stored:
            del cast.get_rt_info()[_UNFOLDED]

    def _reconnect(self, node: Node, result: Node) -> None:
        """Restore the image for the nodes that still read it."""
        readers = [
            reader
            for reader in node.output(0).get_target_inputs()
            if reader.get_node().get_name() not in self._done
        ]
        if readers:
            image = self._image(result.output(0), image_of(node.output(0))).output(0)
            for reader in readers:
                reader.replace_source_output(image)

    def _rewritten(self, node: Node) -> Node | None:
        """The node on pixels; None if it is unknown or gains nothing."""
        match node.get_type_name():
            case "Convolution":
                return self._convolution(node)
            case "ConvolutionBackpropData":
                return self._transposed_convolution(node)
            case "Reshape":
                return self._group_norm(node) or self._from_sequence(node)
            case "Concat":
                return self._concatenation(node)
            case "Transpose":
                self._to_sequence(node)
            case "Split":
                self._halves(node)
            case kind if kind in _ELEMENTWISE:
                return self._elementwise(node)
        return None

    # From images to pixels and back

    def _of(self, output: Output) -> Output:
        """An image as pixels."""
        key = key_of(output)
        if key not in self._pixels:
            image = image_of(output)
            turned = self._op.transpose(output, self._ints(0, 2, 3, 1))
            self._pixels[key] = self._reshape(turned, image.pixels, image.channels).output(0)
        return self._pixels[key]

    def _image(self, pixels: Output, image: Image) -> Node:
        rows = self._reshape(pixels, 1, image.height, image.width, image.channels)
        turned: Node = self._op.transpose(rows, self._ints(0, 3, 1, 2))
        return turned

    def _to_sequence(self, node: Node) -> None:
        """[1, C, H, W] -> [1, C, H·W] -> [1, H·W, C] is what pixels are already."""
        source = node.input_value(0).get_node()
        if source.get_type_name() == "Reshape" and key_of(source.input_value(0)) in self._pixels:
            image = image_of(source.input_value(0))
            sequence = [1, image.pixels, image.channels]
            if shape_of(source.output(0)) == [1, image.channels, image.pixels] == turned(node, sequence):
                pixels = self._reshape(self._of(source.input_value(0)), *sequence)
                node.output(0).replace(pixels.output(0))

    def _from_sequence(self, node: Node) -> Node | None:
        """And [1, H·W, C] -> [1, C, H·W] -> [1, C, H, W]."""
        source = node.input_value(0).get_node()
        if source.get_type_name() != "Transpose" or not is_image(node.output(0)):
            return None
        image = image_of(node.output(0))
        sequence = [1, image.pixels, image.channels]
        if turned(source, [1, image.channels, image.pixels]) != sequence:
            return None
        return self._reshape(source.input_value(0), image.pixels, image.channels)

    # What happens to them

    def _convolution(self, node: Node) -> Node | None:
        source, weight = node.input_value(0), node.input_value(1)
        if not is_image(source) or min(image_of(source)[1:]) == 1:
            return None
        image, (outputs, channels, *taps) = image_of(source), shape_of(weight)
        how = node.get_attributes()
        dense = how["strides"] == [1, 1] and how["dilations"] == [1, 1] and how["auto_pad"] == "explicit"
        values = weights_of(weight)
        if values is None:
            return None
        if dense and taps == [1, 1] and how["pads_begin"] == how["pads_end"] == [0, 0]:
            matrix = openvino_weights.constant(self._op, values.reshape(outputs, channels))
            product: Node = self._op.matmul(self._of(source), matrix, False, True)
            return product
        if dense and taps == [3, 3] and how["pads_begin"] == how["pads_end"] == [1, 1]:
            tile = self._tile(image, outputs)
            if tile is not None:
                size = image.height, image.width
                tiling = Tiling(size, tile, (3, 3), (-1, -1))
                return self._filtered(source, [tiling], [values], 1)
        self._leave(node)
        return None

    def _leave(self, node: Node) -> None:
        """Leave a convolution and its bias to OpenVINO, between two transpositions that it removes; the
        following nodes work on pixels all the same."""
        self._of(node.output(0))
        self._left.add(node.get_name())

    def _transposed_convolution(self, node: Node) -> Node | None:
        """4×4 with stride 2 and padding 1: an even row of the result reads a row and the one before it, an
        odd one a row and the one after it, each by two of the four taps; and so do the columns."""
        source, weight = node.input_value(0), node.input_value(1)
        how = node.get_attributes()
        if not is_image(source) or shape_of(weight)[2:] != [4, 4] or node.get_input_size() != 2:
            return None
        pads = how["pads_begin"], how["pads_end"], how["output_padding"]
        if how["strides"] != [2, 2] or how["dilations"] != [1, 1] or how["auto_pad"] != "explicit":
            return None
        if pads != ([1, 1], [1, 1], [0, 0]):
            return None
        image, values = image_of(source), weights_of(weight)
        if values is None:
            return None
        size, outputs = (image.height, image.width), values.shape[1]
        if self._quick or min(image.channels, outputs) < LEAST_CHANNELS:
            self._leave(node)
            return None
        tile = cheapest(size, (2, 2), (2, 4))
        firsts, taps = (-1, 0), ([3, 1], [2, 0])
        phases = [(row, column) for row in (0, 1) for column in (0, 1)]
        return self._filtered(
            source,
            [Tiling(size, tile, (2, 2), (firsts[row], firsts[column])) for row, column in phases],
            [values.swapaxes(0, 1)[:, :, taps[row]][..., taps[column]] for row, column in phases],
            2,
        )

    def _filtered(
        self, source: Output, tilings: Sequence[Tiling], weights: Sequence[Array], scale: int
    ) -> Node:
        """Winograd's form of one filter, or of the scale × scale whose results lie between each other's."""
        op, (outputs, channels) = self._op, weights[0].shape[:2]
        first, phases = tilings[0], len(tilings)
        (rows, columns), points = first.tiles, first.points
        zeros = openvino_weights.constant(self._op, np.zeros((1, channels), np.float32))
        sources = np.stack([tiling.sources().reshape(points, -1) for tiling in tilings], 1)
        kernels = np.stack(
            [tiling.kernel(weight) for tiling, weight in zip(tilings, weights, strict=True)], 1
        )
        padded = op.concat([self._of(source), zeros], 0)
        read = op.gather(padded, op.constant(sources.ravel()), op.constant(0))
        batch, tiles = points * phases, rows * columns
        values = op.matmul(
            openvino_weights.constant(self._op, first.input_transform),
            self._reshape(read, points, phases * tiles * channels),
            False,
            False,
        )
        products = op.matmul(
            self._reshape(values, batch, tiles, channels),
            self._stored(kernels.reshape(batch, outputs, channels)),
            False,
            True,  # as OpenVINO's kernels read them
        )
        results = op.matmul(
            openvino_weights.constant(self._op, first.output_transform),
            self._reshape(products, points, phases * tiles * outputs),
            False,
            False,
        )
        # [in tile, in tile, phase, phase, tile, tile, K] -> rows and columns of the result
        axes = [*first.tile, scale, scale, rows, columns, outputs]
        order = [axis for axis in (4, 0, 2, 5, 1, 3, 6) if axes[axis] > 1 or axis == 6]
        kept = sorted(order)
        placed = op.transpose(
            self._reshape(results, *(axes[axis] for axis in kept)),
            self._ints(*(kept.index(axis) for axis in order)),
        )
        height, width = (size * scale for size in first.image)
        whole = rows * first.tile[0] * scale, columns * first.tile[1] * scale
        if whole != (height, width):
            placed = op.slice(
                self._reshape(placed, *whole, outputs),
                self._ints(0, 0),
                self._ints(height, width),
                self._ints(1, 1),
                self._ints(0, 1),
            )
        return self._reshape(placed, height * width, outputs)

    def _tile(self, image: Image, outputs: int) -> tuple[int, int] | None:
        if min(image.channels, outputs) < LEAST_CHANNELS:
            return None
        if self._quick:
            return (2, 2) if image.width <= NARROW else None
        return cheapest((image.height, image.width), (3, 3), (2, 4))

    def _group_norm(self, node: Node) -> Node | None:
        """Reshape to groups, MVN, its scale and shift, which do nothing, and Reshape back."""
        shift = node.input_value(0).get_node()
        scale = input_of(shift, "Add")
        norm = input_of(scale, "Multiply")
        rows = input_of(norm, "MVN")
        if rows is None or norm is None or rows.get_type_name() != "Reshape":
            return None
        source = rows.input_value(0)
        if key_of(source) not in self._pixels or shape_of(node.output(0)) != shape_of(source):
            return None
        image, (batch, groups, *rest) = image_of(source), shape_of(norm.output(0))
        how = norm.get_attributes()
        if batch != 1 or len(rest) != 1 or image.channels % groups or not how["normalize_variance"]:
            return None
        if not (is_all(scale, 1.0) and is_all(shift, 0.0)) or how["eps_mode"].lower() != "inside_sqrt":
            return None
        axes = constant_of(norm.input_value(1))
        if axes is None or axes.tolist() not in ([2], [-1]):
            return None
        op, pixels = self._op, self._of(source)
        one = openvino_weights.constant(op, np.ones((1, 1), np.float32))
        mean = self._group_mean(pixels, image, groups)
        # The other way round than below: for the same difference twice OpenVINO would keep it in memory.
        away = op.subtract(mean, pixels)
        variance = self._group_mean(op.multiply(away, away), image, groups)
        epsilon = openvino_weights.constant(self._op, np.full((1, 1), how["eps"], np.float32))
        deviation = op.sqrt(op.add(variance, epsilon))
        normal: Node = op.multiply(op.subtract(pixels, mean), op.divide(one, deviation))
        return normal

    def _group_mean(self, pixels: Any, image: Image, groups: int) -> Node:
        """The mean over all pixels and a group's channels, for each channel: [1, C]."""
        op, inner = self._op, divisor_of(image.pixels)
        # In two steps, for the sake of rounding: a sum of a hundred thousand numbers loses digits.
        parts = self._reshape(pixels, image.pixels // inner, inner, image.channels)
        means = op.reduce_mean(op.reduce_mean(parts, self._ints(1), False), self._ints(0), False)
        members = image.channels // groups
        group = op.reduce_mean(self._reshape(means, groups, members), self._ints(1), True)
        return self._reshape(op.broadcast(group, self._ints(groups, members)), 1, image.channels)

    def _halves(self, node: Node) -> None:
        """Two halves of a linear layer's result become the results of two layers, so no copy splits them."""
        axis, total = constant_of(node.input_value(1)), node.input_value(0).get_node()
        if axis is None or int(axis) not in (-1, len(shape_of(total.output(0))) - 1):
            return
        if total.get_type_name() != "Add" or len(total.output(0).get_target_inputs()) != 1:
            return
        product, bias = total.input_value(0).get_node(), constant_of(total.input_value(1))
        if product.get_type_name() != "MatMul" or len(product.output(0).get_target_inputs()) != 1:
            return
        how, weight = product.get_attributes(), weights_of(product.input_value(1))
        parts, width = node.get_output_size(), shape_of(total.output(0))[-1]
        if weight is None or bias is None or weight.ndim != 2 or bias.shape[-1:] != (width,):
            return
        weights = np.split(weight, parts, axis=0 if how["transpose_b"] else 1)
        biases = np.split(bias, parts, axis=-1)
        for part in range(parts):
            layer = self._op.matmul(
                product.input_value(0),
                openvino_weights.constant(self._op, weights[part]),
                how["transpose_a"],
                how["transpose_b"],
            )
            result = self._op.add(layer, openvino_weights.constant(self._op, biases[part]))
            node.output(part).replace(result.output(0))

    def _concatenation(self, node: Node) -> Node | None:
        sources = node.input_values()
        if not is_image(node.output(0)) or node.get_attributes()["axis"] != 1:
            return None
        if not any(key_of(source) in self._pixels for source in sources):
            return None
        joined: Node = self._op.concat([self._of(source) for source in sources], 1)
        return joined

    def _elementwise(self, node: Node) -> Node | None:
        if not is_image(node.output(0)) or not any(key_of(at) in self._pixels for at in node.input_values()):
            return None
        shape = shape_of(node.output(0))
        first, *others = node.input_values()
        if first.get_node().get_name() in self._left and all(map(openvino_weights.is_constant, others)):
            self._of(node.output(0))
            return None
        operands = []
        for operand in node.input_values():
            if shape_of(operand) == shape:
                operands.append(self._of(operand))
            elif shape_of(operand)[-3:] == [shape[1], 1, 1] or int(np.prod(shape_of(operand))) == 1:
                operands.append(self._reshape(operand, 1, -1).output(0))
            else:
                return None
        result: Node = getattr(self._op, _ELEMENTWISE[node.get_type_name()])(*operands)
        return result

    # Constants

    def _reshape(self, source: Any, *shape: int) -> Node:
        node: Node = self._op.reshape(source, self._ints(*shape), False)
        return node

    def _ints(self, *values: int) -> Node:
        if values not in self._shapes:
            self._shapes[values] = self._op.constant(np.array(values, np.int64))
        return self._shapes[values]

    def _stored(self, values: Array) -> Node:
        """Filters in Winograd's form; for bf16 stored in it, or OpenVINO would keep them twice."""
        store = openvino_weights.bf16_constant if self._quick else openvino_weights.constant
        return store(self._op, values)
