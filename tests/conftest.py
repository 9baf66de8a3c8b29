"""Shared fixtures: the test data, the published numbers, and a checkpoint of the tiny model."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

# A test that reaches for a model hub must fail here as it does on a machine without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Processes that test side by side have a core each; more threads would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No telemetry from backends that a test imports by itself (see flowsep_runtime/backends/offline.py).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# A run in the background is started with SIGINT ignored, and so would be the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent / "data"

#: Each makes one of the two exports that other files need too, and would wait for.
EXPORTING = ("tests/export/test_graphs.py", "tests/export/test_precision.py")


Ended = Callable[..., tuple[int, str, str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: what is left for the end is short, and all processes stay busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(EXPORTING), item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own: what the user has there is neither used nor touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder `tests/data`."""
    return DATA


@pytest.fixture(scope="session")
def golden(data: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of the published code on the tiny checkpoint, by their names in docs/model.md#golden-arrays."""
    with np.load(data / "golden" / "tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def tiny_checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that `golden` was computed from, in the published layout (tiny sizes, seed 0)."""
    import torch

    from tests.data.make_checkpoint import checkpoint, read_layout

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    torch.save(checkpoint(read_layout(data / "layouts" / "tiny.json"), seed=0), path)
    return path


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Ended]:
    """Exit code, stdout and stderr of an entry point, called here: Python and its libraries start once."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def call(main: Callable[[], object], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def scripts() -> Path:
    """The folder of this environment's console scripts, which need not be on the PATH."""
    return Path(sysconfig.get_path("scripts"))
