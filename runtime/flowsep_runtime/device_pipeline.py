"""A whole clip on a backend that keeps arrays in its own memory: one upload, one download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import DeviceBackend

#: `stage(name)`: a context around the work of a stage, for example to time it.
StageContext: TypeAlias = Callable[[str], AbstractContextManager[None]]

#: Called with (steps done, steps) after every step.
StepProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """Input of a generation; B is the batch, T mel frames, t = T / 4."""

    waveform: Floats  # [B, 160 T]
    posterior_noise: Floats  # [1 or B, 8, t, 16]
    noise: Floats  # [1 or B, 8, t, 16]
    text: Floats  # [1, 50, D]
    mask: Floats  # [1, 50]


@dataclass(frozen=True)
class ClipResult:
    """Results of a clip's way through all stages."""

    mixture: Floats  # log-mel of the mixture [B, T, 64], of no frame if no log-mel was asked for
    log_mel: Floats  # log-mel of the target, likewise
    waveform: Floats  # [B, 160 T + 32], of no sample if no waveform was asked for


def run_on_device(
    backend: DeviceBackend,
    clip: Clip,
    steps: int,
    solver: str,
    host_solve: Callable[[Floats], Floats],
    progress: StepProgress | None,
    stage: StageContext,
    vocode: bool,
    log_mels: bool,
) -> ClipResult:
    """A mixture's waveform to its target; what is not asked for stays on the device.

    The loop may be one piece of work for the device: all its steps are reported when it is done.

    Args:
        backend: Where the clip goes through.
        clip, steps, solver, progress, stage, vocode, log_mels: As for `Pipeline.run`.
        host_solve: Mixture latent to solution, reporting its steps: for a solver that the backend's loop does
            not know.
    """

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        with stage(name):
            yield
            backend.synchronize()  # or the time would be that of asking for the work

    batch = len(clip.waveform)
    with backend.session():
        with timed("log_mel"):
            log_mel = backend.keep("log_mel", {"waveform": clip.waveform})["log_mel"]
        with timed("encode_mixture"):
            posterior = backend.keep("encode_mixture", {"log_mel": log_mel})
            mixture = backend.keep("posterior", {**posterior, "noise": clip.posterior_noise})
        with timed("solve"):
            features = backend.keep("velocity_mixture", mixture)
            text, mask, noise = (_rows(array, batch) for array in (clip.text, clip.mask, clip.noise))
            context = backend.keep("velocity_text", {"text": text, "mask": mask})
            latent = backend.keep_solution(solver, steps, noise, {**features, **context})
            on_host = host_solve(mixture["mixture_latent"].numpy()) if latent is None else None
        if latent is not None and progress is not None:
            for done in range(1, steps + 1):
                progress(done, steps)
        with timed("decode_latent"):
            target = backend.keep("decode_latent", {"latent": on_host if latent is None else latent})
        waveform = np.zeros((batch, 0), np.float32)
        if vocode:
            with timed("vocode"):
                waveform = backend.keep("vocode", target)["waveform"].numpy()
        # A graph's outputs are valid until it runs again, and each of these ran once.
        bands = [
            array.numpy() if log_mels else _no_frames(array.shape) for array in (log_mel, target["log_mel"])
        ]
        return ClipResult(*(np.asarray(array, np.float32) for array in (*bands, waveform)))


def _no_frames(shape: tuple[int, ...]) -> Floats:
    return np.zeros((shape[0], 0, *shape[2:]), np.float32)


def _rows(array: Floats, batch: int) -> Floats:
    return np.ascontiguousarray(np.broadcast_to(array, (batch, *array.shape[1:])))
