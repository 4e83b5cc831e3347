"""UniPC: a predictor and a corrector that share one evaluation per step.

Notation: `sdkit_samplers.moves`; ``D_i`` are predictions at earlier steps, ``r_i = (L_i - L) / h`` (negative), and
``B`` is ``h`` (bh1) or ``e^h - 1`` in the sign convention of the data form, ``1 - e^(-h)`` (bh2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits
from sdkit_samplers.moves import Past, exponential_moments, exponential_step, fitted, step_size, toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UniPC", "UniPCState"]


@frozen
class UniPCState:
    """What UniPC remembers.

    Attributes:
        past: Predictions of earlier steps.
        x: The latent the last step started from (corrected), or None before the first.
        start: Where that was.
    """

    past: Past = field(factory=Past)
    x: Tensor | None = None
    start: Level | None = None


def _weights(ratios: Sequence[float], h: float, variant: str) -> list[float]:
    """Weights of ``(D_i - D) / r_i`` for nodes ``ratios``, the sum being ``B`` times UniPC's rho.

    Solves ``sum_i rho_i r_i^(k-1) = k! phi_(k+1)(h) h / B`` for k = 1..p, where ``k! phi h`` is the integral of
    ``(tau / h)^k`` against the exponential. With one unknown rho is 1/2 (UniPC, appendix), exact to its order.
    """
    if len(ratios) == 1:
        return [(h if variant == "bh1" else -math.expm1(-h)) / 2]
    return fitted(ratios, exponential_moments(len(ratios) + 1, h)[1:])


@frozen
class UniPC:
    """UniPC-p in the data form: predictor of order p, corrected with the prediction that the next step makes anyway.

    The corrector raises the order by one, at no evaluation: the latent a step starts from is mended after ``D`` has
    been predicted there. The last step is not corrected. Steps to clean and from no signal are Euler's. The variants
    bh1 and bh2 differ only where one unknown is left (order 2 predictor, order 1 corrector); with more, ``B`` cancels.

    Source: Zhao et al. 2023, https://arxiv.org/abs/2302.04867.

    Attributes:
        order: Order of the predictor, 1 to 4.
        variant: ``"bh1"`` or ``"bh2"``.
        corrector: Whether to correct.
    """

    order: int = field(default=2)
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True

    def __attrs_post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in (1, 2, 3, 4):
            raise ParameterError(f"The order must be 1, 2, 3 or 4, not {self.order!r}.")
        if self.variant not in ("bh1", "bh2"):
            raise ParameterError(f"The variant is 'bh1' or 'bh2', not {self.variant!r}.")
        if not isinstance(self.corrector, bool):
            raise ParameterError(f"corrector is True or False, not {self.corrector!r}.")

    @property
    def traits(self) -> Traits:
        """Promised is p, and 1 at the start; the corrector gives p + 1 on all steps but the last."""
        return Traits(self.order, 1 if self.order > 1 else None, False, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> UniPCState:
        """No past."""
        return UniPCState()

    def step(
        self,
        denoise: Callable[[Tensor, Level], Tensor],
        x: Tensor,
        start: Level,
        stop: Level,
        state: UniPCState,
        noise: Noise,
        /,
    ) -> Step[UniPCState]:
        """One evaluation at ``start``."""
        denoised = denoise(x, start)
        if self.corrector and state.x is not None and state.start is not None and state.past.values:
            x = self._corrected(state.x, state.start, start, state.past, denoised)
        past = state.past.push(denoised, start.log_snr, self.order)
        after = UniPCState(past, x, start)
        h = step_size(start, stop)
        if math.isinf(h):
            return Step(toward(x, denoised, start, stop), denoised, after)
        values, ratios = past.values[1 : self.order], _ratios(past, start, h)[: self.order - 1]
        terms = _terms(denoised, values, ratios, _weights(ratios, h, self.variant) if ratios else [], h)
        return Step(exponential_step(x, start, stop, 0.0, terms), denoised, after)

    def _corrected(self, x: Tensor, start: Level, stop: Level, past: Past, newest: Tensor) -> Tensor:
        """The last step again, from ``start`` to ``stop``, with the prediction ``newest`` made at its end."""
        h = step_size(start, stop)
        if math.isinf(h):
            return x
        values, ratios = (*past.values[1 : self.order], newest), [*_ratios(past, start, h)[: self.order - 1], 1.0]
        terms = _terms(past.values[0], values, ratios, _weights(ratios, h, self.variant), h)
        return exponential_step(x, start, stop, 0.0, terms)


def _ratios(past: Past, start: Level, h: float) -> list[float]:
    return [(log_snr - start.log_snr) / h for log_snr in past.log_snrs[1:]]


def _terms(
    base: Tensor, values: Sequence[Tensor], ratios: Sequence[float], weights: Sequence[float], h: float
) -> list[tuple[float, Tensor]]:
    """``(1 - e^(-h)) D + sum of weight (D_i - D) / r_i``, as one weight per prediction."""
    scaled = [weight / ratio for weight, ratio in zip(weights, ratios, strict=True)]
    return [(-math.expm1(-h) - math.fsum(scaled), base), *zip(scaled, values, strict=True)]
