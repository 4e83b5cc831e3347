"""Animated WebP, written as frames come, to the container's specification (Google, "WebP Container Specification").

Every frame is a key frame, so that nothing is held in memory; the manifest is an XMP packet.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import ClassVar

from attrs import frozen
from PIL import Image

from sdkit import Frame, Loop, ParameterError, Timeline
from sdkit_frames.partial import FileWriter, Ticks, check_step, checked
from sdkit_frames.reading import animation

__all__ = ["Webp"]

ANIMATED, XMP = 0x02, 0x04
MOST = 16384  # the largest side of a WebP


@frozen
class Webp:
    """Animated WebP.

    Attributes:
        quality: Of lossy compression, 0 to 100; of lossless, how hard it tries.
        lossless: Whether pixels come back exactly.
        forever: Whether a clip that is no loop is repeated too.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".webp",)
    quality: int = 85
    lossless: bool = False
    forever: bool = True

    def __attrs_post_init__(self) -> None:
        checked(self.quality, 0, 100, "The quality of a WebP", whole=True)

    def check(self, timeline: Timeline, /) -> None:
        """Refuse rates that a WebP cannot have."""
        check_step(timeline, Fraction(0xFFFFFF, 1000), "A WebP")

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> WebpWriter:
        """Begin a file."""
        self.check(timeline)
        if max(size) > MOST:
            raise ParameterError(f"A WebP has sides of at most {MOST} pixels, not {size[0]}x{size[1]}.")
        return WebpWriter(self, path, timeline, size, manifest)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of a WebP, and the manifest inside."""
        return animation(path, start)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\x00" * (len(data) % 2)


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _packet(manifest: str) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:sdkit="urn:sdkit" sdkit:manifest="{escape(manifest)}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


class WebpWriter(FileWriter):
    """A WebP being written."""

    def __init__(self, kind: Webp, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str) -> None:
        repeats = 0 if kind.forever or timeline.loop is not Loop.NONE else 1
        extended = bytes([ANIMATED | XMP, 0, 0, 0]) + _three(size[0] - 1) + _three(size[1] - 1)
        head = b"RIFF\x00\x00\x00\x00WEBP" + _chunk(b"VP8X", extended)
        super().__init__(path, head + _chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, repeats)))
        self._kind, self._size, self._manifest = kind, size, manifest
        self._ticks = Ticks(timeline.fps, 1000)

    def _add(self, frame: Frame, /) -> None:
        still = io.BytesIO()
        Image.fromarray(frame.image).save(still, "WEBP", quality=self._kind.quality, lossless=self._kind.lossless)
        place = _three(0) * 2 + _three(self._size[0] - 1) + _three(self._size[1] - 1)
        do_not_blend = 0x02
        data = place + _three(next(self._ticks)) + bytes([do_not_blend]) + _bitstream(still.getvalue())
        self._file.write(_chunk(b"ANMF", data))
        self._sizes()  # at every frame, so that what a crash leaves plays

    def _close(self) -> None:
        self._file.write(_chunk(b"XMP ", _packet(self._manifest)))
        self._sizes()

    def _sizes(self) -> None:
        end = self._file.tell()
        self._file.seek(4)
        self._file.write(struct.pack("<I", end - 8))
        self._file.seek(end)


def _bitstream(still: bytes) -> bytes:
    """The image chunk of a still WebP, without its container."""
    position = 12
    while position < len(still):
        name, length = still[position : position + 4], struct.unpack_from("<I", still, position + 4)[0]
        end = position + 8 + length + length % 2
        if name in (b"VP8 ", b"VP8L"):
            return still[position:end]
        position = end
    raise AssertionError("Pillow wrote a WebP without an image")
