"""Libraries that ONNX Runtime's CUDA provider needs, loaded to find the missing ones.

Asked before a session is made: ONNX Runtime itself would go on, silently, on the CPU.
"""

from __future__ import annotations

import ctypes
import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

PROVIDER_LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
CUDNN = "libcudnn.so.9"  # the provider loads it when the first convolution runs


def why_no_driver() -> str | None:
    """Why there is no GPU to use, in words; None if there is one."""
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver here (libcuda.so.1)"
    count = ctypes.c_int(0)
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error:
        return f"the NVIDIA driver does not start (CUDA error {error})"
    return None if count.value else "there is no NVIDIA GPU here"


def missing_library(onnxruntime: ModuleType) -> str | None:
    """The library that the CUDA provider misses, in words; None if all are there."""
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on; finds those of the nvidia-* packages
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            onnxruntime.preload_dlls()
    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    for library in (*(str(folder / name) for name in PROVIDER_LIBRARIES), CUDNN):
        try:
            load(library)
        except OSError as error:
            return (
                f"a library is missing ({' '.join(str(error).split())}), run: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
    return None


def load(library: str) -> ctypes.CDLL:
    """Loads a shared library, visible to those that are loaded after it."""
    return ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
