"""The rules for adapters: modifiers that change what networks compute, at a strength.

An adapter is tried in an `Adaptation`: how to make it, and the parts it is put on. What is compared is the outcome: the
conditioning that the encoder makes of prompts, and the clean latents that the denoiser predicts with it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor, nn

from sdkit.conditioning import map_tensors
from sdkit.levels import Level
from sdkit.noise import AddressedNoise
from sdkit.protocols import Modifier, Parts
from sdkit.testing.rules import NonConformance, Skip, rule

__all__ = [
    "Adaptation",
    "check_adapter_acts",
    "check_adapter_commutes",
    "check_adapter_failing",
    "check_adapter_leaves_after_an_error",
    "check_adapter_leaves_no_trace",
    "check_adapter_merged",
    "check_adapter_nests",
    "check_adapter_per_image",
    "check_adapter_strength_zero",
    "check_adapter_threads",
]

Strength = Any
"""A number, or a tuple of one per image where an adapter takes that."""


@frozen(eq=False)
class Adaptation:
    """An adapter in a place where it can be tried.

    Attributes:
        make: The adapter at a strength; at 1 it changes the outcome plainly.
        parts: What it is put on: encoder and denoiser are called.
        shape: (channels, *space) of the latents the denoiser takes.
        prompts: Three prompts.
        level: Where the denoiser is asked.
        other: Another adapter at a strength, for the rules about two; None skips them.
        merged: The same adapter at a strength in its merged form; None if it has none.
        broken: Adapters that cannot be applied to these parts; none skips the rule about them.
        additive: Whether adapters commute by what they are (a sum does, a replacement does not).
        per_image: Whether ``make`` takes a tuple of strengths.
        tolerance: Largest difference of outcomes that are equal but for rounding, of outcomes of about unit size.
    """

    make: Callable[[Strength], Modifier]
    parts: Parts[Any, Any, Any]
    shape: tuple[int, ...]
    prompts: tuple[Any, Any, Any] = ("a fox", "a red apple", "a rocket, 3d style")
    level: Level = field(default=Level(0.5, 0.5, 0.5))
    other: Callable[[Strength], Modifier] | None = None
    merged: Callable[[Strength], Modifier] | None = None
    broken: tuple[Modifier, ...] = ()
    additive: bool = True
    per_image: bool = False
    tolerance: float = 1e-4

    def outcome(self, *modifiers: Modifier, items: Sequence[int] = (0, 1, 2)) -> list[Tensor]:
        """Conditioning and prediction under the modifiers, for some of the three items."""
        with self.scope(*modifiers) as parts:
            return self.of(parts, items)

    @contextmanager
    def scope(self, *modifiers: Modifier) -> Iterator[Parts[Any, Any, Any]]:
        """The parts under the modifiers, the first innermost."""
        with ExitStack() as stack:
            parts = self.parts
            for modifier in modifiers:
                parts = stack.enter_context(modifier.apply(parts))
            yield parts

    def of(self, parts: Parts[Any, Any, Any], items: Sequence[int] = (0, 1, 2)) -> list[Tensor]:
        """Conditioning and prediction of parts, on the same latents every time."""
        x = AddressedNoise(tuple(items)).initial(torch.empty(len(items), *self.shape))
        with torch.no_grad():
            cond = parts.encoder([self.prompts[k] for k in items])
            found: list[Tensor] = []
            map_tensors(lambda tensor: found.append(tensor) or tensor, cond)  # type: ignore[func-returns-value]
            return [*(tensor.clone() for tensor in found), parts.denoiser(x, self.level, cond).clone()]

    def state(self) -> str:
        """A hash of every network in the parts: weights, buffers, modes, and how many hooks they carry."""
        digest = hashlib.sha256()
        for network in _networks(self.parts):
            for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode() + raw)
            for name, module in network.named_modules():
                hooks = [len(held) for key, held in vars(module).items() if key.endswith("_hooks")]
                own = "forward" in vars(module)
                digest.update(f"{name} {type(module).__qualname__} {module.training} {hooks} {own}".encode())
        return digest.hexdigest()


def _networks(value: Any, depth: int = 4) -> Iterator[nn.Module]:
    """Every network in the fields of a value."""
    if isinstance(value, nn.Module):
        yield value
    elif depth and attrs.has(type(value)):
        for one in attrs.fields(type(value)):
            yield from _networks(getattr(value, one.name), depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for inner in value:
            yield from _networks(inner, depth - 1)
    elif depth and hasattr(value, "__dict__") and not callable(getattr(type(value), "__get__", None)):
        for inner in vars(value).values():
            yield from _networks(inner, depth - 1)


def _demand(truth: object, message: str) -> None:
    if not truth:
        raise NonConformance(message)


def _same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _distance(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(one, two, strict=True))


@rule(
    "adapter",
    text="At strength 1 the outcome is another one than without the adapter.",
    why="An adapter that finds no place and says nothing costs people hours.",
    hint="Keys that match no layer; a scale of 0; a network that hides its layers (compiled, quantised).",
)
def check_adapter_acts(adaptation: Adaptation) -> str:
    """It does something."""
    away = _distance(adaptation.outcome(), adaptation.outcome(adaptation.make(1.0)))
    _demand(away > adaptation.tolerance, f"at strength 1 the outcome differs by {away:.1e}, which is nothing.")
    return f"by {away:.1e}"


@rule(
    "adapter",
    text="Strength 0 is the same as not loaded, bit for bit.",
    why="People compare with and without by moving one slider.",
    hint="A replaced layer that computes in another order or precision; a bias that is not scaled.",
)
def check_adapter_strength_zero(adaptation: Adaptation) -> None:
    """Zero is nothing."""
    bare, zero = adaptation.outcome(), adaptation.outcome(adaptation.make(0.0))
    _demand(_same(bare, zero), f"strength 0 changes the outcome by {_distance(bare, zero):.1e}.")


@rule(
    "adapter",
    text="After the scope every weight, buffer and hook is as before, and the outcome too, bit for bit.",
    why="What one request leaves behind is in the pictures of all requests after it.",
    hint="Weights written and restored by subtraction, which rounds; hooks that stay; layers that were exchanged.",
)
def check_adapter_leaves_no_trace(adaptation: Adaptation) -> None:
    """Exactly undone."""
    before, bare = adaptation.state(), adaptation.outcome()
    for strength in (1.0, -0.7, 0.3):
        adaptation.outcome(adaptation.make(strength))
        _demand(adaptation.state() == before, f"after a scope at strength {strength} the networks are not as before.")
    _demand(_same(adaptation.outcome(), bare), "after the scopes the outcome is another one.")


@rule(
    "adapter",
    text="The same holds when the scope is left by an error.",
    why="Out of memory and a cancelled run are part of every day.",
    hint="What undoes the change must stand in a finally.",
)
def check_adapter_leaves_after_an_error(adaptation: Adaptation) -> None:
    """Undone after an error inside, too."""
    before, bare = adaptation.state(), adaptation.outcome()
    try:
        with adaptation.scope(adaptation.make(1.0)) as parts:
            adaptation.of(parts)
            raise _Thrown
    except _Thrown:
        pass
    _demand(adaptation.state() == before, "after an error in the scope the networks are not as before.")
    _demand(_same(adaptation.outcome(), bare), "after an error in the scope the outcome is another one.")


class _Thrown(Exception):
    """Thrown inside a scope."""


@rule(
    "adapter",
    text="One that cannot be applied raises, and the model is as before, bit for bit.",
    why="A half-loaded adapter spoils the model until it is loaded again.",
    hint="Check everything before the first change.",
)
def check_adapter_failing(adaptation: Adaptation) -> str:
    """Nothing, or everything."""
    if not adaptation.broken:
        raise Skip("no adapter that fails was given")
    before, bare = adaptation.state(), adaptation.outcome()
    for modifier in adaptation.broken:
        try:
            adaptation.outcome(modifier)
        except Exception:  # which error it is, is the adapter's own business
            pass
        else:
            raise NonConformance(f"{modifier} was given as one that cannot be applied, and was applied.")
        _demand(adaptation.state() == before, f"the failed {modifier} left the networks changed.")
        _demand(_same(adaptation.outcome(), bare), f"the failed {modifier} left another outcome.")
    return f"{len(adaptation.broken)} tried"


def _other(adaptation: Adaptation) -> Callable[[Strength], Modifier]:
    if adaptation.other is None:
        raise Skip("no second adapter was given")
    return adaptation.other


@rule(
    "adapter",
    text="Additive adapters commute: two of them give the same outcome in either order, within rounding.",
    why="A request lists adapters in the order people happened to click them.",
    hint="One that sees the other's change as part of the weight; a strength that scales what was there before.",
)
def check_adapter_commutes(adaptation: Adaptation) -> str:
    """Either order."""
    if not adaptation.additive:
        raise Skip("it declares that it is not additive")
    one, two = adaptation.make(0.8), _other(adaptation)(0.5)
    away = _distance(adaptation.outcome(one, two), adaptation.outcome(two, one))
    _demand(away <= adaptation.tolerance, f"in the other order the outcome differs by {away:.1e}.")
    return f"to {away:.0e}"


@rule(
    "adapter",
    text="Inside another scope it is added to what is there, and leaving it gives that back, bit for bit.",
    why="Modifiers are stacked; the inner one must not undo the outer one.",
    hint="Restoring the bare model instead of what was found; one place for the state of all scopes.",
)
def check_adapter_nests(adaptation: Adaptation) -> None:
    """Scopes inside scopes."""
    outer, inner = _other(adaptation)(0.5), adaptation.make(1.0)
    with adaptation.scope(outer) as parts:
        alone = adaptation.of(parts)
        with inner.apply(parts) as both:
            together = adaptation.of(both)
        _demand(_same(adaptation.of(parts), alone), "leaving the inner scope does not give the outer one back.")
    only = adaptation.outcome(inner)
    _demand(_distance(together, alone) > adaptation.tolerance, "inside another scope it changes nothing.")
    _demand(_distance(together, only) > adaptation.tolerance, "inside it, what the outer scope changed is lost.")


@rule(
    "adapter",
    text="Merged into copies of the weights it gives the same outcome as beside them, within rounding.",
    why="Merging is for speed; it must not be another style.",
    hint="A scale used twice or forgotten; a convolution's kernel in another order.",
)
def check_adapter_merged(adaptation: Adaptation) -> str:
    """Merged is bypassed."""
    if adaptation.merged is None:
        raise Skip("it has no merged form")
    worst = 0.0
    for strength in (1.0, -0.7, 0.0):
        beside = adaptation.outcome(adaptation.make(strength))
        worst = max(worst, _distance(beside, adaptation.outcome(adaptation.merged(strength))))
    _demand(worst <= adaptation.tolerance, f"the merged form differs by {worst:.1e}.")
    return f"to {worst:.0e}"


@rule(
    "adapter",
    text="Strengths that differ by image give each image what it gets alone at its own, within rounding.",
    why="A server batches requests of many people.",
    hint="One strength for the whole batch; a layer that sees several rows of an item, or the batch twice.",
)
def check_adapter_per_image(adaptation: Adaptation) -> str:
    """Items do not see each other's strength."""
    if not adaptation.per_image:
        raise Skip("it takes one strength for all images")
    strengths = (1.0, 0.0, -0.5)
    together, worst = adaptation.outcome(adaptation.make(strengths)), 0.0
    for k, strength in enumerate(strengths):
        alone = adaptation.outcome(adaptation.make(strength), items=[k])
        worst = max(worst, _distance([tensor[k : k + 1] for tensor in together], alone))
    _demand(worst <= adaptation.tolerance, f"an image of the batch differs by {worst:.1e} from it alone.")
    return f"to {worst:.0e}"


@rule(
    "adapter",
    text="Threads inside scopes of different strengths on one model, at the same time, each get their own outcome, bit "
    "for bit; one outside gets the bare one.",
    why="A server has one model and many requests.",
    hint="State on the modules or in a global; weights written in place.",
)
def check_adapter_threads(adaptation: Adaptation) -> None:
    """All scopes are entered before the first outcome is computed."""
    strengths: list[Strength | None] = [None, 1.0, -0.7]
    wanted = [adaptation.outcome(*([] if s is None else [adaptation.make(s)])) for s in strengths]
    wrong: list[str] = []
    barrier = threading.Barrier(len(strengths), timeout=60)

    def run(k: int) -> None:
        strength = strengths[k]
        try:
            with adaptation.scope(*([] if strength is None else [adaptation.make(strength)])) as parts:
                barrier.wait()
                for _ in range(2):
                    if not _same(adaptation.of(parts), wanted[k]):
                        wrong.append("without it" if strength is None else f"at strength {strength}")
                barrier.wait()
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
            barrier.abort()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(strengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _demand(not wrong, f"beside other threads the outcome is another one: {'; '.join(sorted(set(wrong)))}.")
