"""Every operator of every exported graph is one that the GPU's libraries have, in the type it is used with.

The tables are the libraries' own words (`tables/`): the kernels that the lowest and the newest supported
onnxruntime-gpu register, and the operators of TensorRT's parser.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from flowsep_export.onnx.cuda_variant import pad_as_before
from flowsep_export.tensorrt.passes import prepared, prepared_loop
from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS, device_graph_path
from flowsep_runtime.bundle.manifest import Manifest
from tests.export.conftest import *  # noqa: F403
from tests.export.conftest import Exported
from tests.gpu.operators import Need, cuda_kernels, needs, table_lines

LOWEST, NEWEST = "1.23.2", "1.31.1"
PARSER = "tensorrt-10.15"
#: TensorRT's names of types.
PARSER_TYPES = {"float": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}


@pytest.fixture(scope="session", params=["float32", "half"])
def bundle(request: pytest.FixtureRequest) -> Path:
    name = "tiny_bundle" if request.param == "float32" else "tiny_half_bundle"
    exported: Exported = request.getfixturevalue(name)
    return exported.folder


def sizes_of(manifest: Manifest, batch: int) -> dict[str, int]:
    model = manifest.model
    (features,) = manifest.graphs["velocity_time"].outputs
    return {
        "batch": batch,
        "frames": model.clip_frames,
        "samples": model.clip_samples,
        "t": model.clip_frames // model.latent_stride,
        "steps": 4,
        "channels": model.latent_channels,
        "frequencies": model.latent_frequencies,
        "shifts": int(features.shape[1]),
    }


def unmet(version: str, wanted: set[str], needed: list[Need]) -> list[str]:
    kernels = cuda_kernels(version)
    wanted.update(need.operator for need in needed)
    return sorted(
        {
            f"{need.operator} of opset {need.version} in {dict(need.types)}"
            for need in needed
            if not any(kernel.takes(need) for kernel in kernels.get(need.operator, []))
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("version", [LOWEST, NEWEST])
def test_the_cuda_provider_has_a_kernel_for_every_node(bundle: Path, version: str) -> None:
    manifest = Manifest.read(bundle)
    own = manifest.variants["cuda"]
    paths = [bundle / (own.get(name) or manifest.graphs[name]).files[0].name for name in manifest.graphs]
    paths += [bundle / entry.files[0].name for name, entry in own.items() if name not in manifest.graphs]
    met: set[str] = set()
    for path in (*paths, *map(device_graph_path, DEVICE_GRAPHS)):
        needed = list(needs(onnx.load(path, load_external_data=False), sizes_of(manifest, 2)))
        assert needed and unmet(version, met, needed) == [], path.name
    assert {"Conv", "Softmax", "Gelu", "Pad"} <= met


@pytest.mark.slow
def test_the_padding_of_opset_19_is_what_the_lowest_version_lacks(tiny_bundle: Exported) -> None:
    """The rule of ONNX Runtime by which a kernel of 18+ is not for 19."""
    model = onnx.load(tiny_bundle.folder / "log_mel.onnx")
    sizes = sizes_of(Manifest.read(tiny_bundle.folder), 1)
    missing = unmet(LOWEST, set(), list(needs(model, sizes)))
    assert [line.split(" in ")[0] for line in missing] == ["Pad of opset 19"]
    assert unmet(NEWEST, set(), list(needs(model, sizes))) == []
    pad_as_before(model)
    assert unmet(LOWEST, set(), list(needs(model, sizes))) == []


@pytest.mark.slow
def test_the_parser_of_tensorrt_has_every_operator(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    sizes = sizes_of(manifest, 2)
    files = {name: bundle / entry.files[0].name for name, entry in manifest.graphs.items()}
    models = {name: prepared(path, sizes) for name, path in files.items() if name != "velocity"}
    models |= prepared_loop(files["velocity"], sizes)
    models |= {name: onnx.load(device_graph_path(name)) for name in DEVICE_GRAPHS}
    supported = {line.split()[0]: set(line.split()[1:]) for line in table_lines(PARSER)}
    for name, model in models.items():
        onnx.checker.check_model(model)
        (opset,) = {entry.version for entry in model.opset_import}
        assert 9 <= opset <= 24
        for need in needs(model, sizes):
            kinds = {PARSER_TYPES[kind] for kind in need.types.values()}
            assert need.operator in supported, f"{name}: {need.operator}"
            # a Cast is between two of them; indices and shapes are no data
            assert kinds - supported[need.operator] <= {"INT64"}, f"{name}: {need}"
        for node in model.graph.node:
            if node.op_type in ("LayerNormalization", "InstanceNormalization"):
                assert len(node.output) == 1
            if node.op_type.startswith("Reduce"):
                assert node.input[1] in {tensor.name for tensor in model.graph.initializer}


@pytest.mark.slow
def test_an_operator_that_a_library_lacks_is_named(tiny_half_bundle: Exported) -> None:
    path = tiny_half_bundle.folder / "velocity.onnx"
    sizes = sizes_of(Manifest.read(tiny_half_bundle.folder), 1)
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Mish"
    assert unmet(NEWEST, set(), list(needs(model, sizes))) == ["Mish of opset 18 in {'T': 'float16'}"]
