"""Euler's method.

Notation: ``D`` the predicted clean latent, ``e = (x - alpha D) / sigma`` the noise that goes with it; plain letters at
the start of the step, primed at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from sdkit.levels import Grid, Level
from sdkit.protocols import Denoise, Noise, Step, Traits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Euler", "toward"]


def toward(x: Tensor, denoised: Tensor, start: Level, stop: Level) -> Tensor:
    """``alpha' D + sigma' e``: the latent at ``stop`` on the line through ``x`` that ends in ``denoised``.

    ``= (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) D``, which needs no division by alpha.
    """
    ratio = stop.sigma / start.sigma
    return (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)


@frozen
class Euler:
    """``x' = alpha' D + sigma' e``: Euler's method for the probability-flow equation in ``sigma / alpha``.

    The same formula is Euler's method for a flow's ``dx/dt = noise - x0``, and DDIM without noise (Song et al. 2021).
    Order 1. Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1.
    """

    traits: ClassVar[Traits] = Traits(
        order=1, startup_order=None, stochastic=False, exact_on_point_mass=True, evaluations=1
    )

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Euler remembers nothing."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One evaluation at ``start``."""
        denoised = denoise(x, start)
        return Step(toward(x, denoised, start, stop), denoised, None)
