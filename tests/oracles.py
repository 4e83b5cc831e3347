"""Data whose E[x0 | x] and probability-flow solution are known in closed form, and exact networks made from them.

All elements are independent and one-dimensional unless said. Source of the forms: with x = alpha x0 + sigma noise, a
normal component N(m, s^2) of x0 becomes N(alpha m, alpha^2 s^2 + sigma^2), and in one dimension the probability flow
keeps the share of the distribution that lies below a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from sdkit import AddressedNoise, EdmSchedule, Level, RectifiedFlow, scaled_linear
from sdkit.schedules import DiscreteSchedule


def latents(
    seeds: Sequence[int] = (0, 1), shape: tuple[int, ...] = (4, 6), dtype: torch.dtype = torch.float64
) -> Tensor:
    """Standard normal latents, one image per seed."""
    return AddressedNoise(tuple(seeds), "tests").initial(torch.empty((len(seeds), *shape), dtype=dtype))


@frozen
class Gaussian:
    """Data N(mean, scale^2); scale 0 is a point mass."""

    mean: float = 0.3
    scale: float = 0.5

    def variance(self, level: Level) -> float:
        return (level.alpha * self.scale) ** 2 + level.sigma**2

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        gain = level.alpha * self.scale**2 / self.variance(level)
        return self.mean + gain * (x - level.alpha * self.mean)

    def start(self, level: Level, normal: Tensor) -> Tensor:
        """A latent at ``level`` that lies ``normal`` standard deviations from the middle."""
        return level.alpha * self.mean + math.sqrt(self.variance(level)) * normal

    def flow(self, x: Tensor, start: Level, stop: Level) -> Tensor:
        """Where the probability flow takes ``x``, exactly."""
        ratio = math.sqrt(self.variance(stop) / self.variance(start))
        return stop.alpha * self.mean + ratio * (x - start.alpha * self.mean)


@frozen
class Mixture:
    """Two normals with weights, means and standard deviations: E[x0 | x] is not linear."""

    weights: tuple[float, float] = (0.35, 0.65)
    means: tuple[float, float] = (-0.8, 0.6)
    scales: tuple[float, float] = (0.35, 0.5)

    def _parts(self, level: Level) -> list[tuple[float, float, float, float]]:
        return [
            (w, m, s, math.hypot(level.alpha * s, level.sigma))
            for w, m, s in zip(self.weights, self.means, self.scales, strict=True)
        ]

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        logs, answers = [], []
        for w, m, s, root in self._parts(level):
            away = x - level.alpha * m
            logs.append(math.log(w / root) - 0.5 * (away / root) ** 2)
            answers.append(m + level.alpha * s**2 / root**2 * away)
        shares = torch.softmax(torch.stack(logs), dim=0)
        return (shares * torch.stack(answers)).sum(0)

    def below(self, x: Tensor, level: Level) -> Tensor:
        """The share of the data at ``level`` that lies below ``x``."""
        total = torch.zeros_like(x)
        for w, m, _, root in self._parts(level):
            total = total + w * torch.special.ndtr((x - level.alpha * m) / root)
        return total

    def quantile(self, share: Tensor, level: Level) -> Tensor:
        """The point at ``level`` below which this share lies, by bisection."""
        reach = 40 * max(root for *_, root in self._parts(level))
        low, high = torch.full_like(share, -reach), torch.full_like(share, reach)
        for _ in range(80):
            middle = (low + high) / 2
            under = self.below(middle, level) < share
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def start(self, level: Level, normal: Tensor) -> Tensor:
        return self.quantile(torch.special.ndtr(normal), level)

    def flow(self, x: Tensor, start: Level, stop: Level) -> Tensor:
        return self.quantile(self.below(x, start), stop)


def rescaled(grid: Sequence[Level], factors: Sequence[float]) -> tuple[Level, ...]:
    """The same grid written in another scale: alpha and sigma times a factor at each level."""
    return tuple(Level(g.t, g.alpha * c, g.sigma * c) for g, c in zip(grid, factors, strict=True))


# Exact networks: what a perfectly trained network answers, knowing only its input and the time it is told.


def _vp(t: float) -> Level:
    return VP.level(min(max(t, 0.0), 999.0))


VP: DiscreteSchedule = scaled_linear()
FLOW = RectifiedFlow(3)
EDM = EdmSchedule()


def exact_network(kind: str, data: Callable[[Tensor, Level], Tensor]) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """``network(x, time, cond)`` for data under the schedule that goes with ``kind``; cond is not looked at."""

    def network(x: Tensor, time: Tensor, cond: Any) -> Tensor:
        t = float(time[0])
        if kind == "flow":
            level = Level(t, 1 - t, t)
            return (x - data(x, level)) / t
        if kind == "edm":
            s = math.exp(4 * t)
            root = math.hypot(s, 0.5)
            original = x * root
            return (data(original, Level(s, 1, s)) - original * (0.25 / root**2)) / (s * 0.5 / root)
        level = _vp(t)
        x0 = data(x, level)
        if kind == "sample":
            return x0
        if kind == "epsilon":
            return (x - level.alpha * x0) / level.sigma
        return (level.alpha * x - x0) / level.sigma  # velocity

    return network
