"""Sound under clips, read back and compared with the samples that went in."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sdkit import FileError, Frame, ParameterError, Request, Timeline, animate, registry
from sdkit.testing import fake_pipeline
from sdkit_frames.sound import Sound, pieces

RATE = 44100
ENDINGS = ["mp4", "webm"]


def wave(path: Path, samples: Any, rate: int = RATE) -> str:
    """Samples (channels, n) in [-1, 1] as a WAV file of 16 bits."""
    values = np.atleast_2d(np.asarray(samples, float))
    with av.open(str(path), "w", format="wav") as container:
        layout = "mono" if len(values) == 1 else "stereo"
        stream = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        packed = np.rint(values * 32767).astype(np.int16).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return str(path)


def tone(seconds: float, hertz: float, rate: int = RATE) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def bursts(seconds: float, *begins: float, rate: int = RATE) -> Any:
    """Silence in which a tone of 1 kHz and 50 ms begins at these times."""
    found = np.zeros(round(seconds * rate))
    for begin in begins:
        at, short = round(begin * rate), tone(0.05, 1000, rate)
        found[at : at + len(short)] = short[: len(found) - at]
    return found


def filmed(path: Path, timeline: Timeline, text: str, count: int | None = None) -> Any:
    writer = registry().make("frame-sink", text).open(path, timeline, (32, 32), "{}")
    for i in range(timeline.frames if count is None else count):
        writer.write(Frame.of(i, timeline, np.full((32, 32, 3), (7 * i) % 256, np.uint8)))
    return writer


def heard(path: Path) -> tuple[Any, int]:
    """(samples of all channels mixed, rate) as a player decodes them, from the file's time 0."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        found, rate = [], stream.codec_context.sample_rate
        # AAC fills its last packet up; the index says where the sound ends, and players stop there
        long = stream.duration and round(float(stream.duration * (stream.time_base or 1)) * rate)
        for frame in container.decode(stream):
            assert frame.pts is not None
            assert frame.time_base is not None
            if not found:
                late = round(float(frame.pts * frame.time_base) * rate)
                assert late >= 0 or path.suffix == ".webm"
                found.append(np.zeros(max(0, late)))
            found.append(np.asarray(frame.to_ndarray(), float).reshape(len(frame.layout.channels), -1).mean(0))
    return np.concatenate(found)[: long or None], rate


def loud(samples: Any, rate: int) -> list[float]:
    """Where it becomes loud, in seconds."""
    window = max(1, rate // 200)
    level = np.sqrt(np.convolve(samples**2, np.ones(window) / window, "same"))
    above = level > 0.1
    starts = np.flatnonzero(above[1:] & ~above[:-1]) + 1
    return [float(at) / rate for at in ([0, *starts] if above[0] else starts)]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("fps", ["12", "24000/1001"])
def test_sound_is_where_it_was_and_ends_with_the_clip(ending: str, fps: str, tmp_path: Path) -> None:
    song = wave(tmp_path / "song.wav", np.stack([bursts(9, 0.3, 0.8, 1.2, 5)] * 2))
    timeline = Timeline(24, fps)
    path = filmed(tmp_path / f"c.{ending}", timeline, f"{ending}(audio={song!r})").finish()
    samples, rate = heard(path)
    assert rate == (RATE if ending == "mp4" else 48000)
    assert loud(samples, rate) == pytest.approx([at for at in (0.3, 0.8, 1.2) if at < timeline.duration], abs=0.006)
    assert abs(len(samples) / rate - float(timeline.duration)) < 0.0075
    frames = list(registry().make("frame-sink", ending).read(path)[0])
    assert len(frames) == 24
    assert [abs(frame.pts - timeline.pts(i)) <= Fraction(1, 1000) for i, frame in enumerate(frames)] == [True] * 24


@pytest.mark.parametrize("ending", ENDINGS)
def test_pitch_stays_at_other_rates_and_layouts(ending: str, tmp_path: Path) -> None:
    for rate, channels in ((48000, 2), (8000, 1)):
        song = wave(tmp_path / "song.wav", np.stack([tone(2, 700, rate)] * channels), rate)
        path = filmed(tmp_path / f"c.{ending}", Timeline(12), f"{ending}(audio={song!r})").finish()
        samples, found = heard(path)
        spectrum = np.abs(np.fft.rfft(samples[: found // 2] * np.hanning(found // 2)))
        assert spectrum.argmax() * 2 == pytest.approx(700, abs=3)
        with av.open(str(path)) as container:
            assert len(container.streams.audio[0].codec_context.layout.channels) == channels


def test_where_it_begins_how_it_repeats_and_what_comes_after(tmp_path: Path) -> None:
    song = wave(tmp_path / "song.wav", bursts(1.0, 0.25, 0.75))
    for more, expected in (
        ("", [0.25, 0.75]),
        (", audio_start=0.5", [0.25]),
        (", audio_start=-0.5", [0.75, 1.25]),
        (", audio_repeat=True", [0.25, 0.75, 1.25, 1.75]),
        (", audio_start=0.5, audio_repeat=True", [0.25, 0.75, 1.25, 1.75]),
        (", audio_start=1.5, audio_repeat=True", [0.25, 0.75, 1.25, 1.75]),
    ):
        path = filmed(tmp_path / "c.mp4", Timeline(24), f"mp4(audio={song!r}{more})").finish()
        samples, rate = heard(path)
        assert loud(samples, rate) == pytest.approx(expected, abs=0.006), more
        assert abs(len(samples) / rate - 2) < 0.001, "silence to the end"


def test_pieces_are_the_samples_of_the_file(tmp_path: Path) -> None:
    values = tone(0.5, 300)
    song = Sound(wave(tmp_path / "song.wav", values))
    found = np.concatenate(list(pieces(song, RATE, 1, 30_000)), axis=1)[0]
    assert found.shape == (30_000,)
    assert np.abs(found[: len(values)] - values).max() < 1e-4
    assert not found[len(values) :].any()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_partial_file_has_pictures_and_sound(ending: str, tmp_path: Path) -> None:
    song = wave(tmp_path / "song.wav", tone(5, 500))
    writer = filmed(tmp_path / f"c.{ending}", Timeline(48), f"{ending}(audio={song!r})", 20)
    left = tmp_path / f"left.{ending}"
    shutil.copyfile(tmp_path / f"c.partial.{ending}", left)  # as after SIGKILL
    frames = len(list(registry().make("frame-sink", ending).read(left)[0]))
    assert 18 <= frames <= 20
    samples, rate = heard(left)
    assert len(samples) / rate > (frames - 1) / 12
    assert np.sqrt((samples[rate // 2 : rate] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    writer.abort()
    partial = tmp_path / f"c.partial.{ending}"
    assert len(list(registry().make("frame-sink", ending).read(partial)[0])) == 20
    assert len(heard(partial)[0]) / rate == pytest.approx(20 / 12, abs=0.2)


def test_a_restyled_video_keeps_its_sound(tmp_path: Path) -> None:
    song = wave(tmp_path / "song.wav", bursts(4, 0.5, 1.5))
    film = filmed(tmp_path / "in.mp4", Timeline(48, 24), f"mp4(audio={song!r})").finish()
    clip = animate(f"restyle(video={str(film)!r}, denoise=0)", fake_pipeline(), Request("a"), frames=24, fps=12)
    path = clip.save(tmp_path / "out.webm", sink=f"webm(audio={str(film)!r})")
    assert loud(*heard(path)) == pytest.approx([0.5, 1.5], abs=0.008)
    manifest = json.loads(registry().make("frame-sink", "webm").read(path)[1])
    assert manifest["sink"] == "webm(audio='in.mp4')"
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_video_whose_sound_comes_late_is_heard_late(tmp_path: Path) -> None:
    film = tmp_path / "late.mp4"
    with av.open(str(film), "w") as container:
        video, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=RATE, layout="mono")
        video.width = video.height = 32
        for i in range(20):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * i, np.uint8), "rgb24")
            container.mux(video.encode(picture))
        samples = tone(1, 1000).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), round(0.7 * RATE)
        container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    path = filmed(tmp_path / "c.mp4", Timeline(20, 10), f"mp4(audio={str(film)!r})").finish()
    assert loud(*heard(path))[0] == pytest.approx(0.7, abs=0.03)  # and AAC's echo before it


def test_what_cannot_be_heard_is_one_sentence(tmp_path: Path) -> None:
    mute = filmed(tmp_path / "mute.mp4", Timeline(4), "mp4").finish()
    (tmp_path / "text.mp3").write_text("no sound at all")
    song = wave(tmp_path / "song.wav", tone(0.5, 500))
    for text, kind, sentence in (
        (f"mp4(audio={str(mute)!r})", FileError, "'mute.mp4' holds no sound"),
        (f"webm(audio={str(tmp_path / 'text.mp3')!r})", FileError, "'text.mp3' cannot be read as sound"),
        (f"mp4(audio={str(tmp_path / 'none.mp3')!r})", FileError, "'none.mp3' cannot be read as sound: No such file"),
        (f"mp4(audio={song!r}, audio_start=0.5)", ParameterError, "'song.wav' lasts 0.50 s, so that it cannot begin"),
        (f"gif(audio={song!r})", ParameterError, "gif' has no parameter 'audio'"),
        ("mp4(audio='')", ParameterError, "The sound is the name of a file"),
        ("mp4(audio=5)", ParameterError, "The sound is the name of a file, not 5"),
    ):
        with pytest.raises(kind, match=sentence):
            registry().make("frame-sink", text)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed (Debian: apt install ffmpeg)")
@pytest.mark.parametrize(("ending", "codec", "rate"), [("mp4", "aac", "44100"), ("webm", "opus", "48000")])
def test_ffprobe_finds_the_sound(ending: str, codec: str, rate: str, tmp_path: Path) -> None:
    song = wave(tmp_path / "song.wav", np.stack([tone(7, 500)] * 2))
    timeline = Timeline(25, "24000/1001")
    path = filmed(tmp_path / f"c.{ending}", timeline, f"{ending}(audio={song!r})").finish()
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-show_packets"]
    done = subprocess.run([*command, "-of", "json", str(path)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    data = json.loads(done.stdout)
    video, sound = data["streams"]
    assert (video["codec_type"], int(video["nb_read_frames"]), Fraction(video["avg_frame_rate"])) == (
        "video",
        25,
        timeline.fps,
    )
    assert (sound["codec_name"], sound["sample_rate"], sound["channels"]) == (codec, rate, 2)
    shown = [Fraction(p["pts_time"]) for p in data["packets"] if p["codec_type"] == "video"]
    assert max(abs(when - timeline.pts(i)) for i, when in enumerate(shown)) <= Fraction(1, 1000)
    ends = [Fraction(p["pts_time"]) + Fraction(p["duration_time"]) for p in data["packets"] if p["stream_index"] == 1]
    assert -Fraction(1, 1000) < max(ends) - timeline.duration < Fraction(24, 1000), (
        "to the packet that holds the last sample"
    )
    assert abs(Fraction(data["format"]["duration"]) - timeline.duration) < Fraction(1, 100)
    order = [p["stream_index"] for p in data["packets"]]
    longest = max(len(run) for run in "".join(map(str, order)).split("0"))
    assert longest <= 8, "pictures and sound lie side by side"
