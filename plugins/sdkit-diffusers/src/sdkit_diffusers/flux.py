"""FLUX.1 schnell and dev (Black Forest Labs 2024, https://github.com/black-forest-labs/flux)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import Tensor

from sdkit import FileError, LatentSpec, Model
from sdkit_diffusers.assembly import build, finish, side_of
from sdkit_diffusers.members import named
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.schedules import flow
from sdkit_diffusers.text import TextEncoder, TextStates, plain, words

if TYPE_CHECKING:
    from sdkit_prompts.steps import Flat

__all__ = ["PromptEncoder", "Transformer", "assemble", "pack", "unpack"]

EMBEDDED_GUIDANCE = 3.5
"""What FLUX.1 dev's authors use."""


@frozen(eq=False)
class PromptEncoder:
    """Prompts to T5's states and CLIP's pooled vector.

    Attributes:
        clip: OpenAI's CLIP.
        t5: T5.
    """

    clip: TextEncoder
    t5: TextEncoder

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Encoded prompts, one row each; what is beyond T5's 255 tokens is cut off, and told."""
        return TextStates(self.t5.t5(self.t5.rows(prompts, name="T5")), self._pooled(prompts))

    def weighted(self, flats: Sequence[Flat], law: str, /) -> TextStates:
        """Prompts in a dialect; weights act on T5's states, CLIP's pooled vector is that of the words."""
        texts = plain(flats, {"T5": self.t5})
        if texts is not None:
            return self(texts)
        return TextStates(self.t5.weighted_t5(flats, law), self._pooled([words(flat) for flat in flats]))

    def _pooled(self, prompts: Sequence[str]) -> Tensor:
        # the pooled vector sums a prompt up, and its first 75 tokens are all it can be of
        return self.clip.clip(self.clip.rows(prompts, tell=False))[1]


def pack(x: Tensor) -> Tensor:
    """Latents (b, c, h, w) as tokens (b, h w / 4, 4 c), each a square of two by two."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for latents of that height and width."""
    b, _, c = tokens.shape
    squares = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


@frozen(eq=False)
class Transformer:
    """``(x, time, cond) -> Tensor`` of the transformer on packed latents.

    Attributes:
        network: diffusers' ``FluxTransformer2DModel``.
        placement: Puts it on the device.
        embedded: Guidance scale the network reads as an input, or None for one that reads none.
    """

    network: Any = field(repr=False)
    placement: Placement = field(repr=False)
    embedded: float | None = None

    def __call__(self, x: Tensor, time: Tensor, cond: TextStates, /, **more: Any) -> Tensor:
        """What the network predicts, for latents (b, channels, height, width) and times (b,) from 0 to 1.

        ``more`` are further inputs of diffusers' network, such as the residuals of a control network.
        """
        assert cond.pooled is not None  # of this family's encoder
        height, width = x.shape[-2:]
        places = torch.zeros((height // 2, width // 2, 3), device=x.device, dtype=x.dtype)
        places[..., 1] += torch.arange(height // 2, device=x.device)[:, None]
        places[..., 2] += torch.arange(width // 2, device=x.device)[None, :]
        guidance = None if self.embedded is None else torch.full_like(time, self.embedded)
        with self.placement.use(self.network):
            made: Tensor = self.network(
                hidden_states=pack(x),
                timestep=time.to(x.dtype),
                guidance=guidance,
                pooled_projections=cond.pooled.to(x.dtype),
                encoder_hidden_states=cond.states.to(x.dtype),
                txt_ids=x.new_zeros((cond.states.shape[1], 3)),
                img_ids=places.reshape(-1, 3),
                return_dict=False,
                **more,
            )[0]
        return unpack(made, height, width)


def assemble(source: Source, options: Options) -> Model[TextStates]:
    """The model in a source.

    Raises:
        FileError: a part is missing, damaged, or does not fit the others.
    """
    built = build(source, options)
    clip, t5 = built.text("text_encoder"), built.text("text_encoder_2")
    if clip is None or t5 is None:
        raise FileError(f"{source.path.name!r} lacks one of its text encoders, CLIP and T5.")
    config = built.config("transformer")
    factor, _ = side_of(built, "vae")
    side = 1024
    embedded = None
    if config.guidance_embeds:
        embedded = EMBEDDED_GUIDANCE if options.embedded_guidance is None else options.embedded_guidance
    return finish(
        built,
        PromptEncoder(clip, t5),
        Transformer(built.networks["transformer"], built.placement, embedded),
        flow(source.scheduler, shift=options.shift, time_scale=1.0, spacing="trailing", side=side // factor, patch=2),
        LatentSpec(int(config.in_channels) // 4, factor, (side, side), multiple=2 * factor),
        summary="FLUX.1 " + ("schnell" if embedded is None else "dev"),
        guidance=None,
        steps=4 if embedded is None else 50,
        member=named("flux", guided=embedded is not None),
    )
