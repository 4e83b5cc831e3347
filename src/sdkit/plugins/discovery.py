"""Finding plugins and answering for their components.

Discovery takes one plugin at a time: load, register, check for unknown hooks, collect, validate. What fails becomes
data, and the others go on. pluggy's own entry-point loader is not used: one broken import there hides every later
plugin, and a second plugin of the same name is dropped without a word.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import attrs
import pluggy
from attrs import field, frozen

from sdkit.errors import AmbiguousComponent, ParameterError, PluginError, SdkitError, UnknownComponent, nearest
from sdkit.plugins import hookspecs, spelling
from sdkit.plugins.component import NAME, Component, describe

__all__ = ["GROUP", "Candidate", "Entry", "PluginStatus", "Registry", "registry"]

GROUP = "sdkit"
"""The entry-point group plugins are found under."""

CORE = "core"
"""Name of the plugin that holds the core's own components."""


@frozen
class Candidate:
    """A plugin that was found and not yet loaded."""

    name: str
    load: Callable[[], object]
    value: str = ""
    distribution: str = ""
    version: str = ""


@frozen
class PluginStatus:
    """What became of one plugin: its components, or the reason it is left out."""

    name: str
    distribution: str
    version: str
    value: str
    components: tuple[Component, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether its components can be asked for."""
        return not self.error


@frozen
class Entry:
    """A component and the plugin it comes from."""

    plugin: str
    component: Component

    @property
    def names(self) -> tuple[str, ...]:
        """Its short name, its aliases, and what other tools call it."""
        return (self.component.name, *self.component.aliases, *(label[2] for label in self.component.known_as))

    @property
    def full_name(self) -> str:
        """``plugin:name``, which is never ambiguous."""
        return f"{self.plugin}:{self.component.name}"


@frozen(eq=False)
class Registry:
    """All plugins and components, as a value. ``discover`` makes the real one, ``of`` one for a test."""

    plugins: tuple[PluginStatus, ...]
    _manager: pluggy.PluginManager = field(repr=False, alias="manager")

    @classmethod
    def discover(cls, environ: Mapping[str, str] | None = None) -> Registry:
        """The core's components and those of every installed plugin.

        Environment: ``SDKIT_PLUGINS`` (comma-separated: only these), ``SDKIT_BLOCK_PLUGINS`` (not these),
        ``SDKIT_STRICT_PLUGINS=1`` (a broken plugin raises), ``SDKIT_TRACE_PLUGINS=1`` (what happens, on stderr).
        """
        environ = os.environ if environ is None else environ
        only, blocked = _names(environ, "SDKIT_PLUGINS"), _names(environ, "SDKIT_BLOCK_PLUGINS")
        found = [c for c in _installed() if (only is None or c.name in only) and c.name not in (blocked or ())]
        found += [_absent(name) for name in sorted((only or frozenset()) - {c.name for c in found} - {CORE})]
        return cls.from_candidates(
            found, strict=_flag(environ, "SDKIT_STRICT_PLUGINS"), trace=_flag(environ, "SDKIT_TRACE_PLUGINS")
        )

    @classmethod
    def of(cls, plugins: Mapping[str, object] | None = None, *, strict: bool = False) -> Registry:
        """A registry of the core and these plugins (name to module or object with hooks), nothing installed."""
        given = [Candidate(name, lambda value=value: value) for name, value in (plugins or {}).items()]  # type: ignore[misc]
        return cls.from_candidates(given, strict=strict)

    @classmethod
    def from_candidates(cls, candidates: Iterable[Candidate], *, strict: bool = False, trace: bool = False) -> Registry:
        """Load candidates one at a time; see the module's text for what is checked."""
        from sdkit.plugins import builtin

        waiting = [Candidate(CORE, lambda: builtin, builtin.__name__, "sdkit-core"), *candidates]
        manager = _new_manager()
        statuses = []
        for candidate in waiting:
            status = PluginStatus(candidate.name, candidate.distribution, candidate.version, candidate.value)
            namesakes = [c for c in waiting if c.name == candidate.name]
            try:
                if len(namesakes) > 1 and candidate is not waiting[0]:
                    raise PluginError(_namesakes(candidate.name, namesakes))
                plugin, components = _examine(candidate)
                status = attrs.evolve(status, components=components)
                manager.register(plugin, name=candidate.name)
            except (Exception, SystemExit) as error:
                if strict:
                    raise
                reason = str(error) if isinstance(error, SdkitError) else describe(error)
                status = attrs.evolve(status, error=reason)
            statuses.append(status)
            if trace:
                outcome = f"{len(status.components)} components" if status.ok else f"FAIL {status.error}"
                print(f"sdkit plugin {status.name} ({status.value}): {outcome}", file=sys.stderr)
        return cls(tuple(statuses), manager)

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """All components of working plugins, of one kind if ``kind`` is given, in the order of their full names."""
        found = [
            Entry(status.name, component)
            for status in self.plugins
            for component in status.components
            if status.ok and kind in (None, component.kind)
        ]
        return tuple(sorted(found, key=lambda entry: (entry.component.kind, entry.full_name)))

    def find(self, kind: str, name: str) -> Entry:
        """The component that ``name`` means: a full name, a short name, or an alias (case does not matter there).

        Raises:
            UnknownComponent: none has that name; lists the nearest.
            AmbiguousComponent: several do; lists their full names.
        """
        entries = self.entries(kind)
        for answers in (
            [e for e in entries if e.full_name == name],
            [e for e in entries if name in e.names],
            [e for e in entries if name.casefold() in (known.casefold() for known in e.names)],
        ):
            if len(answers) == 1:
                return answers[0]
            if answers:
                full = " and ".join(e.full_name for e in answers)
                raise AmbiguousComponent(f"The {kind} name {name!r} is answered by {full}; use a full name.")
        if kind == "spacing":
            self._read(kind, name)
        known = [each for e in entries for each in e.names if "(" not in each]
        broken = [s.name for s in self.plugins if not s.ok]
        note = f" (plugins that failed to load: {', '.join(broken)}; see `sdkit plugins`)" if broken else ""
        raise UnknownComponent(f"There is no {kind} {name!r}; {nearest(name, known)}{note}")

    def get(self, kind: str, name: str) -> Any:
        """The object named by a component's target: a class or a factory.

        Raises:
            UnknownComponent, AmbiguousComponent: as `find`.
            PluginError: it cannot be imported.
        """
        return self.find(kind, name).component.load()

    def make(self, kind: str, text: str) -> Any:
        """What ``text`` spells, ``name`` or ``name(parameter=value, ...)``: the component's target, called.

        Raises:
            UnknownComponent, AmbiguousComponent, PluginError: as `get`.
            ParameterError: an unknown parameter, or a value the component refuses.
        """
        try:  # an alias may itself contain parentheses
            name = self.find(kind, text).component.name
            parameters: dict[str, Any] = {}
            target = self.get(kind, text)
        except UnknownComponent:
            name, parameters = spelling.parse(text)
            target = self.get(kind, name)
        return call(f"{kind} {name!r}", target, parameters, blame=True)

    def pair(self, text: str, spacing: Any = None) -> tuple[str, Any]:
        """A scheduler and a spacing, from names that may hold both: "DPM++ 2M Karras", ``dpmpp_2m_k``.

        Other tools write both in one name. A scheduler that itself has the whole name comes first; what is no name but
        another tool's way of writing is read by components of the kind ``vocabulary``: functions ``(kind, text)`` that
        give such a pair, or None, or raise `UnknownComponent` to say why sdkit has nothing of that name.

        Args:
            text: The scheduler's name, with or without a spacing.
            spacing: What was asked for beside it, text or object; "Automatic" is A1111's default for the scheduler.

        Returns:
            The scheduler's text, and the spacing: what was given, else the text that is implied, else None.

        Raises:
            UnknownComponent, AmbiguousComponent: as `find`, about the whole name.
            ParameterError: what stands in parentheses cannot be read, or two different spacings are named.
        """
        scheduler, implied = self._split(text)
        automatic = isinstance(spacing, str) and spacing.casefold() == "automatic"
        if automatic and implied is None:
            implied = self.find("scheduler", spelling.parse(scheduler)[0]).component.automatic
        if automatic or spacing is None:
            return scheduler, implied
        if implied is not None:
            made = self.make("spacing", spacing) if isinstance(spacing, str) else spacing
            if made != self.make("spacing", implied):
                raise ParameterError(f"{text!r} names the spacing {implied}; leave {spacing!r} out.")
        return scheduler, spacing

    def _split(self, text: str) -> tuple[str, str | None]:
        if text.partition("(")[0].strip() in {
            n for e in self.entries("scheduler") for n in (e.component.name, e.full_name)
        }:
            return text, None
        found = self._read("scheduler", text)
        if found is not None:
            return found
        try:
            self.find("scheduler", text)
            return text, None
        except UnknownComponent as error:
            if "(" in text:
                self.find("scheduler", spelling.parse(text)[0])
                return text, None
            unknown = error
        for ending in sorted({name for e in self.entries("spacing") for name in e.names}, key=len, reverse=True):
            head, tail = text[: -len(ending) - 1], text[-len(ending) - 1 :]
            if head and tail[:1] in (" ", "_", "+") and tail[1:].casefold() == ending.casefold():
                try:
                    return self.find("scheduler", head).component.name, self.find("spacing", tail[1:]).component.name
                except UnknownComponent:
                    continue
        raise unknown

    def _read(self, kind: str, text: str) -> tuple[str, str | None] | None:
        answers = (entry.component.load()(kind, text) for entry in self.entries("vocabulary"))
        return next((answer for answer in answers if answer is not None), None)

    def spell(self, kind: str, value: object) -> str | None:
        """The text from which `make` makes ``value`` again, or None if no component does.

        ``value`` is an instance of a component's class: an attrs class, whose parameters are left out where they have
        their default, or a class that takes none.
        """
        target = f"{type(value).__module__}:{type(value).__qualname__}"
        for entry in self.entries(kind):
            if entry.component.target.split(":")[-1] != target.split(":")[-1]:
                continue
            if entry.component.target != target and entry.component.load() is not type(value):
                continue
            parameters = _parameters(value)
            if parameters is None:
                continue
            short = [e for e in self.entries(kind) if e.component.name == entry.component.name]
            return spelling.spell(entry.component.name if len(short) == 1 else entry.full_name, parameters)
        return None

    def find_model(self, reference: str) -> Path | None:
        """The first plugin's answer to ``sdkit_find_model``, or None.

        Raises:
            PluginError: a plugin's hook raised.
        """
        try:
            found: Path | None = self._manager.hook.sdkit_find_model(reference=reference)
        except SdkitError:
            raise
        except Exception as error:
            raise PluginError(f"A plugin failed to look for the model {reference!r}: {describe(error)}") from error
        return found


@cache
def registry() -> Registry:
    """The registry of everything installed, discovered once per process."""
    return Registry.discover()


def call(what: str, target: Callable[..., Any], parameters: Mapping[str, Any], *, blame: bool = False) -> Any:
    """``target(**parameters)``, with errors that name the parameter.

    With ``blame``, a TypeError or ValueError of the target is taken to be about the parameters.

    Raises:
        ParameterError: an unknown or missing parameter, or a value that is refused.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        known = signature.parameters
        anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        for name in parameters:
            if name not in known and not anything:
                raise ParameterError(f"The {what} has no parameter {name!r}; {nearest(name, known)}")
        missing = [
            n
            for n, p in known.items()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n not in parameters
        ]
        if missing:
            raise ParameterError(f"The {what} needs {', '.join(missing)}; write them in parentheses, name=value.")
    try:
        return target(**parameters)
    except SdkitError:
        raise
    except (TypeError, ValueError) as error:
        if not blame:
            raise
        raise ParameterError(
            f"The {what} refuses {spelling.spell('', parameters) or '()'}: {describe(error)}"
        ) from error


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _examine(candidate: Candidate) -> tuple[object, tuple[Component, ...]]:
    """Load one plugin by itself and collect its components, or raise the reason why not."""
    if not NAME.fullmatch(candidate.name):
        raise PluginError(
            f"plugin name {candidate.name!r} is not of the form lower-case letters and digits joined by single hyphens."
        )
    plugin = candidate.load()
    manager = _new_manager()
    manager.register(plugin, name=candidate.name)
    manager.check_pending()
    components: list[Component] = []
    for answer in manager.hook.sdkit_components():
        components.extend(answer)
    seen: set[tuple[str, str]] = set()
    for component in components:
        if not isinstance(component, Component):
            raise PluginError(f"sdkit_components gave {component!r}, which is not a Component.")
        if (component.kind, component.name) in seen:
            raise PluginError(f"it offers the {component.kind} {component.name!r} twice.")
        seen.add((component.kind, component.name))
    return plugin, tuple(components)


def _namesakes(name: str, candidates: list[Candidate]) -> str:
    if name == CORE:
        return f"the plugin name {name!r} is taken by sdkit itself; the plugin needs another name."
    sources = " and ".join(sorted({c.distribution or c.value or "an object" for c in candidates}))
    return f"the plugin name {name!r} is used by {sources}; uninstall one, none of them is loaded."


def _installed() -> list[Candidate]:
    from importlib.metadata import entry_points

    found: dict[tuple[str, str, str], Candidate] = {}
    for point in entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else ""
        version = point.dist.version if point.dist else ""
        # The same distribution may be visible twice on sys.path (an editable install beside its build folder).
        found.setdefault(
            (point.name, point.value, distribution),
            Candidate(point.name, point.load, point.value, distribution, version),
        )
    return [found[key] for key in sorted(found)]


def _names(environ: Mapping[str, str], variable: str) -> frozenset[str] | None:
    if variable not in environ:
        return None
    return frozenset(name.strip() for name in environ[variable].split(",") if name.strip())


def _flag(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "") not in ("", "0")


def _absent(name: str) -> Candidate:
    def load() -> object:
        raise PluginError("SDKIT_PLUGINS names it, but it is not installed, or SDKIT_BLOCK_PLUGINS names it too.")

    return Candidate(name, load)


def _parameters(value: object) -> dict[str, Any] | None:
    """What has to be written in parentheses to make ``value`` again; None if that cannot be told."""
    if not attrs.has(type(value)):
        # only a class that takes no parameters is known to be made again by its name alone
        return {} if not inspect.signature(type(value)).parameters else None
    found = {}
    for attribute in attrs.fields(cast(Any, type(value))):
        given = getattr(value, attribute.name)
        if attribute.init and given != _default(attribute, value):
            found[attribute.alias or attribute.name] = given
    return found


def _default(attribute: Any, value: object) -> object:
    default = attribute.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory(value) if default.takes_self else default.factory()
    return attribute.converter(default) if callable(attribute.converter) and default is not attrs.NOTHING else default
