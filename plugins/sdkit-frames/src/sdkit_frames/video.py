"""MP4 (H.264) and WebM (VP9), through PyAV, with sound where it is asked for (AAC, Opus).

Pixels become yuv420p by the matrix of ITU-R BT.709, and the file says so, so that every player shows the same colours.
While rendering, MP4 is written in fragments and WebM in clusters, one per frame, by an encoder that holds no frame
back: what a crash leaves plays, but for the last frame at most. A finished MP4 is copied, not encoded again, into a
file whose index comes first ("faststart"), so that it plays while it is loaded. The manifest is the tag ``comment``,
which survives other tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
from attrs import frozen

from sdkit import FileError, Frame, ParameterError, Timeline
from sdkit_frames.partial import check_step, checked, partial_name, take_name, unwritable
from sdkit_frames.sound import Sound, Track

__all__ = ["Mp4", "Webm"]

ODD = ("pad", "crop", "error")
PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
FINEST = 1_000_000
"""FFmpeg has 32 bits for either number of a rate; rates of more digits become the nearest fraction to a millionth."""
SLOWEST = Fraction(3600)  # seconds a frame is shown
MOST = 16384  # the largest side of both encoders
# with sound, the head waits for the first packets: it says by how much the encoder's sound begins too early
MOVFLAGS = "frag_keyframe+frag_every_frame+empty_moov+default_base_moof+delay_moov"
BT709, LIMITED = 1, 1  # the numbers of ITU-T H.273, and FFmpeg's of the range 16 to 235


def _sound(kind: Mp4 | Webm) -> Sound | None:
    if kind.audio is None:
        return None
    return Sound(kind.audio, kind.audio_start, kind.audio_repeat)


def _check_odd(odd: str) -> None:
    if odd not in ODD:
        raise ParameterError(f"What becomes of an odd width or height is one of {', '.join(ODD)}, not {odd!r}.")


@frozen
class Mp4:
    """H.264, yuv420p: plays in browsers.

    Attributes:
        crf: Constant rate factor of x264, 0 (lossless) to 51; 17 is hardly told from the original.
        preset: How hard x264 tries: ``ultrafast`` to ``veryslow``.
        odd: Sides must be even: ``pad`` repeats the last row or column, ``crop`` drops it, ``error`` refuses.
        audio: A file whose sound is heard: music, or a video; cut at the clip's end, silence where it ends before.
        audio_start: Which second of it is heard first; below 0, silence comes before it.
        audio_repeat: Whether it begins again where it ends.

    Raises:
        ParameterError: a value is out of range.
        FileError: the sound cannot be read.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".mp4",)
    crf: float = 17
    preset: str = "medium"
    odd: str = "pad"
    audio: str | None = None
    audio_start: float = 0.0
    audio_repeat: bool = False

    def __attrs_post_init__(self) -> None:
        checked(self.crf, 0, 51, "The constant rate factor")
        if self.preset not in PRESETS:
            raise ParameterError(f"A preset of x264 is one of {', '.join(PRESETS)}, not {self.preset!r}.")
        _check_odd(self.odd)
        _sound(self)

    def check(self, timeline: Timeline, /) -> None:
        """Refuse rates that a video cannot have."""
        check_step(timeline, SLOWEST, "An MP4")

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> VideoWriter:
        """Begin a file."""
        self.check(timeline)
        # zerolatency: no look-ahead and no frames out of order, so that a fragment per frame is possible
        codec = {"crf": str(self.crf), "preset": self.preset, "tune": "zerolatency"}
        flags = {"movflags": MOVFLAGS, "min_frag_duration": "1", "flush_packets": "1"}
        return VideoWriter(path, timeline, size, manifest, ("libx264", "aac"), "mp4", codec, flags, self)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of a video, and the manifest inside."""
        return _read(path, start)


@frozen
class Webm:
    """VP9 in WebM.

    Attributes:
        crf: Constant quality of libvpx, 0 to 63.
        speed: How little libvpx tries, 0 to 8.
        odd: As of `Mp4`.
        audio: As of `Mp4`.
        audio_start: As of `Mp4`.
        audio_repeat: As of `Mp4`.

    Raises:
        ParameterError: a value is out of range.
        FileError: the sound cannot be read.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".webm",)
    crf: int = 24
    speed: int = 4
    odd: str = "pad"
    audio: str | None = None
    audio_start: float = 0.0
    audio_repeat: bool = False

    def __attrs_post_init__(self) -> None:
        checked(self.crf, 0, 63, "The constant quality", whole=True)
        checked(self.speed, 0, 8, "The speed", whole=True)
        _check_odd(self.odd)
        _sound(self)

    def check(self, timeline: Timeline, /) -> None:
        """Refuse rates that a video cannot have."""
        check_step(timeline, SLOWEST, "A WebM")

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> VideoWriter:
        """Begin a file."""
        self.check(timeline)
        codec = {"crf": str(self.crf), "b": "0", "deadline": "good", "cpu-used": str(self.speed), "lag-in-frames": "0"}
        # a cluster per frame: libavformat keeps one in memory until it is full, and a crash would take it along
        flags = {"cluster_time_limit": "0", "flush_packets": "1"}
        return VideoWriter(path, timeline, size, manifest, ("libvpx-vp9", "libopus"), "webm", codec, flags, self)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of a video, and the manifest inside."""
        return _read(path, start)


class VideoWriter:
    """A video being written."""

    def __init__(
        self,
        path: Path,
        timeline: Timeline,
        size: tuple[int, int],
        manifest: str,
        codecs: tuple[str, str],
        form: str,
        options: dict[str, str],
        flags: dict[str, str],
        kind: Mp4 | Webm,
    ) -> None:
        self._path, self._part, self._fast = path, partial_name(path), form == "mp4"
        self._manifest, self._count, self._open = manifest, 0, True
        self._size, sound = _even(size, kind.odd), _sound(kind)
        if max(size) > MOST:
            raise ParameterError(f"A video has sides of at most {MOST} pixels, not {size[0]}x{size[1]}.")
        rate = timeline.fps.limit_denominator(FINEST)
        with unwritable(path, ValueError):
            self._container: Any = av.open(str(self._part), "w", format=form, options=flags)
            self._container.metadata["comment"] = manifest
            stream: Any = self._container.add_stream(codecs[0], rate=rate, options=options)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / rate
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._stream, self._step = stream, 1 / rate
        self._track = None if sound is None else Track(self._container, codecs[1], sound, timeline.duration)

    def write(self, frame: Frame, /) -> None:
        """Add the next frame."""
        image = av.VideoFrame.from_ndarray(_fitted(frame.image, self._size), format="rgb24")
        picture: Any = image.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts, picture.time_base = self._count, self._step  # a stream's own base changes when it is opened
        self._count += 1
        if self._track is not None:
            self._mux(self._track.until(self._count * self._step))
        self._mux(self._encoded(picture))

    def finish(self) -> Path:
        """Complete the file and give it its name."""
        self._close()
        if not self._fast:
            return take_name(self._part, self._path)
        ready = self._path.with_name(f".{self._path.name}.part")
        try:
            with unwritable(self._path, ValueError):
                _faststart(self._part, ready, self._manifest)
            take_name(ready, self._path)
        finally:
            ready.unlink(missing_ok=True)
        self._part.unlink()
        return self._path

    def abort(self) -> None:
        """Leave what there is as a video of another name, if there is a frame."""
        self._close()
        if not self._count:
            self._part.unlink(missing_ok=True)

    def _encoded(self, picture: Any) -> Iterator[Any]:
        """What the encoder gives; where it refuses, `_mux` says so of the file."""
        yield from self._stream.encode(picture)

    def _mux(self, packets: Iterable[Any]) -> None:
        with unwritable(self._path, ValueError, av.FFmpegError):
            for packet in packets:
                packet.duration = packet.duration or 1
                self._container.mux(packet)

    def _close(self) -> None:
        if self._open:
            self._open = False
            try:
                if self._count:
                    self._mux(self._encoded(None))
                if self._count and self._track is not None:
                    self._mux(self._track.rest())
            finally:
                with unwritable(self._path, ValueError):
                    self._container.close()


def _even(size: tuple[int, int], odd: str) -> tuple[int, int]:
    if size[0] % 2 == size[1] % 2 == 0:
        return size
    if odd == "error":
        raise ParameterError(f"A video has even sides, not {size[0]}x{size[1]}; choose odd='pad' or odd='crop'.")
    add = 1 if odd == "pad" else -1
    width, height = (side + add if side % 2 else side for side in size)
    return max(width, 2), max(height, 2)


def _fitted(image: Any, size: tuple[int, int]) -> Any:
    """The picture with its last row and column repeated, or dropped."""
    pad = [(0, max(0, size[1] - image.shape[0])), (0, max(0, size[0] - image.shape[1])), (0, 0)]
    return np.ascontiguousarray(np.pad(image, pad, mode="edge")[: size[1], : size[0]])


def _faststart(source: Path, target: Path, manifest: str) -> None:
    """Copy the packets into a file whose index comes first."""
    with (
        av.open(str(source)) as old,
        av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as new,
    ):
        new.metadata["comment"] = manifest
        copies = {stream: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream]
                new.mux(packet)


def _read(path: Path, start: Fraction) -> tuple[Iterator[Frame], str]:
    try:
        with av.open(str(path)) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
            if not container.streams.video:
                raise FileError(f"{path.name!r} holds no video.")
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise _unreadable(path, error) from error
    return _frames(path, start), tags.get("comment", "")


def _unreadable(path: Path, error: Exception) -> FileError:
    return FileError(f"{path.name!r} cannot be read as a video: {getattr(error, 'strerror', None) or error}.")


def _frames(path: Path, start: Fraction) -> Iterator[Frame]:
    try:
        yield from _decoded(path, start)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise _unreadable(path, error) from error


def _decoded(path: Path, start: Fraction) -> Iterator[Frame]:
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        base, step = stream.time_base, 1 / Fraction(stream.average_rate or 25)
        if start > 0:
            container.seek(int(start / base), stream=stream, backward=True)
        shown = 0
        for picture in container.decode(stream):
            pts = Fraction(picture.pts) * base
            if pts + step > start + base:  # times in the file are rounded to its base
                yield Frame(shown, pts, step, picture.to_ndarray(format="rgb24"))
                shown += 1
