"""The same numbers as the rest of diffusers 0.42.1's classes (the first of them are in `test_parity_samplers`).

Every class gets our levels in float64 in place of its own tables, and our draws in place of its own (`randn_tensor` of
its module is replaced). What differs, and why:

- DPMSolverMultistep of order 3: half of the quadratic's coefficient is missing (D4 in "what was measured in
  diffusers"), and for the SDE its bracket has a wrong sign (D5). The first two steps are ours; of the third the
  difference is known in closed form, and it is that.
- DPMSolverSinglestep of order 3: ``solver_type`` changes its second stage and its third at once; DPM-Solver-3 of the
  paper, which is ours, has the second as "heun" has it and the third as "midpoint" has it.
- SASolver: its terms of order 2 are changed by a term of third order "for few steps"; taken out, it is ours. Its
  ``corrector_order`` counts the new prediction, ours does not, and it has no form of the step to clean.
- LCM: the boundary condition of consistency models is part of the scheduler there, of the network here.
- EDMEuler and DPMSolverMultistep compute in float32 (D21). IPNDM and EDM classes have schedules of their own, which are overwritten.
- PNDM without ``skip_prk_steps`` starts with Runge-Kutta steps, which the sampler Stable Diffusion was released with
  does not; ours has no such start.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from tests.oracles import Mixture, latents
from torch import Tensor

from sdkit import (
    AddressedNoise,
    EdmSchedule,
    Grid,
    Karras,
    Level,
    NoNoise,
    Registry,
    Trailing,
    UniformLogSnr,
    between,
    scaled_linear,
    solve,
)
from sdkit_samplers import plugin

# diffusers calls numpy on tensors in ways that numpy 2 warns of
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

THEIRS: Any = diffusers
REGISTRY = Registry.of({"samplers": plugin})
SD, EDM, DATA = scaled_linear(), EdmSchedule(), Mixture()
NOISE = AddressedNoise((1, 2))
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
GRIDS: dict[str, Grid] = {
    "karras-20": Karras()(SD, 20),
    "trailing-25": Trailing()(SD, 25),
    "log-snr-16": UniformLogSnr()(SD, 16),
    "karras-6": Karras()(SD, 6),
}
on_every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def start(grid: Grid) -> Tensor:
    return DATA.start(grid[0], latents(shape=(4, 5)))


def epsilon(x: Tensor, level: Level) -> Tensor:
    return (x - level.alpha * DATA(x, level)) / level.sigma


def ours(text: str, grid: Grid, noise: Any = NOISE) -> list[Tensor]:
    return [step.x for step in solve(REGISTRY.make("scheduler", text), DATA, start(grid), grid, noise)]


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-9) -> None:
    """Step for step, relative to the largest element where that is above 1."""
    for i, (mine, other) in enumerate(zip(a, b, strict=True)):
        difference = float((mine - other).abs().max() / mine.abs().max().clamp(min=1))
        assert difference <= tolerance, f"step {i + 1}: {difference}"


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[Tensor]], Iterator[Tensor]]:
    """Gives a class's module these draws in turn, and the iterator, so that a test sees whether all were taken."""

    def give(name: str, values: list[Tensor]) -> Iterator[Tensor]:
        left = iter(values)
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(left))
        return left

    return give


def drawn(grid: Grid) -> list[Tensor]:
    """Our draws for every step that does not end clean."""
    return [NOISE(start(grid), a, b) for a, b in pairwise(grid) if b.sigma > 0]


def tabled(name: str, grid: Grid, **options: Any) -> Any:
    """A class that steps through a table of training times, ``grid`` being that table: its next time is one less."""
    steps = len(grid) - 1
    scheduler = getattr(THEIRS, name)(num_train_timesteps=steps, trained_betas=[0.1] * steps, **options)
    scheduler.alphas_cumprod = torch.tensor([level.alpha**2 for level in grid[-2::-1]], dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def sigmas_of(grid: Grid) -> Tensor:
    return torch.tensor([level.noise_to_signal for level in grid], dtype=torch.float64)


def with_sigmas(scheduler: Any, sigmas: Tensor) -> Any:
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    scheduler.set_begin_index(0)
    return scheduler


def walk(scheduler: Any, grid: Grid) -> list[Tensor]:
    """A run in the variance-preserving scale, one evaluation per level."""
    x, steps = start(grid), []
    for level, t in zip(grid, scheduler.timesteps, strict=False):
        x = scheduler.step(epsilon(x, level), t, x).prev_sample
        steps.append(x)
    return steps[: len(grid) - 1]


@pytest.mark.parametrize("variance", ["small", "large"])
@on_every_grid
def test_ddpm(grid: Grid, variance: str, draws: Any) -> None:
    scheduler = tabled("DDPMScheduler", grid, variance_type=f"fixed_{variance}", clip_sample=False)
    scheduler.set_timesteps(len(grid) - 1)
    left = draws("ddpm", drawn(grid))
    assert_same(ours(f"ddpm(variance='{variance}')", grid), walk(scheduler, grid))
    assert next(left, None) is None


@on_every_grid
def test_plms(grid: Grid) -> None:
    scheduler = tabled("PNDMScheduler", grid, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(len(grid) - 1)
    x, steps = start(grid), []
    # the first step is evaluated at both of its ends
    for i, (level, t) in enumerate(zip([grid[0], *grid[1:2], *grid[1:-1]], scheduler.timesteps, strict=True)):
        x = scheduler.step(epsilon(x, level), t, x).prev_sample
        if i > 0:
            steps.append(x)
    assert_same(ours("plms", grid, NoNoise()), steps)


@on_every_grid
def test_ipndm(grid: Grid) -> None:
    # its network predicts a velocity, of a schedule that is a quarter of a circle
    scheduler = THEIRS.IPNDMScheduler()
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.alphas = torch.tensor([level.alpha for level in grid], dtype=torch.float64)
    scheduler.betas = torch.tensor([level.sigma for level in grid], dtype=torch.float64)
    scheduler.set_begin_index(0)
    x, steps = start(grid), []
    for level, t in zip(grid, scheduler.timesteps, strict=False):
        velocity = level.alpha * epsilon(x, level) - level.sigma * DATA(x, level)
        x = scheduler.step(velocity, t, x).prev_sample
        steps.append(x)
    assert_same(ours("ipndm", grid, NoNoise()), steps)


def two_stages(scheduler: Any, grid: Grid, inner: list[float]) -> list[Tensor]:
    """A run in ``x / alpha`` of a class that evaluates at ``inner``, too, except on the step to clean."""
    count = 2 * (len(grid) - 1) - 1
    scheduler.timesteps = torch.arange(count, 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    x, steps = start(grid) / grid[0].alpha, []
    for i, t in enumerate(scheduler.timesteps):
        s = inner[i // 2] if i % 2 else grid[i // 2].noise_to_signal
        x = scheduler.step(epsilon(x, Level(0, 1, s)), t, x).prev_sample
        if i % 2:
            steps.append(x * grid[i // 2 + 1].alpha)
    return [*steps, x]


def middle(s: float, after: float) -> float:
    return math.sqrt(s * after)


@on_every_grid
def test_dpm_2(grid: Grid) -> None:
    scheduler = THEIRS.KDPM2DiscreteScheduler(**BETAS)
    scheduler.set_timesteps(len(grid) - 1)
    sigmas = sigmas_of(grid)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    inner = [middle(float(a), float(b)) for a, b in pairwise(sigmas)]
    scheduler.sigmas_interpol = torch.tensor([math.nan, *(s for s in inner for _ in range(2))], dtype=torch.float64)
    assert_same(ours("dpm-2", grid, NoNoise()), two_stages(scheduler, grid, inner))


@on_every_grid
def test_dpm_2_ancestral(grid: Grid, draws: Any) -> None:
    scheduler = THEIRS.KDPM2AncestralDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(len(grid) - 1)
    sigmas = sigmas_of(grid)
    # its own formulas, in float64 on our levels
    up = sigmas[1:] * ((sigmas[:-1] - sigmas[1:]) * (sigmas[:-1] + sigmas[1:])).sqrt() / sigmas[:-1]
    down = (sigmas[1:] ** 2 - up**2).sqrt()
    inner = (sigmas[:-1] * down).sqrt()
    scheduler.sigmas, scheduler.sigmas_interpol = sigmas.repeat_interleave(2), inner.repeat_interleave(2)
    scheduler.sigmas_up, scheduler.sigmas_down = up.repeat_interleave(2), down.repeat_interleave(2)
    left = draws("k_dpm_2_ancestral_discrete", drawn(grid))
    assert_same(ours("dpm-2-ancestral", grid), two_stages(scheduler, grid, inner.tolist()))
    assert next(left, None) is None


@on_every_grid
def test_dpmpp_sde(grid: Grid) -> None:
    scheduler = THEIRS.DPMSolverSDEScheduler(**BETAS)
    scheduler.set_timesteps(len(grid) - 1)
    sigmas = sigmas_of(grid)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    inner = [middle(float(a), float(b)) for a, b in pairwise(sigmas)]
    like = start(grid)
    scheduler.noise_sampler = lambda s, after: NOISE(like, Level(0, 1, float(s)), Level(0, 1, float(after)))
    assert_same(ours("dpmpp-sde", grid), two_stages(scheduler, grid, inner))


@pytest.mark.parametrize("order", [2, 3])
@on_every_grid
def test_dpm_singlestep(grid: Grid, order: int) -> None:
    grid = grid[:-1]  # its step to clean is of order 1 and has no stages
    whole = [
        level if i == 0 else between(a, b, level.log_snr + i / order * (b.log_snr - a.log_snr))
        for a, b in pairwise(grid)
        for level in [a]
        for i in range(order)
    ]
    scheduler = THEIRS.DPMSolverSinglestepScheduler(**BETAS, solver_order=order, lower_order_final=False)
    with_sigmas(scheduler, sigmas_of((*whole, grid[-1])))
    scheduler.order_list = list(range(1, order + 1)) * (len(grid) - 1)
    x, steps = start(grid), []
    for i, (level, t) in enumerate(zip(whole, scheduler.timesteps, strict=True)):
        # of order 3, the second stage is the paper's in one of its types, and the third in the other
        scheduler.register_to_config(solver_type="heun" if order == 3 and i % 3 == 1 else "midpoint")
        x = scheduler.step(epsilon(x, level), t, x).prev_sample
        if i % order == order - 1:
            steps.append(x)
    assert_same(ours(f"dpm-singlestep(order={order})", grid, NoNoise()), steps)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@on_every_grid
def test_dpmpp_3m_differs_by_a_known_term(grid: Grid, algorithm: str, draws: Any) -> None:
    first, eta = len(grid) // 2 - 1, float(algorithm.startswith("sde"))
    grid = grid[first : first + 4]  # in the middle, where the term counts
    scheduler = THEIRS.DPMSolverMultistepScheduler(
        **BETAS, solver_order=3, algorithm_type=algorithm, lower_order_final=False, final_sigmas_type="sigma_min",
        solver_type="heun",  # of its second step, which is of order 2: the exact integral
    )  # fmt: skip
    draws("dpmsolver_multistep", drawn(grid))
    other = walk(with_sigmas(scheduler, sigmas_of(grid)), grid)
    made = list(solve(REGISTRY.make("scheduler", f"dpmpp-3m-sde(eta={eta})"), DATA, start(grid), grid, NOISE))
    mine = [step.x for step in made]
    assert_same(mine[:2], other[:2], 1e-6)  # in float32, whatever it is given
    d, logs = [step.denoised for step in made], [level.log_snr for level in grid]
    h, h1, h2 = logs[3] - logs[2], logs[2] - logs[1], logs[1] - logs[0]
    # the second divided difference of the last three predictions, and the integral that belongs to it
    bend = ((d[2] - d[1]) / h1 - (d[1] - d[0]) / h2) / (h1 + h2) * h**2 * grid[3].alpha
    v = (1 + eta) * h
    part = (math.expm1(-v) / v + 1) / v
    # right is twice 0.5 - part; theirs is once that, or with the sign mistaken -0.5 - part
    left_out = bend * ((1.5 - part) if eta else (0.5 - part))
    assert float(left_out.abs().max()) > 1e-5
    assert_same([mine[2] - left_out], other[2:], 1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.6])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 3), (2, 3)])
@on_every_grid
def test_sa_solver(
    grid: Grid, predictor: int, corrector: int, tau: float, draws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid[:-1]
    scheduler = THEIRS.SASolverScheduler(
        **BETAS, predictor_order=predictor, corrector_order=corrector + 1, lower_order_final=False
    )
    scheduler.tau_func = lambda t: tau
    exact = scheduler.get_coefficients_fn

    def unchanged(order: int, a: Tensor, b: Tensor, logs: list[Tensor], tau: float) -> list[Tensor]:
        """What it computes, less what it will add to it at order 2."""
        weights = list(exact(order, a, b, logs, tau))
        if order == 2:
            h, k = b - a, 1 + tau**2
            term = (k * b).exp() * (h**2 / 2 - (k * h - 1 + (-k * h).exp()) / k**2) / (logs[0] - logs[1])
            weights = [weights[0] - term, weights[1] + term]
        return weights

    monkeypatch.setattr(scheduler, "get_coefficients_fn", unchanged)
    draws("sasolver", drawn(grid))
    other = walk(with_sigmas(scheduler, sigmas_of(grid)), grid)
    # its closed forms cancel: that is D6, in float64
    assert_same(ours(f"sa-solver(predictor={predictor}, corrector={corrector}, tau={tau})", grid), other, 1e-7)


def test_sa_solver_changes_its_terms_of_order_2_by_little(draws: Any) -> None:
    differences = []
    for n in (20, 40):
        grid = UniformLogSnr()(SD, n)[:-1]
        scheduler = THEIRS.SASolverScheduler(**BETAS, predictor_order=2, corrector_order=2, lower_order_final=False)
        scheduler.tau_func = lambda t: 1.0
        draws("sasolver", drawn(grid))
        other = walk(with_sigmas(scheduler, sigmas_of(grid)), grid)
        differences.append(float((ours("sa-solver(predictor=2, corrector=1)", grid)[-1] - other[-1]).abs().max()))
    assert 1e-6 < differences[1] < differences[0] / 2
    assert differences[0] < 0.1


@pytest.mark.parametrize("scaling", [10.0, 1e8])
@on_every_grid
def test_lcm(grid: Grid, scaling: float, draws: Any) -> None:
    # a time of 0 would be its boundary, where it returns the latent itself: the table gets an entry that is not used
    scheduler = tabled("LCMScheduler", (*grid[:-1], grid[-2], grid[-1]), clip_sample=False, timestep_scaling=scaling)
    scheduler.num_inference_steps = len(grid) - 1
    scheduler.timesteps = torch.arange(len(grid) - 1, 0, -1)
    scheduler.set_begin_index(0)
    left = draws("lcm", drawn(grid))
    mine, other = ours("lcm", grid), walk(scheduler, grid)
    assert next(left, None) is None
    if scaling > 1e6:
        assert_same(mine, other)
        return
    # its default keeps 0.5^2 / ((10 t)^2 + 0.5^2) of the latent: 0.25 % of it and less from the time 1 up
    with pytest.raises(AssertionError):
        assert_same(mine, other)
    assert_same(mine, other, 2e-2)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@on_every_grid
def test_tcd_at_both_ends_of_gamma(grid: Grid, gamma: float, draws: Any) -> None:
    # it goes to (1 - gamma) of the next time and up again; the time 0 is not quite clean there, and clean here
    steps = len(grid) - 1
    scheduler = tabled("TCDScheduler", (*grid, grid[-1]), clip_sample=False)
    assert float(scheduler.alphas_cumprod[0]) == 1
    scheduler.num_inference_steps = steps
    scheduler.timesteps = torch.arange(steps, 0, -1)
    scheduler.set_begin_index(0)
    left = draws("tcd", drawn(grid))
    x, other = start(grid), []
    for level, t in zip(grid, scheduler.timesteps, strict=False):
        x = scheduler.step(epsilon(x, level), t, x, eta=gamma).prev_sample
        other.append(x)
    assert_same(ours(f"tcd(gamma={gamma})", grid), other)
    assert (next(left, None) is None) == (gamma > 0)


EDM_GRIDS: dict[str, Grid] = {"karras-18": Karras()(EDM, 18), "log-snr-16": UniformLogSnr()(EDM, 16)}
on_every_edm_grid = pytest.mark.parametrize("grid", EDM_GRIDS.values(), ids=EDM_GRIDS)


def preconditioned(x: Tensor, level: Level) -> Tensor:
    """The answer of a network with EDM's preconditioning, for data of standard deviation 0.5."""
    root = math.hypot(level.sigma, 0.5)
    return (DATA(x, level) - x * (0.5 / root) ** 2) / (level.sigma * 0.5 / root)


def walk_edm(scheduler: Any, grid: Grid, sigmas: Tensor) -> list[Tensor]:
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(len(grid) - 1, 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    x, steps = start(grid), []
    for level, t in zip(grid, scheduler.timesteps, strict=False):
        x = scheduler.step(preconditioned(x, level), t, x).prev_sample
        steps.append(x)
    return steps


@on_every_edm_grid
def test_edm_euler(grid: Grid) -> None:
    # in float32, whatever it is given
    other = walk_edm(THEIRS.EDMEulerScheduler(), grid, sigmas_of(grid))
    assert_same(ours("euler", grid, NoNoise()), other, 1e-6)


@on_every_edm_grid
def test_edm_dpm_solver(grid: Grid) -> None:
    scheduler = THEIRS.EDMDPMSolverMultistepScheduler(solver_order=2, final_sigmas_type="zero")
    assert_same(ours("dpmpp-2m", grid, NoNoise()), walk_edm(scheduler, grid, sigmas_of(grid)))


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@on_every_edm_grid
def test_edm_dpm_solver_for_the_sde(grid: Grid, solver: str, draws: Any) -> None:
    scheduler = THEIRS.EDMDPMSolverMultistepScheduler(
        solver_order=2, algorithm_type="sde-dpmsolver++", solver_type=solver, final_sigmas_type="zero"
    )
    # it draws for the step to clean, too, and weighs that draw with 0
    left = draws("edm_dpmsolver_multistep", [*drawn(grid), torch.ones(())])
    other = walk_edm(scheduler, grid, sigmas_of(grid))
    assert_same(ours(f"dpmpp-2m-sde(solver='{solver}')", grid), other)
    assert next(left, None) is None
