"""Conditionings as trees: joined along the batch and cut again, without knowing what they mean.

A tree is a tensor, ``None``, a plain value, or a tuple, list, mapping, attrs class or dataclass of trees. Every
tensor's first dimension is the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, cast

import attrs
import torch
from torch import Tensor

from sdkit.errors import InvalidRequest

__all__ = ["concatenate", "map_tensors", "take"]

T = TypeVar("T")


def map_tensors(function: Callable[..., Tensor], first: T, *rest: T) -> T:
    """The tree with ``function`` applied to the tensors at the same place in all the given trees.

    Raises:
        InvalidRequest: the trees differ in kind, length, keys or plain values.
    """
    trees = (first, *rest)
    if any(type(tree) is not type(first) for tree in trees):
        raise InvalidRequest(
            f"Conditionings of different kinds cannot be joined: {', '.join(type(t).__name__ for t in trees)}."
        )
    if isinstance(first, Tensor):
        return cast(T, function(*trees))
    if isinstance(first, Mapping):
        if any(set(cast(Mapping[Any, Any], tree)) != set(first) for tree in trees):
            raise InvalidRequest("Conditionings with different keys cannot be joined.")
        joined = {key: map_tensors(function, *(cast(Any, tree)[key] for tree in trees)) for key in first}
        try:
            return cast(T, cast(Any, type(first))(joined))
        except TypeError:  # defaultdict and its like are made of something else; what they hold is what counts
            return cast(T, joined)
    if isinstance(first, (tuple, list)):
        if any(len(cast(Any, tree)) != len(first) for tree in trees):
            raise InvalidRequest("Conditionings of different lengths cannot be joined.")
        items = [map_tensors(function, *parts) for parts in zip(*cast(Any, trees), strict=True)]
        named = hasattr(first, "_fields")
        return cast(T, type(first)(*items) if named else type(first)(items))
    if attrs.has(type(first)):
        values = {
            f.alias: map_tensors(function, *(getattr(tree, f.name) for tree in trees))
            for f in attrs.fields(cast(Any, type(first)))
            if f.init
        }
        return cast(T, attrs.evolve(cast(Any, first), **values))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        values = {
            f.name: map_tensors(function, *(getattr(tree, f.name) for tree in trees))
            for f in dataclasses.fields(first)
            if f.init
        }
        return cast(T, dataclasses.replace(cast(Any, first), **values))
    if not isinstance(first, (str, bytes, int, float, complex, Enum, NoneType)):
        raise InvalidRequest(
            f"A {type(first).__name__} cannot be part of a conditioning: its tensors, if any, would not be cut "
            "with the batch. Use tensors, tuples, lists, mappings, attrs classes, dataclasses, and plain values."
        )
    if any(tree != first for tree in rest):
        raise InvalidRequest(f"Conditionings with different plain values cannot be joined: {trees!r}.")
    return first


def concatenate(*trees: T) -> T:
    """The trees joined along the batch.

    Raises:
        InvalidRequest: tensors at the same place differ in more than the batch.
    """

    def join(*tensors: Tensor) -> Tensor:
        shapes = {tuple(t.shape[1:]) for t in tensors}
        if len(shapes) > 1:
            raise InvalidRequest(
                f"Conditionings of shapes {[tuple(t.shape) for t in tensors]} cannot be joined along the batch; an "
                "encoder must give the same shapes for every prompt (pad to a fixed length)."
            )
        return torch.cat(tensors)

    return map_tensors(join, *trees)


def take(tree: T, index: slice | list[int]) -> T:
    """The part of the batch that ``index`` names."""
    return map_tensors(lambda tensor: tensor[index], tree)
