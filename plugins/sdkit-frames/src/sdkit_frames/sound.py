"""Sound under a clip: read from any file FFmpeg opens, and encoded beside the pictures, piece by piece.

The first sound of the file is placed where the file has it, so that the sound of a video stays with its pictures. What
lies behind the end of the clip is cut to the sample; where the sound ends before the clip, silence follows. Samples are
float32 (channels, samples); times are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from sdkit import FileError, ParameterError
from sdkit_frames.partial import checked

__all__ = ["Sound", "Track", "pieces"]

Samples: TypeAlias = NDArray[np.float32]
PIECE = 4096
LEAD = 4096
"""Samples encoded ahead of the pictures: encoders hold some back, and pictures wait in the file for their sound."""
RATES = {"aac": (48000, 44100, 32000, 24000, 22050, 16000), "libopus": (48000,)}
BITS = {"aac": 96_000, "libopus": 64_000}  # per second and channel


@frozen
class Sound:
    """A file of sound, and from where it is heard.

    Attributes:
        path: Any file that holds sound: music, or a video.
        start: Which second of it is heard first; below 0, silence comes before it.
        repeat: Whether it begins again where it ends, instead of silence.

    Raises:
        FileError: the file cannot be read, or holds no sound.
        ParameterError: ``start`` lies behind its end.
    """

    path: str
    start: float = 0.0
    repeat: bool = False

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ParameterError(f"The sound is the name of a file, not {self.path!r}.")
        checked(self.start, -86_400, 86_400, "The second of the sound that is heard first")
        with _opened(self.path) as (container, _):
            long = container.duration / av.time_base if container.duration else None
        if long is not None and self.start >= long and not self.repeat:
            raise ParameterError(
                f"{_name(self.path)!r} lasts {long:.2f} s, so that it cannot begin at {self.start:g} s; or repeat it."
            )

    def rate(self, codec: str) -> int:
        """Samples per second for a codec: the file's own where the codec has it, else 48,000."""
        with _opened(self.path) as (_, stream):
            own: int = stream.codec_context.sample_rate
        return own if own in RATES[codec] else 48000

    def channels(self) -> int:
        """1 for one channel, 2 for more."""
        with _opened(self.path) as (_, stream):
            return min(2, int(stream.codec_context.channels))


def _name(path: str) -> str:
    return Path(path).name


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """(file, its first stream of sound).

    Raises:
        FileError: there is none, or it cannot be read.
    """
    try:
        with av.open(path) as container:
            if not container.streams.audio:
                raise FileError(f"{_name(path)!r} holds no sound.")
            yield container, container.streams.audio[0]
    except (OSError, ValueError) as error:
        if isinstance(error, FileError | ParameterError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{_name(path)!r} cannot be read as sound: {reason}.") from error


def _decoded(path: str, rate: int, channels: int) -> Iterator[Samples]:
    """The sound once through, from the file's time 0."""
    resampler = av.AudioResampler("fltp", "mono" if channels == 1 else "stereo", rate)
    with _opened(path) as (container, stream):
        begin, first = (container.start_time or 0) / av.time_base, True
        for frame in container.decode(stream):
            if first and frame.pts is not None:
                late = round((float(frame.pts * frame.time_base) - begin) * rate)
                if late > 0:
                    yield np.zeros((channels, late), np.float32)
            first, frame.pts = False, None  # samples follow each other, whatever a file says of their times
            yield from (np.asarray(each.to_ndarray(), np.float32) for each in resampler.resample(frame))
        yield from (np.asarray(each.to_ndarray(), np.float32) for each in resampler.resample(None))


def _all(sound: Sound, rate: int, channels: int) -> Iterator[Samples]:
    if sound.start < 0:
        yield np.zeros((channels, round(-sound.start * rate)), np.float32)
    drop = max(0, round(sound.start * rate))
    while True:
        heard = 0
        for samples in _decoded(sound.path, rate, channels):
            heard += samples.shape[1]
            if drop >= samples.shape[1]:
                drop -= samples.shape[1]
                continue
            yield samples[:, drop:]
            drop = 0
        if not heard:
            raise FileError(f"{_name(sound.path)!r} holds no sound: its stream is empty.")
        if not sound.repeat:
            return


def pieces(sound: Sound, rate: int, channels: int, total: int) -> Iterator[Samples]:
    """Exactly ``total`` samples in pieces of `PIECE`, silence where the sound has ended.

    Args:
        sound: What is heard.
        rate: Samples per second.
        channels: 1 or 2.
        total: Samples altogether.
    """
    source, kept, held, given = _all(sound, rate, channels), list[Samples](), 0, 0
    while given < total:
        want = min(PIECE, total - given)
        while held < want:
            more = next(source, None)
            if more is None:
                more = np.zeros((channels, want - held), np.float32)
            kept.append(more)
            held += more.shape[1]
        whole = np.concatenate(kept, axis=1)
        yield np.ascontiguousarray(whole[:, :want])
        kept, held, given = [whole[:, want:]], held - want, given + want


class Track:
    """The sound of one video being written."""

    def __init__(self, container: Any, codec: str, sound: Sound, duration: Fraction) -> None:
        self._rate, self._channels = sound.rate(codec), sound.channels()
        self._layout = "mono" if self._channels == 1 else "stereo"
        self._stream = container.add_stream(codec, rate=self._rate, layout=self._layout)
        self._stream.bit_rate = BITS[codec] * self._channels
        self._total, self._given = round(duration * self._rate), 0
        self._pieces = pieces(sound, self._rate, self._channels, self._total)

    def until(self, time: Fraction) -> Iterator[Any]:
        """Packets of the sound up to a time, and a little more."""
        while self._given < min(self._total, math.ceil(time * self._rate) + LEAD):
            samples = next(self._pieces)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._given, Fraction(1, self._rate)
            self._given += samples.shape[1]
            yield from self._stream.encode(frame)

    def rest(self) -> Iterator[Any]:
        """What the encoder still holds."""
        self._pieces.close()  # type: ignore[attr-defined]  # a generator, whatever it is declared as
        yield from self._stream.encode(None)
