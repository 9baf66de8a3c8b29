"""The double has the bindings' shape, and its rules bite: otherwise what it passes would mean nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.gpu.cuda_double import IMPLEMENTED, CudaDouble, DoubleError
from tests.gpu.doubles import VERSIONS, Machine, description, installed
from tests.gpu.tensorrt_parts import Truth


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with installed(request.param) as machine:
        yield machine


# --- its shape


def test_both_versions_and_cuda_are_described() -> None:
    assert [description("tensorrt", version)["version"] for version in VERSIONS] == list(VERSIONS)
    assert len(description("cuda")["functions"]) > 25


@pytest.mark.parametrize("version", VERSIONS)
def test_every_member_of_the_double_is_one_of_the_bindings(version: str) -> None:
    known = description("tensorrt", version)["classes"]
    with installed(version) as machine:
        for name, kind in machine.trt.classes.items():
            for member, value in vars(kind).items():
                if member.startswith("_") or member == "Severity":
                    continue
                where = f"{name}.{member}"
                if isinstance(value, property):
                    settable = known[name]["properties"][member]["settable"]
                    assert value.fset is None or settable, f"{where} cannot be set"
                    continue
                parameters = list(inspect.signature(value).parameters.values())[1:]
                found = [(p.name, p.default is not inspect.Parameter.empty) for p in parameters]
                overloads = known[name]["methods"][member]["overloads"]
                names = [[argument for argument, _ in overload] for overload in overloads]
                assert [argument for argument, _ in found] in names, f"{where}{found} is none of {overloads}"


@pytest.mark.parametrize("version", VERSIONS)
def test_enumerations_are_the_versions_own(version: str) -> None:
    with installed(version) as machine:
        flags = machine.trt.enums["BuilderFlag"]
        assert hasattr(flags, "TF32")
        assert hasattr(flags, "FP16") == (machine.trt.major == 10), "the flag that 11 has no more"


def test_every_function_of_the_double_is_one_of_cudas_with_its_arguments() -> None:
    functions = description("cuda")["functions"]
    for name in IMPLEMENTED:
        parameters = list(inspect.signature(getattr(CudaDouble, name)).parameters)[1:]
        assert len(parameters) == len(functions[name]), name


def test_an_unknown_name_or_argument_is_refused(machine: Machine) -> None:
    import tensorrt
    from cuda.bindings import runtime

    with pytest.raises(AttributeError):
        runtime.cudaMallocManaged(4)
    with pytest.raises(TypeError):
        runtime.cudaMalloc(4, 4)
    runtime.cudaSetDevice(0)
    builder = tensorrt.Builder(logger())
    config = builder.create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        builder.platform_has_fast_fp16  # noqa: B018
    with pytest.raises(TypeError):
        config.set_flag("TF32", True)


# --- its rules


def logger() -> Any:
    from flowsep_runtime.backends.tensorrt.plans import quiet_logger

    return quiet_logger()


def double_of_x() -> bytes:
    """y = x + x for x [batch, 4]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="the_sum")],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


class Rig:
    """An engine for batches 1 to 2 on a stream, with memory to go wrong with."""

    def __init__(self, machine: Machine) -> None:
        import tensorrt
        from cuda.bindings import runtime

        self.machine, self.trt, self.cudart = machine, tensorrt, runtime
        runtime.cudaSetDevice(0)
        _, self.stream = runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)
        builder = tensorrt.Builder(logger())
        network = builder.create_network(0 if machine.trt.major >= 11 else 1 << 1)
        bool(tensorrt.OnnxParser(network, logger()).parse(double_of_x()))
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, 4), (1, 4), (2, 4))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        self.engine = tensorrt.Runtime(logger()).deserialize_cuda_engine(plan)
        strategy = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.context = self.engine.create_execution_context(strategy)
        _, self.scratch = runtime.cudaMalloc(4096)
        _, self.x = runtime.cudaMalloc(256)
        _, self.y = runtime.cudaMalloc(256)
        _, self.host = runtime.cudaMallocHost(256)

    def bind(self) -> None:
        self.context.set_device_memory(self.scratch, 4096)
        bool(self.context.set_input_shape("x", (1, 4)))
        bool(self.context.set_tensor_address("x", self.x))
        bool(self.context.set_tensor_address("y", self.y))

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(int(self.stream)))

    def capture(self) -> Any:
        mode = self.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cudart.cudaStreamBeginCapture(self.stream, mode)
        ran = self.run()
        error, graph = self.cudart.cudaStreamEndCapture(self.stream)
        return ran, error.name, graph


@pytest.fixture
def rig(machine: Machine) -> Rig:
    return Rig(machine)


def values(rig: Rig, pointer: int) -> Any:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_float * 4).from_address(pointer))


def test_it_computes_when_the_stream_is_synchronised(rig: Rig) -> None:
    rig.bind()
    values(rig, rig.x)[:] = 3
    assert rig.run()
    assert not (values(rig, rig.y) == 6).any(), "a result that is read too early must be wrong"
    rig.cudart.cudaStreamSynchronize(rig.stream)
    assert (values(rig, rig.y) == 6).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r: r.context.set_tensor_address("x", r.x), "before all shapes"),
        (lambda r: (r.bind(), r.context.set_tensor_address("x", r.x + 4)), "not a multiple"),
        (lambda r: (r.bind(), r.context.set_tensor_address("x", r.host // 256 * 256)), "not in live memory"),
        (lambda r: (r.bind(), r.context.set_tensor_address("y", r.x), r.run()), "in one place"),
        (lambda r: r.context.set_device_memory(r.scratch + 4, 2000), "aligned"),
        (lambda r: r.context.set_device_memory(r.scratch, 256), "large enough"),
        (lambda r: (r.bind(), r.context.execute_async_v3(0)), "no live stream"),
        (lambda r: r.engine.create_execution_context(), "own activations"),
        (lambda r: (r.bind(), r.run(), r.cudart.cudaFree(r.x)), "while work is enqueued"),
        (lambda r: (r.cudart.cudaFree(r.x), r.cudart.cudaFree(r.x)), "freed before"),
        (lambda r: r.cudart.cudaStreamCreateWithFlags(0), "waits for the default"),
        (lambda r: r.trt.Builder(logger()).create_network(1 << 5), "no strongly typed"),
        (lambda r: copy(r, r.x, r.y, "HostToDevice"), "not in live memory of kind p"),
        (lambda r: copy(r, r.x, r.host, "DeviceToDevice"), "not in live memory of kind d"),
        (lambda r: copy(r, r.x + 16, r.host, "HostToDevice"), "not in live memory"),
    ],
)
def test_a_fault_is_refused(rig: Rig, wrong: Callable[[Rig], Any], message: str) -> None:
    with pytest.raises(DoubleError, match=message):
        wrong(rig)


def copy(rig: Rig, target: int, source: int, kind: str) -> None:
    direction = getattr(rig.cudart.cudaMemcpyKind, f"cudaMemcpy{kind}")
    rig.cudart.cudaMemcpyAsync(target, source, 256, direction, rig.stream)


def test_shapes_outside_the_profile_and_missing_addresses_are_false(rig: Rig) -> None:
    assert not rig.context.set_input_shape("x", (3, 4))
    assert not rig.context.set_input_shape("x", (1, 5))
    rig.context.set_device_memory(rig.scratch, 4096)
    assert rig.context.set_input_shape("x", (2, 4))
    assert rig.context.set_tensor_address("x", rig.x)
    assert not rig.run()
    assert rig.context.set_tensor_address("y", rig.y)
    assert rig.run()
    assert rig.context.set_input_shape("x", (1, 4))
    assert not rig.run(), "after another shape the output's address must be given again"


def test_a_capture_before_the_first_run_fails(rig: Rig) -> None:
    rig.bind()
    assert rig.run()  # enqueued, but not done yet
    assert rig.capture()[:2] == (False, "cudaErrorStreamCaptureInvalidated")
    rig.cudart.cudaStreamSynchronize(rig.stream)
    ran, error, graph = rig.capture()
    assert ran and error == "cudaSuccess" and len(graph.work) == 1


def test_nothing_may_be_allocated_or_waited_for_in_a_capture(rig: Rig) -> None:
    mode = rig.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    functions: list[Callable[[], Any]] = [
        lambda: rig.cudart.cudaMalloc(256),
        lambda: rig.cudart.cudaMallocHost(256),
        lambda: rig.cudart.cudaStreamSynchronize(rig.stream),
    ]
    for forbidden in functions:
        rig.cudart.cudaStreamBeginCapture(rig.stream, mode)
        assert forbidden()[0].name == "cudaErrorStreamCaptureUnsupported"
        assert rig.cudart.cudaStreamEndCapture(rig.stream)[0].name == "cudaErrorStreamCaptureInvalidated"


def test_what_is_not_freed_or_not_looked_at_is_known(rig: Rig) -> None:
    rig.context.set_input_shape("x", (1, 4))
    faults = rig.machine.faults()
    assert "3 memory not freed" in faults and "1 pinned memory not freed" in faults
    assert "1 stream not freed" in faults
    assert "cudaMalloc unchecked" in faults and "set_input_shape unchecked" in faults


def test_a_plan_of_another_version_or_gpu_is_none(rig: Rig) -> None:
    runtime = rig.trt.Runtime(logger())
    assert runtime.deserialize_cuda_engine(b"something else") is None
    rig.machine.cuda.name = b"NVIDIA Double 2"
    builder = rig.trt.Builder(logger())
    network = builder.create_network(0 if rig.machine.trt.major >= 11 else 2)
    assert rig.trt.OnnxParser(network, logger()).parse(double_of_x())
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None, "no profile"


def test_the_parser_refuses_what_it_is_told_to(rig: Rig) -> None:
    rig.machine.trt.unsupported = {"Add"}
    builder = rig.trt.Builder(logger())
    parser = rig.trt.OnnxParser(builder.create_network(0 if rig.machine.trt.major >= 11 else 2), logger())
    assert not parser.parse(double_of_x())
    assert [parser.get_error(i).node_name() for i in range(parser.num_errors)] == ["the_sum"]


def test_external_weights_need_the_files_place(rig: Rig, tmp_path: Any) -> None:
    model = onnx.load_from_string(double_of_x())
    tensor = onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), "x2")
    model.graph.initializer.append(tensor)
    model.graph.node[0].input[1] = "x2"
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    content = onnx.load(tmp_path / "m.onnx", load_external_data=False).SerializeToString()
    builder = rig.trt.Builder(logger())
    network = builder.create_network(0 if rig.machine.trt.major >= 11 else 2)
    with pytest.raises(DoubleError, match="need the path"):
        rig.trt.OnnxParser(network, logger()).parse(content)
    assert rig.trt.OnnxParser(network, logger()).parse(content, str(tmp_path / "m.onnx"))


def test_a_truth_knows_whether_it_was_looked_at() -> None:
    log: list[Truth] = []
    truth = Truth(True, "call", log)
    assert not log[0].is_checked and bool(truth) and log[0].is_checked
