"""Points of a noise schedule, and the grids that solvers walk along.

Notation, here and everywhere in sdkit: a latent at a level is ``x = alpha * x0 + sigma * noise`` with standard normal
noise. ``log_snr`` is ``log(alpha / sigma)`` (half the logarithm of the signal-to-noise ratio of powers; the lambda of
Lu et al. 2022, https://arxiv.org/abs/2206.00927): ``inf`` when clean, ``-inf`` when nothing of the picture is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeAlias

from attrs import field, frozen

from sdkit.errors import GridError, LevelError

__all__ = ["Grid", "Level", "between", "check_grid"]


@frozen
class Level:
    """A point of the noise schedule, in host floats (float64): exact, printable, hashable, no device transfer.

    Attributes:
        t: The schedule's own time (0..999 for a discrete schedule, 0..1 for a flow, sigma for EDM).
        alpha: Factor of the picture, at least 0.
        sigma: Factor of the noise, at least 0; not both zero.
        interpolated: Whether ``t`` is an estimate, as on levels that `between` makes. A denoiser that knows its
            schedule then asks it for the time that belongs to ``log_snr``; a ``t`` that was given is believed.

    Raises:
        LevelError: a value is not finite, is negative, or both factors are zero.
    """

    t: float = field(converter=float)
    alpha: float = field(converter=float)
    sigma: float = field(converter=float)
    interpolated: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.t) and math.isfinite(self.alpha) and math.isfinite(self.sigma)):
            raise LevelError(f"A level needs finite numbers, not t={self.t}, alpha={self.alpha}, sigma={self.sigma}.")
        if self.alpha < 0 or self.sigma < 0 or self.alpha == self.sigma == 0:
            raise LevelError(
                f"A level needs alpha >= 0 and sigma >= 0, not both zero; got alpha={self.alpha}, sigma={self.sigma}."
            )

    @property
    def log_snr(self) -> float:
        """``log(alpha / sigma)``; ``inf`` when clean, ``-inf`` when alpha is 0."""
        if self.sigma == 0:
            return math.inf
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha) - math.log(self.sigma)

    @property
    def noise_to_signal(self) -> float:
        """``sigma / alpha``, what k-diffusion and ComfyUI call sigma; ``inf`` when alpha is 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def norm(self) -> float:
        """``sqrt(alpha^2 + sigma^2)``: 1 on every variance-preserving schedule (exactly 1 to within rounding)."""
        norm = math.hypot(self.alpha, self.sigma)
        # A variance-preserving level misses 1 by a rounding error; dividing float32 latents by that error changes bits
        # for nothing.
        return 1.0 if abs(norm - 1.0) < 1e-12 else norm

    def __str__(self) -> str:
        return f"t={self.t:g} (alpha={self.alpha:.6g}, sigma={self.sigma:.6g})"


Grid: TypeAlias = tuple[Level, ...]
"""n + 1 levels for n steps, log_snr strictly increasing, normally ending clean. Plain data: print it, save it, hand in
your own; a grid given by a user is used verbatim."""


def check_grid(levels: Iterable[Level]) -> Grid:
    """The levels as a grid, unchanged.

    Raises:
        GridError: fewer than two levels, or ``log_snr`` does not strictly increase.
    """
    grid = tuple(levels)
    if len(grid) < 2:
        raise GridError(f"A grid needs at least two levels (one step), not {len(grid)}.")
    for i, (start, stop) in enumerate(pairwise(grid)):
        if not start.log_snr < stop.log_snr:
            raise GridError(
                f"A grid goes from noisy to clean, but log_snr does not rise from level {i} ({start}) to level "
                f"{i + 1} ({stop}); sort the levels and drop repeats."
            )
    return grid


def between(start: Level, stop: Level, log_snr: float) -> Level:
    """The level with this ``log_snr`` on the way from ``start`` to ``stop``, or beyond either of them.

    What multi-stage solvers evaluate at: they know two levels, not the schedule. The scale is that of the two levels
    (alpha, alpha + sigma, or alpha^2 + sigma^2 stays constant if it is the same for both, else the last is
    interpolated); ``t`` is interpolated linearly in ``atan2(sigma, alpha)``, which is finite everywhere, and marked so.

    Raises:
        LevelError: ``log_snr`` is not finite.
    """
    if not math.isfinite(log_snr):
        raise LevelError(f"A level between two others needs a finite log_snr, not {log_snr}.")
    if start.log_snr == stop.log_snr:
        raise LevelError(f"There is nothing between {start} and {stop}, which are equally noisy.")
    # alpha : sigma as the sides of a right angle with hypotenuse 1, without overflow at either end
    small = math.exp(-abs(log_snr))
    large = 1 / math.sqrt(1 + small * small)
    alpha, sigma = (large, large * small) if log_snr >= 0 else (large * small, large)
    angles = [math.atan2(level.sigma, level.alpha) for level in (start, stop)]
    share = (angles[0] - math.atan2(sigma, alpha)) / (angles[0] - angles[1])
    if start.alpha == stop.alpha:
        scale = start.alpha / alpha
    elif math.isclose(start.alpha + start.sigma, stop.alpha + stop.sigma, rel_tol=1e-9):
        scale = (start.alpha + start.sigma) / (alpha + sigma)
    else:
        scale = start.norm ** (1 - share) * stop.norm**share
    return Level(start.t + (stop.t - start.t) * share, alpha * scale, sigma * scale, interpolated=True)
