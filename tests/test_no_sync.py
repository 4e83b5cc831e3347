"""A step never asks the host to read a tensor: on an accelerator it would wait there for all work queued before.

Latents on torch's "meta" device have a shape and no values, so whatever reads one raises. Every scheduler that is
installed runs there, with the noise and the network's wrapper of a real run. `dpm-adaptive` reads the error of each step
it tries, which is what it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdkit import (
    AddressedNoise,
    Conditions,
    EdmSchedule,
    Grid,
    Karras,
    Level,
    NetworkDenoiser,
    RectifiedFlow,
    Trailing,
    Velocity,
    guided,
    registry,
    scaled_linear,
    solve,
)

READS = {"dpm-adaptive"}
NAMES = sorted(entry.component.name for entry in registry().entries("scheduler"))
GRIDS: dict[str, Grid] = {
    "sd": Karras()(scaled_linear(), 7),
    "zero-snr": Trailing()(scaled_linear().zero_terminal_snr(), 6),
    "edm": Karras()(EdmSchedule(), 6),
    "flow": Trailing()(RectifiedFlow(3), 6),
    "one": Trailing()(scaled_linear(), 1),
}
NETWORK = NetworkDenoiser(lambda x, time, cond: x * 0.5 + time.reshape(-1, 1, 1) * 1e-3, Velocity())


def denoise(x: Tensor, level: Level) -> Tensor:
    return NETWORK(x, level, None)


def latent() -> Tensor:
    return torch.empty(2, 3, 4, device="meta")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READS])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_no_step_reads_a_tensor(name: str, grid: Grid) -> None:
    scheduler = registry().make("scheduler", name)
    steps = list(solve(scheduler, denoise, latent(), grid, AddressedNoise((1, 2))))
    assert len(steps) == len(grid) - 1
    assert all(step.x.device.type == step.denoised.device.type == "meta" for step in steps)
    assert all(step.x.shape == (2, 3, 4) for step in steps)


@pytest.mark.parametrize("name", sorted(READS))
def test_the_exceptions_are_exceptions(name: str) -> None:
    scheduler = registry().make("scheduler", name)
    with pytest.raises((RuntimeError, NotImplementedError)):
        list(solve(scheduler, denoise, latent(), GRIDS["sd"], AddressedNoise((1, 2))))


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        float,
        bool,
        Tensor.tolist,
        Tensor.cpu,
        Tensor.numpy,
        lambda x: x.to("cpu"),
        lambda x: torch.nonzero(x),
        lambda x: x.repeat(3)[x.repeat(3) > 0],
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.ones(1) + x.repeat(2),
    ],
)
def test_whatever_reads_raises_there(read: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        read(torch.empty(1, device="meta"))


@pytest.mark.parametrize("options", [{}, {"rescale": 0.3}, {"interval": (0.5, 8.0)}], ids=str)
def test_guidance_reads_nothing(options: dict[str, Any]) -> None:
    denoiser, words = guided(NETWORK, 4.0, **options), torch.empty(2, 5, 6, device="meta")
    for level in GRIDS["sd"][:-1]:
        assert denoiser(latent(), level, Conditions(words, words + 1)).device.type == "meta"
