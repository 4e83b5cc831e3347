"""``sdkit plugins``, ``sdkit schedulers`` and ``sdkit models``: what is installed."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click

from sdkit.cli.registered import spec_of
from sdkit.errors import UnknownComponent, nearest
from sdkit.plugins import Entry, PluginStatus, registry
from sdkit.plugins.component import describe

if TYPE_CHECKING:
    from sdkit.model import ModelSpec

__all__ = ["models", "names_for", "names_text", "plugins", "schedulers"]

NAMED = ("scheduler", "spacing")
LEGEND = "= the same method, though noise may be drawn otherwise    ~ related, gives another result"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns, two spaces apart; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """Which plugins are installed, whether they work, and what they provide."""
    if context.invoked_subcommand is not None:
        return
    statuses = registry().plugins
    if as_json:
        click.echo(json.dumps([attrs.asdict(status) | {"ok": status.ok} for status in statuses], indent=2))
        return
    rows = [("plugin", "", "version", "provides")]
    rows += [(s.name, "ok" if s.ok else "FAIL", s.version or "-", _provides(s)) for s in statuses]
    click.echo(table(rows))


def _provides(status: PluginStatus) -> str:
    if not status.ok:
        return status.error
    kinds: dict[str, list[str]] = {}
    for component in status.components:
        kinds.setdefault(component.kind, []).append(component.name)
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items())) or "hooks only"


@plugins.command()
def check() -> None:
    """Import everything every plugin provides; exit code 1 if anything fails."""
    failures = [(s.name, s.error) for s in registry().plugins if not s.ok]
    entries = registry().entries()
    for entry in entries:
        try:
            entry.component.load()
        except Exception as error:
            failures.append((entry.full_name, str(error) or describe(error)))
    for name, reason in failures:
        click.echo(f"FAIL {name}: {reason}")
    good = len(entries) - sum(1 for name, _ in failures if ":" in name)
    click.echo(f"{good} components can be used, {len(failures)} failures")
    if failures:
        raise SystemExit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.option(
    "--for", "tool", metavar="TOOL", help="What TOOL calls them, and the spacings: a1111, comfyui, diffusers, ..."
)
def schedulers(as_json: bool, tool: str | None) -> None:
    """Which schedulers are installed, what they promise, and the names other tools have for them."""
    if tool is not None:
        names = names_for(tool)
        click.echo(json.dumps(names, indent=2) if as_json else names_text(names))
        return
    found = [(entry, *_traits(entry)) for entry in registry().entries("scheduler")]
    if as_json:
        rows = [
            {
                "name": entry.component.name,
                "plugin": entry.plugin,
                "summary": entry.component.summary,
                "aliases": entry.component.aliases,
                "labels": entry.component.labels,
                "traits": attrs.asdict(traits) if traits is not None else None,
                "error": error,
            }
            for entry, traits, error in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [("scheduler", "plugin", "order", "noise", "evaluations", "also known as")]
    for entry, traits, error in found:
        aliases = ", ".join(dict.fromkeys(entry.names[1:]))
        if traits is None:
            lines.append((entry.component.name, entry.plugin, "-", "-", "-", error))
            continue
        counted = "by grid" if traits.evaluations is None else str(traits.evaluations)
        evaluations = "adaptive" if traits.adaptive else counted
        noise = "yes" if traits.stochastic else "no"
        lines.append((entry.component.name, entry.plugin, str(traits.order), noise, evaluations, aliases))
    click.echo(table(lines))


def names_for(tool: str) -> dict[str, Any]:
    """What a tool calls every scheduler and spacing.

    Returns:
        ``tool``, and for ``schedulers`` and ``spacings`` a list of ``name``, ``plugin``, ``labels`` (each with
        ``name``, ``fidelity`` and ``remark``; none if the tool has no such thing) and, of schedulers, ``automatic``.

    Raises:
        UnknownComponent: nothing is labelled with that tool.
    """
    known = {label[0] for kind in NAMED for entry in registry().entries(kind) for label in entry.component.known_as}
    if tool not in known:
        raise UnknownComponent(f"There are no names for the tool {tool!r}; {nearest(tool, known)}")
    return {"tool": tool} | {f"{kind}s": [_named(entry, tool) for entry in registry().entries(kind)] for kind in NAMED}


def _named(entry: Entry, tool: str) -> dict[str, Any]:
    component = entry.component
    labels = [
        {"name": name, "fidelity": fidelity, "remark": remark}
        for of, fidelity, name, remark in component.known_as
        if of == tool
    ]
    automatic = {"automatic": component.automatic} if component.kind == "scheduler" else {}
    return {"name": component.name, "plugin": entry.plugin, "labels": labels} | automatic


def names_text(names: dict[str, Any]) -> str:
    """The tables of `names_for` as text."""
    parts = []
    for kind in NAMED:
        rows, without = names[f"{kind}s"], []
        lines = [(kind, "", names["tool"], "remark")]
        for row in rows:
            for label in row["labels"]:
                lines.append((row["name"], label["fidelity"], label["name"], _remark(row, label, names["tool"])))
            if not row["labels"]:
                without.append(row["name"])
        parts.append(table(lines))
        if without:
            text = f"without a name there: {', '.join(without)}"
            parts.append(textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False))
    return "\n\n".join([*parts, LEGEND])


def _remark(row: dict[str, Any], label: dict[str, str], tool: str) -> str:
    automatic = f"Automatic: {row['automatic']}" if tool == "a1111" and "automatic" in row else ""
    return ", ".join(text for text in (automatic, label["remark"]) if text)


def _traits(entry: Entry) -> tuple[Any, str]:
    try:
        return registry().make("scheduler", entry.full_name).traits, ""
    except Exception as error:  # one broken scheduler must not hide the others
        return None, str(error) or describe(error)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def models(as_json: bool) -> None:
    """Which models can be loaded by name, and under which licence."""
    found: list[tuple[Entry, ModelSpec | None, str]] = []
    for entry in registry().entries("model"):
        try:
            found.append((entry, spec_of(entry), ""))
        except Exception as error:  # one broken model must not hide the others
            found.append((entry, None, str(error) or describe(error)))
    if as_json:
        rows = [
            {"name": entry.component.name, "plugin": entry.plugin, "spec": spec and attrs.asdict(spec), "error": reason}
            for entry, spec, reason in found
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for entry, spec, reason in found:
        click.echo(f"{entry.component.name} ({entry.full_name}): {entry.component.summary}")
        if spec is None:
            click.echo(f"  FAIL {reason}")
            continue
        width, height = spec.latent.size
        guidance = "" if spec.guidance is None else f", guidance {spec.guidance:g}"
        click.echo(f"  {width}x{height} pixels, {spec.steps} steps of {spec.scheduler} on {spec.spacing}{guidance}")
        click.echo(f"  licence: {spec.licence.name}. {spec.licence.summary}".rstrip())
        for duty in spec.licence.duties:
            click.echo(f"    duty: {duty}")
        for line in spec.licence.attribution:
            click.echo(f"    by: {line}")
        if spec.knows:
            click.echo(click.wrap_text(f"knows {', '.join(spec.knows)}", 100, "  ", "    "))
    if not found:
        click.echo("No model is registered; load one from a folder or a .safetensors file.")
