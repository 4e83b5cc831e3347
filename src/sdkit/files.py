"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sdkit.errors import FileError

__all__ = ["image_names", "write_whole"]


def image_names(path: Path, count: int) -> list[Path]:
    """Where ``count`` images saved as ``path`` go: one to ``path`` itself, several to ``NAME-k`` with k from 1."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(1, count + 1)]


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Let ``write`` fill a file of a temporary name beside ``path``, then rename it; what stood there stays until then.

    Raises:
        FileError: the file cannot be written; nothing is left behind, as after any other error of ``write``.
    """
    path = Path(path)
    # not tempfile: its files are readable by their owner alone, and a picture gets the rights of any new file
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            write(file)
        os.replace(part, path)
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)  # once renamed, there is none
    return path
