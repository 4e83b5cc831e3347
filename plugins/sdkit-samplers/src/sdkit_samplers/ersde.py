"""Solvers of the extended reverse-time SDE. Notation: `sdkit_samplers.moves`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits
from sdkit_samplers.moves import Past, add, check_range, sde_traits, toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ErSde"]

POINTS, AREAS = np.polynomial.legendre.leggauss(24)
"""Gauss and Legendre's rule on the interval from -1 to 1."""


def phi(s: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise scale function the authors found best, ``s (e^(s^0.3) + 10)`` (ER-SDE 5 in their table)."""
    values: NDArray[np.float64] = np.asarray(s, dtype=np.float64)
    scaled: NDArray[np.float64] = values * (np.exp(values**0.3) + 10)
    return scaled


@frozen
class ErSde:
    """ER-SDE-Solver of up to three stages: a multistep method with noise of its own shape.

    ``x' / alpha' = r x / alpha + (1 - r) D + (first and second difference quotients of D, integrated) + noise`` with
    ``r = phi(s') / phi(s)`` and noise of variance ``s'^2 - s^2 r^2``. The integrals are taken by Gauss and Legendre's
    rule in ``log s`` (the authors sum 200 values).

    Source: Cui et al. 2023, https://arxiv.org/abs/2309.06169, algorithm 3.

    Attributes:
        stages: 1 to 3.
        s_noise: Factor of the noise; only 1 keeps the right variance.
    """

    stages: int = field(default=3)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.stages, bool) or self.stages not in (1, 2, 3):
            raise ParameterError(f"stages must be 1, 2 or 3, not {self.stages!r}.")
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Weak order 1."""
        return sde_traits(1, None, 1, 1.0, self.s_noise)

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
        """One evaluation at ``start``; noise unless ``stop`` is clean."""
        denoised = denoise(x, start)
        after = state.push(denoised, start.log_snr, self.stages - 1)
        if stop.sigma == 0:
            return Step(toward(x, denoised, start, stop), denoised, after)
        s, s_next = start.noise_to_signal, stop.noise_to_signal
        if math.isinf(s):  # phi is infinite there: nothing of x is kept
            moved = denoised * stop.alpha
            if self.s_noise:
                moved = moved.add_(noise(x, start, stop), alpha=stop.sigma * self.s_noise)
            return Step(moved, denoised, after)
        ratio = float(phi(s_next) / phi(s))
        moved = add(x * (ratio * stop.alpha / start.alpha), (stop.alpha * (1 - ratio), denoised))
        width = s_next - s
        v = math.log(s) + (math.log(s_next) - math.log(s)) * (POINTS + 1) / 2
        u, areas = np.exp(v), np.exp(v) * AREAS * (math.log(s) - math.log(s_next)) / 2
        if state.values:
            s1 = math.exp(-state.log_snrs[0])
            weight = width + float(np.sum(areas / phi(u))) * float(phi(s_next))
            moved = add(
                moved, (stop.alpha * weight / (s - s1), denoised), (-stop.alpha * weight / (s - s1), state.values[0])
            )
            if len(state.values) > 1:
                s2 = math.exp(-state.log_snrs[1])
                weight = width**2 / 2 + float(np.sum(areas * (u - s) / phi(u))) * float(phi(s_next))
                scale = stop.alpha * weight * 2 / (s - s2)
                # ((D - D1) / (s - s1) - (D1 - D2) / (s1 - s2)) * 2 / (s - s2)
                moved = add(
                    moved,
                    (scale / (s - s1), denoised),
                    (-scale * (1 / (s - s1) + 1 / (s1 - s2)), state.values[0]),
                    (scale / (s1 - s2), state.values[1]),
                )
        fresh = stop.alpha * math.sqrt(max(s_next**2 - (s * ratio) ** 2, 0.0)) * self.s_noise
        if fresh:
            moved = moved.add_(noise(x, start, stop), alpha=fresh)
        return Step(moved, denoised, after)
