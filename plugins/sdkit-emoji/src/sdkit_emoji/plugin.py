"""What sdkit reads at discovery: a model, its animations, and their noise. Imports no torch."""

from __future__ import annotations

from sdkit import Component, hookimpl


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            "model", "emoji", "sdkit_emoji.front:emoji", "Emoji-like pictures, 128 x 128, from a prompt and a style"
        ),
        Component(
            "frames",
            "emoji-motion",
            "sdkit_emoji.clips:EmojiMotion",
            "closed loops from a prompt, by the emoji model and a motion module's file",
        ),
        Component(
            "noise", "circle", "sdkit_emoji.motion:Circle", "for the frames of closed loops: neighbours begin alike"
        ),
    ]
