"""Euler's loop on the device, all its steps in one CUDA graph.

Every step uses the same addresses: the velocity engine reads `x` and `time_features`, `advance` reads what it
gave, and two small copies bring the next state and the next step's times into place. So a graph of N steps
needs no more of TensorRT than N runs at one binding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .cuda_device import Captured, Device, DeviceArray
from .tensorrt_engine import Bound, Values, captured, put


class Loop:
    """N steps for one shape; `invariants` are inputs of the velocity engine that no step changes."""

    def __init__(self, device: Device, velocity: Bound, advance: Bound, rows: Values, steps: int) -> None:
        self._device = device
        self._velocity = velocity
        self._advance = advance
        self._steps = steps
        x = velocity.arrays["x"]
        self._start = DeviceArray(device.allocate(x.nbytes), x.shape, x.dtype)
        self._rows = DeviceArray(device.allocate(rows.nbytes), rows.shape, rows.dtype)
        put(device, self._rows, rows)
        self._dt = np.full(1, 1 / steps, np.float32)
        self._graph: Captured | None = None
        self._is_tried = False

    @property
    def is_captured(self) -> bool:
        """Whether it runs as one graph."""
        return self._graph is not None

    def run(self, noise: Values, invariants: Mapping[str, Values]) -> DeviceArray:
        """From noise [B, 8, t, 16] to the solution, which stays until the velocity engine runs again."""
        put(self._device, self._start, noise)
        for name, values in invariants.items():
            self._velocity.put(name, values)
        self._advance.put("dt", self._dt)  # loops of other numbers of steps share the engine
        state = self._velocity.arrays["x"]
        if not self._is_tried:
            self._is_tried = True
            self._graph = self._captured()
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch()
        return state

    def _captured(self) -> Captured | None:
        # whatever a step leaves for the next: a lost step could pass on what the run before left there
        passed_on = [*self._velocity.outputs.values(), *self._advance.outputs.values()]
        graph = captured(self._device, self._enqueue, [self._velocity.arrays["x"], *passed_on])
        if graph is not None and graph.nodes < self._steps * self._velocity.nodes:
            self._device.discard(graph)
            return None
        return graph

    def _enqueue(self) -> None:
        velocity, advance = self._velocity.arrays, self._advance.arrays
        put(self._device, velocity["x"], self._start)
        put(self._device, velocity["time_features"], self._row(0))
        for step in range(self._steps):
            self._velocity.enqueue()
            put(self._device, advance["row"], self._row(min(step + 1, self._steps - 1)))
            self._advance.enqueue()
            put(self._device, velocity["x"], advance["next_x"])

    def _row(self, step: int) -> DeviceArray:
        rows = self._rows
        width = rows.shape[1] * rows.dtype.itemsize
        row = rows.buffer.part(step * width, width)
        return DeviceArray(row, (1, rows.shape[1]), rows.dtype)
