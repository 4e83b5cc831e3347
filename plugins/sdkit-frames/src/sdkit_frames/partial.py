"""Files that are not finished: written under another name beside the final one, which a finished file takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from sdkit import FileError, ParameterError

__all__ = ["Ticks", "checked", "opened", "partial_name", "take_name"]


def partial_name(path: Path) -> Path:
    """``clip.partial.mp4`` for ``clip.mp4``: it has the ending that players know."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def opened(path: Path) -> BinaryIO:
    """The partial file, empty, to be written and read.

    Raises:
        FileError: it cannot be made.
    """
    try:
        return open(partial_name(path), "w+b")
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be written: {error.strerror or error}.") from error


def take_name(part: Path, path: Path) -> Path:
    """Give a complete file its final name."""
    try:
        os.replace(part, path)
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be written: {error.strerror or error}.") from error
    return path


def checked(value: float, low: float, high: float, what: str) -> None:
    """Raises `ParameterError` unless ``low <= value <= high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ParameterError(f"{what} lies between {low:g} and {high:g}, not at {value!r}.")


class Ticks:
    """How long each frame is shown in whole ticks of a format, so that no error adds up.

    Frame k ends at the tick nearest to its true end; the sum over all frames is the duration of the clip, to half a
    tick.
    """

    def __init__(self, fps: Fraction, per_second: int) -> None:
        self._ends = self._run(Fraction(per_second) / fps)

    @staticmethod
    def _run(step: Fraction) -> Iterator[int]:
        k, begun = 1, 0
        while True:
            end = round(k * step)
            yield end - begun
            k, begun = k + 1, end

    def __next__(self) -> int:
        return next(self._ends)
