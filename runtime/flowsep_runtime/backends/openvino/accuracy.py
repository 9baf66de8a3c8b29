"""Test of a graph in the arithmetic that it will run in, on this machine.

OpenVINO has returned NaN in bfloat16 for a graph whose twin was right, so each graph is tested before it is
used: on random input of the scale and shape of the real one, against float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowsep_runtime.arrays import Array, snr_db

LEAST_SNR = 25.0  # dB, of quick arithmetic against float32
LEAST_EXACT_SNR = 80.0  # dB, of a rewritten graph in float32 against the exported one
#: A graph for which that is not enough: the solver adds up the velocity's error, once a step.
LEAST_SNR_OF: Mapping[str, float] = {"velocity": 30.0}


def finite(outputs: Mapping[str, Array]) -> bool:
    """True if no output holds NaN or infinity."""
    return all(bool(np.isfinite(array).all()) for array in outputs.values())


def least_snr(graph: str) -> float:
    """Least signal-to-noise ratio of a graph in quick arithmetic against float32, in dB."""
    return LEAST_SNR_OF.get(graph, LEAST_SNR)


def worst_snr_db(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Signal-to-noise ratio of a graph's worst output, in dB; minus infinity if one is not finite."""
    if not finite(found):
        return -np.inf
    return min(snr_db([array], [found[name]]) for name, array in reference.items())
