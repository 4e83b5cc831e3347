"""SA-Solver: stochastic Adams predictor and corrector. Notation: `sdkit_samplers.moves`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits
from sdkit_samplers.moves import (
    Past,
    check_range,
    data_weights,
    decay,
    exponential_integral,
    exponential_step,
    step_size,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SASolver", "SAState"]


@frozen
class SAState:
    """What SA-Solver remembers.

    Attributes:
        past: Predictions of earlier steps.
        x: The latent the last step started from (corrected), or None before the first.
        start: Where that was.
        fresh: The noise the last step added, already scaled, or None.
    """

    past: Past = field(factory=Past)
    x: Tensor | None = None
    start: Level | None = None
    fresh: Tensor | None = None


@frozen
class SASolver:
    """Adams-Bashforth predictor and Adams-Moulton corrector for the SDE of strength ``tau``.

    The exponential is integrated exactly against the polynomial through the last predictions; the corrector does the
    last step again with the prediction made at its end, on the same noise, at no further evaluation. ``tau`` is that
    of the authors: 0 is the equation without noise, 1 the reverse-time SDE. It is the same on all levels
    here; diffusers and ComfyUI use it on the middle 60 % of the levels only, and diffusers counts the new prediction
    in ``corrector_order``.

    Source: Xue et al. 2023, https://arxiv.org/abs/2309.05019 (NeurIPS 2023), algorithm 1.

    Attributes:
        predictor: Number of predictions the predictor uses, 1 to 4.
        corrector: Number of past predictions the corrector uses besides the new one, 0 (no corrector) to 4.
        tau: Strength of the noise, 0 upward.
    """

    predictor: int = field(default=3)
    corrector: int = field(default=3)
    tau: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        for name, value, low in (("predictor", self.predictor, 1), ("corrector", self.corrector, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 4:
                raise ParameterError(f"{name} must be a whole number from {low} to 4, not {value!r}.")
        check_range("tau", self.tau, 0)

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, that of the predictor without."""
        order = 1 if self.tau > 0 else self.predictor
        return Traits(order, 1 if order > 1 else None, self.tau > 0, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> SAState:
        """No past."""
        return SAState()

    def step(
        self,
        denoise: Callable[[Tensor, Level], Tensor],
        x: Tensor,
        start: Level,
        stop: Level,
        state: SAState,
        noise: Noise,
        /,
    ) -> Step[SAState]:
        """One evaluation at ``start``; noise unless ``stop`` is clean or tau is 0."""
        denoised = denoise(x, start)
        if self.corrector and state.x is not None and state.start is not None and state.past.values:
            x = self._corrected(state, start, denoised)
        past = state.past.push(denoised, start.log_snr, max(self.predictor, self.corrector))
        eta, h = self.tau**2, step_size(start, stop)
        stretched = (1 + eta) * h
        if math.isinf(h):
            terms = [(exponential_integral(0, stretched), denoised)]
        else:
            used = past.values[: self.predictor]
            nodes = [(log_snr - start.log_snr) / h for log_snr in past.log_snrs[: self.predictor]]
            terms = list(zip(data_weights(nodes, stretched), used, strict=True))
        moved = exponential_step(x, start, stop, eta, terms)
        fresh = None
        if eta > 0 and stop.sigma > 0:
            fresh = noise(x, start, stop) * (stop.sigma * math.sqrt(1 - decay(h, 2 * eta)))
            moved = moved.add_(fresh)
        return Step(moved, denoised, SAState(past, x, start, fresh))

    def _corrected(self, state: SAState, stop: Level, newest: Tensor) -> Tensor:
        assert state.x is not None and state.start is not None
        eta, h = self.tau**2, step_size(state.start, stop)
        used = state.past.values[: self.corrector]
        nodes = [(log_snr - state.start.log_snr) / h for log_snr in state.past.log_snrs[: self.corrector]]
        weights = data_weights([1.0, *nodes], (1 + eta) * h)
        moved = exponential_step(state.x, state.start, stop, eta, list(zip(weights, (newest, *used), strict=True)))
        return moved if state.fresh is None else moved.add_(state.fresh)
