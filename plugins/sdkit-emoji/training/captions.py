"""How a picture is described in training: the forms that prompts have.

What training and evaluation must agree on stands once, in the evaluation's lists: the named backgrounds, and the words
that no caption may hold, so that prompts in other words than the captions' can be asked for afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "evaluation"))

from lists import COLOURS, STYLES, new_words, words

__all__ = ["COLOURS", "HELD_OUT", "STYLES", "article", "caption", "clean", "told"]

HELD_OUT = new_words()
VOWELS = "aeiou"
OTHERS = 0.4  # share of captions in other words than the name, where there are some


def clean(text: str) -> str:
    """A name or tag as it is learned: lower case, plain apostrophes."""
    return text.lower().replace("’", "'").replace("“", '"').replace("”", '"')


def article(words: str) -> str:
    """``fox`` -> ``a fox``; ``octopus`` -> ``an octopus``."""
    return f"{'an' if words[:1] in VOWELS else 'a'} {words}"


def told(entry: dict[str, Any]) -> list[str]:
    """The tags that captions of a picture may hold: none with a word that is kept out."""
    return [tag for tag in map(clean, entry["tags"]) if not words(tag) & HELD_OUT]


def caption(
    entry: dict[str, Any],
    random: np.random.Generator,
    colour: str | None = None,
    others: Sequence[tuple[str, float]] = (),
) -> str:
    """One caption of a picture: its name (or seldom a tag as well), its background, mostly its style.

    Args:
        entry: Name, tags and style of the picture, as prepare.py writes them.
        random: Draws the form.
        colour: Name of the background; None for white, of which nothing is said.
        others: Other words for it and how likely they mean it; one of them takes the name's place now and then.
    """
    name = called = clean(entry["label"])
    if others and random.random() < OTHERS:
        shares = np.array([share for _, share in others])
        name = called = others[random.choice(len(others), p=shares / shares.sum())][0]
    if random.random() < 0.3:
        name = article(name)
    tags = told(entry)
    if tags and random.random() < 0.12:
        name = f"{name}, {random.choice(tags)}"
    if colour is not None:
        name = called
        name = f"{article(name) if random.random() < 0.6 else name} on {article(colour)} background"
    style = entry["style"]
    draw = random.random()
    if draw < 0.7:
        return f"{name}, {style} style"
    if draw < 0.82:
        return f"{style} style, {name}"
    if draw < 0.9:
        return f"{name} in {style} style"
    if draw < 0.96:
        return f"{style} style {name}"
    return name
