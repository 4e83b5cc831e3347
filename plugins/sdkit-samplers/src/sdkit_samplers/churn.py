"""Karras' stochastic sampler: noise is added before a step, and the denoiser sees the noisier latent.

Notation: `sdkit_samplers.moves`; ``^`` marks what noise was added to: ``s^ = s (1 + gamma)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from sdkit import Grid, Heun, Level, Noise, Step, Traits, between
from sdkit_samplers.moves import check_range, sde_traits, toward

if TYPE_CHECKING:
    from torch import Tensor

    Denoise = Callable[[Tensor, Level], Tensor]

__all__ = ["ChurnState", "EulerChurn", "HeunChurn"]

MOST = math.sqrt(2) - 1
"""The largest gamma: noise is at most doubled in variance (Karras et al. 2022, algorithm 2)."""


@frozen
class ChurnState:
    """What a run has to know: how many steps there are, the ``L`` it started from, and where the last step did."""

    steps: int
    noisiest: float
    before: Level


@frozen
class _Churn:
    """The part both methods share."""

    churn: float
    s_min: float
    s_max: float
    s_noise: float

    def __call__(self, x: Tensor, start: Level, stop: Level, state: ChurnState, noise: Noise) -> tuple[Tensor, Level]:
        """The latent with noise added, and its level; both as they were where churn does not act."""
        s = start.noise_to_signal
        gamma = min(self.churn / state.steps, MOST) if self.s_min <= s <= self.s_max else 0.0
        if gamma == 0 or math.isinf(s):
            return x, start
        # a network knows nothing noisier than where the run starts
        log_snr = max(start.log_snr - math.log1p(gamma), state.noisiest)
        if log_snr >= start.log_snr:
            return x, start
        raised = between(start, stop, log_snr)
        scale = raised.alpha / start.alpha
        fresh = raised.sigma * math.sqrt(-math.expm1(2 * (log_snr - start.log_snr)))
        moved = x * scale
        if self.s_noise:
            # the interval before, of which nobody else has noise: those from raised levels to their starts overlap
            moved = moved.add_(noise(x, state.before, start), alpha=fresh * self.s_noise)
        return moved, raised


@frozen
class EulerChurn:
    """Euler with churn: in each step the noise is first raised by up to a factor ``sqrt 2``.

    The denoiser is evaluated at the raised level, as its authors do it; adding the noise after the evaluation, as
    diffusers does, gives another distribution.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2 (without its correction step).

    Attributes:
        churn: Amount of noise over the whole run; ``churn / steps`` is the rise per step.
        s_min, s_max: Where it acts, in ``sigma / alpha``.
        s_noise: Factor of the noise.
    """

    churn: float = field(default=10.0, converter=float)
    s_min: float = field(default=0.0, converter=float)
    s_max: float = field(default=1e6, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        _check(self.churn, self.s_min, self.s_max, self.s_noise)

    @property
    def traits(self) -> Traits:
        """Order 1."""
        return sde_traits(1, None, 1, self.churn, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> ChurnState:
        """Number of steps, and where the run starts."""
        return ChurnState(len(grid) - 1, grid[0].log_snr, grid[0])

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: ChurnState, noise: Noise, /
    ) -> Step[ChurnState]:
        """One evaluation, at the raised level."""
        x, raised = _Churn(self.churn, self.s_min, self.s_max, self.s_noise)(x, start, stop, state, noise)
        denoised = denoise(x, raised)
        return Step(toward(x, denoised, raised, stop), denoised, evolve(state, before=start))


@frozen
class HeunChurn:
    """Heun with churn, the stochastic sampler of Karras et al.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2.

    Attributes:
        churn: Amount of noise over the whole run; ``churn / steps`` is the rise per step.
        s_min, s_max: Where it acts, in ``sigma / alpha``.
        s_noise: Factor of the noise.
    """

    churn: float = field(default=10.0, converter=float)
    s_min: float = field(default=0.0, converter=float)
    s_max: float = field(default=1e6, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        _check(self.churn, self.s_min, self.s_max, self.s_noise)

    @property
    def traits(self) -> Traits:
        """Order 2 without noise; with it, weakly 1 is what is promised."""
        return sde_traits(2, None, 2, self.churn, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> ChurnState:
        """Number of steps, and where the run starts."""
        return ChurnState(len(grid) - 1, grid[0].log_snr, grid[0])

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: ChurnState, noise: Noise, /
    ) -> Step[ChurnState]:
        """Two evaluations, the first at the raised level; one on a step that ends clean."""
        x, raised = _Churn(self.churn, self.s_min, self.s_max, self.s_noise)(x, start, stop, state, noise)
        step = Heun().step(denoise, x, raised, stop, None, noise)
        return Step(step.x, step.denoised, evolve(state, before=start))


def _check(churn: float, s_min: float, s_max: float, s_noise: float) -> None:
    check_range("churn", churn, 0)
    check_range("s_min", s_min, 0)
    check_range("s_max", s_max, s_min)
    check_range("s_noise", s_noise, 0)
