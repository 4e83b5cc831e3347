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
    """Where the run started: a restart never goes above it."""

    noisiest: Level


@frozen
class Restart:
    """Heun's method; when ``s`` has come down past ``s_min``, up to ``s_max`` and down again, ``times`` times.

    The way down within a restart is divided evenly in ``s^(1/7)`` into ``steps`` steps of Heun's. Noise forgets errors
    the way down has made; the deterministic steps keep the new ones small.

    Source: Xu et al. 2023, https://arxiv.org/abs/2306.14878, algorithm 1.

    Attributes:
        s_min, s_max: The restart interval in ``sigma / alpha``.
        times: How often, 0 (plain Heun) upward.
        steps: Steps of each way down, at least 1.
    """

    s_min: float = field(default=0.1, converter=float)
    s_max: float = field(default=2.0, converter=float)
    times: int = field(default=1)
    steps: int = field(default=9)

    def __attrs_post_init__(self) -> None:
        check_range("s_min", self.s_min, 1e-6)
        check_range("s_max", self.s_max, self.s_min * (1 + 1e-6))
        for name, value, low in (("times", self.times, 0), ("steps", self.steps, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ParameterError(f"{name} must be a whole number of at least {low}, not {value!r}.")

    @property
    def traits(self) -> Traits:
        """Order 2 without restarts, weakly 1 with them; the step that restarts costs up to ``2 + 2 times steps``."""
        noisy = self.times > 0
        return Traits(1 if noisy else 2, None, noisy, True, 2 + 2 * self.times * self.steps)

    def init(self, x: Tensor, grid: Grid, /) -> RestartState:
        """Where the run starts."""
        return RestartState(grid[0])

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: RestartState, noise: Noise, /
    ) -> Step[RestartState]:
        """Two evaluations, more on the step that comes down past ``s_min``."""
        heun = Heun()
        step = heun.step(denoise, x, start, stop, None, noise)
        top_s = min(self.s_max, state.noisiest.noise_to_signal)
        passes = start.noise_to_signal > self.s_min >= stop.noise_to_signal
        if not (passes and self.times and 0 < stop.noise_to_signal < top_s):
            return Step(step.x, step.denoised, state)
        x, top = step.x, between(state.noisiest, stop, -math.log(top_s))
        roots = [top_s ** (1 / 7), stop.noise_to_signal ** (1 / 7)]
        inner = [roots[0] + (roots[1] - roots[0]) * i / self.steps for i in range(1, self.steps)]
        way = [top, *(between(state.noisiest, stop, -7 * math.log(root)) for root in inner), stop]
        up = top.sigma * math.sqrt(-math.expm1(2 * (top.log_snr - stop.log_snr)))
        for turn in range(self.times):
            # each turn has noise of its own: its interval is told apart by a level that no grid contains
            mark = Level(stop.t, stop.alpha * (2.0 + turn), stop.sigma, interpolated=True)
            x = (x * (top.alpha / stop.alpha)).add_(noise(x, top, mark), alpha=up)
            for a, b in pairwise(way):
                x = heun.step(denoise, x, a, b, None, noise).x
        return Step(x, step.denoised, state)
