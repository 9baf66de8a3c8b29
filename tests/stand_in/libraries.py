"""Builds the stand-in's libraries for an onnxruntime-gpu: those that its CUDA provider links or opens.

`runtime.c` is the CUDA runtime. Of every other library all that the provider asks for is there and says that
it went well; what would launch a kernel is counted.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

RUNTIME = Path(__file__).with_name("runtime.c")
CAPI = Path("onnxruntime/capi")
PROVIDER = CAPI / "libonnxruntime_providers_cuda.so"
#: Asked as well when ONNX Runtime lists all kernels.
OTHER_PROVIDER = CAPI / "libonnxruntime_providers_tensorrt.so"

#: Library -> what its symbols look like.
LIBRARIES = {
    "libcudart": r"(__)?cuda[A-Z]\w*",
    "libcublasLt": r"cublasLt\w+",
    "libcublas": r"cublas(?!Lt)\w+",
    "libcudnn": r"cudnn[A-Z]\w+",
    "libcufft": r"cufft\w+",
    "libcurand": r"curand\w+",
    "libnvinfer": r"createInfer\w+|getPluginRegistry|getInferLibVersion",
    "libnvonnxparser": r"createNvOnnx\w+",
    "libcuda": r"cu(Module|Launch|Func|Get|Link|Device|Tensor|Ctx|Mem|Occupancy|Library)[A-Z]\w*",
}
#: Looked up by name when they are wanted, so that the names are found in the provider's text.
OPENED = ("libcudnn", "libcuda")
LAUNCHES = re.compile(
    r"cublas\w*(Gemm|gemm|geam|Matmul$|scal)\w*|cudnn\w+(Forward\w*|Execute|AddTensor|ReduceTensor)"
)

#: Functions that have to return something.
WRITTEN = {
    "cublasCreate_v2": "long cublasCreate_v2(void **h) { *h = &h; return 0; }",
    "cublasLtCreate": "long cublasLtCreate(void **h) { *h = &h; return 0; }",
    "cublasGetMathMode": "long cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }",
    "cublasGetStatusName": 'const char *cublasGetStatusName(int s) { return "stand-in"; }',
    "cublasGetStatusString": 'const char *cublasGetStatusString(int s) { return "stand-in"; }',
    "cudnnCreate": "long cudnnCreate(void **h) { *h = &h; return 0; }",
    "cudnnGetVersion": "long cudnnGetVersion(void) { return 91000; }",
    "cudnnGetCudartVersion": "long cudnnGetCudartVersion(void) { return STAND_IN_CUDA; }",
    "cudnnGetErrorString": 'const char *cudnnGetErrorString(int s) { return "stand-in"; }',
    "cudnnGetLastErrorString": "void cudnnGetLastErrorString(char *text, long size) { text[0] = 0; }",
    "cuInit": "long cuInit(int flags) { return 0; }",
    "cuDeviceGetCount": "long cuDeviceGetCount(int *count) { *count = 1; return 0; }",
    "cuDriverGetVersion": "long cuDriverGetVersion(int *v) { *v = STAND_IN_CUDA; return 0; }",
    "cuMemGetInfo_v2": "long cuMemGetInfo_v2(long *f, long *a) { *f = 70l << 30; *a = 80l << 30; return 0; }",
}
#: Headers of the compiler that the runtime's headers include; they come in another package.
DEFINES = """
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __host__
#define CUDARTAPI
"""
DRIVER: tuple[str, ...] = (
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuMemGetInfo_v2",
    "cuCtxSetCurrent",
)
DRIVER += ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2", "cuGetProcAddress_v2")


def build(site: Path, headers: Path, folder: Path, cuda: int) -> None:
    """Writes the libraries into a folder that goes into LD_LIBRARY_PATH.

    Args:
        site: Where onnxruntime-gpu is installed, without CUDA: ONNX Runtime would load what is there.
        headers: Where nvidia-cuda-runtime is.
        folder: Where the libraries go.
        cuda: The version that they give themselves: 13000.
    """
    providers = [str(site / PROVIDER), str(site / OTHER_PROVIDER)]
    needed = re.findall(r"\[(lib(?:cu|nv)\w+\.so\.\d+)\]", _output("readelf", "-d", *providers))
    undefined = re.findall(r" UND (\S+)", _output("readelf", "--dyn-syms", "-W", *providers))
    content = (site / PROVIDER).read_bytes()
    names = {name.partition(".so")[0]: name for name in needed}
    names |= {"libcudnn": "libcudnn.so.9", "libcuda": "libcuda.so.1"}
    (folder / "crt").mkdir()
    (folder / "crt" / "host_defines.h").write_text(DEFINES, encoding="utf-8")
    (header,) = {path.parent for path in headers.rglob("driver_types.h")}
    for library in ("libcudart", *(name for name in names if name != "libcudart")):
        pattern = re.compile(LIBRARIES.get(library, "$^"))
        versions: dict[str, set[str]] = defaultdict(set)
        for symbol in undefined:
            name, _, version = symbol.partition("@")
            if pattern.fullmatch(name):
                versions[version].add(name)
        if library in OPENED:
            known = set().union(*versions.values())
            found = re.finditer(rb"\0(" + LIBRARIES[library].encode() + rb")(?=\0)", content)
            versions[""] |= {match[1].decode() for match in found} - known
        if library == "libcuda":
            versions[""] |= set(DRIVER)
        source = RUNTIME.read_text(encoding="utf-8") if library == "libcudart" else ""
        source += "".join(_stub(name, source) for name in sorted(set().union(*versions.values())))
        _compile(source, folder, names[library], versions, header, cuda, library != "libcudart")


def _stub(name: str, written: str) -> str:
    if re.search(rf"\b{name}\(", written):
        return ""
    if name in WRITTEN:
        return WRITTEN[name] + "\n"
    work = "stand_in_kernel(); " if LAUNCHES.fullmatch(name) else ""
    return f"long {name}(void) {{ {work}return 0; }}\n"


def _compile(
    source: str,
    folder: Path,
    library: str,
    versions: dict[str, set[str]],
    header: Path,
    cuda: int,
    has_counter: bool,
) -> None:
    if has_counter:
        source = "extern void stand_in_kernel(void);\n" + source
    (folder / "source.c").write_text(source, encoding="utf-8")
    exported = [(version, names) for version, names in versions.items() if version and names]
    script = "".join(f"{version} {{ global: {_listed(names)} }};\n" for version, names in exported)
    (folder / "versions").write_text(script, encoding="utf-8")
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        f"-DSTAND_IN_CUDA={cuda}",
        f"-I{header}",
        f"-I{folder}",
        "-include",
        "stddef.h",
    ]
    command += [f"-Wl,-soname,{library}", "-o", str(folder / library), str(folder / "source.c")]
    if script:
        command.append(f"-Wl,--version-script={folder / 'versions'}")
    if has_counter:
        command += [str(next(folder.glob("libcudart.so.*")))]
    subprocess.run(command, check=True)


def _listed(names: Iterable[str]) -> str:
    return " ".join(f"{name};" for name in sorted(names))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
