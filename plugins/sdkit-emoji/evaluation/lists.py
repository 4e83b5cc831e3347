"""The lists of prompts in this folder, read and checked. Needs nothing but Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "COLOURS",
    "COMMON",
    "HERE",
    "STYLES",
    "Prompt",
    "backgrounds",
    "concepts",
    "labels",
    "longer",
    "new_words",
    "short",
    "synonyms",
    "words",
]

HERE = Path(__file__).resolve().parent
STYLES = ("3d", "flat fluent", "flat twitter", "noto")
COMMON = frozenset({"face"})
"""Words of a synonym prompt that say nothing by themselves; captions may hold them."""


COLOURS = {
    name: tuple(value / 255 for value in rgb)
    for name, rgb in {
        "red": (214, 40, 40),
        "orange": (247, 140, 32),
        "yellow": (250, 208, 44),
        "lime": (168, 216, 60),
        "green": (46, 155, 70),
        "teal": (20, 140, 140),
        "sky blue": (130, 200, 240),
        "blue": (40, 100, 220),
        "navy": (25, 35, 95),
        "purple": (120, 60, 170),
        "pink": (248, 160, 190),
        "brown": (125, 80, 45),
        "beige": (232, 216, 184),
        "gray": (140, 140, 140),
        "black": (20, 20, 20),
        "white": (255, 255, 255),
    }.items()
}
"""Names that a background may be given by measuring it: sRGB in [0, 1], as training means them."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a list.

    Attributes:
        text: What the model is given.
        labels: Concepts that are right answers, the first one the nearest.
        style: The style asked for, or empty.
        colour: Name of the background asked for, or empty.
    """

    text: str
    labels: tuple[str, ...]
    style: str
    colour: str = ""


def _lines(name: str) -> list[str]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _style(text: str, line: str) -> str:
    named = [style for style in STYLES if text.endswith(f", {style} style")]
    if len(named) != 1:
        raise ValueError(
            f"A prompt ends in ', STYLE style' with one of {', '.join(STYLES)}; this line does not: {line!r}."
        )
    return named[0]


def _parts(line: str, count: int) -> list[str]:
    parts = [part.strip() for part in line.split("=")]
    if len(parts) != count or not all(parts):
        raise ValueError(f"A line has {count} parts with '=' between them; this one does not: {line!r}.")
    return parts


def concepts() -> list[Prompt]:
    """``concepts.txt``: what the model was taught, in the words it was taught with."""
    found = []
    for line in _lines("concepts.txt"):
        style = _style(line, line)
        found.append(Prompt(line, (line.removesuffix(f", {style} style"),), style))
    return found


def labels() -> list[str]:
    """What ``concepts.txt`` asks for, in order: what the judge is to be asked about, see the README."""
    return sorted({prompt.labels[0] for prompt in concepts()})


def _told(name: str) -> list[Prompt]:
    found = []
    for line in _lines(name):
        text, right = _parts(line, 2)
        found.append(Prompt(text, tuple(label.strip() for label in right.split(";")), _style(text, line)))
    return found


def synonyms() -> list[Prompt]:
    """``synonyms.txt``: other words for what the model was taught."""
    return _told("synonyms.txt")


def longer() -> list[Prompt]:
    """``longer.txt``: what the model was taught among words that it was not."""
    return _told("longer.txt")


def short() -> list[Prompt]:
    """``short.txt``: prompts as people type them first, which name no style."""
    found = []
    for line in _lines("short.txt"):
        text, right = _parts(line, 2)
        found.append(Prompt(text, tuple(label.strip() for label in right.split(";")), ""))
    return found


def backgrounds() -> list[Prompt]:
    """``backgrounds.txt``: a concept on a background of a named colour."""
    found = []
    for line in _lines("backgrounds.txt"):
        text, label, colour = _parts(line, 3)
        found.append(Prompt(text, (label,), _style(text, line), colour))
    return found


def words(text: str) -> set[str]:
    """The words of a text in lower case; hyphens and apostrophes hold a word together, and its parts count as well."""
    whole = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text.lower().replace("’", "'"))
    return {*whole, *(part for word in whole for part in re.split("[-']", word))}


def new_words() -> set[str]:
    """The words that training leaves out of every caption: those of the synonym prompts, without style and `COMMON`."""
    found: set[str] = set()
    for prompt in synonyms():
        found |= words(prompt.text.removesuffix(f", {prompt.style} style"))
    return found - COMMON
