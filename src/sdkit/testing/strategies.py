"""Hypothesis strategies for what the rules are tried on. They shrink to few steps and small tensors."""

from __future__ import annotations

from typing import Any

import torch
from attrs import field, frozen
from hypothesis import strategies as st
from torch import Tensor

from sdkit.levels import Grid
from sdkit.noise import AddressedNoise
from sdkit.protocols import NoiseSchedule, Spacing
from sdkit.schedules import EdmSchedule, RectifiedFlow, cosine, scaled_linear
from sdkit.spacings import Karras, Trailing, Uniform, UniformLogSnr
from sdkit.testing.problems import Gaussian, Mixture, Problem

__all__ = ["SCHEDULES", "Case", "cases", "grids", "schedules"]

SCHEDULES: dict[str, NoiseSchedule] = {
    "scaled-linear": scaled_linear(),
    "zero-terminal-snr": scaled_linear().zero_terminal_snr(),
    "cosine": cosine(),
    "edm": EdmSchedule(),
    "flow": RectifiedFlow(),
    "flow-shift-3": RectifiedFlow(3),
}
_SPACINGS: dict[str, Spacing] = {
    "trailing": Trailing(),
    "karras": Karras(),
    "uniform-log-snr": UniformLogSnr(),
    "uniform": Uniform(),
}


@frozen(eq=False)
class Case:
    """One run: data, levels, and where it starts.

    Attributes:
        problem: Data with an exact denoiser.
        grid: The levels.
        seeds: One per image.
        shape: (channels, *space).
        name: How it was drawn, for messages.
    """

    problem: Problem = field(repr=False)
    grid: Grid = field(repr=False)
    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    name: str

    @property
    def noise(self) -> AddressedNoise:
        """The noise of the run."""
        return AddressedNoise(self.seeds)

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Latents at the first level."""
        like = torch.empty((len(self.seeds), *self.shape), dtype=torch.float64)
        return self.problem.start(self.grid[0], self.noise.initial(like)).to(dtype)


def schedules(*, names: tuple[str, ...] = tuple(SCHEDULES)) -> Any:
    """One of the shipped noise schedules."""
    return st.sampled_from(names).map(SCHEDULES.__getitem__)


def grids(*, most_steps: int = 8, names: tuple[str, ...] = tuple(SCHEDULES)) -> Any:
    """(name, grid): the levels of one to ``most_steps`` steps of a shipped spacing on a shipped schedule."""

    def build(schedule: str, spacing: str, steps: int) -> tuple[str, Grid]:
        return f"{spacing} of {steps} on {schedule}", _SPACINGS[spacing](SCHEDULES[schedule], steps)

    return st.builds(build, st.sampled_from(names), st.sampled_from(list(_SPACINGS)), st.integers(1, most_steps))


def cases(*, most_steps: int = 8, names: tuple[str, ...] = tuple(SCHEDULES)) -> Any:
    """A `Case`: one to three images of one or two channels and up to six places."""

    def build(grid: tuple[str, Grid], seeds: list[int], channels: int, places: int, mixture: bool) -> Case:
        problem: Problem = Mixture() if mixture else Gaussian.isotropic(channels)
        return Case(problem, grid[1], tuple(seeds), (channels, places), grid[0])

    return st.builds(
        build,
        grids(most_steps=most_steps, names=names),
        st.lists(st.integers(0, 2**32), min_size=1, max_size=3, unique=True),
        st.integers(1, 2),
        st.integers(1, 6),
        st.booleans(),
    )
