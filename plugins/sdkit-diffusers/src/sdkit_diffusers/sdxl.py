"""Stable Diffusion XL: the base model and the refiner.

Beside text the network is told the size a picture had before training cut it, where it was cut, and the size it has
now; the refiner is told a score of its beauty in place of the last. Source: Podell et al. 2023,
https://arxiv.org/abs/2307.01952, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from sdkit import (
    Conditions,
    FileError,
    InvalidRequest,
    LatentSpec,
    Level,
    Model,
    NetworkDenoiser,
    NoiseSchedule,
    concatenate,
)
from sdkit_diffusers.assembly import build, finish, side_of
from sdkit_diffusers.members import named
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.schedules import trained
from sdkit_diffusers.text import TextEncoder, TextStates, plain, words
from sdkit_diffusers.unet import PaintingDenoiser, UNet

if TYPE_CHECKING:
    from sdkit_prompts.steps import Flat

__all__ = ["PromptEncoder", "RefinerDenoiser", "SizeConditions", "assemble"]


@frozen
class SizeConditions:
    """What the network is told about sizes: (width, height) and (x, y) in pixels; None is the picture's own size.

    Attributes:
        original: Size before training cut the picture; a small one asks for the look of enlarged pictures.
        crop: Where its left upper corner was cut; (0, 0) asks for a subject in the middle.
        target: Size afterwards; the refiner is not told.
        factor: Pixels per latent element.
        scored: Whether a score takes the place of the size afterwards, as in the refiner.
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None
    factor: int = 8
    scored: bool = False

    def __call__(self, x: Tensor, cond: TextStates) -> dict[str, Any]:
        """The network's inputs beside text and time, for latents ``x`` and ``cond`` of the same batch."""
        own = (x.shape[-1] * self.factor, x.shape[-2] * self.factor)
        # the network is told height before width and y before x
        told = [*(self.original or own)[::-1], *self.crop[::-1]]
        if not self.scored:
            told += (self.target or own)[::-1]
        numbers = torch.tensor([told], dtype=x.dtype, device=x.device).expand(x.shape[0], -1)
        if self.scored and cond.score is not None:
            numbers = torch.cat([numbers, cond.score[:, None].to(numbers)], dim=1)
        return {"added_cond_kwargs": {"text_embeds": cond.pooled, "time_ids": numbers}}


@frozen(eq=False)
class PromptEncoder:
    """Prompts to the states of both CLIPs, side by side, and the second one's pooled vector.

    An empty prompt is zeros in the base model, as in its training; diffusers does that for a negative prompt that is
    not given, and encodes one that is given and empty.

    Attributes:
        first: OpenAI's CLIP; the refiner has none.
        second: OpenCLIP.
        empty_is_zero: See above.
        skip: How many more of the last layers are left out than the last one.
    """

    first: TextEncoder | None
    second: TextEncoder
    empty_is_zero: bool = True
    skip: int = 0

    def __call__(self, prompts: Sequence[str], /) -> TextStates:
        """Encoded prompts, one row each; what is beyond 75 tokens is cut off, and told."""
        states, pooled = self.second.clip(self.second.rows(prompts), skip=1 + self.skip, norm=False)
        if self.first is not None:
            beside, _ = self.first.clip(self.first.rows(prompts, tell=False), skip=1 + self.skip, norm=False)
            states = torch.cat([beside, states], dim=2)
        return self._zeroed(states, pooled, prompts)

    def weighted(self, flats: Sequence[Flat], law: str, /) -> TextStates:
        """Prompts in a dialect: with weights, and of any length, in chunks of 75 tokens side by side.

        Raises:
            InvalidRequest: a textual inversion has not as many vectors for the one text encoder as for the other.
        """
        texts = plain(flats, {"OpenCLIP": self.second, "CLIP": self.first})
        if texts is not None:
            return self(texts)
        states, pooled = self.second.weighted_clip(flats, law, skip=1 + self.skip, norm=False)
        if self.first is not None:
            beside, _ = self.first.weighted_clip(flats, law, skip=1 + self.skip, norm=False)
            if beside.shape[1] != states.shape[1]:
                raise InvalidRequest(
                    f"The prompt takes {beside.shape[1]} tokens in one encoder and {states.shape[1]} in the other: "
                    "a textual inversion has not the same number of vectors for both."
                )
            states = torch.cat([beside, states], dim=2)
        return self._zeroed(states, pooled, [words(flat) for flat in flats])

    def _zeroed(self, states: Tensor, pooled: Tensor, prompts: Sequence[str]) -> TextStates:
        if self.empty_is_zero and "" in prompts:
            kept = torch.tensor([float(prompt != "") for prompt in prompts], device=states.device, dtype=states.dtype)
            states, pooled = states * kept[:, None, None], pooled * kept[:, None]
        return TextStates(states, pooled)


@frozen(eq=False)
class RefinerDenoiser:
    """The refiner's denoiser: it is told a score of beauty, high for the prompt and low for the negative one.

    Attributes:
        denoiser: Of the network.
        score: Of the prompt, usually 1 to 10; 6 is its authors' choice.
        negative_score: Of the negative prompt; 2.5 is its authors' choice.
    """

    denoiser: NetworkDenoiser[TextStates]
    score: float = 6.0
    negative_score: float = 2.5

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, level: Level, cond: TextStates, /) -> Tensor:
        """The predicted clean latents."""
        return self.denoiser(x, level, _scored(cond, self.score))

    def pair(self, x: Tensor, level: Level, cond: Conditions[TextStates], /) -> Sequence[Tensor]:
        """The predictions for the prompt and for the negative one, in one pass."""
        both = concatenate(_scored(cond.positive, self.score), _scored(cond.negative, self.negative_score))
        return self.denoiser(x.repeat(2, 1, 1, 1), level, both).chunk(2)


def _scored(cond: TextStates, score: float) -> TextStates:
    return evolve(cond, score=torch.full((cond.states.shape[0],), score, device=cond.states.device))


def _wrapping(refiner: bool, *, paints: bool) -> dict[str, Any]:
    if refiner:
        return {"wrap": lambda denoiser, autoencoder: RefinerDenoiser(denoiser)}
    return {"wrap": PaintingDenoiser} if paints else {}


def assemble(source: Source, options: Options) -> Model[TextStates]:
    """The model in a source.

    Raises:
        FileError: a part is missing, damaged, or does not fit the others.
    """
    how = trained(source.scheduler, prediction=options.prediction)
    built = build(source, options)
    second = built.text("text_encoder_2")
    if second is None:
        raise FileError(f"{source.path.name!r} has no second text encoder.")
    factor, side = side_of(built, "unet")
    config = built.config("unet")
    refiner = source.family == "sdxl-refiner"
    added = SizeConditions(factor=factor, scored=refiner)
    return finish(
        built,
        PromptEncoder(built.text("text_encoder"), second, bool(source.facts.get("force_zeros_for_empty_prompt"))),
        UNet(built.networks["unet"], built.placement, added=added),
        how,
        LatentSpec(int(config.out_channels), factor, (side, side)),
        summary="Stable Diffusion XL" + (", refiner" if refiner else ""),
        guidance=None if how.distilled else 5.0,
        steps=4 if how.distilled else 50,
        member=named(source.family, few_steps=how.distilled),
        **_wrapping(refiner, paints=config.in_channels > config.out_channels),
    )
