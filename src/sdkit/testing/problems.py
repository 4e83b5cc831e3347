"""Problems whose answers are known: data with an exact denoiser and an exact probability flow.

Notation: `sdkit.levels`. With ``x = alpha x0 + sigma noise``, normal data N(m, C) are N(alpha m, alpha^2 C + sigma^2 I)
at a level; in one dimension the probability flow keeps the share of the distribution that lies below a point (the
equation's solution is the monotone map between the two distributions).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from sdkit.levels import Level

__all__ = ["Gaussian", "Mixture", "PointMass", "Problem"]


class Problem(Protocol):
    """Data, as their denoiser and their flow; latents are (batch, channels, *space)."""

    def __call__(self, x: Tensor, level: Level, /) -> Tensor:
        """``E[x0 | x]``, exactly."""
        ...

    def start(self, level: Level, normal: Tensor, /) -> Tensor:
        """Latents at ``level`` made from standard normal numbers of the latents' shape."""
        ...

    def flow(self, x: Tensor, start: Level, stop: Level, /) -> Tensor:
        """Where the probability flow takes ``x``, exactly."""
        ...


@frozen(eq=False)
class PointMass:
    """Data that are one point each: ``E[x0 | x]`` is that point.

    Attributes:
        point: (batch, channels, *space), or broadcastable to it.
    """

    point: Tensor

    def __call__(self, x: Tensor, level: Level, /) -> Tensor:
        """The point."""
        return self.point.to(x).expand_as(x).clone()

    def start(self, level: Level, normal: Tensor, /) -> Tensor:
        """``alpha point + sigma normal``."""
        return self.point.to(normal) * level.alpha + normal * level.sigma

    def flow(self, x: Tensor, start: Level, stop: Level, /) -> Tensor:
        """Along the noise of ``x``."""
        point = self.point.to(x)
        return point * stop.alpha + (x - point * start.alpha) * (stop.sigma / start.sigma)


@frozen(eq=False)
class Gaussian:
    """Normal data with any covariance over the channels, the same at every place.

    Attributes:
        mean: (channels,) float64.
        covariance: (channels, channels) float64, symmetric and positive semi-definite.
    """

    mean: Tensor
    covariance: Tensor
    _values: Tensor = field(init=False, repr=False)
    _vectors: Tensor = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        values, vectors = torch.linalg.eigh(self.covariance.double())
        object.__setattr__(self, "_values", values.clamp_min(0))
        object.__setattr__(self, "_vectors", vectors)

    @classmethod
    def isotropic(cls, channels: int, mean: float = 0.3, scale: float = 0.5) -> Gaussian:
        """Independent channels with one mean and standard deviation."""
        eye = torch.eye(channels, dtype=torch.float64)
        return cls(torch.full((channels,), mean, dtype=torch.float64), eye * scale**2)

    def _along(self, x: Tensor, factors: Tensor) -> Tensor:
        """``V diag(factors) V^T`` applied to the channels."""
        matrix = (self._vectors * factors) @ self._vectors.T
        return torch.einsum("ij,bj...->bi...", matrix.to(x), x)

    def _mean(self, x: Tensor) -> Tensor:
        return self.mean.to(x).reshape(1, -1, *[1] * (x.ndim - 2))

    def _variances(self, level: Level) -> Tensor:
        return self._values * level.alpha**2 + level.sigma**2

    def __call__(self, x: Tensor, level: Level, /) -> Tensor:
        """``m + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha m)``."""
        mean = self._mean(x)
        return mean + self._along(x - mean * level.alpha, self._values * level.alpha / self._variances(level))

    def start(self, level: Level, normal: Tensor, /) -> Tensor:
        """``alpha m + (alpha^2 C + sigma^2)^(1/2) normal``."""
        return self._mean(normal) * level.alpha + self._along(normal, self._variances(level).sqrt())

    def flow(self, x: Tensor, start: Level, stop: Level, /) -> Tensor:
        """Each principal direction shrinks with its standard deviation."""
        factors = (self._variances(stop) / self._variances(start)).sqrt()
        return self._mean(x) * stop.alpha + self._along(x - self._mean(x) * start.alpha, factors)


@frozen
class Mixture:
    """Independent elements, each of a mixture of two normals, so that ``E[x0 | x]`` is not linear.

    Its flow is found by bisection on the cumulative distribution, to the last digits of float64.

    Attributes:
        weight: Share of the first normal, in (0, 1).
        means: Of the two normals.
        scales: Their standard deviations, above 0.
    """

    weight: float = 0.35
    means: tuple[float, float] = (-0.8, 0.6)
    scales: tuple[float, float] = (0.35, 0.5)

    def _parts(self, level: Level) -> list[tuple[float, float, float, float]]:
        shares = (self.weight, 1 - self.weight)
        parts = zip(shares, self.means, self.scales, strict=True)
        return [(share, mean, scale, math.hypot(level.alpha * scale, level.sigma)) for share, mean, scale in parts]

    def __call__(self, x: Tensor, level: Level, /) -> Tensor:
        """The two normals' predictions, weighed by how likely each is."""
        logs, predictions = [], []
        for share, mean, scale, root in self._parts(level):
            away = x - level.alpha * mean
            logs.append(math.log(share / root) - 0.5 * (away / root) ** 2)
            predictions.append(mean + away * (level.alpha * scale**2 / root**2))
        return (torch.softmax(torch.stack(logs), dim=0) * torch.stack(predictions)).sum(0)

    def below(self, x: Tensor, level: Level) -> Tensor:
        """The share of the distribution at ``level`` that lies below ``x``."""
        parts = self._parts(level)
        return torch.stack(
            [share * torch.special.ndtr((x - level.alpha * mean) / r) for share, mean, _, r in parts]
        ).sum(0)

    def _quantile(self, share: Tensor, level: Level) -> Tensor:
        reach = 40 * max(root for *_, root in self._parts(level))
        low, high = torch.full_like(share, -reach), torch.full_like(share, reach)
        for _ in range(80):
            middle = (low + high) / 2
            under = self.below(middle, level) < share
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def start(self, level: Level, normal: Tensor, /) -> Tensor:
        """The points with the same shares below them as ``normal`` has."""
        return self._quantile(torch.special.ndtr(normal.double()), level).to(normal)

    def flow(self, x: Tensor, start: Level, stop: Level, /) -> Tensor:
        """The points with the same shares below them."""
        return self._quantile(self.below(x.double(), start), stop).to(x)
