"""Two models in one run: one begins, and from a level on another goes on, with conditioning of its own.

XL's refiner was trained on the cleanest fifth of the way (Podell et al. 2023, https://arxiv.org/abs/2307.01952,
section 2.5). Both models have the same latents and the same noise schedule, so that latents pass as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from attrs import evolve, field, frozen
from torch import Tensor, nn

from sdkit import Conditions, Grid, InvalidRequest, LatentSpec, Level, Model, NoiseSchedule, ParameterError, Parts
from sdkit_diffusers.beside import number
from sdkit_diffusers.family import StableDiffusion
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.wiring import network_call, pair

__all__ = ["HandOver", "Refiner", "refined"]

_LOADED: WeakKeyDictionary[Placement, dict[str, Model[Any]]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@frozen(eq=False)
class Both:
    """Conditionings of two models for the same prompts.

    Attributes:
        cond: For the model that begins.
        refiner: For the one that goes on.
    """

    cond: Any
    refiner: Any


@frozen(eq=False)
class BothEncoder:
    """The encoders of two models.

    Attributes:
        inner: Of the model that begins.
        refiner: Of the one that goes on.
    """

    inner: Any
    refiner: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.inner, name)
        if name != "weighted":
            return found
        second = getattr(self.refiner, name)  # AttributeError where only one of them takes weights
        return lambda *args: Both(found(*args), second(*args))

    def along(self, grid: Grid) -> BothEncoder:
        """The encoders for a way to be walked."""
        return BothEncoder(*(one.along(grid) if hasattr(one, "along") else one for one in (self.inner, self.refiner)))

    def __call__(self, prompts: Sequence[Any], /) -> Both:
        """Encoded prompts, for both."""
        return Both(self.inner(prompts), self.refiner(prompts))


@frozen(eq=False)
class HandOver:
    """A denoiser that is one model's in much noise and another's in little.

    Attributes:
        denoiser: Of the model that begins.
        refiner: Of the one that goes on.
        below: The sigma / alpha below which the refiner works.
    """

    denoiser: Any
    refiner: Any
    below: float

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule both were trained on."""
        found: NoiseSchedule | None = getattr(self.denoiser, "schedule", None)
        return found

    def __call__(self, x: Tensor, level: Level, cond: Both, /) -> Tensor:
        """The predicted clean latents."""
        refines = self._refines(level)
        made: Tensor = (self.refiner if refines else self.denoiser)(x, level, cond.refiner if refines else cond.cond)
        return made

    def pair(self, x: Tensor, level: Level, cond: Conditions[Both], /) -> Sequence[Tensor]:
        """The predictions for the prompt and for the negative one, each in its model's own way."""
        if self._refines(level):
            return pair(self.refiner, x, level, Conditions(cond.positive.refiner, cond.negative.refiner))
        return pair(self.denoiser, x, level, Conditions(cond.positive.cond, cond.negative.cond))

    def _refines(self, level: Level) -> bool:
        return level.noise_to_signal < self.below


def _threshold(schedule: NoiseSchedule | None, at: float, below: float | None) -> float:
    if below is not None:
        return number("The sigma / alpha at which a refiner takes over", below, 0, 1e6)
    steps = getattr(schedule, "train_steps", None)
    if schedule is None or steps is None:
        raise InvalidRequest("The model's noise schedule has no steps of which `at` could be a share; give below=.")
    # the share of the trained steps, as diffusers counts denoising_end; what is at the level itself is the first's
    return schedule.level(float(min(round(steps * (1 - at)), steps - 1))).noise_to_signal


def _check(latent: LatentSpec, schedule: NoiseSchedule | None, refiner: Model[Any]) -> None:
    other = refiner.spec.latent
    if (latent.channels, latent.factor) != (other.channels, other.factor):
        raise InvalidRequest(
            f"The refiner {refiner.spec.name!r} has latents of {other.channels} channels and {other.factor} pixels, "
            f"the model {latent.channels} and {latent.factor}; take a pair made for each other."
        )
    if schedule is not None and any(
        abs(one.log_snr - two.log_snr) > 1e-6
        for one, two in (
            (schedule.noisiest, refiner.schedule.noisiest),
            (schedule.cleanest, refiner.schedule.cleanest),
        )
    ):
        raise InvalidRequest(
            f"The refiner {refiner.spec.name!r} was trained on another noise schedule than the model; take a pair made "
            "for each other."
        )


def _at(value: Any) -> float:
    made = number("The share of the way at which a refiner takes over", value, 0, 1)
    if made in (0, 1):
        raise ParameterError(f"A refiner takes over between 0 and 1 of the way, not at {value!r}.")
    return made


def refined(model: Model[Any], refiner: Model[Any], *, at: float = 0.8, below: float | None = None) -> Model[Any]:
    """Two models as one, to make a pipeline of.

    Args:
        model: Begins.
        refiner: Goes on; usually Stable Diffusion XL's refiner.
        at: Share of the trained steps after which the refiner works (diffusers' ``denoising_end``), 0 to 1.
        below: In place of ``at``, the sigma / alpha below which it works.

    Raises:
        InvalidRequest: they have other latents or another noise schedule.
        ParameterError: a value is out of range.
    """
    _check(model.spec.latent, model.schedule, refiner)
    threshold = _threshold(model.schedule, _at(at), below)

    def close() -> None:
        model.close()
        refiner.close()

    return evolve(
        model,
        encoder=BothEncoder(model.encoder, refiner.encoder),
        denoiser=HandOver(model.denoiser, refiner.denoiser, threshold),
        on_close=close,
    )


def _below(value: Any) -> float | None:
    return None if value is None else number("The sigma / alpha at which a refiner takes over", value, 0, 1e6)


@frozen
class Refiner:
    """A second model that goes on from a level, as a modifier; it is loaded once and kept until the model is closed.

    Attributes:
        file: A folder or ``.safetensors`` file.
        at: See `refined`.
        below: See `refined`.

    Raises:
        ParameterError: a value is out of range.
    """

    file: str = field(converter=str)
    at: float = field(default=0.8, converter=_at, kw_only=True)
    below: float | None = field(default=None, converter=_below, kw_only=True)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the second model goes on.

        Raises:
            FileError: it cannot be loaded.
            InvalidRequest: it does not fit the model.
        """
        refiner = _loaded(parts.denoiser, self.file)
        schedule = getattr(parts.denoiser, "schedule", None)
        latent = getattr(parts.decoder, "latent", None)
        if isinstance(latent, LatentSpec):
            _check(latent, schedule, refiner)
        below = _threshold(schedule, self.at, self.below)
        yield evolve(
            parts,
            encoder=BothEncoder(parts.encoder, refiner.encoder),
            denoiser=HandOver(parts.denoiser, refiner.denoiser, below),
        )


def _loaded(denoiser: Any, file: str) -> Model[Any]:
    """The second model, loaded as the first was, and given back with it."""
    call = network_call(denoiser)
    placement: Placement = call.placement
    dtype = str(next(call.network.parameters()).dtype).removeprefix("torch.")
    with _LOCK:
        found = _LOADED.setdefault(placement, {})
        key = str(Path(file).resolve())
        if key not in found:
            offload = "stages" if placement.stages else ""
            model = StableDiffusion().load(file, device=placement.device, dtype=dtype, offload=offload, sha256=False)
            placement.add(_Closing(model))
            found[key] = model
        return found[key]


class _Closing(nn.Module):
    """In the list of a model's networks, the whole of another model: given back when they are."""

    def __init__(self, model: Model[Any]) -> None:
        super().__init__()
        self._model = model

    def to(self, *args: Any, **more: Any) -> Any:
        """Close the model when its memory is to be given back; it moves itself otherwise."""
        if args == ("meta",):
            self._model.close()
        return self
