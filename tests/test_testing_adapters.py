"""The rules for adapters: a right one passes them, and each wrong one is caught by the rule it breaks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from sdkit import Level, ParameterError, Parts
from sdkit import testing as kit
from sdkit.protocols import Modifier
from sdkit.testing import Adaptation, AdapterConformance, catalogue

RULES = {rule.name: rule for rule in catalogue("adapter")}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.4


def layer(seed: int) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(4, 4, bias=False)
    made.weight = nn.Parameter(drawn(4, 4, seed=seed), requires_grad=False)
    return made


@frozen(eq=False)
class Words:
    network: nn.Linear

    def __call__(self, prompts: Sequence[Any], /) -> Tensor:
        rows = torch.tensor([[len(str(p)) / 9, str(p).count("a"), 1.0, 0.5] for p in prompts])
        out: Tensor = self.network(rows)
        return out


@frozen(eq=False)
class Toy:
    """A denoiser of one layer, with what adapters add to it."""

    network: nn.Linear
    deltas: tuple[tuple[Tensor, Any], ...] = ()

    def __call__(self, x: Tensor, level: Level, cond: Tensor, /) -> Tensor:
        y: Tensor = self.network(x) + cond[:, None]
        for delta, strength in sorted(self.deltas, key=lambda one: float(one[0].sum())):
            factor = torch.tensor(strength).reshape(-1, 1, 1) if isinstance(strength, tuple) else strength
            y = y + factor * (x @ delta.T)
        return y


def parts() -> Parts[Any, Any, Any]:
    none: Any = None
    return Parts(Words(layer(1)), Toy(layer(2)), none, none)


@frozen(eq=False)
class Right:
    """Adds its delta beside the layer."""

    delta: Tensor
    strength: Any

    @contextmanager
    def apply(self, given: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        denoiser: Any = given.denoiser
        if self.strength == 0:
            yield given
        else:
            yield evolve(given, denoiser=evolve(denoiser, deltas=(*denoiser.deltas, (self.delta, self.strength))))


ONE, TWO = drawn(4, 4, seed=3), drawn(4, 4, seed=4)
Wrong = Callable[[Tensor, Any], Modifier]


@frozen(eq=False)
class Refuses:
    """Cannot be applied; ``before`` is what it does all the same."""

    before: Callable[[Any], object] = field(default=lambda given: None)

    @contextmanager
    def apply(self, given: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        self.before(given)
        raise ParameterError("no")
        yield given


def adaptation(kind: Wrong = Right, **more: Any) -> Adaptation:
    given = parts()
    made: dict[str, Any] = {
        "make": lambda strength: kind(ONE, strength),
        "parts": given,
        "shape": (2, 4),
        "other": lambda strength: kind(TWO, strength),
        "merged": lambda strength: Right(ONE, strength),
        "broken": (Refuses(),),
        "per_image": True,
        **more,
    }
    return Adaptation(**made)


class TestRight(AdapterConformance):
    adapter = adaptation()


class TestOfLittle(AdapterConformance):
    """What is not declared is skipped."""

    adapter = adaptation(other=None, merged=None, broken=(), per_image=False)


def modifier(change: Callable[[Tensor, Any, Any], Any]) -> Wrong:
    """A wrong adapter, as ``change(delta, strength, parts)``, a context manager."""

    @frozen(eq=False)
    class Made:
        delta: Tensor
        strength: Any

        @contextmanager
        def apply(self, given: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
            with contextmanager(change)(self.delta, self.strength, given) as changed:
                yield changed

    return Made


def number(strength: Any) -> float:
    return float(strength[0] if isinstance(strength, tuple) else strength)


def nothing(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    yield given


def never_zero(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    with Right(delta, number(strength) + 1e-6).apply(given) as changed:
        yield changed


def subtracts(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    weight = given.denoiser.network.weight
    weight.add_(delta * number(strength))
    yield given
    weight.sub_(delta * number(strength))  # rounds


def leaves_a_hook(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    given.denoiser.network.register_forward_hook(lambda *a: None)
    with Right(delta, strength).apply(given) as changed:
        yield changed


def forgets_on_error(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    weight = given.denoiser.network.weight
    before = weight.clone()
    weight.add_(delta * number(strength))
    yield given
    weight.copy_(before)


def scales_what_was_there(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    denoiser = given.denoiser
    known = tuple((other, number(s) * (1 - 0.2 * number(strength))) for other, s in denoiser.deltas)
    yield evolve(given, denoiser=evolve(denoiser, deltas=(*known, (delta, number(strength)))))


def first_strength_for_all(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    with Right(delta, number(strength)).apply(given) as changed:
        yield changed


def in_place(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    """Exact and undone in a finally, and still seen by every other thread."""
    weight = given.denoiser.network.weight
    with LOCK:
        before = weight.clone()
        weight.add_(delta * number(strength))
    try:
        yield given
    finally:
        with LOCK:
            weight.copy_(before)


def replaces(delta: Tensor, strength: Any, given: Any) -> Iterator[Any]:
    """Puts itself in the place of what was there."""
    yield evolve(given, denoiser=evolve(given.denoiser, deltas=((delta, strength),) if strength != 0 else ()))


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (nothing, "acts"),
        (never_zero, "strength_zero"),
        (subtracts, "leaves_no_trace"),
        (leaves_a_hook, "leaves_no_trace"),
        (forgets_on_error, "leaves_after_an_error"),
        (scales_what_was_there, "commutes"),
        (replaces, "nests"),
        (first_strength_for_all, "per_image"),
        (in_place, "threads"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_wrong_adapter_is_caught(wrong: Any, expected: str) -> None:
    outcomes = {one.rule.name: one for one in kit.run(adaptation(modifier(wrong)), "adapter")}
    assert outcomes[expected].state == "fail", outcomes[expected]


def test_a_merged_form_with_the_scale_twice_is_caught() -> None:
    wrong = adaptation(merged=lambda strength: Right(ONE, strength * abs(strength)))
    with pytest.raises(kit.NonConformance, match="merged form differs"):
        kit.apply(RULES["merged"], wrong)


def test_a_failed_one_that_leaves_something_is_caught_and_one_that_does_not_fail_too() -> None:
    spoils = Refuses(lambda given: given.denoiser.network.weight.mul_(1.5))
    with pytest.raises(kit.NonConformance, match="left the networks changed"):
        kit.apply(RULES["failing"], adaptation(broken=(spoils,)))
    with pytest.raises(kit.NonConformance, match="was applied"):
        kit.apply(RULES["failing"], adaptation(broken=(Right(ONE, 1.0),)))


def test_every_rule_has_a_wrong_adapter() -> None:
    named = {expected for _, expected in test_each_wrong_adapter_is_caught.pytestmark[0].args[1]}
    assert named | {"merged", "failing"} == set(RULES)
