"""A session of ONNX Runtime bound to arrays on its device."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends import offline
from flowsep_runtime.errors import BackendError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

#: Words of ONNX Runtime's allocator and of CUDA.
OUT_OF_MEMORY = ("out of memory", "Failed to allocate memory", "ALLOC_FAILED")


class OrtArray:
    """An array in the memory of ONNX Runtime's device, until the graph that made it runs again."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as in numpy."""
        return tuple(self.value.shape())

    def numpy(self) -> Array:
        """A copy on the host."""
        # numpy() gives a view where the host can see the memory, and the next run would write into it
        return np.array(self.value.numpy())


class Bound:
    """A session bound to addresses, which a captured run has in it."""

    def __init__(
        self,
        graph: str,
        session: InferenceSession,
        worker: Executor,
        inputs: Mapping[str, OrtArray],
        outputs: Mapping[str, OrtArray],
        number: int,
    ) -> None:
        onnxruntime = offline.onnxruntime()

        self._graph = graph
        self._session = session
        self._worker = worker
        self._arrays = (inputs, outputs)  # must live as long as their addresses are used
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, array.value)
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, array.value)

    def run(self) -> None:
        """Runs it to the end."""
        try:
            self._worker.submit(self._session.run_with_iobinding, self._binding, self._options).result()
        except Exception as error:
            raise failure(f"ONNX Runtime failed in graph {self._graph}", error) from error


def failure(what: str, error: Exception) -> BackendError:
    """One sentence about a failure, with the first line of ONNX Runtime's own words."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if any(sign in str(error) for sign in OUT_OF_MEMORY):
        return BackendError(f"The GPU has not enough memory ({what}): close what else uses it.")
    return BackendError(f"{what}: {said}")
