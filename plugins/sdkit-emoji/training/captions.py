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
from attrs import frozen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "evaluation"))

from lists import COLOURS, STYLES, new_words, words

__all__ = ["COLOURS", "HELD_OUT", "STYLES", "Asides", "article", "asides", "caption", "clean", "told"]

HELD_OUT = new_words()
VOWELS = "aeiou"
OTHERS = 0.4  # share of captions in other words than the name, where there are some
LED, MODIFIED, PLACED = 0.08, 0.12, 0.15  # shares of captions with a lead, a modifier, a place, where asides are told
LEADS = ("picture of", "drawing of", "photo of", "icon of", "emoji of", "cute", "little", "big", "cartoon", "beautiful")
PLACES = (
    "in the",
    "on the",
    "near the",
    "under a",
    "with a",
    "and a",
    "at the",
    "behind a",
    "sitting on a",
    "holding a",
)


def clean(text: str) -> str:
    """A name or tag as it is learned: lower case, plain apostrophes."""
    return text.lower().replace("’", "'").replace("“", '"').replace("”", '"')


def article(words: str) -> str:
    """``fox`` -> ``a fox``; ``octopus`` -> ``an octopus``."""
    return f"{'an' if words[:1] in VOWELS else 'a'} {words}"


def told(entry: dict[str, Any]) -> list[str]:
    """The tags that captions of a picture may hold: none with a word that is kept out."""
    return [tag for tag in map(clean, entry["tags"]) if not words(tag) & HELD_OUT]


@frozen
class Asides:
    """Words that captions hold beside what is drawn, so that the model learns to draw it all the same.

    Attributes:
        modifiers: What may stand before a name.
        things: What may stand behind it, after one of `PLACES`.
    """

    modifiers: tuple[str, ...]
    things: tuple[str, ...]

    def around(self, name: str, random: np.random.Generator) -> str:
        """A name with a lead, a modifier, a place, or mostly with none of them."""
        led, modified, placed = random.random(3)
        if modified < MODIFIED:
            name = f"{random.choice(self.modifiers)} {name}"
        if placed < PLACED:
            name = f"{name} {random.choice(PLACES)} {random.choice(self.things)}"
        if led < LED:
            lead = str(random.choice(LEADS))
            name = article(f"{lead} {article(name) if lead.endswith('of') else name}")
        return name


def asides(drawable: Sequence[str], others: Sequence[str], names: Sequence[str]) -> Asides:
    """The words that may stand beside names: none that is kept out, and as modifiers none that tells names apart.

    A "blue" before "heart" is no aside where "blue heart" is another concept.

    Args:
        drawable: Nouns of what can be drawn.
        others: Further words.
        names: All names that are trained on.
    """
    telling = set().union(*map(words, (*names, *COLOURS, *STYLES)))
    things = tuple(word for word in drawable if not words(word) & HELD_OUT)
    return Asides(tuple(word for word in (*things, *others) if not words(word) & (HELD_OUT | telling)), things)


def caption(
    entry: dict[str, Any],
    random: np.random.Generator,
    colour: str | None = None,
    others: Sequence[tuple[str, float]] = (),
    beside: Asides | None = None,
) -> str:
    """One caption of a picture: its name (seldom a tag as well, or words beside it), its background, mostly its style.

    Args:
        entry: Name, tags and style of the picture, as prepare.py writes them.
        random: Draws the form.
        colour: Name of the background; None for white, of which nothing is said.
        others: Other words for it and how likely they mean it; one of them takes the name's place now and then.
        beside: What may stand beside the name.
    """
    name = called = clean(entry["label"])
    if others and random.random() < OTHERS:
        shares = np.array([share for _, share in others])
        name = called = others[random.choice(len(others), p=shares / shares.sum())][0]
    if beside is not None:
        name = called = beside.around(name, random)
    if random.random() < 0.3 and not name.startswith(("a ", "an ")):
        name = article(name)
    tags = told(entry)
    if tags and random.random() < 0.12:
        name = f"{name}, {random.choice(tags)}"
    if colour is not None:
        name = called
        if random.random() < 0.6 and not name.startswith(("a ", "an ")):
            name = article(name)
        name = f"{name} on {article(colour)} background"
    style = entry["style"]
    draw = random.random()
    if draw < 0.65:
        return f"{name}, {style} style"
    if draw < 0.75:
        return f"{style} style, {name}"
    if draw < 0.82:
        return f"{name} in {style} style"
    if draw < 0.88:
        return f"{style} style {name}"
    return name
