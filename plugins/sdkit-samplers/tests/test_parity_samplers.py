"""The same numbers as diffusers 0.42.1's classes, on the same levels in float64, for methods that both have.

diffusers lowers the order of its last steps on short runs (``lower_order_final``, below 15 steps); grids here have more.
The classes' own time grids, and what is wrong with them, are stepped around as in the core's parity tests: their tables
are overwritten with our levels.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests.oracles import Mixture, latents
from torch import Tensor

from sdkit import AddressedNoise, Grid, Karras, Level, Registry, Trailing, scaled_linear, solve
from sdkit_samplers import plugin

# diffusers calls numpy on tensors in ways that numpy 2 warns of
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

THEIRS: Any = diffusers
REGISTRY = Registry.of({"samplers": plugin})
SD, DATA = scaled_linear(), Mixture()
GRIDS: dict[str, Grid] = {"karras-20": Karras()(SD, 20), "trailing-25": Trailing()(SD, 25)}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
on_every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def start(grid: Grid) -> Tensor:
    return DATA.start(grid[0], latents(shape=(4, 5)))


def epsilon(x: Tensor, level: Level) -> Tensor:
    return (x - level.alpha * DATA(x, level)) / level.sigma


def ours(text: str, grid: Grid, noise: Any = None) -> list[Tensor]:
    scheduler = REGISTRY.make("scheduler", text)
    return [step.x for step in solve(scheduler, DATA, start(grid), grid, noise or AddressedNoise((1, 2)))]


def theirs(scheduler: Any, grid: Grid, noise: Any = None, *, but_last: int = 0) -> list[Tensor]:
    """A run of one of the classes that live in the variance-preserving scale, its last steps left out."""
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = torch.tensor([level.noise_to_signal for level in grid], dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(grid) - 1, 0, -1)
    scheduler.set_begin_index(0)
    x, steps = start(grid), []
    walked = list(zip(grid, grid[1:], scheduler.timesteps, strict=False))
    for level, after, t in walked[: len(walked) - but_last]:
        options = {} if noise is None else {"variance_noise": noise(x, level, after)}
        x = scheduler.step(epsilon(x, level), t, x, **options).prev_sample
        steps.append(x)
    return steps


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float) -> None:
    assert len(b) >= len(a) - 1
    for i, (mine, other) in enumerate(zip(a, b, strict=False)):
        difference = float((mine - other).abs().max())
        assert difference <= tolerance, f"step {i + 1}: {difference}"


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@on_every_grid
def test_unipc(grid: Grid, order: int, variant: str) -> None:
    scheduler = THEIRS.UniPCMultistepScheduler(
        **BETAS, solver_order=order, solver_type=variant, final_sigmas_type="zero", lower_order_final=False
    )
    # its step to clean is not lowered then, and has no solution; ours is Euler's
    mine = ours(f"unipc(order={order}, variant='{variant}')", grid)
    assert_same(mine, theirs(scheduler, grid, but_last=1), 1e-6)


@pytest.mark.parametrize("order", [2, 3])
@on_every_grid
def test_deis(grid: Grid, order: int) -> None:
    scheduler = THEIRS.DEISMultistepScheduler(**BETAS, solver_order=order, lower_order_final=False)
    # it has no form of the step to clean; ours is Euler's
    assert_same(ours(f"deis(order={order})", grid), theirs(scheduler, grid, but_last=1), 1e-6)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@on_every_grid
def test_dpmpp_2m_sde(grid: Grid, solver: str) -> None:
    noise = AddressedNoise((1, 2))
    scheduler = THEIRS.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++", solver_order=2, solver_type=solver, final_sigmas_type="zero"
    )
    mine = ours(f"dpmpp-2m-sde(solver='{solver}')", grid, noise)
    # it draws for the step to clean too, and weighs that draw with 0
    asked = lambda x, a, b: noise(x, a, b) if b.sigma else x * 0  # noqa: E731
    assert_same(mine, theirs(scheduler, grid, asked), 1e-5)


@on_every_grid
def test_lms(grid: Grid) -> None:
    scheduler = THEIRS.LMSDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = torch.tensor([level.noise_to_signal for level in grid], dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(grid) - 1, 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    scaled, steps = start(grid) / grid[0].alpha, []
    for level, after, t in zip(grid, grid[1:], scheduler.timesteps, strict=False):
        scaled = scheduler.step(epsilon(scaled * level.alpha, level), t, scaled, order=4).prev_sample
        steps.append(scaled * after.alpha)
    assert_same(ours("lms", grid), steps, 1e-5)
