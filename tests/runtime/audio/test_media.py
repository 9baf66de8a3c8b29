"""Files that libsndfile does not read are read with PyAV, block by block, and no other file is opened."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_runtime import AudioError, FlowSepWarning
from flowsep_runtime.audio import media
from flowsep_runtime.audio.reading import AudioReader, read_audio
from tests.runtime.command import Run, refused

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'flowsep-engine[media]'")

RATE = 48000
#: File -> codec, and sample format of those that are lossless. All encoders are in PyAV's own FFmpeg.
FILES = {
    "a.m4a": ("aac", ""),
    "lossless.m4a": ("alac", "s16p"),
    "a.mp4": ("aac", ""),
    "a.mov": ("pcm_s16le", "s16"),
    "a.webm": ("libopus", ""),
    "a.mkv": ("flac", "s16"),
    "a.aac": ("aac", ""),
    "a.wma": ("wmav2", ""),
    "a.tta": ("tta", "s16"),
    "a.avi": ("mp2", ""),
    "a.mts": ("ac3", ""),
    "a.oga": ("flac", "s16"),
    "a.wv": ("wavpack", "s16p"),
}
MUXERS = {".m4a": "ipod", ".mkv": "matroska", ".aac": "adts", ".wma": "asf", ".mts": "mpegts", ".oga": "ogg"}


def tones(frames: int, channels: int = 2) -> Any:
    """A sine a channel, at 220, 440, … Hz."""
    times = np.arange(frames)[:, None] * 2 * np.pi * 220 * np.arange(1, channels + 1) / RATE
    return (0.5 * np.sin(times)).astype(np.float32)


def encode(
    path: Path,
    samples: Any,
    codec: str,
    rate: int = RATE,
    video: bool = False,
    sample_format: str = "",
    **tags: str,
) -> Path:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w", format=MUXERS.get(path.suffix)) as container:
        container.metadata.update(tags)
        if video:
            pictures = container.add_stream("mpeg4", rate=25)
            pictures.width = pictures.height = 64
            pictures.pix_fmt = "yuv420p"
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        if not sample_format:
            stream.bit_rate = 192_000
        if sample_format:
            stream.format = sample_format
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        fifo, resampler = av.AudioFifo(), av.AudioResampler(stream.format, layout, rate)
        for part in resampler.resample(frame):
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(part))
        if video:
            for number in range(50):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), "rgb24")
                picture.pts = number
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec", "lossless"), [(name, *how) for name, how in FILES.items()])
def test_a_media_file_is_read(tmp_path: Path, name: str, codec: str, lossless: str) -> None:
    samples = tones(RATE)
    recording = read_audio(encode(tmp_path / name, samples, codec, sample_format=lossless))
    assert (recording.sample_rate, recording.samples.shape[1]) == (RATE, 2)
    if lossless:
        assert np.allclose(recording.samples, samples, atol=1e-4)
        return
    # a codec may lose or add some frames where it begins and ends; between, the tones are the tones
    assert abs(len(recording.samples) - RATE) < 4096
    middle = recording.samples[RATE // 4 : 3 * RATE // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))[:, None], axis=0))
    assert np.allclose(spectrum.argmax(axis=0), [110, 220], atol=1)
    assert np.allclose(middle.std(axis=0), samples.std(), rtol=0.1)


def test_the_sound_of_a_video_becomes_a_wav_beside_it(run: Run, tmp_path: Path, toy_bundle: Path) -> None:
    film = encode(tmp_path / "holiday.mp4", tones(RATE), "aac", video=True, title="The sea")
    code, _, err = run(film, "dog barking", "--bundle", toy_bundle, "--steps", 1)
    assert code == 0, err
    found = soundfile.info(tmp_path / "holiday.dog-barking.wav")
    assert (found.samplerate, found.channels, found.subtype) == (RATE, 2, "PCM_16")
    with soundfile.SoundFile(tmp_path / "holiday.dog-barking.wav") as result:
        assert result.title == "The sea"


def test_more_than_16_bits_stay_more(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tones(RATE), "alac", sample_format="s32p")
    with AudioReader(path) as reader:
        assert reader.subtype == "PCM_24"
        found = np.concatenate(list(reader.blocks()))
    assert np.abs(found - tones(RATE)).max() < 1e-6


def test_blocks_together_are_the_whole_and_as_long_as_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.tta", tones(RATE), "tta", sample_format="s16")
    with AudioReader(path) as reader:
        first, again = list(reader.blocks(1000)), list(reader.blocks(777))
    assert {len(block) for block in first} == {1000}
    assert np.array_equal(np.concatenate(first), np.concatenate(again))


def test_six_channels(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tones(RATE, 6), "aac")
    with AudioReader(path) as reader:
        assert reader.channels == 6


def test_channels_beyond_the_eighth_are_read(tmp_path: Path) -> None:
    """A ninth plane, which PyAV has not at hand, ended the process."""
    path, values = tmp_path / "a.mkv", np.arange(16, dtype=np.int16)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE)
        stream.codec_context.layout = "hexadecagonal"
        frame = av.AudioFrame.from_ndarray(np.tile(values, 1000)[None], "s16", "hexadecagonal")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.array_equal(read_audio(path).samples * 32768, np.tile(values, (1000, 1)))


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=25)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        container.mux(pictures.encode(picture))
        container.mux(pictures.encode(None))
    with pytest.raises(AudioError, match=r"a\.mp4 has no sound: give a file with an audio track"):
        AudioReader(path)


@pytest.mark.parametrize(
    ("name", "codec", "lossless"),
    [(name, *FILES[name]) for name in ("a.m4a", "a.mov", "a.tta", "a.avi", "a.wma")],
)
def test_media_files_that_were_joined_are_read_one_after_the_other(
    tmp_path: Path, name: str, codec: str, lossless: str
) -> None:
    parts = [
        encode(tmp_path / f"{frames}-{name}", tones(frames), codec, sample_format=lossless)
        for frames in (RATE, RATE // 2)
    ]
    samples = np.concatenate([read_audio(part).samples for part in parts])
    (tmp_path / name).write_bytes(b"".join(part.read_bytes() for part in parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_audio(tmp_path / name).samples, samples)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mts", "a.m4a", "a.wma"])
def test_a_media_file_that_is_cut_off_is_no_secret(tmp_path: Path, name: str) -> None:
    codec, lossless = FILES[name]
    path = encode(tmp_path / name, tones(RATE // 2), codec, sample_format=lossless)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10 + 1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read_audio(path)
        except AudioError as error:
            assert re.search(r"is damaged after|is not audio that can be read", str(error))
        else:
            assert re.search(r"is cut short: (\d+ bytes|it ends within)", str(said[0].message))


def test_packets_that_are_lost_from_a_stream_are_no_secret(tmp_path: Path) -> None:
    """Packets of MPEG-TS get lost by radio; its frames have time stamps."""
    path = encode(tmp_path / "a.mts", tones(4 * RATE), "aac")
    content = path.read_bytes()
    half = len(content) // 188 // 2 * 188
    path.write_bytes(content[:half] + content[half + 60 * 188 :])
    with pytest.warns(FlowSepWarning, match=r"a\.mts has no sound for 0\.\d\d s after"):
        assert len(read_audio(path).samples) < 4 * RATE


def test_a_truncated_media_file_is_read_with_a_warning(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", tones(10 * RATE), "flac", RATE, sample_format="s16")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(FlowSepWarning, match=r"a\.mkv ends early"):
        recording = read_audio(path)
    assert len(recording.samples) < 6 * RATE


@pytest.mark.parametrize("content", [b"no media", b"\x1aE\xdf\xa3" + bytes(500), bytes(10_000)])
def test_what_is_no_media_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(content)
    with pytest.raises(AudioError, match="is not audio that can be read"):
        AudioReader(path)


def test_a_list_of_other_files_opens_none_of_them(tmp_path: Path) -> None:
    """FFmpeg follows playlists to files and addresses."""
    secret = encode(tmp_path / "secret.m4a", tones(RATE), "aac")
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="is not audio that can be read"):
            AudioReader(tmp_path / name)


@pytest.mark.slow
def test_minutes_pass_in_the_memory_of_seconds(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.tta", np.tile(tones(RATE, 1), (200, 1)), "tta", sample_format="s16")
    tracemalloc.start()
    try:
        with AudioReader(path) as reader:
            assert sum(map(len, reader.blocks())) == reader.frames == 200 * RATE
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_without_pyav_the_error_names_the_extra(
    run: Run, tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.m4a", tones(RATE), "aac")
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    refused(run(path, "rain", "--bundle", toy_bundle), path, "pip install 'flowsep-engine[media]'")


@pytest.mark.slow
def test_pyav_is_imported_for_media_only(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(RATE), RATE)
    code = (
        "import sys; from pathlib import Path; from flowsep_runtime.audio.reading import read_audio; "
        "read_audio(Path(sys.argv[1])); sys.exit('av' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.wav"], timeout=60).returncode == 0
