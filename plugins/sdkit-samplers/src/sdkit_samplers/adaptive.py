"""DPM-Solver of the noise form: its fast variant, and the one with its own step control.

Notation: `sdkit_samplers.moves`. With the noise form in ``L``, ``x' = (alpha' / alpha) x - sigma' (e^h - 1) e`` is the
first order; the higher ones evaluate ``e`` inside the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits, between
from sdkit_samplers.moves import check_range, noise_of, step_size, toward

if TYPE_CHECKING:
    from torch import Tensor

    Denoise = Callable[[Tensor, Level], Tensor]

__all__ = ["DpmAdaptive", "DpmFast"]


def _phi2(h: float) -> float:
    """``(e^h - 1) / h - 1``, accurate for small h."""
    if abs(h) < 1e-2:
        return h / 2 * (1 + h / 3 * (1 + h / 4 * (1 + h / 5 * (1 + h / 6))))
    return math.expm1(h) / h - 1


class _Interval:
    """DPM-Solver's stages on one interval; evaluations are kept, since orders share them."""

    def __init__(self, denoise: Denoise, x: Tensor, denoised: Tensor, start: Level, stop: Level) -> None:
        self.denoise, self.x, self.start, self.stop = denoise, x, start, stop
        self.eps = noise_of(x, denoised, start)
        self.h = step_size(start, stop)
        self._stages: dict[float, Tensor] = {}

    def level(self, share: float) -> Level:
        return between(self.start, self.stop, self.start.log_snr + share * self.h)

    def move(self, level: Level, weight: float, slope: float = 0.0, other: Tensor | None = None) -> Tensor:
        """``(a / alpha) x - sigma_level (weight e + slope (other - e))``."""
        moved = (self.x * (level.alpha / self.start.alpha)).add_(self.eps, alpha=-level.sigma * (weight - slope))
        return moved if other is None else moved.add_(other, alpha=-level.sigma * slope)

    def stage(self, share: float) -> Tensor:
        """The noise at ``share`` of the step, reached by Euler."""
        if share not in self._stages:
            level = self.level(share)
            inner = self.move(level, math.expm1(share * self.h))
            self._stages[share] = noise_of(inner, self.denoise(inner, level), level)
        return self._stages[share]

    def first(self) -> Tensor:
        return self.move(self.stop, math.expm1(self.h))

    def second(self, share: float = 0.5) -> Tensor:
        whole = math.expm1(self.h)
        return self.move(self.stop, whole, whole / (2 * share), self.stage(share))

    def third(self, first: float = 1 / 3, second: float = 2 / 3) -> Tensor:
        level, h2 = self.level(second), second * self.h
        inner = self.move(level, math.expm1(h2), second / first * _phi2(h2), self.stage(first))
        eps = noise_of(inner, self.denoise(inner, level), level)
        return self.move(self.stop, math.expm1(self.h), _phi2(self.h) / second, eps)


@frozen
class DpmFast:
    """DPM-Solver-3 in every step of the grid, of lower order on the last ones as the fast variant is.

    Of the steps before the one to clean, the last is of order 2. With ``uniform-log-snr`` these are the levels and
    orders of DPM-Solver-fast, but ``steps`` counts steps here: 20 of them cost 57 evaluations, where k-diffusion and
    A1111 count evaluations. Steps to clean and from no signal are Euler's.

    Source: Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithm 2 and section 3.4.
    """

    @property
    def traits(self) -> Traits:
        """Order 3, one step of order 2 at the end notwithstanding; at most 3 evaluations."""
        return Traits(3, None, False, True, 3)

    def init(self, x: Tensor, grid: Grid, /) -> float:
        """Where the step of order 2 begins."""
        finite = [level for level in grid if level.sigma > 0]
        return finite[-2].log_snr if len(finite) > 2 else math.inf

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: float, noise: Noise, /
    ) -> Step[float]:
        """Up to three evaluations."""
        denoised = denoise(x, start)
        if math.isinf(step_size(start, stop)):
            return Step(toward(x, denoised, start, stop), denoised, state)
        interval = _Interval(denoise, x, denoised, start, stop)
        return Step(interval.second() if start.log_snr >= state else interval.third(), denoised, state)


@frozen
class DpmAdaptive:
    """DPM-Solver-12 or -23 with its own step control inside each interval of the grid.

    The error of a step is estimated by the difference of two orders and held below ``atol + rtol |x|``, with ``x``
    brought to the scale ``alpha^2 + sigma^2 = 1``: a step in ``L`` is accepted where the scaled error is at most 1, and
    the next one is chosen by it. The step size is carried from interval to interval. The interval to clean and one from
    no signal are single steps of Euler's.

    Sources: Lu et al. 2022, https://arxiv.org/abs/2206.00927, appendix C; control: Hairer, Norsett, Wanner 1993, II.4.

    Attributes:
        order: 2 or 3, order of the better of the two estimates.
        rtol: Relative tolerance, above 0.
        atol: Absolute tolerance, above 0.
        first: First step tried, in ``L``.
        most: Most steps inside one interval, accepted or not.
    """

    order: int = field(default=3)
    rtol: float = field(default=0.05, converter=float)
    atol: float = field(default=0.0078, converter=float)
    first: float = field(default=0.05, converter=float)
    most: int = field(default=10_000)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in (2, 3):
            raise ParameterError(f"The order must be 2 or 3, not {self.order!r}.")
        check_range("rtol", self.rtol, 1e-12)
        check_range("atol", self.atol, 1e-12)
        check_range("first", self.first, 1e-6)
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 1:
            raise ParameterError(f"most must be a whole number of at least 1, not {self.most!r}.")

    @property
    def traits(self) -> Traits:
        """Order of the better estimate, however fine the grid; evaluations as the picture needs them."""
        return Traits(self.order, None, False, True, None, adaptive=True)

    def init(self, x: Tensor, grid: Grid, /) -> float:
        """The first step to try."""
        return self.first

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: float, noise: Noise, /
    ) -> Step[float]:
        """As many evaluations as it takes."""
        denoised = first_denoised = denoise(x, start)
        if math.isinf(step_size(start, stop)):
            return Step(toward(x, denoised, start, stop), denoised, state)
        here, size = start, state
        for _ in range(self.most):
            left = step_size(here, stop)
            last = size >= left * (1 - 1e-12)
            target = stop if last else between(here, stop, here.log_snr + size)
            interval = _Interval(denoise, x, denoised, here, target)
            if self.order == 3:
                rough, fine = interval.second(1 / 3), interval.third()
            else:
                rough, fine = interval.first(), interval.second()
            # in the scale of a variance-preserving latent, so that the tolerance means the same on every schedule
            bound = ((x / here.norm).abs().maximum((fine / target.norm).abs()) * self.rtol).add_(self.atol)
            # a solver with its own step control has to read its error
            error = float(((fine - rough) / target.norm / bound).square().mean().sqrt())
            if not math.isfinite(error):
                # the caller's check for NaN names the slot and the level; shrinking the step would not help
                return Step(fine, first_denoised, size)
            factor = 0.9 * max(error, 1e-8) ** (-1 / self.order)
            if error <= 1:
                x, here = fine, target
                if last:
                    # the next interval starts from the step this one would have liked, not from what was left of it
                    return Step(x, first_denoised, max(size, min(left * factor, size * 5)))
                denoised = denoise(x, here)
            size = min(size, left) * min(5.0, max(0.2, factor))
        raise ParameterError(
            f"dpm-adaptive did not get from {start} to {stop} in {self.most} steps; raise rtol, atol or most."
        )
