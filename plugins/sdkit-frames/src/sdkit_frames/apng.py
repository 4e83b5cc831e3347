"""Animated PNG, written as frames come, to the specification (W3C, "PNG", third edition, 2025).

Lossless; frame delays are exact fractions. The manifest is an iTXt chunk ``sdkit``.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from attrs import frozen
from PIL import Image

from sdkit import Frame, Loop, Timeline
from sdkit_frames.partial import FileWriter, check_step, checked
from sdkit_frames.reading import animation

__all__ = ["Apng"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@frozen
class Apng:
    """Animated PNG.

    Attributes:
        compression: How hard zlib tries, 0 to 9.
        forever: Whether a clip that is no loop is repeated too.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".apng",)
    compression: int = 6
    forever: bool = True

    def __attrs_post_init__(self) -> None:
        checked(self.compression, 0, 9, "The compression of a PNG", whole=True)

    def check(self, timeline: Timeline, /) -> None:
        """Refuse rates that an APNG cannot have."""
        check_step(timeline, Fraction(0xFFFF), "An APNG")

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> ApngWriter:
        """Begin a file."""
        self.check(timeline)
        return ApngWriter(self, path, timeline, size, manifest)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of an APNG, and the manifest inside."""
        return animation(path, start)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _image_data(picture: Image.Image, compression: int) -> bytes:
    """The compressed pixels of an RGB picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=compression)
    data, position, found = buffer.getvalue(), len(SIGNATURE), []
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"IDAT":
            found.append(data[position + 8 : position + 8 + length])
        position += 12 + length
    return b"".join(found)


class ApngWriter(FileWriter):
    """An APNG being written."""

    def __init__(self, kind: Apng, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str) -> None:
        head = SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
        self._place, self._plays = len(head), 0 if kind.forever or timeline.loop is not Loop.NONE else 1
        head += _chunk(b"acTL", struct.pack(">II", timeline.frames, self._plays))
        super().__init__(path, head + _chunk(b"iTXt", b"sdkit\x00\x00\x00\x00\x00" + manifest.encode()))
        self._kind, self._size, self._number = kind, size, 0
        # the nearest fraction of which both numbers have 16 bits
        short = timeline.step <= 1
        self._delay = timeline.step.limit_denominator(0xFFFF) if short else 1 / timeline.fps.limit_denominator(0xFFFF)

    def _add(self, frame: Frame, /) -> None:
        delay = (self._delay.numerator, self._delay.denominator)
        control = struct.pack(">IIIIIHHBB", self._next(), *self._size, 0, 0, *delay, 0, 0)
        pixels = _image_data(Image.fromarray(frame.image), self._kind.compression)
        self._file.write(_chunk(b"fcTL", control))
        if self._count == 0:
            self._file.write(_chunk(b"IDAT", pixels))
        else:
            self._file.write(_chunk(b"fdAT", struct.pack(">I", self._next()) + pixels))
        self._counts(self._count + 1)  # at every frame, so that what a crash leaves plays

    def _close(self) -> None:
        self._file.write(_chunk(b"IEND", b""))

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _counts(self, count: int) -> None:
        end = self._file.tell()
        self._file.seek(self._place)
        self._file.write(_chunk(b"acTL", struct.pack(">II", count, self._plays)))
        self._file.seek(end)
