"""What sdkit reads at discovery: the dialects, and the modifier that applies one. Imports no torch."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component("prompt-dialect", "a1111", "sdkit_prompts.a1111:A1111", "weights, schedules, AND, BREAK, adapters"),
        Component("prompt-dialect", "compel", "sdkit_prompts.compel:Compel", "weights by + and -, blend"),
        Component("prompt-dialect", "plain", "sdkit_prompts.plain:Plain", "text and nothing else"),
        Component("modifier", "prompts", "sdkit_prompts.modifier:Prompts", "read prompts in a dialect"),
    ]
