"""Stable Diffusion 3 and 3.5, medium and large.

Source: Esser et al. 2024, https://arxiv.org/abs/2403.03206.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit import FileError, LatentSpec, Model
from sdkit_diffusers.assembly import build, finish, side_of
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.schedules import flow, flow_shift
from sdkit_diffusers.text import TextEncoder, TextStates, cut_hints
from sdkit_diffusers.tokens import T5_LENGTH

__all__ = ["PromptEncoder", "Transformer", "assemble"]


@frozen(eq=False)
class PromptEncoder:
    """Prompts to the states of two CLIPs side by side, filled up to T5's width, then T5's states behind them.

    Attributes:
        first: OpenAI's CLIP.
        second: OpenCLIP.
        third: T5, or None: zeros then stand where its states would be, as in training, where it was left out at times.
        width: Width of T5's states.
    """

    first: TextEncoder
    second: TextEncoder
    third: TextEncoder | None
    width: int

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Encoded prompts, one row each."""
        made = [text.clip(text.tokenizer(prompts), skip=1, norm=False) for text in (self.first, self.second)]
        clips = torch.cat([states for states, _ in made], dim=2)
        pooled = torch.cat([pooled for _, pooled in made], dim=1)
        if self.third is not None:
            behind = self.third.t5(self.third.tokenizer(prompts))
        else:
            behind = clips.new_zeros((len(prompts), T5_LENGTH, self.width))
        padded = F.pad(clips, (0, behind.shape[2] - clips.shape[2]))
        return TextStates(torch.cat([padded, behind], dim=1), pooled)

    def hints(self, prompt: str) -> list[str]:
        """What of the prompt is not read, in sentences."""
        named = {"CLIP": self.first, **({"T5": self.third} if self.third else {})}
        return cut_hints({name: text.tokenizer for name, text in named.items()}, prompt)


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
    tokens = (side // factor // int(config.patch_size)) ** 2
    shift = flow_shift(source.scheduler, tokens) if options.shift is None else options.shift
    return finish(
        built,
        PromptEncoder(first, second, built.text("text_encoder_3"), int(config.joint_attention_dim)),
        Transformer(built.networks["transformer"], built.placement),
        flow(source.scheduler, shift=shift, time_scale=1000.0, spacing="uniform"),
        LatentSpec(int(config.in_channels), factor, (side, side), multiple=factor * int(config.patch_size)),
        summary="Stable Diffusion 3"
        + (".5" if config.get("qk_norm") else "")
        + ("" if "text_encoder_3" in built.networks else ", without T5"),
        guidance=4.5 if config.get("qk_norm") else 7.0,
        steps=28,
        member="sd35" if config.get("qk_norm") else "sd3",
    )
