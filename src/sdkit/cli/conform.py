"""``sdkit conform``: every rule of the conformance kit, on what is installed."""

from __future__ import annotations

import html
import inspect
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sdkit.errors import InvalidRequest, ParameterError, PluginError, SdkitError, UnknownComponent
from sdkit.plugins import Entry, registry

if TYPE_CHECKING:
    from sdkit.testing import Outcome

__all__ = ["conform"]

SUBJECTS = (
    "scheduler",
    "spacing",
    "schedule",
    "parametrization",
    "decoder",
    "noise",
    "frames",
    "frame-filter",
    "frame-sink",
)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME|PLUGIN:]...")
@click.option("--kind", type=click.Choice((*SUBJECTS, "plugin")), help="Only rules for this kind.")
@click.option("--rules", is_flag=True, help="Print the rules themselves: what must hold, why, what to look for.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.option("--html", "html_file", metavar="FILE", help="Also write the table as a page.")
@click.option("--examples", type=click.IntRange(1, 10_000), default=25, show_default=True, help="Cases per rule.")
def conform(
    names: tuple[str, ...], kind: str | None, rules: bool, as_json: bool, html_file: str | None, examples: int
) -> None:
    """Try the rules on schedulers, spacings, schedules, parametrizations, decoders, noise, frames and plugins.

    Generators of frames are tried with a fake model of the kit, filters and sinks with frames of its own. NAME may
    carry parameters ("ddim(eta=0.5)"); PLUGIN: means all that plugin provides, whatever its kind, and how it is
    packaged; without either, everything installed that needs no parameters is tried. Exit code 1 if a rule is broken.
    """
    try:
        from sdkit import testing
    except ImportError as error:
        raise PluginError(f"The kit needs hypothesis: pip install 'sdkit-core[testing]' ({error}).") from error
    if rules:
        click.echo("\n\n".join(_rule_text(rule) for rule in testing.catalogue(kind and _subject(kind))))
        return
    rows: list[tuple[str, str, Outcome]] = []
    for subject, name, part in _parts(names, kind):
        if isinstance(part, Exception):
            made = testing.Rule(_subject(subject), 0, "made", "It can be made.", "", "", repr, None)
            outcomes = [testing.Outcome(made, "fail", f"{type(part).__name__}: {' '.join(str(part).split())}", 0.0)]
        else:
            outcomes = list(testing.run(part, _subject(subject), examples=examples))
        rows += [(subject, name, outcome) for outcome in outcomes]
        if not as_json:
            _report(subject, name, outcomes)
    broken = sum(outcome.state == "fail" for *_, outcome in rows)
    if as_json:
        click.echo(json.dumps([_row(*row) for row in rows], indent=2))
    else:
        click.echo(f"{len(rows)} rules tried, {broken} broken")
    if html_file:
        from sdkit.files import write_whole

        write_whole(html_file, lambda file: file.write(_page(rows).encode()))
    if broken:
        raise SystemExit(1)


def _subject(kind: str) -> str:
    """What the kit calls a kind of component."""
    return kind.replace("-", "_")


def _parts(names: tuple[str, ...], kind: str | None) -> Iterator[tuple[str, str, Any]]:
    """(kind, name, object) of everything asked for."""
    subjects = [kind] if kind else list(SUBJECTS)
    for name in names or ("",):
        if name == "" or name.endswith(":"):
            entries = [e for e in registry().entries() if not name or e.plugin == name[:-1]]
            if not entries:
                raise InvalidRequest(f"No plugin {name!r} provides anything the rules are about; see `sdkit plugins`.")
            for entry in entries:
                part = _made(entry) if entry.component.kind in subjects else None
                if part is not None:
                    yield entry.component.kind, entry.full_name, part
            yield from (("plugin", e.full_name, e) for e in entries if kind in (None, "plugin"))
            continue
        if kind == "plugin":
            yield from (("plugin", e.full_name, e) for e in _entries(name))
            continue
        yield from _named(subjects, name)


def _entries(name: str) -> list[Entry]:
    found = [e for e in registry().entries() if name in (e.full_name, *e.names)]
    if not found:
        raise UnknownComponent(f"There is no component {name!r} of any kind; see `sdkit plugins`.")
    return found


def _made(entry: Entry) -> Any:
    """The component with its default parameters; None for one that needs some; the error if it cannot be made."""
    try:
        target = entry.component.load()
        needed = [
            p
            for p in inspect.signature(target).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        return None if needed else registry().make(entry.component.kind, entry.full_name)
    except ParameterError:  # it needs one of several, as resizing needs a width or a height
        return None
    except Exception as error:  # one component that cannot be made is an outcome, and the others are tried
        return error


def _named(subjects: list[str], name: str) -> list[tuple[str, str, Any]]:
    """What answers to the name; a name of two kinds means the one that takes the parameters."""
    found, refused = [], []
    for subject in subjects:
        try:
            found.append((subject, name, registry().make(subject, name)))
        except UnknownComponent:
            continue
        except SdkitError as error:
            refused.append(error)
    if not found:
        if refused:
            raise refused[0]
        registry().make(subjects[0], name)  # says what is near
    return found


def _report(subject: str, name: str, outcomes: list[Outcome]) -> None:
    marks = {"pass": ".", "skip": "-", "fail": "F"}
    seconds = sum(outcome.seconds for outcome in outcomes)
    figures = [
        o.detail for o in outcomes if o.state == "pass" and o.rule.name in ("order", "distribution") and o.detail
    ]
    line = "".join(marks[outcome.state] for outcome in outcomes)
    click.echo(f"{subject:15} {name:32} {line:18} {seconds:5.1f} s  {'; '.join(figures)}".rstrip())
    for outcome in outcomes:
        if outcome.state == "fail":
            click.echo(f"    {outcome.rule.id} {outcome.rule.name}: {outcome.detail}")
            click.echo(f"        {outcome.rule.hint}")


def _rule_text(rule: Any) -> str:
    return f"{rule.id} {rule.name}\n  Rule: {rule.text}\n  Why: {rule.why}\n  If it fails: {rule.hint}"


def _row(subject: str, name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": subject,
        "name": name,
        "rule": outcome.rule.id,
        "rule_name": outcome.rule.name,
        "state": outcome.state,
        "detail": outcome.detail,
        "seconds": round(outcome.seconds, 3),
    }


def _page(rows: list[tuple[str, str, Outcome]]) -> str:
    """A page of its own, with one row per component and rule."""
    colours = {"pass": "#2a7d2a", "skip": "#777", "fail": "#b00020"}
    cells = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{outcome.rule.id}</td><td>{html.escape(outcome.rule.text)}</td>"
        f'<td style="color:{colours[outcome.state]}">{outcome.state}</td><td>{html.escape(outcome.detail)}</td></tr>'
        for _, name, outcome in rows
    )
    style = "body{font:14px sans-serif;margin:2em}td,th{padding:2px 10px;text-align:left;vertical-align:top}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>sdkit conform</title><style>{style}</style>"
        f"<h1>Conformance</h1><table>\n"
        f"<tr><th>part<th>rule<th>what must hold<th>outcome<th>figure or reason</tr>\n{cells}\n"
        "</table></html>\n"
    )
