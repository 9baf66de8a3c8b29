from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_litter(tmp_path: Path) -> Iterator[None]:
    """No hidden file stays behind."""
    yield
    assert not list(tmp_path.rglob(".*"))
