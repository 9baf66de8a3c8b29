"""Kernels of a wheel's CUDA provider: `kernels.py SITE OPERATOR…` prints those of the operators, a line each.

Versions and types are those that ONNX Runtime registers; `tests/gpu/tables` has them.
"""

from __future__ import annotations

import sys

SITE, *OPERATORS = sys.argv[1:]
sys.path.insert(0, SITE)

from onnxruntime.capi import onnxruntime_pybind11_state as runtime  # noqa: E402

NEWEST = 2**31 - 1
#: Those that graphs have, as onnx's schemas name them.
TYPES = ("float", "float16", "int64", "int32", "bool")
#: Older versions of an operator are in no graph; ONNX Runtime's own operators are of version 1.
LEAST_OPSET = 13


def main() -> None:
    lines = set()
    for kernel in runtime.get_all_opkernel_def():
        name = f"{kernel.domain}::{kernel.op_name}" if kernel.domain else kernel.op_name
        first, last = kernel.version_range
        if kernel.provider != "CUDAExecutionProvider" or name not in OPERATORS or last < LEAST_OPSET:
            continue
        allowed = {
            constraint: [kind for kind in TYPES if f"tensor({kind})" in kinds]
            for constraint, kinds in sorted(kernel.type_constraints.items())
        }
        if all(allowed.values()):
            versions = f"{first}+" if last == NEWEST else f"{first}-{last}"
            types = " ".join(f"{constraint}={','.join(kinds)}" for constraint, kinds in allowed.items())
            lines.add((name, first, f"{name} {versions} {types}".strip()))
    print("\n".join(line for _, _, line in sorted(lines)))


if __name__ == "__main__":
    main()
