"""Multistep methods of the data form: the predictions of earlier steps as a polynomial in ``L``.

``D`` over a step is taken as the polynomial through the last predictions, and the exponential is integrated exactly
(an exponential Adams-Bashforth method). Notation: `sdkit_samplers.moves`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits
from sdkit_samplers.moves import (
    Past,
    ancestral,
    check_range,
    data_weights,
    decay,
    exponential_step,
    sde_traits,
    step_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["DpmPP2MSde", "DpmPP3M", "DpmPP3MSde", "ResMultistep"]


def _advance(
    x: Tensor,
    denoised: Tensor,
    start: Level,
    stop: Level,
    past: Past,
    order: int,
    eta: float,
    s_noise: float,
    noise: Noise,
    *,
    midpoint: bool = False,
) -> Step[Past]:
    """One step of order up to ``order``, as far as there is a past; first order to clean and from no signal."""
    h = step_size(start, stop)
    stretched = (1 + eta) * h
    usable = min(order - 1, len(past.values)) if math.isfinite(h) else 0
    values = (denoised, *past.values[:usable])
    nodes = [0.0, *((log_snr - start.log_snr) / h for log_snr in past.log_snrs[:usable])]
    if usable == 0:
        weights = [-math.expm1(-stretched)]
    elif midpoint:
        whole = -math.expm1(-stretched)
        slope = whole / (2 * -nodes[1])
        weights = [whole + slope, -slope]
    else:
        weights = data_weights(nodes, stretched)
    moved = exponential_step(x, start, stop, eta, list(zip(weights, values, strict=True)))
    if eta > 0 and stop.sigma > 0 and s_noise > 0:
        fresh = stop.sigma * math.sqrt(1 - decay(h, 2 * eta)) * s_noise
        moved = moved.add_(noise(x, start, stop), alpha=fresh)
    return Step(moved, denoised, past.push(denoised, start.log_snr, order - 1))


@frozen
class DpmPP2MSde:
    """DPM-Solver++(2M) for the SDE: second order in the drift, fresh noise in every step.

    ``solver="midpoint"`` weighs the difference of the last two predictions with ``(1 - e^(-(1 + eta) h)) / 2``,
    ``"heun"`` with its exact integral. ``eta = 0`` with ``"midpoint"`` is DPM-Solver++(2M).

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, and the implementation in k-diffusion (Crowson 2022).

    Attributes:
        eta: Noise of the SDE, 0 (none) upward; 1 is the reverse-time SDE.
        s_noise: Factor of the noise; only 1 keeps the right variance.
        solver: ``"midpoint"`` or ``"heun"``.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)
    solver: Literal["midpoint", "heun"] = "midpoint"

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0)
        check_range("s_noise", self.s_noise, 0)
        if self.solver not in ("midpoint", "heun"):
            raise ParameterError(f"The solver is 'midpoint' or 'heun', not {self.solver!r}.")

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise: the noise of a step is not seen by its prediction."""
        return sde_traits(2, 1, 1, self.eta, self.s_noise)

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
        midpoint = self.solver == "midpoint"
        return _advance(x, denoised, start, stop, state, 2, self.eta, self.s_noise, noise, midpoint=midpoint)


@frozen
class DpmPP3MSde:
    """DPM-Solver++(3M) for the SDE, with the quadratic through the last three predictions integrated exactly.

    The published code has another coefficient of the quadratic: k-diffusion half of it, with which the method is of
    second order without noise; diffusers one whose bracket has a wrong sign, which does not vanish as steps become
    short. ``eta = 0`` is `DpmPP3M` (of which diffusers has half the coefficient, too).

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095; exponential Adams methods: Hochbruck and Ostermann 2010,
    https://doi.org/10.1017/S0962492910000048, section 2.5.

    Attributes:
        eta: Noise of the SDE, 0 upward.
        s_noise: Factor of the noise; only 1 keeps the right variance.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0)
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, 3 without."""
        return sde_traits(3, 1, 1, self.eta, self.s_noise)

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
        return _advance(x, denoise(x, start), start, stop, state, 3, self.eta, self.s_noise, noise)


@frozen
class DpmPP3M:
    """DPM-Solver++(3M): the quadratic through the last three predictions, integrated exactly; order 3.

    Source: as `DpmPP3MSde`.
    """

    @property
    def traits(self) -> Traits:
        """Order 3; the first step is of order 1."""
        return Traits(3, 1, False, True, 1)

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
        return _advance(x, denoise(x, start), start, stop, state, 3, 0.0, 0.0, noise)


@frozen
class ResMultistep:
    """RES 2M: the line through the last two predictions, integrated exactly; with ``eta``, ancestral noise.

    Source: Zhang et al. 2023, https://arxiv.org/abs/2308.02157 (refined exponential solver), in its multistep form.

    Attributes:
        eta: Share of ancestral noise, 0 to 1.
        s_noise: Factor of the noise.
    """

    eta: float = field(default=0.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0, 1)
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Order 2 without noise, weakly 1 with it."""
        return sde_traits(2, 1, 1, self.eta, self.s_noise)

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
        down, up = ancestral(start, stop, self.eta)
        if up == 0:
            return _advance(x, denoise(x, start), start, stop, state, 2, 0.0, 0.0, noise)
        # the deterministic part ends at less noise than the grid's level, in the same scale of the picture
        lower = Level(stop.t, stop.alpha, down, interpolated=True)
        step = _advance(x, denoise(x, start), start, lower, state, 2, 0.0, 0.0, noise)
        if self.s_noise:
            step.x.add_(noise(x, start, stop), alpha=up * self.s_noise)
        return step
