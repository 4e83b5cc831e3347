"""Stable Diffusion 1.x and 2.x, their inpainting models, and what was distilled from them.

Source: Rombach et al. 2022, https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from sdkit import FileError, LatentSpec, Model
from sdkit_diffusers.assembly import build, finish, side_of
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.schedules import trained
from sdkit_diffusers.text import TextEncoder, TextStates, cut_hints
from sdkit_diffusers.unet import PaintingDenoiser, UNet, guidance_embedding

__all__ = ["PromptEncoder", "assemble"]

NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}
EMBEDDED_GUIDANCE = 8.5
"""What LCM's authors use."""


@frozen(eq=False)
class PromptEncoder:
    """Prompts to the states of CLIP's last layer (version 2: of a text tower whose last layer was left out).

    Attributes:
        text: CLIP.
    """

    text: TextEncoder

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Encoded prompts, one row each."""
        states, _ = self.text.clip(self.text.tokenizer(prompts))
        return TextStates(states)

    def hints(self, prompt: str) -> list[str]:
        """What of the prompt is not read, in sentences."""
        return cut_hints({"text encoder": self.text.tokenizer}, prompt)


def assemble(source: Source, options: Options) -> Model[TextStates]:
    """The model in a source.

    Raises:
        FileError: a part is missing, damaged, or does not fit the others.
    """
    how = trained(source.scheduler, prediction=options.prediction)
    built = build(source, options)
    text = built.text("text_encoder")
    if text is None:
        raise FileError(f"{source.path.name!r} has no text encoder.")
    factor, side = side_of(built, "unet")
    config = built.config("unet")
    latent = LatentSpec(int(config.out_channels), factor, (side, side))
    width = config.get("time_cond_proj_dim")
    scale = EMBEDDED_GUIDANCE if options.embedded_guidance is None else options.embedded_guidance
    embedded = guidance_embedding(scale, int(width)).to(options.device) if width else None
    distilled = how.distilled or embedded is not None
    more: dict[str, Any] = {"wrap": PaintingDenoiser} if config.in_channels > config.out_channels else {}
    return finish(
        built,
        PromptEncoder(text),
        UNet(built.networks["unet"], built.placement, embedded),
        how,
        latent,
        summary=NAMES[source.family] + (", for painting into pictures" if more else ""),
        guidance=None if distilled else 7.5,
        steps=4 if distilled else 50,
        member="sd-turbo" if how.distilled and source.family == "sd2" else "",
        **more,
    )
