"""Textual inversions: words of a prompt that stand for learned vectors.

Source: Gal et al. 2022, https://arxiv.org/abs/2208.01618.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdkit import FileError, InvalidRequest
from sdkit_diffusers.tensors import Weights, some

__all__ = ["Inversions", "found_in", "overlaid"]

MOST = 1000
"""Vectors of one inversion; a prompt's chunk has room for 75."""


def found_in(place: Path) -> dict[str, Path]:
    """The inversions in a folder, or the one in a file, by name: the file's name without its ending.

    Raises:
        FileError: there is none.
    """
    if place.is_file():
        if place.suffix.lower() != ".safetensors":
            raise FileError(
                f"{place.name!r} is no .safetensors file; convert a pickle (.pt, .bin) to safetensors in a sandbox."
            )
        return {place.stem: place}
    found = {path.stem: path for path in sorted(place.glob("*.safetensors"))}
    if not found:
        raise FileError(f"There are no textual inversions (.safetensors) in {place.name!r}.")
    return found


@lru_cache(maxsize=256)
def _read(path: Path, modified: int) -> dict[str, Tensor]:
    names = Weights.of([path]).stored
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).float() for name in names}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path.name!r} cannot be read: {error}") from error


@frozen(eq=False)
class Inversions:
    """The inversions that one text encoder knows.

    A vector is written as a token's number beyond the vocabulary: ``first + 1000 * (number of the name) + row``.

    Attributes:
        paths: Files by name.
        key: The tensor of this text encoder in files for several: ``"clip_l"`` or ``"clip_g"``.
        first: Size of the vocabulary.
        width: Of a vector.
    """

    paths: Mapping[str, Path] = field(repr=False)
    key: str
    first: int
    width: int

    def split(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is a name; the longest name first, whole words only."""
        names = "|".join(re.escape(name) for name in sorted(self.paths, key=len, reverse=True))
        cut = re.split(rf"(?<![\w-])({names})(?![\w-])", text)
        return [(piece, place % 2 == 1) for place, piece in enumerate(cut) if piece]

    def vectors(self, name: str) -> Tensor:
        """The vectors (n, width) of a name.

        Raises:
            FileError: the file holds none for a text encoder of this width.
        """
        path = self.paths[name]
        tensors = _read(path, path.stat().st_mtime_ns)
        key = next((key for key in (self.key, "emb_params", *tensors) if key in tensors), "")
        if self.key not in tensors and len(tensors) > 1 and "emb_params" not in tensors:
            raise FileError(f"{path.name!r} has the tensors {some(tensors)}, and none is {self.key!r} or 'emb_params'.")
        rows = tensors.get(key, torch.empty(0, 0))
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.width or not 0 < rows.shape[0] <= MOST:
            raise FileError(
                f"The textual inversion {path.name!r} has vectors of shape {tuple(rows.shape)}; this model's text "
                f"encoder reads (n, {self.width}): it was made for another family."
            )
        return rows

    def tokens(self, name: str) -> list[int]:
        """The numbers that stand for a name's vectors.

        Raises:
            InvalidRequest: there is no inversion of that name.
        """
        if name not in self.paths:
            raise InvalidRequest(f"There is no textual inversion {name!r}; given are {some(self.paths)}.")
        start = self.first + MOST * list(self.paths).index(name)
        return [start + row for row in range(len(self.vectors(name)))]

    def meant(self, number: int) -> Tensor:
        """The vector (width,) that a number beyond the vocabulary stands for."""
        name, row = divmod(number - self.first, MOST)
        return self.vectors(list(self.paths)[name])[row]


class _Overlay(nn.Module):
    """An embedding of tokens with other vectors at some places; made for one call and dropped."""

    def __init__(self, inner: nn.Module, places: Tensor, vectors: Tensor) -> None:
        super().__init__()
        self.__dict__.update(inner=inner, places=places, vectors=vectors)  # no parts of its own: nothing moves them

    def forward(self, rows: Tensor) -> Tensor:
        """(b, tokens) -> (b, tokens, width)."""
        parts: Any = self.__dict__
        made: Tensor = parts["inner"](rows).clone()
        made[parts["places"]] = parts["vectors"].to(made)
        return made


def overlaid(network: nn.Module, rows: Tensor, inversions: Inversions) -> tuple[nn.Module, Tensor]:
    """A text encoder that reads vectors where numbers lie beyond the vocabulary, and the rows it takes.

    It shares all weights with ``network``, which stays as it is, so other threads may use that meanwhile.
    """
    places = rows >= inversions.first
    vectors = torch.stack([inversions.meant(number) for number in rows[places].tolist()])
    path = next(name for name, _ in network.named_modules() if name.rpartition(".")[2] == "token_embedding")
    inner = network.get_submodule(path)
    # any word does where its vector is replaced, only not the mark of the end, where pooled vectors are taken
    return _replaced(network, path, _Overlay(inner, places, vectors)), rows.masked_fill(places, 0)


def _replaced(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    made = copy.copy(network)
    head, _, rest = path.partition(".")
    parts = dict(network.named_children())
    made.__dict__["_modules"] = {**parts, head: _replaced(parts[head], rest, module) if rest else module}
    return made
