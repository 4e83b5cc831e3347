"""Reading animations back with Pillow: GIF, WebP and APNG."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from html import unescape
from pathlib import Path

import numpy as np
from PIL import Image

from sdkit import FileError, Frame

__all__ = ["animation", "index_at"]

XMP = re.compile(r'sdkit:manifest="([^"]*)"')


def animation(path: Path, start: Fraction) -> tuple[Iterator[Frame], str]:
    """The frames from the one shown at ``start``, one at a time, and the manifest inside, or "".

    Raises:
        FileError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            manifest = _manifest(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return _frames(path, start), manifest


def _frames(path: Path, start: Fraction) -> Iterator[Frame]:
    try:
        with Image.open(path) as image:
            pts, shown = Fraction(0), 0
            for k in range(getattr(image, "n_frames", 1)):
                image.seek(k)
                image.load()
                duration = Fraction(str(image.info.get("duration", 0))).limit_denominator(100_000) / 1000
                if pts + duration > start:
                    yield Frame(shown, pts, duration, np.array(image.convert("RGB")))
                    shown += 1
                pts += duration
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _manifest(image: Image.Image) -> str:
    if image.format == "GIF":
        comment = image.info.get("comment", b"")
        return comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    if image.format == "PNG":
        return str((getattr(image, "text", None) or {}).get("sdkit", ""))
    found = XMP.search(bytes(image.info.get("xmp", b"")).decode(errors="replace"))
    return unescape(found[1]) if found else ""


def _unreadable(path: Path, error: Exception) -> FileError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FileError(f"{path.name!r} cannot be read as an animation: {reason}.")


def index_at(time: Fraction, fps: Fraction, count: int) -> int:
    """The number of the frame shown at a time, the last one after the end."""
    return min(int(time * fps), count - 1)
