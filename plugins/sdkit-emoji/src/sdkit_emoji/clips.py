"""The generator `emoji-motion`: short animated loops from a prompt, all frames denoised together.

The frames are the batch of one request. Their noise lies on a circle, and a modifier puts the motion module into the
model's U-Net for as long as it runs; see `sdkit_emoji.motion`. A clip is a closed loop whether that is asked for or
not: frame n would be frame 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from sdkit import (
    Burst,
    Capability,
    FileError,
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    Guided,
    InvalidRequest,
    NetworkDenoiser,
    ParameterError,
    Parts,
    Pipeline,
    Request,
    Shot,
    registry,
)
from sdkit_emoji.front import WEIGHTS
from sdkit_emoji.motion import TRAVEL, Circle, Moving, check_travel, load_motion
from sdkit_emoji.networks import UNet

__all__ = ["EmojiMotion", "WithMotion"]

MOST = 64
"""Frames that are made together at most; the motion module learned from clips of 8 and of 16."""
COPIES = 4
"""Latents that a run holds besides each other."""
NONE = "none"


@frozen
class EmojiMotion:
    """Text to animation: closed loops of the emoji model.

    Attributes:
        motion: The motion module's file; empty for the package's own; ``none`` for none: frames then differ by their
            noise alone, and any model will do.
        travel: Share of the noise's variance that differs between frames, 0 (a still picture) to 1.
        blend: ``lerp`` or ``slerp``: how conditionings are mixed between two prompts.

    Raises:
        ParameterError: a value is out of range.
    """

    motion: str = field(default="", converter=str)
    travel: float = field(default=TRAVEL, kw_only=True)
    blend: str = field(default="lerp", kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_travel(self.travel)
        if self.blend not in ("lerp", "slerp"):
            raise ParameterError(f"Conditionings are mixed by lerp or slerp, not by {self.blend!r}.")

    @property
    def file(self) -> Path | None:
        """Where the motion module is, or None for none."""
        return None if self.motion == NONE else Path(self.motion) if self.motion else WEIGHTS / "motion.safetensors"

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Text to image and latents; conditionings of its own where prompts travel."""
        travels = {Capability.CONDITIONING} if len(job.prompts.keys) > 1 else set()
        return frozenset({Capability.TEXT_TO_IMAGE, Capability.LATENTS} | travels)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the clip takes; ``window`` is the whole clip, all frames of which are made together.

        Raises:
            InvalidRequest: a start image or another noise is asked for, there are too many frames, or the model is
                not the emoji model.
            FileError: there is no motion module.
        """
        request, frames = job.request, job.timeline.frames
        if request.image is not None:
            raise InvalidRequest("emoji-motion starts from noise, not from an image; leave the image out.")
        if request.noise is not None:
            raise InvalidRequest(f"emoji-motion has noise of its own, on a circle; leave noise={request.noise!r} out.")
        if frames > MOST:
            raise InvalidRequest(f"emoji-motion makes up to {MOST} frames together, not {frames}; 8 to 32 look best.")
        if not self.motion and self.file is not None and not self.file.exists():
            raise FileError(
                "The emoji model's motion module is not in this package; give one, motion='FILE.safetensors', or say "
                "motion='none' for a loop of its noise alone."
            )
        evaluations, numbers = None, 0
        pipe = getattr(job.images, "pipe", None)
        if isinstance(pipe, Pipeline):
            if self.file is not None:
                bare = pipe.denoiser.denoiser if isinstance(pipe.denoiser, Guided) else pipe.denoiser
                load_motion(self.file, unet_of(bare))
            plan = pipe.plan(evolve(self._request(job), modifiers=job.request.modifiers, seeds=(job.seed,)))
            evaluations, numbers = plan.evaluations, math.prod(plan.latent_shape[1:])
        width, height = job.images.size(request)
        return FramePlan(
            frames,
            None if evaluations is None else evaluations * frames,
            # small frames are decoded together, see `sdkit.frames.source.AT_ONCE`
            COPIES * 4 * numbers * frames + max(width * height, 2**15) * 3 * 5,
        )

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: the clip is one step."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """The whole clip, its frames decoded as they are asked for."""
        count = job.timeline.frames
        shots = [Shot(job.prompts.at(i, job.timeline), ((job.seed, 1.0),)) for i in range(count)]
        request = self._request(job)
        latents = job.latents(0, lambda: job.images.latents(request, shots, blend=self.blend, tick=job.tick))
        pictures = zip(range(index, count), job.images.decode(latents, job.request, first=index), strict=True)
        frames = (
            Frame.of(i, job.timeline, image, FrameInfo(seeds=shots[i].seeds, prompts=shots[i].prompts))
            for i, image in pictures
        )
        return Burst(frames, {})

    def _request(self, job: FrameJob) -> Request:
        """The request with noise on the circle, and with motion."""
        noise = registry().spell("noise", Circle(job.timeline.frames, self.travel))
        more = () if self.file is None else (WithMotion(str(self.file), job.timeline.frames),)
        return evolve(job.request, noise=noise, modifiers=(*job.request.modifiers, *more))


@frozen(eq=False)
class WithMotion:
    """The motion module in the emoji model's U-Net, as a modifier; a batch is the frames of a clip.

    Attributes:
        file: See `sdkit_emoji.motion.load_motion`.
        frames: Of the clip.
    """

    file: str
    frames: int

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the model makes clips; the model itself is not changed.

        Raises:
            FileError: the file cannot be read, or is no motion module for this model.
            InvalidRequest: it is not the emoji model.
        """
        denoiser: Any = parts.denoiser
        unet = unet_of(denoiser)
        moving = Moving(unet, load_motion(self.file, unet), self.frames)
        yield evolve(parts, denoiser=evolve(denoiser, network=moving))


def unet_of(denoiser: Any) -> UNet:
    """The U-Net of the emoji model.

    Raises:
        InvalidRequest: the denoiser has none.
    """
    network = denoiser.network if isinstance(denoiser, NetworkDenoiser) else None
    if not isinstance(network, UNet):
        kind = type(denoiser if network is None else network).__name__
        raise InvalidRequest(
            f"emoji-motion moves the emoji model, and this one has a {kind}; take --model emoji, or a generator for "
            "any model: emoji-motion(motion='none'), walk, feedback."
        )
    return network
