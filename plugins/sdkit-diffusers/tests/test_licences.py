"""Licences of model families: what is in the table, and how licences combine."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdkit import Licence
from sdkit.cli.licence import CODES, HARMLESS, judge
from sdkit_diffusers.licences import FAMILIES, combined, licence, licences

KNOWN = HARMLESS | {
    "non-commercial",
    "research-only",
    "revenue-ceiling",
    "revenue-below",
    "one-of-several",
    "unverified",
}
FACTS = [
    # family, commercial, revenue, answer
    ("sd1", True, 1e12, "yes"),
    ("sd2", True, 1e12, "yes"),
    ("sdxl", True, 1e12, "yes"),
    ("sdxl-refiner", True, None, "yes"),
    ("sdxl-0.9", True, 0, "no"),
    ("sd3", True, 1_000_000, "yes"),
    ("sd3", True, 1_000_000.01, "no"),
    ("sd3", True, None, "ask"),
    ("sd35", True, 2_000_000, "no"),
    ("sdxl-turbo", True, 0, "ask"),
    ("svd", True, 0, "ask"),
    ("flux-schnell", True, 1e12, "yes"),
    ("flux-dev", True, 0, "no"),
    ("flux-dev", False, None, "yes"),
    ("flux", True, 0, "ask"),
    ("flux2-dev", True, 0, "ask"),
    ("wan", True, 1e12, "yes"),
    ("ltx2", True, 10_000_000, "ask"),
    ("hunyuan-video", False, None, "ask"),
    ("insightface", True, 0, "ask"),
    ("my-own", True, 0, "ask"),
]


@pytest.mark.parametrize(("family", "commercial", "revenue", "answer"), FACTS)
def test_what_the_table_answers(family: str, commercial: bool, revenue: float | None, answer: str) -> None:
    assert judge(licence(family), commercial=commercial, revenue=revenue)[0] == answer


def test_every_family_says_what_a_person_needs() -> None:
    assert licences() == FAMILIES
    for family, one in FAMILIES.items():
        assert re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*", family)
        assert one.id != "unknown"
        assert one.summary.endswith(".")
        assert one.url.startswith("https://")
        assert one.duties
        assert {term.kind for term in one.terms} <= KNOWN, family
        assert all(term.clause.endswith(".") for term in one.terms)
        assert all((term.limit is not None) == term.kind.startswith("revenue") for term in one.terms)


def test_what_is_not_known_is_never_free() -> None:
    assert licence("anything").id == "unknown"
    assert judge(licence("anything"), commercial=False, revenue=0)[0] == "ask"


PARTS = st.lists(st.sampled_from([*FAMILIES.values(), licence("anything")]), min_size=1, max_size=4)


@given(PARTS, st.booleans(), st.one_of(st.none(), st.floats(0, 1e8)))
def test_a_combination_is_at_least_as_strict_as_its_strictest_part(
    parts: list[Licence], commercial: bool, revenue: float | None
) -> None:
    whole = combined(parts)
    for part in parts:
        assert set(part.terms) <= set(whole.terms)
        assert set(part.duties) <= set(whole.duties)
        assert set(part.attribution) <= set(whole.attribution)
    found = judge(whole, commercial=commercial, revenue=revenue)[0]
    answers = [judge(part, commercial=commercial, revenue=revenue)[0] for part in parts]
    assert (found == "yes") == all(answer == "yes" for answer in answers)
    assert CODES[found] > 0 or "no" not in answers
    assert any(part.id == "unknown" for part in parts) <= (whole.id == "unknown")


def test_one_part_is_itself_and_none_is_unknown() -> None:
    assert combined([licence("sd1")]) == licence("sd1")
    assert combined([licence("sd1"), licence("sd1")]) == licence("sd1")
    assert combined([]).id == "unknown"
    both = combined([licence("sd1"), licence("flux-dev")])
    assert both.id == "CreativeML-OpenRAIL-M AND FLUX.1-dev-Non-Commercial"
    assert attrs.evolve(both) == both


def test_the_pages_python_runs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "licences.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "licences", "exec"), {"__name__": "page"})
    for family in re.findall(r"`([a-z0-9-]+)`", text.split("|---|---|---|")[1].split("\n\n")[0]):
        assert family in FAMILIES
