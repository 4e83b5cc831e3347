"""The rules for schedulers. A scheduler is judged by what it does and by the traits it declares, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from sdkit.denoiser import NetworkDenoiser
from sdkit.levels import Grid, Level
from sdkit.loop import evaluations, solve
from sdkit.noise import AddressedNoise, NoNoise
from sdkit.parametrizations import Epsilon, Flow, Sample, Velocity
from sdkit.protocols import Parametrization, Scheduler, Traits
from sdkit.schedules import RectifiedFlow, scaled_linear
from sdkit.spacings import Karras, Trailing
from sdkit.testing.problems import Gaussian, Mixture, PointMass, Problem
from sdkit.testing.rules import NonConformance, Skip, global_state_watched, rule
from sdkit.testing.strategies import SCHEDULES, Case, cases

__all__ = [
    "check_scheduler_asks_noise_as_declared",
    "check_scheduler_distribution",
    "check_scheduler_ends_clean",
    "check_scheduler_evaluations",
    "check_scheduler_global_state",
    "check_scheduler_half_precision",
    "check_scheduler_interleaving",
    "check_scheduler_items_of_a_batch",
    "check_scheduler_order",
    "check_scheduler_orthogonal_maps",
    "check_scheduler_output",
    "check_scheduler_parametrizations",
    "check_scheduler_point_mass",
    "check_scheduler_purity",
    "check_scheduler_resume",
    "check_scheduler_scale",
    "check_scheduler_traits",
    "check_scheduler_without_noise",
]

Denoise = Callable[[Tensor, Level], Tensor]
TAME = tuple(name for name in SCHEDULES if name != "cosine")
"""Schedules on which float64 has digits to spare: the cosine one starts at sigma / alpha = 20,000, where solvers of the
noise form lose seven of them by their nature."""


def _walk(scheduler: Scheduler[Any], denoise: Denoise, x: Tensor, grid: Grid, noise: Any) -> Tensor:
    for step in solve(scheduler, denoise, x, grid, noise):
        x = step.x
    return x


def _demand(truth: object, message: str) -> None:
    if not truth:
        raise NonConformance(message)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _state_equal(a: Any, b: Any) -> bool:
    """Whether two states hold the same, whatever they are made of."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(_state_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_state_equal(a[k], b[k]) for k in a)
    if attrs.has(type(a)):
        return all(_state_equal(getattr(a, f.name), getattr(b, f.name)) for f in attrs.fields(type(a)))
    if dataclasses.is_dataclass(a):
        return all(_state_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if "__eq__" not in type(a).__dict__ and type(a).__module__ != "builtins":
        return _state_equal(vars(a), vars(b)) if hasattr(a, "__dict__") else pickle.dumps(a) == pickle.dumps(b)
    return bool(a == b)


@rule(
    "scheduler",
    text="`traits` is a `Traits` whose numbers make sense.",
    why="Everything else that is demanded of a scheduler follows from what it declares.",
    hint="order >= 0, startup_order None or below order, evaluations None or at least 1; adaptive only if it is.",
)
def check_scheduler_traits(scheduler: Scheduler[Any]) -> str:
    """Traits are well formed."""
    traits = scheduler.traits
    _demand(isinstance(traits, Traits), f"traits is a {type(traits).__name__}, not Traits.")
    _demand(traits.order >= 0, f"order {traits.order} is below 0.")
    low = traits.startup_order
    _demand(low is None or 0 < low < traits.order, f"startup_order {low} is not below the order {traits.order}.")
    _demand(traits.evaluations is None or traits.evaluations >= 1, f"evaluations {traits.evaluations} is below 1.")
    if traits.adaptive:
        easy, hard = (_calls(scheduler, problem) for problem in (PointMass(torch.zeros(1, 1, 1)), Mixture()))
        _demand(easy != hard, f"it is declared adaptive and makes {easy} calls whether data are easy or hard.")
    return f"order {traits.order}"


def _calls(scheduler: Scheduler[Any], problem: Problem) -> int:
    """Denoiser calls on a coarse grid."""
    calls, grid, noise = 0, _levels(2, "even"), AddressedNoise((1,))

    def denoise(x: Tensor, level: Level) -> Tensor:
        nonlocal calls
        calls += 1
        return problem(x, level)

    _walk(scheduler, denoise, problem.start(grid[0], noise.initial(torch.empty(1, 1, 9).double())), grid, noise)
    return calls


@rule(
    "scheduler",
    text="A step gives finite tensors of the shape, dtype and device it was given, on every schedule and grid.",
    why="Flow and zero-terminal-SNR models start where alpha is 0; a division by alpha turns their pictures into NaN.",
    hint="A division by alpha or by a difference of log_snr that is infinite; a tensor made without like.",
    cases=cases,
)
def check_scheduler_output(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Shape, dtype, device, finite."""
    for dtype in (torch.float64, torch.float32):
        x = case.start(dtype)
        for i, step in enumerate(solve(scheduler, case.problem, x, case.grid, case.noise)):
            for name, tensor in (("x", step.x), ("denoised", step.denoised)):
                where = f"{name} of step {i + 1}, {case.name}"
                _demand(tensor.shape == x.shape, f"{where}: shape {tuple(tensor.shape)}, not {tuple(x.shape)}.")
                _demand(tensor.dtype == dtype, f"{where}: {tensor.dtype}, not {dtype}.")
                _demand(tensor.device == x.device, f"{where}: on {tensor.device}, not {x.device}.")
                _demand(bool(torch.isfinite(tensor).all()), f"{where}: not finite.")


@rule(
    "scheduler",
    text="`step` is pure: the same arguments give the same bits, and none of them is changed.",
    why="Threads, retry, preview and resume all rest on it; a hidden cursor gives another picture the second time.",
    hint="An attribute set in step, an in-place operation on x, on the prediction or on the state.",
    cases=cases,
)
def check_scheduler_purity(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Nothing mutated, nothing remembered outside the state."""
    predictions: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        prediction = case.problem(x, level)
        predictions.extend([(prediction, prediction.clone()), (x, x.clone())])
        return prediction

    x = case.start()
    state = scheduler.init(x, case.grid)
    for i, (start, stop) in enumerate(pairwise(case.grid)):
        x_before, state_before = x.clone(), pickle.dumps(state)
        first = scheduler.step(denoise, x, start, stop, state, case.noise)
        _demand(torch.equal(x, x_before), f"step {i + 1} changed its x in place ({case.name}).")
        _demand(_state_equal(state, pickle.loads(state_before)), f"step {i + 1} changed its state in place.")
        kept = all(torch.equal(a, b) for a, b in predictions)
        _demand(kept, f"step {i + 1} changed a prediction, or what it was made from, in place.")
        second = scheduler.step(denoise, x, start, stop, state, case.noise)
        _demand(torch.equal(first.x, second.x), f"step {i + 1} made twice gives two results ({case.name}).")
        _demand(_state_equal(first.state, second.state), f"step {i + 1} made twice gives two states.")
        x, state = first.x, first.state


@rule(
    "scheduler",
    text="If it declares so, data that are one point are reproduced exactly on every grid that ends clean.",
    why="Leftover noise in the last step, a wrong last level or a dropped step all show here.",
    hint="Coefficients of x and of the prediction: with D = x0 the step must land on alpha' x0 + sigma' e.",
    cases=lambda: cases(names=TAME),
)
def check_scheduler_point_mass(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Exact on a point mass."""
    if not scheduler.traits.exact_on_point_mass:
        raise Skip("not declared exact on a point mass")
    point = AddressedNoise(case.seeds, "point").initial(case.start())
    problem = PointMass(point)
    x = start = problem.start(case.grid[0], case.noise.initial(point))
    for i, step in enumerate(solve(scheduler, problem, x, case.grid, case.noise), start=1):
        x = step.x
        if not scheduler.traits.stochastic:
            error = _apart(x, problem.flow(start, case.grid[0], case.grid[i]))
            _demand(error < 1e-9, f"after step {i}, {error:.2g} away from the line to the point ({case.name}).")
    error = _apart(x, point * case.grid[-1].alpha)
    _demand(error < 1e-9, f"ends {error:.2g} away from the point ({case.name}).")


@rule(
    "scheduler",
    text="Steps call the denoiser as often as declared and never more, and what is planned beforehand is what is done.",
    why="Progress, time left and price of a run are told from it; a wasted call is a wasted second.",
    hint="A second evaluation on the step to clean; an evaluation whose result is not used.",
    cases=cases,
)
def check_scheduler_evaluations(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Evaluations as declared and as planned."""
    most = scheduler.traits.evaluations
    made = _calls_by_step(scheduler, case.problem, case.start(), case.grid, case.noise)
    for i, calls in enumerate(made):
        _demand(most is None or calls <= most, f"step {i + 1} made {calls} calls, declared are {most}.")
    planned = evaluations(scheduler, case.grid, torch.zeros(1, 1, 1, 1), AddressedNoise(case.seeds[:1]))
    _demand(planned in (None, sum(made)), f"{planned} calls were planned and {sum(made)} made ({case.name}).")
    # what is declared must also be reached, on a way long enough to have steps that are neither first nor last
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    largest = max(_calls_by_step(scheduler, Gaussian.isotropic(1), x, _levels(12, "even"), AddressedNoise((0,))))
    _demand(most in (None, largest), f"no step made more than {largest} calls, declared are {most}.")


def _calls_by_step(scheduler: Scheduler[Any], problem: Problem, x: Tensor, grid: Grid, noise: Any) -> list[int]:
    """Denoiser calls of each step."""
    made: list[int] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        made[-1] += 1
        _demand(level.sigma > 0, "the denoiser was asked at the clean level.")
        return problem(x, level)

    state = scheduler.init(x, grid)
    for start, stop in pairwise(grid):
        made.append(0)
        step = scheduler.step(denoise, x, start, stop, state, noise)
        x, state = step.x, step.state
    return made


@rule(
    "scheduler",
    text="Image k of a batch equals the image made alone, and permuting the batch permutes the result.",
    why="People look for the good one among eight and want it again.",
    hint="A mean or norm over the whole batch; noise drawn for the batch at once.",
    cases=cases,
)
def check_scheduler_items_of_a_batch(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Items do not see each other."""
    if scheduler.traits.adaptive:
        raise Skip("a solver with its own step control looks at the whole batch")
    x = case.start()
    together = _walk(scheduler, case.problem, x, case.grid, case.noise)
    for k, seed in enumerate(case.seeds):
        alone = _walk(scheduler, case.problem, x[k : k + 1], case.grid, AddressedNoise((seed,)))
        error = _apart(together[k : k + 1], alone)
        _demand(error < 1e-9, f"image {k} of {len(case.seeds)} differs by {error:.2g} from it alone ({case.name}).")
    turned = AddressedNoise(tuple(reversed(case.seeds)))
    error = _apart(_walk(scheduler, case.problem, x.flip(0), case.grid, turned), together.flip(0))
    _demand(error < 1e-9, f"turning the batch round changes images by {error:.2g} ({case.name}).")


def _levels(n: int, kind: str, warm: float = 1.0) -> Grid:
    """N even steps, from nearly pure noise to little of it, not to clean; kinds tell in what they are even.

    ``"even"`` in log_snr, ``"bent"`` in a smooth map of it, ``"limping"``: every other step twice as long, which shows
    weights that are right only where neighbouring steps are equally long. With ``warm`` above 1, the first step h is
    divided into steps that double from about ``h^warm``: a method that starts with lower order then starts with steps
    so short that they do not hide the order of the others.
    """
    schedule = scaled_linear()
    first, last = schedule.level(900).log_snr, schedule.level(50).log_snr
    if kind == "limping":
        shares = [(3 * (i // 2) + 2 * (i % 2)) / (3 * n / 2) for i in range(n + 1)]
    elif kind == "bent":
        shares = [(i / n + math.sin(math.pi / 2 * i / n)) / 2 for i in range(n + 1)]
    else:
        shares = [i / n for i in range(n + 1)]
    if warm > 1:
        h = shares[1] * (last - first)
        doublings = max(1, math.ceil((1 - warm) * math.log2(min(h, 0.9))))
        shares = [0.0, *(shares[1] * (2**k - 1) / (2**doublings - 1) for k in range(1, doublings)), *shares[1:]]
    return tuple(schedule.level(schedule.time(first + (last - first) * share)) for share in shares)


def _slope(counts: list[int], errors: list[float]) -> float:
    """The order that errors show; those at the level of rounding say nothing about it and are left out."""
    pairs = [(n, error) for n, error in zip(counts, errors, strict=True) if error > 1e-11]
    if len(pairs) < 2:
        return math.inf
    steps, wrong = np.log(np.asarray(pairs)).T
    return float(-np.polyfit(steps, wrong, 1)[0])


@rule(
    "scheduler",
    text="Errors fall with the number of steps at least as fast as the declared order says, against exact solutions.",
    why="A wrong coefficient still gives pictures, only worse ones than the same time could buy.",
    hint="A sign, a factor 2, a half step, the ratio of steps upside down, a float32 in the coefficients.",
)
def check_scheduler_order(scheduler: Scheduler[Any]) -> str:
    """Order of convergence, fitted in float64 over four grids of three kinds, the worst of three problems each."""
    traits = scheduler.traits
    if traits.order == 0:
        raise Skip("no order is declared")
    if traits.stochastic:
        return _weak_order(scheduler)
    if traits.adaptive:
        return _tolerance(scheduler)
    declared = traits.order
    # one step of local order q + 1 among steps of order p is made as short as h^(p / (q + 1))
    warm = 1.0 if traits.startup_order is None else max(1.0, declared / (traits.startup_order + 1))
    counts = [32, 64, 128, 256] if declared >= 4 else [16, 32, 64, 128] if declared == 3 else [24, 48, 96, 192]
    normal = torch.linspace(-1.8, 1.8, 8, dtype=torch.float64).reshape(1, 2, 4)
    tilted = torch.tensor([[0.3, 0.12], [0.12, 0.2]], dtype=torch.float64)
    problems: list[Problem] = [Gaussian.isotropic(2), Gaussian(torch.tensor([0.4, -0.2]).double(), tilted), Mixture()]
    figures = []
    for kind in ("even", "bent", "limping"):
        errors = []
        for n in counts:
            grid = _levels(n, kind, warm)
            worst = 0.0
            for problem in problems:
                x = problem.start(grid[0], normal)
                got = _walk(scheduler, problem, x, grid, NoNoise())
                worst = max(worst, _apart(got, problem.flow(x, grid[0], grid[-1])))
            errors.append(worst)
        slope = _slope(counts, errors)
        figures.append(f"{slope:.2f}")
        shown = ", ".join(f"{error:.1e}" for error in errors)
        _demand(
            slope > declared - 0.3,
            f"order {slope:.2f}, promised {declared}: errors {shown} in {counts} steps, {kind} grid.",
        )
    return f"order {', '.join(figures)} (promised {declared})"


def _tolerance(scheduler: Scheduler[Any]) -> str:
    """A solver with its own step control does not get better by a finer grid; it must be good on a coarse one."""
    problem, grid = Mixture(), _levels(2, "even")
    x = problem.start(grid[0], torch.linspace(-1.8, 1.8, 8, dtype=torch.float64)[None])
    error = _apart(_walk(scheduler, problem, x, grid, NoNoise()), problem.flow(x, grid[0], grid[-1]))
    _demand(error < 0.1, f"error {error:.2g} on two intervals, which its own step control should have divided.")
    return f"error {error:.1e} on two intervals"


class _Units:
    """Noise as unit vectors: run once on a batch of them, an affine run shows its matrix.

    First a run only records what is asked for; then every independent piece of noise in every channel has a row of the
    batch in which it is 1 and all others are 0. Either each interval is a piece of its own, as in `AddressedNoise`, or
    with ``path`` the pieces are those into which all ends of intervals cut the time of one Brownian path, and the noise
    of an interval is made of the pieces inside it, each weighed by the root of its share of the time.
    """

    def __init__(self) -> None:
        self.asked: dict[tuple[float, float], int] = {}
        self.weights: Tensor | None = None

    def settle(self, *, path: bool) -> int:
        """Fix the pieces; their number."""
        self.weights = torch.eye(len(self.asked), dtype=torch.float64)
        if path:
            times = torch.tensor([(_share(b), _share(a)) for a, b in self.asked], dtype=torch.float64).reshape(-1, 2)
            cuts = torch.unique(times)
            inside = (cuts[:-1] >= times[:, :1]) & (cuts[1:] <= times[:, 1:])
            self.weights = (cuts.diff() * inside / (times[:, 1:] - times[:, :1])).sqrt()
        return int(self.weights.shape[1])

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        place = self.asked.setdefault((start.log_snr, stop.log_snr), len(self.asked))
        noise = like * 0
        if self.weights is not None:
            channels = like.shape[1]
            pieces = self.weights[place][:, None].expand(-1, channels)
            noise[1 + channels :] = torch.diag_embed(pieces).reshape(-1, channels, 1).to(like)
        return noise


def _share(log_snr: float) -> float:
    """The share of noise in a variance-preserving latent: a time that runs from 1 to 0."""
    return 1 / (1 + math.exp(2 * log_snr)) if log_snr < 300 else 0.0


def _moments_off(scheduler: Scheduler[Any], n: int, kind: str, *, path: bool = False) -> Tensor:
    """By how much mean and covariance are off after n steps, exactly: on normal data a run is an affine map.

    In units of the deviation (of twice its square for the covariance, so that 0.01 is a deviation off by 1 %). On a
    grid that does not end clean, since the last prediction of a grid that does has a little less than the data's
    variance, whatever the scheduler.
    """
    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.33], [0.33, 0.3]], dtype=torch.float64)
    problem, grid, units = Gaussian(mean, covariance), _levels(n, kind), _Units()
    _walk(scheduler, problem, problem.start(grid[0], torch.zeros(1, 2, 1, dtype=torch.float64)), grid, units)
    normal = torch.zeros(3 + 2 * units.settle(path=path), 2, 1, dtype=torch.float64)
    normal[1, 0] = normal[2, 1] = 1
    end = _walk(scheduler, problem, problem.start(grid[0], normal), grid, units)[..., 0]
    level, matrix = grid[-1], end[1:] - end[0]
    right = covariance * level.alpha**2 + torch.eye(2, dtype=torch.float64) * level.sigma**2
    spread = float(right.diagonal().max())
    wrong = (matrix.T @ matrix - right) / (2 * spread)
    return torch.cat([(end[0] - mean * level.alpha) / math.sqrt(spread), wrong.flatten()])


def _weak_order(scheduler: Scheduler[Any]) -> str:
    counts, declared, figures = [40, 80, 160, 320], scheduler.traits.order, []
    for kind in ("even", "limping"):
        errors = [float(_moments_off(scheduler, n, kind).norm()) for n in counts]
        slope = _slope(counts, errors)
        figures.append(f"{slope:.2f}")
        shown = ", ".join(f"{error:.1e}" for error in errors)
        _demand(
            slope > declared - 0.2 or errors[-1] < 1e-6,
            f"weak order {slope:.2f}, promised {declared}: errors of moments {shown} in {counts} steps, {kind} grid.",
        )
    return f"weak order {', '.join(figures)} (promised {declared})"


@rule(
    "scheduler",
    text="A stochastic scheduler ends with the data's distribution, as steps become many, whether the noises of its "
    "intervals are independent or increments of one path.",
    why="Too little noise gives smooth, dull pictures; too much leaves grain.",
    hint="The noise's scale: what is kept and what is added must make up sigma' together; one draw used twice; draws "
    "taken for independent whose intervals overlap; noise after the last step.",
)
def check_scheduler_distribution(scheduler: Scheduler[Any]) -> str:
    """Mean and covariance on normal data, exactly and in the limit of many steps; a mixture, drawn."""
    if not scheduler.traits.stochastic:
        raise Skip("not stochastic")
    if scheduler.traits.order == 0:
        raise Skip("no order is declared: it does not solve the equation")
    worst = 0.0
    for path, what in ((False, "independent noise"), (True, "increments of one path as noise")):
        limit = _moments_in_the_limit(scheduler, 100, path=path)
        if limit >= 3e-4:  # what is cut off at few steps, as strong churn is, has no smooth error there
            limit = _moments_in_the_limit(scheduler, 250, path=path)
        _demand(limit < 3e-4, f"with {what}, mean or deviation stay off by {limit:.2%} however many steps are made.")
        worst = max(worst, limit)
    distance = _distance_of_a_mixture(scheduler)
    _demand(distance < 0.025, f"on data of two kinds, 100 steps end {distance:.3f} away from their distribution.")
    return f"moments off by {worst:.0e} in the limit, a mixture by {distance:.3f}"


def _moments_in_the_limit(scheduler: Scheduler[Any], n: int, *, path: bool) -> float:
    """What is left of the errors of n, 2 n and 4 n steps at infinitely many (Richardson's extrapolation)."""
    row = [_moments_off(scheduler, count, "even", path=path) for count in (n, 2 * n, 4 * n)]
    for power in (1, 2):  # each removes one whole power of 1 / n
        row = [(finer * 2**power - coarser) / (2**power - 1) for coarser, finer in pairwise(row)]
    return float(row[0].norm())


def _distance_of_a_mixture(scheduler: Scheduler[Any]) -> float:
    """Kolmogorov's distance between 20,000 elements and their distribution (0.01 is what chance explains)."""
    problem, grid, noise = Mixture(), _levels(100, "even"), AddressedNoise((11,))
    x = problem.start(grid[0], noise.initial(torch.empty(1, 1, 20_000, dtype=torch.float64)))
    below = problem.below(_walk(scheduler, problem, x, grid, noise), grid[-1]).flatten().sort().values
    return _apart(below, (torch.arange(len(below)) + 0.5) / len(below))


@rule(
    "scheduler",
    text="Noise is asked for if and only if `stochastic` is declared, and never for an interval that ends clean.",
    why="A deterministic scheduler is run without a source of noise; noise on the last step stays in the picture.",
    hint="eta = 0 must ask for none; the last step must not add any.",
    cases=cases,
)
def check_scheduler_asks_noise_as_declared(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Requests for noise."""
    asked: list[int] = []
    x = case.start()
    state = scheduler.init(x, case.grid)
    for i, (start, stop) in enumerate(pairwise(case.grid)):

        def noise(like: Tensor, a: Level, b: Level, /, i: int = i) -> Tensor:
            asked.append(i)
            _demand(b.sigma > 0, f"noise was asked for an interval that ends clean ({case.name}).")
            return case.noise(like, a, b)

        step = scheduler.step(case.problem, x, start, stop, state, noise)
        x, state = step.x, step.state
    _demand(scheduler.traits.stochastic or not asked, f"noise was asked for in step {asked[:1]}, none is declared.")
    if scheduler.traits.stochastic:
        units, grid = _Units(), Karras()(scaled_linear(), 40)
        problem = Gaussian.isotropic(1)
        _walk(scheduler, problem, problem.start(grid[0], torch.zeros(2, 1, 1, dtype=torch.float64)), grid, units)
        _demand(units.asked, "it is declared stochastic and never asks for noise in a run of 40 steps.")


@rule(
    "scheduler",
    text="A run whose state was pickled after any step goes on to the same bits.",
    why="Long runs are interrupted; a resumed one must not be another picture.",
    hint="Something the next step needs is not in the state, or the state cannot be pickled.",
    cases=cases,
)
def check_scheduler_resume(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Resume from every step."""
    steps = list(solve(scheduler, case.problem, case.start(), case.grid, case.noise))
    for i, step in enumerate(steps[:-1]):
        try:
            kept = pickle.loads(pickle.dumps(step))
        except Exception as error:
            raise NonConformance(f"the state after step {i + 1} cannot be pickled: {error}.") from error
        rest = solve(scheduler, case.problem, kept.x, case.grid[i + 1 :], case.noise, resume=kept)
        *_, last = rest
        _demand(torch.equal(last.x, steps[-1].x), f"resumed after step {i + 1}, another result ({case.name}).")


@rule(
    "scheduler",
    text="Two runs with one scheduler object, interleaved step by step, equal the two runs apart.",
    why="Servers do exactly this; a shared cursor gives IndexErrors or, worse, other pictures.",
    hint="State kept on the object instead of in the value that step returns.",
    cases=cases,
)
def check_scheduler_interleaving(scheduler: Scheduler[Any], *, case: Case) -> None:
    """One object, two runs."""
    other = Trailing()(RectifiedFlow(), len(case.grid) - 1)
    seeds = tuple(seed + 1 for seed in case.seeds)
    problem, noise = Mixture(), AddressedNoise(seeds)
    y = problem.start(other[0], noise.initial(case.start()))
    apart = (
        _walk(scheduler, case.problem, case.start(), case.grid, case.noise),
        _walk(scheduler, problem, y, other, noise),
    )
    runs = (
        solve(scheduler, case.problem, case.start(), case.grid, case.noise),
        solve(scheduler, problem, y, other, noise),
    )
    for pair in zip(*runs, strict=True):
        last = pair
    for name, step, alone in zip(("first", "second"), last, apart, strict=True):
        _demand(torch.equal(step.x, alone), f"the {name} of two interleaved runs differs from it alone ({case.name}).")


@rule(
    "scheduler",
    text="Turning latent space by an orthogonal map before a run equals turning the result.",
    why="A solver knows no direction of latent space; one that treats elements apart clips or thresholds them.",
    hint="An operation on single elements: clamp, sort, quantile, a mask.",
    cases=lambda: cases(names=TAME),
)
def check_scheduler_orthogonal_maps(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Orthogonal maps commute, for normal data of one variance and noise that is turned along."""
    if scheduler.traits.adaptive:
        raise Skip("a solver with its own step control measures elements apart")
    x = case.start()
    size = x[0].numel()
    raw = AddressedNoise((size,), "turn").initial(torch.empty(1, size, size, dtype=torch.float64))[0]
    turn, _ = torch.linalg.qr(raw)

    def turned(tensor: Tensor) -> Tensor:
        moved: Tensor = tensor.flatten(1) @ turn.T
        return moved.reshape(tensor.shape)

    def noise(like: Tensor, a: Level, b: Level, /) -> Tensor:
        return turned(case.noise(like, a, b))

    problem = Gaussian.isotropic(case.shape[0], mean=0.0)
    plain = turned(_walk(scheduler, problem, x, case.grid, case.noise))
    error = _apart(_walk(scheduler, problem, turned(x), case.grid, noise), plain)
    _demand(error < 1e-9, f"turned before and after differ by {error:.2g} ({case.name}).")


@rule(
    "scheduler",
    text="One step from the noisiest level to clean gives the prediction made there, on every schedule.",
    why="A grid of one step is what a distilled model is run on, and what people try first.",
    hint="The step to sigma' = 0: an infinite step in log_snr, a division by sigma' or alpha.",
)
def check_scheduler_ends_clean(scheduler: Scheduler[Any]) -> None:
    """One-step grids."""
    if scheduler.traits.adaptive:
        raise Skip("a solver with its own step control may divide the step")
    for name, schedule in SCHEDULES.items():
        grid, problem, noise = Trailing()(schedule, 1), Mixture(), AddressedNoise((3,))
        x = problem.start(grid[0], noise.initial(torch.empty(1, 1, 5, dtype=torch.float64)))
        error = _apart(_walk(scheduler, problem, x, grid, noise), problem(x, grid[0]) * grid[-1].alpha)
        _demand(error < 1e-9, f"one step on {name} ends {error:.2g} away from the prediction.")


@rule(
    "scheduler",
    text="The same levels written in another scale (alpha and sigma times a factor each) give the same x0.",
    why="One solver then serves variance-preserving, exploding and flow models, however they are written.",
    hint="A coefficient made of alpha or sigma alone; only sigma' / sigma, alpha' and the ratio of both are safe.",
    cases=lambda: cases(names=("scaled-linear", "edm", "flow-shift-3")),
)
def check_scheduler_scale(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Invariance under rescaling each level."""
    factors = np.geomspace(3.0, 1.0, len(case.grid)).tolist()
    other = tuple(Level(g.t, g.alpha * c, g.sigma * c) for g, c in zip(case.grid, factors, strict=True))
    x = case.start()
    error = _apart(
        _walk(scheduler, case.problem, x, case.grid, case.noise),
        _walk(scheduler, case.problem, x * factors[0], other, case.noise),
    )
    _demand(error < 1e-8, f"another scale moves the result by {error:.2g} ({case.name}).")


@rule(
    "scheduler",
    text="Networks that predict noise, velocity, the sample or a flow for the same data give the same result.",
    why="Whether a model was trained on epsilon or velocity must not change what a sampler does.",
    hint="The scheduler looks at something besides the denoised prediction.",
)
def check_scheduler_parametrizations(scheduler: Scheduler[Any]) -> None:
    """Parametrizations of one model agree."""
    schedule, problem = scaled_linear(), Mixture()
    grid = Karras()(schedule, 6)
    x = problem.start(grid[0], AddressedNoise((1, 2)).initial(torch.empty(2, 1, 4, dtype=torch.float64)))
    results = {}
    for parametrization in (Epsilon(), Velocity(), Sample(), Flow()):
        results[type(parametrization).__name__] = _walk(
            scheduler, _predicting(parametrization, problem, schedule), x, grid, AddressedNoise((1, 2))
        )
    first = results["Sample"]
    for name, result in results.items():
        error = _apart(result, first)
        _demand(
            error < 1e-7, f"a network that predicts {name} ends {error:.2g} away from one that predicts the sample."
        )


def _predicting(parametrization: Parametrization, problem: Problem, schedule: Any) -> Denoise:
    """A denoiser through an exact network of this parametrization, which knows only its input and its time."""

    def network(x: Tensor, time: Tensor, cond: object, /) -> Tensor:
        told = float(time[0])
        if isinstance(parametrization, Flow):
            level = Level(told, 1 - told, told)
        else:
            level = schedule.level(min(max(told, 0.0), 999.0))
        scaling = parametrization(level)
        original = x / scaling.in_
        answer: Tensor = (problem(original, level) - original * scaling.skip) / scaling.out
        return answer

    denoiser: NetworkDenoiser[None] = NetworkDenoiser(network, parametrization, schedule)
    return lambda x, level: denoiser(x, level, None)


@rule(
    "scheduler",
    text="With a denoiser that answers in half precision the result stays near that of float64.",
    why="Networks run in float16 or bfloat16; arithmetic that amplifies their rounding shows as grain.",
    hint="Differences of large numbers, predictions divided by small differences, state kept in half precision.",
)
def check_scheduler_half_precision(scheduler: Scheduler[Any]) -> str:
    """Float32 latents and a denoiser rounded to bfloat16."""
    problem, grid = Mixture(), Karras()(scaled_linear(), 20)
    noise = AddressedNoise((5,))
    x = problem.start(grid[0], noise.initial(torch.empty(1, 1, 64, dtype=torch.float64)))

    def rounded(x: Tensor, level: Level) -> Tensor:
        return problem(x.double(), level).to(torch.bfloat16).to(x.dtype)

    exact = _walk(scheduler, problem, x, grid, noise)
    got = _walk(scheduler, rounded, x.float(), grid, noise).double()
    error = float((got - exact).abs().mean())
    _demand(error < 0.02, f"rounding predictions to bfloat16 moves the result by {error:.3f} on average (data: 0.8).")
    return f"moves by {error:.4f} on average"


@rule(
    "scheduler",
    text="A run neither draws from nor changes torch's, numpy's or Python's global random state.",
    why="Seeds would not reproduce, and threads would disturb each other.",
    hint="torch.randn, np.random or random somewhere; ask the noise that step is given.",
    cases=lambda: cases(most_steps=4),
)
def check_scheduler_global_state(scheduler: Scheduler[Any], *, case: Case) -> None:
    """Global generators are untouched."""
    with global_state_watched():
        _walk(scheduler, case.problem, case.start(), case.grid, case.noise)


@rule(
    "scheduler",
    text="A stochastic scheduler with a parameter `eta` is, with eta = 0, one without noise: it asks for none, and "
    "converges to the probability flow with the order it then declares.",
    why="People turn the noise down to compare; what is left must be the deterministic solver, not half of the other.",
    hint="What is kept and what is added must come from the same eta.",
)
def check_scheduler_without_noise(scheduler: Scheduler[Any]) -> str:
    """Eta = 0."""
    if not scheduler.traits.stochastic:
        raise Skip("not stochastic")
    if not (attrs.has(type(scheduler)) and hasattr(scheduler, "eta")):
        raise Skip("it has no parameter eta")
    still: Scheduler[Any] = attrs.evolve(scheduler, eta=0.0)  # type: ignore[misc]
    _demand(not still.traits.stochastic, "with eta = 0 it still declares itself stochastic.")
    return str(check_scheduler_order(still))
