"""How a picture is described in training: the forms that prompts have."""

from __future__ import annotations

from typing import Any

import numpy as np

STYLES = ("3d", "flat fluent", "flat twitter", "noto")
VOWELS = "aeiou"


def clean(text: str) -> str:
    """A name or tag as it is learned: lower case, plain apostrophes."""
    return text.lower().replace("’", "'").replace("“", '"').replace("”", '"')


def article(words: str) -> str:
    """``fox`` -> ``a fox``; ``octopus`` -> ``an octopus``."""
    return f"{'an' if words[:1] in VOWELS else 'a'} {words}"


def caption(entry: dict[str, Any], random: np.random.Generator) -> str:
    """One caption of a picture: its name (or seldom a tag as well), mostly with its style."""
    name = clean(entry["label"])
    if random.random() < 0.3:
        name = article(name)
    if entry["tags"] and random.random() < 0.1:
        name = f"{name}, {clean(random.choice(entry['tags']))}"
    style = entry["style"]
    draw = random.random()
    if draw < 0.65:
        return f"{name}, {style} style"
    if draw < 0.75:
        return f"{style} style, {name}"
    if draw < 0.82:
        return f"{name} in {style} style"
    if draw < 0.88:
        return f"{style} style {clean(entry['label'])}"
    return name
