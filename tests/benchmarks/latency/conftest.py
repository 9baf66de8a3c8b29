"""Doubles of a GPU's driver, and what the contestants on it are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common.contestants import BASELINES, of_this_project
from flowsep_runtime.backends import nvidia_driver
from tests.runtime.toy_bundle import MODEL, WIDTH, write_toy_bundle

MB = 1 << 20
ON_GPU = {contestant.name: contestant for contestant in (*BASELINES["cuda"], *of_this_project("cuda"))}


class Driver:
    """Double of the functions of libcuda that are used: a GPU with `taken` bytes in use."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.taken = 500 * MB
        self.current: object = None

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 7
        return 0 if ordinal < self.devices else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = 0x5000 + device.value
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.current = context.value
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA Double 1"
        return 0 if size == len(name) and device.value == 7 else 1

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        return 0 if device.value == 7 else 101

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        if self.current != 0x5007:
            return 201  # no context is current
        total._obj.value = 80_000 * MB
        free._obj.value = 80_000 * MB - self.taken
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(nvidia_driver, "load", lambda library: found)
    return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def toy_inputs(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    latent = (batch, 8, MODEL.clip_frames // 4, 16)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    mel = normal(batch, MODEL.clip_frames, MODEL.mel_bins)
    return {
        "waveform": 0.1 * normal(batch, MODEL.clip_samples),
        "input_ids": np.full((batch, 50), 3, np.int64),
        "attention_mask": (np.arange(50) < 5).astype(np.int64)[None].repeat(batch, axis=0),
        "log_mel": mel,
        "target_log_mel": mel,
        "x": normal(*latent),
        "t": np.full(batch, 0.3, np.float32),
        "mixture_latent": normal(*latent),
        "latent": normal(*latent),
        "text": normal(batch, 50, WIDTH),
        "noise": normal(*latent),
        "posterior_noise": normal(*latent),
    }
