"""From what diffusers writes about a scheduler to a noise schedule, what the network predicts, and a good sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from sdkit import (
    DiscreteSchedule,
    Epsilon,
    FileError,
    Flow,
    NoiseSchedule,
    ParameterError,
    Parametrization,
    RectifiedFlow,
    Sample,
    UnknownComponent,
    Velocity,
    cosine,
    linear,
    registry,
    scaled_linear,
)

__all__ = ["Trained", "flow_shift", "trained"]

PREDICTIONS: Mapping[str, Parametrization] = {"epsilon": Epsilon(), "v_prediction": Velocity(), "sample": Sample()}
SHORT = {"epsilon": "epsilon", "velocity": "v_prediction", "v_prediction": "v_prediction", "sample": "sample"}
SPACINGS = {"linspace": "uniform", "leading": "leading", "trailing": "trailing"}


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
    kind, spacing = str(config.get("_class_name", "")), config.get("timestep_spacing", "leading")
    distilled = kind in ("LCMScheduler", "TCDScheduler")
    distilled |= kind == "EulerAncestralDiscreteScheduler" and spacing == "trailing"  # how Turbo models are published
    name = {"v_prediction": "velocity"}.get(stated, stated)
    return Trained(_discrete(config), PREDICTIONS[stated], name, *_recommended(kind, str(spacing)), distilled)


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


def flow(config: Mapping[str, Any], *, shift: float, time_scale: float, spacing: str) -> Trained:
    """A rectified flow.

    Args:
        config: The scheduler's configuration.
        shift: Of the flow.
        time_scale: What the network calls pure noise.
        spacing: Recommended spacing.
    """
    # diffusers shifts its cleanest level before and the whole row of levels after it has divided them
    steps = int(config.get("num_train_timesteps", 1000))
    cleanest = RectifiedFlow(shift).level(1 / steps).sigma
    return Trained(RectifiedFlow(shift, cleanest), Flow(time_scale), "flow", "euler", spacing)


def flow_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The shift of a flow for pictures of so many tokens.

    With ``use_dynamic_shifting`` it is ``exp(mu)``, ``mu`` rising linearly with the number of tokens, as FLUX.1 was
    published with (after Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 5.3.2).
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    few, many = int(config.get("base_image_seq_len", 256)), int(config.get("max_image_seq_len", 4096))
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def _recommended(kind: str, spacing: str) -> tuple[str, str]:
    """Our names of a scheduler class and spacing, where a plugin has them; else Euler on even times."""
    known = registry()
    try:
        scheduler = known.find("scheduler", kind).component.name
    except UnknownComponent:
        scheduler = "euler"
    wanted = SPACINGS.get(spacing, "uniform")
    try:
        return scheduler, known.find("spacing", wanted).component.name
    except UnknownComponent:
        return scheduler, "uniform"
