"""Engines against the reference, stage by stage, at the shapes that they were built for.

The judge is the PyTorch model where the checkpoint is at hand. Without it, it is the bundle in float32 on the
CPU, which was held against the PyTorch model when it was exported. The inputs are the bundle's own, so that
both judges see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flowsep_export.errors import ExportError, VerificationError
from flowsep_export.stage_inputs import CHECK_STEPS, QUERY, StageInputs
from flowsep_export.verify import Case, Judge, bundle_judge, measure, require_tolerance
from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import open_backend
from flowsep_runtime.backends.tensorrt.engines import BACKEND, SIDECAR, EngineSet
from flowsep_runtime.bundle.manifest import Manifest, ModelEntry
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.levels import PEAK, normalised
from flowsep_runtime.separation.queries import Tokenizer


def verify_engines(
    bundle: Path,
    folder: Path,
    engines: EngineSet,
    recording: Floats | None,
    judge: Judge | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> EngineSet:
    """Measures every stage and the chain, and writes the errors into `engines.json`.

    Args:
        bundle: The bundle.
        folder: Of its engines for this machine.
        engines: What `build_engines` gave.
        recording: Mono samples [S] at the model's rate; None leaves random input alone.
        judge: What is right; None is the bundle on the CPU.

    Raises:
        VerificationError: An error is beyond tolerance; `engines.json` is removed, so that nothing runs them.
    """
    manifest = Manifest.read(bundle)
    on_cpu = Pipeline(bundle, manifest, open_backend("cpu", bundle, manifest))
    cases = engine_cases(on_cpu, engines, recording)
    backend = open_backend(BACKEND, bundle, manifest, "fast")
    try:
        on_gpu = Pipeline(bundle, manifest, backend)
        stages = measure(
            judge or bundle_judge(on_cpu), lambda stage: [on_gpu], manifest.precision, cases, progress
        )
    finally:
        backend.close()  # type: ignore[attr-defined]
    try:
        require_tolerance(stages)
    except VerificationError as error:
        (folder / SIDECAR).unlink()
        raise ExportError(f"The engines were removed: {str(error).partition(':')[0]}.") from error
    verified = replace(engines, stages=stages)
    verified.write(folder)
    return verified


def engine_cases(on_cpu: Pipeline, engines: EngineSet, recording: Floats | None) -> list[Case]:
    """Inputs at the preferred shapes, and at the smallest where that is another."""
    batch, loop, frames = engines.batch, engines.loop_batch or engines.batch, engines.frames
    best, least = (batch.best, loop.best, frames.best), (batch.least, loop.least, frames.least)
    tokens = Tokenizer(on_cpu.folder, on_cpu.manifest)(QUERY)
    ids, mask = (torch.from_numpy(array.copy()) for array in (tokens.input_ids, tokens.attention_mask))
    cases = [
        Case("random", _random(on_cpu.manifest.model, ids, mask, *shape, seed))
        for seed, shape in enumerate(dict.fromkeys([best, least]), 1)
    ]
    if recording is not None:
        inputs = _recorded(on_cpu, recording, ids, mask, *best)
        cases.append(Case("recording", inputs))
    return cases


def _random(
    model: ModelEntry,
    ids: torch.Tensor,
    mask: torch.Tensor,
    batch: int,
    rows: int,
    frames: int,
    seed: int,
) -> StageInputs:
    """Random numbers for a batch of mixtures, one or as many as the loop has rows."""
    rng = torch.Generator().manual_seed(seed)
    latent = (rows, model.latent_channels, frames // model.latent_stride, model.latent_frequencies)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    def log_mel(batch: int) -> torch.Tensor:
        # log-mels of recordings lie about -5 ± 2.5, with the floor at log(1e-5)
        return (normal(batch, frames, model.mel_bins) * 2.5 - 5.0).clamp(min=float(np.log(1e-5)))

    waveform = normal(batch, frames * model.hop_length)
    return StageInputs(
        waveform=float(PEAK) * waveform / waveform.abs().amax(dim=1, keepdim=True),
        input_ids=ids.repeat(rows, 1),
        attention_mask=mask.repeat(rows, 1),
        log_mel=log_mel(batch),
        posterior_noise=normal(batch, *latent[1:]),
        noise=normal(*latent),
        x=normal(*latent),
        t=torch.rand(rows, generator=rng),
        mixture_latent=normal(1, *latent[1:]),
        text=0.3 * normal(rows, model.text_length, model.text_width),
        latent=normal(*latent),
        target_log_mel=log_mel(rows),
    )


def _recorded(
    on_cpu: Pipeline,
    recording: Floats,
    ids: torch.Tensor,
    mask: torch.Tensor,
    batch: int,
    rows: int,
    frames: int,
) -> StageInputs:
    """Every stage's input in the bundle's own separation of a recording, the same in every row."""
    length = frames * on_cpu.manifest.model.hop_length
    sound = normalised(recording[:length, None])[:, 0]
    waveform = np.zeros((1, length), np.float32)
    waveform[0, : len(sound)] = sound
    log_mel = on_cpu.log_mel(waveform)
    mean, std = on_cpu.encode_mixture(log_mel)
    rng = np.random.default_rng(3)
    posterior_noise, noise = (rng.standard_normal(mean.shape, np.float32) for _ in range(2))
    mixture_latent = mean + std * posterior_noise
    text = on_cpu.encode_text(ids.numpy(), mask.numpy())
    latent = on_cpu.solve(noise, mixture_latent, text, mask.numpy(), CHECK_STEPS)

    def times(array: Floats, count: int = rows) -> torch.Tensor:
        return torch.from_numpy(np.repeat(array, count, axis=0))

    return StageInputs(
        waveform=times(waveform, batch),
        input_ids=ids.repeat(rows, 1),
        attention_mask=mask.repeat(rows, 1),
        log_mel=times(log_mel, batch),
        posterior_noise=times(posterior_noise, batch),
        noise=times(noise),
        x=times(0.5 * (noise + latent)),
        t=torch.full((rows,), 0.5),
        mixture_latent=torch.from_numpy(mixture_latent),
        text=times(text),
        latent=times(latent),
        target_log_mel=times(on_cpu.decode_latent(latent)),
    )
