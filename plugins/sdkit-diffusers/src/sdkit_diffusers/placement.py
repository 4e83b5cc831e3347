"""Where the parts of a model are while they work, as an object that is asked each time, not as hooks on modules."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sdkit import InvalidRequest

__all__ = ["Placement"]


class Placement:
    """Puts parts on the device when they work, and gives all memory back at the end.

    With ``stages`` only the part that works is on the device and the others wait on the CPU: text encoders, then the
    denoiser through all its steps, then the autoencoder. A part moves when another one is asked for, so the denoiser
    does not move between steps. Two runs in two threads then wait for each other where they need different parts.

    Args:
        device: Where parts work, as torch writes it.
        parts: All networks of the model.
        stages: Whether parts wait on the CPU.
    """

    def __init__(self, device: str, parts: Sequence[nn.Module], *, stages: bool = False) -> None:
        self.device, self.stages = device, stages
        self._parts: tuple[nn.Module, ...] = tuple(parts)
        self._here: frozenset[nn.Module] = frozenset()
        self._users, self._closed = 0, False
        self._free = threading.Condition()

    def add(self, part: nn.Module) -> None:
        """Take charge of one more network, for example a control network or a copy in another precision."""
        with self._free:
            self._parts = (*self._parts, part)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """All networks it has charge of."""
        return self._parts

    @contextmanager
    def use(self, *parts: nn.Module) -> Iterator[None]:
        """A scope in which ``parts`` are on the device.

        Raises:
            InvalidRequest: the model was closed.
        """
        with self._free:
            if self._closed:
                raise InvalidRequest("This model was closed, and its memory given back; load it again.")
            if self.stages:
                self._free.wait_for(lambda: self._users == 0 or self._here.issuperset(parts))
                self._fetch(frozenset(parts))
            self._users += 1
        try:
            yield
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    def _fetch(self, wanted: frozenset[nn.Module]) -> None:
        if self._here.issuperset(wanted):
            return
        for part in self._here - wanted:
            part.to("cpu")
        for part in wanted - self._here:
            part.to(self.device)
        self._here = wanted

    def close(self) -> None:
        """Give the memory back. A part that is at work finishes first."""
        with self._free:
            self._free.wait_for(lambda: self._users == 0)
            self._closed, parts = True, self._parts
            self._parts, self._here = (), frozenset()
        for part in parts:
            part.to("meta")
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()
