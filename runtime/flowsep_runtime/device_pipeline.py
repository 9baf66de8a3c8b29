"""A whole clip on a backend that keeps arrays in its own memory: one upload, one download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import ArrayOnDevice, DeviceBackend

#: `stage(name)`: a context around the work of a stage, for example to time it.
StageContext: TypeAlias = Callable[[str], AbstractContextManager[None]]

#: Text [1 or B, 50, D] and mask [1 or B, 50] of a query.
Query: TypeAlias = tuple[Floats, Floats]

#: Called with (steps done, steps) after every step.
StepProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """Input of a generation; B is the batch, T mel frames, t = T / 4."""

    waveform: Floats  # [B, 160 T]
    posterior_noise: Floats  # [1 or B, 8, t, 16]
    noise: Floats  # [1 or B, 8, t, 16]
    text: Floats  # [1 or B, 50, D]
    mask: Floats  # [1 or B, 50]


@dataclass(frozen=True)
class ClipResult:
    """Results of a clip's way through all stages, for one query."""

    mixture: Floats  # log-mel of the mixture [B, T, 64], of no frame if no log-mel was asked for
    log_mel: Floats  # log-mel of the target, likewise
    waveform: Floats  # [B, 160 T + 32], of no sample if no waveform was asked for


def run_on_device(
    backend: DeviceBackend,
    clip: Clip,
    queries: Sequence[Query],
    steps: int,
    solver: str,
    progress: StepProgress | None,
    stage: StageContext,
    vocode: bool,
    log_mels: bool,
) -> list[ClipResult]:
    """A mixture's waveform to its targets, one a query; what is not asked for stays on the device.

    The mixture is encoded once. The loop may be one piece of work for the device: all its steps are reported
    when it is done.

    Args:
        backend: Where the clip goes through.
        clip, queries, steps, solver, progress, stage, vocode, log_mels: As for `Pipeline.run_each`.
    """

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        with stage(name):
            yield
            backend.synchronize()  # or the time would be that of asking for the work

    # A graph's outputs are valid until it runs again: what comes of a query is taken before the next one.
    batch = len(clip.waveform)
    results = []
    with backend.session():
        with timed("log_mel"):
            log_mel = backend.keep("log_mel", {"waveform": clip.waveform})["log_mel"]
        with timed("encode_mixture"):
            posterior = backend.keep("encode_mixture", {"log_mel": log_mel})
            mixture = backend.keep("posterior", {**posterior, "noise": clip.posterior_noise})
        mixture_bands = _host(log_mel, log_mels)
        features: Mapping[str, ArrayOnDevice] | None = None
        for query in queries:
            with timed("solve"):
                features = features or backend.keep("velocity_mixture", mixture)
                text, mask, noise = (_rows(array, batch) for array in (*query, clip.noise))
                context = backend.keep("velocity_text", {"text": text, "mask": mask})
                latent = backend.keep_solution(solver, steps, noise, {**features, **context})
            if progress is not None:
                for done in range(1, steps + 1):
                    progress(done, steps)
            with timed("decode_latent"):
                target = backend.keep("decode_latent", {"latent": latent})
            waveform = np.zeros((batch, 0), np.float32)
            if vocode:
                with timed("vocode"):
                    waveform = backend.keep("vocode", target)["waveform"].numpy()
            result = (mixture_bands, _host(target["log_mel"], log_mels), waveform)
            results.append(ClipResult(*(np.asarray(array, np.float32) for array in result)))
    return results


def _host(bands: ArrayOnDevice, is_wanted: bool) -> Array:
    """A log-mel spectrogram, of no frame if none is wanted."""
    return bands.numpy() if is_wanted else _no_frames(bands.shape)


def _no_frames(shape: tuple[int, ...]) -> Floats:
    return np.zeros((shape[0], 0, *shape[2:]), np.float32)


def _rows(array: Floats, batch: int) -> Floats:
    return np.ascontiguousarray(np.broadcast_to(array, (batch, *array.shape[1:])))
