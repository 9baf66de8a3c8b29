"""Libraries that ONNX Runtime's CUDA provider needs, loaded to find the missing ones.

Asked before a session is made: ONNX Runtime itself would go on, silently, on the CPU.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType

from flowsep_runtime.backends import nvidia_driver

PROVIDER_LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
CUDNN = "libcudnn.so.9"  # the provider loads it when the first convolution runs


def why_old_driver() -> str | None:
    """Why the driver cannot run what this onnxruntime-gpu was built for, in words; None if it can."""
    try:
        cuda = str(import_module("onnxruntime.capi.build_and_package_info").cuda_version)
    except (ImportError, AttributeError):
        return None  # built by somebody else: the first session will tell
    if not cuda:
        return None
    return nvidia_driver.why_too_old("this onnxruntime-gpu", cuda, "flowsep-engine[gpu-cu12]")


def missing_library(onnxruntime: ModuleType) -> str | None:
    """The library that the CUDA provider misses, in words; None if all are there.

    Args:
        onnxruntime: The module, imported: the provider calls into the library that comes with it, and loading
            the provider before that is a crash.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on; finds those of the nvidia-* packages
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            onnxruntime.preload_dlls()
    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    for library in (*(str(folder / name) for name in PROVIDER_LIBRARIES), CUDNN):
        try:
            nvidia_driver.load(library)
        except OSError as error:
            return (
                f"a library is missing ({' '.join(str(error).split())}), run: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
    return None


def keeps_captures(version: str) -> bool:
    """True if what this ONNX Runtime captures may be replayed.

    Before 1.31, joining tensors of several sizes copies their sizes from host memory that is given back at
    the end of the run: every replay would read there what others have written meanwhile.
    """
    return tuple(int(part) for part in version.split(".")[:2]) >= (1, 31)
