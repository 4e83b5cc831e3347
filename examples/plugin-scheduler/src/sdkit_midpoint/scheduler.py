"""The midpoint rule. Notation: x = alpha x0 + sigma noise; D the predicted clean latent; primes mark a step's end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from sdkit import Denoise, Grid, Level, Noise, Step, Traits, between

if TYPE_CHECKING:
    from torch import Tensor


def toward(x: Tensor, denoised: Tensor, start: Level, stop: Level) -> Tensor:
    """``alpha' D + sigma' e`` with ``e = (x - alpha D) / sigma``, without a division by alpha."""
    ratio = stop.sigma / start.sigma
    return x * ratio + denoised * (stop.alpha - start.alpha * ratio)


@frozen
class MidpointScheduler:
    """Euler's step with the prediction made half way, in ``log_snr``: order 2, two evaluations."""

    traits: ClassVar[Traits] = Traits(
        order=2, startup_order=None, stochastic=False, exact_on_point_mass=True, evaluations=2
    )

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """The state before the first step: there is none."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Two evaluations; one where nothing lies half way: from no signal, and to clean."""
        denoised = denoise(x, start)
        middle = (start.log_snr + stop.log_snr) / 2
        if not math.isfinite(middle):
            return Step(toward(x, denoised, start, stop), denoised, None)
        half = between(start, stop, middle)
        again = denoise(toward(x, denoised, start, half), half)
        return Step(toward(x, again, start, stop), denoised, None)
