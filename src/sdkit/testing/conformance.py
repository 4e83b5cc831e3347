"""Test classes that try every rule, one test method each.

    class TestMine(SchedulerConformance):
        scheduler = Mine()

Methods are made per class: hypothesis refuses one ``@given`` function shared by several. A rule is left out only with
``xfail = {"name": "reason"}``, checked when the class is made; skips come from what the part declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from sdkit.testing.rules import Rule, Skip, apply, catalogue

__all__ = [
    "AdapterConformance",
    "DecoderConformance",
    "NoiseConformance",
    "ParametrizationConformance",
    "PluginConformance",
    "ScheduleConformance",
    "SchedulerConformance",
    "SpacingConformance",
]


class _Conformance:
    """Makes the test methods of a subclass that names its part."""

    subject: ClassVar[str] = ""
    xfail: ClassVar[Mapping[str, str]] = {}
    examples: ClassVar[int] = 25

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.subject not in cls.__dict__ and not hasattr(cls, cls.subject):
            return  # an abstract one
        rules = {entry.name: entry for entry in catalogue(cls.subject)}
        for name, reason in cls.xfail.items():
            if name not in rules:
                raise TypeError(f"{cls.__name__}.xfail names no rule {name!r}; rules are {', '.join(rules)}")
            if not isinstance(reason, str) or not reason.strip():
                raise TypeError(f"{cls.__name__}.xfail[{name!r}] needs a reason")
        for entry in rules.values():
            setattr(cls, f"test_{entry.id.lower()}_{entry.name}", _method(entry, cls.xfail.get(entry.name)))

    def around(self) -> AbstractContextManager[object]:
        """What each rule is tried in."""
        return nullcontext()


def _method(entry: Rule, reason: str | None) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        import pytest

        part = getattr(type(self), entry.subject)
        try:
            with self.around():
                apply(entry, part, examples=self.examples)
        except Skip as skip:
            pytest.skip(str(skip))

    test.__doc__ = f"{entry.id}: {entry.text}"
    if reason is not None:
        import pytest

        return pytest.mark.xfail(reason=reason, strict=True)(test)  # type: ignore[no-any-return]
    return test


class SchedulerConformance(_Conformance):
    """Every rule for schedulers; a subclass sets ``scheduler``."""

    subject = "scheduler"


class SpacingConformance(_Conformance):
    """Every rule for spacings; a subclass sets ``spacing``."""

    subject = "spacing"


class ScheduleConformance(_Conformance):
    """Every rule for noise schedules; a subclass sets ``schedule``."""

    subject = "schedule"


class ParametrizationConformance(_Conformance):
    """Every rule for parametrizations; a subclass sets ``parametrization``."""

    subject = "parametrization"


class DecoderConformance(_Conformance):
    """Every rule for decoders; a subclass sets ``decoder``."""

    subject = "decoder"


class NoiseConformance(_Conformance):
    """Every rule for noise; a subclass sets ``noise`` to what makes a run's noise from its seeds and levels."""

    subject = "noise"


class AdapterConformance(_Conformance):
    """Every rule for adapters; a subclass sets ``adapter`` to an `Adaptation`."""

    subject = "adapter"


class PluginConformance(_Conformance):
    """Every rule for plugins, on one component; a subclass sets ``plugin`` to a registry entry."""

    subject = "plugin"
