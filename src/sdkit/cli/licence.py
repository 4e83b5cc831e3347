"""``sdkit licence``: under which terms a model may be used. Facts, not legal advice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sdkit.cli.registered import spec_of
from sdkit.errors import UnknownComponent, nearest
from sdkit.plugins import registry

if TYPE_CHECKING:
    from sdkit.model import Licence, Term

__all__ = ["check", "find", "judge", "licence"]

Answer = Literal["yes", "no", "ask"]
CODES: dict[Answer, int] = {"yes": 0, "no": 1, "ask": 2}
# Terms that restrict nobody's use as such: what they ask for is listed among the duties.
HARMLESS = frozenset(
    {
        "use-restrictions",
        "licence-copy",
        "registration",
        "attribution",
        "notice-file",
        "commercial-outputs",
        "no-competing-training",
        "content-filter",
        "derivatives",
        "ai-disclosure",
    }
)


@click.group()
def licence() -> None:
    """Under which terms a model may be used: facts, not legal advice."""


@licence.command()
@click.argument("model")
def show(model: str) -> None:
    """What the licence of MODEL says: a registered name, a family such as sd1, or a path."""
    found = find(model)
    click.echo(f"{found.name} ({found.id})")
    click.echo(found.summary)
    for term in found.terms:
        click.echo(f"  {term.kind}: {term.clause}")
    for duty in found.duties:
        click.echo(f"  duty: {duty}")
    for line in found.attribution:
        click.echo(f"  by: {line}")
    if found.url:
        click.echo(f"  text: {found.url}")


@licence.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--commercial", is_flag=True, help="For commercial use.")
@click.option(
    "--revenue", type=click.FloatRange(min=0), metavar="USD", help="What you and your affiliates make in a year."
)
def check(models: tuple[str, ...], commercial: bool, revenue: float | None) -> None:
    """May MODEL be used so? Answers yes, no or ask, with the clause; exit code 0, 1 or 2.

    MODEL is a registered name, a family such as sd1, or a path. Of several (a model and its adapters) all must allow
    it.
    """
    answers = []
    for model in models:
        found = find(model)
        answer, reason = judge(found, commercial=commercial, revenue=revenue)
        answers.append(answer)
        click.echo(f"{answer}: {model}, {found.name}. {reason}")
        if answer == "yes":
            for duty in found.duties:
                click.echo(f"  duty: {duty}")
    worst: Answer = "no" if "no" in answers else "ask" if "ask" in answers else "yes"
    if len(answers) > 1:
        click.echo(f"{worst}: together")
    raise SystemExit(CODES[worst])


def judge(licence: Licence, *, commercial: bool, revenue: float | None) -> tuple[Answer, str]:
    """Whether a use is allowed, and the clause that says so; what is not known is "ask", never "yes".

    Args:
        licence: The terms.
        commercial: Whether the use is commercial.
        revenue: What the user makes in a year in USD, or None if that was not said.
    """
    if licence.id == "unknown":
        return "ask", licence.summary
    verdicts = [_term(term, commercial, revenue) for term in licence.terms]
    for wanted in ("no", "ask"):
        for verdict, clause in verdicts:
            if verdict == wanted:
                # a clause of a text nobody read, or of one of several, forbids nothing for certain
                doubt = next((t.clause for t in licence.terms if t.kind in ("unverified", "one-of-several")), "")
                return ("ask" if doubt else verdict), f"{clause} {doubt if doubt != clause else ''}".strip()
    return "yes", licence.summary


def _term(term: Term, commercial: bool, revenue: float | None) -> tuple[Answer, str]:
    if term.kind in HARMLESS:
        return "yes", ""
    if term.kind == "non-commercial":
        return ("no" if commercial else "yes"), term.clause
    if term.kind == "research-only":
        return ("no" if commercial else "ask"), term.clause
    if term.kind in ("revenue-ceiling", "revenue-below") and term.limit is not None:
        if revenue is None:
            return ("ask" if commercial else "yes"), f"{term.clause} Say --revenue to know."
        beyond = revenue > term.limit if term.kind == "revenue-ceiling" else revenue >= term.limit
        return ("no" if beyond else "yes"), term.clause
    return "ask", term.clause  # a kind that is not known here, too


def find(model: str) -> Licence:
    """The licence of a registered model, a family, or what lies under a path.

    Raises:
        UnknownComponent: it is none of these.
        SdkitError: it cannot be loaded.
    """
    import sdkit

    written_as_path = os.sep in model or "/" in model or Path(model).exists()
    families = dict(_families())
    if not written_as_path and model in families:
        return families[model]
    if not written_as_path:
        try:
            return spec_of(registry().find("model", model)).licence
        except UnknownComponent:
            if registry().find_model(model) is None:
                names = [*families, *(entry.component.name for entry in registry().entries("model"))]
                raise UnknownComponent(
                    f"There is no model and no family {model!r}, and no such file; {nearest(model, names)}"
                ) from None
    path = Path(model) if written_as_path else registry().find_model(model)
    found = None if path is None else _of_path(path)
    if found is not None:
        return found
    with sdkit.load(model) as loaded:
        return loaded.spec.licence


def _of_path(path: Path) -> Licence | None:
    """The licence of what lies under a path from a header alone, if the family that knows it can say so."""
    for family in _asked():
        try:
            if path.exists() and family.probe(path):
                licence: Callable[[Path], Licence] | None = getattr(family, "licence", None)
                return licence(path) if callable(licence) else None
        except Exception:  # loading it goes through all families again, and says what is wrong
            continue
    return None


def _families() -> Iterator[tuple[str, Licence]]:
    """What model families say about licences: a method ``licences() -> {family: Licence}``, if they have one."""
    for family in _asked():
        licences = getattr(family, "licences", None)
        if callable(licences):
            found: Mapping[str, Licence] = licences()
            yield from found.items()


def _asked() -> Iterator[Any]:
    """The model families that can be asked."""
    for entry in registry().entries("model-family"):
        try:
            family = entry.component.load()
            yield family() if isinstance(family, type) else family
        except Exception:  # it cannot be asked, and `sdkit plugins check` says why
            continue
