"""The first GPU, through its driver alone: its availability, name and used memory.

Every library that runs on it (PyTorch, ONNX Runtime, TensorRT) shares the driver's primary context, so one
count of memory is valid for all of them.
"""

from __future__ import annotations

import ctypes
from typing import Any

from benchmarks.common.contestants import Device
from flowsep_runtime.backends import nvidia_driver
from flowsep_runtime.errors import BackendError, OptionError

NAME_BYTES = 128


def device_for(asked: str) -> Device:
    """The device to measure on.

    Args:
        asked: "cpu", "cuda", or "auto": the GPU where there is one that PyTorch can use.

    Raises:
        OptionError: If a GPU is asked for and cannot be used.
    """
    if asked == "cpu":
        return "cpu"
    reason = why_no_gpu()
    if reason is None:
        return "cuda"
    if asked == "cuda":
        raise OptionError(f"There is no GPU to measure on: {reason}.")
    return "cpu"


def why_no_gpu() -> str | None:
    """The reason why PyTorch, the reference, cannot use a GPU here; None if it can."""
    reason = nvidia_driver.why_no_driver()
    if reason is not None:
        return reason
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built for CPUs"
    return None if torch.cuda.is_available() else "PyTorch cannot use the GPU"


class Gpu:
    """The first GPU of CUDA, with its context."""

    def __init__(self) -> None:
        self._driver = nvidia_driver.load(nvidia_driver.DRIVER)
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    @property
    def name(self) -> str:
        """The name given by its maker."""
        name = ctypes.create_string_buffer(NAME_BYTES)
        self._call("cuDeviceGetName", name, NAME_BYTES, self._device)
        return name.value.decode()

    def used_bytes(self) -> int:
        """Memory in use by all processes."""
        self._call("cuCtxSetCurrent", self._context)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def _call(self, function: str, *arguments: Any) -> None:
        error = getattr(self._driver, function)(*arguments)
        if error:
            raise BackendError(f"The NVIDIA driver failed ({function}: CUDA error {error}).")
