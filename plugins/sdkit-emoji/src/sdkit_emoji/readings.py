"""Prompts as people write them, read in the words that the model was taught: "a puppy in the snow" as "dog".

Three things are done. The first phrase says what is to be drawn: the last concept that it names, or another name of one
in two to four words ("a fire truck"); or else the concept that is nearest to its last word ("a golden retriever puppy
in the snow"); if that word is "face", the one before it says how the face looks. The table is made by
``training/dictionary.py`` of MiniLM's embeddings and WordNet, for all their words alike, and of tags.

Then all else is left out, since the model draws no scenes and other words only spoil its drawing ("an angry cat" is
neither an angry face nor a cat): the concept stays, a named background, the style, and words that no dictionary holds,
for they may be a name that an adapter was taught. Where there are such words, or a style that is none of the model's,
taught words stay as well: the adapter may have been taught what they mean in it.

Last, a prompt in words that were taught, without a style and such a name, gets a style: without one the model would
draw a mixture of all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from attrs import evolve, field, frozen

__all__ = ["FILLERS", "Reading", "Readings", "parse"]

WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
STYLED = re.compile(r"(?:\bflat )?[\w-]+ style\b", re.IGNORECASE)
BEHIND = re.compile(r"\bon (?:an? |the )?(?:[^\W\d_]+ )?[^\W\d_]+ background\b", re.IGNORECASE)
ARTICLE = re.compile(r"\b(an?)\s+$")
FORMED = re.compile(r"(?i)(?:..(?:ing|ed|ly|ish|ous|ful|less|est)|...y)$")
"""Forms of English words, which no list of words holds all of."""
FILLERS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on and with one some my your style emoji icon picture drawing image photo photograph painting "
        "portrait illustration sketch cartoon sticker scene view",
    )
)
"""Words of a prompt that say nothing about what is drawn."""
ENDS = frozenset(["on", "in", "at", "with", "over", "under", "near", "beside", "behind", "before", "for", "and", "or"])
"""Words at which the first phrase ends."""


@frozen
class Reading:
    """A prompt as it is read.

    Attributes:
        text: What is encoded.
        word: The word that was replaced, or empty.
        concept: What stands in its place, or empty.
        left_out: Words that were left out.
        style: The style that was added, or empty.
    """

    text: str
    word: str = ""
    concept: str = ""
    left_out: tuple[str, ...] = ()
    style: str = ""


@frozen
class Readings:
    """The table.

    Attributes:
        concepts: Names of all concepts, in lower case.
        nouns: Word -> concept.
        faces: Word -> concept, where "face" follows.
        tags: Other word -> concept, where no concept is named at all.
        phrases: Several words, with single spaces -> concept that they are another name of.
        style: What a prompt is read in that names no style; nothing is added if empty.
        styles: Names of the styles that the model knows; if empty, no style is taken for an adapter's.
    """

    concepts: tuple[str, ...] = field(default=(), repr=False)
    nouns: Mapping[str, str] = field(factory=dict, repr=False)
    faces: Mapping[str, str] = field(factory=dict, repr=False)
    tags: Mapping[str, str] = field(factory=dict, repr=False)
    phrases: Mapping[str, str] = field(factory=dict, repr=False)
    style: str = ""
    styles: tuple[str, ...] = ()
    _named: re.Pattern[str] = field(init=False, repr=False, eq=False)

    @_named.default
    def _any_concept(self) -> re.Pattern[str]:
        names = []
        for name in sorted(self.concepts, key=len, reverse=True):
            names.append(rf"{re.escape(name)}(?:e?s)?")
            if name.endswith("y"):
                names.append(rf"{re.escape(name[:-1])}ies")
        return re.compile(rf"\b(?:{'|'.join(names)})\b" if names else r"(?!)")

    def of(
        self, prompt: str, knows: Callable[[str], bool], usual: Callable[[str], bool] = lambda word: True
    ) -> Reading:
        """A prompt as it is read.

        Args:
            prompt: As it was written.
            knows: Whether a word, in lower case, was taught.
            usual: Whether a word, in lower case, is one that a dictionary holds.
        """
        if not self.concepts:
            return Reading(prompt)
        read = self._drawn(prompt, knows, usual)
        if not self.style or STYLED.search(prompt):
            return read
        words = {_plain(match[0]) for match in WORD.finditer(read.text)} - FILLERS
        named = self._named.search(read.text.lower()) is not None
        if not (named or any(map(knows, words))):
            return read
        if any(self._made_up(one, knows, usual) for one in words):
            return read
        return evolve(read, text=f"{read.text.rstrip(' ,.')}, {self.style} style", style=self.style)

    def _drawn(self, prompt: str, knows: Callable[[str], bool], usual: Callable[[str], bool]) -> Reading:
        """The prompt with what is to be drawn in words that were taught, and alone."""
        styles = [match.span() for match in STYLED.finditer(prompt)]
        found = [
            match for match in WORD.finditer(prompt) if not any(start <= match.start() < end for start, end in styles)
        ]
        phrase: list[re.Match[str]] = []
        for match in found:
            between = prompt[phrase[-1].end() : match.start()] if phrase else ""
            if phrase and ("," in between or match[0].lower() in ENDS or self._acts(phrase[-1][0], match[0], knows)):
                break
            phrase.append(match)
        end = phrase[-1].end() if phrase else 0
        names = list(self._named.finditer(prompt.lower()))
        first = [one for one in names if one.start() < end]
        read = self._other_name(phrase)
        if read is None and not first:
            read = self._nearest(phrase, not names)
        if read is not None:
            word, concept, kept = read
            text = _with_article(prompt[: kept[0]], concept) + prompt[kept[1] :]
            return self._alone(prompt, found, Reading(text, word, concept), kept, knows, usual)
        if names:
            return self._alone(prompt, found, Reading(prompt), (first or names[:1])[-1].span(), knows, usual)
        # what is to be drawn may be known by a tag alone
        known = phrase and knows(_plain(phrase[-1][0])) and _plain(phrase[-1][0]) not in FILLERS
        return (
            self._alone(prompt, found, Reading(prompt), phrase[-1].span(), knows, usual) if known else Reading(prompt)
        )

    def _other_name(self, phrase: Sequence[re.Match[str]]) -> tuple[str, str, tuple[int, int]] | None:
        """The last words of a phrase, the concept that they are another name of, and where they stand."""
        for count in (4, 3, 2):
            if len(phrase) >= count:
                name = " ".join(_plain(one[0]) for one in phrase[-count:])
                concept = next((self.phrases[form] for form in _forms(name) if form in self.phrases), None)
                if concept is not None:
                    return name, concept, (phrase[-count].start(), phrase[-1].end())
        return None

    def _nearest(self, phrase: Sequence[re.Match[str]], alone: bool) -> tuple[str, str, tuple[int, int]] | None:
        """The word of a phrase that says what is drawn, the concept that it is read as, and what that replaces.

        Args:
            phrase: Words.
            alone: Nothing else in the prompt is a name of a concept, so that tags count too.
        """
        if not phrase:
            return None
        face = len(phrase) > 1 and phrase[-1][0].lower() == "face"
        table, match = (self.faces, phrase[-2]) if face else (self.nouns, phrase[-1])
        word = _plain(match[0])
        forms = [one for one in _forms(word) if one not in FILLERS]
        tables = (table, self.tags) if alone and not face else (table,)
        concept = next((one[form] for one in tables for form in forms if form in one), None)
        return None if concept is None else (word, concept, (match.start(), phrase[-1].end()))

    def _alone(
        self,
        prompt: str,
        found: list[re.Match[str]],
        read: Reading,
        kept: tuple[int, int],
        knows: Callable[[str], bool],
        usual: Callable[[str], bool],
    ) -> Reading:
        """The reading with nothing beside what stands at ``kept`` but a background, a style and names.

        With what was taught as well where names or the style may be an adapter's.
        """
        behind = BEHIND.search(prompt)
        if behind is not None and not all(
            knows(_plain(one[0])) or _plain(one[0]) in FILLERS for one in WORD.finditer(behind[0])
        ):
            behind = None
        spans = [kept] + ([behind.span()] if behind else [])
        others = [one for one in found if not any(a < one.end() and one.start() < b for a, b in spans)]
        others = [one for one in others if _plain(one[0]) not in FILLERS]
        names = [one for one in others if self._made_up(_plain(one[0]), knows, usual)]
        style = STYLED.search(prompt)
        if names or (style is not None and self._adapters(style[0])):
            names = [one for one in others if one in names or knows(_plain(one[0]))]
        left_out = tuple(_plain(one[0]) for one in others if one not in names)
        if not left_out:
            return read
        concept = read.concept or prompt[slice(*kept)]
        words = [one[0] for one in names if one.start() < kept[0]]
        words += [concept, *(one[0] for one in names if one.start() > kept[0])]
        words += [behind[0]] if behind else []
        text = " ".join(words) + (f", {style[0]}" if style else "")
        return Reading(text, read.word, read.concept, left_out)

    def _adapters(self, style: str) -> bool:
        """Whether a style is none of the model's, so that an adapter may know it."""
        return bool(self.styles) and style.lower().removesuffix(" style") not in self.styles

    def _made_up(self, word: str, knows: Callable[[str], bool], usual: Callable[[str], bool]) -> bool:
        """Whether a word was not taught and is none of the language: a name, maybe one that an adapter was taught."""
        if knows(word):
            return False
        forms = {word, word.removesuffix("'s"), word.removesuffix("s") if len(word) > 4 else word}
        known = any(usual(form) or form in self.nouns or form in self.faces for form in forms)
        return not (known or len(word) < 3 or FORMED.search(word))

    def _acts(self, before: str, word: str, knows: Callable[[str], bool]) -> bool:
        """Whether a word says what the thing before it does: "a car driving", not "a happy smiling cat"."""
        thing = _plain(before)
        known = thing in self.nouns or (knows(thing) and thing not in FILLERS and not thing.endswith("y"))
        return known and word.lower().endswith("ing") and self._named.fullmatch(word.lower()) is None


def _with_article(before: str, concept: str) -> str:
    """What stands before a concept and the concept: "an automobile" where "a car" stood."""
    article = ARTICLE.search(before)
    if article is not None:
        right = "an" if concept[:1].lower() in "aeiou" else "a"
        before = before[: article.start()] + right + before[article.end(1) :]
    return before + concept


def _forms(word: str) -> list[str]:
    """A word and what it may be the plural of."""
    return [word, word.removesuffix("s"), word.removesuffix("es")]


def _plain(word: str) -> str:
    """A word as the tables hold it."""
    return word.lower().replace("’", "'")


def parse(data: bytes, concepts: tuple[str, ...], style: str = "", styles: tuple[str, ...] = ()) -> Readings:
    """The table of ``readings.json``: ``{"nouns": {concept: [word, ...]}, "faces": ..., "tags": ..., "phrases": ...}``.

    Args:
        data: The file.
        concepts: Names of all concepts.
        style: See `Readings`.
        styles: The same.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    content = json.loads(data)
    nouns, faces, tags, phrases = (
        {str(word): str(concept) for concept, words in content[name].items() for word in words}
        for name in ("nouns", "faces", "tags", "phrases")
    )
    return Readings(tuple(name.lower() for name in concepts), nouns, faces, tags, phrases, style, styles)
