"""The loop: gradients, one optimiser, averages, and checkpoints from which it goes on bit for bit.

A checkpoint is one safetensors file: tensors of the parameters, of the optimiser and of the average, and everything
else as JSON in its header. Nothing in it can run code.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdkit import FileError, NonFiniteError, ParameterError
from sdkit_training.average import Average
from sdkit_training.optimizer import Optimizer

__all__ = ["Objective", "Plan", "Progress", "Training"]

VERSION = 1
LEAST = 0.01
"""What the learning rate falls to, as a share of its height."""


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, step: int, rows: range, /) -> Tensor:
        """The mean loss of items ``rows`` of the batch of step ``step`` (from 0); a function of these alone.

        Items are ``0 .. batch * accumulate - 1``; drawing by their number makes accumulation exact.
        """
        ...


@frozen
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: Updates of the parameters.
        batch: Items of one backward pass.
        accumulate: Backward passes of one update; ``batch * accumulate`` items make the gradient.
        learning_rate: Its height.
        warm_up: Updates in which it rises from 0.
        decay: Last share of the training in which it falls along a cosine to 1/100, 0 to 1.
        weight_decay: Of the optimiser, as a share of the learning rate.
        clip: Longest gradient, in its norm over all parameters; infinity for any.
        average: Decay of the averaged weights, or None for none.

    Raises:
        ParameterError: a value is out of range.
    """

    steps: int = 500
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    warm_up: int = 20
    decay: float = 0.3
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float | None = None

    def __attrs_post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("warm_up", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(f"{name} is a whole number of at least {least}, not {value!r}.")
        for name, low, high in (
            ("learning_rate", 0.0, 1e3),
            ("decay", 0.0, 1.0),
            ("weight_decay", 0.0, 1e3),
            ("clip", 1e-12, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ParameterError(f"{name} lies between {low:g} and {high:g}, not {value!r}.")

    def rate(self, step: int) -> float:
        """The learning rate of update ``step``, from 0."""
        up = min(1.0, (step + 1) / (self.warm_up + 1))
        into = (step / self.steps - (1 - self.decay)) / self.decay if self.decay > 0 else 0.0
        fallen = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, into))))
        return self.learning_rate * up * (LEAST + (1 - LEAST) * fallen)


@frozen
class Progress:
    """One update was made.

    Attributes:
        step: 1 for the first.
        steps: How many there will be.
        loss: Of this update's items.
        gradient: Norm of the gradient before it was cut.
        rate: Learning rate.
        elapsed: Seconds since this run began.
    """

    step: int
    steps: int
    loss: float
    gradient: float
    rate: float
    elapsed: float


class Training:
    """A training: parameters that change, and what is needed to go on with them.

    Args:
        parameters: What is trained, leaves that require gradients; changed in place.
        objective: What is minimised.
        plan: How long and how fast.
        facts: What a checkpoint must agree with besides, for example the data's hash; JSON values.
        muon: Names of the parameters that Muon changes and not AdamW, see `Optimizer`.

    Raises:
        ParameterError: there are no parameters, or ``muon`` names something else than matrices among them.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        objective: Objective,
        plan: Plan,
        facts: Mapping[str, Any] | None = None,
        *,
        muon: Collection[str] = (),
    ) -> None:
        if not parameters:
            raise ParameterError("There is nothing to train: no parameters were given.")
        self.parameters = dict(parameters)
        self.objective = objective
        self.plan = plan
        self.facts = {**(facts or {}), **({"muon": sorted(muon)} if muon else {})}
        self.step = 0
        self.average = None if plan.average is None else Average(parameters, plan.average)
        self._optimizer = Optimizer(self.parameters, plan.learning_rate, plan.weight_decay, muon)

    def run(self) -> Iterator[Progress]:
        """Train to the end of the plan, one event per update; to stop, stop iterating.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the parameters are those before that update.
        """
        began, plan = time.perf_counter(), self.plan
        while self.step < plan.steps:
            rate = plan.rate(self.step)
            self._optimizer.clear()
            loss = self._gradients()
            norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), plan.clip))
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise NonFiniteError(
                    f"The loss of update {self.step + 1} is {loss}, its gradient {norm}; train in float32, or with a "
                    "lower learning rate."
                )
            self._optimizer.step(rate)
            self.step += 1
            if self.average is not None:
                self.average.update(self.parameters)
            yield Progress(self.step, plan.steps, loss, norm, rate, time.perf_counter() - began)

    def _gradients(self) -> float:
        """Gradients of the mean over all items of a step; gives that mean."""
        total = 0.0
        for k in range(self.plan.accumulate):
            rows = range(k * self.plan.batch, (k + 1) * self.plan.batch)
            with torch.enable_grad():
                loss = self.objective(self.step, rows) / self.plan.accumulate
            torch.autograd.backward([loss])
            total += float(loss.detach())
        return total

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is worth keeping: the averages if there are any, else the parameters."""
        values = self.parameters if self.average is None else self.average.values
        return {name: value.detach().clone() for name, value in values.items()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a checkpoint, whole or not at all.

        Raises:
            FileError: it cannot be written.
        """
        tensors = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        kept, numbers = self._optimizer.state()
        tensors |= {f"optimizer.{key}": value for key, value in kept.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        state = {"version": VERSION, "step": self.step, "numbers": numbers, **self._agreed()}
        content = save(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
            metadata={"sdkit_training": json.dumps(state)},
        )
        return _write_whole(Path(path), content)

    def _agreed(self) -> dict[str, Any]:
        return {"plan": attrs.asdict(self.plan), "facts": self.facts}

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same plan.

        Raises:
            FileError: it cannot be read, is no checkpoint, or is one of another training; nothing was changed.
        """
        tensors, state = _read(Path(path))
        for part, mine in json.loads(json.dumps(self._agreed())).items():
            theirs = state.get(part)
            theirs = theirs if isinstance(theirs, dict) else {}
            for name in sorted({*mine, *theirs}):
                if mine.get(name) != theirs.get(name):
                    raise FileError(
                        f"{Path(path).name!r} is a checkpoint with {name}={theirs.get(name)!r}, and this training has "
                        f"{mine.get(name)!r}; resume with the same settings."
                    )
        for name, parameter in self.parameters.items():
            kept = tensors.get(f"parameter.{name}")
            if kept is None or kept.shape != parameter.shape:
                raise FileError(f"{Path(path).name!r} is a checkpoint of another network: {name!r} does not fit.")
        self._put_in(tensors, state)

    @torch.no_grad()
    def _put_in(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            if self.average is not None:
                self.average.values[name].copy_(tensors[f"average.{name}"])
        kept = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith("optimizer.")}
        self._optimizer.restore(kept, state.get("numbers", {}))
        if self.average is not None:
            self.average.updates = self.step


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as opened:
            state = json.loads((opened.metadata() or {}).get("sdkit_training", "null"))
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118 - it is no mapping
    except OSError as error:
        raise FileError(f"The checkpoint {path.name!r} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, ValueError) as error:
        raise FileError(f"{path.name!r} is damaged or no checkpoint: {error}.") from error
    if not isinstance(state, dict) or state.get("version") != VERSION or not isinstance(state.get("step"), int):
        raise FileError(f"{path.name!r} is no checkpoint of this version of sdkit-training.")
    return tensors, state


def _write_whole(path: Path, content: bytes) -> Path:
    """Under a temporary name, then renamed: an interrupted write leaves the old file."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FileError(f"{path.name!r} cannot be written: {error.strerror or error}.") from error
    return path
