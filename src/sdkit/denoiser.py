"""From a network to a denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import attrs
import torch
from attrs import frozen

from sdkit.errors import ContractError
from sdkit.levels import Level
from sdkit.protocols import Network, NoiseSchedule, Parametrization

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NetworkDenoiser"]

C = TypeVar("C")


def _time(schedule: NoiseSchedule, log_snr: float) -> float:
    """The schedule's time; beyond the levels a network was trained on, that of the nearest one."""
    if schedule.train_steps is not None:
        log_snr = min(max(log_snr, schedule.noisiest.log_snr), schedule.cleanest.log_snr)
    return schedule.time(log_snr)


@frozen(eq=False)
class NetworkDenoiser(Generic[C]):
    """``E[x0 | x]`` from what a network predicts: ``skip * x + out * network(in_ * x, time)``.

    The latent's arithmetic stays in its own dtype (float32 as a rule); the network sees its input in ``dtype``.

    Attributes:
        network: ``(x, time, cond) -> Tensor``; time has shape (batch,) and the dtype of the latents.
        parametrization: What the network predicts.
        schedule: The noise schedule it was trained on: gives the time of levels a solver puts between those of the
            grid, and pipelines made from bare parts look for it here.
        dtype: Precision of the network, or None for that of the latents.
    """

    network: Network[C]
    parametrization: Parametrization
    schedule: NoiseSchedule | None = None
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor, level: Level, cond: C, /) -> Tensor:
        """The predicted clean latents; shape and dtype of ``x``.

        Raises:
            LevelError: the parametrization is undefined at ``level``.
            ContractError: the network answered with another shape.
        """
        if level.interpolated and self.schedule is not None:
            level = attrs.evolve(level, t=_time(self.schedule, level.log_snr), interpolated=False)
        scaling = self.parametrization(level)
        given = x if scaling.in_ == 1 else x * scaling.in_
        if self.dtype is not None:
            given = given.to(self.dtype)
        time = torch.full((x.shape[0],), scaling.time, dtype=x.dtype, device=x.device)
        predicted = self.network(given, time, cond).to(x.dtype)
        if predicted.shape != x.shape:
            raise ContractError(
                f"The network answered with shape {tuple(predicted.shape)} for latents of shape {tuple(x.shape)}; it "
                "must keep the shape."
            )
        if scaling.skip == 0:
            return predicted * scaling.out
        return (x * scaling.skip).add_(predicted, alpha=scaling.out)
