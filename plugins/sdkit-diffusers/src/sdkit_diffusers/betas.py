"""The levels of a model that goes on from another's weights, but was trained on other noise."""

from __future__ import annotations

from attrs import field, frozen

from sdkit import DiscreteSchedule, Grid, NoiseSchedule, Spacing, linear, registry

__all__ = ["LinearBetas"]


@frozen
class LinearBetas:
    """A spacing on linear betas, whatever the model's own are: what AnimateDiff's motion modules were trained on.

    Stable Diffusion 1.5 was trained on betas whose roots are linear (``scaled-linear``), with the same ends; on these
    a motion module sees more noise at each time than it has learned (Guo et al. 2023,
    https://arxiv.org/abs/2307.04725).

    Attributes:
        of: The spacing that divides this schedule; parameters may follow.
        start: First beta.
        stop: Last beta.
        times: Number of trained times.

    Raises:
        ParameterError: a value is out of range.
    """

    starts_noisiest = False

    of: str = "uniform"
    start: float = field(default=0.00085, converter=float)
    stop: float = field(default=0.012, converter=float)
    times: int = 1000

    def __attrs_post_init__(self) -> None:
        _ = self.schedule

    @property
    def schedule(self) -> DiscreteSchedule:
        """The noise schedule."""
        return linear(self.start, self.stop, self.times)

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid:
        """``steps + 1`` levels of the linear schedule; the one given is the model's own, and not looked at."""
        spacing: Spacing = registry().make("spacing", self.of)
        return spacing(self.schedule, steps)
