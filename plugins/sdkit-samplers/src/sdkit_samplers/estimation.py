"""Gradient estimation: Euler with a correction from the last prediction. Notation: `sdkit_samplers.moves`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit import Grid, Level, Noise, Step, Traits
from sdkit_samplers.moves import Past, check_range, noise_of, toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GradientEstimation"]


@frozen
class GradientEstimation:
    """``x' = Euler + alpha' (s' - s) (gamma - 1) (e - e_last)``: the noise extrapolated beyond the last prediction.

    The first step and the one to clean are Euler's.

    Source: Permenter and Yuan 2023, https://arxiv.org/abs/2306.04848, algorithm 2.

    Attributes:
        gamma: 1 is Euler's method; the authors use 2.
    """

    gamma: float = field(default=2.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("gamma", self.gamma, 0, 5)

    @property
    def traits(self) -> Traits:
        """Order 1 for every gamma but 1.5 on even levels, where it is Adams and Bashforth's second order."""
        return Traits(1, None, False, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> Past:
        """No past."""
        return Past()

    def step(
        self,
        denoise: Callable[[Tensor, Level], Tensor],
        x: Tensor,
        start: Level,
        stop: Level,
        state: Past,
        noise: Noise,
        /,
    ) -> Step[Past]:
        """One evaluation at ``start``."""
        denoised = denoise(x, start)
        eps = noise_of(x, denoised, start)
        moved = toward(x, denoised, start, stop)
        if state.values and stop.sigma > 0 and math.isfinite(start.log_snr):
            weight = stop.alpha * (stop.noise_to_signal - start.noise_to_signal) * (self.gamma - 1)
            moved = moved.add_(eps, alpha=weight).add_(state.values[0], alpha=-weight)
        return Step(moved, denoised, state.push(eps, start.log_snr, 1))
