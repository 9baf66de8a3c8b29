"""The tiny model and its golden numbers, as torch tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from flowsep_ref import FlowSep


@pytest.fixture(scope="session")
def tiny_config(data: Path) -> Path:
    return data / "configs" / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path, tiny_config: Path) -> FlowSep:
    return FlowSep.from_checkpoint(tiny_checkpoint, tiny_config)


@pytest.fixture(scope="session")
def expected(golden: dict[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in golden.items()}


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference over that of what was wanted; shapes must agree."""
    assert actual.shape == wanted.shape
    return float(torch.linalg.norm((actual - wanted).double()) / torch.linalg.norm(wanted.double()))
