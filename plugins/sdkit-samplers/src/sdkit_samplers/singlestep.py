"""Methods with stages inside a step: the exponential Runge-Kutta family, for the equation and for its SDE.

A stage is a step of the data form to a level inside the interval. Steps to clean and from no signal are Euler's: there
``h`` is infinite and no level lies between. Notation: `sdkit_samplers.moves`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from sdkit import Grid, Level, Noise, ParameterError, Step, Traits, between
from sdkit_samplers.moves import (
    ancestral,
    check_range,
    decay,
    exponential_integral,
    exponential_step,
    sde_traits,
    step_size,
    toward,
)

if TYPE_CHECKING:
    from torch import Tensor

    Denoise = Callable[[Tensor, Level], Tensor]

__all__ = ["Dpm2", "Dpm2Ancestral", "DpmPP2SAncestral", "DpmPPSde", "DpmSinglestep", "Seeds2", "Seeds3"]


def _inside(start: Level, stop: Level, share: float) -> Level:
    """The level at ``share`` of the way in ``L``."""
    return between(start, stop, (1 - share) * start.log_snr + share * stop.log_snr)


def _halfway(denoise: Denoise, x: Tensor, denoised: Tensor, start: Level, stop: Level) -> Tensor:
    """DPM-Solver++(2S): the whole step of the data form with ``D`` from half way, reached by Euler."""
    # with one prediction for all of a step, the data form's integral is Euler's step
    middle = _inside(start, stop, 0.5)
    return toward(x, denoise(toward(x, denoised, start, middle), middle), start, stop)


def _two_stage_ancestral(
    inner: Callable[[Denoise, Tensor, Tensor, Level, Level], Tensor],
    denoise: Denoise,
    x: Tensor,
    start: Level,
    stop: Level,
    eta: float,
    s_noise: float,
    noise: Noise,
) -> Step[None]:
    """Two stages to the lower noise of an ancestral step, then fresh noise; Euler where ``h`` is infinite."""
    denoised = denoise(x, start)
    down, up = ancestral(start, stop, eta)
    lower = Level(stop.t, stop.alpha, down, interpolated=True) if up else stop
    if math.isinf(step_size(start, lower)):
        moved = toward(x, denoised, start, lower)
    else:
        moved = inner(denoise, x, denoised, start, lower)
    if up and s_noise:
        moved = moved.add_(noise(x, start, stop), alpha=up * s_noise)
    return Step(moved, denoised, None)


@frozen
class DpmSinglestep:
    """DPM-Solver++(2S) and (3S): 2 or 3 evaluations per step, no past.

    ``steps`` counts steps; diffusers' singlestep class counts evaluations.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 1, and https://arxiv.org/abs/2206.00927,
    algorithm 2, for three stages (at 1/3 and 2/3 of the step).

    Attributes:
        order: 2 or 3.
    """

    order: int = field(default=2)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in (2, 3):
            raise ParameterError(f"The order must be 2 or 3, not {self.order!r}.")

    @property
    def traits(self) -> Traits:
        """As many evaluations as the order."""
        return Traits(self.order, None, False, True, self.order)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Evaluations at ``start`` and inside the step."""
        denoised = denoise(x, start)
        h = step_size(start, stop)
        if math.isinf(h):
            return Step(toward(x, denoised, start, stop), denoised, None)
        if self.order == 2:
            return Step(_halfway(denoise, x, denoised, start, stop), denoised, None)
        first, second = 1 / 3, 2 / 3
        levels = _inside(start, stop, first), _inside(start, stop, second)
        inner = exponential_step(x, start, levels[0], 0.0, [(exponential_integral(0, first * h), denoised)])
        d1 = denoise(inner, levels[0])
        # the line through D and D1, integrated exactly up to the second stage
        slope = exponential_integral(1, second * h) * second / first
        whole = exponential_integral(0, second * h)
        inner = exponential_step(x, start, levels[1], 0.0, [(whole - slope, denoised), (slope, d1)])
        d2 = denoise(inner, levels[1])
        slope = exponential_integral(1, h) / second
        whole = exponential_integral(0, h)
        return Step(exponential_step(x, start, stop, 0.0, [(whole - slope, denoised), (slope, d2)]), denoised, None)


@frozen
class DpmPP2SAncestral:
    """DPM-Solver++(2S) to the lower noise of an ancestral step, then fresh noise.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, with the ancestral split of Crowson 2022 (k-diffusion).

    Attributes:
        eta: Share of ancestral noise, 0 to 1.
        s_noise: Factor of the noise.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0, 1)
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, 2 without."""
        return sde_traits(2, None, 2, self.eta, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Two evaluations, one on steps to clean and from no signal."""
        return _two_stage_ancestral(_halfway, denoise, x, start, stop, self.eta, self.s_noise, noise)


@frozen
class DpmPPSde:
    """DPM-Solver++ for the SDE with one stage inside the step, ancestral noise in the stage and in the step.

    Source: Crowson 2022 (k-diffusion's sample_dpmpp_sde), after Lu et al. 2022, https://arxiv.org/abs/2211.01095.

    Attributes:
        eta: Share of ancestral noise, 0 to 1.
        s_noise: Factor of the noise.
        r: Where the stage lies, above 0 to 1.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)
    r: float = field(default=0.5, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0, 1)
        check_range("s_noise", self.s_noise, 0)
        check_range("r", self.r, 1e-3, 1)

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, 2 without."""
        return sde_traits(2, None, 2, self.eta, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Two evaluations, one on steps to clean and from no signal."""
        denoised = denoise(x, start)
        estimate = denoised
        if math.isfinite(step_size(start, stop)):
            middle = stop if self.r == 1 else _inside(start, stop, self.r)
            inner = self._ancestral_step(x, denoised, start, middle, noise)
            share = 1 / (2 * self.r)
            again = denoise(inner, middle)
            estimate = again if share == 1 else denoised.lerp(again, share)
        return Step(self._ancestral_step(x, estimate, start, stop, noise), denoised, None)

    def _ancestral_step(self, x: Tensor, denoised: Tensor, start: Level, stop: Level, noise: Noise) -> Tensor:
        down, up = ancestral(start, stop, self.eta)
        ratio = down / start.sigma
        moved = (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)
        return moved.add_(noise(x, start, stop), alpha=up * self.s_noise) if up and self.s_noise else moved


class _PathNoise:
    """The noise of an SDE over a step, in pieces: what a stage has seen is part of what the step's end sees."""

    def __init__(self, x: Tensor, start: Level, eta: float, s_noise: float, noise: Noise) -> None:
        self._x, self._level, self._eta, self._s_noise, self._noise = x, start, eta, s_noise, noise
        self._sum: Tensor | None = None

    def at(self, level: Level) -> Tensor | None:
        """Noise to add at ``level``, in its scale; None where there is none to add."""
        if self._eta == 0 or self._s_noise == 0 or level.sigma == 0:
            return None
        h = step_size(self._level, level)
        fresh = self._noise(self._x, self._level, level) * math.sqrt(-math.expm1(-2 * self._eta * h))
        self._sum = fresh if self._sum is None else self._sum * decay(h, self._eta) + fresh
        self._level = level
        return self._sum * (level.sigma * self._s_noise)


def _added(moved: Tensor, fresh: Tensor | None) -> Tensor:
    return moved if fresh is None else moved.add_(fresh)


@frozen
class Seeds2:
    """SEEDS-2: two stages of the SDE's data form along one path of noise; without noise, exponential Heun and midpoint.

    ``solver="phi1"`` weighs the stage with ``1 / (2 r)`` of the first integral, ``"phi2"`` with its exact one.

    Source: Gonzalez et al. 2023, https://arxiv.org/abs/2305.14267.

    Attributes:
        eta: Noise of the SDE, 0 upward.
        s_noise: Factor of the noise.
        r: Where the stage lies, above 0 to 1.
        solver: ``"phi1"`` or ``"phi2"``.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)
    r: float = field(default=0.5, converter=float)
    solver: Literal["phi1", "phi2"] = "phi1"

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0)
        check_range("s_noise", self.s_noise, 0)
        check_range("r", self.r, 1e-3, 1)
        if self.solver not in ("phi1", "phi2"):
            raise ParameterError(f"The solver is 'phi1' or 'phi2', not {self.solver!r}.")

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, 2 without."""
        return sde_traits(2, None, 2, self.eta, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Two evaluations, one on steps to clean and from no signal."""
        denoised = denoise(x, start)
        h = step_size(start, stop)
        path = _PathNoise(x, start, self.eta, self.s_noise, noise)
        if math.isinf(h):
            moved = exponential_step(x, start, stop, self.eta, [(1.0, denoised)])
            moved = toward(x, denoised, start, stop) if self.eta == 0 else moved
            return Step(_added(moved, path.at(stop)), denoised, None)
        stretched = (1 + self.eta) * h
        middle = stop if self.r == 1 else _inside(start, stop, self.r)
        inner = exponential_step(x, start, middle, self.eta, [(exponential_integral(0, self.r * stretched), denoised)])
        seen = path.at(middle)
        again = denoise(_added(inner, seen), middle)
        whole = exponential_integral(0, stretched)
        slope = (whole / 2 if self.solver == "phi1" else exponential_integral(1, stretched)) / self.r
        moved = exponential_step(x, start, stop, self.eta, [(whole - slope, denoised), (slope, again)])
        return Step(_added(moved, seen if middle is stop else path.at(stop)), denoised, None)


@frozen
class Seeds3:
    """SEEDS-3: three stages of the SDE's data form along one path of noise, at 1/3 and 2/3 of the step.

    Source: Gonzalez et al. 2023, https://arxiv.org/abs/2305.14267.

    Attributes:
        eta: Noise of the SDE, 0 upward.
        s_noise: Factor of the noise.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0)
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, 3 without."""
        return sde_traits(3, None, 3, self.eta, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Three evaluations, one on steps to clean and from no signal."""
        denoised = denoise(x, start)
        h, eta = step_size(start, stop), self.eta
        path = _PathNoise(x, start, eta, self.s_noise, noise)
        if math.isinf(h):
            moved = exponential_step(x, start, stop, eta, [(1.0, denoised)])
            moved = toward(x, denoised, start, stop) if eta == 0 else moved
            return Step(_added(moved, path.at(stop)), denoised, None)
        stretched, first, second = (1 + eta) * h, 1 / 3, 2 / 3
        levels = _inside(start, stop, first), _inside(start, stop, second)
        inner = exponential_step(x, start, levels[0], eta, [(exponential_integral(0, first * stretched), denoised)])
        d1 = denoise(_added(inner, path.at(levels[0])), levels[0])
        slope = exponential_integral(1, second * stretched) * second / first
        whole = exponential_integral(0, second * stretched)
        inner = exponential_step(x, start, levels[1], eta, [(whole - slope, denoised), (slope, d1)])
        d2 = denoise(_added(inner, path.at(levels[1])), levels[1])
        slope = exponential_integral(1, stretched) / second
        whole = exponential_integral(0, stretched)
        moved = exponential_step(x, start, stop, eta, [(whole - slope, denoised), (slope, d2)])
        return Step(_added(moved, path.at(stop)), denoised, None)


def _midpoint(denoise: Denoise, x: Tensor, denoised: Tensor, start: Level, stop: Level) -> Tensor:
    """DPM-Solver-2: the noise at the middle in ``L`` carries the whole step of the noise form."""
    middle = _inside(start, stop, 0.5)
    inner = toward(x, denoised, start, middle)
    again = denoise(inner, middle)
    # e2 = (inner - alpha_m D2) / sigma_m; x' = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) e2
    growth = stop.alpha / start.alpha
    share = (stop.sigma - growth * start.sigma) / middle.sigma
    return (x * growth).add_(inner, alpha=share).add_(again, alpha=-share * middle.alpha)


@frozen
class Dpm2:
    """DPM-Solver-2, the midpoint rule of the noise form in ``log s`` (Karras et al. 2022 call it DPM-2).

    Steps to clean and from no signal are Euler's.

    Source: Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithm 1; Karras et al. 2022,
    https://arxiv.org/abs/2206.00364.
    """

    @property
    def traits(self) -> Traits:
        """Order 2, two evaluations."""
        return Traits(2, None, False, True, 2)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Two evaluations, one on steps to clean and from no signal."""
        denoised = denoise(x, start)
        if math.isinf(step_size(start, stop)):
            return Step(toward(x, denoised, start, stop), denoised, None)
        return Step(_midpoint(denoise, x, denoised, start, stop), denoised, None)


@frozen
class Dpm2Ancestral:
    """DPM-Solver-2 to the lower noise of an ancestral step, then fresh noise.

    Source: Crowson 2022 (k-diffusion's sample_dpm_2_ancestral), after Lu et al. 2022,
    https://arxiv.org/abs/2206.00927.

    Attributes:
        eta: Share of ancestral noise, 0 to 1.
        s_noise: Factor of the noise.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0, 1)
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Weak order 1 with noise, 2 without."""
        return sde_traits(2, None, 2, self.eta, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """Two evaluations, one on steps to clean and from no signal."""
        return _two_stage_ancestral(_midpoint, denoise, x, start, stop, self.eta, self.s_noise, noise)
