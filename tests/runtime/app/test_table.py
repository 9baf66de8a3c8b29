"""Jobs from a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from flowsep_runtime import OptionError
from flowsep_runtime.app.table import jobs_of_table
from flowsep_runtime.audio.reading import Span
from tests.runtime.command import Run, refused


def table(folder: Path, text: str, name: str = "jobs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


ROWS = 'recording,query,output,start,caption\nx/a.wav,"dog, barking",one/o.flac,0.5,-\ny/a.wav,rain,,,\n'


def test_a_row_is_a_job_and_its_paths_begin_at_the_table(tmp_path: Path) -> None:
    first, second = jobs_of_table(table(tmp_path, "\ufeff" + ROWS))
    assert first.source == tmp_path / "x/a.wav"
    assert first.outputs == (("dog, barking", tmp_path / "one/o.flac"),)
    assert first.span == Span(0.5) and second.span == Span()
    assert second.outputs == (("rain", tmp_path / "y/a.rain.wav"),)


def test_results_go_into_the_folder_that_is_named(tmp_path: Path) -> None:
    first, second = jobs_of_table(table(tmp_path, ROWS), Path("out"))
    assert first.outputs[0][1] == Path("out/one/o.flac")
    assert second.outputs[0][1] == Path("out/y/a.rain.wav")
    _, second = jobs_of_table(table(tmp_path, ROWS), Path("out"), name="{number}")
    assert second.outputs[0][1] == Path("out/2.wav")


def test_json_lines_and_tabs_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"recording": "x/a.wav", "query": "dog, barking", "output": "one/o.flac", "start": 0.5},
        {"recording": "y/a.wav", "query": "rain", "duration": None},
    ]
    lines = "\n\n".join(map(json.dumps, rows))
    expected = jobs_of_table(table(tmp_path, ROWS))
    assert jobs_of_table(table(tmp_path, lines, "jobs.jsonl")) == expected
    tabs = "recording\tquery\toutput\tstart\nx/a.wav\tdog, barking\tone/o.flac\t0.5\ny/a.wav\train\n"
    assert jobs_of_table(table(tmp_path, tabs, "jobs.tsv")) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column 'recording'"),
        ("recording,caption\na.wav,dog\n", "has no column 'query'"),
        ("recording,query\n", "has no row"),
        ("recording,query\na.wav,dog\n,rain\n", "line 3: 'recording' is missing"),
        ("recording,query\na.wav, \n", "line 2: 'query' is missing"),
        ("recording,query,start\na.wav,dog,soon\n", "line 2: 'start' is not a number"),
        ("recording,query,start\na.wav,dog,-1\n", "line 2: 'start' is not a number"),
        ("recording,query,duration\na.wav,dog,0\n", "'duration' is 0"),
        ("recording,query,output\na.wav,dog,o.wav\nb.wav,dog,./o.wav\n", "Two outputs would go to"),
        ('{"recording": "a.wav"}', "line 1: 'query' is missing"),
        ('{"recording": "a.wav", "query": 3}', "line 1: 'query' is missing or not text"),
        ('{"recording": "a.wav", "query": "dog"}\n[1]', "line 2 is not a JSON object"),
        ('{"recording": "a.wav", "query": "dog"}\n{', "line 2 is not JSON"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        jobs_of_table(table(tmp_path, text))


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        jobs_of_table(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"recording,query\n\xff,dog\n")
    with pytest.raises(OptionError, match="is not UTF-8 text"):
        jobs_of_table(tmp_path / "bad.csv")


def test_the_rows_of_a_table_are_separated_and_one_that_fails_does_not_stop_the_others(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    jobs = table(
        tmp_path,
        "recording,query,output,start,duration\n"
        "mix.wav,dog,new/dog.wav,0.25,0.5\nnone.wav,dog,,,\nmix.wav,rain,new/rain.wav,,\n",
    )
    options = ["--jobs", jobs, "--bundle", toy_bundle, "--steps", 1]
    code, out, err = run(*options)
    assert code == 1 and "none.wav" in err and "1 of 3 recordings failed" in err
    assert soundfile.info(tmp_path / "new/dog.wav").frames == 11025
    assert soundfile.info(tmp_path / "new/rain.wav").frames == 22050
    code, out, _ = run(*options)
    assert code == 1 and out.count("done before") == 2


def test_a_table_takes_no_recordings_beside_it(run: Run, mixture: Path, tmp_path: Path) -> None:
    jobs = table(tmp_path, "recording,query\nmix.wav,dog\n")
    refused(run(mixture, "--jobs", jobs), "leave out MIXTURE")
    refused(run("--query", "dog", "--jobs", jobs), "leave out --query")
    refused(run("--jobs", jobs, "--start", 1), "leave out --start")
