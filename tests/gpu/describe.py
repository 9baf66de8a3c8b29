"""Writes down what the bindings of TensorRT and of CUDA offer: every name and signature of what we use.

    pip install --no-deps tensorrt_cu13_bindings cuda-bindings      # in an environment of your own
    python tests/gpu/describe.py tests/gpu/bindings

TensorRT's bindings load NVIDIA's libraries when they are imported. Where those are missing, an empty library
of each name (`gcc -shared`) with the handful of C functions that `nm -D --undefined-only` lists is enough to
read signatures; nothing can be run with it. The strict double (`tensorrt_double.py`) is held to these files.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from enum import IntEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

TENSORRT_CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "ILogger",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
TENSORRT_ENUMS = (
    "BuilderFlag",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "TensorIOMode",
)
TENSORRT_FUNCTIONS = ("nptype", "volume")
CUDA_FUNCTIONS = re.compile(
    r"cuda(Malloc|MallocHost|Free|FreeHost|MemcpyAsync|MemsetAsync|SetDevice|GetDeviceCount|GetDevice"
    r"|DeviceGetAttribute|GetDeviceProperties|RuntimeGetVersion|DriverGetVersion|MemGetInfo|GetLastError"
    r"|GetErrorString|Stream(CreateWithFlags|Synchronize|Destroy|BeginCapture|EndCapture)"
    r"|Graph(Instantiate|Upload|Launch|GetNodes|ExecDestroy|Destroy)"
    r"|Event(Create|Record|Synchronize|ElapsedTime|Destroy))$"
)
CUDA_ENUMS = ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr")


def described(member: Any) -> dict[str, Any]:
    """A pybind11 function or method: a list of (argument, has a default) an overload, without self."""
    doc = (member.__doc__ or "").strip()
    lines = doc.splitlines() or [""]
    overloads = re.findall(r"^\d+\. (.+)$", doc, re.MULTILINE) if "Overloaded function." in doc else lines[:1]
    return {"overloads": [_arguments(line) for line in overloads]}


def _arguments(signature: str) -> list[list[Any]]:
    match = re.match(r"\w+\((.*)\)(?: -> .*)?$", signature)
    if match is None:
        return []
    arguments, depth, start, text = [], 0, 0, match[1]
    for index, character in enumerate(text + ","):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            arguments.append(text[start:index].strip())
            start = index + 1
    return [
        [re.split(r"[:=]", argument)[0].strip(), " = " in argument]
        for argument in arguments
        if argument and not argument.startswith("self")
    ]


def described_class(kind: Any) -> dict[str, Any]:
    """Methods and properties, but for Python's own."""
    members: dict[str, Any] = {"methods": {}, "properties": {}}
    for name in dir(kind):
        if name.startswith("_") and name != "__init__":
            continue
        member = getattr(kind, name)
        if isinstance(member, property):
            members["properties"][name] = {"settable": member.fset is not None}
        elif callable(member) and not inspect.isclass(member):
            members["methods"][name] = described(member)
    return members


def tensorrt_description() -> dict[str, Any]:
    """Description of the bindings that this interpreter imports."""
    import tensorrt_bindings as trt

    severities = {name: int(value) for name, value in trt.ILogger.Severity.__members__.items()}
    return {
        "version": trt.__version__,
        "classes": {name: described_class(getattr(trt, name)) for name in TENSORRT_CLASSES},
        "enums": {
            name: {key: int(value) for key, value in getattr(trt, name).__members__.items()}
            for name in TENSORRT_ENUMS
        },
        "functions": {name: described(getattr(trt, name)) for name in TENSORRT_FUNCTIONS},
        "severities": severities,
    }


def cuda_description() -> dict[str, Any]:
    """Description of `cuda.bindings.runtime`."""
    from cuda.bindings import runtime

    functions = {}
    for name in dir(runtime):
        if CUDA_FUNCTIONS.match(name):
            parameters = inspect.signature(getattr(runtime, name)).parameters.values()
            functions[name] = [[p.name, p.default is not inspect.Parameter.empty] for p in parameters]
    enums: dict[str, dict[str, int]] = {}
    for name in CUDA_ENUMS:
        kind: type[IntEnum] = getattr(runtime, name)
        enums[name] = {key: int(value) for key, value in kind.__members__.items()}
    attributes = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
    enums["cudaDeviceAttr"] = {name: enums["cudaDeviceAttr"][name] for name in attributes}
    return {
        "version": version("cuda-bindings"),
        "functions": functions,
        "enums": enums,
        "constants": {"cudaStreamNonBlocking": int(runtime.cudaStreamNonBlocking)},
    }


def main(folder: Path) -> None:
    """Writes a file for every library that is installed."""
    for library, describe in (("tensorrt", tensorrt_description), ("cuda", cuda_description)):
        try:
            content = describe()
        except ImportError as error:
            print(f"{library}: {error}", file=sys.stderr)
            continue
        path = folder / f"{library}-{content['version']}.json"
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
