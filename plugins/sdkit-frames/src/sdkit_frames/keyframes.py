"""From one given picture to the next: "interpolate between two images I already like".

Between two keys the latents of both are mixed and painted over: ``denoise * sin(pi u)`` of the way at share u, nothing
at the keys themselves, where the clip shows the given pictures as they are. Behind the last
key of a closed loop the first comes again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdkit import (
    Burst,
    Capability,
    Curve,
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    InvalidRequest,
    Keyframe,
    ParameterError,
    Shot,
    between_keys,
    lerp,
    slerp,
)

__all__ = ["Keyframes"]


def _images(value: Any) -> tuple[tuple[int, str], ...]:
    items = value.items() if isinstance(value, Mapping) else value
    try:
        pairs = [(frame, path) for frame, path in items]
        if any(isinstance(frame, (bool, float)) for frame, _ in pairs):
            raise ValueError
        found = tuple(sorted((int(frame), str(path)) for frame, path in pairs))
    except (TypeError, ValueError):
        raise ParameterError(f"The images are {{frame: file name}}, not {value!r}.") from None
    if len(found) < 2 or found[0][0] < 0 or len({frame for frame, _ in found}) < len(found):
        raise ParameterError(f"The images are two or more, at different frames from 0, not {value!r}.")
    return found


@frozen
class Keyframes:
    """Pulled toward given pictures at given frames.

    Attributes:
        images: ``{0: "a.png", 24: "b.png"}``.
        denoise: How much is painted anew half-way between two keys, 0 to 1.
        mix: ``slerp`` or ``lerp`` of the latents.
        ease: How one picture goes over to the next: ``linear``, ``cubic``, ``cosine`` or ``step``.

    Raises:
        ParameterError: a value is out of range.
    """

    images: tuple[tuple[int, str], ...] = field(converter=_images)
    denoise: Curve = field(default=Curve(0.5), converter=Curve)
    mix: str = "slerp"
    ease: str = "linear"

    def __attrs_post_init__(self) -> None:
        if self.mix not in ("lerp", "slerp"):
            raise ParameterError(f"Latents are mixed by lerp or slerp, not by {self.mix!r}.")

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Image to image, and latents between two."""
        needs = {Capability.IMAGE_TO_IMAGE, Capability.LATENTS}
        return frozenset(needs | {Capability.CONDITIONING} if len(job.prompts.keys) > 1 else needs)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What it takes; the pictures are read once.

        Raises:
            FileError: a picture cannot be read.
            InvalidRequest: a key lies behind the end.
        """
        if job.request.image is not None:
            raise InvalidRequest("Keyframes has its pictures in images={frame: file}; leave the request's image out.")
        late = [frame for frame, _ in self.images if frame >= job.timeline.frames]
        if late:
            raise InvalidRequest(
                f"There is a picture at frame {late[0]}, and the last frame is {job.timeline.frames - 1}."
            )
        for i in range(job.timeline.frames):
            value = self.denoise.at(i, job.timeline, seed=job.seed)
            if not 0 <= value <= 1:
                raise ParameterError(f"Denoise lies between 0 and 1, not at {value:g} as at frame {i}.")
        between_keys(self.images, 0, job.timeline, self.ease)
        size = job.images.size(job.request)
        for frame, path in self.images:
            try:
                self._picture(Keyframe(frame, path), size)
            except InvalidRequest as error:
                error.add_note(f"in the picture at frame {frame}, {Path(path).name!r}")
                raise
        return FramePlan(1, None, 3 * size[0] * size[1] * 3)

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: each frame depends on the given pictures alone."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """One frame."""
        mix = between_keys(self.images, index, job.timeline, self.ease)
        size = job.images.size(job.request)
        pictures = [self._picture(Keyframe(0, path), size) for path, _ in mix]
        share = mix[1][1] if len(mix) == 2 else 0.0
        redone = self.denoise.at(index, job.timeline, seed=job.seed) * math.sin(math.pi * share)
        shot = Shot(job.prompts.at(index, job.timeline), ((job.seed, 1.0),))
        image = pictures[0] if len(mix) == 1 else self._between(job, index, pictures, share, redone, shot)
        origin = "diffused" if redone > 0 else "repeated" if len(mix) == 1 else "interpolated"
        info = FrameInfo(origin, shot.seeds, shot.prompts, {"denoise": redone, "share": share})  # type: ignore[arg-type]
        return Burst([Frame.of(index, job.timeline, image, info)], {})

    def _between(
        self, job: FrameJob, index: int, pictures: list[NDArray[np.uint8]], share: float, redone: float, shot: Shot
    ) -> NDArray[np.uint8]:
        def make() -> Tensor:
            one, two = job.images.encode(pictures, job.request).chunk(2)
            part = one.new_tensor([share])
            start = slerp(one, two, part) if self.mix == "slerp" else lerp(one, two, part)
            if redone <= 0:
                return start
            return job.images.latents(job.request, [shot], start=start, strength=redone, tick=job.tick)

        return next(iter(job.images.decode(job.latents(index, make), job.request)))

    @staticmethod
    def _picture(key: Keyframe, size: tuple[int, int]) -> NDArray[np.uint8]:
        image = key.picture.image().convert("RGB")
        return np.array(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))
