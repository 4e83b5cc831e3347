"""A function of pictures, applied to overlapping tiles whose results are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import torch
from attrs import frozen
from torch import Tensor

from sdkit import ParameterError

__all__ = ["Place", "Tiles"]

EDGE = 0.45
"""Share of an overlap, from a tile's border inward, in which the other tile alone counts."""


@frozen
class Side:
    """Where a tile is along one side. In elements of the latent.

    Attributes:
        start: Its first element.
        length: How many it has.
        first: Twice the place where what belongs to it alone begins, counted from its start.
        last: Twice the place where that ends.
    """

    start: int
    length: int
    first: int
    last: int

    def middle(self, length: int) -> slice:
        """What belongs to no other tile, in a tile that has become ``length`` long."""
        scale = length // self.length
        return slice((self.first * scale + 1) // 2, (self.last * scale + 1) // 2)


@frozen
class Place:
    """Where a tile is."""

    rows: Side
    columns: Side

    def cut(self, x: Tensor, unit: int) -> Tensor:
        """The tile of ``x``, which has ``unit`` elements per element of the latent."""
        rows, columns = (
            slice(side.start * unit, (side.start + side.length) * unit) for side in (self.rows, self.columns)
        )
        return x[..., rows, columns]

    def middle(self, height: int, width: int) -> tuple[slice, slice]:
        """What belongs to no other tile, in a tile that has become ``height`` x ``width``."""
        return self.rows.middle(height), self.columns.middle(width)


@frozen
class Tiles:
    """How a picture is cut. Sizes are in elements of the latent.

    Attributes:
        size: Side of a tile, at least 8.
        overlap: How far neighbouring tiles reach into each other, at least 1 and at most half a tile.
    """

    size: int = 64
    overlap: int = 8

    def __attrs_post_init__(self) -> None:
        if self.size < 8 or not 1 <= self.overlap <= self.size // 2:
            raise ParameterError(
                f"A tile has sides of at least 8 and an overlap of 1 to half of it, not {self.size} and {self.overlap}."
            )

    def hold(self, x: Tensor, unit: int = 1) -> bool:
        """Whether one tile holds all of ``x``, which has ``unit`` elements per element of the latent."""
        return max(x.shape[-2:]) <= self.size * unit

    def places(self, height: int, width: int) -> Iterator[Place]:
        """All tiles of a latent of ``height`` x ``width``."""
        for rows in self._sides(height):
            for columns in self._sides(width):
                yield Place(rows, columns)

    def _sides(self, length: int) -> list[Side]:
        """The tiles along a side; the last one ends where the side ends."""
        size, last = min(self.size, length), max(length - self.size, 0)
        starts = [*range(0, last, self.size - self.overlap), last]
        # between two tiles the border is the middle of what both have
        borders = [0, *(one + size + other for one, other in pairwise(starts)), 2 * length]
        ends = zip(starts, pairwise(borders), strict=True)
        return [Side(start, size, low - 2 * start, high - 2 * start) for start, (low, high) in ends]

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor, *, factor: Fraction, unit: int = 1) -> Tensor:
        """``function`` of ``x`` (batch, channels, height, width), tile by tile.

        Where tiles overlap, the middle of the overlap is a mean whose weights rise linearly from a tile's side inward;
        nearer to its border a tile does not count.

        Args:
            function: Scales both sides by ``factor``.
            x: Pictures or latents.
            factor: By how much the sides of the result are longer.
            unit: Elements of ``x`` per element of the latent.
        """
        if self.hold(x, unit):
            return function(x)
        height, width = x.shape[-2] // unit, x.shape[-1] // unit
        total: Tensor | None = None
        for place in self.places(height, width):
            made = function(place.cut(x, unit))
            if total is None:
                sides = (int(x.shape[-2] * factor), int(x.shape[-1] * factor))
                total = made.new_zeros((*made.shape[:2], *sides), dtype=torch.float32)
                weight = total.new_zeros((1, 1, *sides))
            scale = made.shape[-2] // place.rows.length
            ramp = (
                self._ramp(place.rows, scale, height)[:, None] * self._ramp(place.columns, scale, width)[None, :]
            ).to(made.device)
            place.cut(total, scale).add_(made * ramp)
            place.cut(weight, scale).add_(ramp)
        assert total is not None  # there is always one tile
        return total.div_(weight)

    def _ramp(self, side: Side, scale: int, length: int) -> Tensor:
        """Weights along one side of a tile: 1, falling to 0 toward borders inside the picture."""
        weights = torch.ones(side.length * scale)
        over = min(self.overlap, side.length) * scale
        slope = (((torch.arange(over) + 0.5) / over - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)
        if side.start > 0:
            weights[:over] *= slope
        if side.start + side.length < length:
            weights[-over:] *= slope.flip(0)
        return weights
