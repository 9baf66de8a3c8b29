from __future__ import annotations

from pathlib import Path

import pytest

from flowsep_train.sounds import SoundBank
from tests.train.training import write_sounds


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SoundBank:
    return SoundBank(write_sounds(tmp_path_factory.mktemp("sounds")), "train")


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Path:
    return data / "tokenizer.json"
