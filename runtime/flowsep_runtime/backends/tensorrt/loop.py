"""Euler's loop on the device, all its steps in one CUDA graph if they are not too many.

Every step uses the same addresses: the velocity engine reads `x` and `time_features`, `advance` reads what it
gave, and two small copies bring the next state and the next step's times into place. So a graph of N steps
needs no more of TensorRT than N runs at one binding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends.tensorrt.cuda_device import Captured, Device, DeviceArray
from flowsep_runtime.backends.tensorrt.plans import Bound, Values, captured, put

#: Steps that still go into one graph, which has a node for every kernel of every step.
LONGEST = 128


class Loop:
    """N steps for one shape.

    Args:
        device: Where it runs.
        constants: What stays the same in all steps.
        velocity, advance: The step's engines, the first bound to what `constants` gives, the second to the
            first's arrays.
        rows: The time features of every step [N, E].
        lengths: Of every step [N].
    """

    def __init__(
        self,
        device: Device,
        constants: Bound,
        velocity: Bound,
        advance: Bound,
        rows: DeviceArray,
        lengths: Floats,
    ) -> None:
        self._device = device
        self._constants = constants
        self._velocity = velocity
        self._advance = advance
        self._steps = len(lengths)
        x = velocity.arrays["x"]
        self._start = DeviceArray(device.allocate(x.nbytes), x.shape, x.dtype)
        self._rows = DeviceArray(device.allocate(rows.nbytes), rows.shape, rows.dtype)
        put(device, self._rows, rows)
        dts = lengths.reshape(-1, 1)
        self._dts = DeviceArray(device.allocate(dts.nbytes), dts.shape, dts.dtype)
        put(device, self._dts, dts)
        self._graph: Captured | None = None
        self._is_tried = self.is_long = self._steps > LONGEST

    @property
    def is_captured(self) -> bool:
        """True if it runs as one graph."""
        return self._graph is not None

    def run(self, noise: Values, invariants: Mapping[str, Values]) -> DeviceArray:
        """Solve from noise [B, 8, t, 16]. The solution stays until the velocity engine runs again;
        `invariants` are the inputs of the velocity that no step changes."""
        put(self._device, self._start, noise)
        self._constants.run(invariants)
        state = self._velocity.arrays["x"]
        if not self._is_tried:
            self._is_tried = True
            self._graph = self._captured()
        if self._graph is None:
            self._enqueue(self._velocity.launch)
        else:
            self._graph.launch()
        return state

    def _captured(self) -> Captured | None:
        # whatever a step leaves for the next: a lost step could pass on what the run before left there
        passed_on = [*self._velocity.outputs.values(), *self._advance.outputs.values()]
        steps = partial(self._enqueue, self._velocity.enqueue)
        graph = captured(self._device, steps, [self._velocity.arrays["x"], *passed_on])
        if graph is not None and graph.nodes < self._steps * self._velocity.nodes:
            self._device.discard(graph)
            return None
        return graph

    def _enqueue(self, velocity_work: Callable[[], None]) -> None:
        velocity, advance = self._velocity.arrays, self._advance.arrays
        put(self._device, velocity["x"], self._start)
        put(self._device, velocity["time_features"], _row(self._rows, 0))
        for step in range(self._steps):
            velocity_work()
            put(self._device, advance["row"], _row(self._rows, min(step + 1, self._steps - 1)))
            put(self._device, advance["dt"], _row(self._dts, step, (1,)))
            self._advance.enqueue()
            put(self._device, velocity["x"], advance["next_x"])

    def release(self) -> None:
        """Frees its buffers and its captured graph; it cannot be used again."""
        if self._graph is not None:
            self._device.discard(self._graph)
            self._graph = None
        for array in (self._start, self._rows, self._dts):
            self._device.free(array.buffer)


def _row(rows: DeviceArray, step: int, shape: tuple[int, ...] | None = None) -> DeviceArray:
    """One row of [N, W], as [1, W] or another shape of its size."""
    width = rows.shape[1] * rows.dtype.itemsize
    return DeviceArray(rows.buffer.part(step * width, width), shape or (1, rows.shape[1]), rows.dtype)
