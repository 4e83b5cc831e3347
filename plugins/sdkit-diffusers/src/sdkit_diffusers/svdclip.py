"""The generator ``svd``: the request's image, moved by Stable Video Diffusion, all frames made together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from sdkit import (
    AddressedNoise,
    Burst,
    Capability,
    Curve,
    FrameInfo,
    FrameJob,
    FramePlan,
    InvalidRequest,
    ParameterError,
    Parts,
    Pipeline,
    Request,
)
from sdkit_diffusers.clips import as_tensor, check_job, clip_pipeline, made, planned, shown, told_fps
from sdkit_diffusers.svd import (
    FrameGuided,
    FramesAutoencoder,
    NoStill,
    Still,
    StillEncoder,
    denoiser_of,
    trained_frames,
)

__all__ = ["Svd", "noisy"]

NAME = "svd"
MOST_BUCKETS = 511


def noisy(image: Tensor, share: float, seed: int) -> Tensor:
    """A picture (1, 3, height, width) in [-1, 1] with a share of noise, which depends on the seed alone."""
    return image + share * AddressedNoise((seed,), stream="still").initial(image)


@frozen(eq=False)
class _Moving:
    """The modifier that tells the model of the still, and guides each frame by its own scale."""

    still: Still | None = field(repr=False)
    scales: tuple[float, ...] = ()

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """The parts that know."""
        denoiser = denoiser_of(parts.denoiser)
        if denoiser is None or self.still is None:
            yield parts
        else:
            yield evolve(parts, encoder=StillEncoder(self.still), denoiser=FrameGuided(denoiser, self.scales))


@frozen
class Svd:
    """Image to video. The request's image is the still, and sets the size; its prompt is not read.

    Attributes:
        guidance: The scale of guidance at each frame: near the still in the first, freer later.
        motion: How much moves, 0 to 511 (the bucket of motion the network was trained with).
        noise: The share of noise put on the still, 0 to 1: more of it lets more change.
        fps: Frames per second the model is told, 1 to 120; 0 is the timeline's. It was trained on 3 to 30.
        chunk: Most frames that are decoded together; 0 is all.

    Raises:
        ParameterError: a value is out of range.
    """

    starts_from_image = True

    guidance: Curve = field(default=Curve("0:(1), max_f:(3)"), converter=Curve)
    motion: int = 127
    noise: float = field(default=0.02, converter=float)
    fps: float = field(default=0.0, converter=float)
    chunk: int = 8

    def __attrs_post_init__(self) -> None:
        for name, value, most in (("motion", self.motion, MOST_BUCKETS), ("chunk", self.chunk, 10_000)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise ParameterError(f"{name} is a whole number from 0 to {most}, not {value!r}.")
        if not 0 <= self.noise <= 1:
            raise ParameterError(f"The share of noise lies between 0 and 1, not at {self.noise:g}.")
        if self.fps and not 1 <= self.fps <= 120:
            raise ParameterError(
                f"Stable Video Diffusion is told 1 to 120 frames per second (0: the timeline's), not {self.fps:g}."
            )

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Latents of a picture."""
        return frozenset({Capability.TEXT_TO_IMAGE, Capability.IMAGE_TO_IMAGE, Capability.LATENTS})

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the clip takes: all its latents at once, its frames decoded a chunk at a time.

        Raises:
            InvalidRequest: there is no image, its size does not fit, the request asks for what has no meaning here, or
                the model is another.
        """
        request, pipe = self._checked(job)
        frames = job.timeline.frames
        self._scales(job)
        denoiser = denoiser_of(pipe.denoiser)
        if denoiser is not None and frames > trained_frames(denoiser):
            logging.getLogger("sdkit").warning(
                "This model learned %d frames together; %d are possible, and the more, the less they hold together.",
                trained_frames(denoiser),
                frames,
            )
        return planned(pipe, request, frames, min(self.chunk or frames, frames))

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: the clip is made in one step, whose latents a journal keeps."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """The whole clip; frames are decoded when they are asked for."""
        request, pipe = self._checked(job)

        def latents() -> Tensor:
            return made(job, pipe, request, [_Moving(self._still(job, pipe), self._scales(job))])

        info = FrameInfo("diffused", ((job.seed, 1.0),), (), {"motion": float(self.motion), "noise": self.noise})
        kept = job.latents(index, latents)
        return Burst(shown(job, pipe, request, kept, self._pieces, info), {})

    def _checked(self, job: FrameJob) -> tuple[Request, Pipeline[str, Any, Any]]:
        if job.request.image is None:
            raise InvalidRequest("The generator svd moves a picture: give it one, --image FILE or Request(image=...).")
        if job.request.guidance is not None or job.request.negative:
            raise InvalidRequest(
                "The generator svd reads no text and guides every frame by its own scale; write "
                "svd(guidance='0:(1), max_f:(3)') instead of a guidance or a negative prompt."
            )
        if job.timeline.frames < 2:
            raise InvalidRequest("A clip of svd has at least 2 frames; the first alone is the picture itself.")
        request, pipe = check_job(job, NAME), clip_pipeline(job, NAME)
        if denoiser_of(pipe.denoiser) is None and isinstance(pipe.decoder, FramesAutoencoder):
            raise InvalidRequest(
                f"A {type(pipe.denoiser).__name__} around Stable Video Diffusion's denoiser cannot be told of a still."
            )
        return evolve(request, prompt=""), pipe

    def _scales(self, job: FrameJob) -> tuple[float, ...]:
        return tuple(self.guidance.at(i, job.timeline, seed=job.seed) for i in range(job.timeline.frames))

    def _still(self, job: FrameJob, pipe: Pipeline[str, Any, Any]) -> Still | None:
        encoder, decoder, picture = pipe.encoder, pipe.decoder, job.request.image
        if not isinstance(encoder, NoStill) or not isinstance(decoder, FramesAutoencoder) or picture is None:
            return None
        image = as_tensor(picture, pipe.device)
        with torch.no_grad():
            seen = encoder.vision(image)
            latents = decoder.mean(noisy(image * 2 - 1, self.noise, job.seed))
        told = torch.tensor([[told_fps(job, self.fps) - 1, float(self.motion), self.noise]], device=seen.device)
        return Still(seen, latents, told)

    def _pieces(self, decoder: Any, latents: Tensor) -> Iterator[Tensor]:
        if not isinstance(decoder, FramesAutoencoder):
            return iter([decoder(latents)])
        return evolve(decoder, chunk=self.chunk).pieces(latents)
