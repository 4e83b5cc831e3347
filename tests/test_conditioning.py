"""Conditionings are trees: joining and cutting them is inverse, and what does not fit is refused."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkit import InvalidRequest, concatenate
from sdkit.conditioning import map_tensors, take


class Pair(NamedTuple):
    first: Any
    second: Any


@frozen
class Text:
    tokens: Any
    pooled: Any
    note: str = "x"


@dataclass
class Plain:
    tokens: Any
    pooled: Any
    derived: int = dataclass_field(init=False, default=3)


@frozen
class Private:
    _hidden: Tensor
    shape: int = field(init=False, default=3)


# A tree's shape as nested lists and names; filled with tensors of any batch by `grow`.
kinds = st.recursive(
    st.sampled_from(["tensor", "vector", "none", "text", "number"]),
    lambda inner: st.tuples(
        st.sampled_from(["tuple", "list", "dict", "ordered", "pair", "attrs", "dataclass"]),
        st.lists(inner, min_size=2, max_size=2),
    ),
    max_leaves=8,
)


def grow(kind: Any, batch: int, value: float) -> Any:
    """A tree of this kind with ``batch`` rows, row k filled with ``value + k``."""
    rows = torch.arange(batch, dtype=torch.float64) + value
    if kind == "tensor":
        return rows.reshape(-1, 1, 1).repeat(1, 3, 2)
    if kind == "vector":
        return rows
    if isinstance(kind, str):
        return {"none": None, "text": "word", "number": 1.5}[kind]
    name, children = kind
    a, b = (grow(child, batch, value) for child in children)
    made: dict[str, Any] = {
        "tuple": (a, b),
        "list": [a, b],
        "dict": {"a": a, "b": b},
        "ordered": OrderedDict(a=a, b=b),
        "pair": Pair(a, b),
        "attrs": Text(a, b),
        "dataclass": Plain(a, b),
    }
    return made[name]


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (Text, Plain)):
        return same(a.tokens, b.tokens) and same(a.pooled, b.pooled)
    return bool(a == b)


@given(kinds, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_joining_and_cutting_are_inverse(kind: Any, batches: list[int]) -> None:
    parts = [grow(kind, batch, 10.0 * i) for i, batch in enumerate(batches)]
    whole, at = concatenate(*parts), 0
    for part, batch in zip(parts, batches, strict=True):
        assert same(take(whole, slice(at, at + batch)), part)
        at += batch


@given(kinds, st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_rows_are_taken_in_any_order_and_number(kind: Any, rows: list[int]) -> None:
    taken = take(grow(kind, 4, 0.0), rows)
    assert same(taken, concatenate(*(grow(kind, 1, float(row)) for row in rows)))


@given(kinds)
def test_mapping_nothing_changes_nothing(kind: Any) -> None:
    tree = grow(kind, 2, 0.0)
    assert same(map_tensors(lambda tensor: tensor, tree), tree)


@given(kinds)
def test_trees_are_left_as_they_were(kind: Any) -> None:
    tree, again = grow(kind, 2, 0.0), grow(kind, 2, 0.0)
    concatenate(tree, tree)
    map_tensors(lambda tensor: tensor * 2, tree)
    assert same(tree, again)


def test_functions_see_the_tensors_of_the_same_place() -> None:
    one: dict[str, Any] = {"a": torch.ones(2), "b": None}
    two: dict[str, Any] = {"a": torch.full((2,), 3.0), "b": None}
    assert torch.equal(map_tensors(lambda x, y: y - x, one, two)["a"], torch.full((2,), 2.0))


def test_attrs_classes_with_private_and_derived_fields_are_trees_too() -> None:
    whole = concatenate(Private(torch.zeros(1)), Private(torch.ones(2)))
    assert torch.equal(whole._hidden, torch.tensor([0.0, 1.0, 1.0]))
    assert whole.shape == 3


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ((torch.ones(1),), [torch.ones(1)], "different kinds"),
        (torch.ones(1), None, "different kinds"),
        ({"a": 1}, {"b": 1}, "different keys"),
        ({"a": 1}, {"a": 1, "b": 1}, "different keys"),
        ((1,), (1, 1), "different lengths"),
        ("a cat", "a dog", "different plain values"),
        (Text(None, None), Text(None, None, "y"), "different plain values"),
        (torch.ones(1, 77, 4), torch.ones(1, 154, 4), "pad to a fixed length"),
        (torch.ones(1, 4), torch.ones(1, 4, 1), "pad to a fixed length"),
    ],
)
def test_trees_that_do_not_fit_are_refused(one: Any, two: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        concatenate(one, two)


@pytest.mark.parametrize("thing", [object(), np.zeros(2), {1, 2}, [torch.ones(1), lambda: None]])
def test_what_could_hide_tensors_is_refused(thing: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot be part of a conditioning"):
        take(thing, [0])


def test_any_mapping_is_cut_and_comes_back_as_a_dict() -> None:
    tree = defaultdict(list, {"a": torch.arange(3)})
    assert torch.equal(take(tree, [1])["a"], torch.tensor([1]))
