"""The generator ``ltx``: clips of LTX-Video from text, or from a picture and text, all frames made together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from sdkit import Burst, Capability, FrameInfo, FrameJob, FramePlan, Guided, InvalidRequest, ParameterError, Parts
from sdkit_diffusers.clips import as_tensor, check_job, clip_pipeline, made, planned, shown, told_fps
from sdkit_diffusers.ltx import ClipAutoencoder, FirstFrame, transformer_of

__all__ = ["Ltx"]

NAME = "ltx"


@frozen(eq=False)
class _Told:
    """The modifier that tells the model of the clip: its frames per second, and its first picture."""

    fps: float
    first: Tensor | None = field(repr=False)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """The parts that know."""
        denoiser = transformer_of(parts.denoiser)
        if denoiser is None:
            yield parts
            return
        network: Any = denoiser.network
        told: Any = evolve(denoiser, network=evolve(network, fps=self.fps))
        yield evolve(parts, denoiser=told if self.first is None else FirstFrame.of(told, self.first))


@frozen
class Ltx:
    """Text to video, and image to video where the request has an image.

    Frames are ``8k + 1``, sides multiples of 32. The model reads one prompt for the whole clip.

    Attributes:
        fps: Frames per second the model is told, 1 to 120; 0 is the timeline's. It was trained on 24 to 30.
        chunk: Most elements along time (of 8 frames each) that are decoded together, at least 2; 0 is all.
        overlap: Elements that parts decoded one after the other share, at least 1 and less than ``chunk``.
        decode_time: For decoders that take off the last noise themselves (0.9.5 and later): what they are told, 0 to 1.
        decode_noise: The share of noise put on for them, 0 to 1.

    Raises:
        ParameterError: a value is out of range.
    """

    fps: float = field(default=0.0, converter=float)
    chunk: int = 8
    overlap: int = 2
    decode_time: float = 0.05
    decode_noise: float = 0.025

    def __attrs_post_init__(self) -> None:
        if self.fps and not 1 <= self.fps <= 120:
            raise ParameterError(f"LTX-Video is told 1 to 120 frames per second (0: the timeline's), not {self.fps:g}.")
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.chunk, self.overlap))
        if not whole or self.overlap < 1 or (self.chunk != 0 and self.chunk <= self.overlap):
            raise ParameterError(
                f"A clip is decoded in chunks (0: whole) that overlap by at least 1 and less than the chunk, not in "
                f"chunks of {self.chunk!r} that overlap by {self.overlap!r}."
            )
        for name in ("decode_time", "decode_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"{name} lies between 0 and 1, not at {getattr(self, name)!r}.")

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Text to image, latents, and image to image for a picture to begin with."""
        needs = {Capability.TEXT_TO_IMAGE, Capability.LATENTS}
        return frozenset(needs | {Capability.IMAGE_TO_IMAGE} if job.request.image is not None else needs)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the clip takes: all its latents at once, its frames decoded a chunk at a time.

        Raises:
            InvalidRequest: the number of frames is not the model's (names the nearest two), the size does not fit, or
                the model makes no clips.
        """
        request = check_job(job, NAME)
        pipe = clip_pipeline(job, NAME)
        bare = pipe.denoiser.denoiser if isinstance(pipe.denoiser, Guided) else pipe.denoiser
        if job.request.image is not None and transformer_of(bare) is None:
            raise InvalidRequest("Only LTX-Video begins with a given picture here, and this model is another.")
        if len(job.prompts.keys) > 1:
            logging.getLogger("sdkit").warning(
                "The generator ltx reads one prompt for the whole clip, the first: %r; say in it what happens later.",
                request.prompt,
            )
        factor, chunk = int(pipe.decoder.time_factor), self.chunk or job.timeline.frames  # type: ignore[attr-defined]
        return planned(pipe, request, job.timeline.frames, min((chunk - 1) * factor + 1, job.timeline.frames))

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: the clip is made in one step, whose latents a journal keeps."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """The whole clip; frames are decoded when they are asked for."""
        request, pipe = check_job(job, NAME), clip_pipeline(job, NAME)
        fps = told_fps(job, self.fps)

        def latents() -> Tensor:
            still = job.request.image
            if still is None:
                return made(job, pipe, request, [_Told(fps, None)])
            decoder: Any = pipe.decoder
            with torch.no_grad():
                first = decoder.encode(as_tensor(still, pipe.device))
            clip = made(job, pipe, request, [_Told(fps, first)])
            # a rescaled guidance moves what is known, too; it is put back as it was
            return torch.cat([first.to(clip), clip[:, :, 1:]], dim=2)

        info = FrameInfo("diffused", ((job.seed, 1.0),), ((request.prompt, 1.0),), {"fps": fps})
        kept = job.latents(index, latents)
        return Burst(shown(job, pipe, request, kept, lambda decoder, z: self._pieces(decoder, z, job.seed), info), {})

    def _pieces(self, decoder: Any, latents: Tensor, seed: int) -> Iterator[Tensor]:
        if not isinstance(decoder, ClipAutoencoder):
            return iter([decoder(latents)])
        how = {name: getattr(self, name) for name in ("chunk", "overlap", "decode_time", "decode_noise")}
        return evolve(decoder, **how).pieces(latents, seed)
