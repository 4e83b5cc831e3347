"""Long prompts: tokens in chunks, each with its own begin and end mark, so that nothing is cut off silently.

What a text encoder of a fixed length needs: `chunked` gives its token ids and the weights beside them, `encode` also
calls it and applies a weight law. Nothing here knows a library; tokenizer and encoder are callables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import define, field, frozen
from torch import Tensor

from sdkit import InvalidRequest, ParameterError
from sdkit_prompts import laws
from sdkit_prompts.steps import Flat
from sdkit_prompts.tree import Break, Embedding, Text

__all__ = ["Chunks", "Encoded", "Marks", "chunked", "encode"]


@frozen
class Marks:
    """The tokens that are no words, and the length of a chunk.

    Attributes:
        begin: Id of the token that begins a chunk.
        end: Id of the token that ends it.
        pad: Id of what fills it up; by default ``end``.
        size: Tokens of a chunk between begin and end mark.
        comma: Id of a comma, after which A1111 rather breaks; None breaks anywhere.
        backtrack: How many tokens before the end of a chunk such a comma may be.
    """

    begin: int
    end: int
    pad: int | None = None
    size: int = field(default=75, validator=lambda _, __, value: _at_least_one(value))
    comma: int | None = None
    backtrack: int = 20


def _at_least_one(value: int) -> None:
    if value < 1:
        raise ParameterError(f"A chunk has room for at least one token, not {value}.")


@frozen
class Chunks:
    """A prompt as tokens.

    Attributes:
        ids: One tuple per chunk, at least one, of size + 2 ids, begin mark first.
        weights: A weight per id; 1 for marks.
        parts: Which part of the flat prompt an id comes from; -1 for marks.
        cut: The ids there was no room for; empty unless a most number of chunks was given.
        cut_text: The words they stand for, as far as a way back from ids to text was given.
    """

    ids: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    parts: tuple[tuple[int, ...], ...]
    cut: tuple[int, ...] = ()
    cut_text: str = ""

    @property
    def report(self) -> str:
        """One sentence about what was cut off; empty if nothing was."""
        if not self.cut:
            return ""
        words = f": {self.cut_text.strip()!r}" if self.cut_text.strip() else ""
        return f"The prompt is too long: its last {len(self.cut)} tokens are cut off{words}."


@frozen
class _Token:
    id: int
    weight: float
    part: int


@define
class _Filling:
    """Chunks as they fill up."""

    marks: Marks
    done: list[list[_Token]] = field(factory=list)
    now: list[_Token] = field(factory=list)
    comma: int = -1  # where in the chunk the last comma stands

    def add(self, token: _Token) -> None:
        if len(self.now) == self.marks.size:
            near = self.comma >= 0 and self.marks.size - self.comma <= self.marks.backtrack
            # what follows the last comma goes into the next chunk with the token; a comma itself may stay
            keep = self.comma + 1 if near and token.id != self.marks.comma else self.marks.size
            moved = self.now[keep:]
            self.now = self.now[:keep]
            self.close()
            self.now = moved
        self.now.append(token)
        if token.id == self.marks.comma:
            self.comma = len(self.now) - 1

    def close(self) -> None:
        self.done.append(self.now)
        self.now, self.comma = [], -1


def chunked(
    flat: Flat,
    tokenize: Callable[[str], Sequence[int]],
    marks: Marks,
    *,
    embedding: Callable[[str], Sequence[int]] | None = None,
    most: int | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> Chunks:
    """A flat prompt as chunks of tokens with weights.

    Args:
        flat: What the prompt says, see `sdkit_prompts.steps`.
        tokenize: A text to the ids of its tokens, without marks.
        marks: The marks and lengths of the text encoder.
        embedding: The name of a textual inversion to the ids that stand for its vectors; without it, the name is text.
        most: The most chunks the text encoder takes; the rest is cut off, and `Chunks.report` says so.
        decode: Ids back to text, for the report.

    A break begins a new chunk; an embedding is never divided between two unless it is longer than one.
    """
    filling = _Filling(marks)
    for part, node in enumerate(flat):
        if isinstance(node, Break):
            filling.close()
            continue
        if isinstance(node, Embedding) and embedding is not None:
            ids = list(embedding(node.name))
            if len(filling.now) + len(ids) > marks.size and filling.now:
                filling.close()
        else:
            ids = list(tokenize(node.text if isinstance(node, Text) else node.name))
        for one in ids:
            filling.add(_Token(one, node.weight, part))
    filling.close()
    kept = filling.done if most is None else filling.done[: max(1, most)]
    cut = tuple(token.id for chunk in filling.done[len(kept) :] for token in chunk)
    size, pad = marks.size + 2, marks.end if marks.pad is None else marks.pad
    rows = [[_Token(marks.begin, 1.0, -1), *chunk, _Token(marks.end, 1.0, -1)] for chunk in kept]
    rows = [[*row, *[_Token(pad, 1.0, -1)] * (size - len(row))] for row in rows]
    return Chunks(
        tuple(tuple(token.id for token in row) for row in rows),
        tuple(tuple(token.weight for token in row) for row in rows),
        tuple(tuple(token.part for token in row) for row in rows),
        cut,
        decode(cut) if decode is not None and cut else "",
    )


@frozen(eq=False)
class Encoded:
    """Prompts as embeddings.

    Attributes:
        states: (batch, chunks * (size + 2), d), weighted; prompts of fewer chunks are filled up with empty ones.
        ids: (batch, chunks, size + 2) int64 token ids: what else an encoder gives (a pooled state) can be had of them.
        reports: One sentence per prompt about what was cut off, empty where nothing was.
    """

    states: Tensor
    ids: Tensor
    reports: tuple[str, ...]


def encode(
    flats: Sequence[Flat],
    law: str,
    network: Callable[[Tensor, Tensor | None], Tensor],
    tokenize: Callable[[str], Sequence[int]],
    marks: Marks,
    *,
    embedding: Callable[[str], Sequence[int]] | None = None,
    most: int | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    device: str | torch.device = "cpu",
) -> Encoded:
    """Flat prompts to weighted embeddings, in chunks.

    Args:
        flats: What the prompts say.
        law: How weights act: ``"a1111"``, ``"comfyui"`` or ``"compel"``.
        network: Token ids, (m, size + 2) int64, and a mask of the same shape (bool, False where a token is to be left
            out; None for none) to embeddings (m, size + 2, d). Called once with a mask of None, and once with a mask
            if the law is compel's and a weight is below 1.
        tokenize: As in `chunked`, like what follows.
        marks: As in `chunked`.
        embedding: As in `chunked`.
        most: As in `chunked`.
        decode: As in `chunked`.
        device: Where the ids are made.

    Raises:
        ParameterError: there is no such law.
        InvalidRequest: there is no prompt.
    """
    if law not in laws.LAWS:
        raise ParameterError(f"There is no weight law {law!r}; known: {', '.join(laws.LAWS)}.")
    if not flats:
        raise InvalidRequest("There is no prompt to encode.")
    found = [chunked(flat, tokenize, marks, embedding=embedding, most=most, decode=decode) for flat in flats]
    empty = chunked((), tokenize, marks)
    longest = max(len(chunks.ids) for chunks in found)
    rows = [chunks.ids + empty.ids * (longest - len(chunks.ids)) for chunks in found]
    ids = torch.tensor(rows, dtype=torch.long, device=device)
    plain = [(1.0,) * (marks.size + 2)]
    weights = torch.tensor([[*c.weights, *plain * (longest - len(c.weights))] for c in found], device=device)
    weighted = [bool(row.ne(1).any()) for row in weights]
    # the empty prompt goes along with the others, in one call
    both = network(torch.cat([ids.flatten(0, 1), torch.tensor(empty.ids, device=device)]), None)
    states = both[:-1].reshape(len(flats), longest, *both.shape[1:])
    if any(weighted):
        z_empty = both[-1]
        masked = _masked(found, ids, network) if law == "compel" else {}
        states = torch.stack(
            [
                _weighted(z, w, z_empty, law, masked.get(row, ())) if weighted[row] else z
                for row, (z, w) in enumerate(zip(states, weights, strict=True))
            ]
        )
    return Encoded(states.flatten(1, 2), ids, tuple(chunks.report for chunks in found))


def _weighted(z: Tensor, w: Tensor, z_empty: Tensor, law: str, without: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Of z (chunks, size + 2, d) and w (chunks, size + 2) -> the shape of z."""
    if law == "a1111":
        return laws.a1111(z.flatten(0, 1), w.flatten()).view_as(z)
    return laws.comfyui(z, w, z_empty) if law == "comfyui" else laws.compel(z, w, z_empty, without)


def _masked(
    found: Sequence[Chunks], ids: Tensor, network: Callable[[Tensor, Tensor | None], Tensor]
) -> dict[int, list[tuple[Tensor, float]]]:
    """For each prompt the embeddings with each of its fragments of weight below 1 left out, and that weight."""
    asked: list[tuple[int, float]] = []
    masks: list[Tensor] = []
    for row, chunks in enumerate(found):
        parts = torch.tensor(chunks.parts, device=ids.device)
        below = {p: w for ps, ws in zip(chunks.parts, chunks.weights, strict=True) for p, w in zip(ps, ws, strict=True)}
        for part, weight in below.items():
            if part >= 0 and weight < 1:
                mask = torch.ones_like(ids[row], dtype=torch.bool)
                mask[: len(parts)] = parts != part
                asked.append((row, weight))
                masks.append(mask)
    if not asked:
        return {}
    repeated = torch.cat([ids[row] for row, _ in asked])
    states = network(repeated, torch.cat(masks))
    states = states.reshape(len(asked), -1, *states.shape[1:])
    result: dict[int, list[tuple[Tensor, float]]] = {}
    for (row, weight), z in zip(asked, states, strict=True):
        result.setdefault(row, []).append((z, weight))
    return result
