"""Backends, imported so that they open no connection.

Two of them report to their makers by default: importing openvino writes an identity of the user to `~/intel`
and sends an event, where openvino-telemetry is installed, which pip does; ONNX Runtime from 1.29 on does the
like when it makes its first session. What a recording is searched for is nobody's business, and a machine
without a network must not wait for one.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def openvino() -> ModuleType:
    """The module openvino.

    Without openvino-telemetry it does without; so that is hidden while openvino is imported, unless the
    program has imported it for itself.
    """
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # Python's own sign for "not to be had"
    try:
        return import_module("openvino")
    finally:
        if hidden:
            del sys.modules[telemetry]


def onnxruntime() -> ModuleType:
    """The module onnxruntime, which reads the variable when it is loaded; `ORT_DISABLE_TELEMETRY=0` in the
    environment leaves its telemetry on, and so does a program that has imported it before."""
    ours = "onnxruntime" not in sys.modules
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    module = import_module("onnxruntime")
    # On Windows the variable is not read.
    if ours and os.environ["ORT_DISABLE_TELEMETRY"] == "1" and hasattr(module, "disable_telemetry_events"):
        module.disable_telemetry_events()
    return module
