"""Test of a graph in the arithmetic that it will run in, on this machine.

OpenVINO has returned NaN in bfloat16 for a graph whose twin was right, so each graph is tested before it is
used: on random input of the scale and shape of the real one, against float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowsep_runtime.arrays import Array, snr_db
from flowsep_runtime.backends.samples import SEED, sample
from flowsep_runtime.bundle.manifest import GraphEntry, ModelEntry

LEAST_SNR = 25.0  # dB, of quick arithmetic against float32
LEAST_EXACT_SNR = 80.0  # dB, of a rewritten graph in float32 against the exported one
#: A graph for which that is not enough: the solver adds up the velocity's error, once a step.
LEAST_SNR_OF: Mapping[str, float] = {"velocity": 30.0}

Shapes = Mapping[str, tuple[int, ...]]


def clip_shapes(entry: GraphEntry, model: ModelEntry) -> Shapes:
    """Input name -> shape of one row of a whole clip, which is what a separation runs on."""
    sizes = {
        "t": model.clip_frames // model.latent_stride,
        "frames": model.clip_frames,
        "samples": model.clip_samples,
    }
    return {
        tensor.name: (1, *(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape[1:]))
        for tensor in entry.inputs
    }


def sample_inputs(entry: GraphEntry, shapes: Shapes) -> dict[str, Array]:
    """Random input of a graph, the same at each call."""
    random = np.random.default_rng(SEED)
    return {
        tensor.name: sample(tensor.name, shapes[tensor.name], tensor.dtype, random) for tensor in entry.inputs
    }


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
