"""A container's limits are this process's: threads follow them, and nobody gets as many as they ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowsep_runtime import OptionError, Pipeline, processors
from flowsep_runtime.processors import default_threads, usable_processors
from tests.runtime.command import Run, refused


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 processors, all of them allowed; its folder of control groups."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(processors, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "MEMBERSHIPS", tmp_path / "memberships")
    return tmp_path / "cgroup"


def member(host: Path, *lines: str) -> None:
    (host.parent / "memberships").write_text("".join(f"{line}\n" for line in lines))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_quota_all_processors_are_usable(host: Path) -> None:
    assert (usable_processors(), default_threads()) == (16, None)
    member(host, "0::/user.slice")
    put(host / "user.slice" / "cpu.max", "max 100000\n")
    assert (usable_processors(), default_threads()) == (16, None)


@pytest.mark.parametrize(("quota", "usable"), [("200000", 2), ("150000", 2), ("10000", 1), ("9900000", 16)])
def test_version_2_limits_a_group_and_all_below_it(host: Path, quota: str, usable: int) -> None:
    member(host, "0::/pods/one/inner")
    put(host / "pods" / "one" / "cpu.max", f"{quota} 100000\n")
    put(host / "pods" / "one" / "inner" / "cpu.max", "max 100000\n")
    assert usable_processors() == usable
    assert default_threads() == (usable if usable < 16 else None)


def test_version_1_has_a_tree_of_its_own_and_minus_one_for_no_limit(host: Path) -> None:
    member(host, "4:memory:/docker/a", "3:cpu,cpuacct:/docker/a", "0::/")
    folder = host / "cpu,cpuacct" / "docker" / "a"
    put(folder / "cpu.cfs_period_us", "50000\n")
    put(folder / "cpu.cfs_quota_us", "150000\n")
    assert usable_processors() == 3
    put(folder / "cpu.cfs_quota_us", "-1\n")
    assert usable_processors() == 16


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/../../host/place", {"cpu.max": "400000 100000"}),
        ("2:cpu:/host/place", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_in_a_container_the_tree_may_begin_at_the_container(
    host: Path, line: str, files: dict[str, str]
) -> None:
    member(host, line)
    for name, text in files.items():
        put(host / name, text)
    assert usable_processors() == 4


@pytest.mark.parametrize("text", ["", "nonsense", "100000", "100000 0", "\xff \xff"])
def test_what_cannot_be_understood_is_no_limit(host: Path, text: str) -> None:
    member(host, "0::/", "nonsense")
    put(host / "cpu.max", text)
    assert usable_processors() == 16


def test_affinity_counts_too(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 8})
    assert (usable_processors(), default_threads()) == (3, 3)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_backend_takes_as_many_threads_as_the_quota_allows(
    host: Path, toy_bundle: Path, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    member(host, "0::/")
    put(host / "cpu.max", "200000 100000")
    assert Pipeline.load(toy_bundle, backend).backend.description.endswith("2 threads")
    assert Pipeline.load(toy_bundle, backend, threads=1).backend.description.endswith("1 thread")
    put(host / "cpu.max", "max 100000")
    assert Pipeline.load(toy_bundle, backend).backend.description.endswith("one thread per core")


def test_threads_have_a_bound(run: Run, mixture: Path, toy_bundle: Path) -> None:
    answer = run(mixture, "rain", "--bundle", toy_bundle, "--threads", 100_000)
    refused(answer, "threads must be at most", "and not 100000")
    with pytest.raises(OptionError, match="threads must be a whole number"):
        Pipeline.load(toy_bundle, threads=1.5)  # type: ignore[arg-type]
