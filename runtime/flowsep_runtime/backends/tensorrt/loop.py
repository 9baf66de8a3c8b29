"""A solver's loop on the device, all its evaluations in one CUDA graph if they are not too many.

The engine of a step is bound twice. Each binding writes the next state and the velocity where the other one
reads its state and the velocity before, so that nothing but a row of the schedule is copied between two
steps, and a graph of N of them needs no more of TensorRT than N runs at one of two bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends.tensorrt.cuda_device import Captured, Device, DeviceArray
from flowsep_runtime.backends.tensorrt.plans import Bound, Values, captured, put

#: Evaluations that still go into one graph, which has a node for every kernel of every one.
LONGEST = 128


class Loop:
    """The evaluations of one solver for one shape.

    Args:
        device: Where it runs.
        constants: What stays the same in all steps.
        sides: The two bindings of the step's engine, both to what `constants` gives and each to what the
            other gives.
        rows: The time features of every evaluation [N, E].
        weights: Of `Solver.weights` [N, 2].
        guide: Guides the next state, and so the velocity: a sum of states whose weights add up to 1 is that
            of their velocities. None: every row for itself.
    """

    def __init__(
        self,
        device: Device,
        constants: Bound,
        sides: tuple[Bound, Bound],
        rows: DeviceArray,
        weights: Floats,
        guide: Bound | None = None,
    ) -> None:
        self._device = device
        self._constants = constants
        self._sides = sides
        self._guide = guide
        self._evaluations = len(weights)
        x = sides[0].arrays["x"]
        self._start = DeviceArray(device.allocate(x.nbytes), x.shape, x.dtype)
        self._rows = DeviceArray(device.allocate(rows.nbytes), rows.shape, rows.dtype)
        put(device, self._rows, rows)
        self._weights = DeviceArray(device.allocate(weights.nbytes), weights.shape, weights.dtype)
        put(device, self._weights, weights)
        self._graph: Captured | None = None
        self._is_tried = self.is_long = self._evaluations > LONGEST

    @property
    def is_captured(self) -> bool:
        """True if it runs as one graph."""
        return self._graph is not None

    def run(
        self, start: Values, invariants: Mapping[str, Values], mixtures: Sequence[int] | None
    ) -> DeviceArray:
        """Solve from a state [B, 8, t, 16]. The solution stays until the velocity engine runs again;
        `invariants` are the inputs of the velocity that no step changes, `mixtures` the rows of
        `mixture_features` that go to each row."""
        put(self._device, self._start, start)
        for name, values in invariants.items():
            self._constants.put(name, values, mixtures if name == "mixture_features" else None)
        self._constants.launch()
        if not self._is_tried:
            self._is_tried = True
            self._graph = self._captured()
        if self._graph is None:
            self._enqueue(Bound.launch)
        else:
            self._graph.launch()
        return self._sides[(self._evaluations - 1) % 2].outputs["next_x"]

    def _captured(self) -> Captured | None:
        # whatever a step leaves for the next: a lost step could pass on what the run before left there
        passed_on = [array for side in self._sides for array in side.outputs.values()]
        graph = captured(self._device, lambda: self._enqueue(Bound.enqueue), passed_on)
        of_a_step = self._sides[0].nodes + (0 if self._guide is None else self._guide.nodes)
        if graph is not None and graph.nodes < self._evaluations * of_a_step:
            self._device.discard(graph)
            return None
        return graph

    def _enqueue(self, work: Callable[[Bound], None]) -> None:
        first = self._sides[0].arrays
        put(self._device, first["x"], self._start)
        first["before"].buffer.fill(0)  # its weight is 0, but what the last loop left there may be infinite
        for k in range(self._evaluations):
            put(self._device, first["time_features"], _row(self._rows, k, (1, self._rows.shape[1])))
            put(self._device, first["weights"], _row(self._weights, k, (2,)))
            side = self._sides[k % 2]
            work(side)
            if self._guide is not None:
                put(self._device, self._guide.arrays["rows"], side.outputs["next_x"])
                work(self._guide)
                put(self._device, side.outputs["next_x"], self._guide.outputs["guided"])

    def release(self) -> None:
        """Frees its buffers and its captured graph; it cannot be used again."""
        if self._graph is not None:
            self._device.discard(self._graph)
            self._graph = None
        for array in (self._start, self._rows, self._weights):
            self._device.free(array.buffer)


def _row(rows: DeviceArray, k: int, shape: tuple[int, ...]) -> DeviceArray:
    """One row of [N, W], in a shape of its size."""
    width = rows.shape[1] * rows.dtype.itemsize
    return DeviceArray(rows.buffer.part(k * width, width), shape, rows.dtype)
