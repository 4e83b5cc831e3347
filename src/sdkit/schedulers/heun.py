"""Heun's method.

Notation as in `sdkit.schedulers.euler`. With ``D2`` the prediction at the end of Euler's step, every Heun method of
the probability-flow equation is ``x' = euler + w (D2 - D)``; the weight ``w`` depends on the variable in which the
trapezoid is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen

from sdkit.errors import ParameterError
from sdkit.levels import Grid, Level
from sdkit.protocols import Denoise, Noise, Step, Traits
from sdkit.schedulers.euler import toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Heun"]


@frozen
class Heun:
    """The trapezoidal rule with an Euler predictor: two evaluations per step, one on a step that ends clean.

    ``variable="noise"`` draws the trapezoid in ``sigma / alpha`` (Karras et al. 2022, algorithm 1 without churn; what
    k-diffusion calls heun): ``w = (alpha' sigma - alpha sigma') alpha' / (2 alpha sigma')``. It has no value where
    ``alpha = 0``; the first step of a flow or a zero-terminal-SNR model uses ``"flow"`` instead. ``variable="flow"``
    draws it in ``sigma / (alpha + sigma)``, the time of a rectified flow, which is finite everywhere:
    ``w = (alpha' sigma - alpha sigma') (alpha' + sigma') / (2 (alpha + sigma) sigma')``. Order 2.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364.
    """

    variable: Literal["noise", "flow"] = field(default="noise")

    traits: ClassVar[Traits] = Traits(
        order=2, startup_order=None, stochastic=False, exact_on_point_mass=True, evaluations=2
    )

    def __attrs_post_init__(self) -> None:
        if self.variable not in ("noise", "flow"):
            raise ParameterError(f"Heun's variable must be 'noise' or 'flow', not {self.variable!r}.")

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Heun remembers nothing between steps."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Evaluations at ``start`` and, unless ``stop`` is clean, at ``stop``."""
        denoised = denoise(x, start)
        predicted = toward(x, denoised, start, stop)
        if stop.sigma == 0:
            return Step(predicted, denoised, None)
        again = denoise(predicted, stop)
        area = (stop.alpha * start.sigma - start.alpha * stop.sigma) / (2 * stop.sigma)
        if self.variable == "flow" or start.alpha == 0:
            weight = area * (stop.alpha + stop.sigma) / (start.alpha + start.sigma)
        else:
            weight = area * stop.alpha / start.alpha
        return Step(predicted.add(again - denoised, alpha=weight), denoised, None)
