"""Samplers written as k-diffusion writes them, as schedulers.

Such a sampler is a function ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None, ...)`` that owns
the whole loop. It works in ``x / alpha`` and ``s = sigma / alpha``, calls ``model(x, s)`` for the prediction of the
clean latents, and once per step, after the first such call, ``callback({"x": ..., "i": ..., "denoised": ...})``.

sdkit asks for one step at a time, as a pure function of a state that can be pickled. So each step is a *replay*: the
function is run from its beginning, on the whole grid; the model's answers and the noise of earlier steps come from the
record in the state, and only what is new is computed. The run is left as soon as the next step begins. So the denoiser
is called as often as by the function run straight, on the same numbers, and the last step returns what the function
returns, to the bit. What replay costs is the function's own arithmetic, n (n + 1) / 2 steps of it instead of n, and
the memory of one latent per answer and per noise.

Whether a call of the model belongs to this step or begins the next is only known when the callback comes. A call in
doubt is first answered with its own input as a probe; if the next thing the function does is not the callback, the
call belonged to this step, and the function is run again with a real answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from attrs import Factory, evolve, field, frozen
from torch import Tensor

from sdkit.errors import ContractError, LevelError, ParameterError
from sdkit.interop.draws import AnsweredDraws, Path, level_of
from sdkit.levels import Grid, Level, check_grid
from sdkit.protocols import Denoise, Noise, Step, Traits

__all__ = ["KDiffusion", "Record", "from_kdiffusion"]


@frozen(eq=False)
class Record:
    """How far a run has come, and what it needs to be replayed.

    Attributes:
        grid: The levels of the whole run.
        first: Latents the run began with, in the grid's scale.
        latest: Latents after the last step made.
        steps: Number of steps made.
        answers: The model's answers so far, in order.
        normals: The noise given so far, in order.
    """

    grid: Grid
    first: Tensor
    latest: Tensor
    steps: int = 0
    answers: tuple[Tensor, ...] = ()
    normals: tuple[Tensor, ...] = ()


class _Next(BaseException):
    """The function has begun the next step. Not an Exception, so that no ``except`` of the function takes it."""


class _Doubt(BaseException):
    """The call that was answered by a probe belongs to this step after all."""


def _ratios(grid: Grid, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor([level.noise_to_signal for level in grid], dtype=dtype, device=like.device)


class _Run:
    """One replay: the function run from its beginning up to the end of one step."""

    def __init__(self, scheduler: KDiffusion, record: Record, denoise: Denoise, noise: Noise, certain: int) -> None:
        self.scheduler, self.record = scheduler, record
        self.denoise, self.noise = denoise, noise
        self.answers, self.normals = list(record.answers), list(record.normals)
        self.certain = certain  # calls below this number are known to belong to this step or an earlier one
        self.calls = self.draws = self.callbacks = self.sub = 0
        self.probed = False
        self.x = self.denoised = record.first
        self.ratios = _ratios(record.grid, record.first)
        self.digits = 32 * torch.finfo(self.ratios.dtype).eps
        self.scope = AnsweredDraws(record.first.shape, self.bare_draw)
        self.path = Path(self.normal_between)

    def level(self, sigma: float) -> Level:
        return level_of(self.record.grid, sigma, self.digits)

    def last(self) -> bool:
        return self.record.steps == len(self.record.grid) - 2

    # What the function sees.

    def model(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        if self.probed:
            raise _Doubt
        number, self.calls = self.calls, self.calls + 1
        if number < len(self.answers):
            return self.answers[number].clone()
        if number >= self.certain and self.callbacks == self.record.steps + 1 and not self.last():
            self.probed = True
            return x.clone()
        level = self.level(float(sigma.flatten()[0]))
        with self.scope.left():  # the network's own draws are none of our business
            answer = self.denoise(x if level.alpha == 1 else x * level.alpha, level)
        self.answers.append(answer)
        return answer.clone()

    def callback(self, seen: Mapping[str, Any]) -> None:
        self.callbacks += 1
        self.sub = 0
        if self.callbacks == self.record.steps + 1:
            self.denoised = seen["denoised"].clone()
        if self.callbacks == self.record.steps + 2:
            self.x = seen["x"].clone()
            raise _Next

    def noise_sampler(self, sigma: Any, sigma_next: Any) -> Tensor:
        # the path is walked in the grid's own numbers: sigmas that differ by rounding are the same place
        start, stop = (self.level(float(value)).noise_to_signal for value in (sigma, sigma_next))
        return self.path(start, stop)

    def normal_between(self, sigma: float, sigma_next: float) -> Tensor:
        return self.draw(self.level(sigma), self.level(sigma_next))

    def bare_draw(self) -> Tensor:
        """A draw that names no interval: the n-th since the last callback."""
        grid, step = self.record.grid, self.callbacks - 1
        self.sub += 1
        start, stop = (grid[step], grid[step + 1]) if step >= 0 else (grid[0], grid[0])
        if self.sub > 1:
            start = Level(start.t + self.sub, start.alpha, start.sigma * (1 + self.sub))
        return self.draw(start, stop).clone()

    def draw(self, start: Level, stop: Level) -> Tensor:
        if not self.scheduler.traits.stochastic:
            # Several functions draw noise that they then do not use. If it is used, it shows.
            self.draws += 1
            return torch.full_like(self.record.first, torch.nan)
        number, self.draws = self.draws, self.draws + 1
        if number == len(self.normals):
            self.normals.append(self.noise(self.record.first, start, stop))
        return self.normals[number]

    # What we do with it.

    def go(self) -> Record:
        """The record after the step.

        Raises:
            _Doubt: a probe was given where an answer was needed.
        """
        grid, steps = self.record.grid, self.record.steps
        begun = self.record.first if grid[0].alpha == 1 else self.record.first / grid[0].alpha
        try:
            with self.scope:
                ended = self.scheduler.call(self.model, begun.clone(), self.ratios, self.callback, self.noise_sampler)
        except _Next:
            x = self.x
        else:
            if self.probed:
                raise _Doubt
            if self.callbacks != len(grid) - 1:
                self.refuse(f"returned after {self.callbacks} of {len(grid) - 1} steps")
            x = ended
        if self.draws and not self.scheduler.traits.stochastic and bool(torch.isnan(x).any()):
            raise ContractError(
                f"{self.scheduler.name} uses random noise but was declared deterministic; say "
                "from_kdiffusion(..., stochastic=True)."
            )
        alpha = grid[steps + 1].alpha
        return Record(
            grid,
            self.record.first,
            x if alpha == 1 else x * alpha,
            steps + 1,
            tuple(self.answers),
            tuple(self.normals),
        )

    def refuse(self, what: str) -> NoReturn:
        raise ContractError(
            f"{self.scheduler.name} {what}; a sampler has to call callback once in each step, after its first call of "
            "the model."
        )


@frozen
class KDiffusion:
    """A sampler function in k-diffusion's convention as a scheduler; made by `from_kdiffusion`.

    Attributes:
        function: The sampler.
        options: Keyword arguments it is called with besides.
        traits: What it promises.
    """

    function: Callable[..., Any]
    traits: Traits
    options: Mapping[str, Any] = field(default=Factory(dict), converter=dict, hash=False)

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return _name(self.function)

    def call(self, model: Any, x: Tensor, sigmas: Tensor, callback: Any, noise_sampler: Any) -> Tensor:
        """The function itself, on the whole grid."""
        options = dict(self.options)
        if _takes(self.function, "noise_sampler"):
            options.setdefault("noise_sampler", noise_sampler)
        if _takes(self.function, "disable"):
            options.setdefault("disable", True)
        ended: Tensor = self.function(model, x, sigmas, callback=callback, **options)
        return ended

    def init(self, x: Tensor, grid: Grid, /) -> Record:
        """An empty record.

        Raises:
            LevelError: the grid starts where alpha is 0.
        """
        grid = check_grid(grid)
        if grid[0].alpha == 0:
            raise LevelError(
                f"{self.name} works in sigma / alpha, which is infinite at {grid[0]}; start the grid at a level with "
                "some signal, or use one of sdkit's own schedulers."
            )
        return Record(grid, x, x)

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: Record, noise: Noise, /) -> Step[Any]:
        """The function replayed up to the end of this step.

        Between steps ``x`` is what the function shows its callback. For functions that add noise at the beginning of
        a step (``s_churn``) that is the latent with the noise of the next step already in it.

        Raises:
            ContractError: ``x`` or the levels are not those of the run, or the function breaks its convention.
        """
        if state.steps >= len(state.grid) - 1 or (start, stop) != state.grid[state.steps : state.steps + 2]:
            raise ContractError(
                f"Step {state.steps + 1} of this run of {self.name} is not from {start} to {stop}; a sampler function "
                "walks the grid it was started on, in order."
            )
        if x is not state.latest and not torch.equal(x, state.latest):
            raise ContractError(
                f"The latents were changed between two steps of {self.name}, which owns its whole loop and would not "
                "see it; change the prediction instead, by wrapping the denoiser."
            )
        certain = len(state.answers) + 1
        while True:
            run = _Run(self, state, denoise, noise, certain)
            try:
                after = run.go()
            except _Doubt:
                state = evolve(state, answers=tuple(run.answers), normals=tuple(run.normals))
                certain = len(state.answers) + 1
                continue
            return Step(after.latest, run.denoised, after)


def _name(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def from_kdiffusion(
    function: Callable[..., Any],
    *,
    options: Mapping[str, Any] | None = None,
    order: int = 1,
    startup_order: int | None = None,
    stochastic: bool | None = None,
    exact_on_point_mass: bool = False,
) -> KDiffusion:
    """A sampler function in k-diffusion's convention as a scheduler.

    It is replayed step by step and gives the bits it gives when run straight. Noise is sdkit's addressed noise: it is
    passed as ``noise_sampler`` where the function takes one (overlapping intervals belong to one Brownian path, as in
    k-diffusion), and ``torch.randn`` and ``torch.randn_like`` inside the function are answered with it, as ``s_churn``
    needs. Neither the global generator nor anything else global is touched.

    Args:
        function: ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None, ...)``, such as
            ``k_diffusion.sampling.sample_dpmpp_2m``.
        options: More keyword arguments for it, such as ``{"eta": 0.5}``.
        order: Order of convergence you promise for it; nothing can be told from the code.
        startup_order: Order of its first steps, where that is lower.
        stochastic: Whether it uses noise; by default, whether it takes a ``noise_sampler`` or is given ``s_churn``
            above 0. Say ``False`` for ``eta=0``.
        exact_on_point_mass: Whether you promise that data of one point come out exactly.

    Returns:
        The scheduler. Its number of evaluations per step is measured in a run of four steps on one number.

    Raises:
        ParameterError: it is no such function, or one with its own step control.
    """
    if not callable(function):
        raise ParameterError(f"A sampler is a function sample(model, x, sigmas, ...), not {function!r}.")
    missing = [name for name in ("sigmas", "callback") if not _takes(function, name)]
    if missing or "sigma_min" in inspect.signature(function).parameters:
        raise ParameterError(
            f"{_name(function)}{inspect.signature(function)} does not walk a grid with a callback; a sampler takes "
            "(model, x, sigmas, extra_args, callback, disable). One that makes steps of its own cannot be used."
        )
    given = dict(options or {})
    if stochastic is None:
        declared = "noise_sampler" in inspect.signature(function).parameters
        stochastic = declared or float(given.get("s_churn", 0.0)) > 0
    made = KDiffusion(function, Traits(order, startup_order, stochastic, exact_on_point_mass, 1), given)
    return evolve(made, traits=evolve(made.traits, evaluations=_evaluations(made)))


def _evaluations(scheduler: KDiffusion) -> int:
    """Most calls of the model in a step, from a run on one number, which checks the convention by the way."""
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    calls, seen = 0, []

    def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return x * 0

    def callback(state: Mapping[str, Any]) -> None:
        seen.append(calls)

    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.4, 0.0], dtype=x.dtype)
    with AnsweredDraws(x.shape, x.clone):
        scheduler.call(model, x.clone(), sigmas, callback, lambda a, b: x.clone())
    if len(seen) != 4 or seen[0] != 1:
        raise ParameterError(
            f"{scheduler.name} called callback {len(seen)} times in 4 steps, first after {seen[0] if seen else calls} "
            "calls of the model; a sampler has to call it once in each step, after its first call of the model."
        )
    # between the callbacks of two steps lie the rest of one step's calls and the first of the next
    return max(b - a for a, b in zip(seen, [*seen[1:], calls + 1], strict=True))
