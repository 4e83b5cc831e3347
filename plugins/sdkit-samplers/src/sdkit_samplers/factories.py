"""Schedulers that are another one with other defaults."""

from __future__ import annotations

from sdkit_samplers.singlestep import Seeds2

__all__ = ["exp_heun"]


def exp_heun(eta: float = 0.0, s_noise: float = 1.0) -> Seeds2:
    """Exponential Heun: `Seeds2` with its stage at the end of the step and exact weights.

    Source: Hochbruck and Ostermann 2005, https://doi.org/10.1137/040611434 (two stages, c2 = 1).

    Args:
        eta: Noise of the SDE, 0 (none) upward.
        s_noise: Factor of the noise.
    """
    return Seeds2(eta=eta, s_noise=s_noise, r=1.0, solver="phi2")
