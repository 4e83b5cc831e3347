"""A PNG per frame, ``NAME-0000000.png``, and ``NAME.json`` with the manifest, the rate and the count beside them.

While it is written, all of them are called ``NAME.partial...``, so that a sequence of the same name stays until then.
"""

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

from sdkit import FileError, Frame, Loop, Timeline
from sdkit_frames.partial import checked, partial_name, unwritable

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
        checked(self.compression, 0, 9, "The compression of a PNG", whole=True)

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> PngsWriter:
        """Begin a sequence; the size may be any."""
        return PngsWriter(self, path, timeline, manifest)

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of a sequence, named by ``NAME.png`` or ``NAME.json``, and its manifest."""
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            timeline, manifest = Timeline(facts["frames"], facts["fps"], facts["loop"]), str(facts["manifest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FileError(
                f"{path.with_suffix('.json').name!r}, which should list a sequence of PNGs, cannot be read: {reason}."
            ) from error
        return _frames(path, timeline, start), manifest


def _frames(path: Path, timeline: Timeline, start: Fraction) -> Iterator[Frame]:
    first = min(int(start * timeline.fps), timeline.frames - 1)
    for shown, index in enumerate(range(first, timeline.frames)):
        try:
            with Image.open(_name(path, index)) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FileError(f"{_name(path, index).name!r} cannot be read: {reason}.") from error
        yield Frame(shown, timeline.pts(index), timeline.step, pixels)


class PngsWriter:
    """A sequence being written, as one named ``NAME.partial``, whose files take their names at the end."""

    def __init__(self, kind: Pngs, path: Path, timeline: Timeline, manifest: str) -> None:
        self._kind, self._path, self._timeline, self._manifest = kind, path, timeline, manifest
        self._part, self._count = partial_name(path), 0

    def write(self, frame: Frame, /) -> None:
        """Add the next frame; the list then names it, so that what a crash leaves can be read."""
        with unwritable(self._path):
            whole = _name(self._part, self._count).with_suffix(".part")
            try:
                Image.fromarray(frame.image).save(whole, "PNG", compress_level=self._kind.compression)
                os.replace(whole, _name(self._part, self._count))
            finally:
                whole.unlink(missing_ok=True)
            self._list(self._part.with_suffix(".json"), self._count + 1)
        self._count += 1

    def finish(self) -> Path:
        """Give the files their names, then the list, which stands for the clip; what an older one had more of goes."""
        path = self._path.with_suffix(".json")
        with unwritable(self._path):
            before = _count(path)
            for index in range(self._count):
                os.replace(_name(self._part, index), _name(self._path, index))
            self._list(path, self._count)
            for index in range(self._count, before):
                _name(self._path, index).unlink(missing_ok=True)
            self._part.with_suffix(".json").unlink(missing_ok=True)
        return path

    def abort(self) -> None:
        """What is there stays under the partial name, each file whole."""

    def _list(self, path: Path, count: int) -> None:
        facts = {
            "frames": count,
            "fps": str(self._timeline.fps),
            "loop": self._timeline.loop.value if count == self._timeline.frames else Loop.NONE.value,
            "manifest": self._manifest,
        }
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(part, path)


def _count(path: Path) -> int:
    """How many frames the list of an older sequence names; 0 if there is none."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["frames"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
