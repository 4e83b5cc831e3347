"""Brownian noise: a finer grid refines the same path.

The noise of an interval is the increment of one Brownian path over it, scaled to variance 1. The path's time is
``v(L) = 1 / (1 + e^(2L))``, the share of noise in a variance-preserving latent: it falls from 1 (no signal) to 0
(clean), so every interval of levels is an interval of [0, 1]. The path itself is found by bisection: the value in the
middle of an interval, given its ends, is a Brownian bridge's, drawn from the address of that interval. No tree is kept:
the same interval gives the same increment whatever was asked before, and those of neighbouring intervals add up.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from sdkit import AddressedNoise, Grid, Level, NoiseError

__all__ = ["Brownian", "BrownianNoise"]

FINE = 2.0**-20
"""Where bisection ends: the path is a straight line inside this share of the nearer end's distance."""
CLOSE = 2.0**-14
"""Over less than this share of it, that line would show: the increment would have less than its variance."""
KEPT = 4
"""Values of the path a source remembers, since the next interval begins where this one ends."""


def _seeds(seeds: Any) -> tuple[int, ...]:
    return AddressedNoise(seeds).seeds  # checked there


def _time(level: Level) -> float:
    log_snr = level.log_snr
    if math.isinf(log_snr):
        return 0.0 if log_snr > 0 else 1.0
    return 1 / (1 + math.exp(2 * log_snr)) if log_snr < 300 else math.exp(-2 * log_snr)


@frozen
class BrownianNoise:
    """A noise source whose draws are increments of one Brownian path per image.

    Attributes:
        seeds: One per image of the batch.
        stream: Name that separates independent uses of the same seed.
    """

    seeds: tuple[int, ...] = field(converter=_seeds)
    stream: str = ""
    _recent: OrderedDict[tuple[Any, float], Tensor] = field(factory=OrderedDict, init=False, eq=False, repr=False)

    def initial(self, like: Tensor, /) -> Tensor:
        """Noise for the start of a run, as `sdkit.AddressedNoise` gives it."""
        return AddressedNoise(self.seeds, self.stream).initial(like)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        """The increment between the two levels over the root of the time between them; on the CPU in float64, moved.

        Raises:
            NoiseError: the levels are too close to each other.
        """
        low, high = sorted((_time(start), _time(stop)))
        if high - low < CLOSE * max(min(low, 1 - low), min(high, 1 - high)) or low == high:
            raise NoiseError(
                f"{start} and {stop} are too close for a Brownian path to tell them apart; take fewer steps, or the "
                "noise 'addressed'."
            )
        increment = self._value(like.shape, high) - self._value(like.shape, low)
        return (increment / math.sqrt(high - low)).to(device=like.device, dtype=like.dtype)

    def _value(self, shape: torch.Size, time: float) -> Tensor:
        key = (tuple(shape), time)
        value = self._recent.get(key)
        if value is None:
            value = self._recent[key] = self._path(torch.empty(shape, dtype=torch.float64), time)
            if len(self._recent) > KEPT:
                self._recent.popitem(last=False)
        return value

    def _path(self, like: Tensor, time: float) -> Tensor:
        """The path at ``time`` in [0, 1]."""

        def normal(depth: int, index: int) -> Tensor:
            return AddressedNoise(self.seeds, f"{self.stream}|brownian-1|{depth}|{index}").initial(like)

        low, high = 0.0, 1.0
        at_low, at_high = torch.zeros_like(like), normal(0, 0)
        depth, index = 0, 0
        while time not in (low, high) and high - low > FINE * min(time, 1 - time):
            middle, depth = (low + high) / 2, depth + 1
            at_middle = (at_low + at_high).div_(2).add_(normal(depth, index), alpha=math.sqrt((high - low) / 4))
            if time < middle:
                high, at_high, index = middle, at_middle, 2 * index
            else:
                low, at_low, index = middle, at_middle, 2 * index + 1
        return torch.lerp(at_low, at_high, (time - low) / (high - low))


@frozen
class Brownian:
    """`BrownianNoise`: what an SDE's solver wants, whose picture then converges as steps become many.

    A scheduler whose draws overlap in time gets draws that have that in common, as increments of one path do.
    """

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> BrownianNoise:
        """The noise of a run; the same path on every grid."""
        return BrownianNoise(seeds)
