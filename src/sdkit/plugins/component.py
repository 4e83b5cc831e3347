"""What a plugin offers: a name, and where the object behind it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from attrs import field, frozen

from sdkit.errors import PluginError, nearest

__all__ = ["API", "KINDS", "Component"]

API = 1
"""The version of the plugin contract this sdkit speaks."""

KINDS = frozenset(
    {
        "adapter-format",
        "command",
        "decoder",
        "denoiser",
        "encoder",
        "estimator",
        "frame-filter",
        "frame-sink",
        "frames",
        "guidance",
        "model",
        "model-family",
        "modifier",
        "noise",
        "parametrization",
        "prompt-dialect",
        "schedule",
        "scheduler",
        "spacing",
        "vocabulary",
    }
)

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LABEL = re.compile(r"([a-z0-9][a-z0-9.-]*) ([=~]) ([^#\s](?:[^#]*[^#\s])?)(?: # (.+))?")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def _aliases(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise PluginError(f"A component's aliases and labels are a tuple of names, not the text {value!r}.")
    return tuple(value)


@frozen
class Component:
    """One thing a plugin provides. The object is imported when it is first asked for.

    Attributes:
        kind: One of `KINDS`.
        name: ``[a-z0-9]+(-[a-z0-9]+)*``; in full it is known as ``plugin:name``.
        target: ``"package.module:object"``: a class or a factory.
        summary: One line for people.
        aliases: Names it is known by in other tools; any text.
        requires: What to install if importing the target fails, for example ``pip install sdkit-core[plot]``.
        api: Version of the plugin contract it was written for.
        labels: What other tools call it, each ``"tool = name"``, or ``"tool ~ name"`` where theirs is related and gives
            another result; a remark may follow: ``"diffusers ~ KDPM2DiscreteScheduler # keeps a level more"``. They
            answer as aliases do, and ``sdkit schedulers --for TOOL`` prints them.
        automatic: Of a scheduler, the spacing that A1111's schedule type "Automatic" means with it.

    Raises:
        PluginError: a field is not of that form.
    """

    kind: str
    name: str
    target: str
    summary: str = ""
    aliases: tuple[str, ...] = field(default=(), converter=_aliases)
    requires: str = ""
    api: int = API
    labels: tuple[str, ...] = field(default=(), converter=_aliases)
    automatic: str = "uniform"

    def __attrs_post_init__(self) -> None:
        # The contract's version comes first: what the other fields may hold is up to it.
        if self.api != API:
            raise PluginError(
                f"component {self.name!r} is written for plugin API {self.api!r}; this sdkit speaks {API}: "
                "install a release of the plugin, or of sdkit, that fits the other."
            )
        if self.kind not in KINDS:
            raise PluginError(
                f"component {self.name!r} has the unknown kind {self.kind!r}; {nearest(self.kind, KINDS)}"
            )
        if not NAME.fullmatch(self.name):
            raise PluginError(
                f"component name {self.name!r} is not lower-case letters and digits joined by single hyphens."
            )
        if not _TARGET.fullmatch(self.target):
            raise PluginError(f"component {self.name!r} has the target {self.target!r}, not 'package.module:object'.")
        for label in self.labels:
            if not _LABEL.fullmatch(label):
                raise PluginError(
                    f"component {self.name!r} has the label {label!r}, not 'tool = name' or 'tool ~ name'."
                )

    @property
    def known_as(self) -> tuple[tuple[str, str, str, str], ...]:
        """The labels, each as (tool, ``=`` or ``~``, name, remark)."""
        found = (_LABEL.fullmatch(label) for label in self.labels)
        return tuple((m[1], m[2], m[3], m[4] or "") for m in found if m)

    def load(self) -> Any:
        """The object named by ``target``.

        Raises:
            PluginError: it cannot be imported; says why and, if the component does, what to install.
        """
        module_name, _, path = self.target.partition(":")
        try:
            value: Any = import_module(module_name)
            for attribute in path.split("."):
                value = getattr(value, attribute)
        except Exception as error:
            hint = f"; it requires: {self.requires}" if self.requires else ""
            raise PluginError(
                f"{self.kind} {self.name!r} cannot be loaded from {self.target}: {describe(error)}{hint}"
            ) from error
        return value


def describe(error: BaseException) -> str:
    """An error as one line: its type and its text, cut where it goes on for long."""
    text = " ".join(str(error).split())
    if len(text) > 300:
        text = text[:299] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
