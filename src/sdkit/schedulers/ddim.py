"""DDIM and ancestral sampling.

Notation as in `sdkit.schedulers.euler`; ``r = alpha sigma' / (alpha' sigma)`` compares the two levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit.errors import ParameterError
from sdkit.levels import Grid, Level
from sdkit.protocols import Denoise, Noise, Step, Traits
from sdkit.schedulers.euler import toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ddim"]


@frozen
class Ddim:
    """``x' = alpha' D + sqrt(sigma'^2 - s^2) e + s z`` with ``s = eta sigma' sqrt(1 - r^2)`` and fresh noise ``z``.

    ``eta = 0`` is Euler's method and asks for no noise; ``eta = 1`` samples the exact posterior of the forward process
    (ancestral sampling: k-diffusion's "Euler a"). The steps of DDIM go from level to level of the grid, whatever it
    is, not back by ``T // n``. Order 1 (weakly, with noise).

    Source: Song, Meng, Ermon 2021, https://arxiv.org/abs/2010.02502, equations 12 and 16.

    Attributes:
        eta: Share of the posterior's noise, 0 to 1.
    """

    eta: float = field(default=0.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ParameterError(f"eta must lie between 0 (no noise) and 1 (ancestral), not {self.eta}.")

    @property
    def traits(self) -> Traits:
        """Stochastic unless eta is 0; then also exact on a point mass only up to the last step, which adds no noise."""
        return Traits(order=1, startup_order=None, stochastic=self.eta > 0, exact_on_point_mass=True, evaluations=1)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """DDIM remembers nothing."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One evaluation at ``start``; noise if ``eta`` and ``stop.sigma`` are not 0."""
        denoised = denoise(x, start)
        if self.eta == 0 or stop.sigma == 0:
            return Step(toward(x, denoised, start, stop), denoised, None)
        # 1 - r^2 without cancellation: r = exp(log_snr - log_snr'), and r = 0 where the start has no signal.
        added = self.eta * stop.sigma * math.sqrt(-math.expm1(2 * (start.log_snr - stop.log_snr)))
        kept = math.sqrt((stop.sigma - added) * (stop.sigma + added))
        ratio = kept / start.sigma
        moved = (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)
        return Step(moved.add_(noise(x, start, stop), alpha=added), denoised, None)
