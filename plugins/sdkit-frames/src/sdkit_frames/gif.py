"""GIF: a palette per frame, and delays in hundredths of a second that add up to the clip's duration.

The file is written as frames come (Pillow would hold them all), to the layout of the GIF89a specification (CompuServe
1990). The manifest is a comment extension.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from attrs import frozen
from PIL import GifImagePlugin, Image

from sdkit import Frame, Loop, ParameterError, Timeline
from sdkit_frames.partial import FileWriter, Ticks, check_step, checked
from sdkit_frames.reading import animation

__all__ = ["Gif"]

FASTEST = 50
"""Delays below 2/100 s are slowed to 10/100 s by players, so a faster GIF would be five times too slow."""


@frozen
class Gif:
    """Animated GIF.

    Attributes:
        colors: Colours of a frame's palette, 2 to 256.
        dither: Whether colours are mixed of dots (Floyd and Steinberg).
        forever: Whether a clip that is no loop is repeated too.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".gif",)
    colors: int = 256
    dither: bool = True
    forever: bool = True

    def __attrs_post_init__(self) -> None:
        checked(self.colors, 2, 256, "The number of colours of a GIF's palette", whole=True)

    def check(self, timeline: Timeline, /) -> None:
        """Refuse rates that a GIF cannot have."""
        check_step(timeline, Fraction(0xFFFF, 100), "A GIF")
        if timeline.fps > FASTEST:
            raise ParameterError(
                f"A GIF shows at most {FASTEST} frames per second, not {timeline.fps}: put '| retime(fps={FASTEST})' "
                "before it."
            )

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> GifWriter:
        """Begin a file."""
        self.check(timeline)
        if max(size) > 0xFFFF:
            raise ParameterError(f"A GIF has sides of at most {0xFFFF} pixels, not {size[0]}x{size[1]}.")
        return GifWriter(self, path, timeline, size, manifest)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of a GIF, and the comment inside."""
        return animation(path, start)


class GifWriter(FileWriter):
    """A GIF being written."""

    def __init__(self, kind: Gif, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str) -> None:
        head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x70, 0, 0)
        if kind.forever or timeline.loop is not Loop.NONE:
            head += b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        super().__init__(path, head + b"\x21\xfe" + _blocks(manifest.encode()))
        self._kind, self._ticks = kind, Ticks(timeline.fps, 100)

    def _add(self, frame: Frame, /) -> None:
        how = Image.Dither.FLOYDSTEINBERG if self._kind.dither else Image.Dither.NONE
        picture = Image.fromarray(frame.image)
        palette = picture.quantize(self._kind.colors, Image.Quantize.MEDIANCUT)
        picture = picture.quantize(self._kind.colors, palette=palette, dither=how)
        delay = next(self._ticks)
        for part in GifImagePlugin.getdata(picture, duration=delay * 10, include_color_table=True):
            self._file.write(part)

    def _close(self) -> None:
        self._file.write(b";")


def _blocks(data: bytes) -> bytes:
    """Data in blocks of at most 255 bytes, each with its length before it, and an empty one at the end."""
    parts = [data[k : k + 255] for k in range(0, len(data), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"
