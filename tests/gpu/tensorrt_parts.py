"""Parts that both halves of the double of TensorRT use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tests.gpu.cuda_double import DoubleError

if TYPE_CHECKING:
    from tests.gpu.tensorrt_double import TensorRtDouble

MAGIC = b"double of a plan\0"
SCRATCH = 1000  # bytes of activations for every node


class Truth:
    """A bool that knows whether somebody looked at it."""

    def __init__(self, value: bool, call: str, log: list[Truth]) -> None:
        self.value, self.call, self.is_checked = value, call, False
        log.append(self)

    def __bool__(self) -> bool:
        self.is_checked = True
        return self.value


class Strict:
    """Has the attributes that its class defines and takes no others."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        super().__setattr__(name, value)


def nptype(types: Any) -> Any:
    """The function of that name."""
    known = {types.FLOAT: np.float32, types.HALF: np.float16, types.INT64: np.int64, types.INT32: np.int32}

    def convert(trt_type: Any) -> Any:
        return known[trt_type]

    return convert


def data_type(types: Any, onnx_type: int) -> Any:
    names: dict[int, str] = {
        onnx.TensorProto.FLOAT: "FLOAT",
        onnx.TensorProto.FLOAT16: "HALF",
        onnx.TensorProto.INT64: "INT64",
    }
    return types[names[onnx_type]]


def dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The shape of an input or output, -1 where it is open."""
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


def inside(shape: Sequence[int], least: Sequence[int], most: Sequence[int]) -> bool:
    return len(shape) == len(least) and all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))


def error(double: TensorRtDouble, logger: Any, message: str) -> None:
    """Tells a logger."""
    if not getattr(logger, "_is_initialised", False):
        raise DoubleError("ILogger.__init__ was not called")
    logger.log(double.severity["ERROR"], message)
