"""A PNG per frame, ``NAME-0000000.png``, and ``NAME.json`` with the manifest, the rate and the count beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
from attrs import frozen
from PIL import Image

from sdkit import FileError, Frame, Timeline
from sdkit_frames.partial import checked, unwritable

__all__ = ["Pngs"]


def _name(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}-{index:07d}.png")


@frozen
class Pngs:
    """A sequence of PNG files.

    Attributes:
        compression: How hard zlib tries, 0 to 9.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".png",)
    compression: int = 6

    def __attrs_post_init__(self) -> None:
        checked(self.compression, 0, 9, "The compression of a PNG")

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> PngsWriter:
        """Begin a sequence; the size may be any."""
        return PngsWriter(self, path, timeline, manifest)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of a sequence, named by ``NAME.png`` or ``NAME.json``, and its manifest."""
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            timeline, manifest = Timeline(facts["frames"], facts["fps"], facts["loop"]), str(facts["manifest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileError(f"{path.with_suffix('.json').name!r} is no list of a sequence of PNGs: {error}.") from error
        return _frames(path, timeline, start), manifest


def _frames(path: Path, timeline: Timeline, start: Fraction) -> Iterator[Frame]:
    first = min(int(start * timeline.fps), timeline.frames - 1)
    for shown, index in enumerate(range(first, timeline.frames)):
        try:
            with Image.open(_name(path, index)) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise FileError(f"{_name(path, index).name!r} cannot be read: {error}.") from error
        yield Frame(shown, timeline.pts(index), timeline.step, pixels)


class PngsWriter:
    """A sequence being written; every file of it is whole, and the list comes last."""

    def __init__(self, kind: Pngs, path: Path, timeline: Timeline, manifest: str) -> None:
        self._kind, self._path, self._timeline, self._manifest = kind, path, timeline, manifest
        self._count = 0

    def write(self, frame: Frame, /) -> None:
        """Add the next frame."""
        path = _name(self._path, self._count)
        part = path.with_name(f".{path.name}.part")
        try:
            with unwritable(path):
                Image.fromarray(frame.image).save(part, "PNG", compress_level=self._kind.compression)
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self._count += 1

    def finish(self) -> Path:
        """Write the list of the sequence; its name is what stands for the clip."""
        path = self._path.with_suffix(".json")
        facts = {
            "frames": self._count,
            "fps": str(self._timeline.fps),
            "loop": self._timeline.loop.value,
            "manifest": self._manifest,
        }
        part = path.with_name(f".{path.name}.part")
        with unwritable(path):
            part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
            os.replace(part, path)
        return path

    def abort(self) -> None:
        """The files that are there stay, each whole; without a list."""
