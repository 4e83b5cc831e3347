"""Prompts to the numbers that networks are conditioned on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from sdkit_diffusers.inversions import Inversions, overlaid
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.tokens import TextTokenizer

if TYPE_CHECKING:
    from sdkit_prompts.steps import Flat

__all__ = ["TextEncoder", "TextStates", "words"]


@frozen(eq=False)
class TextStates:
    """A batch of encoded prompts.

    Attributes:
        states: One vector per token, (batch, tokens, width).
        pooled: One vector per prompt, (batch, width), or None where the family has none.
        score: A score of beauty, (batch,), where the network is told one.
    """

    states: Tensor
    pooled: Tensor | None = None
    score: Tensor | None = None


@frozen(eq=False)
class TextEncoder:
    """One text encoder with its tokenizer.

    Attributes:
        network: CLIP's text model, with projection or without, or T5's encoder.
        tokenizer: Its tokenizer.
        placement: Puts the network on the device.
        inversions: Words that stand for learned vectors, or None.
    """

    network: nn.Module = field(repr=False)
    tokenizer: TextTokenizer
    placement: Placement = field(repr=False)
    inversions: Inversions | None = None

    def rows(self, prompts: Sequence[str], *, name: str = "The text encoder", tell: bool = True) -> Tensor:
        """Rows (b, tokens) of token numbers; what does not fit is cut off, and a warning of the logger says so."""
        room = self.tokenizer.room
        cut = [left for prompt in prompts if (left := self.tokenizer.cut(prompt))] if tell else []
        _tell([f"{name} reads {room} tokens of a plain prompt; the rest is cut off: {left!r}." for left in cut])
        return torch.tensor([self.tokenizer.row(self._tokens(prompt)) for prompt in prompts], dtype=torch.long)

    def _tokens(self, text: str) -> list[int]:
        if self.inversions is None:
            return self.tokenizer.tokens(text)
        made: list[int] = []
        for piece, named in self.inversions.split(text):
            made += self.inversions.tokens(piece) if named else self.tokenizer.tokens(piece)
        return made

    def clip(
        self, rows: Tensor, *, skip: int = 0, norm: bool = True, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States and pooled vector of CLIP.

        Args:
            rows: Token numbers (b, tokens).
            skip: How many of the last layers are left out of the states; the pooled vector is that of all layers.
            norm: Whether the states pass CLIP's last normalisation.
            mask: (b, tokens), False where a token is not to be seen by others.

        Returns:
            States (b, tokens, width) and the pooled vector, (b, width), projected where the network has a projection.
        """
        with self.placement.use(self.network):
            given, network = rows.to(self.placement.device), self.network
            if self.inversions is not None and bool((rows >= self.inversions.first).any()):
                network, given = overlaid(network, given, self.inversions)
            more = {} if mask is None else {"attention_mask": mask.to(given)}
            made = network(given, output_hidden_states=skip > 0 or not norm, **more)
            pooled = made.text_embeds if hasattr(made, "text_embeds") else made.pooler_output
            if skip == 0 and norm:
                return made.last_hidden_state, pooled
            states: Tensor = made.hidden_states[-1 - skip]
            if norm:
                states = self._tower.final_layer_norm(states)
            return states, pooled

    @property
    def layers(self) -> int:
        """How many layers CLIP has."""
        return int(self._tower.config.num_hidden_layers)

    @property
    def _tower(self) -> Any:
        """CLIP's text model, bare (transformers from release 5 on) or inside another."""
        return getattr(self.network, "text_model", self.network)

    def t5(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (b, tokens, width) of T5; padding takes part, as the families learned it."""
        with self.placement.use(self.network):
            given = rows.to(self.placement.device)
            more = {} if mask is None else {"attention_mask": mask.to(given)}
            states: Tensor = self.network(given, **more)[0]
        return states

    def weighted_clip(
        self,
        flats: Sequence[Flat],
        law: str,
        *,
        skip: int = 0,
        norm: bool = True,
        most: int | None = None,
        tell: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """States (b, chunks * tokens, width) of weighted prompts of any length, and pooled vectors (b, width).

        The pooled vector is that of the first chunk, without weights, as in A1111 and ComfyUI.

        Args:
            flats: The prompts.
            law: One of `sdkit_prompts.laws.LAWS`.
            skip: As in `clip`.
            norm: As in `clip`.
            most: The most chunks the denoiser takes.
            tell: Whether what is cut off is a warning of the logger ``sdkit``.
        """
        from sdkit_prompts.chunks import Marks, encode

        pooled: list[Tensor] = []

        def network(rows: Tensor, mask: Tensor | None) -> Tensor:
            states, vectors = self.clip(rows, skip=skip, norm=norm, mask=mask)
            pooled.append(vectors)
            return states

        tokenizer = self.tokenizer
        assert tokenizer.start is not None  # CLIP's always has one
        comma = tokenizer.tokens(",")[0] if law == "a1111" else None
        made = encode(
            [self._named(flat) for flat in flats],
            law,
            network,
            tokenizer.tokens,
            Marks(tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.room, comma),
            embedding=None if self.inversions is None else self.inversions.tokens,
            most=most,
            decode=tokenizer.words,
            device=self.placement.device,
        )
        _tell(made.reports if tell else ())
        chunks = made.ids.shape[1]
        return made.states, pooled[0][: chunks * len(flats) : chunks]

    def _named(self, flat: Flat) -> Flat:
        """A flat prompt in which the names of inversions are nodes of their own."""
        from sdkit_prompts.tree import Embedding, Text

        if self.inversions is None:
            return flat
        made: list[Any] = []
        for node in flat:
            if isinstance(node, Text):
                pieces = self.inversions.split(node.text)
                made += [(Embedding if named else Text)(piece, node.weight) for piece, named in pieces]
            else:
                made.append(node)
        return tuple(made)

    def weighted_t5(self, flats: Sequence[Flat], law: str) -> Tensor:
        """States (b, tokens, width) of weighted prompts; T5 reads one row, and marks and padding weigh 1."""
        rows = [_Row.of(flat, self.tokenizer) for flat in flats]
        _tell([row.report for row in rows])
        ids, empty = torch.tensor([row.ids for row in rows]), torch.tensor([self.tokenizer.row([])])
        made = self.t5(torch.cat([ids, empty]))
        return torch.stack([row.weigh(z, made[-1], law, self.t5) for row, z in zip(rows, made[:-1], strict=True)])


@frozen
class _Row:
    """A flat prompt as one row of tokens of one length.

    Attributes:
        ids: The row.
        weights: A weight for each.
        parts: Which node a token is of; -1 for marks and padding.
        report: What was cut off, in a sentence, or nothing.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    parts: tuple[int, ...]
    report: str

    @classmethod
    def of(cls, flat: Flat, tokenizer: TextTokenizer) -> _Row:
        found = [
            (number, float(getattr(node, "weight", 1.0)), part)
            for part, node in enumerate(flat)
            for number in tokenizer.tokens(words((node,)))
        ]
        kept, cut = found[: tokenizer.room], [number for number, _, _ in found[tokenizer.room :]]
        before = 0 if tokenizer.start is None else 1
        rest = tokenizer.length - before - len(kept)
        report = f"T5 reads {tokenizer.room} tokens; the rest is cut off: {tokenizer.words(cut)!r}." if cut else ""
        return cls(
            tuple(tokenizer.row([number for number, _, _ in kept])),
            (1.0,) * before + tuple(weight for _, weight, _ in kept) + (1.0,) * rest,
            (-1,) * before + tuple(part for _, _, part in kept) + (-1,) * rest,
            report,
        )

    def weigh(self, z: Tensor, z_empty: Tensor, law: str, network: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Z and z_empty (tokens, width) -> (tokens, width)."""
        from sdkit_prompts import laws

        w = torch.tensor(self.weights, device=z.device)
        if not bool(w.ne(1).any()):
            return z
        if law == "a1111":
            return laws.a1111(z, w)
        if law == "comfyui":
            return laws.comfyui(z, w, z_empty)
        below = {part: weight for part, weight in zip(self.parts, self.weights, strict=True) if weight < 1}
        seen = torch.tensor([[part != left for part in self.parts] for left in below], dtype=torch.bool)
        lacking = network(torch.tensor([self.ids] * len(below)), seen) if below else ()
        return laws.compel(z, w, z_empty, list(zip(lacking, below.values(), strict=True)))


def words(flat: Flat) -> str:
    """What a flat prompt says, without weights and breaks."""
    return "".join(str(getattr(node, "text", None) or getattr(node, "name", " ")) for node in flat)


def plain(flats: Sequence[Flat], encoders: Mapping[str, TextEncoder | None]) -> list[str] | None:
    """The texts of prompts that say nothing but text, and that every encoder reads in one piece; None for others."""
    from sdkit_prompts.tree import Text

    for flat in flats:
        if any(not isinstance(node, Text) or node.weight != 1 for node in flat):
            return None
        for encoder in encoders.values():
            if encoder is not None and len(encoder._tokens(words(flat))) > encoder.tokenizer.room:
                return None
    return [words(flat) for flat in flats]


def _tell(reports: Sequence[str]) -> None:
    for report in dict.fromkeys(reports):
        if report:
            logging.getLogger("sdkit").warning("%s", report)
