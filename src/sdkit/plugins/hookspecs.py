"""The hooks a plugin may implement. There are two; everything else is a kind of component."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pluggy

from sdkit.plugins.component import Component

__all__ = ["PROJECT", "hookimpl", "sdkit_components", "sdkit_find_model"]

PROJECT = "sdkit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of that name."""


@hookspec
def sdkit_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """The components this plugin provides. Called once, at discovery; must not import torch."""


@hookspec(firstresult=True)
def sdkit_find_model(reference: str) -> Path | None:
    """The file or folder that ``reference`` means to this plugin, or None if it means nothing to it.

    Asked when a model's reference is neither a registered name nor an existing path.
    """
