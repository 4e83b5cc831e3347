"""One-step methods with noise: ancestral, DDPM, samplers of distilled models. Notation: `sdkit_samplers.moves`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from sdkit import Grid, Level, Noise, NoiseSchedule, ParameterError, Step, Traits, registry
from sdkit_samplers.moves import ancestral, check_range, sde_traits, step_size, toward

if TYPE_CHECKING:
    from torch import Tensor

    Denoise = Callable[[Tensor, Level], Tensor]

__all__ = ["Ddpm", "EulerAncestral", "Lcm", "Tcd"]


@frozen
class EulerAncestral:
    """Euler to the lower noise of an ancestral step, then fresh noise: "Euler a".

    With ``s_noise = 1`` this is DDIM with the same ``eta``: the exact posterior on every schedule (on flow models
    ComfyUI uses another split of kept and fresh noise under this name).

    Source: Crowson 2022 (k-diffusion); Song, Meng, Ermon 2021, https://arxiv.org/abs/2010.02502, equation 16.

    Attributes:
        eta: Share of ancestral noise, 0 to 1.
        s_noise: Factor of the noise; only 1 keeps the right variance.
    """

    eta: float = field(default=1.0, converter=float)
    s_noise: float = field(default=1.0, converter=float)

    def __attrs_post_init__(self) -> None:
        check_range("eta", self.eta, 0, 1)
        check_range("s_noise", self.s_noise, 0)

    @property
    def traits(self) -> Traits:
        """Order 1."""
        return sde_traits(1, None, 1, self.eta, self.s_noise)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One evaluation at ``start``."""
        denoised = denoise(x, start)
        down, up = ancestral(start, stop, self.eta)
        ratio = down / start.sigma
        moved = (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)
        if up and self.s_noise:
            moved = moved.add_(noise(x, start, stop), alpha=up * self.s_noise)
        return Step(moved, denoised, None)


@frozen
class Ddpm:
    """DDPM: the mean of the posterior, and noise of one of the two variances its authors tried.

    ``variance="small"`` is the posterior's own, ``sigma'^2 (1 - e^(-2h))``, and the method is ancestral sampling.
    ``"large"`` is that of the forward step from the next level to this one, ``sigma^2 (1 - e^(-2h))``, in the scale of
    the next level. Both agree as steps become short.

    Source: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239, section 3.2.
    """

    variance: Literal["small", "large"] = "small"

    def __attrs_post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ParameterError(f"The variance is 'small' or 'large', not {self.variance!r}.")

    @property
    def traits(self) -> Traits:
        """Order 1, stochastic."""
        return Traits(1, None, True, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One evaluation at ``start``."""
        denoised = denoise(x, start)
        down, up = ancestral(start, stop, 1.0)
        ratio = down / start.sigma
        moved = (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)
        if up:
            # forward step: x = (alpha / alpha') x' + noise of variance sigma^2 - (alpha sigma' / alpha')^2
            spread = start.sigma * math.sqrt(-math.expm1(-2 * step_size(start, stop)))
            scale = stop.norm / start.norm
            moved = moved.add_(noise(x, start, stop), alpha=up if self.variance == "small" else spread * scale)
        return Step(moved, denoised, None)


@frozen
class Lcm:
    """Multistep consistency sampling: believe the prediction, noise it again to the next level.

    For models distilled to predict the end of the path in one evaluation (consistency and latent consistency models).
    With an ordinary denoiser it does not converge to the data, so it promises no order.

    Sources: Song et al. 2023, https://arxiv.org/abs/2303.01469, algorithm 1; Luo et al. 2023,
    https://arxiv.org/abs/2310.04378.
    """

    @property
    def traits(self) -> Traits:
        """Order 0: not a solver of the equation."""
        return Traits(0, None, True, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One evaluation at ``start``; noise unless ``stop`` is clean."""
        denoised = denoise(x, start)
        moved = denoised * stop.alpha
        if stop.sigma > 0:
            moved = moved.add_(noise(x, start, stop), alpha=stop.sigma)
        return Step(moved, denoised, None)


@frozen
class Tcd:
    """Trajectory consistency sampling: to a level with less noise than the next one, then noise it up again.

    The level in between has ``s = (1 - gamma) s'``, so ``gamma = 0`` is Euler's method and ``gamma = 1`` is `Lcm`, on
    any schedule. The authors place it at ``floor((1 - gamma) t')``, the share of the next *time*, which depends on the
    schedule the model was trained on: name it to have theirs. (Their last step ends at time 0, ours at clean.)

    Source: Zheng et al. 2024, https://arxiv.org/abs/2402.19159, algorithm 4 (strategic stochastic sampling).

    Attributes:
        gamma: Share of noise that is made anew, 0 to 1.
        schedule: Text of a noise schedule, such as ``"scaled-linear"``, whose times are shared; empty to share s.
    """

    gamma: float = field(default=0.3, converter=float)
    schedule: str = ""

    def __attrs_post_init__(self) -> None:
        check_range("gamma", self.gamma, 0, 1)
        if self.schedule:
            _schedule(self.schedule)

    @property
    def traits(self) -> Traits:
        """Order 1 without noise; with it, none is promised (as for `Lcm`)."""
        return Traits(0 if self.gamma > 0 else 1, None, self.gamma > 0, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing to remember."""

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: None, noise: Noise, /) -> Step[None]:
        """One evaluation at ``start``; noise unless ``stop`` is clean or gamma is 0."""
        denoised = denoise(x, start)
        if self.gamma == 0 or stop.sigma == 0:
            return Step(toward(x, denoised, start, stop), denoised, None)
        kept = self._kept(stop)
        ratio = kept / start.sigma
        moved = (x * ratio).add_(denoised, alpha=stop.alpha - start.alpha * ratio)
        fresh = math.sqrt((stop.sigma - kept) * (stop.sigma + kept))
        return Step(moved.add_(noise(x, start, stop), alpha=fresh), denoised, None)

    def _kept(self, stop: Level) -> float:
        """Noise, in the scale of ``stop``, of the level in between."""
        if not self.schedule:
            return (1 - self.gamma) * stop.sigma
        schedule = _schedule(self.schedule)
        t = (1 - self.gamma) * schedule.time(stop.log_snr)
        # a time that was read back from log_snr may miss a whole number by rounding
        t = math.floor(t + 1e-6) if schedule.train_steps is not None else t
        return min(stop.alpha * schedule.level(t).noise_to_signal, stop.sigma)


@cache
def _schedule(text: str) -> NoiseSchedule:
    made: NoiseSchedule = registry().make("schedule", text)
    return made
