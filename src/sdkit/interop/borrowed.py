"""Scheduler objects of the library diffusers, as sdkit schedulers.

One of those objects is noise schedule, spacing, parametrization, solver and cursor in one. Only the solver is borrowed:

- **Levels.** A fresh object of the class is made for each run, with a training table that consists of the grid's own
  levels. Whatever its ``set_timesteps`` does with that table, it visits exactly those levels. Its table of sigmas is
  then filled with the same numbers in float64. A grid that does not end clean gets a clean level that is never walked
  to, so that what the class does specially on its last step happens only on the way to clean.
- **Predictions.** ``denoise`` gives the clean latents. The class is told ``prediction_type="sample"`` where it knows
  that, else it gets the noise that belongs to them.
- **Purity.** The object lives in the state. Each step works on a deep copy of it, so the state of an earlier step stays
  what it was. How far that goes depends on the class: whatever it keeps outside of itself is out of reach.
- **Noise.** Draws inside ``step`` are answered with the addressed noise of the interval (see `sdkit.interop.draws`); on
  a step to clean with zeros, since an interval that ends clean has none.

Three scales occur, each a division by a function of the level: ``noise`` (``x / alpha``, as k-diffusion), ``unit``
(``alpha^2 + sigma^2 = 1``) and ``flow`` (``alpha + sigma = 1``).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import Factory, evolve, field, frozen
from torch import Tensor

from sdkit.errors import ContractError, GridError, LevelError, ParameterError
from sdkit.interop.draws import AnsweredDraws, Path, level_of
from sdkit.levels import Grid, Level, check_grid
from sdkit.protocols import Denoise, Noise, Step, Traits

__all__ = ["KINDS", "Borrowed", "Loan", "from_diffusers", "grid_of"]


@frozen
class Kind:
    """What has to be known of a class to drive it.

    Attributes:
        scale: Of its latents: ``"noise"``, ``"unit"`` or ``"flow"``.
        predicts: What it is told the network predicts: ``"sample"``, ``"epsilon"``, ``"velocity"``, ``"flow"``,
            ``"edm"``.
        order: Its order as its paper says, or ``"solver_order"`` where that is a setting.
        startup_order: Order of its first steps where that is lower.
        stochastic: Whether it draws with its defaults.
        evaluations: Most calls per step.
        tabled: Whether it takes its levels from a training table.
        source: The paper.
        ends_clean: Whether it has a step to clean. One that ends at its last noisy level gets, on the way from there to
            clean, the prediction itself: what every method of these gives as ``sigma`` falls to 0.
    """

    scale: str
    predicts: str
    order: int | str = 1
    startup_order: int | None = None
    stochastic: bool = False
    evaluations: int = 1
    tabled: bool = True
    source: str = ""
    ends_clean: bool = True


_SONG = "Song et al. 2021, https://arxiv.org/abs/2010.02502"
_HO = "Ho et al. 2020, https://arxiv.org/abs/2006.11239"
_KARRAS = "Karras et al. 2022, https://arxiv.org/abs/2206.00364"
_LU = "Lu et al. 2022, https://arxiv.org/abs/2211.01095"
_LIU = "Liu et al. 2022, https://arxiv.org/abs/2202.09778"
_FLOW = "Esser et al. 2024, https://arxiv.org/abs/2403.03206"

KINDS: dict[str, Kind] = {
    "EulerDiscreteScheduler": Kind("noise", "sample", source=_KARRAS),
    "EulerAncestralDiscreteScheduler": Kind("noise", "epsilon", stochastic=True, source=_SONG),
    "HeunDiscreteScheduler": Kind("noise", "sample", 2, evaluations=2, source=_KARRAS),
    "KDPM2DiscreteScheduler": Kind("noise", "epsilon", 2, evaluations=2, source=_KARRAS),
    "KDPM2AncestralDiscreteScheduler": Kind("noise", "epsilon", stochastic=True, evaluations=2, source=_KARRAS),
    "LMSDiscreteScheduler": Kind("noise", "sample", 4, 1, source="Adams and Bashforth 1883, variable steps"),
    "DPMSolverSDEScheduler": Kind("noise", "epsilon", stochastic=True, evaluations=2, source=_LU),
    "DPMSolverMultistepScheduler": Kind("unit", "sample", "solver_order", 1, source=_LU),
    "DPMSolverSinglestepScheduler": Kind("unit", "sample", "solver_order", 1, tabled=False, source=_LU),
    "DEISMultistepScheduler": Kind(
        "unit",
        "sample",
        "solver_order",
        1,
        source="Zhang and Chen 2023, https://arxiv.org/abs/2204.13902",
        ends_clean=False,
    ),
    "UniPCMultistepScheduler": Kind(
        "unit", "sample", "solver_order", 1, source="Zhao et al. 2023, https://arxiv.org/abs/2302.04867"
    ),
    "DDIMScheduler": Kind("unit", "sample", source=_SONG),
    "DDIMParallelScheduler": Kind("unit", "sample", source=_SONG),
    "DDPMScheduler": Kind("unit", "sample", stochastic=True, source=_HO),
    "DDPMParallelScheduler": Kind("unit", "sample", stochastic=True, source=_HO),
    "PNDMScheduler": Kind("unit", "epsilon", 2, evaluations=2, source=_LIU),
    "IPNDMScheduler": Kind("unit", "velocity", 2, 1, tabled=False, source=_LIU),
    "EDMEulerScheduler": Kind("noise", "edm", tabled=False, source=_KARRAS),
    "EDMDPMSolverMultistepScheduler": Kind("noise", "edm", "solver_order", 1, tabled=False, source=_LU),
    "FlowMatchEulerDiscreteScheduler": Kind("flow", "flow", tabled=False, source=_FLOW),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", "flow", 2, evaluations=2, tabled=False, source=_FLOW),
}
"""The classes that can be driven, as of diffusers 0.42."""


def _alpha(level: Level) -> float:
    return level.alpha


def _sigma(level: Level) -> float:
    return level.sigma


_UNITS: dict[str, Callable[[Level], float]] = {
    "noise": _alpha,
    "unit": lambda level: level.norm,
    "flow": lambda level: level.alpha + level.sigma,
}


@frozen(eq=False)
class Loan:
    """A run in progress.

    Attributes:
        grid: Its levels.
        scheduler: The class's own object; never stepped itself, only copies of it.
        steps: Number of steps made.
        calls: Number of network answers it was given.
    """

    grid: Grid
    scheduler: Any
    steps: int = 0
    calls: int = 0


@frozen
class Borrowed:
    """A diffusers scheduler as a sdkit scheduler; made by `from_diffusers`.

    Attributes:
        target: Its class.
        config: Its configuration.
        kind: How it is driven.
        traits: What it promises.
        options: Keyword arguments for its ``step``, such as ``eta``.
    """

    target: type[Any]
    config: Mapping[str, Any] = field(hash=False)
    kind: Kind
    traits: Traits
    options: Mapping[str, Any] = field(default=Factory(dict), converter=dict, hash=False)

    def init(self, x: Tensor, grid: Grid, /) -> Loan:
        """A fresh object of the class, with the grid as its levels.

        Raises:
            LevelError: the grid starts where alpha is 0 and the class works in ``sigma / alpha``.
        """
        grid = check_grid(grid)
        if grid[0].alpha == 0 and not self.knows_alpha_zero:
            raise LevelError(
                f"{self.target.__name__} works in sigma / alpha, which is infinite at {grid[0]}; start the grid at a "
                "level with some signal, or use one of sdkit's own schedulers."
            )
        return Loan(grid, self._fresh(grid))

    @property
    def knows_alpha_zero(self) -> bool:
        """Whether a run may start where alpha is 0."""
        return self.target.__name__.startswith(("DDIM", "DDPM", "FlowMatch"))

    def _fresh(self, grid: Grid) -> Any:
        noisy = [level for level in grid if level.sigma > 0]
        settings = self._settings(noisy)
        settings = {**self.config, **self._settings(noisy)}
        takes = inspect.signature(self.target).parameters
        scheduler = self.target(**{key: value for key, value in settings.items() if key in takes})
        if self.kind.tabled:
            table = [(level.alpha / level.norm) ** 2 for level in reversed(noisy)]
            scheduler.alphas_cumprod = torch.tensor(table, dtype=torch.float64)
        scheduler.set_timesteps(len(noisy))
        if self.target.__name__ == "IPNDMScheduler":
            sigmas, alphas = ([part(level) / level.norm for level in noisy] for part in (_sigma, _alpha))
            scheduler.betas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
            scheduler.alphas = torch.tensor([*alphas, 1.0], dtype=torch.float64)
        elif hasattr(scheduler, "sigmas"):
            self._fill(scheduler, noisy)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        return scheduler

    def _settings(self, noisy: list[Level]) -> dict[str, Any]:
        """The configuration in which the class makes no levels of its own."""
        settings = {
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "use_lu_lambdas": False,
            "use_dynamic_shifting": False,
            "rescale_betas_zero_snr": False,
            "final_sigmas_type": "zero",
            "set_alpha_to_one": True,
            "lambda_min_clipped": -math.inf,
        }
        if self.kind.tabled:
            settings |= {"timestep_spacing": "trailing", "steps_offset": 0, "num_train_timesteps": len(noisy)}
            settings |= {"trained_betas": [0.5] * len(noisy)}  # replaced, in float64, by what they stand for
        if self.target.__name__ == "DPMSolverSinglestepScheduler":
            settings["lower_order_final"] = True  # where a run ends clean it sets that itself, and says so each time
        if self.kind.predicts in ("sample", "epsilon"):
            settings["prediction_type"] = self.kind.predicts
        return {key: value for key, value in settings.items() if key in self.config}

    def _fill(self, scheduler: Any, noisy: list[Level]) -> None:
        """Write our levels into its table of sigmas, in which multi-stage classes hold inner levels twice."""
        unit = _UNITS["flow" if self.kind.scale == "flow" else "noise"]
        mine = torch.tensor([*(level.sigma / unit(level) for level in noisy), 0.0], dtype=torch.float64)
        single, double = len(mine), 2 * len(mine) - 2
        if len(scheduler.sigmas) == single:
            scheduler.sigmas = mine
        elif len(scheduler.sigmas) == double:
            scheduler.sigmas = torch.cat([mine[:1], mine[1:-1].repeat_interleave(2), mine[-1:]])
        else:  # both KDPM2 classes keep the end twice as well, and a second table that goes with the first
            scheduler.sigmas = torch.cat([mine[:1], mine[1:].repeat_interleave(2), mine[-1:]])

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: Loan, noise: Noise, /) -> Step[Loan]:
        """One of our steps: one or two of the class's, on a copy of its object.

        Raises:
            ContractError: the levels are not those of the run.
        """
        if state.steps >= len(state.grid) - 1 or (start, stop) != state.grid[state.steps : state.steps + 2]:
            raise ContractError(
                f"Step {state.steps + 1} of this run of {self.target.__name__} is not from {start} to {stop}; its "
                "object walks the grid it was given at the start, in order."
            )
        if stop.sigma == 0 and not self.kind.ends_clean:
            denoised = denoise(x, start)
            return Step(denoised * stop.alpha, denoised, evolve(state, steps=state.steps + 1))
        scheduler, calls = _copy(state.scheduler), state.calls
        own = x / _UNITS[self.kind.scale](start)
        first: Tensor | None = None
        draws = _Draws(x, start, stop, noise, self.traits.stochastic)
        while True:
            level = start if first is None else _second(scheduler, start, stop)
            unit = _UNITS[self.kind.scale](level)
            denoised = denoise(own if unit == 1 else own * unit, level)
            first = denoised if first is None else first
            answer = self._answer(denoised, own, level)
            own = self._advance(scheduler, answer, scheduler.timesteps[calls], own, draws)
            calls += 1
            if calls == len(scheduler.timesteps) or not _waiting(scheduler):
                break
        unit = _UNITS[self.kind.scale](stop)
        after = own.to(x.dtype) if unit == 1 else own.to(x.dtype) * unit
        if draws.poisoned and bool(torch.isnan(after).any()):
            raise ContractError(
                f"{self.target.__name__} uses random noise but was declared deterministic; say "
                "from_diffusers(..., stochastic=True)."
            )
        return Step(after, first, Loan(state.grid, scheduler, state.steps + 1, calls))

    def _advance(self, scheduler: Any, answer: Tensor, t: Any, own: Tensor, draws: _Draws) -> Tensor:
        takes = inspect.signature(scheduler.step).parameters
        options = dict(self.options)
        if "generator" in takes:
            options["generator"] = torch.Generator()  # never drawn from: the scope answers
        brownian = hasattr(scheduler, "noise_sampler")
        if brownian:
            scheduler.noise_sampler = draws.between
        with AnsweredDraws(own.shape, draws.bare):
            after: Tensor = scheduler.step(answer, t, own, return_dict=False, **options)[0]
        if brownian:
            scheduler.noise_sampler = None
        return after

    def _answer(self, denoised: Tensor, own: Tensor, level: Level) -> Tensor:
        """What a network would have said for the clean latents to be ``denoised``."""
        unit = _UNITS[self.kind.scale](level)
        alpha, sigma = level.alpha / unit, level.sigma / unit
        if self.kind.predicts == "sample":
            return denoised
        if self.kind.predicts == "edm":
            data = float(self.config["sigma_data"])
            root = math.hypot(sigma, data)
            return (denoised - own * (data / root) ** 2) * (root / (sigma * data))
        epsilon = (own - denoised * alpha) / sigma
        if self.kind.predicts == "epsilon":
            return epsilon
        if self.kind.predicts == "velocity":
            return epsilon * alpha - denoised * sigma
        return epsilon - denoised


class _Draws:
    """The noise of one step."""

    def __init__(self, like: Tensor, start: Level, stop: Level, noise: Noise, stochastic: bool) -> None:
        self.like, self.start, self.stop, self.noise = like, start, stop, noise
        self.stochastic = stochastic
        self.poisoned = False
        self.count = 0
        self.path = Path(lambda a, b: self.draw(self.level(a), self.level(b)))

    def level(self, ratio: float) -> Level:
        return level_of((self.start, self.stop), ratio, 1e-6)

    def draw(self, start: Level, stop: Level) -> Tensor:
        if not self.stochastic:
            self.poisoned = True
            return torch.full_like(self.like, torch.nan)
        return torch.zeros_like(self.like) if stop.sigma == 0 else self.noise(self.like, start, stop)

    def bare(self) -> Tensor:
        self.count += 1
        if self.count > 1:
            raise ContractError("It drew noise more than once in a step; sdkit has one for each interval.")
        return self.draw(self.start, self.stop)

    def between(self, sigma: Any, sigma_next: Any) -> Tensor:
        return self.path(*(self.level(float(value)).noise_to_signal for value in (sigma, sigma_next)))


_CONSTANT = ("_internal_dict", "betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t", "sigmas")


def _copy(scheduler: Any) -> Any:
    """A deep copy that shares the tables that no class changes during a run."""
    tables = [getattr(scheduler, name) for name in _CONSTANT if hasattr(scheduler, name)]
    return copy.deepcopy(scheduler, {id(table): table for table in tables})


def _waiting(scheduler: Any) -> bool:
    """Whether the class is in the middle of one of its steps."""
    if type(scheduler).__name__ == "PNDMScheduler":
        return bool(scheduler.counter == 1)
    return not getattr(scheduler, "state_in_first_order", True)


def _second(scheduler: Any, start: Level, stop: Level) -> Level:
    """The level at which the class wants its second evaluation."""
    middle = getattr(scheduler, "mid_point_sigma", None)
    table = getattr(scheduler, "sigmas_interpol", None)
    if table is not None:
        middle = table[scheduler.step_index - (1 if hasattr(scheduler, "sigmas_down") else 0)]
    if middle is None:
        return stop
    if not float(middle) > 0:
        raise ContractError(
            f"{type(scheduler).__name__} wants its second evaluation between {start} and {stop} at sigma "
            f"{float(middle)}, which is no level; its tables are float32, and steps as long as this one are too much."
        )
    return level_of((start, stop), float(middle), 1e-9)


def _kind(scheduler: Any) -> Kind:
    config = getattr(scheduler, "config", None)
    for base in type(scheduler).__mro__:
        if base.__name__ in KINDS and config is not None:
            return KINDS[base.__name__]
    raise ParameterError(
        f"{type(scheduler).__name__} is no scheduler that sdkit can drive; known: {', '.join(sorted(KINDS))}."
    )


def from_diffusers(
    scheduler: Any,
    *,
    options: Mapping[str, Any] | None = None,
    stochastic: bool | None = None,
    traits: Traits | None = None,
) -> Borrowed:
    """A diffusers scheduler object as a sdkit scheduler.

    Its class and configuration are used, nothing else: not its timesteps, nor anything set on the object later, and
    the object is not changed. It walks any grid sdkit gives it; the grid it would make itself is `grid_of`.

    Args:
        scheduler: One of the classes in ``sdkit.interop.KINDS``.
        options: Keyword arguments for its ``step``, such as ``{"eta": 1.0}`` for DDIM.
        stochastic: Whether it draws noise; by default known from its class, ``eta`` and ``algorithm_type``.
        traits: What it promises, if not what its paper says.

    Raises:
        ParameterError: the class or one of its settings cannot be driven.
    """
    kind, given = _kind(scheduler), dict(options or {})
    # its private entries say, among other things, which values from_config is to forget
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    name = type(scheduler).__name__
    if config.get("skip_prk_steps") is False:
        raise ParameterError(
            f"{name} with skip_prk_steps=False begins with Runge-Kutta steps between its own timesteps, which no other "
            "grid has; set skip_prk_steps=True."
        )
    if config.get("use_flow_sigmas"):
        raise ParameterError(f"{name} with use_flow_sigmas=True cannot be driven; set it to False.")
    takes = inspect.signature(scheduler.step).parameters
    unknown = [key for key in given if key not in takes]
    if unknown:
        raise ParameterError(f"{name}.step has no parameter {unknown[0]!r}; it has {', '.join(takes)}.")
    if stochastic is None:
        stochastic = kind.stochastic or float(given.get("eta", 0)) > 0 or float(given.get("s_churn", 0)) > 0
        stochastic = stochastic or str(config.get("algorithm_type", "")).startswith("sde")
    order = int(config["solver_order"]) if kind.order == "solver_order" else int(kind.order)
    startup = kind.startup_order if kind.startup_order is not None and kind.startup_order < order else None
    promised = traits or Traits(order, startup, stochastic, True, kind.evaluations)
    return Borrowed(type(scheduler), config, kind, promised, given)


def grid_of(scheduler: Any, steps: int) -> Grid:
    """The grid that a diffusers scheduler makes itself for this number of steps, so that it can be used verbatim.

    Its times are rounded as it rounds them, and where its tables are float32, so are the levels.

    Args:
        scheduler: One of the classes in ``sdkit.interop.KINDS``; not changed.
        steps: Number of steps, as given to its ``set_timesteps``.

    Raises:
        GridError: what it makes is no grid, such as one that visits a level twice.
    """
    kind, own = _kind(scheduler), copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    times = [float(t) for t in own.timesteps]
    if hasattr(own, "plms_timesteps"):
        times = list(dict.fromkeys(times))  # the second of its steps asks the network at the same time again
    elif kind.evaluations == 2:
        times = times[::2]
    try:
        return check_grid(_levels(own, kind, times))
    except GridError as error:
        raise GridError(f"What {type(own).__name__} makes of {steps} steps is no grid: {error}") from None


def _levels(own: Any, kind: Kind, times: list[float]) -> list[Level]:
    if type(own).__name__ == "IPNDMScheduler":
        return [
            Level(t, alpha, sigma)
            for t, alpha, sigma in zip([*times, 0.0], own.alphas.tolist(), own.betas.tolist(), strict=True)
        ]
    if not hasattr(own, "sigmas"):
        squares = own.alphas_cumprod.double()
        levels = [Level(t, math.sqrt(squares[int(t)]), math.sqrt(1 - squares[int(t)])) for t in times]
        last = float(getattr(own, "final_alpha_cumprod", 1.0))
        return [*levels, Level(-1.0, math.sqrt(last), math.sqrt(1 - last))]
    sigmas = own.sigmas.tolist()
    if kind.evaluations == 2:  # inner levels stand there twice
        sigmas = [sigmas[0], *sigmas[1::2]][: len(times) + 1]
    ends = [*times, 0.0 if kind.scale == "flow" or kind.predicts == "edm" else -1.0]
    if kind.scale == "flow":
        return [Level(t, 1 - sigma, sigma) for t, sigma in zip(ends, sigmas, strict=True)]
    if kind.predicts == "edm":
        return [Level(sigma, 1.0, sigma) for sigma in sigmas]
    return [
        Level(t, 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)) for t, sigma in zip(ends, sigmas, strict=True)
    ]
