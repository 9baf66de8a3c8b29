from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from flowsep_runtime import Pipeline, Separation, Separator
from tests.runtime.toy_bundle import write_toy_bundle

Floats = NDArray[np.float32]
RATE = 16000


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that must not be changed: a test double of a model, of which a clip lasts 0.64 s."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


class Pretender(Separator):
    """A separator that gives what a function makes of mixture and query."""

    def __init__(self, pipeline: Pipeline, answer: Callable[[Floats, str], Floats]) -> None:
        super().__init__(pipeline)
        self.answer = answer
        self.seeds: list[int] = []
        self.more: list[dict[str, object]] = []

    def separate(self, audio, sample_rate, query, **options):  # type: ignore[no-untyped-def]
        self.seeds.append(options.pop("seed"))
        self.more.append(options)
        target = self.answer(audio, query)
        if options["kind"] == "masked":
            target = audio * np.float32(0.5)
        return Separation(target, audio - target, sample_rate, {"load": 0.0}, 0.1)


@pytest.fixture
def pretend(toy_bundle: Path) -> Callable[[Callable[[Floats, str], Floats]], Pretender]:
    return lambda answer: Pretender(Pipeline.load(toy_bundle, threads=1), answer)


def tone(frequency: float, seconds: float = 0.64, rate: int = RATE, peak: float = 0.2) -> Floats:
    n = np.arange(round(seconds * rate))
    return (peak * np.sin(2 * np.pi * frequency * n / rate)).astype(np.float32)


@pytest.fixture
def sounds() -> dict[str, Floats]:
    """Two sounds that no metric takes for each other: a high and a low tone."""
    return {"high": tone(3000.0), "low": tone(300.0)}


@pytest.fixture
def test_set(tmp_path: Path, sounds: dict[str, Floats]) -> Path:
    """Both sounds of a mixture, and one that is not there, in a manifest as a user writes it."""
    for name, sound in (*sounds.items(), ("mix", sounds["high"] + sounds["low"])):
        soundfile.write(tmp_path / f"{name}.wav", sound, RATE, "FLOAT")
    return write_manifest(
        tmp_path / "mine.jsonl",
        {
            "mixture": "mix.wav",
            "query": "a high tone",
            "target": "high.wav",
            "other": "low.wav",
            "label": "high",
        },
        {
            "mixture": "mix.wav",
            "query": "a low tone",
            "target": "low.wav",
            "other": "high.wav",
            "label": "low",
        },
        {"mixture": "mix.wav", "query": "rain", "target": None, "source": "none"},
    )


def write_manifest(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
