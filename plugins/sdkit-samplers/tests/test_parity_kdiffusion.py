"""The same numbers as k-diffusion 0.1.1's samplers, in float64, on the same levels and with the same draws.

k-diffusion lives in ``x / alpha`` with ``sigma / alpha`` as its only level, so its side of a comparison gets our start
divided by alpha, and our noise addressed by ``Level(0, 1, sigma)``, which is the same address as in any other scale.
Every step's first prediction is compared, and the latent at the end. What differs, and why:

- ``sample_dpmpp_3m_sde`` weighs the second difference with half of what its quadratic has (D4 in "what was measured in
  diffusers"); its first two steps are ours, and the third differs by exactly that half.
- ``sample_dpmpp_2m_sde`` and ``_3m_sde`` crash on a run whose only step is the one to clean.
- ``sample_dpm_fast`` ends with a step of order 1 or 2 as the number of evaluations leaves it, ours always with 2.
- ``sample_dpm_adaptive`` accepts and chooses steps by another rule; its steps are ours, which of them are taken is not.
- Churn: ours does not raise the noise above the level a run starts from, where no network was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.kdiffusion import sampling
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
    Uniform,
    UniformLogSnr,
    scaled_linear,
    solve,
)
from sdkit_samplers import plugin

# it makes tensors of tensors, of which torch warns
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")

K = sampling()
REGISTRY = Registry.of({"samplers": plugin})
SD, EDM, DATA = scaled_linear(), EdmSchedule(), Mixture()
NOISE = AddressedNoise((1, 2))
GRIDS: dict[str, Grid] = {
    "vp-karras-20": Karras()(SD, 20),
    "vp-uniform-11": Uniform()(SD, 11),
    "vp-log-snr-6": UniformLogSnr()(SD, 6),
    "vp-one": Karras()(SD, 1),
    "vp-two": Karras()(SD, 2),
    "ve-karras-5": Karras()(EDM, 5),
    "ve-karras-30": Karras()(EDM, 30),
    "ve-log-snr-15": UniformLogSnr()(EDM, 15),
    "vp-not-clean": Karras()(SD, 12)[:-1],
}
on_every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
LONGER = {name: grid for name, grid in GRIDS.items() if len(grid) > 2}
on_longer_grids = pytest.mark.parametrize("grid", LONGER.values(), ids=LONGER)

Trace = list[Tensor]
"""Every step's prediction, then ``x / alpha`` at the end."""


@pytest.fixture(autouse=True)
def float64_by_default() -> Iterator[None]:
    """k-diffusion makes tensors of Python numbers inside."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def start(grid: Grid) -> Tensor:
    return DATA.start(grid[0], latents(shape=(4, 5)))


def ours(text: str, grid: Grid, noise: Any = NOISE) -> Trace:
    x, trace = start(grid), []
    for step in solve(REGISTRY.make("scheduler", text), DATA, x, grid, noise):
        x = step.x
        trace.append(step.denoised)
    return [*trace, x / grid[-1].alpha]


def model(x: Tensor, sigma: Tensor) -> Tensor:
    return DATA(x, Level(0, 1, float(sigma[0])))


def draw(x: Tensor) -> Callable[[Any, Any], Tensor]:
    return lambda sigma, after: NOISE(x, Level(0, 1, float(sigma)), Level(0, 1, float(after)))


def theirs(name: str, grid: Grid, *levels: Any, **options: Any) -> Trace:
    """A run of ``sample_<name>`` on all levels of ``grid``, or on what is given instead."""
    trace: Trace = []
    sample = getattr(K, f"sample_{name}")
    levels = levels or (torch.tensor([level.noise_to_signal for level in grid]),)
    x = start(grid) / grid[0].alpha
    end = sample(model, x, *levels, callback=lambda info: trace.append(info["denoised"]), disable=True, **options)
    return [*trace, end]


def differences(a: Trace, b: Trace) -> list[float]:
    """Largest differences, relative to the largest element where that is above 1."""
    return [float((mine - other).abs().max() / mine.abs().max().clamp(min=1)) for mine, other in zip(a, b, strict=True)]


def assert_same(a: Trace, b: Trace, tolerance: float = 1e-9) -> None:
    found = differences(a, b)
    assert max(found) <= tolerance, found


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samplers that know churn draw in every step, and weigh that with 0 where churn is off."""
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, math.nan))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("text", "name"), [("euler", "euler"), ("ddim", "euler"), ("heun", "heun"), ("dpm-2", "dpm_2")]
)
@on_every_grid
def test_one_step_methods(grid: Grid, text: str, name: str) -> None:
    assert_same(ours(text, grid, NoNoise()), theirs(name, grid))


@pytest.mark.parametrize(("text", "name"), [("lms", "lms"), ("dpmpp-2m", "dpmpp_2m")])
@on_every_grid
def test_multistep_methods(grid: Grid, text: str, name: str) -> None:
    assert_same(ours(text, grid, NoNoise()), theirs(name, grid))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms_of_lower_order(order: int) -> None:
    grid = GRIDS["vp-karras-20"]
    assert_same(ours(f"lms(order={order})", grid, NoNoise()), theirs("lms", grid, order=order))


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.4, 1.0), (0.0, 1.0), (1.0, 1.1)])
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("euler-ancestral", "euler_ancestral"),
        ("dpm-2-ancestral", "dpm_2_ancestral"),
        ("dpmpp-2s-ancestral", "dpmpp_2s_ancestral"),
        ("dpmpp-sde", "dpmpp_sde"),
    ],
)
@on_every_grid
def test_stochastic_methods(grid: Grid, text: str, name: str, eta: float, s_noise: float) -> None:
    options = {"eta": eta, "s_noise": s_noise, "noise_sampler": draw(start(grid))}
    assert_same(ours(f"{text}(eta={eta}, s_noise={s_noise})", grid), theirs(name, grid, **options))


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.4, 1.0), (0.0, 1.0), (1.0, 1.1)])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@on_longer_grids
def test_dpmpp_2m_sde(grid: Grid, solver: str, eta: float, s_noise: float) -> None:
    options = {"eta": eta, "s_noise": s_noise, "noise_sampler": draw(start(grid)), "solver_type": solver}
    text = f"dpmpp-2m-sde(eta={eta}, s_noise={s_noise}, solver='{solver}')"
    assert_same(ours(text, grid), theirs("dpmpp_2m_sde", grid, **options))


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_two_of_theirs_crash_where_the_only_step_ends_clean(name: str) -> None:
    grid = GRIDS["vp-one"]
    with pytest.raises(UnboundLocalError):
        theirs(name, grid, noise_sampler=draw(start(grid)))
    assert torch.isfinite(ours(name, grid)[-1]).all()


@on_every_grid
def test_ddim_with_eta_is_euler_ancestral(grid: Grid) -> None:
    assert_same(ours("ddim(eta=1)", grid), theirs("euler_ancestral", grid, noise_sampler=draw(start(grid))))


@pytest.mark.parametrize("r", [0.3, 1 / 2, 0.8])
def test_dpmpp_sde_with_its_stage_elsewhere(r: float) -> None:
    grid = GRIDS["ve-karras-30"]
    assert_same(ours(f"dpmpp-sde(r={r})", grid), theirs("dpmpp_sde", grid, noise_sampler=draw(start(grid)), r=r))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@on_longer_grids
def test_dpmpp_3m_sde_on_its_first_two_steps(grid: Grid, eta: float) -> None:
    short = grid[:3]
    options = {"eta": eta, "noise_sampler": draw(start(grid))}
    assert_same(ours(f"dpmpp-3m-sde(eta={eta})", short), theirs("dpmpp_3m_sde", short, **options))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if len(grid) > 5])
def test_dpmpp_3m_sde_differs_by_the_half_it_leaves_out(name: str, eta: float) -> None:
    grid = GRIDS[name][:4]
    mine = ours(f"dpmpp-3m-sde(eta={eta})", grid)
    other = theirs("dpmpp_3m_sde", grid, eta=eta, noise_sampler=draw(start(grid)))
    assert_same(mine[:-1], other[:-1])
    # the second divided difference of the data in L, and the integral that belongs to it: with v = (1 + eta) h that of
    # e^(-(v - u)) u (u + (1 + eta) h_1) minus what the slope at the start already has
    logs = [level.log_snr for level in grid]
    h, h1, h2 = logs[3] - logs[2], logs[2] - logs[1], logs[1] - logs[0]
    bend = ((mine[2] - mine[1]) / h1 - (mine[1] - mine[0]) / h2) / (h1 + h2) * h**2
    v = (1 + eta) * h
    left_out = bend * (0.5 - (math.expm1(-v) / v + 1) / v)
    scale = float(mine[-1].abs().max().clamp(min=1))
    assert float(left_out.abs().max()) / scale > 1e-7
    assert float((mine[-1] - other[-1] - left_out).abs().max()) <= 1e-9 * scale


def test_dpmpp_3m_sde_without_noise_converges_faster_for_it() -> None:
    errors = []
    for n in (64, 128):
        grid = UniformLogSnr()(EDM, n)[:-1]
        exact = DATA.flow(start(grid), grid[0], grid[-1])
        ends = ours("dpmpp-3m-sde(eta=0)", grid)[-1], theirs("dpmpp_3m_sde", grid, eta=0.0, noise_sampler=silent)[-1]
        errors.append([float((end - exact).abs().max()) for end in ends])
    orders = [math.log2(coarse / fine) for coarse, fine in zip(*errors, strict=True)]
    assert orders[0] > 2.7
    assert orders[1] < 2.3


def silent(sigma: Any, after: Any) -> Tensor:
    """What stands where a sampler asks for noise that it weighs with 0."""
    return torch.zeros(())


def finite(grid: Grid) -> tuple[float, float]:
    return grid[-1].noise_to_signal, grid[0].noise_to_signal


@pytest.mark.parametrize("evaluations", [5, 8, 14, 29])
@pytest.mark.parametrize("schedule", [SD, EDM], ids=["vp", "ve"])
def test_dpm_fast(schedule: Any, evaluations: int) -> None:
    # it makes its own levels, even in log sigma: these
    grid = UniformLogSnr()(schedule, evaluations // 3 + 2)[:-1]
    assert len(grid) == evaluations // 3 + 2
    assert_same(
        ours("dpm-fast", grid, NoNoise()), theirs("dpm_fast", grid, *finite(grid), evaluations, noise_sampler=silent)
    )


@pytest.mark.parametrize(("evaluations", "last"), [(12, 1), (13, 0), (21, 1), (22, 0)])
def test_dpm_fast_ends_otherwise_where_its_evaluations_do_not_come_out_even(evaluations: int, last: int) -> None:
    grid = UniformLogSnr()(SD, evaluations // 3 + 2)[:-1]
    mine, other = (
        ours("dpm-fast", grid, NoNoise()),
        theirs("dpm_fast", grid, *finite(grid), evaluations, noise_sampler=silent),
    )
    found = differences(mine, other)
    agree = len(found) - 1 - last
    assert max(found[:agree]) <= 1e-9
    assert all(1e-5 < difference < 0.1 for difference in found[agree:])


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("pair", [(0, 3), (5, 6), (10, 18)])
def test_one_accepted_step_of_dpm_adaptive(pair: tuple[int, int], order: int) -> None:
    whole = GRIDS["vp-karras-20"]
    grid = whole[pair[0]], whole[pair[1]]
    mine = ours(f"dpm-adaptive(order={order}, first=100, rtol=1000, atol=1000)", grid, NoNoise())
    options = {"order": order, "h_init": 100.0, "rtol": 1000.0, "atol": 1000.0, "noise_sampler": silent}
    assert_same(mine, theirs("dpm_adaptive", grid, *finite(grid), **options))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_arrives_at_the_same_place_to_within_its_tolerance(order: int, tolerance: float) -> None:
    whole = GRIDS["vp-karras-20"]
    grid = whole[0], whole[-2]
    text = f"dpm-adaptive(order={order}, rtol={tolerance}, atol={tolerance})"
    options = {"order": order, "rtol": tolerance, "atol": tolerance, "noise_sampler": silent}
    mine = ours(text, grid, NoNoise())[-1]
    other = theirs("dpm_adaptive", grid, *finite(grid), **options)[-1]
    difference = float((mine - other).abs().max())
    assert 0 < difference < 10 * tolerance


def churned(monkeypatch: pytest.MonkeyPatch, grid: Grid, s_min: float, s_max: float) -> None:
    """`torch.randn_like` gives, step for step, the draw that ours asks for: that of the interval before the step."""
    steps = iter(zip((grid[0], *grid), grid[:-1], strict=False))

    def drawn(x: Tensor) -> Tensor:
        before, level = next(steps)
        if not s_min <= level.noise_to_signal <= s_max:
            return torch.full_like(x, math.nan)
        return NOISE(x, before, level)

    monkeypatch.setattr(torch, "randn_like", drawn)


@pytest.mark.parametrize("churn", [1.5, 40.0])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("name", ["vp-karras-20", "vp-uniform-11", "ve-karras-30", "vp-not-clean"])
def test_churn(monkeypatch: pytest.MonkeyPatch, name: str, method: str, churn: float) -> None:
    grid = GRIDS[name]
    # the steps whose raised level stays below the first one: above it ours does not go
    s_min, s_max = 0.05, grid[0].noise_to_signal / 1.5
    churned(monkeypatch, grid, s_min, s_max)
    text = f"{method}-churn(churn={churn}, s_min={s_min}, s_max={s_max}, s_noise=1.003)"
    assert_same(ours(text, grid), theirs(method, grid, s_churn=churn, s_tmin=s_min, s_tmax=s_max, s_noise=1.003))


def test_churn_does_not_go_above_the_first_level_and_theirs_does(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, seen = GRIDS["vp-karras-20"], list[float]()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return model(x, sigma)

    K.sample_euler(watched, start(grid), sigmas(grid), disable=True, s_churn=40.0)
    highest = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        highest.append(level.noise_to_signal)
        return DATA(x, level)

    for _ in solve(REGISTRY.make("scheduler", "euler-churn(churn=40)"), denoise, start(grid), grid, NOISE):
        pass
    assert max(seen) == pytest.approx(math.sqrt(2) * grid[0].noise_to_signal)
    assert max(highest) == pytest.approx(grid[0].noise_to_signal)


def sigmas(grid: Grid) -> Tensor:
    return torch.tensor([level.noise_to_signal for level in grid])
