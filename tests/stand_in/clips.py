"""A clip of noise, for a bundle of any sizes."""

from __future__ import annotations

import numpy as np

from flowsep_runtime.bundle.manifest import ModelEntry
from flowsep_runtime.device_pipeline import Clip


def clip(model: ModelEntry) -> Clip:
    """A clip of one channel, with a query of five tokens."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return random.standard_normal(shape, np.float32)

    latent = (1, model.latent_channels, model.clip_frames // model.latent_stride, model.latent_frequencies)
    return Clip(
        0.1 * normal(1, model.clip_samples),
        normal(*latent),
        normal(*latent),
        normal(1, model.text_length, model.text_width),
        (np.arange(model.text_length) < 5).astype(np.float32)[None],
    )
