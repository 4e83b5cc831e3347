"""Noise for code that expects to draw it: addressed noise handed out as if it were drawn.

Code from elsewhere draws with ``torch.randn`` and ``torch.randn_like``, or asks a ``noise_sampler(sigma, sigma_next)``.
`AnsweredDraws` answers the first, for the calls made inside its scope and in its thread only; `Path` is the second.
Nothing global is patched, seeded or drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdkit.errors import ContractError
from sdkit.levels import Grid, Level, between

__all__ = ["AnsweredDraws", "Path", "level_of"]

_NORMAL = frozenset({"randn", "randn_like"})
_OTHER = frozenset(
    {"rand", "rand_like", "randint", "randint_like", "randperm", "normal", "normal_", "uniform_", "bernoulli"}
    | {"bernoulli_", "poisson", "multinomial", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_"}
)


class AnsweredDraws(TorchFunctionMode):
    """A scope in which standard normal draws of latents' shape are answered by ``draw``, and other draws refused."""

    def __init__(self, shape: torch.Size, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self._shape, self._draw = shape, draw

    @contextmanager
    def left(self) -> Iterator[None]:
        """A stretch inside the scope that it does not see."""
        leave: Any = self.__exit__
        enter: Any = self.__enter__
        leave(None, None, None)
        try:
            yield
        finally:
            enter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Passes everything on but draws."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _OTHER:
            raise ContractError(
                f"It drew numbers with torch's {name}, which sdkit cannot replay; only standard normal noise of the "
                "latents' shape (randn, randn_like, noise_sampler) can be given to it."
            )
        if name not in _NORMAL:
            return func(*args, **kwargs)
        size = args[0] if args and not isinstance(args[0], int) else kwargs.get("size", args)
        shape = size.shape if isinstance(size, Tensor) else torch.Size(size)
        if shape != self._shape:
            raise ContractError(
                f"It drew noise of shape {tuple(shape)}; sdkit gives noise of the latents' shape {tuple(self._shape)}."
            )
        noise = self._draw()
        return noise.to(dtype=kwargs.get("dtype") or noise.dtype)


class Path:
    """One path of Brownian motion over ``sigma``, asked by interval: overlapping intervals share their noise.

    ``path(a, b)`` is ``(W(b) - W(a)) / sqrt(|a - b|)``, standard normal. Intervals that were asked before keep their
    value; one that ends inside another divides it by a Brownian bridge (Levy 1940). An interval of its own is answered
    with the very numbers that ``draw`` gives for it.
    """

    def __init__(self, draw: Callable[[float, float], Tensor]) -> None:
        self._draw = draw
        self._parts: list[tuple[float, float, Tensor]] = []  # from above to below, without gaps

    def __call__(self, start: float, stop: float) -> Tensor:
        """Standard normal noise of the interval."""
        if start == stop:
            raise ContractError(f"Noise was asked for an interval of no length, at sigma {start}.")
        high, low = max(start, stop), min(start, stop)
        if not self._parts:
            self._parts.append((high, low, self._draw(high, low)))
        else:
            self._reach(high, low)
            self._cut(high)
            self._cut(low)
        inside = [part for part in self._parts if part[0] <= high and part[1] >= low]
        if len(inside) == 1:
            return inside[0][2]
        total = torch.zeros_like(inside[0][2])
        for above, below, normal in inside:
            total.add_(normal, alpha=math.sqrt((above - below) / (high - low)))
        return total

    def _reach(self, high: float, low: float) -> None:
        """Lengthen the path at the end that does not reach far enough."""
        first, last = self._parts[0][0], self._parts[-1][1]
        if high > first:
            self._parts.insert(0, (high, first, self._draw(high, first)))
        if low < last:
            # an interval further down than anything asked so far leaves no gap behind it
            if high < last:
                self._parts.append((last, high, self._draw(last, high)))
                last = high
            self._parts.append((last, low, self._draw(last, low)))

    def _cut(self, at: float) -> None:
        for i, (above, below, normal) in enumerate(self._parts):
            if above > at > below:
                share = (above - at) / (above - below)
                fresh = self._draw(above, at)
                first = normal * math.sqrt(share) + fresh * math.sqrt(1 - share)
                second = normal * math.sqrt(1 - share) - fresh * math.sqrt(share)
                self._parts[i : i + 1] = [(above, at, first), (at, below, second)]
                return


def level_of(grid: Grid, ratio: float, digits: float = 1e-12) -> Level:
    """The level with this ``sigma / alpha``: one of the grid's if it is that to within rounding, else between them.

    Args:
        grid: The levels of the run.
        ratio: ``sigma / alpha``, 0 for clean.
        digits: Relative rounding error of the code that computed it.
    """
    for level in grid:
        if abs(level.noise_to_signal - ratio) <= digits * ratio:
            return level
    log_snr = -math.log(ratio)
    pairs = list(pairwise(grid))
    around = [pair for pair in pairs if pair[0].log_snr < log_snr < pair[1].log_snr]
    beyond = pairs[0] if log_snr < grid[0].log_snr else pairs[-1]
    return between(*(around[0] if around else beyond), log_snr)
