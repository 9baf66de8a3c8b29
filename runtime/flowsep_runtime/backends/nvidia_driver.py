"""The NVIDIA driver, asked before any library that runs on it: is it here, is it new enough, how much memory
is free."""

from __future__ import annotations

import ctypes

DRIVER = "libcuda.so.1"
GIB = 1 << 30


def load(library: str) -> ctypes.CDLL:
    """Loads a shared library, visible to those that are loaded after it."""
    return ctypes.CDLL(library, ctypes.RTLD_GLOBAL)


def why_no_driver() -> str | None:
    """Why there is no GPU to use, in words; None if there is one."""
    try:
        driver = load(DRIVER)
    except OSError:
        return f"there is no NVIDIA driver here ({DRIVER})"
    count = ctypes.c_int(0)
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error:
        return f"the NVIDIA driver does not start (CUDA error {error})"
    return None if count.value else "there is no NVIDIA GPU here"


def why_too_old(library: str, cuda: str, instead: str) -> str | None:
    """Why the driver, which is there, cannot run a library made for a version of CUDA; None if it can.

    A driver runs whatever was made for its own major version of CUDA or an older one.

    Args:
        library: The library, for the sentence.
        cuda: Its version of CUDA, "13.0".
        instead: What to install for a driver of CUDA 12.
    """
    version = ctypes.c_int(0)
    error = load(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    if error:
        return f"the NVIDIA driver does not say its version (CUDA error {error})"
    major, minor = version.value // 1000, version.value % 1000 // 10
    if major >= int(cuda.split(".")[0]):
        return None
    or_else = f", or run: pip install '{instead}'" if major == 12 else ""
    return (
        f"the NVIDIA driver is too old: it is made for CUDA {major}.{minor}, and {library} for CUDA {cuda}; "
        f"update the driver{or_else}"
    )


def why_too_full(free: int, wanted: int) -> str | None:
    """Why the GPU has not enough memory left, in words; None if it has.

    Args:
        free: Bytes that nobody uses.
        wanted: Bytes without which nothing can run.
    """
    if free >= wanted:
        return None
    return (
        f"the GPU has {free / GIB:.1f} GiB of memory free and {wanted / GIB:.1f} are wanted at least: "
        "close what else uses it"
    )


def free_bytes() -> int | None:
    """Memory of the first GPU that nobody uses; None if the driver does not say.

    Leaves the primary context, which all libraries share, current in this thread.
    """
    try:
        driver = load(DRIVER)
    except OSError:
        return None
    device, context = ctypes.c_int(0), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    error = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    )
    if error:
        return None
    try:
        error = driver.cuCtxSetCurrent(context) or driver.cuMemGetInfo_v2(
            ctypes.byref(free), ctypes.byref(total)
        )
        return None if error else free.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
