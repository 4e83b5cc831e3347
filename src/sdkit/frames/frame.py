"""Frames, and the contracts of what makes, changes and writes them. Nothing here computes.

A generator is pure, as a scheduler is: ``step(job, index, state)`` makes the next frames from what it is given and
holds nothing itself. The loop is outside (`sdkit.animate`), so lazy work, cancelling, checkpoints and exact resume are
the same for every generator. Pictures are uint8 arrays (height, width, 3), RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from attrs import field, frozen

from sdkit.errors import ContractError
from sdkit.frames.time import Timeline
from sdkit.frames.tracks import Mix, PromptTrack

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sdkit.request import Request

    Pixels: TypeAlias = NDArray[np.uint8]

__all__ = [
    "Burst",
    "Capability",
    "Frame",
    "FrameFilter",
    "FrameGenerator",
    "FrameInfo",
    "FrameJob",
    "FramePlan",
    "FrameSink",
    "ImageSource",
    "Shot",
    "SinkWriter",
]

Origin: TypeAlias = Literal["diffused", "warped", "interpolated", "repeated"]
State: TypeAlias = Mapping[str, Any]
"""All a generator has to know to go on: tensors, and values that JSON holds, by name."""


class Capability(Enum):
    """What a source of images can do."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    START_NOISE = "start noise between two seeds"
    CONDITIONING = "prompts between two prompts"
    LATENTS = "latents in and out"


@frozen
class FrameInfo:
    """Where a frame comes from.

    Attributes:
        origin: ``diffused`` (a model made it), ``warped``, ``interpolated`` (blended) or ``repeated``.
        seeds: Seeds with their weights.
        prompts: Prompts with their weights.
        values: What the curves were at this frame, by name.
    """

    origin: Origin = "diffused"
    seeds: Mix[int] = ()
    prompts: Mix[str] = ()
    values: Mapping[str, float] = field(factory=dict)


@frozen(eq=False)
class Frame:
    """One frame of a clip.

    Attributes:
        index: From 0.
        pts: When it is shown, in seconds.
        duration: For how long, in seconds.
        image: uint8 (height, width, 3), RGB, read-only; no other frame shares its memory.
        info: Where it comes from.
    """

    index: int
    pts: Fraction
    duration: Fraction
    image: Pixels = field(repr=False)
    info: FrameInfo = field(default=FrameInfo(), repr=False)

    def __attrs_post_init__(self) -> None:
        shape: tuple[int, ...] = getattr(self.image, "shape", ())
        kind = str(getattr(self.image, "dtype", type(self.image)))
        if len(shape) != 3 or shape[2] != 3 or kind != "uint8":
            raise ContractError(f"A frame is uint8 (height, width, 3), not {kind} {tuple(shape)}.")
        if self.image.flags.writeable or self.image.base is not None:
            image = self.image.copy()
            image.setflags(write=False)
            object.__setattr__(self, "image", image)

    @classmethod
    def of(cls, index: int, timeline: Timeline, image: Pixels, info: FrameInfo | None = None) -> Frame:
        """The frame of that number on a timeline."""
        return cls(index, timeline.pts(index), timeline.step, image, info or FrameInfo())


@frozen
class Shot:
    """One picture asked of a source.

    Attributes:
        prompts: One prompt, or two with their weights: the conditioning lies between theirs.
        seeds: One seed, or two with their weights: the noise lies on the arc between theirs.
    """

    prompts: Mix[str]
    seeds: Mix[int]


class ImageSource(Protocol):
    """What a generator makes pictures with; `sdkit.image_source` makes one of a pipeline."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do."""
        ...

    def size(self, request: Request, /) -> tuple[int, int]:
        """(width, height) of the pictures of a request, in pixels."""
        ...

    def latents(
        self,
        request: Request,
        shots: Sequence[Shot],
        *,
        start: Tensor | None = None,
        strength: float | None = None,
        blend: str = "lerp",
        tick: Callable[[], None] | None = None,
    ) -> Tensor:
        """Clean latents (one per shot, channels, *space).

        Args:
            request: All but prompt, seeds, image and strength is taken from it.
            shots: What differs within the batch.
            start: Clean latents to start from, one per shot; needs `Capability.IMAGE_TO_IMAGE`.
            strength: How much of the way is walked again from ``start``, above 0 to 1.
            blend: ``lerp`` or ``slerp``: how conditionings are mixed.
            tick: Called before each evaluation of the model; what it raises ends the run.
        """
        ...

    def decode(self, latents: Tensor, request: Request, /, *, first: int = 0) -> Iterator[Pixels]:
        """Pictures of the latents from number ``first`` on, as they would be with those before."""
        ...

    def encode(self, images: Sequence[Pixels], request: Request, /) -> Tensor:
        """Latents of pictures; needs `Capability.IMAGE_TO_IMAGE`."""
        ...

    def facts(self) -> Mapping[str, str]:
        """What a manifest says about the model: ``model``, ``model_sha256``, ``licence``."""
        ...


class Keeper(Protocol):
    """Where latents are kept before they are decoded: a journal."""

    def latents(self, index: int, make: Callable[[], Tensor], /) -> Tensor:
        """Those kept for the step that begins at frame ``index``, else what ``make`` makes, kept from now on."""
        ...


@frozen(eq=False)
class FrameJob:
    """What a generator is given.

    Attributes:
        source: What makes pictures, or None.
        request: The model's side: steps, guidance, size, modifiers, seeds; its image is the still to begin from.
        timeline: How many frames; a generator sees no `Loop.PINGPONG`, which is made of the frames of one way.
        prompts: The prompts over time.
        tick: To be handed to the source: how a run is cancelled within one evaluation.
        keeper: Where latents are kept before they are decoded, or None.
    """

    source: ImageSource | None
    request: Request
    timeline: Timeline
    prompts: PromptTrack
    tick: Callable[[], None] | None = None
    keeper: Keeper | None = None

    @property
    def seed(self) -> int:
        """The first seed of the request: what curves call s."""
        return self.request.seeds[0]

    @property
    def images(self) -> ImageSource:
        """The source; a generator that needs none does not ask.

        Raises:
            ContractError: there is none, and ``needs`` did not say so.
        """
        if self.source is None:
            raise ContractError("The generator uses a source of images and declared that it needs none.")
        return self.source

    def latents(self, index: int, make: Callable[[], Tensor]) -> Tensor:
        """Latents of the step that begins at frame ``index``, which a journal keeps before anything is decoded."""
        return make() if self.keeper is None else self.keeper.latents(index, make)


@frozen
class FramePlan:
    """What a job will take, known before anything is computed.

    Attributes:
        window: Most frames that one step makes, and that are held at a time.
        evaluations: Evaluations of the model on one picture, over the whole clip; None if that is not known.
        peak_bytes: Most memory the frames of one window take, in bytes, without the model.
    """

    window: int = 1
    evaluations: int | None = None
    peak_bytes: int = 0


@frozen(eq=False)
class Burst:
    """What one step of a generator gives.

    Attributes:
        frames: The next frames, at least one; may be lazy, so that latents are decoded one at a time.
        state: What the next step is given. It must be known without the frames having been taken.
    """

    frames: Iterable[Frame]
    state: State


class FrameGenerator(Protocol):
    """Makes the frames of a clip: a frozen attrs class whose fields are its parameters; curves may be given as text."""

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """What the source must be able to do for this job; checked before anything is computed."""
        ...

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the job will take; nothing is computed.

        Raises:
            InvalidRequest, ParameterError: it cannot be carried out; says what could be.
        """
        ...

    def init(self, job: FrameJob, /) -> State:
        """The state before the first frame."""
        ...

    def step(self, job: FrameJob, index: int, state: State, /) -> Burst:
        """The next frames, from number ``index``; pure: the same arguments give the same bits."""
        ...


class FrameFilter(Protocol):
    """Changes a stream of frames.

    ``keeps_duration`` (a class attribute, True where absent) says whether the clip is shown for as long as before.
    """

    @property
    def window(self) -> int:
        """Most frames held at a time."""
        ...

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """What becomes of a timeline.

        Raises:
            InvalidRequest, ParameterError: the filter cannot work on it.
        """
        ...

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The changed frames, lazily, of a stream on ``timeline``."""
        ...


class SinkWriter(Protocol):
    """A file being written. Until ``finish``, nothing stands under the final name."""

    def write(self, frame: Frame, /) -> None:
        """Add the next frame."""
        ...

    def finish(self) -> Path:
        """Complete the file and give it its name."""
        ...

    def abort(self) -> None:
        """Stop: what is left is nothing, or a file of another name that plays."""
        ...


class FrameSink(Protocol):
    """A kind of file that clips are written to; its component's name is the file's ending.

    A method ``check(timeline)``, where there is one, refuses what the format cannot hold before anything is rendered.
    """

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> SinkWriter:
        """Begin a file.

        Args:
            path: The final name.
            timeline: How many frames come, how fast, and how they loop.
            size: (width, height) of every frame.
            manifest: JSON text about what made the clip, to be written into the file.

        Raises:
            FileError: it cannot be written.
            ParameterError: the format cannot hold this.
        """
        ...

    def read(self, path: Path, /, start: Fraction = Fraction(0)) -> tuple[Iterator[Frame], str]:
        """The frames of such a file, one at a time, and the manifest inside (empty if there is none).

        Args:
            path: The file.
            start: The first frame is the one shown at this time, in seconds.

        Raises:
            FileError: it cannot be read.
        """
        ...
