"""A video painted over, frame by frame: each is image to image of what the video shows at that time.

``denoise`` is how much is painted anew. With the same seed for all frames (``seeds="fixed"``) they share their noise,
which holds what is painted still; with ``iter`` every frame has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from pathlib import Path, PurePath

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
    ParameterError,
    Shot,
    registry,
)

__all__ = ["Restyle", "repainted"]


def repainted(
    job: FrameJob, index: int, images: Sequence[NDArray[np.uint8]], shots: Sequence[Shot], share: float
) -> Burst:
    """Frames from ``index``: image to image of pictures; with a share of 0 the pictures as they are."""
    numbers = range(index, index + len(images))
    if share > 0:

        def make() -> Tensor:
            start = job.images.encode(images, job.request)
            return job.images.latents(job.request, shots, start=start, strength=share, tick=job.tick)

        made: Iterator[NDArray[np.uint8]] = job.images.decode(job.latents(index, make), job.request)
    else:
        made = iter(images)
    origin = "diffused" if share > 0 else "repeated"
    return Burst(
        (
            Frame.of(i, job.timeline, image, FrameInfo(origin, shot.seeds, shot.prompts, {"denoise": share}))  # type: ignore[arg-type]
            for i, image, shot in zip(numbers, made, shots, strict=True)
        ),
        {},
    )


def _name(video: object) -> object:
    return str(video) if isinstance(video, PurePath) else video


@frozen
class Restyle:
    """Video to video.

    Attributes:
        video: A file that a sink can read: mp4, webm, gif, webp, apng, or the JSON file of a PNG sequence.
        denoise: How much is painted anew at each frame, 0 (nothing) to 1 (all).
        seeds: ``fixed`` (shared noise) or ``iter``.
        batch: Frames painted together, where ``denoise`` is the same for them.
        hold: What comes when the video is over: ``error``, ``last`` (its last frame stays) or ``repeat``.

    Raises:
        ParameterError: a value is out of range.
    """

    video: str = field(converter=_name)
    denoise: Curve = field(default=Curve(0.5), converter=Curve)
    seeds: str = "fixed"
    batch: int = 4
    hold: str = "error"

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.video, str) or not Path(self.video).suffix:
            raise ParameterError(f"The video is the name of a file with its ending, as 'in.mp4', not {self.video!r}.")
        for name, value, known in (
            ("seeds", self.seeds, ("fixed", "iter")),
            ("hold", self.hold, ("error", "last", "repeat")),
        ):
            if value not in known:
                raise ParameterError(f"Restyle's {name} is one of {', '.join(known)}, not {value!r}.")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or not 1 <= self.batch <= 256:
            raise ParameterError(f"Restyle paints 1 to 256 frames together, not {self.batch!r}.")

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Image to image."""
        needs = {Capability.IMAGE_TO_IMAGE, Capability.LATENTS}
        return frozenset(needs | {Capability.CONDITIONING} if len(job.prompts.keys) > 1 else needs)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What it takes; the video is read through once, to know that it lasts.

        Raises:
            FileError: the video cannot be read.
            InvalidRequest: it is shorter than the clip, and ``hold`` does not say what comes then.
        """
        if job.request.image is not None:
            raise InvalidRequest("Restyle paints over its video, not over an image; leave the request's image out.")
        for i in range(job.timeline.frames):
            value = self.denoise.at(i, job.timeline, seed=job.seed)
            if not 0 <= value <= 1:
                raise ParameterError(f"Denoise lies between 0 and 1, not at {value:g} as at frame {i}.")
        if self.hold == "error":
            long = max((frame.pts + frame.duration for frame in self._read(Fraction(0))), default=Fraction(0))
            if job.timeline.pts(job.timeline.frames - 1) >= long:
                raise InvalidRequest(
                    f"The video lasts {float(long):.2f} s and the clip {float(job.timeline.duration):.2f} s; ask for "
                    f"{int(long * job.timeline.fps)} frames, or say hold='last' or hold='repeat'."
                )
        width, height = job.images.size(job.request)
        return FramePlan(min(self.batch, job.timeline.frames), None, 2 * self.batch * width * height * 3)

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: each frame is painted over its own."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """The next frames, as many as share their ``denoise``."""
        most = range(index, min(index + self.batch, job.timeline.frames))
        share, alike = next(iter(groupby(most, lambda i: self.denoise.at(i, job.timeline, seed=job.seed))))
        numbers = list(alike)
        images = self._shown(job, numbers)
        shots = [Shot(job.prompts.at(i, job.timeline), ((self._seed(job, i), 1.0),)) for i in numbers]
        return repainted(job, index, images, shots, share)

    def _seed(self, job: FrameJob, i: int) -> int:
        return job.seed if self.seeds == "fixed" else (job.seed + i) % 2**64

    def _read(self, start: Fraction) -> Iterator[Frame]:
        path = Path(self.video)
        ending = "png" if path.suffix == ".json" else path.suffix.lower().removeprefix(".")
        frames: Iterator[Frame] = registry().make("frame-sink", ending).read(path, start)[0]
        return frames

    def _shown(self, job: FrameJob, numbers: Sequence[int]) -> list[NDArray[np.uint8]]:
        """What the video shows at these frames, at the size of the clip."""
        size, times = job.images.size(job.request), [job.timeline.pts(i) for i in numbers]
        if self.hold == "repeat":
            long = max(frame.pts + frame.duration for frame in self._read(Fraction(0)))
            if times[0] % long > times[-1] % long:  # over the seam: one by one
                return [image for i in numbers for image in self._shown(job, [i])]
            times = [time % long for time in times]
        frames = self._read(times[0])
        found: list[NDArray[np.uint8]] = []
        now = next(frames, None)
        if now is None:  # behind the end
            *_, now = self._read(Fraction(0))
        for time in times:
            while time >= now.pts + now.duration:
                following = next(frames, None)
                if following is None:
                    break
                now = following
            found.append(np.array(Image.fromarray(now.image).resize(size, Image.Resampling.LANCZOS)))
        return found
