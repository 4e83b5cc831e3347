"""What sdkit reads at discovery: one model. Imports no torch."""

from __future__ import annotations

from sdkit import Component, hookimpl


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            "model", "emoji", "sdkit_emoji.front:emoji", "Emoji-like pictures, 128 x 128, from a prompt and a style"
        )
    ]
