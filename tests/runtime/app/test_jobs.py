"""Meaning of the arguments, and places of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowsep_runtime import OptionError, QueryError
from flowsep_runtime.app import jobs
from flowsep_runtime.app.jobs import Job, sources_and_queries
from flowsep_runtime.app.naming import check_template
from flowsep_runtime.app.recordings import recordings

A, B = Path("a.wav"), Path("b.flac")


def plan(sources: Sequence[Path | None], queries: Sequence[str], **options: Any) -> list[Job]:
    return jobs.plan(recordings(sources, options.get("folder")), queries, **options)


def test_without_query_options_the_first_argument_is_the_recording() -> None:
    assert sources_and_queries(["a.wav", "dog", "rain"], []) == ([A], ["dog", "rain"])
    assert sources_and_queries(["a.wav"], []) == ([A], [])
    assert sources_and_queries([], []) == ([], [])


def test_a_repeated_recording_or_query_runs_once() -> None:
    assert sources_and_queries(["a.wav", "./a.wav", "b.flac"], ["dog", "dog"]) == ([A, B], ["dog"])


def test_with_query_options_every_argument_is_a_recording() -> None:
    assert sources_and_queries(["a.wav", "b.flac"], ["dog"]) == ([A, B], ["dog"])
    assert sources_and_queries([], ["dog"]) == ([], ["dog"])


@pytest.mark.parametrize(("given", "taken"), [("/dev/stdin", "/dev/stdout"), ("/dev/fd/0", "/dev/fd/1")])
def test_the_systems_names_of_standard_streams_are_known(given: str, taken: str) -> None:
    assert sources_and_queries([given, "dog"], []) == ([None], ["dog"])
    assert plan([A], ["dog"], output=taken) == [Job(A, (("dog", None),))]
    with pytest.raises(OptionError, match="only once"):
        sources_and_queries([given, "-"], ["dog"])


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
    for other in ({"folder": Path("out")}, {"name": "{stem}"}):
        with pytest.raises(OptionError, match="exclude each other"):
            plan([A], ["dog"], output="o.wav", **other)


def test_two_results_of_one_name_are_refused_and_a_template_tells_them_apart() -> None:
    with pytest.raises(OptionError, match=r"Two outputs would go to a\.dog\.wav"):
        plan([A], ["dog", "Dog!"])
    (job,) = plan([A], ["dog", "Dog!"], name="{stem}.{query}-{number}")
    assert job.outputs == (("dog", Path("a.dog-1.wav")), ("Dog!", Path("a.dog-2.wav")))
    both = [Path("x/a.wav"), Path("y/a.wav")]
    with pytest.raises(OptionError, match="Two outputs would go to"):
        plan(both, ["dog"], folder=Path("out"))
    first, second = plan(both, ["dog"], folder=Path("out"), name="{folder}/{stem}.{query}")
    assert first.outputs == (("dog", Path("out/x/a.dog.wav")),)
    assert second.outputs == (("dog", Path("out/y/a.dog.wav")),)
    kinds = [Path("a.m4a"), Path("a.mp4")]
    with pytest.raises(OptionError, match="Two outputs would go to"):
        plan(kinds, ["dog"])
    assert [job.outputs[0][1] for job in plan(kinds, ["dog"], name="{stem}-{ext}")] == [
        Path("a-m4a.wav"),
        Path("a-mp4.wav"),
    ]


def test_an_extension_is_not_given_twice() -> None:
    names = {"a.flac": "a.dog.flac", "a.m4a": "a.dog.m4a.wav"}
    for source, name in names.items():
        (job,) = plan([Path(source)], ["dog"], name="{stem}.{query}.{ext}")
        assert job.outputs[0][1] == Path(name)


def test_a_template_counts_from_the_folder_that_all_share_or_from_the_recording() -> None:
    source = Path("/music/x/a.wav")
    other = Path("/music/y/z/b.mp3")
    named = plan([source, other], ["dog"], name="made/{folder}/{query}.flac")
    assert [job.outputs[0][1] for job in named] == [
        Path("/music/made/x/dog.flac"),
        Path("/music/made/y/z/dog.flac"),
    ]
    named = plan([source, other], ["dog"], name="{query} of {stem}")
    assert [job.outputs[0][1] for job in named] == [
        Path("/music/x/dog of a.wav"),
        Path("/music/y/z/dog of b.mp3"),
    ]
    assert all(job.makes_folders for job in named)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{stem}.{title}", "knows {folder}"),
        ("{stem.__class__}", "knows {folder}"),
        ("{query:>1000000000}", "knows {folder}"),
        ("{0}", "knows {folder}"),
        ("{", "is not a template"),
        ("{stem}/", "names a folder"),
        ("", "names a folder"),
    ],
)
def test_what_is_not_a_template_is_refused(template: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_template(template)


def test_recordings_of_a_folder_keep_their_folders(tmp_path: Path) -> None:
    for name in (
        "a.wav",
        "x/a.wav",
        "x/y/b.m4a",
        "x/.hidden.wav",
        ".trash/c.wav",
        "x/notes.txt",
        "out/d.wav",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    source, out = tmp_path / "in", tmp_path / "in" / "out"
    os.mkfifo(source / "pipe.wav")
    planned = plan([source], ["dog"], folder=out)
    assert [job.source for job in planned] == [source / "a.wav", source / "x/a.wav", source / "x/y/b.m4a"]
    assert [job.outputs[0][1] for job in planned] == [
        out / "a.dog.wav",
        out / "x/a.dog.wav",
        out / "x/y/b.dog.wav",
    ]
    beside = plan([source / "x"], ["dog"])
    assert [job.outputs[0][1] for job in beside] == [source / "x/a.dog.wav", source / "x/y/b.dog.wav"]
    # once, whether it is named or found
    both = plan([source, source / "a.wav"], ["dog"], folder=tmp_path / "elsewhere")
    assert [job.source for job in both] == [
        source / name for name in ("a.wav", "out/d.wav", "x/a.wav", "x/y/b.m4a")
    ]
    # two folders are told apart
    two = plan([source / "x", source / "out"], ["dog"], folder=tmp_path / "elsewhere")
    assert [job.outputs[0][1].relative_to(tmp_path) for job in two if job.outputs[0][1]] == [
        Path("elsewhere/x/a.dog.wav"),
        Path("elsewhere/x/y/b.dog.wav"),
        Path("elsewhere/out/d.dog.wav"),
    ]


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OptionError, match="has no recordings in it"):
        plan([tmp_path], ["dog"])


def test_a_folder_makes_a_batch_also_with_one_recording(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    with pytest.raises(OptionError, match="--output names one file"):
        plan([tmp_path], ["dog"], output="o.wav")
    (tmp_path / "a.dog.wav").touch()
    (job,) = plan([tmp_path], ["dog"])
    assert job.done == (("dog", tmp_path / "a.dog.wav"),)


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
        planned = plan([result, source], ["dog"], force=force)
        assert [job.source for job in planned] == [source]
    # alone and by name it is wanted
    assert plan([result], ["dog"])[0].outputs == (("dog", tmp_path / "a.dog.dog.wav"),)
