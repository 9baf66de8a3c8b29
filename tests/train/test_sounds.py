"""Every form of training sound opens as the same kind of bank, or tells what is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import soundfile

from flowsep_train.augment import Augmentation
from flowsep_train.sounds import Audio, SoundBank

SAMPLES = 20480


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sound(
    path: Path, seconds: float = 0.2, rate: int = 16000, frequency: float = 440.0, channels: int = 1
) -> Path:
    """Write a tone; of two channels the second is silent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.zeros((round(seconds * rate), channels), np.float32)
    x[:, 0] = 0.5 * np.sin(2 * np.pi * frequency * np.arange(len(x)) / rate)
    soundfile.write(path, x, rate)
    return path


def lines(path: Path, *rows: Mapping[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def frequency_of(x: Audio) -> float:
    return float(np.abs(np.fft.rfft(x * np.hanning(len(x)))).argmax()) * 16000 / len(x)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two classes of half a second, one of them with a held-out recording."""
    folder = tmp_path / "cache"
    folder.mkdir()
    audio = (16000 * np.sin(np.arange(24000) / 10)).astype(np.int16)
    np.save(folder / "audio.npy", audio)
    rows = [("tone", "train"), ("hum", "train"), ("tone", "test")]
    entries = [
        {"label": label, "split": split, "start": 8000 * i, "length": 8000, "kind": "recording"}
        for i, (label, split) in enumerate(rows)
    ]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def test_a_bank_opens_a_cache_of_clips(cache: Path) -> None:
    bank = SoundBank(cache)
    assert bank.labels == ["hum", "tone"]
    assert bank.captions == {"hum": ["hum"], "tone": ["tone"]}
    assert SoundBank(cache, "test").labels == ["tone"]
    x = bank.read(bank.by_label["tone"][0], 5000, rng())
    assert x.shape == (5000,) and x.dtype == np.float32 and np.abs(x).max() == pytest.approx(1)
    assert len(bank.read(bank.by_label["tone"][0], 9000, rng())) == 8000


def test_given_captions_replace_those_that_were_found(cache: Path) -> None:
    bank = SoundBank(cache, captions={"tone": ["a tone", "one note"], "rain": ["it rains"]})
    assert bank.captions == {"hum": ["hum"], "tone": ["a tone", "one note"]}


def test_audiocaps_in_the_published_layout_opens(tmp_path: Path) -> None:
    names = [f"metadata-master/audiocaps/audios/train/Y{i}.wav" for i in range(3)]
    for name in names:
        sound(tmp_path / name)
    rows = [
        {"wav": name, "label": "/m/09x0r,/t/dd00134", "caption": f"caption {i} of {name}", "seg_label": ""}
        for i in range(5)
        for name in names
    ]
    bank = SoundBank(lines(tmp_path / "metadata-master" / "processed" / "audiocaps_train.json", *rows))
    # recordings with the same AudioSet tags are not of one description
    assert bank.labels == names
    assert bank.captions == {name: [f"caption {i} of {name}" for i in range(5)] for name in names}
    assert [recording.path for recording in bank.by_label[names[1]]] == [tmp_path / names[1]]
    assert bank.track(names[0], SAMPLES, rng()).shape == (SAMPLES,)


@pytest.mark.parametrize("form", ["data", "list", "lines", "one line"])
def test_metadata_opens_as_a_document_and_by_line(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, object]] = [
        {"wav": "a.wav", "caption": "a dog barks", "label": "dog"},
        {"wav": "b.wav", "caption": ["barking", "a dog barks"], "labels": ["dog"], "split": "train"},
        {"wav": "c.wav", "labels": "rain"},
    ]
    for name in "abc":
        sound(tmp_path / f"{name}.wav")
    path = tmp_path / "metadata.json"
    if form == "one line":
        path.write_text(json.dumps(rows[0]))
        assert SoundBank(path).captions == {"dog": ["a dog barks"]}
        return
    lines(path, *rows) if form == "lines" else path.write_text(
        json.dumps({"data": rows} if form == "data" else rows, indent=2)
    )
    bank = SoundBank(path)
    assert bank.captions == {"dog": ["a dog barks", "barking"], "rain": ["rain"]}
    assert [recording.path.name for recording in bank.by_label["dog"]] == ["a.wav", "b.wav"]
    assert bank.alone == set()


def test_metadata_has_splits_and_a_root(tmp_path: Path) -> None:
    for name in "ab":
        sound(tmp_path / "elsewhere" / f"{name}.wav")
    path = lines(
        tmp_path / "metadata.jsonl",
        {"wav": "a.wav", "caption": "one"},
        {"wav": "b.wav", "caption": "two", "split": "test"},
    )
    with pytest.raises(ValueError, match="missing"):
        SoundBank(path)
    assert SoundBank(path, root=tmp_path / "elsewhere").labels == ["a.wav"]
    assert SoundBank(path, "test", root=tmp_path / "elsewhere").labels == ["b.wav"]
    with pytest.raises(ValueError, match="no recording of the split val"):
        SoundBank(path, "val", root=tmp_path / "elsewhere")


def test_missing_recordings_may_be_skipped(tmp_path: Path) -> None:
    sound(tmp_path / "wavs" / "here.wav")
    rows = [{"wav": f"wavs/{name}.wav", "caption": name} for name in ("gone", "here", "lost")]
    path = lines(tmp_path / "metadata" / "rows.jsonl", *rows)
    assert SoundBank(path, skip_missing=True).labels == ["wavs/here.wav"]
    with pytest.raises(ValueError, match="names no recording that is there"):
        SoundBank(lines(tmp_path / "none.jsonl", rows[0]), skip_missing=True)


def test_a_captioned_recording_is_placed_once_unless_it_is_short(tmp_path: Path) -> None:
    sound(tmp_path / "long.wav", seconds=3)
    sound(tmp_path / "half.wav", seconds=0.64)
    sound(tmp_path / "short.wav", seconds=0.1)
    rows = [{"wav": f"{name}.wav", "caption": name} for name in ("long", "half", "short")]
    bank = SoundBank(lines(tmp_path / "rows.jsonl", *rows), augmentation=Augmentation.none())
    starts = set()
    for seed in range(10):
        assert np.count_nonzero(bank.track("long.wav", SAMPLES, rng(seed))) > 0.95 * SAMPLES
        once = bank.track("half.wav", SAMPLES, rng(seed)).nonzero()[0]
        assert once[-1] - once[0] < 10240
        starts.add(int(once[0]))
    assert len(starts) > 5
    filled = [np.count_nonzero(bank.track("short.wav", SAMPLES, rng(seed))) for seed in range(10)]
    assert max(filled) > 2 * 1600


def test_a_folder_of_labelled_recordings_opens(tmp_path: Path) -> None:
    for name in ("dog_barking/one.wav", "dog_barking/deeper/two.FLAC", "rain/drops.ogg", ".hidden/x.wav"):
        sound(tmp_path / name)
    (tmp_path / "dog_barking" / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    bank = SoundBank(tmp_path)
    assert bank.labels == ["dog barking", "rain"]
    assert bank.captions == {"dog barking": ["dog barking"], "rain": ["rain"]}
    assert {recording.path.name for recording in bank.by_label["dog barking"]} == {"one.wav", "two.FLAC"}
    for label in bank.labels:
        assert bank.track(label, SAMPLES, rng()).any()


def test_a_folder_holds_out_by_name_and_leaves_every_class_something_to_train_on(tmp_path: Path) -> None:
    names = [f"{i}.wav" for i in range(60)]
    held_out = [name for name in names if crc32(name.encode()) % 10 == 0]
    assert held_out
    for name in names:
        sound(tmp_path / "dog" / name, seconds=0.01)
    sound(tmp_path / "cat" / held_out[0], seconds=0.01)

    def paths(split: str) -> list[str]:
        bank = SoundBank(tmp_path, split)
        return [recording.path.name for recording in bank.by_label["dog"]]

    assert sorted(paths("test")) == sorted(held_out)
    assert sorted(paths("train") + paths("test")) == sorted(names)
    assert SoundBank(tmp_path).labels == ["cat", "dog"]
    assert SoundBank(tmp_path, "test").labels == ["dog"]
    # what others come or go changes nothing for those that stay
    before = paths("test")
    sound(tmp_path / "dog" / "another.wav")
    assert set(before) <= set(paths("test"))


@pytest.mark.parametrize("seconds", [0.5, 40.0])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path: Path, seconds: float) -> None:
    sound(tmp_path / "tone" / "a.wav", seconds, rate=44100, channels=2)
    bank = SoundBank(tmp_path)
    x = bank.read(bank.by_label["tone"][0], 6000, rng())
    assert x.shape == (6000,) and x.dtype == np.float32
    assert np.abs(x).max() == pytest.approx(1)
    assert frequency_of(x) == pytest.approx(440, abs=3)
    assert len(bank.read(bank.by_label["tone"][0], 16000 * 50, rng())) == 16000 * seconds


def test_a_long_file_is_read_from_anywhere_in_it(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 40 * 16000, dtype=np.float32)
    (tmp_path / "ramp").mkdir()
    soundfile.write(tmp_path / "ramp" / "a.wav", ramp, 16000, subtype="FLOAT")
    bank = SoundBank(tmp_path)
    pieces = [bank.read(bank.by_label["ramp"][0], 16000, rng(seed)) for seed in range(20)]
    # at peak 1 the first sample tells how far into the ramp a piece begins
    assert min(piece[0] for piece in pieces) < 0.9 < 0.96 < max(piece[0] for piece in pieces)


def test_silence_in_a_recording_is_seldom_what_is_read(tmp_path: Path) -> None:
    half = np.concatenate([np.zeros(32000), np.ones(32000)])
    (tmp_path / "late").mkdir()
    soundfile.write(tmp_path / "late" / "a.wav", half, 16000)
    bank = SoundBank(tmp_path)
    heard = [bank.read(bank.by_label["late"][0], 1600, rng(seed)).any() for seed in range(60)]
    assert sum(heard) > 50


def test_reading_does_not_change_what_the_next_reader_gets(tmp_path: Path) -> None:
    sound(tmp_path / "tone" / "a.wav")
    bank = SoundBank(tmp_path)
    first = bank.read(bank.by_label["tone"][0], 9999, rng())
    first[:] = 0
    assert bank.read(bank.by_label["tone"][0], 9999, rng()).any()


def test_a_track_is_a_function_of_its_seed(cache: Path) -> None:
    bank = SoundBank(cache)
    tracks = [bank.track("tone", SAMPLES, rng(seed)) for seed in range(30)]
    assert len({track.tobytes() for track in tracks}) == 30
    for seed, track in enumerate(tracks):
        assert track.shape == (SAMPLES,) and track.dtype == np.float32
        assert np.abs(track).max() == pytest.approx(1)
        assert track.tobytes() == bank.track("tone", SAMPLES, rng(seed)).tobytes()


def test_a_track_of_short_sounds_is_never_silent(tmp_path: Path) -> None:
    sound(tmp_path / "click" / "a.wav", seconds=0.02)
    bank = SoundBank(tmp_path)
    assert all(bank.track("click", SAMPLES, rng(seed)).any() for seed in range(200))


def test_a_silent_recording_gives_a_silent_track(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    soundfile.write(tmp_path / "nothing" / "a.wav", np.zeros(8000), 16000)
    track = SoundBank(tmp_path).track("nothing", SAMPLES, rng())
    assert track.shape == (SAMPLES,) and not track.any()


def test_a_bank_travels_to_a_worker_process(cache: Path) -> None:
    bank = SoundBank(cache)
    expected = bank.track("tone", SAMPLES, rng())
    sent = pickle.dumps(bank)
    # paths, not audio
    assert len(sent) < 4000
    np.testing.assert_array_equal(pickle.loads(sent).track("tone", SAMPLES, rng()), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"wav": "a.wav", "caption": "x"}\nnot json\n', "metadata.json, line 2, is not JSON"),
        ('{\n "data": [\n  {"wav": }\n ]\n}', "metadata.json, line 3, is not JSON"),
        ("hello", "metadata.json, line 1, is not JSON"),
        ("", "metadata.json names no recording that is there"),
        ("5", "metadata.json is not metadata: a list of objects"),
        ('{"data": 5}', "metadata.json is not metadata: a list of objects"),
        ('{"data": [5]}', "metadata.json, row 1, is not an object"),
        (
            '{"data": [{"wav": "a.wav", "caption": "x"}, {"caption": "x"}]}',
            "metadata.json, row 2, has no wav",
        ),
        ('{"wav": "a.wav"}\n', "metadata.json, row 1, has no caption: .* describes a.wav"),
        ('{"wav": "a.wav", "caption": "x"}\n\n{"wav": "a.wav", "caption": " "}', "line 3, has no caption"),
        (
            '{"wav": "a.wav", "caption": "x"}\n{"wav": "b.wav", "caption": "x"}',
            "line 2, names .*b.wav, which",
        ),
        (
            '[{"wav": "a.wav", "caption": "x"}, {"wav": "a.wav", "caption": "y", "split": "test"}]',
            "row 2, has a.wav in the split test, an earlier row in train",
        ),
    ],
)
def test_faults_in_metadata_are_named(tmp_path: Path, text: str, message: str) -> None:
    sound(tmp_path / "a.wav")
    path = tmp_path / "metadata.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        SoundBank(path)
    assert "\n" not in str(caught.value)


def test_metadata_that_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tone.wav is not metadata: it is not a text file"):
        SoundBank(sound(tmp_path / "tone.wav"))


def test_faults_in_folders_are_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        SoundBank(tmp_path / "nowhere")
    (tmp_path / "empty" / "dog").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"empty is not a sound cache .* has no recordings in sub-folders"):
        SoundBank(tmp_path / "empty")
    with pytest.raises(ValueError, match="cache has no recording of the split other"):
        SoundBank(cache, "other")
    (cache / "audio.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"audio.npy is not an array of samples"):
        SoundBank(cache).track("tone", SAMPLES, rng())
    (cache / "audio.npy").unlink()
    with pytest.raises(ValueError, match=r"cache is not a sound cache: it has index.json but no audio.npy"):
        SoundBank(cache)
    (cache / "audio.npy").touch()
    for index in ("{", "[5]", '[{"label": "tone"}]'):
        (cache / "index.json").write_text(index)
        with pytest.raises(ValueError, match=r"index.json is not an index of a sound cache"):
            SoundBank(cache)


def test_faults_in_audio_are_named(tmp_path: Path) -> None:
    sound(tmp_path / "dog" / "none.wav", seconds=0)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "text.wav").write_text("this is no sound")
    (tmp_path / "cow").mkdir()
    soundfile.write(tmp_path / "cow" / "nan.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    bank = SoundBank(tmp_path)
    for label, message in (
        ("dog", "none.wav has no samples"),
        ("cat", "text.wav cannot be read as audio"),
        ("cow", "nan.wav has samples that are not numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.track(label, SAMPLES, rng())
