"""Noise schedules: how much noise there is at a time.

Shipped: discrete variance-preserving schedules made from betas, variance-exploding (EDM), rectified flow with shift.
All arithmetic is in host float64. ``alpha`` and ``sigma`` as in `sdkit.levels`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from sdkit.errors import LevelError, ParameterError
from sdkit.levels import Level

__all__ = ["DiscreteSchedule", "EdmSchedule", "RectifiedFlow", "cosine", "linear", "scaled_linear"]


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _positive_steps(steps: int) -> None:
    if steps < 2:
        raise ParameterError(f"A discrete schedule needs at least 2 training steps, not {steps}.")


@frozen
class DiscreteSchedule:
    """A variance-preserving schedule trained at integer times ``0 .. len(betas) - 1`` (Ho et al. 2020).

    ``alpha_t^2 = prod_{s <= t} (1 - beta_s)`` and ``sigma_t^2 = 1 - alpha_t^2``. Between integer times ``log_snr`` is
    interpolated linearly, as k-diffusion does; where the noisiest level has no signal (zero terminal SNR, so
    ``log_snr = -inf``) ``alpha`` is, on that last interval only. Time ``-1`` is the clean level.

    Source: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239.

    Attributes:
        betas: Noise added at each training step, each in (0, 1]; only the last may be 1 (no signal is left then).
    """

    betas: tuple[float, ...] = field(converter=_floats, repr=False)

    def __attrs_post_init__(self) -> None:
        _positive_steps(len(self.betas))
        for i, beta in enumerate(self.betas):
            if not 0 < beta <= 1 or (beta == 1 and i != len(self.betas) - 1):
                raise ParameterError(f"beta {i} is {beta}; betas lie in (0, 1), and only the last may be 1.")

    @cached_property
    def _alphas(self) -> NDArray[np.float64]:
        alphas: NDArray[np.float64] = np.sqrt(np.cumprod(1.0 - np.asarray(self.betas, dtype=np.float64)))
        return alphas

    @cached_property
    def _sigmas(self) -> NDArray[np.float64]:
        # 1 - prod(1 - beta) by expm1/log1p: the direct difference loses half the digits where little noise was added.
        with np.errstate(divide="ignore"):
            log_product = np.cumsum(np.log1p(-np.asarray(self.betas, dtype=np.float64)))
        sigmas: NDArray[np.float64] = np.sqrt(-np.expm1(log_product))
        return sigmas

    @cached_property
    def _log_snrs(self) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            return np.log(self._alphas) - np.log(self._sigmas)

    @property
    def train_steps(self) -> int:
        """Number of levels trained on."""
        return len(self.betas)

    @property
    def noisiest(self) -> Level:
        """The last training level; has no signal if the schedule has zero terminal SNR."""
        return self.level(self.train_steps - 1)

    @property
    def cleanest(self) -> Level:
        """The first training level, time 0."""
        return self.level(0)

    @property
    def clean(self) -> Level:
        """No noise; its time is -1, one step beyond the first training level."""
        return Level(-1.0, 1.0, 0.0)

    def level(self, t: float, /) -> Level:
        """The level at time ``t`` in ``[0, train_steps - 1]`` (fractions are interpolated) or at -1, clean.

        Raises:
            LevelError: ``t`` is outside.
        """
        last = self.train_steps - 1
        if t == -1:
            return self.clean
        if not 0 <= t <= last:
            raise LevelError(f"Time {t} is outside this schedule; allowed are 0 to {last}, and -1 for the clean level.")
        i = min(math.floor(t), last - 1)
        w = t - i
        if w == 0:
            return Level(t, self._alphas[i], self._sigmas[i])
        if w == 1:
            return Level(t, self._alphas[i + 1], self._sigmas[i + 1])
        low, high = float(self._log_snrs[i]), float(self._log_snrs[i + 1])
        if math.isinf(high):
            alpha = float(self._alphas[i]) * (1 - w)
            return Level(t, alpha, math.sqrt((1 - alpha) * (1 + alpha)))
        return _vp_level(t, low + w * (high - low))

    def time(self, log_snr: float, /) -> float:
        """The time at which the schedule has this ``log_snr``; ``inf`` gives -1, the clean level.

        Raises:
            LevelError: the schedule never has that ``log_snr``.
        """
        if log_snr == math.inf:
            return -1.0
        lams = self._log_snrs
        # A value recomputed elsewhere may miss an end point by rounding; that is the end point, not an error.
        slack = 1e-9
        if not lams[-1] - slack <= log_snr <= lams[0] + slack:
            raise LevelError(
                f"log_snr {log_snr:.6g} is outside this schedule, which has {lams[-1]:.6g} to {lams[0]:.6g}, "
                "and inf for clean."
            )
        # lams falls with time: search in the reversed array.
        i = self.train_steps - 1 - int(np.searchsorted(lams[::-1], log_snr, side="right"))
        i = min(max(i, 0), self.train_steps - 2)
        low, high = float(lams[i]), float(lams[i + 1])
        if math.isinf(high):
            if math.isinf(log_snr):
                return float(i + 1)
            w = 1 - _vp_level(0, log_snr).alpha / float(self._alphas[i])
        else:
            w = (log_snr - low) / (high - low)
        return i + min(max(w, 0.0), 1.0)

    def zero_terminal_snr(self) -> DiscreteSchedule:
        """This schedule with ``alpha`` shifted and scaled so that nothing of the picture is left at the end.

        Source: Lin et al. 2023, https://arxiv.org/abs/2305.08891, algorithm 1.
        """
        alphas = self._alphas
        first, last = float(alphas[0]), float(alphas[-1])
        rescaled = (alphas - last) * first / (first - last)
        products = rescaled**2
        ratios = products[1:] / products[:-1]
        return DiscreteSchedule((1 - float(products[0]), *(1 - float(r) for r in ratios)))


def _vp_level(t: float, log_snr: float) -> Level:
    """The variance-preserving level with this ``log_snr``, accurate at both ends."""
    # alpha^2 = sigmoid(2 lambda), sigma^2 = sigmoid(-2 lambda)
    return Level(t, math.sqrt(_sigmoid(2 * log_snr)), math.sqrt(_sigmoid(-2 * log_snr)))


def _sigmoid(z: float) -> float:
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    e = math.exp(z)
    return e / (1 + e)


def linear(start: float = 1e-4, stop: float = 0.02, steps: int = 1000) -> DiscreteSchedule:
    """Betas rising linearly (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""
    _positive_steps(steps)
    return DiscreteSchedule(np.linspace(start, stop, steps, dtype=np.float64))


def scaled_linear(start: float = 0.00085, stop: float = 0.012, steps: int = 1000) -> DiscreteSchedule:
    """Betas whose square roots rise linearly: the schedule of Stable Diffusion 1, 2 and XL.

    Source: Rombach et al. 2022, https://arxiv.org/abs/2112.10752.
    """
    _positive_steps(steps)
    return DiscreteSchedule(np.linspace(start**0.5, stop**0.5, steps, dtype=np.float64) ** 2)


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> DiscreteSchedule:
    """``alpha^2`` falling as a squared cosine (Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672)."""
    _positive_steps(steps)
    t = np.linspace(0, 1, steps + 1, dtype=np.float64)
    product = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return DiscreteSchedule(np.minimum(1 - product[1:] / product[:-1], max_beta))


@frozen
class EdmSchedule:
    """Variance exploding: ``alpha = 1`` and time is ``sigma`` itself.

    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364 (sigma from 0.002 to 80).
    """

    sigma_min: float = field(default=0.002, converter=float)
    sigma_max: float = field(default=80.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ParameterError(f"EDM needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}.")

    @property
    def train_steps(self) -> None:
        """Time is continuous."""
        return None

    @property
    def noisiest(self) -> Level:
        """``sigma_max``."""
        return self.level(self.sigma_max)

    @property
    def cleanest(self) -> Level:
        """``sigma_min``."""
        return self.level(self.sigma_min)

    @property
    def clean(self) -> Level:
        """Sigma 0."""
        return Level(0.0, 1.0, 0.0)

    def level(self, t: float, /) -> Level:
        """The level with ``sigma = t``, any ``t >= 0``; the usable range is a matter of spacing, not of definition."""
        if not 0 <= t < math.inf:
            raise LevelError(
                f"Time {t} is outside this schedule, whose time is sigma; allowed is any finite sigma >= 0."
            )
        return Level(t, 1.0, t)

    def time(self, log_snr: float, /) -> float:
        """``exp(-log_snr)``."""
        if not -700 < log_snr <= math.inf:
            raise LevelError(f"log_snr {log_snr} has no finite sigma in a variance-exploding schedule.")
        return math.exp(-log_snr)


@frozen
class RectifiedFlow:
    """Straight lines between picture and noise: ``sigma = shift * t / (1 + (shift - 1) * t)``, ``alpha = 1 - sigma``.

    ``shift`` moves the levels of evenly spaced times toward noise (Stable Diffusion 3 uses 3). The network is told
    ``sigma``, not ``t``: that is the business of `sdkit.parametrizations.Flow`.

    Sources: Liu et al. 2022, https://arxiv.org/abs/2209.03003; shift: Esser et al. 2024,
    https://arxiv.org/abs/2403.03206, section 5.3.2.

    Attributes:
        shift: Above 0; 1 is no shift.
        cleanest_time: Time of the cleanest usable level, in (0, 1).
    """

    shift: float = field(default=1.0, converter=float)
    cleanest_time: float = field(default=0.001, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ParameterError(f"A flow's shift must be above 0, not {self.shift}.")
        if not 0 < self.cleanest_time < 1:
            raise ParameterError(f"A flow's cleanest_time must lie between 0 and 1, not {self.cleanest_time}.")

    @property
    def train_steps(self) -> None:
        """Time is continuous."""
        return None

    @property
    def noisiest(self) -> Level:
        """Time 1: pure noise, alpha is 0."""
        return self.level(1.0)

    @property
    def cleanest(self) -> Level:
        """The level at ``cleanest_time``."""
        return self.level(self.cleanest_time)

    @property
    def clean(self) -> Level:
        """Time 0."""
        return Level(0.0, 1.0, 0.0)

    def level(self, t: float, /) -> Level:
        """The level at time ``t`` in [0, 1].

        Raises:
            LevelError: ``t`` is outside.
        """
        if not 0 <= t <= 1:
            raise LevelError(f"Time {t} is outside this schedule; a flow's time lies between 0 (clean) and 1 (noise).")
        bottom = 1 + (self.shift - 1) * t
        return Level(t, (1 - t) / bottom, self.shift * t / bottom)

    def time(self, log_snr: float, /) -> float:
        """The time at which the flow has this ``log_snr``: ``1 / (1 + shift * exp(log_snr))``.

        Raises:
            LevelError: ``log_snr`` is not a number.
        """
        if math.isnan(log_snr):
            raise LevelError("log_snr nan is no level of a flow; any number is, and infinity both ways.")
        if log_snr == math.inf:
            return 0.0
        return _sigmoid(-(log_snr + math.log(self.shift)))
