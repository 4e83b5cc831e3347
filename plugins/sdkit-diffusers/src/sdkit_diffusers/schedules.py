"""From what diffusers writes about a scheduler to a noise schedule, what the network predicts, and a good sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from sdkit import (
    DiscreteSchedule,
    Epsilon,
    FileError,
    Flow,
    Level,
    NoiseSchedule,
    ParameterError,
    Parametrization,
    RectifiedFlow,
    Sample,
    UnknownComponent,
    Velocity,
    cosine,
    linear,
    scaled_linear,
)
from sdkit_diffusers.members import distilled

__all__ = ["SizedFlow", "Trained", "flow", "trained"]

PREDICTIONS: Mapping[str, Parametrization] = {"epsilon": Epsilon(), "v_prediction": Velocity(), "sample": Sample()}
SHORT = {"epsilon": "epsilon", "velocity": "v_prediction", "v_prediction": "v_prediction", "sample": "sample"}
CORE_SCHEDULERS = {
    "DDIMScheduler": "ddim",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
}


@frozen
class Trained:
    """How a network was trained and is best sampled.

    Attributes:
        schedule: Its noise schedule.
        parametrization: What it predicts.
        prediction: The name of that.
        scheduler: Recommended scheduler.
        spacing: Recommended spacing.
        distilled: Whether the configuration is that of a model for one to four steps without guidance.
    """

    schedule: NoiseSchedule
    parametrization: Parametrization
    prediction: str
    scheduler: str
    spacing: str
    distilled: bool = False


def trained(config: Mapping[str, Any], *, prediction: str | None = None) -> Trained:
    """Read a ``scheduler_config.json`` of a variance-preserving model.

    Args:
        config: The configuration.
        prediction: What the network predicts, if the configuration is wrong about it.

    Raises:
        FileError: it states betas or a prediction that are not known.
        ParameterError: ``prediction`` is not known.
    """
    if prediction is not None and prediction not in SHORT:
        raise ParameterError(f"prediction is 'epsilon', 'velocity' or 'sample', not {prediction!r}.")
    stated = SHORT[prediction] if prediction else config.get("prediction_type", "epsilon")
    if stated not in PREDICTIONS:
        raise FileError(f"The scheduler's prediction_type {stated!r} is not known; known are {', '.join(PREDICTIONS)}.")
    name = {"v_prediction": "velocity"}.get(stated, stated)
    return Trained(_discrete(config), PREDICTIONS[stated], name, *_recommended(config), distilled(config))


def _discrete(config: Mapping[str, Any]) -> DiscreteSchedule:
    start, stop = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    steps, betas = int(config.get("num_train_timesteps", 1000)), str(config.get("beta_schedule", "linear"))
    try:
        if config.get("trained_betas"):
            schedule = DiscreteSchedule(config["trained_betas"])
        elif betas == "scaled_linear":
            schedule = scaled_linear(start, stop, steps)
        elif betas == "linear":
            schedule = linear(start, stop, steps)
        elif betas == "squaredcos_cap_v2":
            schedule = cosine(steps)
        else:
            raise FileError(f"The scheduler's beta_schedule {betas!r} is not known.")
    except ParameterError as error:
        raise FileError(f"The scheduler's configuration makes no noise schedule: {error}") from error
    return schedule.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def flow(
    config: Mapping[str, Any], *, shift: float | None, time_scale: float, spacing: str, side: int, patch: int
) -> Trained:
    """A rectified flow. The shift is the schedule's, and the spacing divides shifted times evenly.

    Args:
        config: The scheduler's configuration.
        shift: Of the flow, in place of what the configuration says.
        time_scale: What the network calls pure noise.
        spacing: Spacing, unless the configuration names one of its own (such as karras).
        side: Default side of a latent.
        patch: Side of a token in elements of a latent.
    """
    dynamic = bool(config.get("use_dynamic_shifting")) and shift is None
    made: NoiseSchedule
    if dynamic:
        made = SizedFlow(_Shift.of(config), side, patch, _cleanest(config, 1.0))
    else:
        static = float(config.get("shift", 1.0)) if shift is None else shift
        # diffusers shifts its cleanest level before and the whole row of levels after it has divided them
        made = RectifiedFlow(static, _cleanest(config, static))
    scheduler, own = _recommended({"_class_name": "FlowMatchEulerDiscreteScheduler", **config})
    shifted = own.startswith(("flow-shift", "trailing"))  # that is the schedule's part here, and not done twice
    return Trained(made, Flow(time_scale), "flow", scheduler, spacing if shifted or own == "uniform" else own)


def _cleanest(config: Mapping[str, Any], shift: float) -> float:
    return RectifiedFlow(shift).level(1 / int(config.get("num_train_timesteps", 1000))).sigma


@frozen
class _Shift:
    """How a flow's shift depends on the number of tokens of a picture.

    ``mu`` rises linearly from ``low`` at ``few`` tokens to ``high`` at ``many``; the shift is ``exp(mu)``, or ``mu``
    itself, as FLUX.1 was published with (after Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 5.3.2).
    """

    few: int
    many: int
    low: float
    high: float
    exponential: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Shift:
        kind = config.get("time_shift_type", "exponential")
        if kind not in ("exponential", "linear"):
            raise FileError(f"The scheduler's time_shift_type {kind!r} is not known; known are exponential and linear.")
        return cls(
            int(config.get("base_image_seq_len", 256)),
            int(config.get("max_image_seq_len", 4096)),
            float(config.get("base_shift", 0.5)),
            float(config.get("max_shift", 1.15)),
            kind == "exponential",
        )

    def __call__(self, tokens: int) -> float:
        mu = self.low + (self.high - self.low) * (tokens - self.few) / (self.many - self.few)
        return math.exp(mu) if self.exponential else mu


@frozen
class SizedFlow:
    """A rectified flow whose shift depends on the size of pictures: larger ones need more noise to lose their shape.

    By itself it is the flow of the model's default size; `sized` is that of another.

    Attributes:
        shift: Of a number of tokens.
        side: Default side of a latent.
        patch: Side of a token in elements of a latent.
        cleanest_time: As in `sdkit.RectifiedFlow`.
    """

    shift: _Shift = field(repr=False)
    side: int
    patch: int
    cleanest_time: float

    def sized(self, shape: Sequence[int], /) -> RectifiedFlow:
        """The flow for latents of a shape (batch, channels, height, width), or with frames before the height."""
        tokens = (shape[-2] // self.patch) * (shape[-1] // self.patch) * math.prod(shape[2:-2])
        return RectifiedFlow(self.shift(tokens), self.cleanest_time)

    @property
    def usual(self) -> RectifiedFlow:
        """The flow of the default size."""
        return self.sized((self.side, self.side))

    @property
    def train_steps(self) -> None:
        """Time is continuous."""
        return

    @property
    def noisiest(self) -> Level:
        """Time 1: pure noise."""
        return self.usual.noisiest

    @property
    def cleanest(self) -> Level:
        """The level at ``cleanest_time``."""
        return self.usual.cleanest

    @property
    def clean(self) -> Level:
        """Time 0."""
        return self.usual.clean

    def level(self, t: float, /) -> Level:
        """The level at a time in [0, 1]."""
        return self.usual.level(t)

    def time(self, log_snr: float, /) -> float:
        """The time that has this ``log_snr``."""
        return self.usual.time(log_snr)


def _recommended(config: Mapping[str, Any]) -> tuple[str, str]:
    """Scheduler and spacing of a configuration, where plugins have them; else Euler on even times."""
    try:
        from sdkit_samplers.names import from_diffusers
    except ImportError:
        return _core_names(config)
    try:
        found = from_diffusers(config)
    except (UnknownComponent, ParameterError):
        return _core_names(config)
    return found.scheduler, found.spacing


def _core_names(config: Mapping[str, Any]) -> tuple[str, str]:
    """What the core has of a configuration."""
    scheduler = CORE_SCHEDULERS.get(str(config.get("_class_name")), "euler")
    return scheduler, "trailing" if config.get("timestep_spacing") == "trailing" else "uniform"
