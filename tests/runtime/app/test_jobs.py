"""Meaning of the arguments, and places of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowsep_runtime import OptionError, QueryError
from flowsep_runtime.app.jobs import Job, plan, sources_and_queries

A, B = Path("a.wav"), Path("b.flac")


def test_without_query_options_the_first_argument_is_the_recording() -> None:
    assert sources_and_queries(["a.wav", "dog", "rain"], []) == ([A], ["dog", "rain"])
    assert sources_and_queries(["a.wav"], []) == ([A], [])
    assert sources_and_queries([], []) == ([], [])


def test_a_repeated_recording_or_query_runs_once() -> None:
    assert sources_and_queries(["a.wav", "./a.wav", "b.flac"], ["dog", "dog"]) == ([A, B], ["dog"])


def test_with_query_options_every_argument_is_a_recording() -> None:
    assert sources_and_queries(["a.wav", "b.flac"], ["dog"]) == ([A, B], ["dog"])
    assert sources_and_queries([], ["dog"]) == ([], ["dog"])


def test_a_dash_is_standard_input_once() -> None:
    assert sources_and_queries(["-", "dog"], []) == ([None], ["dog"])
    assert sources_and_queries(["./-", "dog"], []) == ([Path("-")], ["dog"])
    with pytest.raises(OptionError, match="only once"):
        sources_and_queries(["-", "-"], ["dog"])


def test_a_file_where_a_query_should_be_is_noticed(tmp_path: Path) -> None:
    other = tmp_path / "b.wav"
    assert sources_and_queries(["a.wav", str(other)], [])[1] == [str(other)]
    other.touch()
    with pytest.raises(OptionError, match=r"b\.wav is a file and no query: give queries with --query"):
        sources_and_queries(["a.wav", str(other), "dog"], [])


@pytest.mark.parametrize("query", ["", " ", "\n\t"])
def test_an_empty_query_is_refused_wherever_it_stands(query: str) -> None:
    with pytest.raises(QueryError):
        sources_and_queries(["a.wav", "dog", query], [])
    with pytest.raises(QueryError):
        sources_and_queries(["a.wav"], ["dog", query])


def test_results_are_beside_the_recording_or_in_the_folder() -> None:
    (job,) = plan([Path("x/a.wav")], ["dog", "rain"])
    assert job == Job(Path("x/a.wav"), (("dog", Path("x/a.dog.wav")), ("rain", Path("x/a.rain.wav"))))
    first, second = plan([A, B], ["dog"], folder=Path("out"))
    assert first.outputs == (("dog", Path("out/a.dog.wav")),)
    assert second.outputs == (("dog", Path("out/b.dog.flac")),)


def test_an_unknown_extension_gives_a_wav() -> None:
    assert plan([Path("film.mkv")], ["dog"])[0].outputs == (("dog", Path("film.dog.wav")),)


def test_standard_input_goes_to_standard_output() -> None:
    assert plan([None], ["dog"]) == [Job(None, (("dog", None),))]
    assert plan([A], ["dog"], output="-") == [Job(A, (("dog", None),))]
    assert plan([None], ["dog"], output="o.wav") == [Job(None, (("dog", Path("o.wav")),))]
    (job,) = plan([None], ["dog", "rain"], folder=Path("out"))
    assert [path for _, path in job.outputs] == [
        Path("out/standard-input.dog.wav"),
        Path("out/standard-input.rain.wav"),
    ]
    with pytest.raises(OptionError, match="need a place"):
        plan([None], ["dog", "rain"])


def test_one_output_name_is_for_one_result() -> None:
    for sources, queries in (([A, B], ["dog"]), ([A], ["dog", "rain"])):
        with pytest.raises(OptionError, match="--output names one file"):
            plan(sources, queries, output="o.wav")
    with pytest.raises(OptionError, match="exclude each other"):
        plan([A], ["dog"], output="o.wav", folder=Path("out"))


def test_two_results_of_one_name_are_refused() -> None:
    with pytest.raises(OptionError, match=r"Two outputs would go to a\.dog\.wav"):
        plan([A], ["dog", "Dog!"])
    with pytest.raises(OptionError, match="Two outputs would go to"):
        plan([Path("x/a.wav"), Path("y/a.wav")], ["dog"], folder=Path("out"))


def test_existing_results_are_skipped(tmp_path: Path) -> None:
    source = tmp_path / "a.wav"
    done = tmp_path / "a.dog.wav"
    done.touch()
    (job,) = plan([source], ["dog", "rain"])
    assert job == Job(source, (("rain", tmp_path / "a.rain.wav"),), (("dog", done),))
    (job,) = plan([source], ["dog", "rain"], force=True)
    assert len(job.outputs) == 2 and not job.done
    # one result beside its recording: the run says that it is there and is refused
    (job,) = plan([source], ["dog"])
    assert job == Job(source, (("dog", done),))


def test_results_of_an_earlier_run_are_no_recordings(tmp_path: Path) -> None:
    """The shell's `*.wav` finds them the second time."""
    source, result = tmp_path / "a.wav", tmp_path / "a.dog.wav"
    result.touch()
    for force in (False, True):
        jobs = plan([result, source], ["dog"], force=force)
        assert [job.source for job in jobs] == [source]
    # alone and by name it is wanted
    assert plan([result], ["dog"])[0].outputs == (("dog", tmp_path / "a.dog.dog.wav"),)
