"""The one loop, outside every scheduler.

It is a generator: progress, cancel (stop iterating), preview (``denoised``), timing and checkpoints belong to the
caller's ``for``.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from sdkit.levels import Grid, Level, check_grid
from sdkit.protocols import Denoise, Noise, Scheduler, Step

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["evaluations", "solve"]

S = TypeVar("S")


def solve(
    scheduler: Scheduler[S],
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    noise: Noise,
    *,
    resume: Step[S] | None = None,
) -> Generator[Step[S], None, None]:
    """Walk ``x`` along ``grid``, yielding each step as it is made.

    Args:
        scheduler: The solver.
        denoise: The denoiser with its conditioning in it.
        x: Latents at ``grid[0]``, (batch, channels, *space).
        grid: n + 1 levels.
        noise: Where a stochastic scheduler asks for noise.
        resume: A step made earlier, at whose end ``grid`` begins; its ``x`` and state are taken up, ``x`` is ignored.

    Raises:
        GridError: ``grid`` is no grid. Errors from inside a step carry a note with its number and levels.
    """
    grid = check_grid(grid)
    state = scheduler.init(x, grid) if resume is None else resume.state
    return _walk(scheduler, denoise, x if resume is None else resume.x, grid, noise, state)


def _walk(
    scheduler: Scheduler[S], denoise: Denoise, x: Tensor, grid: Grid, noise: Noise, state: S
) -> Generator[Step[S], None, None]:
    for i, (start, stop) in enumerate(pairwise(grid)):
        try:
            step = scheduler.step(denoise, x, start, stop, state, noise)
        except Exception as error:
            error.add_note(f"in step {i + 1} of {len(grid) - 1}, from {start} to {stop}")
            raise
        x, state = step.x, step.state
        yield step


def evaluations(scheduler: Scheduler[S], grid: Grid, like: Tensor, noise: Noise) -> int | None:
    """How many times ``scheduler`` will call the denoiser on ``grid``; None if that depends on the picture.

    A pure scheduler can simply be run on a tiny tensor: that costs microseconds per step and counts exactly, whatever
    the scheduler does on its first and last steps.

    Args:
        scheduler: The solver.
        grid: The levels of the run.
        like: A small tensor in the form of a latent, to run it on.
        noise: That of the run: a source that cannot give what the scheduler will ask for says so here.
    """
    if scheduler.traits.adaptive:
        return None
    calls: list[Level] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        calls.append(level)
        return x

    for _ in solve(scheduler, denoise, like, grid, noise):
        pass
    return len(calls)
