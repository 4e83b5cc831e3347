"""The noise of tools that take it from torch's generator on the CPU.

Same draws, same start: what "the picture I know" from another tool needs besides the same levels and the same solver.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from attrs import field, frozen
from torch import Tensor

from sdkit.errors import NoiseError
from sdkit.levels import Grid, Level
from sdkit.noise import check_batch, seed_tuple

__all__ = ["AsTorch", "TorchNoise"]


@frozen
class TorchNoise:
    """Draws as ``torch.Generator().manual_seed(seed)`` on the CPU does: for parity with other tools.

    Per image: the first draw is the initial noise, the next ones belong to the intervals of ``grid`` in order. A draw
    is found by replaying the ones before it, so it is still a pure function of its interval. Draws are float32, as in
    the tools it imitates.

    Attributes:
        seeds: One per image of the batch.
        grid: The levels of the whole run.
    """

    seeds: tuple[int, ...] = field(converter=seed_tuple)
    grid: Grid = ()

    def initial(self, like: Tensor, /) -> Tensor:
        """The first draw of each seed's generator."""
        return self._draw(like, 0)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        """The draw of the interval from ``start`` to ``stop``.

        Raises:
            NoiseError: the grid has no such interval, so there is no draw to be equal to.
        """
        for i, interval in enumerate(pairwise(self.grid)):
            if interval == (start, stop):
                return self._draw(like, i + 1)
        raise NoiseError(
            f"Torch's noise has one draw per step of its grid, and {start} to {stop} is none of them; take the noise "
            "'addressed' for a scheduler that asks inside a step, or give TorchNoise the grid of the run."
        )

    def _draw(self, like: Tensor, position: int) -> Tensor:
        check_batch(like, self.seeds)
        rows = []
        for seed in self.seeds:
            # manual_seed takes int64 and wraps uint64, as torch's own callers see it.
            generator = torch.Generator().manual_seed(seed)
            for _ in range(position + 1):
                row = torch.randn((1, *like.shape[1:]), generator=generator, dtype=torch.float32)
            rows.append(row)
        return torch.cat(rows).to(device=like.device, dtype=like.dtype)


@frozen
class AsTorch:
    """`TorchNoise`: the draws of tools that take them from torch's generator on the CPU, in the order they take them.

    It has one draw per step, so it refuses schedulers that ask for noise inside a step.
    """

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> TorchNoise:
        """The noise of a run."""
        return TorchNoise(seeds, grid)
