"""Prompts to the numbers that networks are conditioned on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from torch import Tensor, nn

from sdkit_diffusers.placement import Placement
from sdkit_diffusers.tokens import TextTokenizer

__all__ = ["TextEncoder", "TextStates"]


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
    """

    network: nn.Module = field(repr=False)
    tokenizer: TextTokenizer
    placement: Placement = field(repr=False)

    def clip(self, rows: Tensor, *, skip: int = 0, norm: bool = True) -> tuple[Tensor, Tensor]:
        """States and pooled vector of CLIP.

        Args:
            rows: Token numbers (b, tokens).
            skip: How many of the last layers are left out of the states; the pooled vector is that of all layers.
            norm: Whether the states pass CLIP's last normalisation.

        Returns:
            States (b, tokens, width) and the pooled vector, (b, width), projected where the network has a projection.
        """
        with self.placement.use(self.network):
            given = rows.to(self.placement.device)
            made = self.network(given, output_hidden_states=skip > 0 or not norm)
            pooled = made.text_embeds if hasattr(made, "text_embeds") else made.pooler_output
            if skip == 0 and norm:
                return made.last_hidden_state, pooled
            states: Tensor = made.hidden_states[-1 - skip]
            if norm:
                states = self._tower.final_layer_norm(states)
            return states, pooled

    @property
    def _tower(self) -> Any:
        """CLIP's text model, bare (transformers from release 5 on) or inside another."""
        return getattr(self.network, "text_model", self.network)

    def t5(self, rows: Tensor) -> Tensor:
        """States (b, tokens, width) of T5; padding takes part, as the families learned it."""
        with self.placement.use(self.network):
            states: Tensor = self.network(rows.to(self.placement.device))[0]
        return states


def cut_hints(tokenizers: Mapping[str, TextTokenizer], prompt: str) -> list[str]:
    """A sentence for each text encoder that does not read the whole prompt."""
    sentences = []
    for name, tokenizer in tokenizers.items():
        left = tokenizer.cut(prompt)
        if left:
            sentences.append(f"The {name} reads {tokenizer.room} tokens; the rest is cut off: {left!r}.")
    return sentences
