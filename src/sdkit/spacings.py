"""Spacings: which levels of a noise schedule a run of n steps visits.

A spacing is a pure function ``(schedule, steps) -> Grid`` of n + 1 levels, from the schedule's noisiest level to clean.
``s`` is ``sigma / alpha`` here, the noise-to-signal ratio.

Where the noisiest level has no signal at all (flows, zero terminal SNR), ``s`` is infinite and a ramp in ``s`` cannot
start there. The grid then still starts at that level, and the ramp covers what is below ``s = 80``, the noise at which
Karras et al. 2022 (table 1) start: a picture drowned deeper than that teaches a network nothing, and a ramp that
starts at the schedule's last finite ``s`` (4096 for Stable Diffusion's) would spend most of its steps there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from attrs import field, frozen

from sdkit.errors import GridError, ParameterError
from sdkit.levels import Grid, Level, check_grid
from sdkit.protocols import NoiseSchedule

__all__ = ["Karras", "Trailing", "Uniform", "UniformLogSnr"]

DROWNED = 80.0
"""``sigma / alpha`` above which ramps do not place levels (Karras et al. 2022, table 1)."""


def check_steps(steps: int) -> int:
    """``steps`` if it is a whole number of at least 1.

    Raises:
        ParameterError: it is not.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ParameterError(f"The number of steps must be a whole number of at least 1, not {steps!r}.")
    return steps


def linspace(first: float, last: float, count: int) -> list[float]:
    """``count`` evenly spaced numbers whose end points are exact."""
    if count == 1:
        return [first]
    return [*(first + (last - first) * (i / (count - 1)) for i in range(count - 1)), last]


def ramp_start(schedule: NoiseSchedule) -> float:
    """``log_snr`` at which a ramp starts: the noisiest level's, or that of `DROWNED` if it has no signal.

    A schedule that ends in a finite ``s`` states its own start and is believed.
    """
    log_snr = schedule.noisiest.log_snr
    return -math.log(DROWNED) if math.isinf(log_snr) else log_snr


def ramped(schedule: NoiseSchedule, log_snrs: Sequence[float]) -> Grid:
    """The grid through these values of ``log_snr``, ends replaced by the schedule's own noisiest and cleanest levels.

    One value means one step, straight from the noisiest level to clean.
    """
    inner = [schedule.level(schedule.time(value)) for value in log_snrs[1:-1]]
    ends: list[Level] = [schedule.cleanest] if len(log_snrs) > 1 else []
    return _distinct((schedule.noisiest, *inner, *ends, schedule.clean))


def _distinct(grid: Grid) -> Grid:
    try:
        return check_grid(grid)
    except GridError as error:
        raise GridError(f"{error} The schedule cannot be divided that finely: ask for fewer steps.") from None


@frozen
class Uniform:
    """Evenly spaced times from the noisiest to the cleanest trained level, then clean.

    Known as A1111 "Uniform", ComfyUI ``normal``, diffusers ``timestep_spacing="linspace"``.
    """

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        check_steps(steps)
        if steps == 1:
            return (schedule.noisiest, schedule.clean)
        times = linspace(schedule.noisiest.t, schedule.cleanest.t, steps)
        inner = [schedule.level(t) for t in times[1:-1]]
        return _distinct((schedule.noisiest, *inner, schedule.cleanest, schedule.clean))


@frozen
class Trailing:
    """Evenly spaced times from the noisiest level to clean, so that the last interval is as long as the others.

    On a discrete schedule with T levels these are the times ``round(T - i T / n) - 1``, computed in exact fractions
    (binary floats give one time too many for some n); with more steps than T they are not rounded.

    Known as A1111 and ComfyUI ``simple``, diffusers ``timestep_spacing="trailing"``. Source: Lin et al. 2023,
    https://arxiv.org/abs/2305.08891.
    """

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        check_steps(steps)
        trained = schedule.train_steps
        if trained is None:
            times = linspace(schedule.noisiest.t, schedule.clean.t, steps + 1)[1:-1]
        elif steps <= trained:
            times = [float(round(Fraction(trained * (steps - i), steps)) - 1) for i in range(1, steps)]
        else:  # there is no level between the cleanest trained one (time 0) and clean (time -1)
            times = linspace(schedule.noisiest.t, schedule.cleanest.t, steps)[1:]
        return _distinct((schedule.noisiest, *(schedule.level(t) for t in times), schedule.clean))


@frozen
class Karras:
    """``s_i = (s_max^(1/rho) + i / (n - 1) (s_min^(1/rho) - s_max^(1/rho)))^rho``, then clean.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 5.

    Attributes:
        rho: 0.1 to 1000; 7 puts more levels near the clean end, 1 spaces ``s`` evenly.
    """

    rho: float = field(default=7.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0.1 <= self.rho <= 1000:
            raise ParameterError(f"rho must lie between 0.1 and 1000, not {self.rho}; usual is 7.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        check_steps(steps)
        high = math.exp(-ramp_start(schedule) / self.rho)
        low = math.exp(-schedule.cleanest.log_snr / self.rho)
        return ramped(schedule, [-self.rho * math.log(root) for root in linspace(high, low, steps)])


@frozen
class UniformLogSnr:
    """Evenly spaced ``log_snr`` from the noisiest to the cleanest trained level, then clean.

    Source: Lu et al. 2022, https://arxiv.org/abs/2206.00927, section 3.4. Also known as the exponential spacing.
    """

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        check_steps(steps)
        return ramped(schedule, linspace(ramp_start(schedule), schedule.cleanest.log_snr, steps))
