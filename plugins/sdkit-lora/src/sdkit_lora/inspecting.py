"""What an adapter file is, told without applying it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import field, frozen

from sdkit import Model
from sdkit_lora.deltas import Delta
from sdkit_lora.errors import AdapterError
from sdkit_lora.files import Adapter, family_of_model
from sdkit_lora.formats import described
from sdkit_lora.keys import KeyMap, targets

__all__ = ["Report", "inspect"]


@frozen
class Report:
    """What a file says, and, with a model, what it means for it.

    Attributes:
        name: The file's name.
        sha256: Hash of its content.
        format: Component that reads it; empty where none does.
        kinds: How many modules each kind has.
        ranks: How many modules each rank has; 0 is those without one.
        alphas: How many modules each alpha has; None is not stated, so the rank.
        family: Family of models it was made for; empty if it does not tell.
        trigger: Words that call it; empty if it does not say.
        tensors: Number of tensors.
        parameters: Numbers in them.
        metadata: What its header says besides.
        matched: With a model: places that are changed, as text.
        unmatched: With a model: keys that find no place.
        problem: With a model: why it cannot be used with it; empty if it can.
    """

    name: str
    sha256: str
    format: str
    kinds: dict[str, int]
    ranks: dict[int, int]
    alphas: dict[float | None, int]
    family: str
    trigger: str
    tensors: int
    parameters: int
    metadata: dict[str, str] = field(repr=False)
    matched: tuple[str, ...] | None = field(default=None, repr=False)
    unmatched: tuple[str, ...] | None = field(default=None, repr=False)
    problem: str = ""


def inspect(adapter: Adapter, model: Model[Any] | None = None) -> Report:
    """What an adapter is, and what it would change in a model.

    Raises:
        AdapterError: its tensors are of a kind that is not supported, or in no known format.
    """
    deltas = list(described(adapter.tensors, adapter.metadata).values())
    report = Report(
        name=adapter.name,
        sha256=adapter.sha256,
        format=adapter.format(),
        kinds=dict(Counter(delta.kind for delta in deltas).most_common()),
        ranks=dict(sorted(Counter(delta.rank or 0 for delta in deltas).items())),
        alphas=dict(Counter(_alpha(delta) for delta in deltas).most_common()),
        family=adapter.family(),
        trigger=adapter.trigger(),
        tensors=len(adapter.tensors),
        parameters=sum(tensor.numel() for tensor in adapter.tensors.values()),
        metadata=dict(sorted(adapter.metadata.items())),
    )
    return report if model is None else _matched(report, adapter, model)


def _alpha(delta: Delta) -> float | None:
    inner: Any = getattr(delta, "inner", delta)
    value: float | None = getattr(inner, "alpha", None)
    return value


def _matched(report: Report, adapter: Adapter, model: Model[Any]) -> Report:
    from attrs import evolve

    keys = KeyMap.of(targets(model.encoder, model.denoiser))
    parsed = adapter.parsed(keys)
    try:
        adapter.fitted(keys, unmatched="skip")
        problem = ""
    except AdapterError as error:
        problem = str(error)
    places = tuple(sorted(str(place) for place in parsed.deltas))
    family = report.family or ("" if problem else family_of_model(keys.modules))
    return evolve(report, matched=places, unmatched=parsed.unmatched, problem=problem, family=family)
