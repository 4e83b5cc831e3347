"""Stable Diffusion 3 and 3.5, medium and large.

Source: Esser et al. 2024, https://arxiv.org/abs/2403.03206.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit import FileError, LatentSpec, Model
from sdkit_diffusers.assembly import build, finish, side_of
from sdkit_diffusers.members import named
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.schedules import flow
from sdkit_diffusers.text import TextEncoder, TextStates, plain
from sdkit_diffusers.tokens import T5_LENGTH

if TYPE_CHECKING:
    from sdkit_prompts.steps import Flat

__all__ = ["PromptEncoder", "Transformer", "assemble"]


@frozen(eq=False)
class PromptEncoder:
    """Prompts to the states of two CLIPs side by side, filled up to T5's width, then T5's states behind them.

    Attributes:
        first: OpenAI's CLIP.
        second: OpenCLIP.
        third: T5, or None: zeros then stand where its states would be, as in training, where it was left out at times.
        width: Width of T5's states.
        skip: How many more of CLIP's last layers are left out than the last one.
    """

    first: TextEncoder
    second: TextEncoder
    third: TextEncoder | None
    width: int
    skip: int = 0

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Encoded prompts, one row each; what is beyond 75 tokens of CLIP or 255 of T5 is cut off, and told."""
        first = self.first.clip(self.first.rows(prompts, name="CLIP"), skip=1 + self.skip, norm=False)
        second = self.second.clip(self.second.rows(prompts, tell=False), skip=1 + self.skip, norm=False)
        behind = None if self.third is None else self.third.t5(self.third.rows(prompts, name="T5"))
        return self._joined(first, second, behind)

    def weighted(self, flats: Sequence[Flat], law: str, /) -> TextStates:
        """Prompts in a dialect. The transformer has learned one row of each encoder, so there are no chunks."""
        texts = plain(flats, {"CLIP": self.first, "OpenCLIP": self.second, "T5": self.third})
        if texts is not None:
            return self(texts)
        first, second = (
            text.weighted_clip(flats, law, skip=1 + self.skip, norm=False, most=1, tell=text is self.first)
            for text in (self.first, self.second)
        )
        return self._joined(first, second, None if self.third is None else self.third.weighted_t5(flats, law))

    def _joined(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], behind: Tensor | None) -> TextStates:
        clips = torch.cat([first[0], second[0]], dim=2)
        if behind is None:
            behind = clips.new_zeros((clips.shape[0], T5_LENGTH, self.width))
        padded = F.pad(clips, (0, behind.shape[2] - clips.shape[2]))
        return TextStates(torch.cat([padded, behind], dim=1), torch.cat([first[1], second[1]], dim=1))


@frozen(eq=False)
class Transformer:
    """``(x, time, cond) -> Tensor`` of the multimodal transformer.

    Attributes:
        network: diffusers' ``SD3Transformer2DModel``.
        placement: Puts it on the device.
    """

    network: Any = field(repr=False)
    placement: Placement = field(repr=False)

    def __call__(self, x: Tensor, time: Tensor, cond: TextStates, /, **more: Any) -> Tensor:
        """What the network predicts, for latents (b, channels, height, width) and times (b,) from 0 to 1000.

        ``more`` are further inputs of diffusers' network, such as the residuals of a control network.
        """
        assert cond.pooled is not None  # of this family's encoder
        with self.placement.use(self.network):
            made: Tensor = self.network(
                x, cond.states.to(x.dtype), cond.pooled.to(x.dtype), time, return_dict=False, **more
            )[0]
        return made


def assemble(source: Source, options: Options) -> Model[TextStates]:
    """The model in a source.

    Raises:
        FileError: a part is missing, damaged, or does not fit the others.
    """
    built = build(source, options)
    first, second = built.text("text_encoder"), built.text("text_encoder_2")
    if first is None or second is None:
        raise FileError(f"{source.path.name!r} lacks one of its two CLIP text encoders.")
    factor, side = side_of(built, "transformer")
    config = built.config("transformer")
    return finish(
        built,
        PromptEncoder(first, second, built.text("text_encoder_3"), int(config.joint_attention_dim)),
        Transformer(built.networks["transformer"], built.placement),
        flow(
            source.scheduler,
            shift=options.shift,
            time_scale=1000.0,
            spacing="uniform",
            side=side // factor,
            patch=int(config.patch_size),
        ),
        LatentSpec(int(config.in_channels), factor, (side, side), multiple=factor * int(config.patch_size)),
        summary="Stable Diffusion 3"
        + (".5" if config.get("qk_norm") else "")
        + ("" if "text_encoder_3" in built.networks else ", without T5"),
        guidance=4.5 if config.get("qk_norm") else 7.0,
        steps=28,
        member=named("sd3", normed=bool(config.get("qk_norm"))),
    )
