"""Restart: go back into the noise and come down again. Notation: `sdkit_samplers.moves`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit import Grid, Heun, Level, Noise, ParameterError, Step, Traits, between
from sdkit_samplers.moves import check_range

if TYPE_CHECKING:
    from torch import Tensor

    Denoise = Callable[[Tensor, Level], Tensor]

__all__ = ["Restart", "RestartState"]


@frozen
class RestartState:
    """The levels of the run: a restart never goes above the first, and comes down along the others.

    Attributes:
        grid: All levels of the run.
        turn: Place in the grid of the level the restarts go out from, or None where there are none.
    """

    grid: Grid
    turn: int | None


@frozen
class Restart:
    """Heun's method; when ``s`` has come down to ``s_min``, up to ``s_max`` and down again, ``times`` times.

    The turn is made at the first level at or below ``s_min``; on a grid with so few levels that none is, and only clean
    comes after, at the last one that has noise (the authors, too, move ``s_min`` to a level of the grid). The way up
    ends at ``s_max``, or at the run's first level if that is lower: a network is asked nothing noisier than where the
    run starts. If that is not above the turn, as on a grid of one step, there is nothing to go back to: plain Heun.

    The way down again goes along the grid's own levels or, with ``steps``, along that many steps even in ``s^(1/7)``.
    Noise forgets errors that the way down has made; the deterministic steps keep the new ones small.

    Source: Xu et al. 2023, https://arxiv.org/abs/2306.14878, algorithm 1.

    Attributes:
        s_min, s_max: The restart interval in ``sigma / alpha``.
        times: How often, 0 (plain Heun) upward.
        steps: Steps of each way down, at least 1, or None for the grid's own levels.
    """

    s_min: float = field(default=0.1, converter=float)
    s_max: float = field(default=2.0, converter=float)
    times: int = field(default=1)
    steps: int | None = field(default=None)

    def __attrs_post_init__(self) -> None:
        check_range("s_min", self.s_min, 1e-6)
        check_range("s_max", self.s_max, self.s_min * (1 + 1e-6))
        for name, value, low in (("times", self.times, 0), ("steps", self.steps, 1)):
            if value is None and name == "steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ParameterError(f"{name} must be a whole number of at least {low}, not {value!r}.")

    @property
    def traits(self) -> Traits:
        """Order 2 without restarts, weakly 1 with them; none with ``steps``, whose error stays however fine the grid.

        The step that restarts costs two evaluations for each step of each way down, as many as the grid decides.
        """
        if self.times == 0:
            return Traits(2, None, False, True, 2)
        if self.steps is None:
            return Traits(1, None, True, True, None)
        return Traits(0, None, True, True, 2 + 2 * self.times * self.steps)

    def init(self, x: Tensor, grid: Grid, /) -> RestartState:
        """The levels of the run, and the turn."""
        noisy = [i for i, level in enumerate(grid) if level.sigma > 0]
        turn = next((i for i in noisy if grid[i].noise_to_signal <= self.s_min), noisy[-1])
        worth = self.times and self._top(grid) > grid[turn].noise_to_signal * (1 + 1e-6)
        return RestartState(grid, turn if worth else None)

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: RestartState, noise: Noise, /
    ) -> Step[RestartState]:
        """Two evaluations, more on the step that comes down to the turn."""
        heun = Heun()
        step = heun.step(denoise, x, start, stop, None, noise)
        if state.turn is None or stop != state.grid[state.turn]:
            return Step(step.x, step.denoised, state)
        top = between(state.grid[0], stop, -math.log(self._top(state.grid)))
        way = [top, *self._inner(state.grid, top, stop), stop]
        x, up = step.x, top.sigma * math.sqrt(-math.expm1(2 * (top.log_snr - stop.log_snr)))
        for piece in self._pieces(top, stop):
            x = (x * (top.alpha / stop.alpha)).add_(noise(x, *piece), alpha=up)
            for a, b in pairwise(way):
                x = heun.step(denoise, x, a, b, None, noise).x
        return Step(x, step.denoised, state)

    def _top(self, grid: Grid) -> float:
        return min(self.s_max, grid[0].noise_to_signal)

    def _pieces(self, top: Level, stop: Level) -> list[tuple[Level, Level]]:
        """An interval for the noise of each turn; they do not overlap, so their noises are independent."""
        h = (stop.log_snr - top.log_snr) / self.times
        ends = [top, *(between(top, stop, top.log_snr + h * turn) for turn in range(1, self.times)), stop]
        return list(pairwise(ends))

    def _inner(self, grid: Grid, top: Level, stop: Level) -> list[Level]:
        if self.steps is None:
            return [level for level in grid if top.log_snr + 1e-6 < level.log_snr < stop.log_snr]
        first, last = top.noise_to_signal ** (1 / 7), stop.noise_to_signal ** (1 / 7)
        roots = (first + (last - first) * i / self.steps for i in range(1, self.steps))
        return [between(grid[0], stop, -7 * math.log(root)) for root in roots]
