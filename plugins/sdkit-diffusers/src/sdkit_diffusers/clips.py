"""What models that make a whole clip at once share: latents with an axis of time, and frames out of them.

Latents are (batch, channels, frames, height, width). A clip's autoencoder says in ``time_factor`` how many frames an
element along time stands for: ``n`` elements are ``(n - 1) * time_factor + 1`` frames, the first standing alone, which
is the model's frame rule; and in ``generator``, if it has that, which generator alone can ask it. Everything else
(noise, levels, solver, guidance, modifiers) is that of any pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from attrs import evolve
from numpy.typing import NDArray
from torch import Tensor

from sdkit import (
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    InvalidRequest,
    Loop,
    NonFiniteError,
    Parts,
    Picture,
    Pipeline,
    Request,
    Shot,
    check_frame_rule,
    image_source,
    registry,
)

__all__ = ["Decode", "as_tensor", "check_job", "clip_pipeline", "finite", "made", "planned", "shown", "told_fps"]

Decode = Callable[[Any, Tensor], Iterator[Tensor]]
"""From a decoder and the latents (1, channels, frames, height, width) of a clip to its parts, each (1, 3, frames,
height, width) in [0, 1]."""


def clip_pipeline(job: FrameJob, name: str) -> Pipeline[str, Any, Any]:
    """The pipeline of a job's source, its latents as long as the clip.

    Args:
        job: The job.
        name: What messages call the generator.

    Raises:
        InvalidRequest: its model makes no clips, or none of that many frames; names the nearest counts.
    """
    pipe = getattr(job.images, "pipe", None)
    if not isinstance(pipe, Pipeline) or pipe.spec is None:
        raise InvalidRequest(f"The generator {name} needs a pipeline of a model: sdkit.pipeline(sdkit.load(...)).")
    factor = getattr(pipe.decoder, "time_factor", None)
    if factor is None:
        raise InvalidRequest(
            f"The generator {name} needs a model that makes clips, and {pipe.spec.name!r} makes pictures; generators "
            "such as walk, zoom and feedback animate those."
        )
    own = getattr(pipe.decoder, "generator", name)
    if own != name:
        raise InvalidRequest(f"The model {pipe.spec.name!r} makes clips with the generator {own}, not with {name}.")
    check_frame_rule(job.timeline, factor, 1 if factor > 1 else 0)
    length = (job.timeline.frames - 1) // factor + 1
    return evolve(pipe, spec=evolve(pipe.spec, latent=evolve(pipe.spec.latent, frames=(length,))))


def check_job(job: FrameJob, name: str) -> Request:
    """The request as the model's side of a clip: the still, if there is one, sets the size and is no start to redo.

    Raises:
        InvalidRequest: it asks for what a clip made at once cannot have.
    """
    request = job.request
    if job.timeline.loop is Loop.CLOSED:
        raise InvalidRequest(f"A clip of {name} does not close: its last frame is not led back to the first one.")
    if request.mask is not None or request.strength is not None:
        given = "A mask" if request.mask is not None else "A strength"
        raise InvalidRequest(f"{given} means nothing to {name}, whose image is where the clip begins; leave it out.")
    size = request.size if request.image is None else request.image.size
    return evolve(request, size=size, image=None, prompt=job.prompts.keys[0][1])


def told_fps(job: FrameJob, fps: float) -> float:
    """Frames per second as the model is told them: a generator's own, or, where that is 0, the timeline's."""
    return fps or float(job.timeline.fps)


def planned(pipe: Pipeline[str, Any, Any], request: Request, timeline_frames: int, at_once: int) -> FramePlan:
    """What a clip takes: the latents of all frames together, and the decoded frames of one part.

    Args:
        pipe: From `clip_pipeline`.
        request: From `check_job`.
        timeline_frames: Frames of the clip.
        at_once: Most frames that are decoded together.
    """
    plan = pipe.plan(evolve(request, seeds=request.seeds[:1], modifiers=()))
    width, height = plan.request.size or (0, 0)
    # latents before and after a step, the prediction, and the noise, in float32; pixels in float32 and as they come out
    latents = 4 * 4 * int(np.prod(plan.latent_shape))
    return FramePlan(timeline_frames, plan.evaluations, latents + at_once * width * height * 3 * (4 + 1))


def made(job: FrameJob, pipe: Pipeline[str, Any, Any], request: Request, modifiers: Sequence[Any]) -> Tensor:
    """The latents (1, channels, frames, height, width) of a clip.

    Args:
        job: The job; its ticks are handed on.
        pipe: From `clip_pipeline`.
        request: From `check_job`.
        modifiers: What the generator tells the model, before the request's modifiers.
    """
    asked = evolve(request, modifiers=(*modifiers, *request.modifiers))
    shot = Shot(((request.prompt, 1.0),), ((job.seed, 1.0),))
    return image_source(pipe).latents(asked, [shot], tick=job.tick)


def shown(
    job: FrameJob, pipe: Pipeline[str, Any, Any], request: Request, latents: Tensor, decode: Decode, info: FrameInfo
) -> Iterator[Frame]:
    """The frames of a clip's latents, decoded a part at a time when they are asked for."""
    index = 0
    for part in _parts(pipe, request, latents, decode):
        for image in finite(part)[0].permute(1, 2, 3, 0):
            yield Frame.of(index, job.timeline, _pixels(image), info)
            index += 1


def _parts(pipe: Pipeline[str, Any, Any], request: Request, latents: Tensor, decode: Decode) -> Iterator[Tensor]:
    with ExitStack() as stack:
        parts: Any = Parts(pipe.encoder, pipe.denoiser, pipe.scheduler, pipe.decoder)
        for modifier in request.modifiers:
            act = registry().make("modifier", modifier) if isinstance(modifier, str) else modifier
            parts = stack.enter_context(act.apply(parts))
        pieces = decode(parts.decoder, latents.to(pipe.device))
        while True:
            with torch.no_grad():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


def finite(tensor: Tensor) -> Tensor:
    """The tensor, if all of it is finite.

    Raises:
        NonFiniteError: it is not.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError("NaN or infinity came out of the decoder; try float32.")
    return tensor


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(height, width, 3) in [0, 1] as uint8."""
    made: NDArray[np.uint8] = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return made


def as_tensor(picture: Picture, device: str) -> Tensor:
    """(1, 3, height, width) in [0, 1]."""
    array = np.asarray(picture.image().convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None].to(device)
