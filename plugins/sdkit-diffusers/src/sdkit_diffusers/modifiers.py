"""What a request can say to these families beside prompt and guidance, as modifiers.

Each is a frozen value with a name (`sdkit --modifier "clip-skip(number=2)"`), and gives the same parts around other
values: nothing of the model is written, so there is nothing to undo and other threads see nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
from attrs import evolve, field, frozen

from sdkit import InvalidRequest, NetworkDenoiser, ParameterError, Parts
from sdkit_diffusers.flux import Transformer as FluxTransformer
from sdkit_diffusers.inversions import Inversions, found_in
from sdkit_diffusers.sdxl import RefinerDenoiser, SizeConditions
from sdkit_diffusers.text import TextEncoder
from sdkit_diffusers.unet import UNet, guidance_embedding
from sdkit_diffusers.wiring import INSIDE

__all__ = ["ClipSkip", "EmbeddedGuidance", "RefinerScores", "Sizes", "TextualInversion"]

AnyParts = Parts[Any, Any, Any]
T = TypeVar("T")


def _finite(instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ParameterError(f"{attribute.name} is a finite number, not {value!r}.")


def _changed(whole: Any, inside: tuple[str, ...], change: Callable[[Any], Any | None]) -> Any | None:
    """A chain of frozen values with ``change`` of the first link that it does not answer with None; None if all do."""
    made = change(whole)
    if made is not None or not attrs.has(type(whole)):
        return made
    found = {}
    for one in attrs.fields(type(whole)):
        if one.name in inside and getattr(whole, one.name) is not None:
            inner = _changed(getattr(whole, one.name), inside, change)
            if inner is not None:
                found[one.alias] = inner
    return evolve(whole, **found) if found else None


def _encoder(parts: AnyParts, change: Callable[[Any], Any | None], why: str) -> AnyParts:
    encoder = _changed(parts.encoder, ("inner", "encoder"), change)
    if encoder is None:
        raise InvalidRequest(why)
    return evolve(parts, encoder=encoder)


def _network(parts: AnyParts, change: Callable[[Any], Any | None], why: str) -> AnyParts:
    def call(link: Any) -> Any | None:
        if not isinstance(link, NetworkDenoiser):
            return None
        network = change(link.network)
        return None if network is None else evolve(link, network=network)

    denoiser = _changed(parts.denoiser, INSIDE, call)
    if denoiser is None:
        raise InvalidRequest(why)
    return evolve(parts, denoiser=denoiser)


@contextmanager
def _scope(value: T) -> Iterator[T]:
    yield value


def _count(instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(f"clip-skip counts layers from 1, which is the family's own, not {value!r}.")


@frozen
class ClipSkip:
    """Text is read from an earlier layer of CLIP, as anime models of Stable Diffusion 1 were trained.

    Attributes:
        number: As A1111 and model sites count: 1 is the family's own layer, 2 the one before it, and so on. (diffusers'
            ``clip_skip`` is one less.)
    """

    number: int = field(default=2, validator=_count)

    def apply(self, parts: AnyParts, /) -> AbstractContextManager[AnyParts]:
        """A scope in which text is read so.

        Raises:
            InvalidRequest: the family reads no layer of CLIP, or CLIP has not so many.
        """
        return _scope(_encoder(parts, self._skipping, "This model reads no states of CLIP; leave clip-skip out."))

    def _skipping(self, encoder: Any) -> Any | None:
        texts = [text for _, text in _texts(encoder)]
        if not texts or not hasattr(encoder, "skip"):
            return None
        most = min(text.layers for text in texts if hasattr(text.network.config, "max_position_embeddings"))
        if self.number > most:
            raise InvalidRequest(f"clip-skip leaves out up to {most} layers of this model's CLIP, not {self.number}.")
        return evolve(encoder, skip=self.number - 1)


def _texts(encoder: Any) -> list[tuple[str, TextEncoder]]:
    if not attrs.has(type(encoder)):
        return []
    named = [(one.name, getattr(encoder, one.name)) for one in attrs.fields(type(encoder))]
    return [(name, text) for name, text in named if isinstance(text, TextEncoder)]


@frozen
class TextualInversion:
    """Learned words: a prompt means them by the names of their files.

    Attributes:
        path: A ``.safetensors`` file, or a folder of such.
    """

    path: str = field(converter=str)

    def apply(self, parts: AnyParts, /) -> AbstractContextManager[AnyParts]:
        """A scope in which prompts may name them.

        Raises:
            FileError: there are none.
            InvalidRequest: the model reads none.
        """
        return _scope(_encoder(parts, self._knowing, "This model's text encoders read no textual inversions."))

    def _knowing(self, encoder: Any) -> Any | None:
        made: dict[str, TextEncoder] = {}
        for name, text in _texts(encoder):
            if text.tokenizer.start is None:
                continue  # T5
            table: Any = text.network.get_input_embeddings()  # type: ignore[operator]
            size, width = table.weight.shape
            # OpenCLIP is the one whose rows are filled up with another token than the end
            key = "clip_l" if text.tokenizer.pad == text.tokenizer.end else "clip_g"
            known = dict(text.inversions.paths) if text.inversions else {}
            made[name] = evolve(text, inversions=Inversions({**known, **found_in(Path(self.path))}, key, size, width))
        return evolve(encoder, **made) if made and hasattr(encoder, "skip") else None


@frozen
class EmbeddedGuidance:
    """The guidance scale that a distilled model reads as an input: FLUX.1 dev and LCM.

    Attributes:
        scale: Usually 3.5 for FLUX.1 dev and 8 for LCM.
    """

    scale: float = field(default=3.5, validator=_finite)

    def apply(self, parts: AnyParts, /) -> AbstractContextManager[AnyParts]:
        """A scope in which it is told so.

        Raises:
            InvalidRequest: the model reads no scale.
        """
        why = "This model reads no guidance scale as an input; set the request's guidance instead."
        return _scope(_network(parts, self._told, why))

    def _told(self, network: Any) -> Any | None:
        if not isinstance(network, (UNet, FluxTransformer)) or network.embedded is None:
            return None
        if isinstance(network, UNet):
            old = network.embedded
            assert old is not None  # as was asked above
            return evolve(network, embedded=guidance_embedding(self.scale, old.shape[1]).to(old.device))
        return evolve(network, embedded=float(self.scale))


def _pair(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and not (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**16 for one in value)
    ):
        raise ParameterError(
            f"{attribute.name} is two whole numbers of pixels, for example (1024, 1024), not {value!r}."
        )


@frozen
class Sizes:
    """What Stable Diffusion XL is told about sizes, in pixels; see `sdkit_diffusers.sdxl.SizeConditions`.

    Attributes:
        original: (width, height) before training cut the picture; a small one asks for the look of enlarged pictures.
        crop: (x, y) of the left upper corner of the cut.
        target: (width, height) afterwards.
    """

    original: tuple[int, int] | None = field(default=None, validator=_pair)
    crop: tuple[int, int] = field(default=(0, 0), validator=_pair)
    target: tuple[int, int] | None = field(default=None, validator=_pair)

    def apply(self, parts: AnyParts, /) -> AbstractContextManager[AnyParts]:
        """A scope in which it is told so.

        Raises:
            InvalidRequest: the model is told no sizes.
        """
        return _scope(_network(parts, self._told, "Only Stable Diffusion XL and its refiner are told sizes."))

    def _told(self, network: Any) -> Any | None:
        if not isinstance(network, UNet) or not isinstance(network.added, SizeConditions):
            return None
        added = evolve(network.added, original=self.original, crop=self.crop, target=self.target)
        return evolve(network, added=added)


@frozen
class RefinerScores:
    """The scores of beauty that XL's refiner is told.

    Attributes:
        score: With the prompt, usually 1 to 10.
        negative: With the negative prompt.
    """

    score: float = field(default=6.0, validator=_finite)
    negative: float = field(default=2.5, validator=_finite)

    def apply(self, parts: AnyParts, /) -> AbstractContextManager[AnyParts]:
        """A scope in which it is told so.

        Raises:
            InvalidRequest: the model is no refiner.
        """

        def told(link: Any) -> Any | None:
            refiner = isinstance(link, RefinerDenoiser)
            return evolve(link, score=self.score, negative_score=self.negative) if refiner else None

        # the refiner of a hand-over too: only scores are told to it, other changes mean the base model
        denoiser = _changed(parts.denoiser, (*INSIDE, "refiner"), told)
        if denoiser is None:
            raise InvalidRequest("Only the refiner of Stable Diffusion XL is told a score.")
        return _scope(evolve(parts, denoiser=denoiser))
