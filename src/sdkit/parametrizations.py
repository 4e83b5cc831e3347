"""What a network predicts, as host floats at each level.

One law for all of them: ``denoised = skip * x + out * network(in_ * x, time)``. With ``n = sqrt(alpha^2 + sigma^2)``
(1 on variance-preserving schedules):

=========  ======================================  ==================  ===================  =====================
name       the network predicts                    skip                out                  in_
=========  ======================================  ==================  ===================  =====================
epsilon    noise                                   1 / alpha           -sigma / alpha       1 / n
velocity   (alpha * noise - sigma * x0) / n        alpha / n^2         -sigma / n           1 / n
flow       noise - x0                              1 / (alpha + sigma) -sigma/(alpha+sigma) 1 / (alpha + sigma)
sample     x0                                      0                   1                    1 / n
edm        preconditioned x0 (Karras et al. 2022)  see `Edm`
=========  ======================================  ==================  ===================  =====================

``in_`` brings a latent in any scale back to the scale the network was trained in, so the same network under the same
schedule written in another scale gives the same ``x0``. Sources: epsilon, Ho et al. 2020
(https://arxiv.org/abs/2006.11239); velocity, Salimans and Ho 2022 (https://arxiv.org/abs/2202.00512); flow, Liu et al.
2022 (https://arxiv.org/abs/2209.03003); EDM, Karras et al. 2022 (https://arxiv.org/abs/2206.00364, table 1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen

from sdkit.errors import LevelError, ParameterError
from sdkit.levels import Level
from sdkit.protocols import Scaling

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Edm", "Epsilon", "Flow", "Sample", "Velocity"]


@frozen
class Epsilon:
    """The network predicts the noise. Undefined where alpha is 0: there the noise says nothing about the picture."""

    def __call__(self, level: Level, /) -> Scaling:
        """The scaling at ``level``; its time is the schedule's own.

        Raises:
            LevelError: alpha is 0.
        """
        if level.alpha == 0:
            raise LevelError(
                f"A network that predicts noise cannot start from {level}, where alpha is 0 and nothing of the picture "
                "is left; use a schedule without zero terminal SNR or a velocity model."
            )
        return Scaling(1 / level.alpha, -level.sigma / level.alpha, 1 / level.norm, level.t)

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """``noise``."""
        return noise


@frozen
class Velocity:
    """The network predicts ``(alpha * noise - sigma * x0) / n``, defined at every level."""

    def __call__(self, level: Level, /) -> Scaling:
        """The scaling at ``level``; its time is the schedule's own."""
        n = level.norm
        return Scaling(level.alpha / n**2, -level.sigma / n, 1 / n, level.t)

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """``(alpha * noise - sigma * x0) / n``."""
        n = level.norm
        return noise * (level.alpha / n) - x0 * (level.sigma / n)


@frozen
class Flow:
    """The network predicts ``noise - x0``, the velocity of a straight line, and is told ``sigma / (alpha + sigma)``.

    Attributes:
        time_scale: The network's time runs from 0 to this (1000 for Stable Diffusion 3, 1 for most others).
    """

    time_scale: float = field(default=1.0, converter=float)

    def __call__(self, level: Level, /) -> Scaling:
        """The scaling at ``level``."""
        total = level.alpha + level.sigma
        return Scaling(1 / total, -level.sigma / total, 1 / total, self.time_scale * level.sigma / total)

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """``noise - x0``."""
        return noise - x0


@frozen
class Sample:
    """The network predicts the picture itself."""

    def __call__(self, level: Level, /) -> Scaling:
        """The scaling at ``level``; its time is the schedule's own."""
        return Scaling(0.0, 1.0, 1 / level.norm, level.t)

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """``x0``."""
        return x0


@frozen
class Edm:
    """EDM preconditioning, written for a latent in any scale (``s = sigma / alpha``).

    ``skip = d^2 / (s^2 + d^2)``, ``out = s d / sqrt(s^2 + d^2)``, ``in = 1 / sqrt(s^2 + d^2)``, ``time = log(s) / 4``
    for ``x / alpha``. Undefined at alpha = 0 (s is infinite) and where there is no noise (log 0).

    Attributes:
        sigma_data: Standard deviation ``d`` of the data, above 0.
    """

    sigma_data: float = field(default=0.5, converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ParameterError(f"sigma_data must be above 0, not {self.sigma_data}.")

    def __call__(self, level: Level, /) -> Scaling:
        """The scaling at ``level``.

        Raises:
            LevelError: alpha or sigma is 0.
        """
        if level.alpha == 0 or level.sigma == 0:
            raise LevelError(f"EDM preconditioning is undefined at {level}; it needs alpha > 0 and sigma > 0.")
        a, s, d = level.alpha, level.sigma, self.sigma_data
        root = math.hypot(s, a * d)
        return Scaling(a * d * d / root**2, s * d / root, 1 / root, -level.log_snr / 4)

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """``(x0 - skip * x) / out`` at ``x = alpha * x0 + sigma * noise``, written out without cancellation."""
        a, s, d = level.alpha, level.sigma, self.sigma_data
        if a == 0 or s == 0:
            raise LevelError(f"EDM preconditioning is undefined at {level}; it needs alpha > 0 and sigma > 0.")
        root = math.hypot(s, a * d)
        # x0 - skip * (a x0 + s noise) = (s^2 x0 - a d^2 s noise) / root^2; divided by out = s d / root.
        return x0 * (s / (d * root)) - noise * (a * d / root)
