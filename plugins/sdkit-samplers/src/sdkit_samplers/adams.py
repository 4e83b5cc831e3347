"""Multistep methods of the noise form: ``x' / alpha' = x / alpha + integral of e ds``.

The noise of the last predictions is taken as a polynomial (in ``s`` or in ``log s``) and integrated exactly, or weighed
with the fixed coefficients of Adams and Bashforth, which are right on evenly spaced levels only. The sum of the weights
is ``s' - s`` always, so ``x'`` is Euler's step plus weighted differences of noise. Where ``s`` is infinite (alpha = 0)
the step is Euler's. Notation: `sdkit_samplers.moves`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits
from sdkit_samplers.moves import Past, exponential_moments, fitted, noise_of, toward

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Deis", "Ipndm", "Lms", "Plms"]

# Adams and Bashforth on evenly spaced nodes, newest first (Bashforth and Adams 1883; Hairer et al. 1993, III.1).
FIXED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _order(value: int) -> None:
    if isinstance(value, bool) or value not in (1, 2, 3, 4):
        raise ParameterError(f"The order must be 1, 2, 3 or 4, not {value!r}.")


def polynomial_weights(nodes: Sequence[float], start: float, stop: float) -> list[float]:
    """Integrals from ``start`` to ``stop`` of the Lagrange polynomials through ``nodes``.

    In the variable ``(v - start) / (stop - start)``, where the moments are ``1 / (k + 1)`` and well scaled.
    """
    width = stop - start
    scaled = [(node - start) / width for node in nodes]
    return [weight * width for weight in fitted(scaled, [1 / (k + 1) for k in range(len(nodes))])]


def logarithmic_weights(nodes: Sequence[float], start: float, stop: float) -> list[float]:
    """Integrals over ``s`` from ``e^start`` to ``e^stop`` of the Lagrange polynomials in ``log s`` through ``nodes``.

    ``ds = e^v dv`` with ``v = log s``, and ``s`` falls. In ``u = (v - stop) / (start - stop)``, which goes from 1 to 0,
    the moments are those of the exponential, and the weights do not suffer from the closed form's cancellation.
    """
    width = start - stop
    scaled = [(node - stop) / width for node in nodes]
    return [-math.exp(start) * weight for weight in fitted(scaled, exponential_moments(len(nodes), width))]


def _advance(
    x: Tensor,
    denoised: Tensor,
    eps: Tensor,
    start: Level,
    stop: Level,
    past: Past,
    order: int,
    weigh: Callable[[Sequence[float]], list[float]],
) -> Step[Past]:
    """Euler's step plus the weighted differences of noise, ``weigh`` given the nodes as values of ``-L = log s``."""
    weights: list[float] = []
    if past.values and math.isfinite(start.log_snr):
        _, *weights = weigh([-start.log_snr, *(-log_snr for log_snr in past.log_snrs)])
    # the weights sum to s' - s, so the newest noise gets what Euler's step gives it, less what the others get
    ratio = (stop.sigma - stop.alpha * math.fsum(weights)) / start.sigma
    moved = (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)
    for weight, old in zip(weights, past.values, strict=False):
        moved.add_(old, alpha=stop.alpha * weight)
    return Step(moved, denoised, past.push(eps, start.log_snr, order - 1))


@frozen
class Lms:
    """Linear multistep: the noise as a polynomial in ``s`` through the last ``order`` predictions (Adams-Bashforth).

    Sources: Crowson 2022 (k-diffusion's sample_lms); Hairer, Norsett, Wanner 1993, III.5 (variable steps).

    Attributes:
        order: 1 to 4.
    """

    order: int = field(default=4)

    def __attrs_post_init__(self) -> None:
        _order(self.order)

    @property
    def traits(self) -> Traits:
        """Of its order; the first step is Euler's."""
        return Traits(self.order, 1 if self.order > 1 else None, False, True, 1)

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

        def weigh(logs: Sequence[float]) -> list[float]:
            return polynomial_weights([math.exp(v) for v in logs], math.exp(logs[0]), stop.noise_to_signal)

        return _advance(x, denoised, noise_of(x, denoised, start), start, stop, state, self.order, weigh)


@frozen
class Deis:
    """DEIS with the polynomial in ``log s``: the noise of the last ``order`` predictions, integrated exactly.

    The step to clean is Euler's (``log 0`` is infinite).

    Source: Zhang and Chen 2022, https://arxiv.org/abs/2204.13902 (tAB-DEIS; log-rho in appendix).

    Attributes:
        order: 1 to 4.
    """

    order: int = field(default=3)

    def __attrs_post_init__(self) -> None:
        _order(self.order)

    @property
    def traits(self) -> Traits:
        """Of its order; the first step is Euler's."""
        return Traits(self.order, 1 if self.order > 1 else None, False, True, 1)

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
        past = state if stop.sigma > 0 else Past()

        def weigh(logs: Sequence[float]) -> list[float]:
            return logarithmic_weights(logs, logs[0], -stop.log_snr)

        return _advance(x, denoised, eps, start, stop, past, self.order, weigh)


@frozen
class Ipndm:
    """iPNDM: fixed Adams-Bashforth weights on the noise, whatever the spacing, with lower orders at the start.

    On levels that are not evenly spaced in ``s`` the weights are not exact and the method is of order 1, with a small
    constant; `Lms` has the exact weights. The step to clean is extrapolated like the others (ComfyUI takes the last
    prediction there).

    Source: Zhang and Chen 2022, https://arxiv.org/abs/2204.13902, section 3.3 (improved PNDM).

    Attributes:
        order: 1 to 4, number of predictions used.
    """

    order: int = field(default=4)

    def __attrs_post_init__(self) -> None:
        _order(self.order)

    @property
    def traits(self) -> Traits:
        """Order 1 in general."""
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

        def weigh(logs: Sequence[float]) -> list[float]:
            return [weight * (stop.noise_to_signal - start.noise_to_signal) for weight in FIXED[len(logs) - 1]]

        return _advance(x, denoised, noise_of(x, denoised, start), start, stop, state, self.order, weigh)


@frozen
class Plms:
    """PLMS, the sampler Stable Diffusion was released with: as `Ipndm` of order 4, with Heun's method as first step.

    The first step costs two evaluations. diffusers calls it PNDM with ``skip_prk_steps``.

    Source: Liu et al. 2022, https://arxiv.org/abs/2202.09778; start: Rombach et al. 2022 (their released sampler).
    """

    @property
    def traits(self) -> Traits:
        """Order 1 in general, as the weights are fixed."""
        return Traits(1, None, False, True, 2)

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
        """One evaluation at ``start``; on the first step another at ``stop``, unless that is clean."""
        denoised = denoise(x, start)
        eps = noise_of(x, denoised, start)
        if not state.values and math.isfinite(start.log_snr) and stop.sigma > 0:
            predicted = toward(x, denoised, start, stop)
            again = noise_of(predicted, denoise(predicted, stop), stop)
            half = stop.alpha * (stop.noise_to_signal - start.noise_to_signal) / 2
            moved = predicted.add(again, alpha=half).add_(eps, alpha=-half)
            return Step(moved, denoised, state.push(eps, start.log_snr, 3))

        def weigh(logs: Sequence[float]) -> list[float]:
            return [weight * (stop.noise_to_signal - start.noise_to_signal) for weight in FIXED[len(logs) - 1]]

        return _advance(x, denoised, eps, start, stop, state, 4, weigh)
