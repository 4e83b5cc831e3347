"""A loaded model: its parts, and the facts about it that people and pipelines need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import field, frozen

from sdkit.errors import InvalidRequest, ParameterError
from sdkit.protocols import Autoencoder, Denoiser, Encoder, NoiseSchedule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UNKNOWN_LICENCE", "LatentSpec", "Licence", "Model", "ModelSpec", "Term"]

C = TypeVar("C")


@frozen
class Term:
    """One term of a licence, as data.

    Attributes:
        kind: What it is about, for example ``"revenue-ceiling"``; `sdkit licence` knows a list of them.
        clause: The sentence a person needs about it.
        limit: Its number, where it has one.
    """

    kind: str
    clause: str
    limit: float | None = None


@frozen
class Licence:
    """Under which terms a model may be used. Facts, not legal advice.

    Attributes:
        id: SPDX identifier where there is one, else a short name; ``"unknown"`` is never "free".
        name: Full name.
        summary: The sentence a person needs.
        url: Where the text is.
        duties: What a user must do, one sentence each.
        attribution: Whom to name, one line each.
        terms: What it restricts, as data; a licence without any restricts nothing that is known.
    """

    id: str
    name: str
    summary: str = ""
    url: str = ""
    duties: tuple[str, ...] = ()
    attribution: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()


UNKNOWN_LICENCE = Licence(
    "unknown", "unknown licence", "The terms of this model are not known; ask its author before you use it."
)


@frozen
class LatentSpec:
    """The latents a decoder reads.

    Attributes:
        channels: Channels of a latent.
        factor: Pixels per latent element along width and height.
        size: Default picture size (width, height) in pixels.
        multiple: Width and height must be multiples of this many pixels; at least ``factor``.
        frames: Of latents with an axis of time, its length in elements, as ``(13,)``; of pictures nothing.
    """

    channels: int
    factor: int
    size: tuple[int, int]
    multiple: int = 0
    frames: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.channels < 1 or self.factor < 1 or (self.multiple and self.multiple % self.factor):
            raise ParameterError(f"Latents need a channel, a factor and a multiple of it, each at least 1, not {self}.")

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """(channels, height, width) of the latent of a picture of ``size`` (width, height); frames come before height.

        Raises:
            InvalidRequest: the size does not fit.
        """
        step = self.multiple or self.factor
        if any(side < step or side % step for side in size):
            near = tuple(max(step, round(side / step) * step) for side in size)
            raise InvalidRequest(
                f"Size {size[0]}x{size[1]} does not fit: this model needs sides that are multiples of {step}; "
                f"near is {near[0]}x{near[1]}."
            )
        return (self.channels, *self.frames, size[1] // self.factor, size[0] // self.factor)


@frozen
class ModelSpec:
    """Facts about a model.

    Attributes:
        name: What `sdkit.load` finds it by: a registered name, or the file's or folder's own name (never a path).
        family: Architecture and lineage, for example ``"emoji"`` or ``"sd15"``.
        latent: Its latents and default size.
        licence: Its terms.
        summary: One line for people.
        prediction: What its network predicts: the name of a parametrization.
        scheduler: Recommended scheduler, as typed in a request.
        spacing: Recommended spacing, as typed in a request.
        steps: Recommended number of steps.
        guidance: Recommended guidance scale, or None for a model that takes none.
        sha256: Hash of its weights in hexadecimal, empty if not known.
        knows: Concepts the model was trained on, where that list is short enough to state.
    """

    name: str
    family: str
    latent: LatentSpec
    licence: Licence = UNKNOWN_LICENCE
    summary: str = ""
    prediction: str = ""
    scheduler: str = "euler"
    spacing: str = "trailing"
    steps: int = 50
    guidance: float | None = None
    sha256: str = ""
    knows: tuple[str, ...] = field(default=(), repr=False)


@frozen(eq=False)
class Model(Generic[C]):
    """A loaded family member; a context manager that gives its memory back on leaving.

    Attributes:
        spec: Facts about it.
        encoder: Prompts to conditioning.
        denoiser: ``E[x0 | x]``, not guided.
        autoencoder: Pictures, float (batch, 3, height, width) in [0, 1], to latents and back.
        schedule: The noise schedule it was trained on.
        device: Where its weights are, as torch writes it.
    """

    spec: ModelSpec
    encoder: Encoder[str, C]
    denoiser: Denoiser[C]
    autoencoder: Autoencoder[Tensor]
    schedule: NoiseSchedule
    device: str = "cpu"
    _on_close: Callable[[], Any] | None = field(default=None, repr=False, alias="on_close")

    def close(self) -> None:
        """Give the memory back; what the loader registered for this is called. Calling it twice does no harm."""
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Model[C]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
