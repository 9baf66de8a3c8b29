"""A strict double of TensorRT's Python bindings that really computes, with ONNX Runtime on the CPU.

A plan is the network's ONNX behind a header. What the double offers is held to `bindings/tensorrt-*.json` by
`test_double.py`: every name, parameter and property. It refuses what the real library punishes by a crash or
by silence: an address that is not aligned or not in live memory, an output's address before the shapes, a
capture before the first run, an input and an output in one place, results that are not checked.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tests.gpu.cuda_double import CudaDouble, new_enum
from tests.gpu.tensorrt_double_build import build_classes
from tests.gpu.tensorrt_double_run import run_classes
from tests.gpu.tensorrt_parts import Truth, nptype


class TensorRtDouble:
    """One version of TensorRT beside one GPU; `module` is what the code under test imports."""

    def __init__(self, description: dict[str, Any], cuda: CudaDouble) -> None:
        self.version: str = description["version"]
        self.major = int(self.version.split(".")[0])
        self.cuda = cuda
        self.truths: list[Truth] = []
        self.builds = 0
        self.unsupported: set[str] = set()  # ONNX operators that the parser shall refuse
        self.loses_captures = False  # what is enqueued while capturing is lost, without an error
        self.loses_capture = 0  # only the so-many-th run of a graph, of those in its capture
        self.refuses_captures = False
        self.enums = {name: new_enum(name, values) for name, values in description["enums"].items()}
        self.severity = new_enum("Severity", description["severities"])
        self.classes = {kind.__name__: kind for kind in (*build_classes(self), *run_classes(self))}

    def module(self) -> ModuleType:
        module = ModuleType("tensorrt")
        module.__dict__.update(self.enums | self.classes | {"__version__": self.version})
        module.__dict__["nptype"] = nptype(self.enums["DataType"])
        return module

    def truth(self, value: bool, call: str) -> Truth:
        return Truth(value, call, self.truths)

    def faults(self) -> list[str]:
        """Results that were not checked."""
        return [f"{truth.call} unchecked" for truth in self.truths if not truth.is_checked]
