"""Work-precision: how large the error of a scheduler is for how many denoiser evaluations.

Notation: `sdkit.levels`. An error is relative: the root-mean-square (RMS) distance of the latents from the solution,
divided by the solution's RMS. Three measures of it:

- **path**, on exact data: the distance from the exact probability flow (Song et al. 2021,
  https://arxiv.org/abs/2011.13456), for schedulers that add no noise.
- **moments**, on normal data: a run is then an affine map of the normal numbers that go into it. Running it once on
  their basis gives the mean m' and covariance C' that it ends with, exactly, with no sampling error; the error is the
  larger of ``|m' - m| / sqrt(trace C)`` and ``|C' - C| / |C|`` (Frobenius norm). For schedulers that add noise, too.
- **model**: the distance from the solution that a loaded model itself has with very many steps from the same noise.

All evaluations are counted while they are made, not planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from sdkit.errors import InvalidRequest, NonFiniteError, UnknownComponent
from sdkit.levels import Grid, Level
from sdkit.loading import pipeline
from sdkit.loop import solve
from sdkit.model import Model
from sdkit.noise import AddressedNoise, NoNoise
from sdkit.pipelines import ResultEvent
from sdkit.plugins import registry
from sdkit.protocols import Noise, NoiseSchedule, Scheduler, Spacing
from sdkit.request import Request
from sdkit.spacings import check_steps
from sdkit.testing.problems import Gaussian, Mixture, Problem

__all__ = ["PROBLEMS", "Contender", "Curve", "Diagram", "Point", "exact_precision", "model_precision"]

PROBLEMS: dict[str, Problem] = {
    "gaussian": Gaussian.isotropic(2),
    "correlated": Gaussian(
        torch.tensor([0.4, -0.2], dtype=torch.float64), torch.tensor([[0.3, 0.12], [0.12, 0.2]], dtype=torch.float64)
    ),
    "mixture": Mixture(),
}
"""Exact data by name: normal with independent channels, normal with correlated ones, and a mixture of two normals."""
CHANNELS, PLACES = 2, 256
ROUNDING = 1e-11
"""Relative errors below this are rounding of float64, and say nothing about a scheduler."""

Measure: TypeAlias = Literal["path", "moments"]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the denoiser evaluations done so far and those expected altogether."""


@frozen(eq=False)
class Contender:
    """A scheduler on a spacing, with the names they are known by.

    Attributes:
        scheduler_name: Text for people.
        spacing_name: Text for people.
        scheduler: The solver.
        spacing: Which levels it visits.
    """

    scheduler_name: str
    spacing_name: str
    scheduler: Scheduler[Any] = field(repr=False)
    spacing: Spacing = field(repr=False)

    @classmethod
    def of(cls, scheduler: str, spacing: str) -> Contender:
        """By names; parameters may follow them, and a spacing in the scheduler's name ("DPM++ 2M Karras") is taken.

        Raises:
            UnknownComponent, ParameterError: a name means nothing, or not with these parameters.
        """
        text, implied = registry().pair(scheduler)
        spacing = implied or spacing
        solver, levels = registry().make("scheduler", text), registry().make("spacing", spacing)
        return cls(_canonical("scheduler", text, solver), _canonical("spacing", spacing, levels), solver, levels)

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.scheduler_name}, {self.spacing_name}"

    def _price(self, steps: int) -> int:
        return steps * (self.scheduler.traits.evaluations or 1)


@frozen
class Point:
    """One run.

    Attributes:
        steps: Steps asked of the spacing.
        evaluations: Denoiser calls that were made.
        error: See the module's text.
    """

    steps: int
    evaluations: int
    error: float


@frozen
class Curve:
    """Runs of one scheduler on one spacing, steps rising.

    Attributes:
        scheduler: Its name.
        spacing: Its name.
        order: The order the scheduler declares.
        points: One per number of steps.
        slope: Fitted order of the error in evaluations, ``error ~ evaluations^-slope``: least squares in logarithms
            over the finer half of the points above the diagram's floor; None where fewer than two are left.
    """

    scheduler: str
    spacing: str
    order: int
    points: tuple[Point, ...]
    slope: float | None

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.scheduler}, {self.spacing}"


@frozen
class Diagram:
    """Curves that may be compared: same data, same start, same measure.

    Attributes:
        title: The data.
        measure: What the errors are, in words.
        floor: Errors below this are not the scheduler's.
        floor_reason: Whose they are.
        curves: One per contender.
    """

    title: str
    measure: str
    floor: float
    floor_reason: str
    curves: tuple[Curve, ...]


def exact_precision(
    contenders: Sequence[Contender],
    problem: str,
    schedule: str | NoiseSchedule,
    steps: Sequence[int],
    *,
    measure: Measure = "path",
    to_clean: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagram:
    """Errors on exact data, in float64.

    n steps are those from the noisiest level to the cleanest but one of the spacing's n + 1 steps. The last of these,
    to no noise at all, is the same for every scheduler (the prediction itself), its error does not fall with n where a
    spacing ends at a fixed level, and it hides the scheduler's; ``to_clean`` walks it, then of the spacing's n steps.

    Args:
        contenders: What to compare.
        problem: One of `PROBLEMS`.
        schedule: A registered noise schedule, parameters may follow, or a schedule.
        steps: How many; each at least 1.
        measure: ``"path"`` or ``"moments"``.
        to_clean: Whether to walk the step to clean.
        seed: Of the start noise, for ``"path"``.
        progress: Is told how far it is.

    Raises:
        InvalidRequest: the problem has no such name, or the measure does not apply to it or to a scheduler.
        GridError, ParameterError: a spacing cannot make that many steps.
        NonFiniteError: a run ends in NaN or infinity.
    """
    data = _problem(problem, measure)
    levels: NoiseSchedule = registry().make("schedule", schedule) if isinstance(schedule, str) else schedule
    counts = _counts(contenders, steps)
    if measure == "path":
        for contender in contenders:
            _follows_the_flow(contender)
    grids = [[_grid(one, levels, n, to_clean) for n in counts] for one in contenders]
    told = _Told(sum(one._price(n) for one in contenders for n in counts), progress)
    curves = []
    for contender, row in zip(contenders, grids, strict=True):
        points = []
        for n, grid in zip(counts, row, strict=True):
            with _Named(contender, n):
                error, calls = (_path if measure == "path" else _moments)(contender, data, grid, seed)
            points.append(_point(contender, n, calls, error))
            told.add(contender._price(n))
        curves.append(_curve(contender, points, ROUNDING))
    named = schedule if isinstance(schedule, str) else type(schedule).__name__
    words = {
        "path": "relative RMS error against the exact probability flow",
        "moments": "relative error of the final mean or covariance, exact",
    }
    where = "" if to_clean else " (without the step to clean)"
    return Diagram(
        f"{problem} data, {named} schedule{where}", words[measure], ROUNDING, "rounding of float64", tuple(curves)
    )


def model_precision(
    contenders: Sequence[Contender],
    model: Model[Any],
    prompts: Sequence[str],
    steps: Sequence[int],
    *,
    seed: int = 0,
    guidance: float | None = None,
    reference: Contender | None = None,
    reference_steps: int = 1000,
    progress: Progress | None = None,
) -> Diagram:
    """Errors of a model's final latents against its own solution in ``reference_steps`` steps, from the same noise.

    How well that solution is known is measured by the distance to the one in half as many steps: this is the floor.

    Args:
        contenders: What to compare; those that add noise have no such solution and are refused.
        model: From `sdkit.load`.
        prompts: One or more, an image each; the error is over all of them together.
        steps: How many; each at least 1 and below ``reference_steps``.
        seed: Of the first prompt's noise; the others' are counted up.
        guidance: As in a `Request`; by default the model's.
        reference: What makes the solution; by default ``dpmpp-2m`` on the model's own spacing.
        reference_steps: In how many steps; at least 2.
        progress: Is told how far it is.

    Raises:
        InvalidRequest: a value is out of range, or a scheduler adds noise.
        NonFiniteError: NaN or infinity came out of a part.
    """
    counts = _counts(contenders, steps)
    if not prompts:
        raise InvalidRequest("There is no prompt to compare schedulers on; give at least one.")
    if check_steps(reference_steps) < 2 or reference_steps <= counts[-1]:
        raise InvalidRequest(
            f"The solution needs more steps than the runs it judges, and at least 2: {reference_steps} against "
            f"{counts[-1]}; give fewer steps or a larger reference."
        )
    judge = reference or Contender.of("dpmpp-2m", model.spec.spacing)
    for contender in (judge, *contenders):
        _follows_the_flow(contender)
    requests = [Request(prompt, seeds=(seed + k,), guidance=guidance) for k, prompt in enumerate(prompts)]
    runs = [(judge, reference_steps), (judge, reference_steps // 2), *((c, n) for c in contenders for n in counts)]
    for contender, n in runs:
        _plan(contender, model, requests[0], n)  # refuses what cannot be run before minutes are spent
    told = _Told(sum(one._price(n) for one, n in runs) * len(requests), progress)
    solution, _ = _latents(judge, model, requests, reference_steps, told)
    half, _ = _latents(judge, model, requests, reference_steps // 2, told)
    floor = max(_relative(half, solution), 1e-7)  # latents are float32
    curves = []
    for contender in contenders:
        points = []
        for n in counts:
            latents, calls = _latents(contender, model, requests, n, told)
            points.append(_point(contender, n, calls, _relative(latents, solution)))
        curves.append(_curve(contender, points, floor))
    shown = model.spec.guidance if guidance is None else guidance
    images = "1 image" if len(requests) == 1 else f"{len(requests)} images"
    weights = f" (weights {model.spec.sha256[:8]})" if model.spec.sha256 else ""
    return Diagram(
        f"model {model.spec.name}{weights}, {images}" + ("" if shown is None else f", guidance {shown:g}"),
        f"relative RMS error of the latents against {reference_steps} steps of {judge.name}",
        floor,
        f"that solution against the one in {reference_steps // 2} steps",
        tuple(curves),
    )


def _canonical(kind: str, text: str, made: object) -> str:
    """The component's own name where ``text`` is an alias of it; with parameters, the text that makes it again."""
    try:
        return registry().find(kind, text).component.name
    except UnknownComponent:
        return registry().spell(kind, made) or text


def _problem(name: str, measure: Measure) -> Problem:
    if name not in PROBLEMS:
        raise InvalidRequest(f"There are no exact data {name!r}; known: {', '.join(PROBLEMS)}.")
    if measure not in ("path", "moments"):
        raise InvalidRequest(f"The measure is 'path' or 'moments', not {measure!r}.")
    problem = PROBLEMS[name]
    if measure == "moments" and not isinstance(problem, Gaussian):
        known = ", ".join(name for name, problem in PROBLEMS.items() if isinstance(problem, Gaussian))
        raise InvalidRequest(f"Moments are exact on normal data alone, and {name!r} are none; take one of {known}.")
    return problem


def _counts(contenders: Sequence[Contender], steps: Sequence[int]) -> list[int]:
    if not contenders:
        raise InvalidRequest("There is no scheduler to compare; name at least one.")
    if not steps:
        raise InvalidRequest("There is no number of steps to compare schedulers at; give at least one, better four.")
    return sorted({check_steps(n) for n in steps})


def _follows_the_flow(contender: Contender) -> None:
    if contender.scheduler.traits.stochastic:
        raise InvalidRequest(
            f"{contender.scheduler_name} adds noise, so it does not follow the probability flow and has no error "
            "against it; leave it out, or compare the moments."
        )


class _Named:
    """Errors from inside say which run they came from."""

    def __init__(self, contender: Contender, steps: int) -> None:
        self.note = f"in {contender.name}, {steps} steps"

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.note)


class _Told:
    """Adds up what is done, and tells it."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0

    def add(self, evaluations: int) -> None:
        self.done += evaluations
        if self.progress is not None:
            self.progress(self.done, self.total)


def _grid(contender: Contender, schedule: NoiseSchedule, steps: int, to_clean: bool) -> Grid:
    with _Named(contender, steps):
        if to_clean:
            return contender.spacing(schedule, steps)
        grid = contender.spacing(schedule, steps + 1)
        return grid[:-1] if grid[-1].sigma == 0 else grid


class _Counted:
    """A denoiser that counts its calls."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0

    def __call__(self, x: Tensor, level: Level, /) -> Tensor:
        self.calls += 1
        return self.problem(x, level)


def _walk(contender: Contender, problem: Problem, x: Tensor, grid: Grid, noise: Noise) -> tuple[Tensor, int]:
    denoise = _Counted(problem)
    for step in solve(contender.scheduler, denoise, x, grid, noise):
        x = step.x
    return x, denoise.calls


def _path(contender: Contender, problem: Problem, grid: Grid, seed: int) -> tuple[float, int]:
    like = torch.empty((1, CHANNELS, PLACES), dtype=torch.float64)
    x = problem.start(grid[0], AddressedNoise((seed,)).initial(like))
    end, calls = _walk(contender, problem, x, grid, NoNoise())
    return _relative(end, problem.flow(x, grid[0], grid[-1])), calls


class _Basis:
    """Noise whose row ``first + j C + c`` is 1 in channel c at the j-th interval asked for, and 0 elsewhere."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.asked: dict[tuple[float, float], int] = {}

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        j = self.asked.setdefault((start.log_snr, stop.log_snr), len(self.asked))
        noise, channels = like * 0, like.shape[1]
        for c in range(channels):
            row = self.first + j * channels + c
            if row < like.shape[0]:
                noise[row, c] = 1
        return noise


def _moments(contender: Contender, problem: Problem, grid: Grid, seed: int) -> tuple[float, int]:
    """Row 0 of the run has no noise, each other row one normal number of 1: what they end with is the affine map."""
    assert isinstance(problem, Gaussian)
    first, counted = 1 + CHANNELS, _Basis(1 + CHANNELS)
    normal = torch.zeros(first, CHANNELS, 1, dtype=torch.float64)
    normal[1:, :, 0] = torch.eye(CHANNELS, dtype=torch.float64)
    alone, calls = _walk(contender, problem, problem.start(grid[0], normal), grid, counted)
    rows = torch.zeros(first + len(counted.asked) * CHANNELS, CHANNELS, 1, dtype=torch.float64)
    rows[:first] = normal
    end, _ = _walk(contender, problem, problem.start(grid[0], rows), grid, _Basis(first))
    doubled, _ = _walk(contender, problem, problem.start(grid[0], 2 * normal), grid, _Basis(first + 2 * rows.shape[0]))
    # not relative to how far the rows end apart: some methods forget what they started from
    bent = (doubled - doubled[:1] - 2 * (alone - alone[:1])).abs().max(), (end[:first] - alone).abs().max()
    if not max(bent) < 1e-8:
        raise InvalidRequest(
            f"{contender.scheduler_name} is not an affine map on normal data (it looks at the latents to choose its "
            "steps, or cuts them), so its moments cannot be read off; leave it out."
        )
    level, moved = grid[-1], (end - end[:1])[1:, :, 0]
    mean, covariance = problem.mean * level.alpha, problem.covariance * level.alpha**2
    covariance = covariance + torch.eye(CHANNELS, dtype=torch.float64) * level.sigma**2
    off = float((end[0, :, 0] - mean).norm() / covariance.trace().sqrt())
    return max(off, float((moved.T @ moved - covariance).norm() / covariance.norm())), calls


def _plan(contender: Contender, model: Model[Any], request: Request, steps: int) -> tuple[Any, Request]:
    pipe = pipeline(model, scheduler=contender.scheduler, spacing=contender.spacing)
    asked = attrs.evolve(request, steps=steps)
    with _Named(contender, steps):
        pipe.plan(asked)
    return pipe, asked


def _latents(
    contender: Contender, model: Model[Any], requests: Sequence[Request], steps: int, told: _Told
) -> tuple[Tensor, int]:
    """(images, channels, height, width) and the evaluations of one image."""
    found, calls = [], 0
    for request in requests:
        pipe, asked = _plan(contender, model, request, steps)
        with _Named(contender, steps):
            for event in pipe.stream(asked):
                if isinstance(event, ResultEvent):
                    found.append(event.result.latents)
                    calls = max(calls, event.result.manifest.evaluations)
                else:
                    told.add(contender._price(1))
    return torch.cat(found), calls


def _relative(x: Tensor, solution: Tensor) -> float:
    return float((x - solution).double().square().mean().sqrt() / solution.double().square().mean().sqrt())


def _point(contender: Contender, steps: int, calls: int, error: float) -> Point:
    if not math.isfinite(error):
        raise NonFiniteError(f"{contender.name} ends in NaN or infinity in {steps} steps; leave it or the number out.")
    return Point(steps, calls, error)


def _curve(contender: Contender, points: Sequence[Point], floor: float) -> Curve:
    return Curve(
        contender.scheduler_name,
        contender.spacing_name,
        contender.scheduler.traits.order,
        tuple(points),
        _slope(points, floor),
    )


def _slope(points: Sequence[Point], floor: float) -> float | None:
    """Errors near the floor are made of both; a factor of 3 keeps its share below a third."""
    above = [point for point in points if point.error > 3 * floor]
    finer = above[-max(2, math.ceil(len(above) / 2)) :]
    if len(finer) < 2 or not all(a.evaluations < b.evaluations for a, b in pairwise(finer)):
        return None
    work, wrong = np.log([[point.evaluations, point.error] for point in finer]).T
    return float(-np.polyfit(work, wrong, 1)[0])
