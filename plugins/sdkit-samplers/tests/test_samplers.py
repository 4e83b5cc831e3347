"""Every sampler of this package, held to laws and to exact solutions."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.oracles import Gaussian, Mixture, latents, rescaled
from torch import Tensor

import sdkit
from sdkit import (
    AddressedNoise,
    EdmSchedule,
    Grid,
    Karras,
    Level,
    NoNoise,
    ParameterError,
    RectifiedFlow,
    Registry,
    Scheduler,
    Trailing,
    Uniform,
    scaled_linear,
    solve,
)
from sdkit.loop import evaluations
from sdkit_samplers import plugin
from sdkit_samplers.brownian import BrownianNoise
from sdkit_samplers.moves import data_weights, exponential_integral

REGISTRY = Registry.of({"samplers": plugin})

DETERMINISTIC = [
    "dpm-2", "dpm-fast", "dpm-adaptive", "dpm-adaptive(order=2)", "dpm-singlestep", "dpm-singlestep(order=3)", "dpmpp-3m",
    "unipc", "unipc(order=1)", "unipc(order=3)", "unipc(order=4)", "unipc(variant='bh1')", "unipc(corrector=False)",
    "deis", "deis(order=2)", "deis(order=4)", "lms", "lms(order=2)", "lms(order=3)", "ipndm", "plms", "res-multistep",
    "exp-heun", "gradient-estimation", "gradient-estimation(gamma=1.5)", "dpmpp-2m-sde(eta=0)",
    "dpmpp-2m-sde(eta=0, solver='heun')", "dpmpp-3m-sde(eta=0)", "dpmpp-sde(eta=0)", "dpmpp-2s-ancestral(eta=0)",
    "dpm-2-ancestral(eta=0)", "euler-ancestral(eta=0)", "seeds-2(eta=0)", "seeds-3(eta=0)", "sa-solver(tau=0)",
    "sa-solver(tau=0, predictor=4, corrector=4)", "sa-solver(tau=0, predictor=2, corrector=0)", "euler-churn(churn=0)",
    "heun-churn(churn=0)", "restart(times=0)", "tcd(gamma=0)", "unipc-bh1",
]  # fmt: skip
CONVERGENT = [
    "euler-ancestral", "euler-ancestral(eta=0.5)", "dpm-2-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde", "dpmpp-2m-sde",
    "dpmpp-2m-sde(solver='heun')", "dpmpp-2m-sde(eta=0.5)", "dpmpp-3m-sde", "seeds-2", "seeds-2(solver='phi2')", "seeds-3",
    "exp-heun(eta=1)", "ddpm", "ddpm(variance='large')", "euler-churn(churn=20)", "heun-churn(churn=20)", "restart",
    "sa-solver", "sa-solver(tau=0.5)", "er-sde", "er-sde(stages=1)", "er-sde(stages=2)", "res-multistep(eta=1)", "dpmpp-2m-sde-heun", "exp-heun-sde",
]  # fmt: skip
ALL = [*DETERMINISTIC, *CONVERGENT, "lcm", "tcd"]

SD = scaled_linear()
GRIDS: dict[str, Grid] = {
    "sd": Karras()(SD, 7),
    "sd-uniform": Uniform()(SD, 5),
    "zero-snr": Trailing()(SD.zero_terminal_snr(), 6),
    "edm": Karras()(EdmSchedule(), 8),
    "flow": Trailing()(RectifiedFlow(3), 6),
    "one-step": Trailing()(SD, 1),
    "one-step-flow": Trailing()(RectifiedFlow(), 1),
    "two-steps": Trailing()(RectifiedFlow(), 2),
    "not-clean": Karras()(SD, 6)[:-1],
}


def make(text: str) -> Scheduler[Any]:
    made: Scheduler[Any] = REGISTRY.make("scheduler", text)
    return made


def run(scheduler: Scheduler[Any], denoise: Any, x: Tensor, grid: Grid, noise: Any) -> Tensor:
    for step in solve(scheduler, denoise, x, grid, noise):
        x = step.x
    return x


def noise_for(scheduler: Scheduler[Any], seeds: tuple[int, ...]) -> Any:
    """A scheduler that says it is deterministic gets a source that refuses."""
    return AddressedNoise(seeds) if scheduler.traits.stochastic else NoNoise()


def test_every_component_has_a_test_here() -> None:
    tested = {text.split("(")[0] for text in ALL}
    assert tested == {c.name for c in plugin.sdkit_components() if c.kind == "scheduler"}


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_point_mass_is_reproduced_on_every_grid(text: str, grid: Grid) -> None:
    scheduler = make(text)
    point = latents((5, 6))
    noise = noise_for(scheduler, (0, 1))
    x = point * grid[0].alpha + AddressedNoise((0, 1)).initial(point) * grid[0].sigma
    calls: list[int] = [0]
    per_step = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        calls[0] += 1
        assert level.sigma > 0
        return point

    for i, step in enumerate(solve(scheduler, denoise, x, grid, noise)):
        x = step.x
        per_step.append(calls[0])
        calls[0] = 0
        assert x.dtype == torch.float64
        assert bool(torch.isfinite(x).all()), f"step {i}"
    if grid[-1].sigma == 0:
        assert float((x - point).abs().max()) < 1e-9
    most = scheduler.traits.evaluations
    assert most is None or max(per_step) <= most


@pytest.mark.parametrize("text", ALL)
def test_a_step_is_pure_and_a_run_resumes_from_pickled_state(text: str) -> None:
    scheduler, data, grid = make(text), Mixture(), Karras()(SD, 7)
    noise = noise_for(scheduler, (0, 1))
    x = data.start(grid[0], latents())
    straight = run(scheduler, data, x, grid, noise)
    state = scheduler.init(x, grid)
    for start, stop in pairwise(grid):
        before = x.clone()
        kept = pickle.dumps(state)
        first = scheduler.step(data, x, start, stop, state, noise)
        second = make(text).step(data, x.clone(), start, stop, pickle.loads(kept), noise)
        assert torch.equal(x, before), "the latent was changed in place"
        assert torch.equal(first.x, second.x), "a step depends on something besides its arguments"
        x, state = first.x, first.state
    assert torch.equal(x, straight)


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith("dpm-adaptive")])
def test_item_k_of_a_batch_equals_it_alone(text: str) -> None:
    scheduler, data, grid = make(text), Mixture(), Trailing()(RectifiedFlow(), 6)
    x = latents((0, 1, 2))
    together = run(scheduler, data, x, grid, noise_for(scheduler, (0, 1, 2)))
    for k in range(3):
        alone = run(scheduler, data, x[k : k + 1], grid, noise_for(scheduler, (k,)))
        assert float((together[k : k + 1] - alone).abs().max()) < 1e-12


@pytest.mark.parametrize("text", ALL)
def test_the_same_levels_in_another_scale_give_the_same_picture(text: str) -> None:
    scheduler, data, grid = make(text), Mixture(), Karras()(SD, 6)
    other = rescaled(grid, np.geomspace(3.0, 1.0, len(grid)).tolist())
    noise = noise_for(scheduler, (0, 1))
    x = data.start(grid[0], latents())
    a, b = run(scheduler, data, x, grid, noise), run(scheduler, data, x * 3.0, other, noise)
    assert float((a - b).abs().max()) < 1e-9


def smooth(n: int, bend: float) -> Grid:
    """Smooth grids, even in log-SNR or not, that do not end clean."""
    a, b = SD.level(900).log_snr, SD.level(50).log_snr
    shares = ((1 - bend) * i / n + bend * math.sin(math.pi / 2 * i / n) for i in range(n + 1))
    return tuple(SD.level(SD.time(a + (b - a) * share)) for share in shares)


@pytest.mark.parametrize("text", [t for t in DETERMINISTIC if not t.startswith("dpm-adaptive")])
@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_the_order_of_convergence_is_the_one_declared(text: str, bend: float) -> None:
    scheduler = make(text)
    traits = scheduler.traits
    declared = traits.order if traits.startup_order is None else min(traits.order, traits.startup_order + 1)
    counts = (16, 32, 64, 128) if traits.order >= 3 else (24, 48, 96, 192)
    normal = torch.linspace(-1.8, 1.8, 7, dtype=torch.float64)[None]
    errors = []
    for n in counts:
        grid = smooth(n, bend)
        worst = 0.0
        for data in (Gaussian(), Mixture()):
            x = data.start(grid[0], normal)
            got = run(scheduler, data, x, grid, NoNoise())
            worst = max(worst, float((got - data.flow(x, grid[0], grid[-1])).abs().max()))
        errors.append(worst)
    slope = -np.polyfit(np.log(counts), np.log(np.maximum(errors, 1e-15)), 1)[0]
    assert slope > declared - 0.25, f"slope {slope:.2f} of {errors}"


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("order", [2, 3])
def test_the_adaptive_solver_keeps_its_tolerance_however_coarse_the_grid(order: int, tolerance: float) -> None:
    scheduler = make(f"dpm-adaptive(order={order}, rtol={tolerance}, atol={tolerance})")
    data = Mixture()
    calls = []
    for n in (2, 20):
        grid = smooth(n, 0.0)
        x = data.start(grid[0], torch.linspace(-1.8, 1.8, 7, dtype=torch.float64)[None])
        count = [0]

        def denoise(x: Tensor, level: Level, count: list[int] = count) -> Tensor:
            count[0] += 1
            return data(x, level)

        got = run(scheduler, denoise, x, grid, NoNoise())
        assert float((got - data.flow(x, grid[0], grid[-1])).abs().max()) < 10 * tolerance
        calls.append(count[0])
    assert calls[0] > 10


@pytest.mark.parametrize("text", CONVERGENT)
def test_a_stochastic_sampler_ends_with_the_right_mean_and_variance(text: str) -> None:
    data, grid, count = Gaussian(), Karras()(SD, 120), 4096
    noise = AddressedNoise((7,))
    x = data.start(grid[0], noise.initial(torch.zeros(1, count, dtype=torch.float64)))
    got = run(make(text), data, x, grid, noise)
    # what sampling error allows, and the bias that is left at this number of steps (of first order in the churned ones)
    bias = 0.035 if "churn" in text or "res-" in text else 0.02
    assert float(got.mean()) == pytest.approx(data.mean, abs=4 * data.scale / math.sqrt(count))
    assert float(got.std()) == pytest.approx(data.scale, abs=4 * data.scale / math.sqrt(2 * count) + bias)


def test_known_methods_are_special_cases() -> None:
    data, grid = Mixture(), Karras()(SD, 8)
    x, noise = data.start(grid[0], latents()), AddressedNoise((0, 1))

    def same(a: str, b: str, tolerance: float = 1e-12) -> bool:
        difference = run(make(a), data, x, grid, noise) - run(make(b), data, x, grid, noise)
        return float(difference.abs().max()) < tolerance

    assert same("euler-ancestral", "ddim(eta=1)")
    assert same("euler-ancestral(eta=0.3)", "ddim(eta=0.3)")
    assert same("euler-ancestral(eta=0)", "euler")
    assert same("ddpm", "ddim(eta=1)")
    assert same("dpmpp-2m-sde(eta=0)", "dpmpp-2m")
    assert same("unipc(corrector=False)", "dpmpp-2m")
    assert same("dpmpp-3m-sde(eta=0)", "dpmpp-3m")
    assert same("lms(order=1)", "euler")
    assert same("deis(order=1)", "euler")
    assert same("tcd(gamma=0)", "euler")
    assert same("tcd(gamma=1)", "lcm")
    assert same("euler-churn(churn=0)", "euler")
    assert same("restart(times=0)", "heun")
    assert same("gradient-estimation(gamma=1)", "euler")
    assert same("sa-solver(tau=0, predictor=3, corrector=0)", "dpmpp-3m")
    assert same("seeds-2(eta=0)", "dpm-singlestep")
    assert not same("unipc", "dpmpp-2m", 1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "unipc(order=5)", "unipc(order=0)", "unipc(variant='bh3')", "unipc(corrector=2)", "lms(order=9)", "deis(order='a')",
        "dpm-singlestep(order=1)", "dpm-adaptive(rtol=0)", "euler-ancestral(eta=2)", "dpmpp-2m-sde(solver='euler')",
        "dpmpp-2m-sde(eta=-1)", "tcd(gamma=1.5)", "restart(s_min=3)", "restart(times=-1)", "sa-solver(predictor=5)",
        "er-sde(stages=4)", "euler-churn(churn=-1)", "euler-churn(s_min=2, s_max=1)", "ddpm(variance='medium')",
        "seeds-2(r=0)", "euler-ancestral(s_noise=-1)", "gradient-estimation(gamma=99)", "ipndm(order=True)",
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        make(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("h", [1e-8, 1e-3, 0.3, 1.0, 1.999, 2.001, 5.0, 60.0])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_exponential_integrals_agree_with_quadrature(k: int, h: float) -> None:
    points, areas = np.polynomial.legendre.leggauss(200)
    tau = h * (points + 1) / 2
    exact = float(np.sum(np.exp(-(h - tau)) * (tau / h) ** k * areas) * h / 2)
    assert exponential_integral(k, h) == pytest.approx(exact, rel=1e-11)


def test_weights_integrate_polynomials_exactly() -> None:
    nodes, h = [0.0, -0.7, -1.9], 0.8
    weights = data_weights(nodes, h)
    for k in range(3):
        assert sum(w * u**k for w, u in zip(weights, nodes, strict=True)) == pytest.approx(exponential_integral(k, h))


def test_brownian_increments_add_up_and_do_not_depend_on_the_grid() -> None:
    noise = BrownianNoise((3, 4))
    like = torch.zeros(2, 4000, dtype=torch.float64)
    levels = Karras()(SD, 8)

    def increment(a: Level, b: Level) -> Tensor:
        times = [1 / (1 + math.exp(2 * level.log_snr)) if level.sigma else 0.0 for level in (a, b)]
        return noise(like, a, b) * math.sqrt(abs(times[0] - times[1]))

    pieces = [increment(a, b) for a, b in pairwise(levels)]
    whole = increment(levels[0], levels[-1])
    assert float((torch.stack(pieces).sum(0) - whole).abs().max()) < 1e-9
    for piece in (noise(like, a, b) for a, b in pairwise(levels)):
        assert float(piece.mean()) == pytest.approx(0, abs=0.06)
        assert float(piece.std()) == pytest.approx(1, abs=0.06)
    first, second = (noise(like, levels[i], levels[i + 1]).flatten() for i in (2, 3))
    assert abs(float((first * second).mean())) < 0.06
    assert torch.equal(noise(like, levels[1], levels[2])[1:], BrownianNoise((4,))(like[1:], levels[1], levels[2]))


def test_an_sde_solver_on_a_brownian_path_converges_along_it() -> None:
    """The point of the path: twice the steps give nearly the same picture, not another one."""
    data = Gaussian()
    ends = {}
    for kind in (BrownianNoise, AddressedNoise):
        results = []
        for n in (60, 120):
            noise: Any = kind((1,))
            grid = Karras()(SD, n)
            x = data.start(grid[0], noise.initial(torch.zeros(1, 64, dtype=torch.float64)))
            results.append(run(make("dpmpp-2m-sde"), data, x, grid, noise))
        ends[kind] = float((results[0] - results[1]).abs().mean())
    assert ends[BrownianNoise] < ends[AddressedNoise] / 3


@pytest.mark.parametrize("text", ["dpmpp-sde", "euler-ancestral", "heun-churn", "seeds-3"])
def test_a_finer_grid_refines_the_same_path(text: str) -> None:
    """20, 40 and 80 steps: on a path the pictures come nearer to each other, with noise apart they stay apart."""
    data, noises = Mixture(), Registry.of({"samplers": plugin})
    apart = {}
    for name in ("brownian", "addressed"):
        ends = []
        for n in (20, 40, 80):
            grid = Karras()(SD, n)
            noise = noises.make("noise", name)((1,), grid)
            x = data.start(grid[0], noise.initial(torch.zeros(1, 256, dtype=torch.float64)))
            ends.append(run(make(text), data, x, grid, noise))
        apart[name] = [float((a - b).square().mean().sqrt()) for a, b in pairwise(ends)]
    assert apart["brownian"][0] < 0.25
    assert apart["brownian"][1] < 0.75 * apart["brownian"][0]
    assert min(apart["addressed"]) > 0.8


def test_what_the_path_remembers_does_not_change_it() -> None:
    like, levels = torch.zeros(2, 9, dtype=torch.float64), Karras()(SD, 12)
    intervals = list(pairwise(levels))
    straight = BrownianNoise((3, 4))
    there = [straight(like, a, b) for a, b in intervals]
    back = [straight(like, a, b) for a, b in reversed(intervals)]
    alone = [BrownianNoise((3, 4))(like, a, b) for a, b in intervals]
    for first, second, third in zip(there, reversed(back), alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    assert straight == BrownianNoise((3, 4))
    assert torch.equal(pickle.loads(pickle.dumps(straight))(like, *intervals[0]), there[0])
    assert straight(like.float(), *intervals[0]).dtype == torch.float32


def test_increments_over_short_intervals_have_their_variance() -> None:
    like = torch.zeros(1, 20_000, dtype=torch.float64)
    for log_snr in (-6.0, 0.0, 5.0):
        a, b = (Level(0, math.exp(value), 1.0) for value in (log_snr, log_snr + 2e-4))
        assert float(BrownianNoise((1,))(like, a, b).std()) == pytest.approx(1, abs=0.02)
    with pytest.raises(sdkit.NoiseError, match="too close"):
        BrownianNoise((1,))(like, Level(0, 1.0, 1.0), Level(0, 1.0 + 1e-7, 1.0))


@pytest.mark.parametrize("grid", [(30, None), (3, 0.5), (2, 1.5)], ids=str)
def test_restart_turns_at_s_min_or_at_the_last_level_with_noise(grid: tuple[int, float | None]) -> None:
    """On a grid of few levels none lies below s_min; the turn is made at the last one before clean all the same."""
    steps, last = grid
    levels = Karras()(SD, steps)
    if last is not None:
        levels = (*levels[:-2], SD.level(SD.time(-math.log(last))), levels[-1])
    seen: list[Level] = []
    data, noise, asked = Gaussian(), AddressedNoise((0, 1)), []

    def denoise(x: Tensor, level: Level) -> Tensor:
        seen.append(level)
        return data(x, level)

    def given(like: Tensor, a: Level, b: Level, /) -> Tensor:
        asked.append((a, b))
        return noise(like, a, b)

    run(make("restart(times=2)"), denoise, latents(), levels, given)
    turn = next(level for level in levels if level.noise_to_signal <= 0.1 or level is levels[-2])
    assert [a.noise_to_signal for a, _ in asked[:1]] == [pytest.approx(2.0)]
    assert asked[1][1] == turn
    assert asked[0][1].log_snr == pytest.approx(asked[1][0].log_snr)  # one after the other, not over each other
    rises = [b for a, b in pairwise(seen) if b.log_snr < a.log_snr]
    assert [level.noise_to_signal for level in rises] == [pytest.approx(2.0)] * 2
    planned = evaluations(make("restart(times=2)"), levels, torch.zeros(1, 1), AddressedNoise(0))
    assert planned == len(seen)


@pytest.mark.parametrize(
    "levels", [GRIDS["one-step"], (Level(0, 1, 1.9), Level(0, 1, 1.8), Level(0, 1, 0))], ids=["one", "low"]
)
def test_restart_with_nothing_to_go_back_to_is_heun(levels: Grid) -> None:
    data, x = Mixture(), latents()
    text = "restart(s_max=1.8, s_min=1.0)"
    assert torch.equal(run(make(text), data, x, levels, NoNoise()), run(sdkit.Heun(), data, x, levels, NoNoise()))


def test_restarts_with_a_number_of_steps_promise_no_order() -> None:
    """Their error stays however fine the grid: what is promised is right, and how many calls they make is known."""
    traits = make("restart(times=2, steps=3)").traits
    assert (traits.order, traits.evaluations) == (0, 14)
    assert make("restart").traits == sdkit.Traits(1, None, True, True, None)


def test_first_party_samplers_have_names_of_other_tools() -> None:
    for name, ours in (
        ("Euler a", "euler-ancestral"), ("DPM++ 2M SDE", "dpmpp-2m-sde"), ("uni_pc_bh2", "unipc"), ("DPM2 a", "dpm-2-ancestral"),
        ("DPM++ 3M SDE", "dpmpp-3m-sde"), ("DPMSolverSDEScheduler", "dpmpp-sde"), ("PNDMScheduler", "plms"), ("k_lms", "lms"),
        ("deis", "deis"), ("DPM adaptive", "dpm-adaptive"), ("er_sde", "er-sde"), ("sa_solver", "sa-solver"),
    ):  # fmt: skip
        assert REGISTRY.find("scheduler", name).component.name == ours
    assert REGISTRY.find("spacing", "SGM Uniform").component.name == "sgm-uniform"
    assert REGISTRY.find("spacing", "ays").component.name == "align-your-steps"


def test_discovery_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from sdkit_samplers import plugin; plugin.sdkit_components(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sdkit.__version__


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("DPM++ 2M Karras", ("dpmpp-2m", "karras")), ("dpmpp_2m_karras", ("dpmpp-2m", "karras")),
        ("dpmpp_2m_k", ("dpmpp-2m", "karras")), ("k_dpmpp_2m_ka", ("dpmpp-2m", "karras")),
        ("Euler Karras", ("euler", "karras")), ("euler_k", ("euler", "karras")), ("LMS Karras", ("lms", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp-2m-sde", "uniform-log-snr")),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp-2m-sde-heun", "karras")), ("DPM2 a Karras", ("dpm-2-ancestral", "karras")),
        ("Euler a", ("Euler a", None)), ("uni_pc_bh2", ("uni_pc_bh2", None)), ("uni_pc", ("uni_pc", None)),
        ("DPM++ 2M SGM Uniform", ("dpmpp-2m", "sgm-uniform")), ("heun", ("heun", None)),
        ("ddim(eta=0.5)", ("ddim(eta=0.5)", None)), ("Euler a Align Your Steps", ("euler-ancestral", "align-your-steps")),
    ],
)  # fmt: skip
def test_names_that_hold_both_are_read_as_a_pair(name: str, pair: tuple[str, str | None]) -> None:
    assert REGISTRY.pair(name) == pair
    assert REGISTRY.make("scheduler", REGISTRY.pair(name)[0]).traits


@pytest.mark.parametrize("name", ["Karras", "nonsense Karras", "", "_k", "DPM++ 2M Kerras", "euler karas"])
def test_what_is_no_pair_is_unknown_as_a_whole(name: str) -> None:
    with pytest.raises(sdkit.UnknownComponent, match="no scheduler"):
        REGISTRY.pair(name)


@pytest.mark.parametrize("text", ["dpmpp-2m", "unipc(order=3)", "sa-solver", "dpmpp-3m-sde", "plms", "restart"])
def test_one_object_serves_eight_threads_bit_for_bit(text: str) -> None:
    scheduler, data = make(text), Mixture()
    grids = [Karras()(SD, 5 + n % 4) for n in range(100)]

    def one(n: int) -> Tensor:
        noise = AddressedNoise((n,))
        x = data.start(grids[n][0], noise.initial(torch.empty(1, 2, 4, dtype=torch.float64)))
        return run(scheduler, data, x, grids[n], noise)

    alone = [one(n) for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, range(100)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
