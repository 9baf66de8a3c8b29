"""The noise of a recording, frame by frame: windows that overlap find the same noise in the same frames."""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.bundle.manifest import ModelEntry


class NoiseTrack:
    """Noise along a recording's latent frames, drawn as they are reached.

    One `np.random.default_rng(seed)` gives, clip length by clip length, two standard normal float32 arrays
    [1, 8, t, 16]: first the posterior's, then the solver's starting point.
    """

    def __init__(self, model: ModelEntry, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._length = model.clip_frames // model.latent_stride
        self._shape = (1, model.latent_channels, self._length, model.latent_frequencies)
        self._first = 0  # the first frame that is still there
        self._clips: list[tuple[Floats, Floats]] = []

    def frames(self, begin: int, end: int) -> tuple[Floats, Floats]:
        """The posterior's and the solver's noise, each [1, 8, end - begin, 16]; `begin` may not go back, but
        for a clip's length."""
        while self._first + len(self._clips) * self._length < end:
            posterior = self._generator.standard_normal(self._shape, np.float32)
            self._clips.append((posterior, self._generator.standard_normal(self._shape, np.float32)))
        while self._first + 2 * self._length <= begin:
            del self._clips[0]
            self._first += self._length
        span = slice(begin - self._first, end - self._first)
        posterior, start = (
            np.concatenate(each, axis=2)[:, :, span] for each in zip(*self._clips, strict=True)
        )
        return posterior, start
