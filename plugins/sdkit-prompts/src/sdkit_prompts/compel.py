r"""The syntax of compel and InvokeAI.

``word+`` is 1.1, ``word++`` 1.21, ``word-`` 0.9; ``(some words)+`` and ``(some words)1.3`` weigh a group, nesting
multiplies. ``("a", "b").blend(1, 0.8)`` is a weighted sum of conditionings, divided by the sum of the weights unless
``no_normalize`` is given; ``("a", "b").and()`` sets one behind the other, as a break does. ``\`` makes the next
character an ordinary one. ``.swap()`` is not read: it stays text.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from attrs import frozen

from sdkit import ParameterError
from sdkit_prompts.tree import Blend, Break, Node, Prompt, Text, Tree, decimal, scaled

__all__ = ["Compel"]

UP, DOWN = 1.1, 0.9
DEEPEST = 64
NUMBER = r"[-+]?(?:\d{1,400}(?:\.\d{1,400})?|\.\d{1,400})"
QUOTED = r'"((?:[^"\\]|\\.)*)"'
CALL = re.compile(
    rf"\s*\(\s*({QUOTED}(?:\s*,\s*{QUOTED})*)\s*\)\s*\.(blend|and)\(\s*((?:{NUMBER}(?:\s*,\s*{NUMBER})*)?)"
    r"\s*(,?\s*no_normalize)?\s*\)\s*\Z",
    re.DOTALL,
)
SUFFIX = re.compile(rf"({NUMBER})|(\++|-+)")
SIGNS = re.compile(r"(?<![\s+-])(\++|-+)(?![\w+-])")

Letter: TypeAlias = tuple[str, bool]


@frozen
class Compel:
    """compel's syntax."""

    def parse(self, text: str) -> Tree:
        """The tree of any text at all."""
        if match := CALL.match(text):
            parts = [found[1] for found in re.finditer(QUOTED, match[1], re.DOTALL)]
            weights = [float(number) for number in match[5].replace(",", " ").split()] or [1.0] * len(parts)
            if len(weights) == len(parts) and all(abs(weight) < 1e300 for weight in weights):
                prompts = [_prompt(part) for part in parts]
                if match[4] == "blend":
                    return Blend(tuple(zip(prompts, weights, strict=True)), not match[6])
                if not match[6]:
                    return _joined([scaled(p.nodes, w) for p, w in zip(prompts, weights, strict=True)])
        return _prompt(text)

    def print(self, tree: Tree) -> str:
        """The text that `parse` reads as this tree.

        Raises:
            ParameterError: compel's syntax cannot say it (schedules, AND, adapters, embeddings).
        """
        if isinstance(tree, Blend):
            weights = ", ".join(decimal(weight) for _, weight in tree.branches)
            ending = "" if tree.normalise else ", no_normalize"
            return f"({', '.join(_quoted(prompt.nodes) for prompt, _ in tree.branches)}).blend({weights}{ending})"
        if not isinstance(tree, Prompt):
            raise ParameterError("compel's syntax has no AND; say it in A1111's, or take a blend.")
        parts: list[list[Node]] = [[]]
        for node in tree.nodes:
            if isinstance(node, Break):
                parts.append([])
            else:
                parts[-1].append(node)
        if len(parts) == 1:
            return _printed(tree.nodes)
        return f"({', '.join(_quoted(tuple(part)) for part in parts)}).and()"


def _joined(parts: list[tuple[Node, ...]]) -> Prompt:
    nodes: list[Node] = [*parts[0]]
    for part in parts[1:]:
        nodes += [Break(), *part]
    return Prompt(tuple(nodes))


def _prompt(text: str) -> Prompt:
    frames: list[list[Node | Letter]] = [[]]
    place = 0
    while place < len(text):
        letter = text[place]
        place += 1
        if letter == "\\" and place < len(text):
            frames[-1].append((text[place], True))
            place += 1
        elif letter == "(" and len(frames) <= DEEPEST:
            frames.append([])
        elif letter == ")" and len(frames) > 1:
            weight, length = _suffix(text, place)
            place += length
            inner = scaled(_nodes(frames.pop()), weight)
            frames[-1].extend(inner)
        else:
            frames[-1].append((letter, False))
    while len(frames) > 1:  # a group that was never closed
        inner = _nodes(frames.pop())
        frames[-1].extend(inner)
    return Prompt(_nodes(frames[0]))


def _suffix(text: str, place: int) -> tuple[float, int]:
    """The weight written behind a group, and its length."""
    match = SUFFIX.match(text, place)
    if match is None or (match[1] and abs(float(match[1])) == float("inf")):
        return 1.0, 0
    return (float(match[1]) if match[1] else _power(match[2])), len(match[0])


def _power(signs: str) -> float:
    return float((UP if signs[0] == "+" else DOWN) ** min(len(signs), 1000))


def _nodes(items: list[Node | Letter]) -> tuple[Node, ...]:
    found: list[Node] = []
    run: list[Letter] = []
    for item in items:
        if isinstance(item, tuple):
            run.append(item)
        else:
            found += _words(run)
            found.append(item)
            run = []
    return (*found, *_words(run))


def _words(run: list[Letter]) -> list[Node]:
    text = "".join(letter for letter, _ in run)
    found: list[Node] = []
    done = 0
    for match in SIGNS.finditer(text):
        if match.start() > done and not any(escaped for _, escaped in run[match.start() : match.end()]):
            start = done + max((place + 1 for place in _spaces(text[done : match.start()])), default=0)
            found += [Text(text[done:start]), Text(text[start : match.start()], _power(match[0]))]
            done = match.end()
    return [node for node in (*found, Text(text[done:])) if not isinstance(node, Text) or node.text]


def _spaces(text: str) -> list[int]:
    return [place for place, letter in enumerate(text) if letter.isspace()]


def _quoted(nodes: tuple[Node, ...]) -> str:
    if any(isinstance(node, Break) for node in nodes):
        raise ParameterError("compel's syntax has no break inside a blend.")
    return f'"{_printed(nodes)}"'


def _printed(nodes: tuple[Node, ...]) -> str:
    found = ""
    for node in nodes:
        if not isinstance(node, Text):
            raise ParameterError(f"compel's syntax has no {type(node).__name__}; take another dialect.")
        if node.weight != 1:
            found += f"({_escape(node.text)}){decimal(node.weight)}"
        else:
            # a number or a sign behind a group would be read as part of its weight
            text = _escape(node.text)
            found += f"\\{text}" if found and text[:1] in (*"0123456789.+-",) else text
    return found


def _escape(text: str) -> str:
    return re.sub(r'[\\()"]|[+-](?!\w)', lambda match: "\\" + match[0], text)
