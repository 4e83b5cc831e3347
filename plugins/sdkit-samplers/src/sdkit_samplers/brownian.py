"""Brownian noise: a finer grid refines the same path.

The noise of an interval is the increment of one Brownian path over it, scaled to variance 1. The path's time is
``v(L) = 1 / (1 + e^(2L))``, the share of noise in a variance-preserving latent: it falls from 1 (no signal) to 0
(clean), so every interval of levels is an interval of [0, 1]. The path itself is found by bisection: the value in the
middle of an interval, given its ends, is a Brownian bridge's, drawn from the address of that interval. No state, no
tree in memory: the same interval gives the same increment, and those of neighbouring intervals add up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from sdkit import AddressedNoise, Level, NoiseError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BrownianNoise"]

DEPTH = 28
"""Bisections: times are told apart to 2^-28 of the whole, as far as addresses of nodes are."""


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

    def initial(self, like: Tensor, /) -> Tensor:
        """Noise for the start of a run, as `sdkit.AddressedNoise` gives it."""
        return AddressedNoise(self.seeds, self.stream).initial(like)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        """The increment between the two levels over the root of the time between them, in float64 until the end."""
        times = sorted((_time(start), _time(stop)))
        if times[1] - times[0] < 2.0**-DEPTH:
            raise NoiseError(f"{start} and {stop} are too close for a Brownian path to tell them apart.")
        exact = like.double()
        increment = self._value(exact, times[1]) - self._value(exact, times[0])
        return (increment / math.sqrt(times[1] - times[0])).to(like.dtype)

    def _value(self, like: Tensor, time: float) -> Tensor:
        """The path at ``time`` in [0, 1]."""
        draw = AddressedNoise(self.seeds, f"{self.stream}|brownian")

        def normal(depth: int, index: int) -> Tensor:
            # an address is an interval of levels; bisection nodes are numbered by depth and place instead
            return draw(like, Level(0, math.exp(-depth), 1), Level(0, math.exp(1 + index / 2.0**depth), 1))

        low, high = 0.0, 1.0
        at_low, at_high = like * 0, normal(0, 0)
        index = 0
        for depth in range(1, DEPTH + 1):
            if time in (low, high):
                break
            middle = (low + high) / 2
            spread = math.sqrt((high - low) / 4)
            at_middle = (at_low + at_high) / 2 + normal(depth, index) * spread
            if time < middle:
                high, at_high, index = middle, at_middle, 2 * index
            else:
                low, at_low, index = middle, at_middle, 2 * index + 1
        if time == low:
            return at_low
        if time == high:
            return at_high
        share = (time - low) / (high - low)
        return at_low * (1 - share) + at_high * share
