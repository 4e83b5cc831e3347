"""Spacings beyond the core's.

Each is a pure function ``(schedule, steps) -> Grid`` of n + 1 levels, ending clean; ``s`` is ``sigma / alpha``. Ramps
in ``s`` start, where the noisiest level has no signal, from that level and place the others below ``s = 80`` (as the
core's do; its decision record 5 says why). Times of a discrete schedule with T levels run from T - 1 to 0.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from attrs import field, frozen
from attrs.validators import instance_of

from sdkit import (
    FileError,
    Grid,
    GridError,
    Level,
    NoiseSchedule,
    ParameterError,
    RectifiedFlow,
    Spacing,
    Trailing,
    check_grid,
    registry,
)

__all__ = [
    "AlignYourSteps",
    "Beta",
    "BetaSigma",
    "BongTangent",
    "DropPenultimate",
    "FlowShift",
    "KlOptimal",
    "LcmTimes",
    "Leading",
    "LinearQuadratic",
    "Polyexponential",
    "SgmUniform",
    "Smoothstep",
    "Table",
]

DROWNED = 80.0


def _steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ParameterError(f"The number of steps must be a whole number of at least 1, not {steps!r}.")


def _distinct(levels: Sequence[Level]) -> Grid:
    try:
        return check_grid(levels)
    except GridError as error:
        raise GridError(f"{error} The schedule cannot be divided that finely: ask for fewer steps.") from None


def _through(schedule: NoiseSchedule, levels: Sequence[Level]) -> Grid:
    """The levels, kept inside the schedule's range, closed by the clean one."""
    return _distinct([*levels, schedule.clean])


def _ramp(schedule: NoiseSchedule, steps: int, s: Callable[[float, float, float], float]) -> Grid:
    """Levels at ``s(share, s_max, s_min)`` for shares from 0 to 1; the ends are the schedule's own levels."""
    _steps(steps)
    noisiest, cleanest = schedule.noisiest, schedule.cleanest
    high = noisiest.noise_to_signal if math.isfinite(noisiest.noise_to_signal) else DROWNED
    low = cleanest.noise_to_signal
    inner = [s(i / (steps - 1), high, low) for i in range(1, steps - 1)]
    levels = [schedule.level(schedule.time(-math.log(value))) for value in inner]
    return _distinct([noisiest, *levels, *([cleanest] if steps > 1 else []), schedule.clean])


@frozen
class Leading:
    """``t_i = offset + i (T // n)``, from the noisy end: what DDIM and the first Stable Diffusion used.

    It starts below the noisiest level, at which the network was trained but is then never asked. On a continuous
    schedule, times ``t_clean + (t_max - t_clean) (i / n)`` for i = n - 1 .. 0, the last one the cleanest usable.

    By that formula a single step would begin nearly clean, where there is no noise left to make a picture of; it begins
    at the noisiest level instead, as the first of n steps does for large n.

    Known as diffusers ``timestep_spacing="leading"``, A1111 "DDIM", ComfyUI ``ddim_uniform`` (which gives a step too
    many where n does not divide T).

    Attributes:
        offset: Added to every time of a discrete schedule, 0 or more.
    """

    offset: int = field(default=1)

    starts_noisiest: ClassVar[bool] = False

    def __attrs_post_init__(self) -> None:
        if isinstance(self.offset, bool) or not isinstance(self.offset, int) or self.offset < 0:
            raise ParameterError(f"The offset must be a whole number of at least 0, not {self.offset!r}.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        trained = schedule.train_steps
        if steps == 1:
            return (schedule.noisiest, schedule.clean)
        if trained is None:
            first, last = schedule.noisiest.t, schedule.clean.t
            times = [last + (first - last) * i / steps for i in reversed(range(1, steps))]
            return _through(schedule, [*(schedule.level(t) for t in times), schedule.cleanest])
        stride = trained // steps
        if stride < 1:
            raise GridError(f"leading has a whole number of times between steps: at most {trained} steps, not {steps}.")
        # an offset would move the first of many steps beyond the last level that was trained
        offset = min(self.offset, trained - 1 - (steps - 1) * stride)
        return _through(schedule, [schedule.level(offset + i * stride) for i in reversed(range(steps))])


@frozen
class SgmUniform:
    """The first n of n + 1 even times from the noisiest to the cleanest level: ComfyUI and A1111 "SGM Uniform"."""

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        first, last = schedule.noisiest.t, schedule.cleanest.t
        times = [first + (last - first) * i / steps for i in range(1, steps)]
        return _through(schedule, [schedule.noisiest, *(schedule.level(t) for t in times)])


@frozen
class Polyexponential:
    """``log s = log s_min + (1 - i / (n - 1))^rho (log s_max - log s_min)`` (Crowson 2022, k-diffusion).

    Attributes:
        rho: Above 0; 1 spaces log s evenly (the core's uniform-log-snr).
    """

    rho: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        _positive("rho", self.rho)

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        return _ramp(schedule, steps, lambda share, high, low: low * (high / low) ** ((1 - share) ** self.rho))


@frozen
class KlOptimal:
    """``s_i = tan((1 - i / (n - 1)) arctan s_max + i / (n - 1) arctan s_min)``.

    Source: Sabour, Fidler, Kreis 2024, https://arxiv.org/abs/2404.14507, theorem 3.1.
    """

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        return _ramp(
            schedule,
            steps,
            lambda share, high, low: math.tan((1 - share) * math.atan(high) + share * math.atan(low)),
        )


def _quantiles(steps: int, alpha: float, beta: float) -> list[float]:
    """Quantiles of the beta distribution at 1, 1 - 1/n, ..., 1/n: n numbers from 1 down, none of them 0."""
    from scipy.stats import beta as distribution

    return [float(value) for value in distribution.ppf(1 - np.arange(steps) / steps, alpha, beta)]


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ParameterError(f"{name} must be above 0, not {value}.")


@frozen
class Beta:
    """Times at quantiles of a beta distribution: ComfyUI's ``beta``.

    ``t = t_min + ppf(1 - i / n) (t_max - t_min)``, rounded to trained times on a discrete schedule unless that would
    repeat one.

    Source: Lee et al. 2024, https://arxiv.org/abs/2407.12173.

    Attributes:
        alpha, beta: Parameters of the distribution, above 0; 0.6 puts more levels at both ends.
    """

    alpha: float = field(default=0.6, converter=float)
    beta: float = field(default=0.6, converter=float)

    def __attrs_post_init__(self) -> None:
        _positive("alpha", self.alpha)
        _positive("beta", self.beta)

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        first, last = schedule.noisiest.t, schedule.cleanest.t
        times = [last + q * (first - last) for q in _quantiles(steps, self.alpha, self.beta)]
        if schedule.train_steps is not None:
            rounded = [float(round(t)) for t in times]
            times = rounded if len(set(rounded)) == len(rounded) else times
        return _through(schedule, [schedule.noisiest, *(schedule.level(t) for t in times[1:])])


@frozen
class BetaSigma:
    """``s`` at quantiles of a beta distribution: A1111's "Beta" and diffusers' ``use_beta_sigmas``.

    ``s = s_min + ppf(1 - i / (n - 1)) (s_max - s_min)``.

    Source: Lee et al. 2024, https://arxiv.org/abs/2407.12173, read as these tools read it.

    Attributes:
        alpha, beta: Parameters of the distribution, above 0.
    """

    alpha: float = field(default=0.6, converter=float)
    beta: float = field(default=0.6, converter=float)

    def __attrs_post_init__(self) -> None:
        _positive("alpha", self.alpha)
        _positive("beta", self.beta)

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        from scipy.stats import beta as distribution

        def s(share: float, high: float, low: float) -> float:
            return low + float(distribution.ppf(1 - share, self.alpha, self.beta)) * (high - low)

        return _ramp(schedule, steps, s)


TABLES: dict[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""``s`` of ten steps, as published by the authors of Align Your Steps (Sabour, Fidler, Kreis 2024)."""


def resampled(values: Sequence[float], count: int) -> list[float]:
    """``count`` values on the line through ``values``, even in position and linear in the logarithm."""
    positions = np.linspace(0, 1, len(values))
    logs = np.interp(np.linspace(0, 1, count), positions, np.log(np.asarray(values, dtype=np.float64)))
    return [float(value) for value in np.exp(logs)]


def _at(schedule: NoiseSchedule, values: Sequence[float]) -> Grid:
    """Levels with these ``s``, falling; those outside the schedule are moved to its ends and become their levels."""
    high, low = schedule.noisiest, schedule.cleanest
    slack = 5e-3  # tables are published with three digits: that near to an end means the end
    levels: list[Level] = []
    for s in values:
        if s >= high.noise_to_signal * (1 - slack):
            level = high
        elif s <= low.noise_to_signal * (1 + slack):
            level = low
        else:
            level = schedule.level(schedule.time(-math.log(s)))
        if not levels or level.log_snr > levels[-1].log_snr:
            levels.append(level)
    if len(levels) < len(values):
        raise GridError(
            f"The table goes from s = {values[0]:g} to {values[-1]:g}, but the schedule only from "
            f"{high.noise_to_signal:g} to {low.noise_to_signal:g}; take a table made for this schedule."
        )
    return _through(schedule, levels)


@frozen
class AlignYourSteps:
    """Published tables of ten steps, resampled to any number along the logarithm of ``s``.

    The eleven values are resampled to n + 1 and the last gives way to clean, as ComfyUI does it (A1111 resamples to n
    and appends clean). They start where their schedule does, which on another schedule is below its noisiest level.

    Source: Sabour, Fidler, Kreis 2024, https://arxiv.org/abs/2404.14507.

    Attributes:
        table: ``"sd15"``, ``"sdxl"`` or ``"svd"``: the model the table was optimised for.
    """

    table: Literal["sd15", "sdxl", "svd"] = "sd15"

    starts_noisiest: ClassVar[bool] = False

    def __attrs_post_init__(self) -> None:
        if self.table not in TABLES:
            raise ParameterError(f"The table is one of {', '.join(sorted(TABLES))}, not {self.table!r}.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        return _at(schedule, resampled(TABLES[self.table], steps + 1)[:-1])


@frozen
class Table:
    """Levels from a file of one's own: a JSON list of ``s`` from noisy to clean (GITS and other searched schedules).

    Resampled along the logarithm of ``s`` to the number of steps asked for; a 0 at the end means clean, as always.

    Attributes:
        file: The file's name.
    """

    file: str = field(validator=instance_of(str))

    starts_noisiest: ClassVar[bool] = False

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels.

        Raises:
            FileError: the file cannot be read, or is no such list.
        """
        _steps(steps)
        name = os.path.basename(self.file)
        try:
            values = json.loads(Path(self.file).read_text(encoding="utf-8"), parse_int=float)
        except OSError as error:
            raise FileError(f"The table {name!r} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise FileError(f"The table {name!r} is no JSON: {error}.") from error
        numbers = isinstance(values, list) and all(isinstance(v, float) and math.isfinite(v) for v in values)
        if numbers and values and values[-1] == 0:
            values = values[:-1]
        if not numbers or len(values) < 2 or not all(a > b > 0 for a, b in pairwise(values)):
            raise FileError(f"The table {name!r} must be a JSON list of at least two falling numbers above 0.")
        if len(values) == steps:
            return _at(schedule, [float(v) for v in values])
        return _at(schedule, resampled(values, steps) if steps > 1 else [float(values[0])])


@frozen
class FlowShift:
    """Trailing times of a flow, moved toward noise: ``sigma' = k sigma / (1 + (k - 1) sigma)``.

    ``k`` is ``shift``, or, with ``tokens``, ``exp(mu)`` with ``mu`` linear from 0.5 at 256 tokens to 1.15 at 4096 (the
    rule of FLUX.1; a token is a patch of 2 x 2 latents). On a schedule that is no flow, ``sigma`` is
    ``sigma / (alpha + sigma)`` as a share of the noisiest level's.

    ``k`` is the shift that the levels end up with, as in the settings of other tools: on a `RectifiedFlow` that has a
    shift of its own (Stable Diffusion 3 has 3) the levels are moved by what is missing, not once more.

    Source: Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 5.3.2.

    Attributes:
        shift: Above 0.
        tokens: Number of image tokens, or None for the static shift.
    """

    shift: float = field(default=3.0, converter=float)
    tokens: int | None = None

    def __attrs_post_init__(self) -> None:
        _positive("shift", self.shift)
        if self.tokens is not None and (
            isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1
        ):
            raise ParameterError(f"tokens must be a whole number of at least 1, not {self.tokens!r}.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        shift = self.shift if self.tokens is None else math.exp(0.5 + (self.tokens - 256) * (1.15 - 0.5) / (4096 - 256))
        if isinstance(schedule, RectifiedFlow):
            shift /= schedule.shift  # shifts multiply, and its even times have this one already
        top = schedule.noisiest.sigma / (schedule.noisiest.alpha + schedule.noisiest.sigma)
        levels = []
        for level in Trailing()(schedule, steps)[1:-1]:
            share = level.sigma / (level.alpha + level.sigma) / top
            share = shift * share / (1 + (shift - 1) * share) * top
            levels.append(schedule.level(schedule.time(math.log((1 - share) / share))))
        return _through(schedule, [schedule.noisiest, *levels])


@frozen
class LinearQuadratic:
    """Small even steps of noise first, then quadratically longer ones; as a flow's sigma from 1 to 0.

    Source: Genmo 2024, Mochi 1, https://github.com/genmoai/mochi (linear_quadratic_schedule).

    Attributes:
        threshold: Noise removed by the first half of the steps, in (0, 1).
    """

    threshold: float = field(default=0.025, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ParameterError(f"The threshold must lie between 0 and 1, not {self.threshold}.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        half = steps // 2
        if half == 0:
            return (schedule.noisiest, schedule.clean)
        rest = steps - half
        excess = half - self.threshold * steps
        if excess <= 0:
            raise ParameterError(
                f"A threshold of {self.threshold} leaves no noise for the second half of {steps} steps."
            )
        quadratic = excess / (half * rest**2)
        slope = self.threshold / half - 2 * excess / rest**2
        removed = [i * self.threshold / half for i in range(half)]
        removed += [quadratic * i**2 + slope * i + quadratic * half**2 for i in range(half, steps)]
        top = schedule.noisiest
        share = top.sigma / (top.alpha + top.sigma)
        # a discrete schedule has no levels below its cleanest one: there the way ends, instead of at 0
        end = schedule.cleanest if schedule.train_steps is not None else schedule.clean
        low = end.sigma / (end.alpha + end.sigma)
        levels = []
        for value in removed[1:]:
            sigma = low + (share - low) * (1 - value)
            levels.append(schedule.level(schedule.time(math.log((1 - sigma) / sigma))))
        return _through(schedule, [top, *levels])


@frozen
class Smoothstep:
    """Times ``t_min + (3 u^2 - 2 u^3) (t_max - t_min)`` for u = 1, 1 - 1/n, ..., 1/n: dense at both ends.

    Rounded to trained times on a discrete schedule unless that would repeat one. As stable-diffusion.cpp's
    ``smoothstep``.

    Source: leejet and others 2025, https://github.com/leejet/stable-diffusion.cpp (smoothstep scheduler).
    """

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        first, last = schedule.noisiest.t, schedule.cleanest.t
        shares = [1 - i / steps for i in range(1, steps)]
        times = [last + u * u * (3 - 2 * u) * (first - last) for u in shares]
        if schedule.train_steps is not None:
            rounded = [float(round(t)) for t in times]
            distinct = len({first, *rounded}) == steps
            times = rounded if distinct else times
        return _through(schedule, [schedule.noisiest, *(schedule.level(t) for t in times)])


@frozen
class LcmTimes:
    """Evenly spaced ones of the times that a latent consistency model was distilled at, from the noisiest on.

    With T trained times and ``original`` of them used, the times used are ``k j - 1`` for ``k = T // original`` and
    j = 1 .. original; step i of n takes ``j = original - floor(i original / n)``. On a continuous schedule the times
    are the same shares of the way from the noisiest level to clean.

    Source: Luo et al. 2023, https://arxiv.org/abs/2310.04378, section 4.3 (skipping-step).

    Attributes:
        original: Number of times used in the distillation, at least 1; as many steps can be made.
    """

    original: int = field(default=50)

    starts_noisiest: ClassVar[bool] = False

    def __attrs_post_init__(self) -> None:
        if isinstance(self.original, bool) or not isinstance(self.original, int) or self.original < 1:
            raise ParameterError(f"original must be a whole number of at least 1, not {self.original!r}.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        if steps > self.original:
            raise GridError(f"The model was distilled at {self.original} times: at most that many steps, not {steps}.")
        shares = [self.original - i * self.original // steps for i in range(steps)]
        if schedule.train_steps is None:
            first, last = schedule.noisiest.t, schedule.clean.t
            times = [last + (first - last) * j / self.original for j in shares]
        else:
            stride = schedule.train_steps // self.original
            if stride < 1:
                raise GridError(f"The schedule has {schedule.train_steps} times, fewer than original={self.original}.")
            times = [float(j * stride - 1) for j in shares]
        return _through(schedule, [schedule.level(t) for t in times])


@frozen
class BongTangent:
    """``s`` along two falling arctangents, from s_max to half way to s_min, and on from there: RES4LYF's bong_tangent.

    A branch of m places, x = 0 .. m - 1, is ``arctan(slope (pivot - x))`` scaled to its ends. Of ``N = n + 2`` places
    the first ``M = floor(0.6 N)`` are the first branch's, whose last one the second branch repeats; both have
    ``slope = 0.2 * 40 / N`` and their pivot at place M. The last place of all gives way to clean. One step goes
    straight from the noisiest level.

    Source: ClownsharkBatwing 2025, https://github.com/ClownsharkBatwing/RES4LYF, as
    https://github.com/leejet/stable-diffusion.cpp has it.
    """

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        noisiest, low = schedule.noisiest, schedule.cleanest.noise_to_signal
        high = noisiest.noise_to_signal if math.isfinite(noisiest.noise_to_signal) else DROWNED
        places = steps + 2
        first, slope, middle = places * 3 // 5, 0.2 * 40 / places, low + (high - low) / 2
        values = [*_branch(first, slope, first, high, middle)[:-1], *_branch(places - first, slope, 0, middle, low)]
        inner = [schedule.level(schedule.time(-math.log(s))) for s in values[1:steps]]
        return _through(schedule, [noisiest, *inner])


def _branch(count: int, slope: float, pivot: float, start: float, stop: float) -> list[float]:
    """``count`` values from ``start`` to ``stop`` along an arctangent."""
    curve = [math.atan(slope * (pivot - x)) for x in range(count)]
    if count == 1:
        return [start]
    return [stop + (value - curve[-1]) / (curve[0] - curve[-1]) * (start - stop) for value in curve]


@frozen
class DropPenultimate:
    """Another spacing, divided once more, without its last level before clean: A1111's and ComfyUI's DPM2.

    These tools leave that level out for DPM2, DPM2 a and (A1111) DPM++ 3M SDE; the step to it removes hardly any noise.

    Attributes:
        of: Text of the other spacing.
    """

    of: str = field(default="karras", validator=instance_of(str))

    def __attrs_post_init__(self) -> None:
        _ = self._spacing

    @property
    def _spacing(self) -> Spacing:
        made: Spacing = registry().make("spacing", self.of)
        return made

    @property
    def starts_noisiest(self) -> bool:
        """As the other spacing."""
        return getattr(self._spacing, "starts_noisiest", True)

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels."""
        _steps(steps)
        grid = self._spacing(schedule, steps + 1)
        return (*grid[:-2], grid[-1])
