"""What the solvers of this package share: moves between levels, and the integrals they are made of.

Notation, here and in every file of this package. Plain letters belong to the start of a step, primed ones to its end.
``x = alpha x0 + sigma noise``; ``D`` is the predicted clean latent, ``e = (x - alpha D) / sigma`` the noise that goes
with it, ``s = sigma / alpha``, ``L = log(alpha / sigma)``, ``h = L' - L``. The probability-flow equation has two forms:

- noise form, ``d(x / alpha) = e ds``, singular where alpha is 0;
- data form, ``d(x / sigma) = D d(alpha / sigma)``, singular where sigma is 0.

With the noise of a reverse-time SDE, ``eta`` times that of the ordinary one (0 is the equation without noise), the data
form integrates to ``x' = (sigma' / sigma) e^(-eta h) x + alpha' integral + sigma' sqrt(1 - e^(-2 eta h)) z``, where
``integral`` is that of ``(1 + eta) e^(-(1 + eta)(h - tau)) D(tau)`` over ``tau`` from 0 to h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from sdkit import Level, ParameterError, Traits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Past",
    "add",
    "ancestral",
    "check_range",
    "data_weights",
    "decay",
    "exponential_integral",
    "exponential_moments",
    "exponential_step",
    "fitted",
    "noise_of",
    "sde_traits",
    "step_size",
    "toward",
]


def check_range(what: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises `ParameterError` unless ``low <= value <= high`` and value is finite."""
    if not (math.isfinite(value) and low <= value <= high):
        allowed = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ParameterError(f"{what} must be {allowed}, not {value}.")


def sde_traits(order: int, startup_order: int | None, evaluations: int | None, eta: float, s_noise: float) -> Traits:
    """Traits of a method whose noise can be switched off: by ``eta``, then it solves the equation without noise.

    With noise it is promised weak order 1. Without noise, or with more or less of it than the SDE has, an SDE's drift
    converges to nothing: then no order is promised, and without noise not even a point mass is certain.
    """
    if eta == 0:
        return Traits(order, startup_order, False, True, evaluations)
    return Traits(1 if s_noise == 1 else 0, None, s_noise > 0, s_noise > 0, evaluations)


def toward(x: Tensor, denoised: Tensor, start: Level, stop: Level) -> Tensor:
    """``alpha' D + sigma' e``: Euler's step of either form, without a division by alpha."""
    ratio = stop.sigma / start.sigma
    return (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)


def noise_of(x: Tensor, denoised: Tensor, level: Level) -> Tensor:
    """``e = (x - alpha D) / sigma``."""
    return x.sub(denoised, alpha=level.alpha).div_(level.sigma)


def add(x: Tensor, *terms: tuple[float, Tensor]) -> Tensor:
    """``x`` plus the weighted terms, in a tensor of its own; terms of weight 0 cost nothing."""
    total = x
    for weight, term in terms:
        if weight:
            total = total.add(term, alpha=weight) if total is x else total.add_(term, alpha=weight)
    return total


def step_size(start: Level, stop: Level) -> float:
    """``h``; infinite where the start has no signal or the end no noise."""
    return stop.log_snr - start.log_snr


def decay(h: float, rate: float) -> float:
    """``e^(-rate h)`` for ``rate >= 0``, which is 1 at rate 0 even for an infinite step."""
    return 1.0 if rate == 0 else math.exp(-rate * h)


def exponential_integral(k: int, h: float) -> float:
    """``integral of e^(-(h - tau)) (tau / h)^k`` over tau from 0 to h, accurate for every h > 0."""
    return exponential_moments(k + 1, h)[k]


def exponential_moments(count: int, h: float) -> list[float]:
    """`exponential_integral` for k from 0 to ``count - 1``; the first is ``1 - e^(-h)``.

    The recurrence ``I_k = 1 - (k / h) I_(k-1)`` loses digits upward where h is small. There the last one comes from its
    series ``h k! sum_j (-h)^j / (k + j + 1)!``, and the others from the recurrence downward, which gains digits.
    """
    moments = [-math.expm1(-h)] * count
    if math.isinf(h):
        return [1.0] * count
    if h >= 2:
        for k in range(1, count):
            moments[k] = 1 - k / h * moments[k - 1]
    elif count > 1:
        last = count - 1
        term = total = h / count
        j = 0
        while abs(term) > 1e-18 * abs(total):
            j += 1
            term *= -h / (count + j)
            total += term
        moments[last] = total
        for k in range(last, 1, -1):
            moments[k - 1] = (1 - moments[k]) * h / k
    return moments


def data_weights(nodes: Sequence[float], h: float, *, stop: float = 1.0) -> list[float]:
    """Weights of predictions at ``tau / h = nodes`` that integrate polynomials through them exactly.

    The integral is that of ``e^(-(g - tau))`` times the polynomial over tau from 0 to ``g = stop * h``.
    """
    moments = exponential_moments(len(nodes), stop * h)
    return fitted(nodes, [moment * stop**k for k, moment in enumerate(moments)])


def fitted(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights with ``sum_j weight_j node_j^k = moment_k`` for k from 0: quadrature exact on polynomials.

    Source: Bjorck and Pereyra 1970, https://doi.org/10.1090/S0025-5718-1970-0290541-1 (dual system); on host numbers,
    since a library call for two to five of them costs more than all the rest of a step.
    """
    weights, count = list(moments), len(nodes)
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            weights[i] -= nodes[k] * weights[i - 1]
    for k in range(count - 2, -1, -1):
        for i in range(k + 1, count):
            weights[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, count - 1):
            weights[i] -= weights[i + 1]
    return weights


def exponential_step(
    x: Tensor,
    start: Level,
    stop: Level,
    eta: float,
    terms: Sequence[tuple[float, Tensor]],
) -> Tensor:
    """``(sigma' / sigma) e^(-eta h) x + alpha' (sum of weight * prediction)``: the data form without its noise."""
    kept = stop.sigma / start.sigma
    moved = x * (kept if eta == 0 else kept * decay(step_size(start, stop), eta))
    for weight, denoised in terms:
        moved.add_(denoised, alpha=stop.alpha * weight)
    return moved


def ancestral(start: Level, stop: Level, eta: float) -> tuple[float, float]:
    """(down, up): deterministic and fresh noise of an ancestral step, as factors of a latent in the scale of ``stop``.

    ``down^2 + up^2 = sigma'^2``, and ``up = eta sigma' sqrt(1 - (s' / s)^2)`` unless that exceeds ``sigma'``.
    """
    if stop.sigma == 0 or eta == 0:
        return stop.sigma, 0.0
    up = min(stop.sigma, eta * stop.sigma * math.sqrt(-math.expm1(-2 * step_size(start, stop))))
    return math.sqrt((stop.sigma - up) * (stop.sigma + up)), up


@frozen
class Past:
    """What a multistep method remembers, newest first.

    Attributes:
        values: Predictions (data or noise) of earlier steps.
        log_snrs: Where they were made.
    """

    values: tuple[Tensor, ...] = ()
    log_snrs: tuple[float, ...] = ()

    def push(self, value: Tensor, log_snr: float, keep: int) -> Past:
        """With one more in front, at most ``keep`` in all; one made where there is no signal clears what was before.

        A prediction at ``L = -inf`` is infinitely far from every later step and carries no weight.
        """
        if math.isinf(log_snr) or keep == 0:
            return Past()
        return Past((value, *self.values)[:keep], (log_snr, *self.log_snrs)[:keep])
