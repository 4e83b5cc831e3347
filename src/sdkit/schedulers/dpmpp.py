"""DPM-Solver++(2M).

Notation as in `sdkit.schedulers.euler`; ``lambda`` is ``log_snr`` and ``h`` its increase over a step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from sdkit.levels import Grid, Level
from sdkit.protocols import Denoise, Noise, Step, Traits
from sdkit.schedulers.euler import toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DpmPP2M", "History"]


@frozen(eq=False)
class History:
    """What a two-step method remembers: the last prediction and the ``log_snr`` where it was made."""

    denoised: Tensor
    log_snr: float


@frozen
class DpmPP2M:
    """``x' = (sigma' / sigma) x + alpha' (1 - exp(-h)) ((1 + 1 / 2r) D - (1 / 2r) D_last)``, ``r = h_last / h``.

    Steps without a usable past are first order: the first one, one after a level without signal (there ``h_last`` is
    infinite and the past has no weight), and the step to clean (``h`` is infinite). Order 2, first step 1.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2.
    """

    traits: ClassVar[Traits] = Traits(
        order=2, startup_order=1, stochastic=False, exact_on_point_mass=True, evaluations=1
    )

    def init(self, x: Tensor, grid: Grid, /) -> History | None:
        """No past yet."""
        return None

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: History | None, noise: Noise, /
    ) -> Step[History | None]:
        """One evaluation at ``start``."""
        denoised = denoise(x, start)
        estimate = denoised
        if state is not None and stop.sigma > 0 and math.isfinite(state.log_snr):
            past = (stop.log_snr - start.log_snr) / (2 * (start.log_snr - state.log_snr))
            estimate = (denoised * (1 + past)).sub_(state.denoised, alpha=past)
        return Step(toward(x, estimate, start, stop), denoised, History(denoised, start.log_snr))
