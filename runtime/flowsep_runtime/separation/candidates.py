"""Choice of the generated target that explains the mixture best.

Sounds add up: a target that is right has its energy where the mixture has energy, and no more of it. So where
a candidate is loud, the mixture must be about as loud. The cost of a candidate is how far the two lie apart,
in the candidate's own loudest places; energy that the mixture does not have counts more than energy that the
mixture has from its other sounds too.
"""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats

EXCESS = 4.0  # of a decibel above the mixture, against one below it


def cost(mixture: Floats, target: Floats) -> float:
    """Cost of a target as an explanation of a mixture: 0 for the mixture itself.

    The mean distance of their log magnitudes, weighted by the target's energy: its quiet places, of which the
    mixture says nothing, do not count.

    Args:
        mixture, target: Natural-log mel spectrograms at one level, of one shape.
    """
    energy = np.exp(2.0 * target.astype(np.float64))
    above = target.astype(np.float64) - mixture
    return float(np.sum(energy * np.where(above > 0, EXCESS * above, -above)) / np.sum(energy))
