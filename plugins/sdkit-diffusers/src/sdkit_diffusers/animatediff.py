"""Clips by AnimateDiff: a model of pictures and a motion module, all frames denoised together.

The frames are the batch of one request; a modifier puts the motion module into the model's U-Net for as long as it
runs. Clips longer than a motion module has learned are denoised in windows (`sdkit_diffusers.windows`). Notation as
there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from sdkit import (
    Burst,
    Capability,
    DiscreteSchedule,
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    InvalidRequest,
    Level,
    Loop,
    ParameterError,
    Parts,
    Pipeline,
    Plan,
    Request,
    Shot,
    registry,
    solve,
)
from sdkit_diffusers import motionfiles
from sdkit_diffusers.betas import LinearBetas
from sdkit_diffusers.motion import Inside, Moving, Windows, load_motion, of_step, with_motion
from sdkit_diffusers.parts import plan as planned
from sdkit_diffusers.windows import LAWS, NOISES, Window, fused, line, noise_sources, ring, turn
from sdkit_diffusers.wiring import AlongEncoder, core, network_call, within

__all__ = ["AnimateDiff", "Motion", "frame_seed"]

WINDOWS = ("uniform", "static", "inside", "none")
BETAS = ("linear", "model")
BLENDS = ("lerp", "slerp")
COPIES = 4
"""Latents that a run holds besides each other: before and after a step, what was predicted, what is being fused."""


def frame_seed(seed: int, frame: int) -> int:
    """The seed of a frame's noise, 0 to 2^64 - 1: neighbouring frames and neighbouring seeds share nothing."""
    digest = hashlib.blake2b(f"sdkit-animatediff|{seed}|{frame}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else (None,)
    if not all(isinstance(text, str) and text for text in texts):
        raise ParameterError(f"MotionLoRAs are files, 'zoom-in.safetensors' or with a strength ':0.8', not {value!r}.")
    return texts


def _chosen(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ParameterError(f"{name} is one of {', '.join(known)}, not {value!r}.")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ParameterError(f"{name} is a whole number from {low} to {high}, not {value!r}.")


@frozen
class AnimateDiff:
    """Text to video with a motion module on Stable Diffusion 1.5 (or whichever model it was made for).

    Source: Guo et al. 2023, https://arxiv.org/abs/2307.04725.

    Attributes:
        motion: The motion module: a folder as diffusers saves it, or a ``.safetensors`` file with original names.
        loras: MotionLoRAs, files with original or diffusers' names; a strength may follow,
            ``"zoom-in.safetensors:0.8"``.
        windows: How a clip longer than ``context_length`` is denoised. ``uniform``: in windows that are turned from
            step to step, so that seams do not stay; on a ring in a closed loop. ``static``: windows that stay.
            ``inside``: all frames together, windows in the motion modules alone (FreeNoise). ``none``: all together.
        context_length: Frames of a window; 16 is what motion modules were trained on.
        context_overlap: Frames that neighbouring windows share at least. diffusers' ``context_stride`` of FreeNoise is
            ``context_length - context_overlap``.
        context_stride: How many kinds of windows there are in ``uniform``: of every frame, of every 2nd, of every
            4th, ... as far as the clip is long enough.
        fuse: How the answers of windows are averaged: ``pyramid``, ``flat``, ``overlap-linear``,
            ``delayed-reverse-sawtooth`` or ``gauss``.
        noise_type: ``random``: each frame begins with noise of its own. ``shuffle_context``, ``repeat_context``: with
            that of the first window, in another order or again and again. By default ``shuffle_context`` for windows
            inside, else ``random``.
        betas: ``linear``, what motion modules were trained on, or ``model``: the model's own schedule.
        blend: ``lerp`` or ``slerp``: how conditionings are mixed between two prompts.

    Raises:
        ParameterError: a value is out of range.
    """

    motion: str = field(converter=str)
    loras: tuple[str, ...] = field(default=(), converter=_texts, kw_only=True)
    windows: str = field(default="uniform", kw_only=True)
    context_length: int = field(default=16, kw_only=True)
    context_overlap: int = field(default=4, kw_only=True)
    context_stride: int = field(default=1, kw_only=True)
    fuse: str = field(default="pyramid", kw_only=True)
    noise_type: str = field(default="", kw_only=True)
    betas: str = field(default="linear", kw_only=True)
    blend: str = field(default="lerp", kw_only=True)

    def __attrs_post_init__(self) -> None:
        _chosen("windows", self.windows, WINDOWS)
        _chosen("fuse", self.fuse, LAWS)
        _chosen("noise_type", self.noise_type, ("", *NOISES))
        _chosen("betas", self.betas, BETAS)
        _chosen("blend", self.blend, BLENDS)
        _whole("context_length", self.context_length, 1, 4096)
        _whole("context_overlap", self.context_overlap, 0, self.context_length - 1)
        _whole("context_stride", self.context_stride, 1, 8)

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Text to image and latents; conditionings of its own where prompts travel."""
        travels = {Capability.CONDITIONING} if len(job.prompts.keys) > 1 else set()
        return frozenset({Capability.TEXT_TO_IMAGE, Capability.LATENTS} | travels)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the clip takes. The motion module's headers are read and held against the model.

        ``window`` is the whole clip: all its frames are in the making at the same time. ``peak_bytes`` are its latents
        and the frames that are decoded together, without what the networks need.

        Raises:
            FileError: the motion module cannot be read.
            InvalidRequest: it was made for another model, or sees fewer frames than it would have to.
        """
        if job.request.image is not None:
            raise InvalidRequest("AnimateDiff starts from noise, not from an image; leave the image out.")
        part, n = motionfiles.read(Path(self.motion)), job.timeline.frames
        most = motionfiles.positions(part)
        length = n if self.windows == "none" else min(n, self.context_length)
        if length > most:
            raise InvalidRequest(
                f"The motion module {Path(self.motion).name!r} sees at most {most} frames together, not {length}: ask "
                f"for {most} frames, or for windows of at most so many "
                f"(windows='uniform', context_length={min(16, most)})."
            )
        pipe, evaluations = _pipeline(job), None
        if pipe is not None:
            unet = core(network_call(pipe.denoiser).network)
            motionfiles.check(Path(self.motion).name, part.config, unet.config)
            planned(part)
            if self.betas == "linear" and not isinstance(
                pipe.schedule or getattr(pipe.denoiser, "schedule", None), DiscreteSchedule
            ):
                raise InvalidRequest("This model has no betas, so they cannot be linear; say betas='model'.")
            asked = evolve(self._request(job), modifiers=job.request.modifiers, seeds=(job.seed,))
            plan = pipe.plan(asked)
            evaluations = self._evaluations(plan, job)
        width, height = job.images.size(job.request)
        one = 4 * (math.prod(plan.latent_shape[1:]) if pipe is not None else width * height // 16)
        return FramePlan(n, evaluations, COPIES * n * one + max(width * height, 2**15) * 3 * 5)

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: the clip is one step."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """The whole clip, its frames decoded as they are asked for."""
        numbers = range(index, job.timeline.frames)
        shots = [self._shot(job, i) for i in range(job.timeline.frames)]
        request = self._request(job)
        latents = job.latents(0, lambda: job.images.latents(request, shots, blend=self.blend))
        pictures = zip(numbers, job.images.decode(latents, job.request, first=index), strict=True)
        frames = (
            Frame.of(i, job.timeline, image, FrameInfo(seeds=shots[i].seeds, prompts=shots[i].prompts))
            for i, image in pictures
        )
        return Burst(frames, {})

    def _shot(self, job: FrameJob, i: int) -> Shot:
        kind = self.noise_type or ("shuffle_context" if self.windows == "inside" else "random")
        hop = self.context_length - self.context_overlap
        sources = _sources(job.timeline.frames, self.context_length, hop, kind, job.seed)
        return Shot(job.prompts.at(i, job.timeline), ((frame_seed(job.seed, sources[i]), 1.0),))

    def _request(self, job: FrameJob) -> Request:
        """The request with motion, and on the levels that motion modules know."""
        request, pipe = job.request, _pipeline(job)
        if self.betas == "linear":
            filled = request if pipe is None else pipe.plan(evolve(request, modifiers=())).request
            spacing = filled.spacing or "uniform"
            if spacing.startswith("custom:"):
                raise InvalidRequest(
                    f"The pipeline's spacing ({spacing}) has no name, so it cannot be put on linear betas; name one in "
                    "the request, or say betas='model'."
                )
            if spacing.partition("(")[0] not in ("grid", "linear-betas"):  # which say themselves what they are on
                betas = registry().spell("spacing", LinearBetas(spacing))
                request = evolve(request, scheduler=filled.scheduler, spacing=betas)
        motion = Motion(
            self.motion,
            job.timeline.frames,
            self._inside(job),
            self._outside(job),
            LinearBetas().schedule if self.betas == "linear" else None,
            job.tick,
        )
        loras = tuple(registry().make("modifier", _lora(text)) for text in self.loras)
        return evolve(request, modifiers=(*request.modifiers, motion, *loras))

    def _long(self, job: FrameJob) -> bool:
        """Whether there are windows: in a closed loop always, so that the motion closes too."""
        closed = job.timeline.loop is Loop.CLOSED
        return self.windows != "none" and (closed or job.timeline.frames > self.context_length)

    def _inside(self, job: FrameJob) -> Windows | None:
        return self._windows(job, None) if self.windows == "inside" and self._long(job) else None

    def _outside(self, job: FrameJob) -> Callable[[int], Windows] | None:
        if self.windows == "inside" or not self._long(job):
            return None
        return lru_cache(maxsize=None)(
            lambda step: self._windows(job, turn(step) if self.windows == "uniform" else None)
        )

    def _windows(self, job: FrameJob, phase: float | None) -> Windows:
        n, closed = job.timeline.frames, job.timeline.loop is Loop.CLOSED
        length = min(n, self.context_length)
        overlap = min(self.context_overlap, length - 1)
        found: list[Window] = []
        for k in range(self.context_stride if phase is not None else 1):
            if k == 0 or length << k <= n:
                more = (
                    ring(n, length, overlap, stride=1 << k, phase=phase or 0.0)
                    if closed
                    else line(n, length, overlap, stride=1 << k, phase=phase)
                )
                found += more
        return tuple(zip(found, fused(found, n, self.fuse, overlap), strict=True))

    def _evaluations(self, plan: Plan, job: FrameJob) -> int | None:
        """Evaluations on one picture: the run is walked on an empty latent, and its windows are counted."""
        if plan.evaluations is None:
            return None
        outside, n, total = self._outside(job), job.timeline.frames, 0
        steps, guidance, interval = of_step(None, plan.grid), plan.request.guidance, plan.request.guidance_interval

        def count(x: torch.Tensor, level: Level) -> torch.Tensor:
            nonlocal total
            guides = guidance not in (None, 1) and (
                interval is None or interval[0] <= level.noise_to_signal <= interval[1]
            )
            windows = ((range(n), ()),) if outside is None else outside(steps.step(level))
            total += sum(len(window) for window, _ in windows) * (2 if guides else 1)
            return x

        for _ in solve(plan.scheduler, count, torch.zeros(1, 1, 1, 1), plan.grid, plan.noise):
            pass
        return total


@lru_cache(maxsize=8)
def _sources(n: int, length: int, hop: int, kind: str, seed: int) -> tuple[int, ...]:
    return noise_sources(n, length, hop, kind, seed)


def _lora(text: str) -> str:
    """A MotionLoRA as text that the registry makes a modifier of; adapters are the business of another plugin."""
    file, sign, strength = text.rpartition(":")
    try:
        found = float(strength) if sign else 1.0
    except ValueError:
        file, found = text, 1.0
    return f"lora(file={(file if sign else text)!r}, strength={found!r})"


def _pipeline(job: FrameJob) -> Pipeline[Any, Any, Any] | None:
    """The pipeline of a source that is made of one: what is known of the model beforehand."""
    found = getattr(job.images, "pipe", None)
    return found if isinstance(found, Pipeline) else None


@frozen(eq=False)
class Motion:
    """A motion module in a model's U-Net, as a modifier; a batch is the frames of a clip.

    Attributes:
        file: See `AnimateDiff`.
        frames: Of the clip.
        inside: Windows inside the motion modules, or None.
        outside: Windows of each step, or None.
        schedule: The noise schedule that the motion module was trained on, or None for the model's.
        tick: Called before each evaluation, or each window of one.
    """

    file: str
    frames: int
    inside: Windows | None = field(default=None, repr=False)
    outside: Callable[[int], Windows] | None = field(default=None, repr=False)
    schedule: DiscreteSchedule | None = field(default=None, repr=False)
    tick: Callable[[], None] | None = field(default=None, repr=False)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the model makes clips.

        Raises:
            FileError: the file cannot be read, or is no motion module.
            InvalidRequest: it was made for another family.
        """
        network = load_motion(parts.denoiser, self.file)
        window = self.frames if self.outside is None else len(self.outside(0)[0][0])
        inside = None if self.inside is None else Inside(self.inside)
        denoiser = with_motion(parts.denoiser, network, window, inside=inside)
        if self.schedule is not None:
            denoiser = within(denoiser, lambda part: evolve(part, schedule=self.schedule))
        whole: Windows = ((tuple(range(self.frames)), (1.0,) * self.frames),)
        moving = Moving(denoiser, self.frames, self.outside or (lambda step: whole), self.tick)
        encoder = parts.encoder if self.outside is None else AlongEncoder(parts.encoder, of_step)
        yield evolve(parts, encoder=encoder, denoiser=moving)
