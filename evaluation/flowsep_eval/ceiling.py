"""Upper bounds of every flow: results from the very latent of the target."""

from __future__ import annotations

import numpy as np

from flowsep_eval.mel import SAMPLE_RATE, Floats
from flowsep_runtime import Pipeline
from flowsep_runtime.audio.checks import SILENCE, centred
from flowsep_runtime.separation.levels import PEAK, level_of
from flowsep_runtime.separation.masking import MaskFilter
from flowsep_runtime.separation.run import OVERLAPS
from flowsep_runtime.separation.shares import shares
from flowsep_runtime.separation.windows import window_starts, window_weights


def masked_by_autoencoder(pipeline: Pipeline, target: Floats, mixture: Floats) -> Floats:
    """A mixture through the mask of a perfect flow: target and rest are decoded from their own latents.

    Args:
        pipeline: The model.
        target, mixture: `[S]` at the model's rate, of one level.

    Returns:
        `[S]`, at that level. A mixture longer than the model's clip has a mask in every clip's length.
    """
    model = pipeline.manifest.model
    masks = []
    for start in range(0, len(mixture), model.clip_samples):
        window = slice(start, start + model.clip_samples)
        gain = level_of(mixture[window, None]).gain
        log_mels = []
        for sound in (target[window], mixture[window] - target[window], mixture[window]):
            waveform = np.zeros((1, model.clip_samples), np.float32)
            waveform[0, : len(sound)] = centred(sound[:, None])[:, 0] * gain
            log_mels.append(pipeline.log_mel(waveform))
        decoded = [pipeline.decode_latent(pipeline.encode_mixture(each)[0])[0] for each in log_mels[:2]]
        masks.append(shares(np.stack(decoded), log_mels[2][0], True, model.mask_exponent)[0])
    filtering = MaskFilter(SAMPLE_RATE, model, channels=1, masked=1, sounds=1)
    known = filtering.push(centred(mixture[:, None]), np.concatenate(masks)[:, None, None])
    masked: Floats = np.concatenate([known, filtering.finish()])[:, 0, 0]
    return masked


def through_autoencoder_and_vocoder(pipeline: Pipeline, target: Floats, mixture: Floats) -> Floats:
    """The target as the model would render it if the flow returned its exact latent (the posterior's mean).

    Args:
        pipeline: The model.
        target, mixture: `[S]` at the model's rate, of one level.

    Returns:
        `[S]`, at that level. As in `Separator`, every window is brought to the level that the model knows by
        its mixture's peak: a quiet target goes through as quiet as it is in the mixture.
    """
    model = pipeline.manifest.model
    rendered = np.zeros(len(target), np.float32)
    overlap = int(model.clip_samples * OVERLAPS["cross-fade"])
    starts = window_starts(len(target), model.clip_samples, overlap)
    weights = window_weights(starts, model.clip_samples, overlap, np.arange(len(target)) + 0.5)
    for start, weight in zip(starts, weights, strict=True):
        window = slice(start, start + model.clip_samples)
        peak = np.abs(centred(mixture[window, None])).max()
        sound = centred(target[window, None])[:, 0]
        if peak > SILENCE:
            gain = PEAK / (peak + np.float32(1e-8))
            waveform = np.zeros((1, model.clip_samples), np.float32)
            waveform[0, : len(sound)] = sound * gain
            mean, _ = pipeline.encode_mixture(pipeline.log_mel(waveform))
            piece = pipeline.vocode(pipeline.decode_latent(mean))[0, : len(sound)] / gain
            rendered[window] += weight[window].astype(np.float32) * piece
    return rendered
