"""Puts the doubles where the code imports TensorRT and CUDA from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.gpu.cuda_double import CudaDouble
from tests.gpu.tensorrt_double import TensorRtDouble

BINDINGS = Path(__file__).parent / "bindings"
VERSIONS = ("10.13.3.9", "11.4.0.106")


def description(library: str, version: str = "*") -> dict[str, Any]:
    """A description that `describe.py` wrote."""
    (path,) = BINDINGS.glob(f"{library}-{version}.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class Machine:
    """A GPU with TensorRT."""

    def __init__(self, version: str) -> None:
        self.cuda = CudaDouble(description("cuda"))
        self.trt = TensorRtDouble(description("tensorrt", version), self.cuda)

    def faults(self) -> list[str]:
        """The state that a run left behind."""
        return self.cuda.faults() + self.trt.faults()


@contextmanager
def installed(version: str) -> Iterator[Machine]:
    """A machine that the code finds until the end of the block."""
    machine = Machine(version)
    runtime = machine.cuda.module()
    bindings, cuda = ModuleType("cuda.bindings"), ModuleType("cuda")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    cuda.bindings = bindings  # type: ignore[attr-defined]
    modules = {
        "cuda": cuda,
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": runtime,
        "tensorrt": machine.trt.module(),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None)
            patch.setitem(sys.modules, name, module)
        yield machine
