"""Words that the model was not taught, read as the concept nearest to them: "a puppy" as "a dog".

The table is made by ``training/dictionary.py`` of MiniLM's embeddings and WordNet, for all their words alike. A prompt
that names a concept stays as it is. Else the last word of its first phrase is looked up, for that is mostly what is to
be drawn ("a golden retriever puppy in the snow"). If that word is "face", the one before it says how the face looks,
and is looked up in a table of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from attrs import field, frozen

__all__ = ["Reading", "Readings", "parse"]

WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
STYLED = re.compile(r"(?:\bflat )?[\w-]+ style\b", re.IGNORECASE)
ENDS = frozenset(["on", "in", "at", "with", "over", "under", "near", "beside", "behind", "before", "for", "and", "or"])
"""Words at which the first phrase ends."""


@frozen
class Reading:
    """A prompt as it is read.

    Attributes:
        text: What is encoded.
        word: The word that was replaced, or empty.
        concept: What stands in its place, or empty.
    """

    text: str
    word: str = ""
    concept: str = ""


@frozen
class Readings:
    """The table.

    Attributes:
        concepts: Names of all concepts, in lower case.
        nouns: Word -> concept.
        faces: Word -> concept, where "face" follows.
    """

    concepts: tuple[str, ...] = field(default=(), repr=False)
    nouns: Mapping[str, str] = field(factory=dict, repr=False)
    faces: Mapping[str, str] = field(factory=dict, repr=False)
    _named: re.Pattern[str] = field(init=False, repr=False, eq=False)

    @_named.default
    def _any_concept(self) -> re.Pattern[str]:
        names = "|".join(re.escape(name) for name in sorted(self.concepts, key=len, reverse=True))
        return re.compile(rf"\b(?:{names})(?:e?s)?\b" if names else r"(?!)")

    def of(self, prompt: str, knows: Callable[[str], bool]) -> Reading:
        """A prompt as it is read.

        Args:
            prompt: As it was written.
            knows: Whether a word, in lower case, was taught.
        """
        styles = [match.span() for match in STYLED.finditer(prompt)]
        phrase: list[re.Match[str]] = []
        for match in WORD.finditer(prompt):
            if any(start <= match.start() < end for start, end in styles):
                continue
            between = prompt[phrase[-1].end() : match.start()] if phrase else ""
            if phrase and ("," in between or match[0].lower() in ENDS):
                break
            phrase.append(match)
        if not phrase or self._named.search(prompt.lower()):
            return Reading(prompt)
        face = len(phrase) > 1 and phrase[-1][0].lower() == "face"
        table, match = (self.faces, phrase[-2]) if face else (self.nouns, phrase[-1])
        word = match[0].lower().replace("’", "'")
        concept = next((table[form] for form in (word, word.removesuffix("s")) if form in table), None)
        if concept is None or knows(word):
            return Reading(prompt)
        return Reading(prompt[: match.start()] + concept + prompt[phrase[-1].end() :], word, concept)


def parse(data: bytes, concepts: tuple[str, ...]) -> Readings:
    """The table of ``readings.json``: ``{"nouns": {concept: [word, ...]}, "faces": ...}``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    content = json.loads(data)
    tables = [
        {str(word): str(concept) for concept, words in content[name].items() for word in words}
        for name in ("nouns", "faces")
    ]
    return Readings(tuple(name.lower() for name in concepts), *tables)
