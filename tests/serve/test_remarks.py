"""Warnings of several threads, and a command line without a cluster."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest

from flowsep_runtime import OptionError
from flowsep_runtime.errors import FlowSepWarning
from flowsep_serve import cli
from flowsep_serve.remarks import Remarks


def test_each_thread_is_told_its_own_warnings_and_those_of_threads_that_it_may_have_started() -> None:
    remarks, both = Remarks(), threading.Barrier(2, timeout=60)
    told: dict[str, list[str]] = {"a": [], "b": []}

    def say(sentence: str) -> None:
        warnings.warn(sentence, FlowSepWarning, stacklevel=1)

    def work(name: str) -> None:
        with remarks.told(told[name].append):
            both.wait()
            say(name)
            both.wait()
            if name == "a":
                helper = threading.Thread(target=say, args=("helper",))
                helper.start()
                helper.join()
            both.wait()
        with remarks.told(told[name].append):
            say(f"again {name}")

    before = warnings.showwarning
    threads = [threading.Thread(target=work, args=(name,)) for name in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {name: [name, "helper", f"again {name}"] for name in "ab"}
    assert warnings.showwarning is before


def test_replicas_need_a_cluster_and_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="add --ray"):
        cli.command.main(["--port", "0", "--cpus", "1"], standalone_mode=False)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):  # which the command sets
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(OptionError, match=r"run: pip install 'flowsep-engine\[cluster\]'"):
        cli.command.main(["--port", "0", "--ray", "auto"], standalone_mode=False)
