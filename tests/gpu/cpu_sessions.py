"""Sessions of ONNX Runtime on the CPU in the place of those on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime


def session_on_the_cpu(path: Path, sizes: Mapping[str, int], options: Mapping[str, str]) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    for axis, size in sizes.items():
        settings.add_free_dimension_override_by_name(axis, size)
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
