"""sdkit schedulers for pipelines of the library diffusers.

A pipeline of that library calls the network itself, and hands each answer to ``scheduler.step``. A sdkit scheduler
calls the denoiser. The two meet by replay: `Lent` runs a step of the sdkit scheduler with the answers it has; where one
is missing, it leaves the step with the latents and the level at which it is wanted, and gives these to the pipeline as
the "previous sample". Each answer is kept until its step is complete. What is computed twice is the arithmetic of one
step, never the network.

The object is what the library expects: mutable, with a cursor, one run at a time. The levels of all calls are known
beforehand from a dry run on one number. Latents travel in the scale the network is fed with, so ``scale_model_input``
changes nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from sdkit.errors import ContractError, InvalidRequest, LevelError, ParameterError
from sdkit.levels import Grid, Level, check_grid
from sdkit.loop import solve
from sdkit.noise import AddressedNoise
from sdkit.parametrizations import Epsilon, Flow, Sample, Velocity
from sdkit.plugins import registry
from sdkit.protocols import Noise, NoiseSchedule, Parametrization, Scaling, Scheduler, Spacing
from sdkit.schedules import DiscreteSchedule, RectifiedFlow, cosine, linear, scaled_linear

__all__ = ["Config", "Lent", "StepOutput", "for_diffusers"]


class Config(dict[str, Any]):
    """A configuration as pipelines read it: ``config.key``, ``config["key"]`` and ``config.get("key")``."""

    def __getattr__(self, name: str) -> Any:
        """The entry of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this scheduler's configuration has no {name!r}") from None


@frozen(eq=False)
class StepOutput:
    """What `Lent.step` returns.

    Attributes:
        prev_sample: The latents the network wants to see next, or the final ones.
        pred_original_sample: The clean latents the last answer predicts.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class _Wanted(BaseException):
    """An answer is missing. Not an Exception, so that no ``except`` of the scheduler takes it."""

    def __init__(self, x: Tensor, level: Level) -> None:
        super().__init__()
        self.x, self.level = x, level


@frozen
class _Call:
    """One evaluation of the run: at which level, in which step, and whether it is that step's first."""

    step: int
    level: Level
    first: bool


class Lent:
    """A sdkit scheduler as a diffusers pipeline's ``scheduler``; made by `for_diffusers`.

    It holds one run at a time and is not thread-safe, as the pipeline expects of its schedulers. The sdkit scheduler
    inside may be shared.
    """

    def __init__(
        self,
        scheduler: Scheduler[Any],
        spacing: Spacing | Grid,
        schedule: NoiseSchedule,
        parametrization: Parametrization,
        config: Mapping[str, Any],
    ) -> None:
        if scheduler.traits.adaptive:
            raise ParameterError(
                f"{type(scheduler).__name__} decides during the run how often it calls the network, and a diffusers "
                "pipeline has to know beforehand; choose a scheduler with a fixed number of evaluations."
            )
        self.scheduler, self.spacing = scheduler, spacing
        self.schedule, self.parametrization = schedule, parametrization
        self.config = Config(config)
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)
        self.order = 1
        self.grid: Grid = ()
        self.seeds: tuple[int, ...] = ()
        self._calls: tuple[_Call, ...] = ()
        self._reset(None)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def _reset(self, begin: int | None) -> None:
        self._begin = begin
        self._next: int | None = None  # number of the call whose answer comes next
        self._state: Any = None
        self._x: Tensor | None = None  # latents at the start of the step
        self._asked: Tensor | None = None  # latents the pending answer belongs to
        self._handed: Tensor | None = None  # the same, as the pipeline was given them
        self._answers: list[Tensor] = []
        self._noise: Noise | None = None
        self.seeds = ()

    # What a pipeline sets and reads.

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies standard normal noise with to start from."""
        level = self.grid[0] if self.grid else self.schedule.noisiest
        return level.sigma * self._scaling(level).in_

    @property
    def begin_index(self) -> int | None:
        """Number of the first call, if it was set."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """Number of the call whose answer comes next; None before the first."""
        return self._next

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this call, as image-to-image does.

        Raises:
            InvalidRequest: no step begins there.
        """
        self._reset(self._step_begins(int(begin_index)))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Iterable[float] | None = None,
        sigmas: Iterable[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            num_inference_steps: Number of steps of the spacing.
            device: Where the timesteps go.
            timesteps: Times of the levels instead, noisiest first; the clean level is added.
            sigmas: Their noise instead: ``sigma / alpha``, for flows ``sigma`` before the shift.
            mu: Shift of a flow as its logarithm, as pipelines compute it from the picture's size.

        Raises:
            InvalidRequest: these do not make a run.
        """
        schedule = self.schedule
        if mu is not None:
            if not isinstance(schedule, RectifiedFlow):
                raise InvalidRequest(f"mu={mu} shifts a flow, and this model's noise schedule is none.")
            schedule = RectifiedFlow(_shift_of(self.config, float(mu)))
        self.grid = self._levels(schedule, num_inference_steps, timesteps, sigmas)
        self._calls = _dry_run(self.scheduler, self.grid)
        if self._calls[0].level != self.grid[0]:
            raise InvalidRequest(
                f"{type(self.scheduler).__name__} asks the network first at {self._calls[0].level}, not where the run "
                f"starts ({self.grid[0]}); a diffusers pipeline has made its first call there already."
            )
        self.order = max(sum(call.step == 0 for call in self._calls), 1)
        times = [self._scaling(call.level).time for call in self._calls]
        self.timesteps = torch.tensor(times, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor([self._sigma(level) for level in self.grid], dtype=torch.float32)
        self.num_inference_steps = len(self.grid) - 1
        self._reset(None)

    def _levels(
        self,
        schedule: NoiseSchedule,
        steps: int | None,
        timesteps: Iterable[float] | None,
        sigmas: Iterable[float] | None,
    ) -> Grid:
        if timesteps is not None and sigmas is not None:
            raise InvalidRequest("A run has either timesteps or sigmas of its own, not both.")
        flow = isinstance(schedule, RectifiedFlow)
        if timesteps is not None:
            scale = len(self) if flow else 1
            return check_grid((*(schedule.level(float(t) / scale) for t in timesteps), schedule.clean))
        if sigmas is not None:
            given = [float(sigma) for sigma in sigmas]
            given = given[:-1] if given and given[-1] == 0 else given
            levels = [schedule.level(s if flow else schedule.time(-math.log(s))) for s in given]
            return check_grid((*levels, schedule.clean))
        if isinstance(self.spacing, tuple):
            if steps not in (None, len(self.spacing) - 1):
                raise InvalidRequest(f"The grid it was given has {len(self.spacing) - 1} steps, not {steps}.")
            return self.spacing
        if steps is None:
            raise InvalidRequest("A run needs num_inference_steps, timesteps or sigmas.")
        return self.spacing(schedule, int(steps))

    def _sigma(self, level: Level) -> float:
        return level.sigma if isinstance(self.schedule, RectifiedFlow) else level.noise_to_signal

    def _scaling(self, level: Level) -> Scaling:
        if level.interpolated:
            level = attrs.evolve(level, t=self.schedule.time(level.log_snr), interpolated=False)
        return self.parametrization(level)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The latents unchanged: they are handed out as the network is fed."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents with noise, at the level of each item's timestep: ``alpha x0 + sigma noise``."""
        times = torch.as_tensor(timesteps).flatten().tolist()
        rows = original_samples.shape[0]
        levels = [self._at(t) for t in (times * rows if len(times) == 1 else times)]
        factors = [(level.alpha * self._scaling(level).in_, level.sigma * self._scaling(level).in_) for level in levels]
        keep, add = torch.tensor(factors, dtype=torch.float64).T.reshape(2, -1, *[1] * (original_samples.ndim - 1))
        mixed: Tensor = original_samples * keep.to(original_samples) + noise.to(original_samples) * add.to(
            original_samples
        )
        return mixed

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, under the name and with the order of arguments that pipelines of flows use."""
        return self.add_noise(sample, noise, timestep)

    def _at(self, t: float) -> Level:
        """The level whose network time is ``t``: one of the run's, or the schedule's own."""
        for call in self._calls:
            if math.isclose(self._scaling(call.level).time, t, rel_tol=1e-6, abs_tol=1e-6):
                return call.level
        return self.schedule.level(t / len(self) if isinstance(self.schedule, RectifiedFlow) else t)

    # The run.

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Take one answer of the network.

        Args:
            model_output: The answer.
            timestep: The entry of ``timesteps`` it belongs to.
            sample: The latents it was made from.
            generator: Where the seeds of a stochastic scheduler's noise come from: a ``torch.Generator``, a list of
                one per image, or None for seeds that follow from the state of torch's global generator, which is read
                and not drawn from.
            return_dict: Whether to return a `StepOutput` or a tuple.

        Returns:
            The latents to call the network with next, and the clean latents predicted from this answer.

        Raises:
            InvalidRequest: the run is over, or no step begins at this timestep.
        """
        if self._next is None:
            self._start(timestep, sample, generator)
        assert self._next is not None
        if self._next >= len(self._calls):
            raise InvalidRequest("This run is over; call set_timesteps for another.")
        self._look(sample)
        assert self._asked is not None
        scaling = self._scaling(self._calls[self._next].level)
        denoised = self._asked * scaling.skip + model_output.to(self._asked.dtype) * scaling.out
        self._answers.append(denoised)
        self._next += 1
        after = self._advance().to(sample.dtype)
        predicted = denoised.to(sample.dtype)
        return StepOutput(after, predicted) if return_dict else (after, predicted)

    def _step_begins(self, call: int) -> int:
        if not 0 <= call < len(self._calls) or not self._calls[call].first:
            begins = [str(number) for number, known in enumerate(self._calls) if known.first]
            raise InvalidRequest(
                f"No step of {type(self.scheduler).__name__} begins at call {call}; steps begin at "
                f"{', '.join(begins) or 'none, before set_timesteps'}."
            )
        return call

    def _start(self, timestep: Any, sample: Tensor, generator: Any) -> None:
        if self._begin is None:
            t = float(timestep)
            near = [
                number
                for number, call in enumerate(self._calls)
                if call.first and math.isclose(self._scaling(call.level).time, t, rel_tol=1e-6, abs_tol=1e-6)
            ]
            if not near:
                raise InvalidRequest(f"No step of this run begins at timestep {t:g}; take those of `timesteps`.")
            self._begin = near[0]
        self._next = self._begin
        step = self._calls[self._begin].step
        level = self.grid[step]
        if self._calls[self._begin].level != level:
            raise InvalidRequest(
                f"{type(self.scheduler).__name__} asks the network at {self._calls[self._begin].level} in the step "
                f"from {level}; a run cannot start there."
            )
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        self._x = self._asked = sample.to(dtype) / self._scaling(level).in_
        self._handed = sample
        self._state = self.scheduler.init(self._x, self.grid[step:])
        if self.scheduler.traits.stochastic:
            self.seeds = _seeds(generator, sample.shape[0])
            self._noise = AddressedNoise(self.seeds, "diffusers")

    def _look(self, sample: Tensor) -> None:
        """Take over what the pipeline changed in the latents, as inpainting does between steps."""
        assert self._next is not None
        if self._handed is None or sample is self._handed or torch.equal(sample, self._handed):
            return
        call = self._calls[self._next]
        assert self._asked is not None
        changed = sample.to(self._asked.dtype) / self._scaling(call.level).in_
        if call.first and self._x is self._asked:
            self._x = changed
        self._asked = changed

    def _advance(self) -> Tensor:
        """Run the step as far as its answers reach; the latents, as the network is fed, that come next."""
        assert self._x is not None
        number = self._calls[(self._next or 1) - 1].step
        while True:
            start, stop = self.grid[number], self.grid[number + 1]
            answers = iter(self._answers)

            def denoise(x: Tensor, level: Level, /, answers: Any = answers) -> Tensor:
                for answer in answers:
                    kept: Tensor = answer.clone()
                    return kept
                raise _Wanted(x, level)

            try:
                step = self.scheduler.step(denoise, self._x, start, stop, self._state, self._given)
            except _Wanted as wanted:
                self._check(wanted.level)
                self._asked = wanted.x
                self._handed = wanted.x * self._scaling(wanted.level).in_
                return self._handed
            self._x, self._state, self._answers = step.x, step.state, []
            number += 1
            if number == len(self.grid) - 1:
                self._asked = self._handed = None
                return step.x / stop.alpha

    def _given(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        if self._noise is None:
            raise ContractError(f"{type(self.scheduler).__name__} asked for noise and is not declared stochastic.")
        return self._noise(like, start, stop)

    def _check(self, level: Level) -> None:
        planned = self._calls[self._next or 0] if (self._next or 0) < len(self._calls) else None
        if planned is None or planned.level != level:
            raise ContractError(
                f"{type(self.scheduler).__name__} asked the network at {level}, and the dry run said "
                f"{planned.level if planned else 'no more calls'}; its calls depend on the picture, and it cannot be "
                "used in a diffusers pipeline."
            )


def _dry_run(scheduler: Scheduler[Any], grid: Grid) -> tuple[_Call, ...]:
    """All calls of a run, in order."""
    calls: list[_Call] = []
    done = 0

    def denoise(x: Tensor, level: Level, /) -> Tensor:
        calls.append(_Call(done, level, not calls or calls[-1].step != done))
        return x

    def zero(like: Tensor, start: Level, stop: Level, /) -> Tensor:
        return like * 0

    for _ in solve(scheduler, denoise, torch.zeros(1, 1, 1, 1, dtype=torch.float64), grid, zero):
        done += 1
    silent = set(range(len(grid) - 1)) - {call.step for call in calls}
    if silent:
        raise ParameterError(
            f"{type(scheduler).__name__} makes step {min(silent) + 1} without calling the network, which a diffusers "
            "pipeline does in each."
        )
    return tuple(calls)


def _seeds(generator: Any, batch: int) -> tuple[int, ...]:
    """One seed per image, from the generators of the pipeline."""
    if generator is None:
        # read, not drawn from: this run must not disturb the sequence of anybody's global draws
        state = torch.get_rng_state().numpy().tobytes()
        digests = (hashlib.blake2b(state + bytes([i % 256, i // 256]), digest_size=7).digest() for i in range(batch))
        return tuple(int.from_bytes(digest, "little") for digest in digests)
    each = list(generator) if isinstance(generator, (list, tuple)) else [generator] * batch
    if len(each) != batch:
        raise InvalidRequest(f"There are {len(each)} generators for a batch of {batch}; give one, or one per image.")
    return tuple(int(torch.randint(0, 2**62, (1,), generator=g, device=g.device)) for g in each)


def _shift_of(config: Mapping[str, Any], mu: float) -> float:
    return mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)


_PARAMETRIZATIONS: dict[str, Callable[[], Parametrization]] = {
    "epsilon": Epsilon,
    "v_prediction": Velocity,
    "sample": Sample,
}


def for_diffusers(
    scheduler: str | Scheduler[Any],
    *,
    like: Any,
    spacing: str | Spacing | Grid | None = None,
) -> Lent:
    """A sdkit scheduler in the form that a diffusers pipeline takes.

    ``pipe.scheduler = for_diffusers("dpmpp-2m", spacing="karras", like=pipe.scheduler)``

    What the network predicts, the noise schedule it was trained on and the shift of a flow are taken from the
    scheduler the pipeline came with.

    Args:
        scheduler: A name, as in `sdkit.pipeline` (``"ddim(eta=1)"``, ``"DPM++ 2M Karras"``), or a scheduler.
        like: The pipeline's own scheduler, or one made like this before.
        spacing: Which levels; a name, a spacing, or a grid used verbatim. By default what the name of the scheduler
            says, else ``"trailing"``.

    Returns:
        The object to assign to ``pipe.scheduler``. It draws the noise of a stochastic scheduler from the
        ``generator`` that is passed to the pipeline.

    Raises:
        ParameterError: the scheduler decides its calls during the run, or ``like`` is of a kind that is not known.
        UnknownComponent: a name means nothing.
    """
    known = registry()
    if isinstance(scheduler, str):
        scheduler, implied = known.pair(scheduler)
        spacing = spacing or implied
    made = known.make("scheduler", scheduler) if isinstance(scheduler, str) else scheduler
    spacing = "trailing" if spacing is None else tuple(spacing) if isinstance(spacing, list) else spacing
    levels = known.make("spacing", spacing) if isinstance(spacing, str) else spacing
    if isinstance(like, Lent):
        return Lent(made, levels, like.schedule, like.parametrization, like.config)
    schedule, parametrization = _trained(like)
    config = {key: value for key, value in dict(like.config).items() if not key.startswith("_")}
    config |= {"steps_offset": 1, "clip_sample": False, "skip_prk_steps": True}
    if isinstance(schedule, RectifiedFlow):
        config["use_flow_sigmas"] = True  # pipelines then leave the choice of levels to the scheduler
    return Lent(made, levels, schedule, parametrization, config)


def _trained(like: Any) -> tuple[NoiseSchedule, Parametrization]:
    """Noise schedule and parametrization of the network behind a diffusers scheduler."""
    config = dict(getattr(like, "config", {}))
    name = type(like).__name__
    flow = (
        name.startswith("FlowMatch")
        or config.get("use_flow_sigmas")
        or (config.get("prediction_type") == "flow_prediction")
    )
    if flow:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return RectifiedFlow(1.0 if shift is None else shift), Flow(float(config.get("num_train_timesteps", 1000)))
    make = _PARAMETRIZATIONS.get(str(config.get("prediction_type", "")))
    if make is None or "sigma_data" in config or "num_train_timesteps" not in config:
        raise ParameterError(
            f"What the network behind {name} predicts is not known (prediction_type "
            f"{config.get('prediction_type')!r}); known are {', '.join(_PARAMETRIZATIONS)}, and flows."
        )
    return _betas(config, name), make()


def _betas(config: Mapping[str, Any], name: str) -> DiscreteSchedule:
    steps = int(config["num_train_timesteps"])
    start, stop, kind = config.get("beta_start"), config.get("beta_end"), config.get("beta_schedule")
    if config.get("trained_betas") is not None:
        schedule = DiscreteSchedule(torch.as_tensor(config["trained_betas"]).double().tolist())
    elif kind == "squaredcos_cap_v2":
        schedule = cosine(steps)
    elif kind in ("linear", "scaled_linear") and start is not None and stop is not None:
        schedule = (linear if kind == "linear" else scaled_linear)(float(start), float(stop), steps)
    else:
        raise LevelError(f"The betas of {name} ({kind!r}) are not known; known are linear, scaled_linear, cosine.")
    return schedule.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule
