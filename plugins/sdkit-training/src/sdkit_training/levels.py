"""At which levels to train: distributions of time, as maps from a uniform number.

Notation: ``u`` uniform in (0, 1), ``t`` the schedule's own time.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Protocol

from attrs import field, frozen

from sdkit import Level, NoiseSchedule, ParameterError

__all__ = ["LogitNormal", "Times", "Uniform", "times_for"]


class Times(Protocol):
    """A distribution of levels."""

    def __call__(self, schedule: NoiseSchedule, u: float, /) -> Level:
        """The level below which a share ``u`` of the draws lies, in time."""
        ...


@frozen
class Uniform:
    """Every time alike: each trained step of a discrete schedule, or all from the cleanest to the noisiest level.

    Source: Ho et al. 2020, algorithm 1, https://arxiv.org/abs/2006.11239.
    """

    def __call__(self, schedule: NoiseSchedule, u: float, /) -> Level:
        """The level."""
        if schedule.train_steps is not None:
            return schedule.level(float(min(int(u * schedule.train_steps), schedule.train_steps - 1)))
        low, high = schedule.cleanest.t, schedule.noisiest.t
        return schedule.level(low + u * (high - low))


@frozen
class LogitNormal:
    """``logit(t)`` is normal: the middle of the way more often than its ends, for flows with time from 0 to 1.

    Source: Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 3.1.

    Attributes:
        mean: Above 0 favours noise, below 0 the picture.
        std: Above 0.
    """

    mean: float = field(default=0.0, converter=float)
    std: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ParameterError(f"A logit-normal needs a finite mean and a std above 0, not {self.mean}, {self.std}.")

    def __call__(self, schedule: NoiseSchedule, u: float, /) -> Level:
        """The level.

        Raises:
            ParameterError: the schedule's time does not run from 0 to 1.
        """
        low, high = schedule.cleanest.t, schedule.noisiest.t
        if schedule.train_steps is not None or not 0 <= low < high <= 1:
            raise ParameterError(
                f"A logit-normal is for schedules whose time runs from 0 to 1, not {low:g} to {high:g}; take Uniform."
            )
        logit = self.mean + self.std * NormalDist().inv_cdf(u)
        return schedule.level(min(max(1 / (1 + math.exp(-logit)), low), high))


def times_for(schedule: NoiseSchedule) -> Times:
    """What its kind of schedule is usually trained with: `LogitNormal` for a flow, else `Uniform`."""
    flow = schedule.train_steps is None and schedule.noisiest.alpha == 0 and schedule.noisiest.t == 1
    return LogitNormal() if flow else Uniform()
