"""A spacing that ends its steps at a given noise, as LTX-Video learned to be sampled. Imports no torch."""

from __future__ import annotations

import math

from attrs import field, frozen

from sdkit import Grid, Level, NoiseSchedule, ParameterError, Trailing, check_grid

__all__ = ["Stretched"]


@frozen
class Stretched:
    """Trailing times, stretched so that the last level before clean has a given share of noise.

    With ``z = alpha / (alpha + sigma)`` of a trailing level, z_0 that of the noisiest and z_n that of the last one
    before clean: ``z' = z_0 + (z - z_0) (1 - terminal - z_0) / (z_n - z_0)``. Known from LTX-Video (HaCohen et al.
    2024, https://arxiv.org/abs/2501.00103); diffusers' ``shift_terminal``.

    Attributes:
        terminal: ``sigma / (alpha + sigma)`` of the last level before clean, above 0 and below 1.

    Raises:
        ParameterError: it is out of range.
    """

    terminal: float = field(default=0.1, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.terminal < 1:
            raise ParameterError(f"The last level's share of noise lies between 0 and 1, not at {self.terminal}.")

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels.

        Raises:
            ParameterError: the schedule begins with less noise than ``terminal``.
        """
        grid = Trailing()(schedule, steps)
        if steps == 1:
            return grid
        signal = [level.alpha / (level.alpha + level.sigma) for level in grid[:-1]]
        first, last = signal[0], signal[-1]
        if first >= 1 - self.terminal:
            raise ParameterError(
                f"This schedule begins with {1 - first:g} of noise, so its steps cannot end at {self.terminal:g}; ask "
                "for a smaller terminal."
            )
        scale = (1 - self.terminal - first) / (last - first)

        def moved(z: float) -> Level:
            share = first + (z - first) * scale
            return schedule.level(schedule.time(math.log(share) - math.log1p(-share)))

        return check_grid((grid[0], *(moved(z) for z in signal[1:]), grid[-1]))
