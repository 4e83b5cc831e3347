r"""The syntax of A1111's web interface, which most shared prompts are written in.

``(x)`` is 1.1, ``[x]`` 1/1.1, ``(x:1.5)`` 1.5; nesting multiplies. ``[from:to:when]``, ``[to:when]`` and
``[from::when]`` change the prompt on the way, ``[a|b]`` at each step. ``AND`` joins prompts (``:weight`` after each),
``BREAK`` begins a new chunk, ``<lora:name:0.8>`` names an adapter. ``\`` makes the next character an ordinary one.
A bracket that is never closed acts to the end; one that was never opened is text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field, frozen

from sdkit import ParameterError
from sdkit_prompts.tree import (
    Adapter,
    Alternate,
    And,
    Break,
    Embedding,
    Node,
    Prompt,
    Schedule,
    Text,
    Tree,
    decimal,
    scaled,
)

if TYPE_CHECKING:
    from sdkit import Request

__all__ = ["A1111"]

UP = 1.1
DEEPEST = 64  # open brackets; beyond, they are text, so that no text makes a tree too deep to walk
DEEPEST_SCHEDULE = 32
NUMBER = r"(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})"
AND = re.compile(r"\bAND\b")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
WEIGHT = re.compile(rf":\s*([-+]?{NUMBER})\s*\Z")
SIGNED, UNSIGNED = re.compile(rf"\s*[-+]?{NUMBER}\s*"), re.compile(rf"\s*{NUMBER}\s*")
ADAPTER = re.compile(r"<(\w+):([^<>:]+)((?::[^<>:]*)*)>")
NAME = re.compile(r"\w[\w.-]*")

Letter: TypeAlias = tuple[str, bool]
"""A character, and whether it was escaped, which makes it mean nothing but itself."""


def _names(names: object) -> tuple[str, ...]:
    found = tuple(names) if isinstance(names, (tuple, list, set, frozenset)) else (names,)
    for name in found:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ParameterError(f"The name of an embedding is a word of letters, digits, '_', '-', '.', not {name!r}.")
        if AND.search(name) or BREAK.search(name):
            raise ParameterError(f"An embedding cannot be named {name!r}: AND and BREAK mean something else.")
    return tuple(sorted(found, key=lambda name: (-len(name), name)))


@define
class _Frame:
    """An open bracket, and what stands in it so far."""

    opener: str
    items: list[Node | Letter] = field(factory=list)
    depth: int = 0  # of the schedules inside


@frozen
class A1111:
    """A1111's syntax.

    Attributes:
        embeddings: Names of the textual inversions there are, which a prompt then means by the bare name.
    """

    embeddings: tuple[str, ...] = field(default=(), converter=_names)

    def parse(self, text: str) -> Tree:
        """The tree of any text at all."""
        branches = [self._branch(part) for part in AND.split(text)]
        if len(branches) > 1:
            return And(tuple(branches))
        return self._prompt(text)

    def requested(self, request: Request, folder: str = ".") -> Request:
        """What the request's prompt asks for besides words, as modifiers: see `sdkit_prompts.requested`."""
        from sdkit_prompts.requested import with_adapters

        return with_adapters(request, self, folder)

    def print(self, tree: Tree) -> str:
        """The text that `parse` reads as this tree.

        Raises:
            ParameterError: A1111's syntax cannot say it (a blend).
        """
        if isinstance(tree, Prompt):
            return self._printed(tree, inside=False)
        if isinstance(tree, And):
            return " AND ".join(
                self._printed(prompt, inside=True) + ("" if weight == 1 else f" :{decimal(weight)}")
                for prompt, weight in tree.branches
            )
        raise ParameterError("A1111's syntax has no blend; say it in compel's, or take AND.")

    # from text to tree

    def _branch(self, text: str) -> tuple[Prompt, float]:
        match = WEIGHT.search(text)
        if match and not _escaped(text, match.start()) and (weight := float(match[1])) < float("inf"):
            return self._prompt(text[: match.start()]), weight
        return self._prompt(text), 1.0

    def _prompt(self, text: str) -> Prompt:
        frames, place = [_Frame("")], 0
        while place < len(text):
            place += self._read(text, place, frames)
        while len(frames) > 1:  # what was never closed acts to the end
            frame = frames.pop()
            self._put(frames[-1], frame, scaled(self._nodes(frame.items), UP if frame.opener == "(" else 1 / UP))
        return Prompt(self._nodes(frames[0].items))

    def _read(self, text: str, place: int, frames: list[_Frame]) -> int:
        """Take in what stands at ``place``; how many characters that was."""
        letter, top = text[place], frames[-1]
        if letter == "\\" and place + 1 < len(text):
            top.items.append((text[place + 1], True))
            return 2
        if letter == "<" and (match := ADAPTER.match(text, place)):
            top.items.append(Adapter(match[1], match[2], tuple(match[3].split(":")[1:])))
            return len(match[0])
        if letter in "([" and len(frames) <= DEEPEST:
            frames.append(_Frame(letter))
        elif letter in ")]" and top.opener == {")": "(", "]": "["}[letter]:
            frames.pop()
            self._put(frames[-1], top, self._round(top) if letter == ")" else self._square(top))
        else:
            top.items.append((letter, False))
        return 1

    def _put(self, outer: _Frame, inner: _Frame, nodes: tuple[Node, ...]) -> None:
        outer.items.extend(nodes)
        outer.depth = max(outer.depth, inner.depth)

    def _round(self, frame: _Frame) -> tuple[Node, ...]:
        colons = _places(frame.items, ":")
        if colons and (weight := _number(frame.items[colons[-1] + 1 :], SIGNED)) is not None:
            return scaled(self._nodes(frame.items[: colons[-1]]), weight)
        return scaled(self._nodes(frame.items), UP)

    def _square(self, frame: _Frame) -> tuple[Node, ...]:
        items, frame.depth = frame.items, frame.depth + 1
        if frame.depth <= DEEPEST_SCHEDULE:
            if bars := _places(items, "|"):
                return (Alternate(tuple(Prompt(self._nodes(part)) for part in _split(items, bars))),)
            colons = _places(items, ":")
            *parts, last = _split(items, colons)
            if len(colons) in (1, 2) and (when := _number(last, UNSIGNED)) is not None:
                before, after = ([], *parts) if len(parts) == 1 else parts
                return (Schedule(Prompt(self._nodes(before)), Prompt(self._nodes(after)), when),)
        frame.depth -= 1
        return scaled(self._nodes(items), 1 / UP)

    def _nodes(self, items: list[Node | Letter]) -> tuple[Node, ...]:
        """The items with runs of letters made texts, breaks and embeddings."""
        found: list[Node] = []
        run: list[Letter] = []
        for item in items:
            if isinstance(item, tuple):
                run.append(item)
            else:
                found += self._words(run)
                found.append(item)
                run = []
        return (*found, *self._words(run))

    def _words(self, run: list[Letter]) -> list[Node]:
        text = "".join(letter for letter, _ in run)
        found: list[Node] = []
        done = 0
        for match, node in self._marks(text):
            if match.start() >= done and not any(escaped for _, escaped in run[match.start() : match.end()]):
                found += [Text(text[done : match.start()]), node]
                done = match.end()
        found.append(Text(text[done:]))
        return [node for node in found if not isinstance(node, Text) or node.text]

    def _marks(self, text: str) -> list[tuple[re.Match[str], Node]]:
        """Where breaks and embeddings stand in a text, in order; of those that overlap the longest name first."""
        marks: list[tuple[re.Match[str], Node]] = [(match, Break()) for match in BREAK.finditer(text)]
        for name in self.embeddings:
            pattern = rf"(?<![\w.-]){re.escape(name)}(?![\w.-])"
            marks += [(match, Embedding(name)) for match in re.finditer(pattern, text)]
        return sorted(marks, key=lambda mark: (mark[0].start(), -mark[0].end()))

    # from tree to text

    def _printed(self, prompt: Prompt, *, inside: bool) -> str:
        return "".join(self._one(node, inside) for node in prompt.nodes)

    def _one(self, node: Node, inside: bool) -> str:
        if isinstance(node, Text):
            if node.weight == 1:
                return self._escape(node.text, inside)
            return f"({self._escape(node.text, True)}:{decimal(node.weight)})"
        if isinstance(node, Embedding):
            if node.name not in self.embeddings:
                raise ParameterError(f"The embedding {node.name!r} is not among this dialect's: {self.embeddings}.")
            return f"({node.name}:{decimal(node.weight)})"
        if isinstance(node, Break):
            return " BREAK "
        if isinstance(node, Schedule):
            before, after = (self._printed(prompt, inside=True) for prompt in (node.before, node.after))
            return f"[{before}:{after}:{decimal(node.when)}]"
        if isinstance(node, Alternate):
            if len(node.options) < 2:
                raise ParameterError("A1111's syntax alternates between at least two options.")
            return f"[{'|'.join(self._printed(option, inside=True) for option in node.options)}]"
        text = f"<{':'.join((node.kind, node.name, *node.arguments))}>"
        if not ADAPTER.fullmatch(text) or AND.search(text):
            raise ParameterError(f"The adapter {text!r} cannot be written in A1111's syntax.")
        return text

    def _escape(self, text: str, inside: bool) -> str:
        special = set(r"\()[]<:|" if inside else r"\()[]<")
        marks = {place for place, letter in enumerate(text) if letter in special}
        for word in (AND, re.compile(r"\bBREAK\b")):
            marks |= {match.start() + 1 for match in word.finditer(text)}
        for name in self.embeddings:
            marks |= {match.start() for match in re.finditer(re.escape(name), text)}
        return "".join(f"\\{letter}" if place in marks else letter for place, letter in enumerate(text))


def _escaped(text: str, place: int) -> bool:
    before = text[:place]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _places(items: list[Node | Letter], letter: str) -> list[int]:
    return [place for place, item in enumerate(items) if item == (letter, False)]


def _split(items: list[Node | Letter], places: list[int]) -> list[list[Node | Letter]]:
    starts, ends = [0, *(place + 1 for place in places)], [*places, len(items)]
    return [items[start:end] for start, end in zip(starts, ends, strict=True)]


def _number(items: list[Node | Letter], pattern: re.Pattern[str]) -> float | None:
    """The number that the letters spell, if they are nothing else."""
    if not all(isinstance(item, tuple) and not item[1] for item in items):
        return None
    text = "".join(item[0] for item in items if isinstance(item, tuple))
    if not pattern.fullmatch(text) or (number := float(text)) == float("inf"):
        return None
    return number
