"""Files that are not finished: written under another name beside the final one, which a finished file takes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from sdkit import FileError, Frame, ParameterError, Timeline

__all__ = ["FileWriter", "Ticks", "check_step", "checked", "partial_name", "take_name", "unwritable"]


def partial_name(path: Path) -> Path:
    """``clip.partial.mp4`` for ``clip.mp4``: it has the ending that players know."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


@contextmanager
def unwritable(path: Path, *more: type[Exception]) -> Iterator[None]:
    """A scope in which what the system refuses, or ``more``, is a `FileError` that names the final file."""
    kinds: tuple[type[Exception], ...] = (OSError, *more)
    try:
        yield
    except FileError:  # says already which file and why
        raise
    except kinds as error:
        raise FileError(f"{path.name!r} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def take_name(part: Path, path: Path) -> Path:
    """Give a complete file its final name."""
    with unwritable(path):
        os.replace(part, path)
    return path


def _opened(path: Path) -> BinaryIO:
    with unwritable(path):
        return open(partial_name(path), "w+b")


class FileWriter(ABC):
    """A file to which frames are added one by one, under its partial name until it is whole.

    Args:
        path: The final name.
        head: What stands before the first frame.

    Raises:
        FileError: it cannot be made, or written to; from every method.
    """

    def __init__(self, path: Path, head: bytes) -> None:
        self._path, self._count, self._file = path, 0, _opened(path)
        try:
            with unwritable(path):
                self._file.write(head)
                self._file.flush()
        except BaseException:
            with suppress(OSError):  # of what it still has to write
                self._file.close()
            partial_name(path).unlink(missing_ok=True)
            raise

    @abstractmethod
    def _add(self, frame: Frame, /) -> None:
        """Write the next frame; what stands in the file then plays."""

    @abstractmethod
    def _close(self) -> None:
        """Write what stands at the end of a file."""

    def write(self, frame: Frame, /) -> None:
        """Add the next frame."""
        with unwritable(self._path):
            self._add(frame)
            self._file.flush()
        self._count += 1

    def finish(self) -> Path:
        """Complete the file and give it its name."""
        self._end()
        return take_name(partial_name(self._path), self._path)

    def abort(self) -> None:
        """Leave what there is under the partial name, if there is a frame."""
        self._end()
        if not self._count:
            partial_name(self._path).unlink(missing_ok=True)

    def _end(self) -> None:
        if not self._file.closed:
            with unwritable(self._path), self._file:
                self._close()


def checked(value: float, low: float, high: float, what: str, *, whole: bool = False) -> None:
    """Raises `ParameterError` unless ``low <= value <= high``, and of the type int where it is to be ``whole``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ParameterError(f"{what} lies between {low:g} and {high:g}, not at {value!r}.")
    if whole and not isinstance(value, int):
        raise ParameterError(f"{what} is a whole number, not {value!r}.")


def check_step(timeline: Timeline, most: Fraction, what: str) -> None:
    """Raises `ParameterError` where a frame would be shown for longer than a format can say, in seconds."""
    if timeline.step > most:
        raise ParameterError(
            f"{what} shows a frame for at most {float(most):g} s, not for {float(timeline.step):g} s as at "
            f"{float(timeline.fps):g} frames per second."
        )


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
