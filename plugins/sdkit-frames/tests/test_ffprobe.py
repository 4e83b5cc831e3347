"""What other programs say about the files: ffprobe where it is installed, and readers written to the specifications.

Everything else in these tests reads with PyAV and Pillow, with which the files were written too.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdkit import Frame, Timeline, registry

FFPROBE = shutil.which("ffprobe")
needs_ffprobe = pytest.mark.skipif(FFPROBE is None, reason="ffprobe is not installed (Debian: apt install ffmpeg)")
SIZE = (48, 32)
# (codec, pixel format, how far a time in the file may be from the true one)
SAID = {
    "mp4": ("h264", "yuv420p", Fraction(1, 10_000)),
    "webm": ("vp9", "yuv420p", Fraction(1, 1000)),
    "gif": ("gif", "bgra", Fraction(1, 200) + Fraction(1, 10**6)),
    "apng": ("apng", "rgb24", Fraction(24, 200_000)),  # FFmpeg rounds each delay to 1/100,000 s; the file is exact
    "png": ("png", "rgb24", Fraction(1, 10**5)),
}
TIMELINES = [Timeline(13), Timeline(24, "24000/1001"), Timeline(12, "7.5", "closed"), Timeline(1, 25)]


def probe(path: Path, *more: str) -> dict[str, Any]:
    """Everything ffprobe reads, all frames decoded; an error it prints fails the test."""
    assert FFPROBE is not None
    what = ["-count_frames", "-show_streams", "-show_format", "-show_packets"]
    command = [FFPROBE, "-v", "error", *what, "-of", "json", *more, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def begun(ending: str, path: Path, timeline: Timeline, count: int) -> Any:
    writer = registry().make("frame-sink", ending).open(path, timeline, SIZE, '{"a":"<é>"}')
    for i in range(count):
        image = np.full((SIZE[1], SIZE[0], 3), (10 + 9 * i, 90, 200 - 5 * i), np.uint8)
        image[4:20, i : i + 16] = (220, 40 + 5 * i, 60)
        writer.write(Frame.of(i, timeline, image))
    return writer


def times(packets: Sequence[dict[str, Any]]) -> list[tuple[Fraction, Fraction]]:
    """(when, for how long) of each, in the order shown; 0 where the container states no length."""
    found = [(Fraction(each["pts_time"]), Fraction(each.get("duration_time", 0))) for each in packets]
    return sorted(found)


@needs_ffprobe
@pytest.mark.parametrize("timeline", TIMELINES, ids=lambda line: f"{line.frames}@{line.fps}")
@pytest.mark.parametrize("ending", SAID)
def test_ffprobe_agrees(ending: str, timeline: Timeline, tmp_path: Path) -> None:
    path = begun(ending, tmp_path / f"c.{ending}", timeline, timeline.frames).finish()
    sequence: list[str] = []
    if ending == "png":  # read as people read one: the names as a pattern, the rate from the list beside them
        sequence = ["-f", "image2", "-framerate", json.loads(path.read_text())["fps"]]
        path = tmp_path / "c-%07d.png"
    data = probe(path, *sequence)
    (stream,) = data["streams"]
    codec, pixels, off = SAID[ending]
    assert (stream["codec_name"], stream["pix_fmt"]) == (codec, pixels)
    assert (stream["width"], stream["height"]) == SIZE
    assert int(stream["nb_read_frames"]) == timeline.frames == len(data["packets"])
    shown = times(data["packets"])
    assert all(abs(when - timeline.pts(i)) <= off for i, (when, _) in enumerate(shown))
    last, length = shown[-1]
    assert abs(last + (length or timeline.step) - timeline.duration) <= 2 * off
    if timeline.frames > 1 and ending != "gif":  # of a GIF ffprobe guesses the rate from the first delays
        assert Fraction(stream["avg_frame_rate"]) == timeline.fps
    if ending in ("mp4", "webm"):
        assert (stream["color_space"], stream["color_range"]) == ("bt709", "tv")
        assert abs(Fraction(data["format"]["duration"]) - timeline.duration) < Fraction(2, 1000)
    elif ending != "apng":  # of which FFmpeg 5 states no duration
        assert abs(Fraction(stream["duration"]) - timeline.duration) <= 2 * off


@pytest.mark.parametrize("timeline", TIMELINES, ids=lambda line: f"{line.frames}@{line.fps}")
def test_the_delays_of_an_apng_are_exact(timeline: Timeline, tmp_path: Path) -> None:
    data = begun("apng", tmp_path / "c.apng", timeline, timeline.frames).finish().read_bytes()
    position, delays, counts = 8, [], []
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"fcTL":
            delays.append(Fraction(*struct.unpack_from(">HH", data, position + 8 + 20)))
        if name == b"acTL":
            counts.append(struct.unpack_from(">I", data, position + 8)[0])
        position += 12 + length
    assert delays == [timeline.step] * timeline.frames
    assert counts == [timeline.frames]


@needs_ffprobe
@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "apng"])
def test_ffprobe_plays_what_a_crash_leaves(ending: str, tmp_path: Path) -> None:
    timeline = Timeline(24, "24000/1001")
    writer = begun(ending, tmp_path / f"c.{ending}", timeline, 9)
    left = tmp_path / f"left.{ending}"
    shutil.copyfile(tmp_path / f"c.partial.{ending}", left)  # what the system has of it, as after SIGKILL
    writer.abort()
    for path, least in ((left, 8), (tmp_path / f"c.partial.{ending}", 9)):
        assert FFPROBE is not None
        what = ["-count_frames", "-show_entries", "stream=codec_name,nb_read_frames,r_frame_rate,width", "-of", "json"]
        done = subprocess.run([FFPROBE, "-v", "error", *what, str(path)], capture_output=True, text=True, check=True)
        (stream,) = json.loads(done.stdout)["streams"]
        assert (stream["codec_name"], stream["width"]) == (SAID[ending][0], SIZE[0])
        assert least <= int(stream["nb_read_frames"]) <= 9
        if ending == "mp4":
            assert Fraction(stream["r_frame_rate"]) == timeline.fps


def chunks(data: bytes, begin: int, end: int) -> list[tuple[bytes, bytes]]:
    """(name, content) of RIFF chunks."""
    found = []
    while begin < end:
        name, length = struct.unpack_from("<4sI", data, begin)
        assert begin + 8 + length <= end, f"{name!r} is cut"
        found.append((name, data[begin + 8 : begin + 8 + length]))
        begin += 8 + length + length % 2
    assert begin == end
    return found


def three(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


@pytest.mark.parametrize("timeline", TIMELINES, ids=lambda line: f"{line.frames}@{line.fps}")
def test_a_webp_is_what_its_specification_says(timeline: Timeline, tmp_path: Path) -> None:
    """Up to version 7 at least, FFmpeg reads no animated WebP: read here by Google's container specification."""
    data = begun("webp", tmp_path / "c.webp", timeline, timeline.frames).finish().read_bytes()
    assert (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    found = chunks(data, 12, len(data))
    assert [name for name, _ in found] == [b"VP8X", b"ANIM", *[b"ANMF"] * timeline.frames, b"XMP "]
    head, anim, frames = found[0][1], found[1][1], [content for name, content in found if name == b"ANMF"]
    assert (three(head, 4) + 1, three(head, 7) + 1) == SIZE
    assert head[0] == 0b000110, "animation and XMP"
    assert struct.unpack_from("<H", anim, 4)[0] == 0, "for ever"
    total = 0
    for i, frame in enumerate(frames):
        assert (three(frame, 0), three(frame, 3), three(frame, 6) + 1, three(frame, 9) + 1) == (0, 0, *SIZE)
        assert abs(Fraction(total, 1000) - timeline.pts(i)) <= Fraction(1, 2000)
        total += three(frame, 12)
        ((name, content),) = chunks(frame, 16, len(frame))
        assert name == b"VP8 "
        assert content[3:6] == b"\x9d\x01\x2a", "the start code of a key frame (RFC 6386)"
    assert abs(Fraction(total, 1000) - timeline.duration) <= Fraction(1, 2000)
    with Image.open(tmp_path / "c.webp") as image:
        assert getattr(image, "n_frames", 1) == timeline.frames
