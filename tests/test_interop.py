"""Samplers of other libraries as schedulers: replayed to the bit, driven on our levels, refused in one sentence."""

from __future__ import annotations

import importlib.metadata
import pickle
import subprocess
import sys
from itertools import pairwise
from typing import Any

import attrs
import diffusers
import pytest
import torch
from torch import Tensor

import sdkit
from sdkit import (
    AddressedNoise,
    Ddim,
    DpmPP2M,
    Euler,
    Grid,
    Heun,
    Karras,
    Level,
    NoNoise,
    RectifiedFlow,
    Trailing,
    scaled_linear,
    solve,
    testing,
)
from sdkit.interop import KINDS, from_diffusers, from_kdiffusion, grid_of
from sdkit.interop.draws import AnsweredDraws, Path, level_of
from sdkit.testing import Mixture, PointMass, apply

# diffusers hands tensors to numpy in ways that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

# The functions themselves, as users have them: conftest puts refusing ones in their place. Inside a run sdkit answers
# them, and conftest still sees whether the global generator was touched.
RANDN_LIKE = torch.randn_like

SD = scaled_linear()
DATA = Mixture()
GRID = Karras()(SD, 7)
NOISE = AddressedNoise((1, 2))
THEIRS: Any = diffusers


def start(grid: Grid = GRID, dtype: torch.dtype = torch.float64) -> Tensor:
    return DATA.start(grid[0], NOISE.initial(torch.empty(2, 1, 4, dtype=torch.float64))).to(dtype)


def run(scheduler: Any, grid: Grid = GRID, noise: Any = NOISE, data: Any = DATA) -> Tensor:
    *_, last = solve(scheduler, data, start(grid), grid, noise)
    return last.x


# Sampler functions, in k-diffusion's convention.


def two_step(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Tensor:
    """DPM-Solver++(2M), which needs the past, and has a first and a last step of its own."""
    ones, old = x.new_ones(x.shape[0]), None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        h = sigmas[i].log() - sigmas[i + 1].log()
        estimate = denoised
        if old is not None and sigmas[i + 1] > 0:
            past = h / (2 * (sigmas[i - 1].log() - sigmas[i].log()))
            estimate = (1 + past) * denoised - past * old
        x = sigmas[i + 1] / sigmas[i] * x - (-h).expm1() * estimate
        old = denoised
    return x


def two_stage(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    noise_sampler: Any = None,
) -> Tensor:
    """Midpoint steps of an ancestral method that asks noise for overlapping intervals."""
    ones = x.new_ones(x.shape[0])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones)
        callback({"x": x, "i": i, "denoised": denoised})
        if sigmas[i + 1] == 0:
            return denoised
        middle = (sigmas[i] * sigmas[i + 1]).sqrt()
        half = denoised + (x - denoised) * (middle / sigmas[i]) * 0.9 + 0.1 * middle * noise_sampler(sigmas[i], middle)
        again = model(half, middle * ones)
        x = (
            again
            + (x - again) * (sigmas[i + 1] / sigmas[i]) * 0.9
            + 0.1 * sigmas[i + 1] * noise_sampler(sigmas[i], sigmas[i + 1])
        )
    return x


def drawing(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    s_churn: float = 0.0,
) -> Tensor:
    """Euler with churn, drawing always as k-diffusion does, and using what it drew only if asked to."""
    ones = x.new_ones(x.shape[0])
    for i in range(len(sigmas) - 1):
        eps = torch.randn_like(x)
        hat = sigmas[i] * (1 + s_churn)
        if s_churn > 0:
            x = x + eps * (hat**2 - sigmas[i] ** 2) ** 0.5
        denoised = model(x, hat * ones)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": hat, "denoised": denoised})
        x = denoised + (x - denoised) * (sigmas[i + 1] / hat)
    return x


@pytest.fixture
def real_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn_like", RANDN_LIKE)


def test_a_two_step_function_is_the_two_step_scheduler() -> None:
    theirs = from_kdiffusion(two_step, order=2, startup_order=1)
    assert theirs.traits == sdkit.Traits(2, 1, False, False, 1)
    torch.testing.assert_close(run(theirs), run(DpmPP2M()), rtol=0, atol=1e-11)


def straight(function: Any, grid: Grid, noise: Any = NOISE, **options: Any) -> tuple[Tensor, int]:
    """The function run once, without us, on the same levels and noise."""
    calls = 0

    def at(sigma: Any) -> Level:
        return level_of(grid, float(sigma), 1e-13)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        level = at(sigma[0])
        return DATA(x * level.alpha, level)

    path = Path(lambda a, b: noise(start(grid), at(a), at(b)))
    if "noise_sampler" in options:
        options["noise_sampler"] = lambda a, b: path(at(a).noise_to_signal, at(b).noise_to_signal)
    sigmas = torch.tensor([level.noise_to_signal for level in grid], dtype=torch.float64)
    ended = function(model, start(grid) / grid[0].alpha, sigmas, callback=lambda state: None, **options)
    return ended * grid[-1].alpha, calls


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(("function", "options"), [(two_step, {}), (two_stage, {"noise_sampler": None})])
def test_replay_gives_the_bits_and_the_calls_of_the_function_run_straight(
    function: Any, options: Any, steps: int
) -> None:
    grid = Trailing()(SD, steps)
    expected, calls = straight(function, grid, **options)
    made = 0

    def counted(x: Tensor, level: Level) -> Tensor:
        nonlocal made
        made += 1
        return DATA(x, level)

    for step in solve(from_kdiffusion(function), counted, start(grid), grid, NOISE):
        step = pickle.loads(pickle.dumps(step))
    assert torch.equal(step.x, expected)
    assert made == calls


FUNCTIONS = ["dpm_2", "dpm_2_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "dpmpp_sde"]
FUNCTIONS += ["euler", "euler_ancestral", "heun", "lms"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_k_diffusions_own_functions(name: str, real_draws: None) -> None:
    try:
        importlib.metadata.distribution("k-diffusion")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is not installed (requirements-parity.txt)")
    from tests.kdiffusion import sampling

    function = getattr(sampling(), f"sample_{name}")
    scheduler = from_kdiffusion(function)
    options = {"noise_sampler": None} if scheduler.traits.stochastic else {}
    with AnsweredDraws(torch.Size((2, 1, 4)), lambda: torch.full((2, 1, 4), torch.nan, dtype=torch.float64)):
        expected, calls = straight(function, GRID, disable=True, **options)
    assert torch.equal(run(scheduler), expected)
    assert calls == 7 * scheduler.traits.evaluations - (scheduler.traits.evaluations - 1)


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_k_diffusions_functions_with_steps_of_their_own_are_refused(name: str) -> None:
    pytest.importorskip("torchsde")
    try:
        importlib.metadata.distribution("k-diffusion")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is not installed (requirements-parity.txt)")
    from tests.kdiffusion import sampling

    with pytest.raises(sdkit.ParameterError, match="does not walk a grid"):
        from_kdiffusion(getattr(sampling(), f"sample_{name}"))


def test_noise_that_is_drawn_and_not_used_costs_nothing(real_draws: None) -> None:
    torch.testing.assert_close(run(from_kdiffusion(drawing), noise=NoNoise()), run(Euler()), rtol=0, atol=1e-12)


def test_churn_is_answered_with_addressed_noise(real_draws: None) -> None:
    churned = from_kdiffusion(drawing, options={"s_churn": 0.3})
    assert churned.traits.stochastic
    assert torch.equal(run(churned), run(churned))
    alone = [run_one(churned, seed, row) for row, seed in enumerate(NOISE.seeds)]
    torch.testing.assert_close(run(churned), torch.cat(alone), rtol=0, atol=1e-12)
    assert not torch.allclose(run(churned), run(churned, noise=AddressedNoise((3, 4))))


def run_one(scheduler: Any, seed: int, row: int) -> Tensor:
    *_, last = solve(scheduler, DATA, start()[row : row + 1], GRID, AddressedNoise((seed,)))
    return last.x


def test_noise_that_is_used_and_not_declared_is_an_error(real_draws: None) -> None:
    with pytest.raises(sdkit.ContractError, match="stochastic=True"):
        run(from_kdiffusion(drawing, options={"s_churn": 0.3}, stochastic=False))


def test_a_run_goes_on_from_any_step_after_pickling() -> None:
    scheduler = from_kdiffusion(two_stage)
    steps = list(solve(scheduler, DATA, start(), GRID, NOISE))
    for i, step in enumerate(steps[:-1]):
        kept = pickle.loads(pickle.dumps(step))
        *_, last = solve(scheduler, DATA, kept.x, GRID[i + 1 :], NOISE, resume=kept)
        assert torch.equal(last.x, steps[-1].x)


def test_latents_between_steps_are_at_their_level() -> None:
    ours = [step.x for step in solve(DpmPP2M(), DATA, start(), GRID, NOISE)]
    theirs = [step.x for step in solve(from_kdiffusion(two_step), DATA, start(), GRID, NOISE)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


WITH_SIGNAL = ("scaled-linear", "edm")
CHECKED = {rule.name: rule for rule in testing.catalogue("scheduler")}


@pytest.mark.parametrize("rule", ["traits", "output", "purity", "evaluations", "items_of_a_batch", "resume", "scale"])
@pytest.mark.parametrize("function", [two_step, two_stage])
def test_a_replayed_function_keeps_the_rules(function: Any, rule: str) -> None:
    entry = CHECKED[rule]
    if entry.cases is not None:
        entry = attrs.evolve(entry, cases=lambda: testing.cases(names=WITH_SIGNAL))
    apply(entry, from_kdiffusion(function), examples=5)


def silent(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Tensor:
    return model(x, sigmas[0] * x.new_ones(x.shape[0]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (silent, "called callback 0 times"),
        (lambda model, x, sigma_min, sigma_max, sigmas, callback: x, "walk a grid"),
        (3, "not 3"),
    ],
)
def test_functions_of_another_kind_are_refused(function: Any, words: str) -> None:
    with pytest.raises(sdkit.ParameterError, match=words):
        from_kdiffusion(function)


def test_levels_without_signal_other_latents_and_other_levels_are_refused() -> None:
    scheduler, flow = from_kdiffusion(two_step), Trailing()(RectifiedFlow(), 3)
    with pytest.raises(sdkit.LevelError, match="sigma / alpha, which is infinite"):
        scheduler.init(start(flow), flow)
    first = scheduler.step(DATA, start(), GRID[0], GRID[1], scheduler.init(start(), GRID), NOISE)
    with pytest.raises(sdkit.ContractError, match="changed between two steps"):
        scheduler.step(DATA, first.x + 1, GRID[1], GRID[2], first.state, NOISE)
    with pytest.raises(sdkit.ContractError, match="in order"):
        scheduler.step(DATA, first.x, GRID[2], GRID[3], first.state, NOISE)


# The noise of intervals.


def test_overlapping_intervals_share_one_path() -> None:
    like = torch.empty(1, 20000, dtype=torch.float64)
    source = AddressedNoise((5,))

    def draw(a: float, b: float) -> Tensor:
        return source(like, Level(a, 1, a), Level(b, 1, b))

    path = Path(draw)
    whole = path(9.0, 1.0)
    assert torch.equal(whole, draw(9.0, 1.0)), "an interval of its own has its own address"
    upper, lower = path(9.0, 4.0), path(4.0, 1.0)
    together = upper * (5 / 8) ** 0.5 + lower * (3 / 8) ** 0.5
    torch.testing.assert_close(together, whole, rtol=0, atol=1e-12)
    for part in (upper, lower, path(6.0, 2.0)):
        assert abs(float(part.mean())) < 0.03
        assert abs(float(part.std()) - 1) < 0.03
    assert abs(float((upper * lower).mean())) < 0.03
    # 9 to 4 and 6 to 2 share the stretch from 6 to 4
    assert abs(float((upper * path(6.0, 2.0)).mean()) - 2 / (5 * 4) ** 0.5) < 0.03


def test_other_draws_are_refused() -> None:
    with AnsweredDraws(torch.Size((1, 2)), lambda: torch.zeros(1, 2)):
        with pytest.raises(sdkit.ContractError, match="normal_"):
            torch.zeros(3).normal_()
        with pytest.raises(sdkit.ContractError, match=r"shape \(3,\)"):
            torch.randn(3, generator=torch.Generator())


# diffusers' objects.

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def made(name: str, **settings: Any) -> Any:
    import inspect

    target = getattr(THEIRS, name)
    takes = inspect.signature(target).parameters
    known = {
        key: value for key, value in {**BETAS, "clip_sample": False, "skip_prk_steps": True}.items() if key in takes
    }
    return target(**known, **settings)


def flow_or_not(name: str) -> Grid:
    return Trailing()(RectifiedFlow(3), 6) if name.startswith("Flow") else GRID


@pytest.mark.parametrize(
    ("name", "options", "ours", "tolerance"),
    [
        ("EulerDiscreteScheduler", {}, Euler(), 1e-5),
        ("HeunDiscreteScheduler", {}, Heun(), 1e-10),
        ("DPMSolverMultistepScheduler", {}, DpmPP2M(), 1e-5),
        ("DDIMScheduler", {}, Ddim(), 1e-10),
        ("DDIMScheduler", {"eta": 1.0}, Ddim(1), 1e-10),
        ("DDPMScheduler", {}, Ddim(1), 1e-10),
        ("EulerAncestralDiscreteScheduler", {}, Ddim(1), 1e-4),
        ("FlowMatchEulerDiscreteScheduler", {}, Euler(), 1e-5),
        ("FlowMatchHeunDiscreteScheduler", {}, Heun("flow"), 1e-5),
    ],
)
def test_a_class_that_is_one_of_ours_gives_what_ours_gives(
    name: str, options: Any, ours: Any, tolerance: float
) -> None:
    grid = flow_or_not(name)
    torch.testing.assert_close(
        run(from_diffusers(made(name), options=options), grid), run(ours, grid), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_class_is_pure_and_exact_and_calls_as_often_as_it_says(name: str) -> None:
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    grid = flow_or_not(name)
    scheduler = from_diffusers(made(name))
    point = PointMass(torch.tensor([0.3, -0.4, 1.2, 0.1], dtype=torch.float64))
    state, x = scheduler.init(start(grid), grid), start(grid)
    for a, b in pairwise(grid):
        calls: list[Level] = []

        def denoise(x: Tensor, level: Level, calls: list[Level] = calls) -> Tensor:
            calls.append(level)
            return point(x, level)

        first, again = (scheduler.step(denoise, x, a, b, state, NOISE) for _ in range(2))
        assert torch.equal(first.x, again.x)
        assert 2 <= len(calls) <= 2 * scheduler.traits.evaluations
        assert calls[0] == a
        x, state = first.x, pickle.loads(pickle.dumps(first.state))
    torch.testing.assert_close(x, point(x, grid[-1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_class_does_not_mind_where_the_grid_ends(name: str) -> None:
    # A class does something special on its last step; a run that is to stop earlier must not get it there.
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    grid, scheduler = flow_or_not(name), from_diffusers(made(name))
    whole = [step.x for step in solve(scheduler, DATA, start(grid), grid, NOISE)]
    part = [step.x for step in solve(scheduler, DATA, start(grid), grid[:-1], NOISE)]
    torch.testing.assert_close(part[-1], whole[len(part) - 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DDIMScheduler",
        "PNDMScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ],
)
def test_its_own_grid_is_given_back_verbatim(name: str) -> None:
    # PNDM's steps_offset is that of Stable Diffusion; with 0, its last step has no length
    theirs = made(name, **({"steps_offset": 1} if name.startswith("PNDM") else {}))
    grid = grid_of(theirs, 8)
    assert len(grid) == 9
    theirs.set_timesteps(8)
    assert [level.t for level in grid[:-1]] == pytest.approx(sorted({float(t) for t in theirs.timesteps}, reverse=True))
    assert torch.isfinite(run(from_diffusers(made(name)), grid)).all()


def test_a_grid_that_repeats_levels_is_refused() -> None:
    # its rounding gives the same time twice, which makes its own run end in NaN
    with pytest.raises(sdkit.GridError, match="DPMSolverMultistepScheduler makes of 1000 steps is no grid"):
        grid_of(made("DPMSolverMultistepScheduler"), 1000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: from_diffusers(THEIRS.LCMScheduler()), "no scheduler that sdkit can drive"),
        (lambda: from_diffusers(object()), "object is no scheduler"),
        (lambda: from_diffusers(THEIRS.PNDMScheduler()), "skip_prk_steps=True"),
        (lambda: from_diffusers(THEIRS.DDIMScheduler(), options={"etta": 1}), "no parameter 'etta'"),
        (
            lambda: from_diffusers(
                THEIRS.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
            ),
            "use_flow_sigmas",
        ),
    ],
)
def test_what_cannot_be_driven_is_refused(make: Any, words: str) -> None:
    with pytest.raises(sdkit.ParameterError, match=words):
        make()


def test_noise_of_a_class_declared_deterministic_is_an_error() -> None:
    with pytest.raises(sdkit.ContractError, match="stochastic=True"):
        run(from_diffusers(made("EulerAncestralDiscreteScheduler"), stochastic=False))


def test_the_users_object_is_not_touched() -> None:
    theirs = made("DPMSolverMultistepScheduler")
    before = pickle.dumps(vars(theirs))
    run(from_diffusers(theirs))
    assert pickle.dumps(vars(theirs)) == before


def test_importing_it_loads_none_of_those_libraries() -> None:
    code = "import sys, sdkit.interop; assert not {'diffusers', 'k_diffusion', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
