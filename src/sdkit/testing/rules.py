"""Rules: what every part of a kind has to satisfy, each with its reason and what to look for when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen

__all__ = ["NonConformance", "Outcome", "Rule", "Skip", "catalogue", "global_state_watched", "rule", "run"]


class NonConformance(AssertionError):
    """A part breaks a rule; the message says how."""


class Skip(Exception):
    """A rule says nothing about this part, by what the part itself declares."""


@frozen
class Rule:
    """One numbered rule.

    Attributes:
        subject: ``"scheduler"``, ``"spacing"``, ...: the kind of component it is about.
        number: Its place in the catalogue of that subject, from 1.
        name: Name of its check without ``check_``.
        text: What must hold.
        why: What goes wrong for people if it does not.
        hint: What to look for if it fails.
        check: ``check(part)``, or ``check(part, case=...)`` for a rule about all cases of a strategy.
        cases: Makes the hypothesis strategy of those cases, or None.
    """

    subject: str
    number: int
    name: str
    text: str
    why: str
    hint: str
    check: Callable[..., object]
    cases: Callable[[], Any] | None

    @property
    def id(self) -> str:
        """Letter of the subject and number: ``S3``, ``G1``."""
        return f"{_LETTERS[self.subject]}{self.number}"


_LETTERS = {
    "scheduler": "S",
    "spacing": "G",
    "schedule": "N",
    "parametrization": "P",
    "decoder": "D",
    "noise": "W",
    "adapter": "A",
    "frames": "F",
    "frame_filter": "L",
    "frame_sink": "K",
    "plugin": "X",
}
_RULES: dict[str, list[Rule]] = {subject: [] for subject in _LETTERS}


def rule(
    subject: str, *, text: str, why: str, hint: str, cases: Callable[[], Any] | None = None
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Enter a ``check_*`` function in the catalogue of its subject, in the order of the source."""

    def enter(check: Callable[..., object]) -> Callable[..., object]:
        rules = _RULES[subject]
        name = check.__name__.removeprefix("check_").removeprefix(f"{subject}_")
        rules.append(Rule(subject, len(rules) + 1, name, text, why, hint, check, cases))
        return check

    return enter


def catalogue(subject: str | None = None) -> tuple[Rule, ...]:
    """The rules of one subject, or of all."""
    subjects = [subject] if subject else list(_RULES)
    return tuple(entry for name in subjects for entry in _RULES[name])


@frozen
class Outcome:
    """What became of one rule on one part.

    Attributes:
        rule: The rule.
        state: ``"pass"``, ``"fail"`` or ``"skip"``.
        detail: The figure measured, why it was skipped, or how it failed.
        seconds: How long it took.
    """

    rule: Rule
    state: str
    detail: str
    seconds: float


def run(part: Any, subject: str, *, examples: int = 25) -> Iterator[Outcome]:
    """Try every rule of a subject on a part, one outcome at a time; nothing is raised."""
    for entry in catalogue(subject):
        began = time.perf_counter()
        try:
            detail, state = apply(entry, part, examples=examples), "pass"
        except Skip as reason:
            detail, state = str(reason), "skip"
        except Exception as error:  # a part under test may fail in any way; that is the outcome
            words = " ".join(str(error).split())
            detail, state = words if isinstance(error, NonConformance) else f"{type(error).__name__}: {words}", "fail"
        yield Outcome(entry, state, str(detail or ""), time.perf_counter() - began)


def apply(entry: Rule, part: Any, *, examples: int = 25) -> object:
    """Try one rule; a rule about all cases is tried on ``examples`` of them, always the same ones.

    Raises:
        NonConformance: the part breaks the rule (or whatever the part itself raises).
        Skip: the rule says nothing about this part.
    """
    if entry.cases is None:
        return entry.check(part)
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings

    skipped: list[Skip] = []
    tried = 0

    @settings(
        derandomize=True,
        deadline=None,
        max_examples=examples,
        database=None,
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,  # several at once come as a group that says nothing
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(entry.cases())
    def body(case: Any) -> None:
        nonlocal tried
        try:
            entry.check(part, case=case)
            tried += 1
        except Skip as reason:
            skipped.append(reason)

    body()
    if skipped and not tried:
        raise skipped[0]
    return ""


@contextmanager
def global_state_watched() -> Iterator[None]:
    """A scope in which torch's, numpy's and Python's global random states must stay as they are."""
    import random

    import numpy as np
    import torch

    def look() -> tuple[bytes, bytes, int, object]:
        words = np.random.get_state(legacy=False)["state"]
        return torch.get_rng_state().numpy().tobytes(), words["key"].tobytes(), int(words["pos"]), random.getstate()

    before = look()
    yield
    if look() != before:
        raise NonConformance("a global random state was drawn from or changed.")
