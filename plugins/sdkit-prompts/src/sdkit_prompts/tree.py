"""What a prompt says, as one tree, whatever syntax it was written in.

A tree is a `Prompt` (a sequence of nodes), an `And` of several prompts, or a `Blend` of several. Trees have a normal
form, made when they are built: weights stand on the leaves, neighbouring texts of one weight are one text, and there
is no white space beside a break. Two prompts that say the same are equal, and ``parse(print(tree)) == tree``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Protocol, TypeAlias

import attrs
from attrs import field, frozen

from sdkit import ParameterError

__all__ = [
    "Adapter",
    "Alternate",
    "And",
    "Blend",
    "Break",
    "Dialect",
    "Embedding",
    "Node",
    "Prompt",
    "Schedule",
    "Text",
    "Tree",
    "adapters",
    "decimal",
    "scaled",
]

MOST_WEIGHT = 1e6
"""Weights beyond this are brought back to it; where brackets nest deep, products would leave the floats."""


def _weight(value: float) -> float:
    weight = float(value)
    if math.isnan(weight):
        raise ParameterError(f"The weight of a part of a prompt must be a number, not {value!r}.")
    return min(max(weight, -MOST_WEIGHT), MOST_WEIGHT)


@frozen
class Text:
    """Words with a weight; 1 is neutral."""

    text: str
    weight: float = field(default=1.0, converter=_weight)


@frozen
class Embedding:
    """A textual inversion, by its name."""

    name: str
    weight: float = field(default=1.0, converter=_weight)


@frozen
class Adapter:
    """An adapter that the prompt asks for: ``<lora:name:0.8>``.

    Attributes:
        kind: What kind of file, ``"lora"`` as a rule.
        name: Its name, as the prompt gives it; prompts open no files.
        arguments: What follows the name, as written: a strength, one for the text encoder and one for the denoiser, or
            ``te=...`` and ``unet=...``.
    """

    kind: str
    name: str
    arguments: tuple[str, ...] = ()

    @property
    def strengths(self) -> tuple[float, float]:
        """(text encoder, denoiser): 1 where nothing is said; one number alone is for both.

        Raises:
            ParameterError: an argument is neither a number nor one of the known names.
        """
        numbers: list[float] = []
        named: dict[str, float] = {}
        for argument in self.arguments:
            name, equals, value = argument.rpartition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not math.isfinite(number) or (equals and name.strip() not in ("te", "unet")):
                raise ParameterError(
                    f"{argument!r} in <{self.kind}:{self.name}:...> is no strength; write a number, te=NUMBER or "
                    "unet=NUMBER."
                )
            if equals:
                named[name.strip()] = number
            else:
                numbers.append(number)
        text = named.get("te", numbers[0] if numbers else 1.0)
        return text, named.get("unet", numbers[1] if len(numbers) > 1 else text if numbers else 1.0)


@frozen
class Break:
    """Here a new chunk begins."""


@frozen
class Schedule:
    """``before`` until ``when``, then ``after``.

    Attributes:
        before: What is said first.
        after: What is said from then on.
        when: Below 1 a share of the steps, else a number of steps; at least 0.
    """

    before: Prompt
    after: Prompt
    when: float = field(converter=float)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.when < math.inf:
            raise ParameterError(f"A prompt changes after a share of the steps or a number of steps, not {self.when}.")


@frozen
class Alternate:
    """Another option at each step, the first one again after the last."""

    options: tuple[Prompt, ...]


Node: TypeAlias = Text | Embedding | Adapter | Break | Schedule | Alternate


def _normal(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Texts of one weight joined, no empty ones, no white space beside a break."""
    found: list[Node] = []
    for node in nodes:
        last = found[-1] if found else None
        if isinstance(node, Break):
            _strip_end(found)
        elif isinstance(node, Text) and isinstance(last, Break):
            node = Text(node.text.lstrip(), node.weight)
        elif isinstance(node, Text) and isinstance(last, Text) and node.weight == last.weight:
            node = Text(found.pop().text + node.text, node.weight)  # type: ignore[union-attr]
        if not isinstance(node, Text) or node.text:
            found.append(node)
    return tuple(found)


def _strip_end(nodes: list[Node]) -> None:
    while nodes and isinstance(last := nodes[-1], Text):
        nodes.pop()
        if text := last.text.rstrip():
            nodes.append(Text(text, last.weight))
            return


@frozen
class Prompt:
    """A sequence of nodes, in normal form."""

    nodes: tuple[Node, ...] = field(default=(), converter=_normal)

    def stripped(self) -> Prompt:
        """The same without white space at both ends."""
        nodes = list(self.nodes)
        _strip_end(nodes)
        while nodes and isinstance(first := nodes[0], Text):
            nodes.pop(0)
            if text := first.text.lstrip():
                nodes.insert(0, Text(text, first.weight))
                break
        return Prompt(tuple(nodes))


def _branches(branches: Iterable[tuple[Prompt, float]]) -> tuple[tuple[Prompt, float], ...]:
    found = tuple((prompt, float(weight)) for prompt, weight in branches)
    for _, weight in found:
        if not math.isfinite(weight):
            raise ParameterError(f"The weight of a prompt must be a finite number, not {weight}.")
    return found


def _stripped(branches: Iterable[tuple[Prompt, float]]) -> tuple[tuple[Prompt, float], ...]:
    return _branches((prompt.stripped(), weight) for prompt, weight in branches)


@frozen
class And:
    """Several prompts that all hold: ``D = D_neg + sum_i w_i (D_i - D_neg)``.

    Source: Liu et al. 2022, https://arxiv.org/abs/2206.01714.

    Attributes:
        branches: At least two prompts with their weights.
    """

    branches: tuple[tuple[Prompt, float], ...] = field(converter=_stripped)

    def __attrs_post_init__(self) -> None:
        if len(self.branches) < 2:
            raise ParameterError(f"AND joins at least two prompts, not {len(self.branches)}.")


@frozen
class Blend:
    """A weighted sum of the conditionings of several prompts.

    Attributes:
        branches: Prompts with their weights.
        normalise: Whether the weights are divided by their sum.
    """

    branches: tuple[tuple[Prompt, float], ...] = field(converter=_branches)
    normalise: bool = True

    def __attrs_post_init__(self) -> None:
        if not self.branches:
            raise ParameterError("A blend is of at least one prompt.")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights as they act.

        Raises:
            ParameterError: they sum to zero and are to be divided by that.
        """
        weights = [weight for _, weight in self.branches]
        total = math.fsum(weights) if self.normalise else 1.0
        if total == 0:
            raise ParameterError(f"The weights of a blend sum to 0: {weights}; change one, or add no_normalize.")
        return tuple(weight / total for weight in weights)


Tree: TypeAlias = Prompt | And | Blend


class Dialect(Protocol):
    """A syntax: text to tree and back.

    Laws: ``parse`` raises on no text, and ``parse(print(tree)) == tree`` for every tree that the syntax can say.
    """

    def parse(self, text: str) -> Tree:
        """The tree of any text at all."""
        ...

    def print(self, tree: Tree) -> str:
        """The text that `parse` reads as this tree; ParameterError if the syntax cannot say it."""
        ...


def scaled(nodes: tuple[Node, ...], factor: float) -> tuple[Node, ...]:
    """The nodes with all their weights multiplied."""
    return tuple(_scaled(node, factor) for node in nodes)


def _scaled(node: Node, factor: float) -> Node:
    if isinstance(node, (Text, Embedding)):
        return attrs.evolve(node, weight=node.weight * factor)
    if isinstance(node, Schedule):
        before, after = (Prompt(scaled(prompt.nodes, factor)) for prompt in (node.before, node.after))
        return Schedule(before, after, node.when)
    if isinstance(node, Alternate):
        return Alternate(tuple(Prompt(scaled(option.nodes, factor)) for option in node.options))
    return node


def adapters(tree: Tree) -> tuple[Adapter, ...]:
    """The adapters a prompt asks for, in the order they stand."""
    prompts = (tree,) if isinstance(tree, Prompt) else tuple(prompt for prompt, _ in tree.branches)
    return tuple(found for prompt in prompts for found in _adapters(prompt))


def _adapters(prompt: Prompt) -> Iterator[Adapter]:
    for node in prompt.nodes:
        if isinstance(node, Adapter):
            yield node
        elif isinstance(node, Schedule):
            yield from (*_adapters(node.before), *_adapters(node.after))
        elif isinstance(node, Alternate):
            for option in node.options:
                yield from _adapters(option)


def decimal(number: float) -> str:
    """The shortest decimal digits that are this float again, without an exponent."""
    return format(Decimal(repr(float(number))), "f")
