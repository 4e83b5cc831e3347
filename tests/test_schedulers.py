"""The solvers and the loop, held to laws: purity, exactness, order of convergence, batches, resume, scale, symmetry."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdkit import (
    AddressedNoise,
    Ddim,
    DpmPP2M,
    Edm,
    EdmSchedule,
    Epsilon,
    Euler,
    Flow,
    Grid,
    GridError,
    Heun,
    Karras,
    Level,
    LevelError,
    NetworkDenoiser,
    NoiseSchedule,
    NoNoise,
    ParameterError,
    Parametrization,
    RectifiedFlow,
    Sample,
    Scheduler,
    Trailing,
    Uniform,
    UniformLogSnr,
    Velocity,
    check_grid,
    scaled_linear,
    solve,
)
from sdkit.loop import evaluations
from sdkit.protocols import Denoise, Noise, Step
from tests.oracles import Gaussian, Mixture, exact_network, latents, rescaled

AnyScheduler = Scheduler[Any]

DETERMINISTIC: dict[str, AnyScheduler] = {
    "euler": Euler(),
    "ddim": Ddim(),
    "heun": Heun(),
    "heun-flow": Heun(variable="flow"),
    "dpmpp-2m": DpmPP2M(),
}
STOCHASTIC: dict[str, AnyScheduler] = {"ddim-half": Ddim(eta=0.5), "ancestral": Ddim(eta=1)}
ALL = DETERMINISTIC | STOCHASTIC

SD = scaled_linear()
ZERO = SD.zero_terminal_snr()
FLOW = RectifiedFlow(3)
GRIDS: dict[str, Grid] = {
    "sd-uniform": Uniform()(SD, 9),
    "sd-karras": Karras()(SD, 6),
    "zero-snr": Trailing()(ZERO, 7),
    "zero-snr-karras": Karras()(ZERO, 5),
    "edm": Karras()(EdmSchedule(), 8),
    "flow": Trailing()(RectifiedFlow(), 5),
    "flow-3": Trailing()(FLOW, 8),
    "one-step": Trailing()(SD, 1),
    "one-step-flow": Trailing()(FLOW, 1),
    "not-clean": Karras()(SD, 6)[:-1],
}

NORMAL = latents()

every = pytest.mark.parametrize("scheduler", ALL.values(), ids=ALL.keys())
deterministic = pytest.mark.parametrize("scheduler", DETERMINISTIC.values(), ids=DETERMINISTIC.keys())
stochastic = pytest.mark.parametrize("scheduler", STOCHASTIC.values(), ids=STOCHASTIC.keys())
on_every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@st.composite
def grids(draw: st.DrawFn, clean: bool | None = None) -> Grid:
    """Any grid: any log_snr, any scale at each level, perhaps from no signal, perhaps to no noise."""
    values = [draw(st.floats(-5, 1))]
    for gap in draw(st.lists(st.floats(0.05, 2), min_size=1, max_size=6)):
        values.append(values[-1] + gap)
    levels = [Level(-v, math.exp(min(v, 0)), math.exp(-max(v, 0))) for v in values]
    if draw(st.booleans()):
        levels.insert(0, Level(9, 0, 1))
    if draw(st.booleans()) if clean is None else clean:
        levels.append(Level(-9, 1, 0))
    scales = draw(st.lists(st.floats(0.1, 10), min_size=len(levels), max_size=len(levels)))
    return rescaled(levels, scales)


def final(scheduler: AnyScheduler, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise | None = None) -> Tensor:
    *_, last = solve(scheduler, denoise, x, grid, noise or addressed(x))
    return last.x


def addressed(x: Tensor) -> Noise:
    return AddressedNoise(tuple(range(10, 10 + x.shape[0])))


def start(grid: Grid, normal: Tensor | None = None) -> Tensor:
    return grid[0].sigma * (latents() if normal is None else normal) + 0.2 * grid[0].alpha


def same(a: Any, b: Any) -> bool:
    """Whether two states are bit for bit the same."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if attrs.has(type(a)):
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in attrs.fields_dict(type(a)))
    return bool(a == b)


# Purity.


@every
@on_every_grid
def test_a_step_is_pure(scheduler: AnyScheduler, grid: Grid) -> None:
    data, noise = Mixture(), AddressedNoise((1, 2))
    x = start(grid)
    state = scheduler.init(x, grid)
    for here, there in pairwise(grid):
        kept, packed = x.clone(), pickle.dumps(state)
        answers: list[tuple[Tensor, Tensor]] = []

        def denoise(x: Tensor, level: Level, answers: list[tuple[Tensor, Tensor]] = answers) -> Tensor:
            answer = data(x, level)
            answers.append((answer, answer.clone()))
            return answer

        first = scheduler.step(denoise, x, here, there, state, noise)
        again = scheduler.step(denoise, x, here, there, pickle.loads(packed), noise)
        assert torch.equal(x, kept)
        assert same(state, pickle.loads(packed))
        for answer, as_given in answers:
            assert torch.equal(answer, as_given)
        assert torch.equal(first.x, again.x)
        assert torch.equal(first.denoised, again.denoised)
        assert same(first.state, again.state)
        assert first.x.data_ptr() != x.data_ptr()
        x, state = first.x, first.state


@every
@given(grid=grids())
def test_shape_type_and_finiteness_are_kept(scheduler: AnyScheduler, grid: Grid) -> None:
    for dtype in (torch.float64, torch.float32):
        x = start(grid).to(dtype)
        for step in solve(scheduler, Mixture(), x, grid, AddressedNoise((1, 2))):
            assert step.x.shape == step.denoised.shape == x.shape
            assert step.x.dtype == step.denoised.dtype == dtype
            assert torch.isfinite(step.x).all()


@every
def test_the_preview_is_what_the_denoiser_said_at_the_start_of_the_step(scheduler: AnyScheduler) -> None:
    grid, x = GRIDS["sd-karras"], start(GRIDS["sd-karras"])
    for step, level in zip(solve(scheduler, Mixture(), x, grid, addressed(x)), grid, strict=False):
        torch.testing.assert_close(step.denoised, Mixture()(x, level))
        x = step.x


@every
@on_every_grid
def test_latents_of_any_rank_are_solved(scheduler: AnyScheduler, grid: Grid) -> None:
    flat = latents(shape=(24,))
    wanted = final(scheduler, Mixture(), start(grid, flat), grid)
    for shape in ((4, 6), (2, 3, 4), (2, 3, 2, 2)):
        got = final(scheduler, Mixture(), start(grid, flat.reshape(2, *shape)), grid)
        torch.testing.assert_close(got.reshape(2, 24), wanted, rtol=1e-12, atol=1e-12)


# Exactness.


@deterministic
@given(grid=grids(), point=st.floats(-3, 3))
def test_a_point_mass_is_followed_exactly(scheduler: AnyScheduler, grid: Grid, point: float) -> None:
    noise = latents()
    x = grid[0].alpha * point + grid[0].sigma * noise
    for step, level in zip(solve(scheduler, Gaussian(point, 0), x, grid, NoNoise()), grid[1:], strict=True):
        torch.testing.assert_close(step.x, level.alpha * point + level.sigma * noise, rtol=1e-9, atol=1e-9)


@every
@given(grid=grids(clean=True), point=st.floats(-3, 3))
def test_a_run_on_a_point_mass_ends_in_the_point(scheduler: AnyScheduler, grid: Grid, point: float) -> None:
    x = grid[0].alpha * point + grid[0].sigma * latents()
    wanted = torch.full_like(x, grid[-1].alpha * point)
    torch.testing.assert_close(final(scheduler, Gaussian(point, 0), x, grid), wanted, rtol=1e-12, atol=1e-12)


@every
@given(log_snr=st.one_of(st.just(-math.inf), st.floats(-5, 3)), scale=st.floats(0.1, 10))
def test_one_step_to_clean_is_the_prediction(scheduler: AnyScheduler, log_snr: float, scale: float) -> None:
    first = Level(1, 0, scale) if log_snr == -math.inf else Level(1, scale, scale * math.exp(-log_snr))
    grid = (first, Level(0, 1, 0))
    x = start(grid)
    assert torch.equal(final(scheduler, Mixture(), x, grid), Mixture()(x, first))


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
@given(grid=grids())
def test_kept_and_added_noise_make_up_the_level(eta: float, grid: Grid) -> None:
    """L13: on a point mass at 0, sigma'^2 = kept^2 + added^2, with added = eta times the posterior's deviation."""
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for here, there in pairwise(grid):

        def part(x: Tensor, z: Tensor, here: Level = here, there: Level = there) -> float:
            step = Ddim(eta).step(lambda x, level: x * 0, x, here, there, None, lambda like, a, b: z)
            return step.x.item()

        kept, added = part(here.sigma * one, none), part(none, one)
        assert math.isclose(math.hypot(kept, added), there.sigma, rel_tol=1e-9, abs_tol=1e-12)
        ratio = 0.0 if here.alpha == 0 else math.exp(here.log_snr - there.log_snr)
        assert math.isclose(added, eta * there.sigma * math.sqrt(1 - ratio**2), rel_tol=1e-6, abs_tol=1e-12)


# Evaluations.


class Counting:
    def __init__(self) -> None:
        self.levels: list[Level] = []

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        self.levels.append(level)
        return Mixture()(x, level)


@every
@on_every_grid
def test_evaluations_are_as_declared_and_as_counted_beforehand(scheduler: AnyScheduler, grid: Grid) -> None:
    most = scheduler.traits.evaluations
    assert most is not None
    counting, x, before = Counting(), start(grid), 0
    for _ in solve(scheduler, counting, x, grid, addressed(x)):
        assert 1 <= len(counting.levels) - before <= most
        before = len(counting.levels)
    assert evaluations(scheduler, grid, x, addressed(x)) == len(counting.levels)
    assert max(level.log_snr for level in counting.levels) < math.inf


@pytest.mark.parametrize(("name", "calls"), [("euler", 9), ("ddim", 9), ("dpmpp-2m", 9), ("heun", 17)])
def test_calls_of_nine_steps(name: str, calls: int) -> None:
    assert evaluations(ALL[name], GRIDS["sd-uniform"], torch.zeros(1), NoNoise()) == calls


def test_heun_looks_at_both_ends() -> None:
    counting, grid = Counting(), GRIDS["sd-karras"]
    final(Heun(), counting, start(grid), grid)
    assert counting.levels == [level for pair in pairwise(grid) for level in pair if level.sigma > 0]


def test_evaluations_of_a_solver_with_its_own_step_control_are_unknown() -> None:
    class Adaptive(Ddim):
        @property
        def traits(self) -> Any:
            return type(super().traits)(1, None, False, True, None, adaptive=True)

    assert evaluations(Adaptive(), GRIDS["flow"], torch.zeros(1), NoNoise()) is None


# Batches.


@every
@given(grid=grids(), batch=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
def test_image_k_of_a_batch_equals_it_alone(scheduler: AnyScheduler, grid: Grid, batch: list[int]) -> None:
    noise = AddressedNoise(tuple(batch))
    together = final(scheduler, Mixture(), start(grid, latents(batch)), grid, noise)
    for k, seed in enumerate(batch):
        alone = final(scheduler, Mixture(), start(grid, latents((seed,))), grid, AddressedNoise(seed))
        torch.testing.assert_close(alone, together[k : k + 1], rtol=1e-11, atol=1e-11)


@every
@given(grid=grids(), order=st.permutations(range(4)))
def test_permuting_the_batch_permutes_the_result(scheduler: AnyScheduler, grid: Grid, order: list[int]) -> None:
    sorted_run = final(scheduler, Mixture(), start(grid, latents(range(4))), grid, AddressedNoise((0, 1, 2, 3)))
    other_run = final(scheduler, Mixture(), start(grid, latents(order)), grid, AddressedNoise(tuple(order)))
    torch.testing.assert_close(other_run, sorted_run[order], rtol=1e-11, atol=1e-11)


# Order of convergence, against exact solutions.

PROBLEMS: dict[str, Gaussian | Mixture] = {"gaussian": Gaussian(), "narrow": Gaussian(-0.4, 0.2), "mixture": Mixture()}


def along_log_snr(steps: int) -> Grid:
    """Evenly in log_snr over the range of Stable Diffusion, variance preserving, not to clean."""
    first, last = SD.noisiest.log_snr, SD.cleanest.log_snr
    return tuple(
        SD.level(SD.time(value)) if 0 < i < steps else (SD.noisiest, SD.cleanest)[i > 0]
        for i, value in enumerate(np.linspace(first, last, steps + 1))
    )


def along_sigma(steps: int) -> Grid:
    """Karras' grid, variance exploding, not to clean."""
    return Karras()(EdmSchedule(0.03, 15), steps + 1)[:-1]


def along_flow_time(steps: int) -> Grid:
    """Evenly in the time of a flow, without its two ends."""
    return tuple(RectifiedFlow().level(t) for t in np.linspace(0.95, 0.03, steps + 1))


PATHS = {"log-snr": along_log_snr, "sigma": along_sigma, "flow-time": along_flow_time}


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log(error) over log(steps), by least squares."""
    assert min(errors) > 1e-12, "errors at the level of rounding say nothing about the order"
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def errors_on(
    scheduler: AnyScheduler, data: Gaussian | Mixture, path: Callable[[int], Grid], counts: list[int]
) -> list[float]:
    normal = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    ends = path(1)
    x = data.start(ends[0], normal)
    exact = data.flow(x, ends[0], ends[-1])
    return [float((final(scheduler, data, x, path(n), NoNoise()) - exact).abs().max()) for n in counts]


@deterministic
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_order_of_convergence_is_the_declared_one(
    scheduler: AnyScheduler, problem: Gaussian | Mixture, path: Callable[[int], Grid]
) -> None:
    counts = [48, 72, 108, 162, 243]
    errors = errors_on(scheduler, problem, path, counts)
    traits = scheduler.traits
    declared = traits.order if traits.startup_order is None else min(traits.order, traits.startup_order + 1)
    assert declared - 0.1 < slope(counts, errors) < declared + 0.2
    assert errors[-1] < 0.01


def test_second_order_pays() -> None:
    for path in PATHS.values():
        (first,) = errors_on(Euler(), Mixture(), path, [40])
        for second in (Heun(), Heun("flow"), DpmPP2M()):
            assert errors_on(second, Mixture(), path, [40])[0] < 0.2 * first


@deterministic
@pytest.mark.parametrize("data", [Gaussian(), Mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("schedule", [ZERO, FLOW, RectifiedFlow()], ids=["zero-snr", "flow-3", "flow"])
def test_runs_from_no_signal_to_clean_converge(
    scheduler: AnyScheduler, data: Gaussian | Mixture, schedule: NoiseSchedule
) -> None:
    normal = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    x = data.start(schedule.noisiest, normal)
    torch.testing.assert_close(x, normal)
    exact = data.flow(x, schedule.noisiest, schedule.clean)
    coarse, fine = (
        float((final(scheduler, data, x, Trailing()(schedule, n), NoNoise()) - exact).abs().max()) for n in (20, 160)
    )
    assert fine < 0.25 * coarse < 0.04


@every
def test_every_scheduler_names_its_own_order(scheduler: AnyScheduler) -> None:
    traits = scheduler.traits
    assert traits.stochastic == (scheduler in STOCHASTIC.values())
    assert traits.order == (2 if isinstance(scheduler, (Heun, DpmPP2M)) else 1)
    assert traits.startup_order == (1 if isinstance(scheduler, DpmPP2M) else None)
    assert traits.exact_on_point_mass


# Stochastic solvers.


def moments(scheduler: AnyScheduler, data: Gaussian, grid: Grid) -> tuple[float, float]:
    """Mean and deviation of the result over all noise, exactly.

    On Gaussian data a run is affine in its start and in each step's noise, so one run per noise gives its factor.
    """
    steps = len(grid) - 1
    x = torch.full((steps + 2, 1), data.start(grid[0], torch.zeros(())).item(), dtype=torch.float64)
    x[0] = data.start(grid[0], torch.ones(()))

    def noise(like: Tensor, here: Level, there: Level) -> Tensor:
        z = torch.zeros_like(like)
        z[1 + grid.index(here)] = 1
        return z

    end = final(scheduler, data, x, grid, noise).flatten()
    # The last row had no noise at all.
    return end[-1].item(), (end[:-1] - end[-1]).norm().item()


@every
@pytest.mark.parametrize("schedule", [SD, ZERO, FLOW, EdmSchedule()], ids=["sd", "zero-snr", "flow", "edm"])
def test_mean_and_deviation_of_gaussian_data_come_out(scheduler: AnyScheduler, schedule: NoiseSchedule) -> None:
    data = Gaussian(0.3, 0.5)
    spacing = UniformLogSnr() if schedule in (SD, EdmSchedule()) else Trailing()
    mean, deviation = moments(scheduler, data, spacing(schedule, 250))
    assert mean == pytest.approx(0.3, abs=0.004)
    assert deviation == pytest.approx(0.5, abs=0.012 if scheduler != Ddim(1) else 0.018)


@stochastic
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_weak_order_is_the_declared_one(scheduler: AnyScheduler, path: Callable[[int], Grid]) -> None:
    counts, data = [40, 60, 90, 135], Gaussian()
    wanted = math.sqrt(data.variance(path(1)[-1]))
    errors = [abs(moments(scheduler, data, path(n))[1] - wanted) for n in counts]
    assert scheduler.traits.order - 0.1 < slope(counts, errors) < scheduler.traits.order + 0.2


@stochastic
def test_a_large_sample_has_the_right_mean_and_deviation(scheduler: AnyScheduler) -> None:
    count, grid = 40_000, Trailing()(FLOW, 60)
    noise = AddressedNoise((1, 2))
    x = noise.initial(torch.empty(2, count // 2, dtype=torch.float64))
    sample = final(scheduler, Gaussian(), x, grid, noise)
    mean, deviation = moments(scheduler, Gaussian(), grid)
    assert sample.mean().item() == pytest.approx(mean, abs=4 * 0.5 / math.sqrt(count))
    assert sample.std().item() == pytest.approx(deviation, abs=4 * 0.5 / math.sqrt(2 * count))
    assert deviation == pytest.approx(0.5, abs=0.06)


@stochastic
def test_noise_matters_and_is_asked_once_per_step_but_the_last(scheduler: AnyScheduler) -> None:
    grid, asked = GRIDS["sd-karras"], []

    def noise(like: Tensor, here: Level, there: Level) -> Tensor:
        asked.append((here, there))
        return AddressedNoise((1, 2))(like, here, there)

    x = start(grid)
    first = final(scheduler, Mixture(), x, grid, noise)
    assert asked == list(pairwise(grid))[:-1]
    assert not torch.allclose(first, final(scheduler, Mixture(), x, grid, AddressedNoise((3, 4))))


@deterministic
@on_every_grid
def test_a_deterministic_scheduler_asks_for_no_noise(scheduler: AnyScheduler, grid: Grid) -> None:
    assert not scheduler.traits.stochastic
    final(scheduler, Mixture(), start(grid), grid, NoNoise())


@on_every_grid
def test_ddim_without_noise_is_euler(grid: Grid) -> None:
    x = start(grid)
    assert torch.equal(final(Ddim(), Mixture(), x, grid), final(Euler(), Mixture(), x, grid))


@given(eta=st.floats(0.001, 0.01), grid=grids())
def test_a_little_noise_changes_little(eta: float, grid: Grid) -> None:
    x = start(grid)
    quiet, near = final(Ddim(), Mixture(), x, grid), final(Ddim(eta), Mixture(), x, grid)
    assert (quiet - near).abs().max() < 100 * eta * max(level.sigma for level in grid[1:]) + 1e-9


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
def test_an_eta_outside_its_range_is_refused(bad: float) -> None:
    with pytest.raises(ParameterError, match="eta"):
        Ddim(eta=bad)


def test_an_unknown_variable_of_heun_is_refused() -> None:
    with pytest.raises(ParameterError, match="variable"):
        Heun("time")  # type: ignore[arg-type]


# Runs: resume, interleave, errors.


@every
@on_every_grid
def test_a_run_taken_up_again_gives_the_same_bits(scheduler: AnyScheduler, grid: Grid) -> None:
    x, noise = start(grid), AddressedNoise((1, 2))
    straight = list(solve(scheduler, Mixture(), x, grid, noise))
    for i in range(1, len(grid) - 1):
        saved = pickle.loads(pickle.dumps(straight[i - 1]))
        tail = list(solve(scheduler, Mixture(), torch.zeros_like(x), grid[i:], noise, resume=saved))
        assert len(tail) == len(straight) - i
        for a, b in zip(tail, straight[i:], strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.denoised, b.denoised)


@every
def test_two_runs_interleaved_equal_two_runs_apart(scheduler: AnyScheduler) -> None:
    def runs() -> list[Iterator[Step[Any]]]:
        pairs = (("sd-karras", Mixture(), 1), ("zero-snr", Gaussian(), 5))
        return [
            solve(scheduler, data, start(GRIDS[g], latents((s, s + 1))), GRIDS[g], AddressedNoise((s, s + 1)))
            for g, data, s in pairs
        ]

    apart = [[step.x for step in run] for run in runs()]
    one, other = runs()
    together: list[list[Tensor]] = [[], []]
    for turn in (0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1):
        together[turn].append(next((one, other)[turn]).x)
    for a, b in zip(apart, together, strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@every
def test_a_run_stopped_early_leaves_nothing_behind(scheduler: AnyScheduler) -> None:
    grid = GRIDS["sd-karras"]
    x = start(grid)
    wanted = final(scheduler, Mixture(), x, grid)
    for stop_after in (1, 3):
        run = solve(scheduler, Mixture(), x, grid, addressed(x))
        for _ in range(stop_after):
            next(run)
        run.close()
    assert torch.equal(final(scheduler, Mixture(), x, grid), wanted)


def test_the_loop_takes_a_grid_verbatim_and_refuses_what_is_none() -> None:
    counting, grid = Counting(), GRIDS["edm"]
    final(Euler(), counting, start(grid), list(grid))  # type: ignore[arg-type]
    assert counting.levels == list(grid[:-1])
    for bad in (grid[:1], grid[::-1], (grid[0], grid[0])):
        with pytest.raises(GridError):
            solve(Euler(), counting, start(grid), bad, NoNoise())


def test_an_error_says_where_it_happened() -> None:
    grid = GRIDS["sd-karras"]

    def denoise(x: Tensor, level: Level) -> Tensor:
        if level == grid[2]:
            raise RuntimeError("no")
        return x * 0

    with pytest.raises(RuntimeError) as caught:
        final(Euler(), denoise, start(grid), grid)
    assert caught.value.__notes__ == [f"in step 3 of 6, from {grid[2]} to {grid[3]}"]


def test_epsilon_cannot_start_from_no_signal_and_the_error_says_where() -> None:
    denoise = NetworkDenoiser(lambda x, time, cond: x, Epsilon())
    with pytest.raises(LevelError, match="velocity model") as caught:
        final(Euler(), lambda x, level: denoise(x, level, None), latents(), GRIDS["zero-snr"])
    assert "in step 1 of 7" in caught.value.__notes__[0]


# Scale and symmetry.


@every
@given(grid=grids(clean=True), factors=st.lists(st.floats(0.05, 20), min_size=9, max_size=9))
def test_the_same_schedule_in_another_scale_gives_the_same_picture(
    scheduler: AnyScheduler, grid: Grid, factors: list[float]
) -> None:
    x, other = start(grid), rescaled(grid, factors[: len(grid)])
    here = final(scheduler, Mixture(), x, grid)
    there = final(scheduler, Mixture(), x * factors[0], other)
    torch.testing.assert_close(here / grid[-1].alpha, there / other[-1].alpha, rtol=1e-8, atol=1e-8)


NETWORKS: dict[str, tuple[Parametrization, Grid]] = {
    "epsilon": (Epsilon(), Karras()(SD, 4)),
    "velocity": (Velocity(), Karras()(SD, 4)),
    "sample": (Sample(), Karras()(SD, 4)),
    "flow": (Flow(), Trailing()(FLOW, 4)),
    "edm": (Edm(), Karras()(EdmSchedule(), 4)),
}


@every
@pytest.mark.parametrize("kind", NETWORKS)
@settings(max_examples=max(1, settings().max_examples // 6))
@given(factors=st.lists(st.floats(0.05, 20), min_size=5, max_size=5))
def test_networks_of_every_kind_give_the_picture_of_the_exact_model_in_any_scale(
    scheduler: AnyScheduler, kind: str, factors: list[float]
) -> None:
    parametrization, grid = NETWORKS[kind]
    data = Mixture()
    denoise = NetworkDenoiser(exact_network(kind, data), parametrization)
    other = rescaled(grid, factors)
    x = data.start(grid[0], NORMAL)
    wanted = final(scheduler, data, x, grid)
    for levels, first in ((grid, x), (other, x * factors[0])):
        got = final(scheduler, lambda x, level: denoise(x, level, None), first, levels)
        torch.testing.assert_close(got / levels[-1].alpha, wanted, rtol=1e-6, atol=1e-6)


class Vectors:
    """A mixture of two round normals in all of latent space, perhaps turned: E[x0 | x] looks at all elements at once."""

    def __init__(self, turn: Tensor) -> None:
        size = turn.shape[0]
        self.centres = torch.stack([torch.linspace(-1, 1, size), torch.linspace(1, 0, size) ** 2]).double() @ turn.T

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        flat, s = x.flatten(1), 0.4
        variance = (level.alpha * s) ** 2 + level.sigma**2
        away = flat[:, None] - level.alpha * self.centres
        shares = torch.softmax(-(away**2).sum(-1) / (2 * variance), dim=1)[..., None]
        return (shares * (self.centres + level.alpha * s**2 / variance * away)).sum(1).reshape(x.shape)


@every
@given(grid=grids(), seed=st.integers(0, 1000))
def test_turning_latent_space_turns_the_result(scheduler: AnyScheduler, grid: Grid, seed: int) -> None:
    size = 12
    turn, _ = torch.linalg.qr(AddressedNoise(seed, "turn").initial(torch.empty(1, size, size).double())[0])

    def turned(x: Tensor) -> Tensor:
        return torch.matmul(x.flatten(1), turn.T).reshape(x.shape)

    source = AddressedNoise((1, 2))
    x = start(grid, latents(shape=(3, 4)))
    plain = final(scheduler, Vectors(torch.eye(size).double()), x, grid, source)
    rotated = final(scheduler, Vectors(turn), turned(x), grid, lambda like, a, b: turned(source(like, a, b)))
    torch.testing.assert_close(rotated, turned(plain), rtol=1e-8, atol=1e-8)


@deterministic
@on_every_grid
def test_mirroring_the_data_mirrors_the_result(scheduler: AnyScheduler, grid: Grid) -> None:
    data = Mixture()
    x = start(grid)
    mirrored = final(scheduler, lambda x, level: -data(-x, level), -x, grid)
    assert torch.equal(mirrored, -final(scheduler, data, x, grid))


# Precision.


@every
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_half_precision_network_stays_near_the_exact_one(scheduler: AnyScheduler, kind: str) -> None:
    parametrization, grid = NETWORKS[kind]
    data = Gaussian()
    exact = exact_network(kind, data)

    def half(x: Tensor, time: Tensor, cond: Any) -> Tensor:
        assert x.dtype == torch.float16
        return exact(x.double(), time.double(), cond).half()

    denoise = NetworkDenoiser(half, parametrization, dtype=torch.float16)
    x = data.start(grid[0], latents())
    wanted = final(scheduler, data, x, grid)
    got = final(scheduler, lambda x, level: denoise(x, level, None), x.float(), grid)
    assert got.dtype == torch.float32
    assert 0 < (got - wanted).abs().max() < 0.02


@every
@on_every_grid
def test_single_precision_stays_near_double(scheduler: AnyScheduler, grid: Grid) -> None:
    x = start(grid)
    double, single = final(scheduler, Mixture(), x, grid), final(scheduler, Mixture(), x.float(), grid)
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-5)


def test_second_order_corrections_are_the_textbook_ones() -> None:
    """One step of each two-stage formula, worked out by hand in the variable it is defined in."""
    a, b, c = Level(3, 0.6, 0.8), Level(2, 0.8, 0.6), Level(1, 0.96, 0.28)
    x = torch.tensor([[1.7]], dtype=torch.float64)
    data = Mixture()
    # Heun in sigma / alpha: dy/ds = (y - D) / s with y = x / alpha.
    y, s, s2 = x / a.alpha, a.sigma / a.alpha, b.sigma / b.alpha
    slope_1 = (y - data(x, a)) / s
    predicted = y + (s2 - s) * slope_1
    slope_2 = (predicted - data(predicted * b.alpha, b)) / s2
    wanted = b.alpha * (y + (s2 - s) * (slope_1 + slope_2) / 2)
    torch.testing.assert_close(Heun().step(data, x, a, b, None, NoNoise()).x, wanted, rtol=1e-12, atol=0)
    # Heun in flow time: dz/dt = noise - x0 with z = x / (alpha + sigma), t = sigma / (alpha + sigma).
    z, t, t2 = x / 1.4, a.sigma / 1.4, b.sigma / 1.4
    slope_1 = (z - data(x, a)) / t
    predicted = z + (t2 - t) * slope_1
    slope_2 = (predicted - data(predicted * 1.4, b)) / t2
    wanted = 1.4 * (z + (t2 - t) * (slope_1 + slope_2) / 2)
    torch.testing.assert_close(Heun("flow").step(data, x, a, b, None, NoNoise()).x, wanted, rtol=1e-12, atol=0)
    # DPM-Solver++(2M), algorithm 2 of Lu et al. 2022.
    solver = DpmPP2M()
    one = solver.step(data, x, a, b, solver.init(x, check_grid((a, b, c))), NoNoise())
    two = solver.step(data, one.x, b, c, one.state, NoNoise())
    h, h_last = c.log_snr - b.log_snr, b.log_snr - a.log_snr
    r = h_last / h
    estimate = (1 + 1 / (2 * r)) * data(one.x, b) - 1 / (2 * r) * data(x, a)
    wanted = c.sigma / b.sigma * one.x - c.alpha * math.expm1(-h) * estimate
    torch.testing.assert_close(two.x, wanted, rtol=1e-12, atol=0)
