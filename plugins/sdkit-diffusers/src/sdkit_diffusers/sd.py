"""Stable Diffusion 1.x and 2.x, their inpainting models, and what was distilled from them.

Source: Rombach et al. 2022, https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sdkit import FileError, LatentSpec, Model
from sdkit_diffusers.assembly import build, finish, side_of
from sdkit_diffusers.members import named
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.schedules import trained
from sdkit_diffusers.text import TextEncoder, TextStates, plain
from sdkit_diffusers.unet import PaintingDenoiser, UNet, guidance_embedding

if TYPE_CHECKING:
    from sdkit_prompts.steps import Flat

__all__ = ["PromptEncoder", "assemble"]

NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}
EMBEDDED_GUIDANCE = 8.5
"""What LCM's authors use."""


@frozen(eq=False)
class PromptEncoder:
    """Prompts to the states of CLIP's last layer (version 2: of a text tower whose last layer was left out).

    Attributes:
        text: CLIP.
        skip: How many more of the last layers are left out.
    """

    text: TextEncoder
    skip: int = 0

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Encoded prompts, one row each; what is beyond 75 tokens is cut off, and told."""
        states, _ = self.text.clip(self.text.rows(prompts), skip=self.skip)
        return TextStates(states)

    def weighted(self, flats: Sequence[Flat], law: str, /) -> TextStates:
        """Prompts in a dialect: with weights, and of any length, in chunks of 75 tokens side by side."""
        texts = plain(flats, {"CLIP": self.text})
        if texts is not None:
            return self(texts)
        return TextStates(self.text.weighted_clip(flats, law, skip=self.skip)[0])


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
        member=named(source.family, few_steps=how.distilled),
        **more,
    )
