"""What a network is trained to answer, and how far off it is.

Notation: ``x = alpha x0 + sigma noise`` at each item's own level; ``SNR = (alpha / sigma)^2``; skip, out, in_ and time
are those of `sdkit.Scaling`, so ``x0' = skip x + out network(in_ x, time)``. Everything comes from the same
parametrization that sampling uses: what is trained is what is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from sdkit import ContractError, Level, ParameterError, Parametrization

__all__ = ["MinSnr", "Plain", "Weighting", "losses", "noised", "targets"]


class Weighting(Protocol):
    """How much an item counts, by its level."""

    def __call__(self, level: Level, parametrization: Parametrization, /) -> float:
        """Factor of the mean square of the network's error at ``level``."""
        ...


@frozen
class Plain:
    """Every level counts 1: the mean square of what the network itself predicts."""

    def __call__(self, level: Level, parametrization: Parametrization, /) -> float:
        """1."""
        return 1.0


@frozen
class MinSnr:
    """``min(SNR, gamma)`` times the mean square error of ``x0``, whatever the network predicts.

    The error of ``x0`` is ``out`` times the network's, so its weight is ``min(SNR, gamma) out^2``: for noise
    ``min(SNR, gamma) / SNR``, for velocity ``min(SNR, gamma) / (SNR + 1)``, as in the paper, and for a flow
    accordingly.

    Source: Hang et al. 2023, https://arxiv.org/abs/2303.09556, section 3.4.

    Attributes:
        gamma: Above 0; 5 is the paper's.
    """

    gamma: float = field(default=5.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ParameterError(f"Min-SNR needs a gamma above 0 (5 is usual), not {self.gamma}.")

    def __call__(self, level: Level, parametrization: Parametrization, /) -> float:
        """The factor.

        Raises:
            LevelError: the parametrization is undefined at ``level``.
        """
        snr = math.inf if level.sigma == 0 else (level.alpha / level.sigma) ** 2
        return min(snr, self.gamma) * parametrization(level).out ** 2


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One number per item, broadcastable to ``like``."""
    if len(values) != like.shape[0]:
        raise ContractError(f"There are {len(values)} levels for a batch of {like.shape[0]}; give one per item.")
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def noised(x0: Tensor, noise: Tensor, levels: Sequence[Level]) -> Tensor:
    """``alpha x0 + sigma noise``, each item at its own level.

    Args:
        x0: Clean latents (batch, channels, *space).
        noise: Standard normal, of the same shape.
        levels: One per item.

    Raises:
        ContractError: there are not as many levels as items.
    """
    return x0 * _column([level.alpha for level in levels], x0) + noise * _column([level.sigma for level in levels], x0)


def targets(parametrization: Parametrization, x0: Tensor, noise: Tensor, levels: Sequence[Level]) -> Tensor:
    """What the network should answer, each item at its own level; the shape of ``x0``."""
    rows = [parametrization.target(x0[k : k + 1], noise[k : k + 1], level) for k, level in enumerate(levels)]
    return torch.cat(rows)


def losses(
    network: Callable[[Tensor, Tensor, Any], Tensor],
    parametrization: Parametrization,
    x0: Tensor,
    noise: Tensor,
    levels: Sequence[Level],
    cond: Any,
    *,
    weighting: Weighting = Plain(),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weighted mean square error of every item, (batch,) float; its mean is what is minimised.

    Args:
        network: ``(x, time, cond) -> Tensor``, as inside `sdkit.NetworkDenoiser`.
        parametrization: What it predicts.
        x0: Clean latents (batch, channels, *space).
        noise: Standard normal, of the same shape.
        levels: One per item.
        cond: What the network is conditioned on.
        weighting: How much a level counts.
        dtype: Precision of the network's input, or None for that of ``x0``; the error is taken in that of ``x0``.

    Raises:
        LevelError: the parametrization is undefined at a level.
        ContractError: the network answered with another shape, or there are not as many levels as items.
    """
    scalings = [parametrization(level) for level in levels]
    given = noised(x0, noise, levels) * _column([scaling.in_ for scaling in scalings], x0)
    time = torch.tensor([scaling.time for scaling in scalings], dtype=x0.dtype, device=x0.device)
    predicted = network(given if dtype is None else given.to(dtype), time, cond).to(x0.dtype)
    wanted = targets(parametrization, x0, noise, levels)
    if predicted.shape != wanted.shape:
        raise ContractError(
            f"The network answered with shape {tuple(predicted.shape)} for latents of shape {tuple(x0.shape)}; it must "
            "keep the shape."
        )
    weights = torch.tensor([weighting(level, parametrization) for level in levels], dtype=x0.dtype, device=x0.device)
    return (predicted - wanted).square().flatten(1).mean(1) * weights
