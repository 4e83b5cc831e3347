"""Schedulers that are another one with other defaults."""

from __future__ import annotations

from sdkit_samplers.exponential import DpmPP2MSde
from sdkit_samplers.singlestep import Seeds2
from sdkit_samplers.unipc import UniPC

__all__ = ["dpmpp_2m_sde_heun", "exp_heun", "exp_heun_sde", "unipc_bh1"]


def dpmpp_2m_sde_heun(eta: float = 1.0, s_noise: float = 1.0) -> DpmPP2MSde:
    """DPM-Solver++(2M) for the SDE, in its other form: see `DpmPP2MSde`."""
    return DpmPP2MSde(eta=eta, s_noise=s_noise, solver="heun")


def unipc_bh1(order: int = 2, corrector: bool = True) -> UniPC:
    """UniPC with the first of its two weights: see `UniPC`."""
    return UniPC(order=order, variant="bh1", corrector=corrector)


def exp_heun_sde(eta: float = 1.0, s_noise: float = 1.0) -> Seeds2:
    """Exponential Heun for the SDE: see `exp_heun`."""
    return exp_heun(eta, s_noise)


def exp_heun(eta: float = 0.0, s_noise: float = 1.0) -> Seeds2:
    """Exponential Heun: `Seeds2` with its stage at the end of the step and exact weights.

    Source: Hochbruck and Ostermann 2005, https://doi.org/10.1137/040611434 (two stages, c2 = 1).

    Args:
        eta: Noise of the SDE, 0 (none) upward.
        s_noise: Factor of the noise.
    """
    return Seeds2(eta=eta, s_noise=s_noise, r=1.0, solver="phi2")
