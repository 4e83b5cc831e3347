"""Everything that makes a picture, as one value."""

from __future__ import annotations

import io
import math
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from sdkit.errors import FileError, InvalidRequest
from sdkit.protocols import MAX_GUIDANCE, MAX_SEED

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "Request"]

MAX_SIDE = 2**15


@frozen
class Picture:
    """An input picture as a value: PNG bytes, so that it can be compared, hashed, and travel inside a manifest."""

    png: bytes = field(repr=False)

    @classmethod
    def of(cls, source: Picture | Image | str | os.PathLike[str]) -> Picture:
        """From a Pillow image or a file; the pixels are kept as they are.

        Raises:
            FileError: the file cannot be read as a picture.
            InvalidRequest: it is nothing of the kind, or has transparency (compose it on a background first).
        """
        from PIL import Image, ImageOps

        if isinstance(source, Picture):
            return source
        if isinstance(source, (str, os.PathLike)):
            try:
                with Image.open(source) as opened:
                    opened.load()
                    # a camera's "turn me" is part of how the picture is meant to be seen
                    image: Image.Image = ImageOps.exif_transpose(opened)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise FileError(f"{Path(source).name!r} cannot be read as a picture: {reason}.") from error
        elif isinstance(source, Image.Image):
            image = source
        else:
            raise InvalidRequest(f"A picture is a Pillow image or a file name, not a {type(source).__name__}.")
        if image.mode.startswith(("I", "F")):
            raise InvalidRequest(
                f"The picture has pixels of more than 8 bits (Pillow's mode {image.mode}), and how to bring them "
                "to 8 is not for sdkit to guess: convert it to RGB or L first."
            )
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode in ("RGBA", "LA", "PA"):
            low, _ = image.getchannel("A").getextrema()
            if not isinstance(low, int) or low < 255:
                raise InvalidRequest(
                    "The picture has transparent pixels, and which colour lies behind them is not for sdkit to guess: "
                    "compose it on a background first."
                )
        if image.mode not in ("RGB", "L"):
            image = image.convert("L" if image.mode == "LA" else "RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return cls(buffer.getvalue())

    def image(self) -> Image:
        """The picture as a Pillow image, RGB or greyscale."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png)) as opened:
            opened.load()
            return opened.copy()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, from the file's header."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png)) as opened:
            return opened.size


def _picture(value: Any) -> Picture | None:
    return None if value is None else Picture.of(value)


def _seeds(value: Any) -> tuple[Any, ...]:
    # what is no seed is left for the check to name; numbers of numpy's are numbers
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return tuple(operator.index(v) if hasattr(v, "__index__") and not isinstance(v, bool) else v for v in values)


def _modifiers(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidRequest(f"modifiers is a tuple of modifiers, or of their names, not {value!r}.")
    return tuple(value)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@frozen
class Request:
    """Everything that makes a picture. ``None`` means: as the pipeline or its model recommends.

    Attributes:
        prompt: What to show.
        negative: What to move away from; needs guidance.
        seeds: One per image; image k depends on seed k alone, whatever else is in the batch. 0 to 2^64 - 1.
        size: (width, height) in pixels.
        scheduler: Name of a scheduler, parameters may follow: ``"ddim(eta=0.5)"``; or one that names its spacing too,
            as other tools write it: ``"DPM++ 2M Karras"``.
        spacing: Name of a spacing, parameters may follow: ``"karras(rho=5)"``.
        noise: Name of a source of noise: ``"addressed"`` (sdkit's own), ``"brownian"`` (a finer grid refines the same
            path; of a plugin), ``"torch"`` (the draws of other tools).
        steps: Number of steps, at least 1.
        guidance: Scale of classifier-free guidance; 1 is none.
        guidance_rescale: 0 (off) to 1, see `sdkit.guided`.
        guidance_interval: (low, high) in sigma / alpha in which guidance acts, see `sdkit.guided`.
        image: Picture to start from: a Pillow image or a file name.
        strength: How much of the way is walked again from ``image``: above 0 (nothing) to 1 (everything); by default
            0.6, with a mask 1.
        steps_policy: ``"proportional"`` walks the last ``round(steps * strength)`` of ``steps`` steps; ``"exact"``
            divides finer so that ``steps`` steps are walked.
        mask: Where to paint, white, over ``image``; black pixels are kept exactly.
        modifiers: Changes of behaviour, applied in order: modifiers, or their names, parameters may follow.

    Raises:
        InvalidRequest: a value is out of range; the sentence says which.
        FileError: a picture cannot be read.
    """

    prompt: str
    negative: str = field(default="", kw_only=True)
    seeds: tuple[int, ...] = field(default=(0,), converter=_seeds, kw_only=True)
    size: tuple[int, int] | None = field(default=None, converter=_pair, kw_only=True)
    scheduler: str | None = field(default=None, kw_only=True)
    spacing: str | None = field(default=None, kw_only=True)
    noise: str | None = field(default=None, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)
    guidance: float | None = field(default=None, kw_only=True)
    guidance_rescale: float | None = field(default=None, kw_only=True)
    guidance_interval: tuple[float, float] | None = field(default=None, converter=_pair, kw_only=True)
    image: Picture | None = field(default=None, converter=_picture, kw_only=True)
    strength: float | None = field(default=None, kw_only=True)
    steps_policy: Literal["proportional", "exact"] = field(default="proportional", kw_only=True)
    mask: Picture | None = field(default=None, converter=_picture, kw_only=True)
    modifiers: tuple[Any, ...] = field(default=(), converter=_modifiers, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for problem in (*self._texts(), *self._numbers(), *self._pictures()):
            raise InvalidRequest(problem)

    def _texts(self) -> Iterator[str]:
        for name in ("prompt", "negative"):
            text = getattr(self, name)
            if not isinstance(text, str):
                yield f"The {name} must be text, not {text!r}."
            elif any("\ud800" <= letter <= "\udfff" for letter in text):
                yield f"The {name} is not valid Unicode text: {text!r}."
        for name in ("scheduler", "spacing", "noise"):
            if not isinstance(getattr(self, name), str | None):
                yield f"A request names its {name}, to travel as text; give the object to sdkit.pipeline instead."

    def _numbers(self) -> Iterator[str]:
        if not self.seeds:
            yield "A request needs at least one seed, one per image."
        for seed in self.seeds:
            if not _whole(seed) or not 0 <= seed <= MAX_SEED:
                yield f"A seed is a whole number from 0 to {MAX_SEED}, not {seed!r}."
        size = self.size
        if size is not None and not (
            isinstance(size, tuple) and len(size) == 2 and all(_whole(side) and 0 < side <= MAX_SIDE for side in size)
        ):
            yield f"The size is (width, height) in pixels up to {MAX_SIDE}, for example (128, 128), not {size!r}."
        if self.steps is not None and (not _whole(self.steps) or self.steps < 1):
            yield f"The number of steps must be a whole number of at least 1, not {self.steps!r}."
        if self.guidance is not None and (not _finite(self.guidance) or abs(self.guidance) > MAX_GUIDANCE):
            yield f"Guidance must be a finite number, not {self.guidance!r}; 1 is none, usual are 3 to 9."
        rescale = self.guidance_rescale
        if rescale is not None and (not _finite(rescale) or not 0 <= rescale <= 1):
            yield f"Guidance rescale must lie between 0 and 1, not {rescale!r}."
        interval = self.guidance_interval
        if interval is not None and not _interval(interval):
            yield f"The guidance interval is (low, high) in sigma / alpha, 0 <= low < high <= inf, not {interval!r}."
        if self.strength is not None and (not _finite(self.strength) or not 0 < self.strength <= 1):
            yield f"Strength must be above 0 (nothing changes) and at most 1 (nothing is kept), not {self.strength!r}."
        if self.steps_policy not in ("proportional", "exact"):
            yield f"steps_policy is 'proportional' or 'exact', not {self.steps_policy!r}."

    def _pictures(self) -> Iterator[str]:
        if self.image is None:
            if self.mask is not None or self.strength is not None:
                given = "a mask" if self.mask is not None else "a strength"
                yield f"There is {given} but no image to start from; give an image too."
            return
        if self.mask is not None and self.mask.size != self.image.size:
            yield f"The mask is {_by(self.mask.size)} and the image {_by(self.image.size)}; make them the same size."
        if self.size is not None and self.image.size != self.size:
            yield (
                f"The image is {_by(self.image.size)} but the size asked for is {_by(self.size)}; resize the image, "
                "or leave the size out."
            )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _interval(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        and 0 <= value[0] < value[1]
    )


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
