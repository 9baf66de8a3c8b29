"""The velocity graph in two parts, for backends that run a solver's loop on a device.

    loop_constants  mixture_features, keys_values, mask_bias -> whatever the step wants of them
    loop_step       x, time_features, all that loop_constants gives -> velocity

A GPU's variants in a bundle may have them, and TensorRT's engines are built of them. Both give what the graph
`velocity` gives. TensorRT's engine of the step gives the next state as well, from two more inputs (see
`device_graphs.py`):

    loop_step       ..., before, weights -> velocity, next_x
"""

from __future__ import annotations

CONSTANTS, STEP = "loop_constants", "loop_step"

#: The inputs of `velocity` that no step changes.
INVARIANTS = ("mixture_features", "keys_values", "mask_bias")


def parts_of(graph: str) -> tuple[str, ...]:
    """The names under which a graph of the contract may be loaded."""
    return (graph, CONSTANTS, STEP) if graph == "velocity" else (graph,)


def engines_of(graph: str) -> tuple[str, ...]:
    """The engines that TensorRT has for a graph of the contract, in the order in which they run."""
    return (CONSTANTS, STEP) if graph == "velocity" else (graph,)
