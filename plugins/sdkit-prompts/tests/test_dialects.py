"""Dialects: what texts mean, and the laws of parsing and printing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdkit import InvalidRequest, ParameterError, registry
from sdkit_prompts.a1111 import A1111
from sdkit_prompts.compel import Compel
from sdkit_prompts.modifier import flat
from sdkit_prompts.plain import Plain
from sdkit_prompts.steps import schedule, turn
from sdkit_prompts.tree import (
    Adapter,
    Alternate,
    And,
    Blend,
    Break,
    Embedding,
    Node,
    Prompt,
    Schedule,
    Text,
    Tree,
    adapters,
    decimal,
)

NAMES = ("bad-hands.v2", "easy", "easyneg")
# trees are of several kinds, and each test knows which
a1111: Any = A1111()
compel: Any = Compel()
plain: Any = Plain()
with_names: Any = A1111(embeddings=NAMES)


def weights(text: str, dialect: Any = a1111) -> list[tuple[str, Any]]:
    return [(node.text, pytest.approx(node.weight)) for node in dialect.parse(text).nodes]


# What A1111's texts mean.


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("", []),
        ("a fox", [("a fox", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        ("closed) too ] often", [("closed) too ] often", 1)]),
        ("(x)", [("x", 1.1)]),
        ("((x))", [("x", 1.21)]),
        ("[x]", [("x", 1 / 1.1)]),
        ("[[x]]", [("x", 1 / 1.21)]),
        ("(x:1.5)", [("x", 1.5)]),
        ("(x: 0.3 )", [("x", 0.3)]),
        ("(x:-.5)", [("x", -0.5)]),
        ("(x:0)", [("x", 0)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("(x:y)", [("x:y", 1.1)]),
        ("(16:9:1.5)", [("16:9", 1.5)]),
        ("a 16:9 picture", [("a 16:9 picture", 1)]),
        ("16:9", [("16:9", 1)]),
        (r"\(x\) \[y\] \\", [(r"(x) [y] " + "\\", 1)]),
        (r"(x\:2)", [("x:2", 1.1)]),
        ("one\\", [("one\\", 1)]),
        (r"a\b", [("ab", 1)]),
        ("a <3 b", [("a <3 b", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights(text: str, meaning: list[tuple[str, float]]) -> None:
    assert weights(text) == meaning


def words(text: str, weight: float = 1.0) -> Prompt:
    return Prompt((Text(text, weight),))


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("[fire:1.1]", Schedule(Prompt(), words("fire"), 1.1)),  # editing at step 1, not a weight
        ("[a:b:0.25]", Schedule(words("a"), words("b"), 0.25)),
        ("[a: b : 7 ]", Schedule(words("a"), words(" b "), 7)),
        ("[a::7]", Schedule(words("a"), Prompt(), 7)),
        ("[:a:.5]", Schedule(Prompt(), words("a"), 0.5)),
        ("[(a:2):3]", Schedule(Prompt(), words("a", 2), 3)),
        ("([a:b:3]:2)", Schedule(words("a", 2), words("b", 2), 3)),
        ("[a|b|]", Alternate((words("a"), words("b"), Prompt()))),
        ("[a:[b:c:2]:1]", Schedule(words("a"), Prompt((Schedule(words("b"), words("c"), 2),)), 1)),
        ("<lora:pixel art:0.7>", Adapter("lora", "pixel art", ("0.7",))),
    ],
)
def test_schedules_and_adapters(text: str, node: Node) -> None:
    assert a1111.parse(text) == Prompt((node,))


@pytest.mark.parametrize("text", ["[a:b]", "[a:b:c:3]", "[a:b:-1]", r"[a:b:\3]", "[a:b:x3]"])
def test_brackets_that_are_no_schedule_weigh_less(text: str) -> None:
    assert all(isinstance(node, Text) and node.weight == pytest.approx(1 / 1.1) for node in a1111.parse(text).nodes)


def test_break_is_upper_case_and_a_word_of_its_own() -> None:
    assert a1111.parse("a  BREAK\nb") == Prompt((Text("a"), Break(), Text("b")))
    for text in ("a break b", "a Break b", "aBREAK b", r"a \BR\EAK b"):
        assert not any(isinstance(node, Break) for node in a1111.parse(text).nodes)
    assert a1111.parse("(a BREAK b:2)") == Prompt((Text("a", 2), Break(), Text("b", 2)))


def test_and_joins_prompts_with_weights() -> None:
    tree = a1111.parse("a (fox:1.2) AND red :0.5 AND sky: -1")
    assert tree == And(((Prompt((Text("a "), Text("fox", 1.2))), 1), (words("red"), 0.5), (words("sky"), -1)))
    assert a1111.parse("a and b, ANDY, bAND") == words("a and b, ANDY, bAND")
    assert a1111.parse("a AND ") == And(((words("a"), 1), (Prompt(), 1)))


def test_embeddings_are_bare_names_where_the_dialect_knows_them() -> None:
    assert with_names.parse("x easyneg, (easy:2)") == Prompt(
        (Text("x "), Embedding("easyneg"), Text(", "), Embedding("easy", 2))
    )
    assert a1111.parse("easy") == words("easy")
    assert with_names.parse(r"\easy easier uneasy") == words("easy easier uneasy")
    with pytest.raises(ParameterError, match="cannot be named 'AND'"):
        A1111(embeddings=("AND",))
    with pytest.raises(ParameterError, match="name of an embedding"):
        A1111(embeddings=("two words",))


def test_strengths_of_adapters_in_all_their_forms() -> None:
    forms = {"": (1, 1), ":0.5": (0.5, 0.5), ":0.5:0.7": (0.5, 0.7), ":te=0.1:unet=0.2": (0.1, 0.2), ":unet=0": (1, 0)}
    for form, strengths in forms.items():
        (found,) = adapters(a1111.parse(f"a [<lora:x{form}>:2] b"))
        assert found.strengths == strengths
    with pytest.raises(ParameterError, match="'much' in <lora:x:...> is no strength"):
        _ = adapters(a1111.parse("<lora:x:much>"))[0].strengths


# What compel's texts mean.


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a fox+ jumps", [("a ", 1), ("fox", 1.1), (" jumps", 1)]),
        ("a fox++, red--", [("a ", 1), ("fox", 1.21), (", ", 1), ("red", 0.81)]),
        ("(a red fox)1.3 jumps", [("a red fox", 1.3), (" jumps", 1)]),
        ("(a (red)1.5 fox)+", [("a ", 1.1), ("red", 1.65), (" fox", 1.1)]),
        ("(a)-", [("a", 0.9)]),
        ("(a)-1", [("a", -1)]),
        ("(a)2. Then", [("a", 2), (". Then", 1)]),
        ("a well-known c++11 fact", [("a well-known c++11 fact", 1)]),
        ("a + b", [("a + b", 1)]),
        (r"c\+\+ (x\)", [("c++ x)", 1)]),
        ("(open", [("open", 1)]),
        ("[a|b] AND :2", [("[a|b] AND :2", 1)]),
    ],
)
def test_compel(text: str, meaning: list[tuple[str, float]]) -> None:
    assert weights(text, compel) == meaning


def test_compels_blend_and_and() -> None:
    assert compel.parse('("a", "b+").blend(1, 0.8)') == Blend(((words("a"), 1), (words("b", 1.1), 0.8)))
    blend = compel.parse('("a","b").blend(1,3,no_normalize)')
    assert isinstance(blend, Blend)
    assert blend.shares == (1, 3)
    assert compel.parse('("a","b").blend(1,3)').shares == (0.25, 0.75)
    assert compel.parse('("a", "b").and()') == Prompt((Text("a"), Break(), Text("b")))
    assert compel.parse('("a", "b").and(1, 2)') == Prompt((Text("a"), Break(), Text("b", 2)))
    with pytest.raises(ParameterError, match="sum to 0"):
        _ = compel.parse('("a","b").blend(1,-1)').shares


# Laws.

LETTERS = st.lists(
    st.sampled_from([*"ab ()[]:|<>\\\"'.,+-~0123456789\n\té\u2003", "easy", "AND", " AND ", "BREAK", "<lora:x"]),
    max_size=30,
).map("".join)
NASTY = st.one_of(st.text(max_size=60), LETTERS)
FACTORS = st.one_of(st.sampled_from([1.0, 1.1, 0.0, -0.5, 1.1 * 1.1]), st.floats(-1e6, 1e6))
TEXTS = st.builds(Text, NASTY, FACTORS)
WHEN = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1.1, 20.0]), st.floats(0, 1e9))
LORAS = st.builds(
    Adapter,
    st.sampled_from(["lora", "lyco", "hypernet"]),
    st.text("ab c.-", min_size=1, max_size=5),
    st.lists(st.text("01.te=", max_size=4), max_size=2).map(tuple),
)


def prompts(*leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Prompt]:
    flat_ones = st.lists(st.one_of(*leaves), max_size=4).map(lambda nodes: Prompt(tuple(nodes)))

    def deeper(inner: st.SearchStrategy[Prompt]) -> st.SearchStrategy[Prompt]:
        branches = [st.builds(Schedule, inner, inner, WHEN), st.lists(inner, min_size=2, max_size=3).map(_alternate)]
        return st.lists(st.one_of(*leaves, *branches), max_size=3).map(lambda nodes: Prompt(tuple(nodes)))

    return st.recursive(flat_ones, deeper, max_leaves=6)


def _alternate(options: list[Prompt]) -> Alternate:
    return Alternate(tuple(options))


def joined(prompt: st.SearchStrategy[Prompt]) -> st.SearchStrategy[Tree]:
    branch = st.tuples(prompt, st.one_of(st.just(1.0), st.floats(-1e9, 1e9)))
    return st.one_of(prompt, st.lists(branch, min_size=2, max_size=3).map(lambda found: And(tuple(found))))


NODES = (TEXTS, st.just(Break()), LORAS)
TREES = joined(prompts(*NODES))
NAMED_TREES = joined(prompts(*NODES, st.builds(Embedding, st.sampled_from(NAMES), FACTORS)))
FLAT = st.lists(TEXTS, max_size=4).map(lambda nodes: Prompt(tuple(nodes)))
COMPEL_TREES = st.one_of(
    st.lists(st.one_of(TEXTS, st.just(Break())), max_size=5).map(lambda nodes: Prompt(tuple(nodes))),
    st.builds(
        Blend,
        st.lists(st.tuples(FLAT, st.floats(-1e9, 1e9)), min_size=1, max_size=3).map(tuple),
        st.booleans(),
    ),
)


@given(TREES)
@example(Prompt((Text("BREAK AND <lora:x:1> a:2"),)))
@example(And(((Prompt((Text("a :2"),)), 1.0), (Prompt((Text("\\"),)), 0.1))))
def test_a1111_prints_what_it_reads(tree: Tree) -> None:
    assert a1111.parse(a1111.print(tree)) == tree


@given(NAMED_TREES)
def test_a1111_with_embeddings_prints_what_it_reads(tree: Tree) -> None:
    assert with_names.parse(with_names.print(tree)) == tree


@given(COMPEL_TREES)
@example(Prompt((Text("a", 1.3), Text("5"))))
@example(Prompt((Text('("a").and()'),)))
def test_compel_prints_what_it_reads(tree: Tree) -> None:
    assert compel.parse(compel.print(tree)) == tree


@given(st.text())
def test_plain_prints_what_it_reads(text: str) -> None:
    assert plain.print(plain.parse(text)) == text
    assert plain.parse(plain.print(plain.parse(text))) == plain.parse(text)


@given(NASTY)
@example("(" * 5000 + "x" + ")" * 5000)
@example("[" * 3000 + "x" + ":1]" * 3000)
@example("[|" * 3000)
@example("(a:" + "9" * 500 + ")")
@example("(a)" + "9" * 500)
@example("a" + "+" * 5000)
@example("[a:" + "9" * 500 + "]")
@example("a AND b:" + "9" * 500)
@example('("a").blend(' + "9" * 400 + ")")
def test_no_text_is_refused_and_reading_is_stable(text: str) -> None:
    for dialect in (a1111, with_names, compel, plain):
        tree = dialect.parse(text)
        assert dialect.parse(dialect.print(tree)) == tree
        assert schedule(tree, 3) if not isinstance(tree, Blend) or tree.branches else True


@given(FACTORS, FACTORS)
def test_weights_multiply(one: float, other: float) -> None:
    (node,) = a1111.parse(f"((x:{decimal(one)}):{decimal(other)})").nodes
    assert node.weight == pytest.approx(max(-1e6, min(1e6, one * other)))
    (node,) = compel.parse(f"((x){decimal(one)}){decimal(other)}").nodes
    assert node.weight == pytest.approx(max(-1e6, min(1e6, one * other)))


@pytest.mark.parametrize(
    ("dialect", "tree", "reason"),
    [
        (a1111, Blend(((words("a"), 1.0),)), "no blend"),
        (a1111, Prompt((Embedding("x"),)), "not among"),
        (a1111, Prompt((Adapter("lora", "a>b"),)), "cannot be written"),
        (a1111, Prompt((Alternate((words("a"),)),)), "at least two options"),
        (compel, And(((words("a"), 1.0), (words("b"), 1.0))), "no AND"),
        (compel, Prompt((Schedule(words("a"), words("b"), 3),)), "no Schedule"),
        (compel, Blend(((Prompt((Break(),)), 1.0),)), "no break inside"),
        (plain, words("a", 2), "neither weights"),
    ],
)
def test_what_a_syntax_cannot_say_is_refused(dialect: Any, tree: Tree, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        dialect.print(tree)


@pytest.mark.parametrize("bad", [float("nan"), "x"])
def test_a_weight_is_a_number(bad: Any) -> None:
    with pytest.raises((ParameterError, ValueError)):
        Text("a", bad)
    with pytest.raises((ParameterError, ValueError)):
        And(((words("a"), bad), (words("b"), 1.0)))
    with pytest.raises((ParameterError, ValueError)):
        Schedule(words("a"), words("b"), bad)


# Steps.


def said(text: str, steps: int) -> list[str]:
    moments: Any = schedule(a1111.parse(text), steps)
    assert all(len(moment) == 1 and moment[0][1] == 1 for moment in moments)
    return ["".join(node.text for node in moment[0][0][0][0]) for moment in moments]


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("a [b:c:2]", 4, ["a b", "a b", "a c", "a c"]),
        ("a [b:c:0.5]", 4, ["a b", "a b", "a c", "a c"]),
        ("[fire:1.1]", 3, ["", "fire", "fire"]),
        ("[b:c:0]", 2, ["c", "c"]),
        ("[b:c:9]", 2, ["b", "b"]),
        ("[b:c:0.29]", 100, ["b"] * 29 + ["c"] * 71),
        ("[a|b]", 5, ["a", "b", "a", "b", "a"]),
        ("[fe|]male", 3, ["female", "male", "female"]),
        ("a[b:[c:d:2]:1]e", 4, ["abe", "ace", "ade", "ade"]),
        ("[[a|b]:c:2]", 4, ["a", "b", "c", "c"]),
    ],
)
def test_which_prompt_is_active_when(text: str, steps: int, expected: list[str]) -> None:
    assert said(text, steps) == expected


@given(st.floats(0, 40), st.integers(1, 40))
def test_a_schedule_changes_once_and_never_beyond_the_end(when: float, steps: int) -> None:
    moments: Any = schedule(Prompt((Schedule(words("a"), words("b"), when),)), steps)
    first = [moment[0][0][0][0][0].text == "a" for moment in moments]
    assert first == [step < turn(when, steps) for step in range(steps)]
    assert 0 <= turn(when, steps) <= steps


@given(TREES, st.integers(1, 6))
def test_every_step_says_something_flat(tree: Tree, steps: int) -> None:
    moments = schedule(tree, steps)
    assert len(moments) == steps
    for moment in moments:
        for mixture, _ in moment:
            for found, _ in mixture:
                assert all(isinstance(node, (Text, Break, Embedding)) for node in found)
                assert not any(
                    isinstance(a, Text) and isinstance(b, Text) and a.weight == b.weight for a, b in _pairs(found)
                )


def _pairs(nodes: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    return list(pairwise(nodes))


def test_a_flat_prompt_is_asked_for_by_the_name_of_its_dialect() -> None:
    assert flat("a (b:2)", "a1111") == (Text("a "), Text("b", 2))
    assert flat("a (b)2", "compel") == (Text("a "), Text("b", 2))
    assert flat("[a:b:0.5]", step=1, steps=2) == (Text("b"),)
    assert flat("x easy", "a1111(embeddings=['easy'])") == (Text("x "), Embedding("easy"))
    with pytest.raises(InvalidRequest, match="joins several prompts"):
        flat("a AND b")
    with pytest.raises(InvalidRequest, match="asks for <lora:x>"):
        flat("a <lora:x:1>")


def test_the_dialects_are_components() -> None:
    names = {entry.component.name for entry in registry().entries("prompt-dialect")}
    assert {"a1111", "compel", "plain"} <= names
    assert registry().make("prompt-dialect", "compel") == Compel()
