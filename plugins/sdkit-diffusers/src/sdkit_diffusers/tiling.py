"""A function of pictures, applied to overlapping tiles whose results are blended."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from attrs import frozen
from torch import Tensor

from sdkit import ParameterError

__all__ = ["Tiles"]


@frozen
class Tiles:
    """How a picture is cut. Sizes are in elements of the latent.

    Attributes:
        size: Side of a tile, at least 8.
        overlap: How far neighbouring tiles reach into each other, at least 1 and at most half a tile.
    """

    size: int = 64
    overlap: int = 16

    def __attrs_post_init__(self) -> None:
        if self.size < 8 or not 1 <= self.overlap <= self.size // 2:
            raise ParameterError(
                f"A tile has sides of at least 8 and an overlap of 1 to half of it, not {self.size} and {self.overlap}."
            )

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side; the last one ends where the side ends."""
        step = self.size - self.overlap
        return [*range(0, max(length - self.size, 0), step), max(length - self.size, 0)]

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor, *, factor: Fraction, unit: int = 1) -> Tensor:
        """``function`` of ``x`` (batch, channels, height, width), tile by tile.

        Where tiles overlap the result is a mean whose weights rise linearly from a tile's border inward.

        Args:
            function: Scales both sides by ``factor``.
            x: Pictures or latents.
            factor: By how much the sides of the result are longer.
            unit: Elements of ``x`` per element of the latent.
        """
        height, width = x.shape[-2] // unit, x.shape[-1] // unit
        if height <= self.size and width <= self.size:
            return function(x)
        total: Tensor | None = None
        for top in self.starts(height):
            for left in self.starts(width):
                rows, columns = min(self.size, height), min(self.size, width)
                tile = x[..., top * unit : (top + rows) * unit, left * unit : (left + columns) * unit]
                made = function(tile)
                if total is None:
                    sides = (int(x.shape[-2] * factor), int(x.shape[-1] * factor))
                    total = made.new_zeros((*made.shape[:2], *sides), dtype=torch.float32)
                    weight = total.new_zeros((1, 1, *sides))
                scale = made.shape[-2] // rows
                ramp = (
                    self._ramp(rows, scale, top > 0, top + rows < height)[:, None]
                    * self._ramp(columns, scale, left > 0, left + columns < width)[None, :]
                ).to(made.device)
                place = (
                    ...,
                    slice(top * scale, (top + rows) * scale),
                    slice(left * scale, (left + columns) * scale),
                )
                total[place] += made * ramp
                weight[place] += ramp
        assert total is not None  # there is always one tile
        return total / weight

    def _ramp(self, length: int, scale: int, before: bool, behind: bool) -> Tensor:
        """Weights along one side of a tile: 1, falling toward borders inside the picture, never 0."""
        weights = torch.ones(length * scale)
        over = min(self.overlap, length) * scale
        slope = (torch.arange(over) + 0.5) / over
        if before:
            weights[:over] *= slope
        if behind:
            weights[-over:] *= slope.flip(0)
        return weights
