"""Which prompt is active at which step.

A *flat* prompt is a sequence of texts with weights, embeddings and breaks: no schedules, no alternation. What is said
at a step is a mixture of flat prompts (one, unless it is a blend) for each branch of an ``AND``.
"""

from __future__ import annotations

from typing import TypeAlias

from sdkit import InvalidRequest
from sdkit_prompts.tree import Alternate, And, Blend, Break, Embedding, Prompt, Schedule, Text, Tree

__all__ = ["Flat", "Mixture", "Moment", "WeightedText", "flatten", "schedule", "turn"]

WeightedText: TypeAlias = Text | Embedding | Break
Flat: TypeAlias = tuple[WeightedText, ...]
"""A prompt with nothing left to decide."""
Mixture: TypeAlias = tuple[tuple[Flat, float], ...]
"""Flat prompts whose conditionings are added, with their shares."""
Moment: TypeAlias = tuple[tuple[Mixture, float], ...]
"""What is said at one step: the branches of an AND with their weights, or one branch of weight 1."""


def turn(when: float, steps: int) -> int:
    """After how many of ``steps`` steps a schedule changes: ``when`` of them, or that share of them if below 1."""
    # 0.29 * 100 is 28.999... in binary and means 29
    return min(steps, int(when * steps + 1e-9 if when < 1 else when))


def flatten(prompt: Prompt, step: int, steps: int) -> Flat:
    """What a prompt says at step ``step`` (from 0) of ``steps``."""
    found: list[WeightedText] = []
    for node in prompt.nodes:
        if isinstance(node, Schedule):
            found += flatten(node.before if step < turn(node.when, steps) else node.after, step, steps)
        elif isinstance(node, Alternate):
            found += flatten(node.options[step % len(node.options)], step, steps)
        elif isinstance(node, (Text, Embedding, Break)):
            found.append(node)
    joined = Prompt(tuple(found)).nodes  # in normal form again: texts that now are neighbours are one
    return tuple(node for node in joined if isinstance(node, (Text, Embedding, Break)))


def schedule(tree: Tree, steps: int) -> tuple[Moment, ...]:
    """What a tree says at each of ``steps`` steps, in order.

    Raises:
        InvalidRequest: there is no step.
    """
    if steps < 1:
        raise InvalidRequest(f"A prompt is laid over at least one step, not {steps}.")
    return tuple(_moment(tree, step, steps) for step in range(steps))


def _moment(tree: Tree, step: int, steps: int) -> Moment:
    if isinstance(tree, And):
        return tuple((((flatten(prompt, step, steps), 1.0),), weight) for prompt, weight in tree.branches)
    if isinstance(tree, Blend):
        flats = (flatten(prompt, step, steps) for prompt, _ in tree.branches)
        return ((tuple(zip(flats, tree.shares, strict=True)), 1.0),)
    return ((((flatten(tree, step, steps), 1.0),), 1.0),)
