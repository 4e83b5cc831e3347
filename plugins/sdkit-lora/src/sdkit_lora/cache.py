"""Prompts encoded once: a wrapper of an encoder that remembers what it gave.

The key of a memory is the prompt, the adapters on the text encoders and their strengths, and the way that is walked if
the encoder depends on it. So a changed strength is a new entry, and an old one is found again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from sdkit import Grid, concatenate, take
from sdkit_lora.errors import AdapterError

__all__ = ["CachedEncoder", "cached"]


@frozen(eq=False)
class CachedEncoder:
    """An encoder that remembers. Made by `cached`.

    Attributes:
        inner: The encoder inside.
        most: Prompts kept; the one longest unused goes first.
        adapters: What is on the text encoders: hash and strength of each file.
        way: Levels to be walked, where the encoder depends on them.
    """

    inner: Any
    most: int = 256
    adapters: tuple[Hashable, ...] = ()
    way: Grid = ()
    _kept: OrderedDict[Any, Any] = field(factory=OrderedDict, repr=False, alias="kept")
    _lock: threading.Lock = field(factory=threading.Lock, repr=False, alias="lock")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def along(self, grid: Any) -> CachedEncoder:
        """The encoder for a way to be walked, where the one inside depends on it."""
        if not hasattr(self.inner, "along"):
            return self
        return attrs.evolve(self, inner=self.inner.along(grid), way=tuple(grid))

    def __call__(self, prompts: Sequence[Any], /) -> Any:
        """Prompts to conditionings; those that are remembered are not encoded again."""
        if getattr(self.inner, "per_image", False):  # the same prompt means another thing for each image
            return self.inner(prompts)
        with self._lock:
            found = {prompt: self._kept.get((self.adapters, self.way, prompt)) for prompt in prompts}
        missing = [prompt for prompt, row in found.items() if row is None]
        if missing:
            encoded = self.inner(missing)
            found |= {prompt: take(encoded, [row]) for row, prompt in enumerate(missing)}
        with self._lock:
            for prompt, row in found.items():
                key = (self.adapters, self.way, prompt)
                self._kept[key] = row
                self._kept.move_to_end(key)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return concatenate(*(found[prompt] for prompt in prompts))


def cached(encoder: Any, most: int = 256) -> CachedEncoder:
    """An encoder that remembers the prompts it was asked.

    Args:
        encoder: One whose networks change only through adapters of this package: it cannot see other changes.
        most: Prompts kept, at least 1.

    Raises:
        AdapterError: ``most`` is no such number.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise AdapterError(f"A cache keeps at least one prompt, not {most!r}.")
    return CachedEncoder(encoder, most)
