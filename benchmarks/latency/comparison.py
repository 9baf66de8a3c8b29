"""Contestants side by side: cold starts one after the other, then every stage in interleaved rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common.contestants import REFERENCE, Contestant, Device
from benchmarks.common.inputs import STAGE_INPUTS
from benchmarks.common.models import Model, size_of
from benchmarks.common.processes import Process, WorkerError, running, task_of
from benchmarks.common.progress import say
from benchmarks.common.runners import CLIP, VELOCITY
from benchmarks.common.spread import Summary, quietest, ratio, weighted_sum
from flowsep_runtime.arrays import Array, snr_db
from flowsep_runtime.solvers import solver_named


@dataclass(frozen=True)
class ComparisonSettings:
    """Settings of a comparison; `seconds` is the length of one of the `batch` clips."""

    steps: int
    solver: str
    rounds: int
    threads: int
    seconds: float
    batch: int = 1
    device: Device = "cpu"

    @property
    def evaluations(self) -> int:
        """Runs of the velocity network in one clip."""
        return len(solver_named(self.solver).times(self.steps))

    @property
    def audio(self) -> float:
        """Seconds of sound in all clips together."""
        return self.batch * self.seconds


@dataclass
class Result:
    """Measurements of one contestant.

    Attributes:
        contestant: Whom.
        stages: Seconds of a call, one value a round; the velocity's are of one step.
        whole: Seconds of a whole clip, where it was measured as one piece (on a GPU).
        snr: Of every stage against the reference on the same inputs, in dB.
        clip_snr: The same of a whole clip's waveform, from the same noise.
        cold: Seconds from the start of a process to its first whole clip: with empty caches, and again.
        peak_bytes: Of the second such process, on the host.
        gpu_bytes: Of the GPU's memory that it holds when every stage has run; None without a GPU.
        disk_bytes: Of the files that it was loaded from.
        cache_bytes: Of what it left in its caches.
        remarks: Warnings of the runtime, such as a graph that runs in another arithmetic.
        left_out: Why it could not be measured.
    """

    contestant: Contestant
    stages: dict[str, Summary] = field(default_factory=dict)
    whole: Summary | None = None
    snr: dict[str, float] = field(default_factory=dict)
    clip_snr: float = float("nan")
    cold: tuple[float, float] | None = None
    peak_bytes: int = 0
    gpu_bytes: int | None = None
    disk_bytes: int = 0
    cache_bytes: int = 0
    remarks: list[str] = field(default_factory=list)
    left_out: str | None = None

    def clip(self, evaluations: int) -> Summary:
        """Seconds of a whole clip: as measured in one piece, or composed of the stages of each round."""
        return self.whole or weighted_sum(
            [(times_in_clip(stage, evaluations), seconds) for stage, seconds in self.stages.items()]
        )

    def ratios(self, reference: Result) -> dict[str, Summary]:
        """Speed-up over the reference, by stage."""
        shared = [stage for stage in self.stages if stage in reference.stages]
        return {stage: ratio(reference.stages[stage], self.stages[stage]) for stage in shared}


def times_in_clip(stage: str, evaluations: int) -> int:
    """Runs of a stage in one clip."""
    return evaluations if stage == VELOCITY else 1


def compare(
    contestants: Sequence[Contestant], model: Model, inputs: Path, settings: ComparisonSettings, scratch: Path
) -> list[Result]:
    """Measure all contestants.

    Args:
        contestants: The reference first.
        model: With all the forms that they need.
        inputs: A file of `inputs.write_inputs`.
        settings: What to measure.
        scratch: A folder for outputs and caches, empty.

    Raises:
        WorkerError: If the reference fails; another contestant that fails is left out, and its result says
            why.
    """
    results = [Result(contestant) for contestant in contestants]
    waveforms: dict[str, Array] = {}
    for result in results:
        try:
            waveforms[result.contestant.name] = _cold_starts(result, model, inputs, settings, scratch)
        except WorkerError as error:
            _leave_out(result, str(error))
            continue
        # the separator leaves out the few samples that the vocoder gives beyond the clip
        pair = [waveforms[REFERENCE], waveforms[result.contestant.name]]
        shortest = min(waveform.shape[-1] for waveform in pair)
        wanted, actual = (waveform[..., :shortest] for waveform in pair)
        result.clip_snr = snr_db([wanted], [actual])
    _leave_out_twins(results, waveforms)
    _rounds([result for result in results if result.left_out is None], model, inputs, settings, scratch)
    return results


def _cold_starts(
    result: Result, model: Model, inputs: Path, settings: ComparisonSettings, scratch: Path
) -> Array:
    """Two processes, one after the other; gives the waveform."""
    contestant = result.contestant
    cache, output = scratch / "cache" / contestant.name, scratch / f"{contestant.name}.npz"
    cache.mkdir(parents=True)
    task = task_of(contestant, model, settings.threads, inputs)
    seconds = []
    for start in ("first", "second"):
        say(f"{contestant.name}: {start} cold start")
        with running(contestant.name, task, cache) as process:
            answer = process.ask("first", steps=settings.steps, solver=settings.solver, output=str(output))
            seconds.append(process.age())
            if settings.device == "cuda" and start == "second":
                held = process.ask("gpu_bytes", steps=settings.steps, solver=settings.solver)
                result.gpu_bytes = held["gpu_bytes"]
        result.remarks = list(dict.fromkeys([*result.remarks, *answer["remarks"]]))
    result.cold = seconds[0], seconds[1]
    result.peak_bytes = answer["peak_bytes"]
    bundle = model.half_bundle if contestant.needs_half_bundle else model.bundle
    source = {"torch": model.weights, "plain": model.plain, "bundle": bundle}[contestant.kind]
    assert source is not None
    result.disk_bytes, result.cache_bytes = size_of(source), size_of(cache)
    return _outputs(output)[0]


def _leave_out_twins(results: Sequence[Result], waveforms: Mapping[str, Array]) -> None:
    """A backend whose quickest arithmetic is the exact one would only be measured twice."""
    exact: dict[str, str] = {}
    for result in results:
        contestant = result.contestant
        if contestant.kind != "bundle" or contestant.is_low_memory or contestant.name not in waveforms:
            continue
        first = exact.setdefault(contestant.backend, contestant.name)
        if first != contestant.name and np.array_equal(waveforms[first], waveforms[contestant.name]):
            _leave_out(result, f"{contestant.name} gives the very numbers of {first}: measured once")


def _rounds(
    results: Sequence[Result], model: Model, inputs: Path, settings: ComparisonSettings, scratch: Path
) -> None:
    processes: dict[str, Process] = {}
    try:
        for result in results:
            name = result.contestant.name
            task = task_of(result.contestant, model, settings.threads, inputs)
            processes[name] = Process(name, task, scratch / "cache" / name)
        turns = _Turns(results, processes, settings.rounds)
        for stage in STAGE_INPUTS:
            _measure_stage(stage, turns, scratch)
        if settings.device == "cuda":
            _measure_clip(turns, settings)
    finally:
        for process in processes.values():
            process.end()


@dataclass(frozen=True)
class _Turns:
    """Contestants that do the same one after the other; who fails is left out of what follows."""

    results: Sequence[Result]
    processes: Mapping[str, Process]
    rounds: int

    def ask(self, result: Result, command: str, **arguments: object) -> dict[str, float]:
        """Has one do something, if it still takes part."""
        if result.left_out is not None:
            return {}
        process = self.processes[result.contestant.name]
        try:
            return process.ask(command, **arguments)
        except WorkerError as error:
            process.end()
            _leave_out(result, str(error))
            return {}

    def measured(self, what: str) -> Iterator[tuple[Result, dict[str, Summary]]]:
        """Rounds of what all have open, which is closed afterwards: seconds by name, of who is left.

        While a number is disturbed, there is one more round, up to twice as many; then the rounds that agree
        best are kept.
        """
        rounds: list[dict[tuple[str, str], float]] = []
        kept: list[int] = []
        while len(kept) < self.rounds or (len(rounds) < 2 * self.rounds and _are_disturbed(rounds, kept)):
            more = (
                f", for {self.rounds} undisturbed ones" if len(kept) == self.rounds else f" of {self.rounds}"
            )
            say(f"{what}: round {len(rounds) + 1}{more}")
            # there and back again, so that no one always comes after the same neighbour
            order = self.results if len(rounds) % 2 == 0 else list(reversed(self.results))
            found = {result.contestant.name: self.ask(result, "measure") for result in order}
            rounds.append({(who, name): seconds for who in found for name, seconds in found[who].items()})
            # who fails in a round is left out of those before it too
            rounds = [{key: each[key] for key in rounds[-1]} for each in rounds]
            kept = quietest(rounds, self.rounds)
        for result in self.results:
            self.ask(result, "close")
            if result.left_out is None:
                who = result.contestant.name
                names = [name for owner, name in rounds[0] if owner == who]
                yield result, {name: Summary(tuple(rounds[k][who, name] for k in kept)) for name in names}


def _are_disturbed(rounds: Sequence[Mapping[tuple[str, str], float]], kept: Sequence[int]) -> bool:
    return any(Summary(tuple(rounds[k][key] for k in kept)).is_disturbed for key in rounds[0])


def _measure_stage(stage: str, turns: _Turns, scratch: Path) -> None:
    """Only one stage is loaded at a time: nine whole models would not fit into memory."""
    say(f"{stage}: loading and warming up")
    wanted: list[Array] = []
    for result in turns.results:
        output = scratch / f"{result.contestant.name}.npz"
        turns.ask(result, "open", stage=stage, output=str(output))
        if result.left_out is None:
            actual = _outputs(output)
            wanted = wanted or actual
            result.snr[stage] = snr_db(wanted, actual)
    for result, found in turns.measured(stage):
        result.stages.update(found)


def _measure_clip(turns: _Turns, settings: ComparisonSettings) -> None:
    """A whole clip in one piece: on a GPU a stage's work is asked for while the one before is still done."""
    say(f"{CLIP}: loading and warming up")
    for result in turns.results:
        turns.ask(result, "open_clip", steps=settings.steps, solver=settings.solver)
    for result, found in turns.measured(CLIP):
        result.whole = found[CLIP]


def _leave_out(result: Result, why: str) -> None:
    if result.contestant.name == REFERENCE:
        raise WorkerError(f"Nothing can be compared: {why}")
    say(f"left out: {why}")
    result.left_out = why
    result.stages.clear()
    result.whole = None


def _outputs(path: Path) -> list[Array]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]
