"""Captioned pictures from a folder.

A caption stands in ``NAME.txt`` beside ``NAME.png``, or in a file for all: JSON ``{"fox.png": "a fox", ...}`` (a list
of captions is allowed, one is drawn each time), or JSON lines ``{"file_name": "fox.png", "text": "a fox"}``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from sdkit import FileError, ParameterError, Picture

__all__ = ["Example", "fingerprint", "load_images", "read_folder"]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@frozen
class Example:
    """A picture and what it shows.

    Attributes:
        file: The picture.
        captions: One or more texts; one is drawn each time.
    """

    file: Path
    captions: tuple[str, ...] = field(converter=_texts)


def read_folder(
    folder: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None, *, default: str | None = None
) -> tuple[Example, ...]:
    """The captioned pictures of a folder, in the order of their names.

    Args:
        folder: Where the pictures are.
        captions: File with all captions; pictures it does not name are left out.
        default: Caption of pictures without a text file, where there is no file with all of them.

    Raises:
        FileError: the folder or a file cannot be read, holds no picture, or a picture has no caption.
    """
    place = Path(folder)
    try:
        files = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURES)
    except OSError as error:
        raise FileError(f"The folder {place.name!r} cannot be read: {error.strerror}.") from error
    if not files:
        raise FileError(f"The folder {place.name!r} holds no pictures ({', '.join(sorted(PICTURES))}).")
    if captions is None:
        return tuple(Example(path, (_beside(path, default),)) for path in files)
    named = _all_captions(Path(captions))
    missing = sorted(set(named) - {path.name for path in files})
    if missing:
        raise FileError(
            f"{Path(captions).name!r} names pictures that {place.name!r} has not: {', '.join(missing[:5])}."
        )
    return tuple(Example(path, named[path.name]) for path in files if path.name in named)


def _beside(path: Path, default: str | None) -> str:
    text = path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        if default is not None:
            return default
        raise FileError(f"{path.name!r} has no caption; write one into {text.name!r} beside it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"The caption {text.name!r} cannot be read: {error}.") from error


def _all_captions(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            content: Any = {row["file_name"]: row["text"] for row in rows}
        else:
            content = json.loads(text)
    except OSError as error:
        raise FileError(f"The captions {path.name!r} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path.name!r} is no file of captions: {type(error).__name__} {error}.") from error
    if not isinstance(content, dict) or not content:
        raise FileError(f"{path.name!r} is no file of captions; it holds an object from names of pictures to texts.")
    found = {}
    for name, value in content.items():
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
            raise FileError(f"{path.name!r} gives {name!r} the caption {value!r}; that is a text, or a list of texts.")
        found[name] = tuple(texts)
    return found


def load_images(examples: Iterable[Example], size: tuple[int, int], *, background: str | None = None) -> Tensor:
    """The pictures as (n, 3, height, width) float32 in [0, 1]: scaled to cover ``size``, and cut in the middle.

    Args:
        examples: Which.
        size: (width, height) in pixels.
        background: Colour behind transparent pixels, as Pillow names it; None refuses them.

    Raises:
        FileError, InvalidRequest: a picture cannot be read, or has transparent pixels and no background is given.
        ParameterError: there is no such colour.
    """
    from PIL import Image, ImageColor, ImageOps

    if background is not None:
        try:
            ImageColor.getrgb(background)
        except ValueError as error:
            raise ParameterError(
                f"There is no colour {background!r}; write a name such as white, or #rrggbb."
            ) from error
    rows = []
    for example in examples:
        source: Any = example.file
        if background is not None:
            source = _opened(example.file)
            if "A" in source.getbands() or "transparency" in source.info:
                over = source.convert("RGBA")
                source = Image.alpha_composite(Image.new("RGBA", over.size, background), over).convert("RGB")
        picture = Picture.of(source).image().convert("RGB")
        fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        rows.append(torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255)
    return torch.stack(rows)


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            return opened.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f"{path.name!r} cannot be read as a picture: {error}.") from error


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 of names, captions and content, hexadecimal: whether a training goes on with the same data."""
    digest = hashlib.sha256()
    for example in examples:
        try:
            content = example.file.read_bytes()
        except OSError as error:
            raise FileError(f"{example.file.name!r} cannot be read: {error.strerror}.") from error
        digest.update(json.dumps([example.file.name, example.captions]).encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
