"""Text2Video-Zero: a clip from a text-to-image model with a U-Net, without weights for motion.

Two things hold the frames together. Each starts from the first frame's latents, taken where the picture's layout is
settled but its details are not, moved in the plane and made noisy again; and in every self-attention each frame looks
at the first frame, not at itself.

Source: Khachatryan et al. 2023, https://arxiv.org/abs/2303.13439, with the defaults of diffusers'
``TextToVideoZeroPipeline``. The smoothing of the background, which needs a network that finds what is in front, is not
here.

Notation: frame k of a clip; T1 the level at which the frames part, T0 the cleaner one at which they are moved; (alpha,
sigma) of a level as everywhere, so that schedule, scheduler and number of steps are free. From T0 to T1 the forward law
is ``x1 = r x0 + sqrt(sigma1^2 - r^2 sigma0^2) noise`` with ``r = alpha1 / alpha0``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit import (
    AddressedNoise,
    Burst,
    Capability,
    ContractError,
    Curve,
    Denoise,
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    Grid,
    InvalidRequest,
    Level,
    Loop,
    Noise,
    ParameterError,
    Parts,
    Scheduler,
    Shot,
    Step,
    Traits,
)
from sdkit_diffusers.beside import number
from sdkit_diffusers.wiring import Call, Joined, core, network_call, rewired, twin

__all__ = ["CrossFrameAttention", "TextToVideoZero", "moved", "parting", "renoised", "with_cross_frame_attention"]

SIDE = 512
"""The unit of motion: what a side of the picture is divided into, as in diffusers."""
STREAM = "text2video-zero"


def moved(latents: Tensor, right: float, down: float) -> Tensor:
    """Latents looked at from elsewhere: what is shown at a place is what was that far to the right and down.

    Whole elements are moved, the nearest number of them, so that noise stays what it was; beyond the edge the latents
    are mirrored.

    Args:
        latents: (batch, channels, height, width).
        right: In 512ths of the width.
        down: In 512ths of the height.
    """
    for axis, shift in ((-2, down), (-1, right)):
        side = latents.shape[axis]
        place = (torch.arange(side) + math.ceil(shift * side / SIDE - 0.5)) % (2 * side)
        mirrored = torch.where(place < side, place, 2 * side - 1 - place)
        latents = latents.index_select(axis, mirrored.to(latents.device))
    return latents


def renoised(x: Tensor, cleaner: Level, noisier: Level, noise: Tensor) -> Tensor:
    """Latents of one level as latents of a noisier one, by the forward law; of the same level as they are."""
    ratio = noisier.alpha / cleaner.alpha
    return x * ratio + noise * math.sqrt(max(0.0, noisier.sigma**2 - (ratio * cleaner.sigma) ** 2))


def parting(steps: int, early: float, late: float) -> tuple[int, int]:
    """After how many steps of a way T1 and T0 lie.

    Where there are so few steps that both would fall on one, T0 lies a step behind T1; it does not if the shares are
    the same.
    """
    first = min(round(early * steps), steps - 1)
    return first, (first if early == late else min(max(round(late * steps), first + 1), steps))


@frozen(eq=False)
class CrossFrameAttention:
    """Self-attention of each frame to the first frame of its group.

    Attributes:
        frames: Frames of a group; the rows of a batch are whole groups, one after the other.
    """

    frames: int

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What diffusers' ``Attention`` gives for states (batch, places, width) where each group has one memory."""
        rows, places, _ = hidden_states.shape
        first = hidden_states[:: self.frames]  # keys and values of the others are not asked for
        groups = first.shape[0]

        def heads(states: Tensor, norm: Any) -> Tensor:
            split = states.reshape(groups, -1, attn.heads, states.shape[-1] // attn.heads).transpose(1, 2)
            made: Tensor = split if norm is None else norm(split)
            return made

        # all frames of a group are one long query: they share the memory
        query, key = heads(attn.to_q(hidden_states), attn.norm_q), heads(attn.to_k(first), attn.norm_k)
        found = F.scaled_dot_product_attention(query, key, heads(attn.to_v(first), None))
        found = found.transpose(1, 2).reshape(rows, places, -1).to(query.dtype)
        made: Tensor = attn.to_out[1](attn.to_out[0](found))
        if attn.residual_connection:
            made = made + hidden_states
        return made / float(attn.rescale_output_factor)


@frozen(eq=False)
class GroupRule:
    """Sees to it that a batch is made of whole groups of frames, in their order; changes nothing."""

    frames: int

    @property
    def tokens(self) -> int:
        """None."""
        return 0

    def __call__(self, joined: Joined, args: tuple[Any, ...], more: dict[str, Any], /) -> Call:
        """The arguments.

        Raises:
            InvalidRequest: the rows are in another order, as where one picture has several prompts.
        """
        x: Tensor = args[0]
        whole = x.shape[0] % self.frames == 0
        if not whole or not bool((x.reshape(-1, self.frames, *x.shape[1:]) == x[: self.frames]).all()):
            raise InvalidRequest(
                f"Attention across {self.frames} frames takes them in their order, and something (prompts joined by "
                f"AND, for example) asks the network for {x.shape[0]} rows in another; leave it out."
            )
        return args, more


def with_cross_frame_attention(denoiser: Any, frames: int) -> Any:
    """A denoiser of batches of ``frames`` frames, each of which looks at the first; weights are shared.

    `sdkit.guided` may go around it. Layers whose self-attention something else has changed already (perturbed-attention
    guidance) stay as they are.

    Raises:
        InvalidRequest: its model has no U-Net of this package.
    """
    check_unet(denoiser)
    act = CrossFrameAttention(frames)

    def attend(unet: Any) -> None:
        for name, processor in unet.attn_processors.items():
            attention = unet.get_submodule(name.removesuffix(".processor"))
            stock = type(processor).__name__ in ("AttnProcessor", "AttnProcessor2_0")
            if name.endswith("attn1.processor") and stock and not attention.is_cross_attention:
                attention.set_processor(act)

    return rewired(denoiser, lambda network: Joined(twin(network, attend), GroupRule(frames)))


def check_unet(denoiser: Any) -> None:
    """Raises `InvalidRequest` unless the network is a U-Net of this package that makes single pictures."""
    try:
        network = core(network_call(denoiser).network)
    except InvalidRequest:
        network = None
    if type(network).__name__ != "UNet2DConditionModel":
        kind = type(getattr(denoiser, "denoiser", denoiser) if network is None else network).__name__
        raise InvalidRequest(
            "text2video-zero takes a model with a U-Net of Stable Diffusion 1.x, 2.x or XL, loaded by sdkit-diffusers, "
            f"and this one has a {kind}; the generators walk and feedback take any model."
        )


@frozen(eq=False)
class _Place:
    """Where a run is: its way, the steps made, and the state of the solver inside, if it has begun."""

    grid: Grid
    done: int
    inner: Any = None


@frozen(eq=False)
class _Beginning:
    """A scheduler that walks the first frame to T0, and stays there.

    Attributes:
        inside: The solver.
        shares: Of the way, at which T1 and T0 lie.
        early: Is given the latents at T1.
    """

    inside: Scheduler[Any]
    shares: tuple[float, float]
    early: list[Tensor]

    @property
    def traits(self) -> Traits:
        """The solver's."""
        return self.inside.traits

    def init(self, x: Tensor, grid: Grid, /) -> _Place:
        """Begins as the solver does."""
        return _Place(grid, 0, self.inside.init(x, grid))

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: _Place, noise: Noise, /
    ) -> Step[_Place]:
        """A step of the solver, or none."""
        first, second = parting(len(state.grid) - 1, *self.shares)
        if state.done == first:
            self.early.append(x)
        if state.done >= second:
            return Step(x, x, evolve(state, done=state.done + 1))
        made = self.inside.step(denoise, x, start, stop, state.inner, noise)
        return Step(made.x, made.denoised, evolve(state, done=state.done + 1, inner=made.state))


@frozen(eq=False)
class _Rest:
    """A scheduler that takes frames up at T1; up to there it makes no step.

    Attributes:
        inside: The solver; one with a memory begins anew at T1.
        shares: Of the way, at which T1 and T0 lie.
        early: The first frame at T1, (1, channels, height, width).
        late: The first frame at T0.
        motions: (right, down) of every frame of the batch; None for the first frame itself.
        streams: Address of every frame's noise.
        seed: Of the clip.
    """

    inside: Scheduler[Any]
    shares: tuple[float, float]
    early: Tensor
    late: Tensor
    motions: tuple[tuple[float, float] | None, ...]
    streams: tuple[str, ...]
    seed: int

    @property
    def traits(self) -> Traits:
        """The solver's."""
        return self.inside.traits

    def init(self, x: Tensor, grid: Grid, /) -> _Place:
        """Before the first step."""
        return _Place(grid, 0)

    def step(
        self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: _Place, noise: Noise, /
    ) -> Step[_Place]:
        """A step of the solver, or none."""
        first, second = parting(len(state.grid) - 1, *self.shares)
        if state.done < first:
            return Step(x, x, evolve(state, done=state.done + 1))
        inner = state.inner
        if state.done == first:
            x = self._frames(x, state.grid[first], state.grid[second])
            inner = self.inside.init(x, state.grid[first:])
        made = self.inside.step(denoise, x, start, stop, inner, noise)
        return Step(made.x, made.denoised, evolve(state, done=state.done + 1, inner=made.state))

    def _frames(self, like: Tensor, noisier: Level, cleaner: Level) -> Tensor:
        early, late = self.early.to(like), self.late.to(like)
        if early.shape[1:] != like.shape[1:]:
            raise ContractError(f"Latents of {tuple(early.shape)} were begun, and {tuple(like.shape)} go on.")
        rows = []
        for motion, stream in zip(self.motions, self.streams, strict=True):
            if motion is None:
                rows.append(early)
            elif noisier == cleaner:
                rows.append(moved(early, *motion))
            else:
                noise = AddressedNoise((self.seed,), stream)(late, cleaner, noisier)
                rows.append(renoised(moved(late, *motion), cleaner, noisier, noise))
        return torch.cat(rows)


@frozen(eq=False)
class _Changed:
    """The modifier of one run of the model: another scheduler around its own, and attention across frames."""

    scheduler: Any
    frames: int

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        denoiser = with_cross_frame_attention(parts.denoiser, self.frames)
        yield evolve(parts, scheduler=self.scheduler(parts.scheduler), denoiser=denoiser)


def _share(value: Any) -> float:
    return number("A share of the way", value, 0, 1)


@frozen
class TextToVideoZero:
    """A clip from a text-to-image model with a U-Net; see the module's text.

    Prompts may travel: a frame has its own prompt, and looks at the first frame, which has the first.
    Frames tell where the view was in their values ``right`` and ``down``.

    Attributes:
        motion_x: How far the view moves to the right from the frame before, in 512ths of the picture's width.
        motion_y: How far it moves down, in 512ths of the height.
        early: Share of the way at which the frames part (T1). Diffusers' ``t1=47`` of 50 steps leaves 48 of them.
        late: Share of the way at which the first frame is moved (T0); ``t0=44`` leaves 45. If it is ``early``, nothing
            is made noisy again.
        chunk: Frames that go through the network together, 2 to 256; the first frame is always one of them.

    Raises:
        ParameterError: a curve cannot be read, or a value is out of range.
    """

    motion_x: Curve = field(default=Curve(12), converter=Curve)
    motion_y: Curve = field(default=Curve(12), converter=Curve)
    early: float = field(default=0.04, converter=_share)
    late: float = field(default=0.10, converter=_share)
    chunk: int = 8

    def __attrs_post_init__(self) -> None:
        if not self.early <= self.late or self.early >= 1:
            raise ParameterError(
                f"Frames part before they are moved: 0 <= early <= late <= 1 and early below 1, not early={self.early} "
                f"and late={self.late}."
            )
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or not 2 <= self.chunk <= 256:
            raise ParameterError(
                f"2 to 256 frames go through the network together (the first and others), not {self.chunk!r}."
            )

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Pictures, their latents, and conditionings of their own where prompts travel."""
        needs = {Capability.TEXT_TO_IMAGE, Capability.LATENTS}
        if len(job.prompts.keys) > 1:
            needs.add(Capability.CONDITIONING)
        return frozenset(needs)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the clip takes.

        Raises:
            InvalidRequest: the model has no U-Net of this package, there is an image to start from, or a closed loop
                whose motion does not come back.
            ParameterError: a curve has no value at a frame.
        """
        if job.request.image is not None:
            raise InvalidRequest(
                "text2video-zero starts from noise, not from an image; take restyle, keyframes or feedback."
            )
        pipe = getattr(job.images, "pipe", None)
        if pipe is not None:  # what another source is made of shows when it makes the first picture
            check_unet(pipe.denoiser)
        shift = self._moved(job, (0.0, 0.0), range(1, job.timeline.frames + (job.timeline.loop is Loop.CLOSED)))
        if job.timeline.loop is Loop.CLOSED and max(abs(way) for way in shift) > 1:
            raise InvalidRequest(
                f"In a closed loop the view has to come back, and this motion ends ({shift[0]:g}, {shift[1]:g}) away; "
                "take the loop pingpong, or curves that add up to 0: 12*cos(2*pi*t/(max_f+1))."
            )
        width, height = job.images.size(job.request)
        window = min(self.chunk, job.timeline.frames)
        return FramePlan(window, None, window * width * height * 3)

    def init(self, job: FrameJob, /) -> dict[str, Any]:
        """The first frame at T1 and T0, and how far the view has moved."""
        early: list[Tensor] = []
        late = self._run(job, (0,), lambda inside: _Beginning(inside, (self.early, self.late), early))
        return {"early": early[0].cpu(), "late": late.cpu(), "shift": [0.0, 0.0]}

    def step(self, job: FrameJob, index: int, state: Mapping[str, Any], /) -> Burst:
        """The next frames: as many as fit into a chunk beside the first one."""
        numbers = range(index, min(index + self.chunk - (index > 0), job.timeline.frames))
        shifts, shift = list[tuple[float, float]](), (float(state["shift"][0]), float(state["shift"][1]))
        for k in numbers:
            shift = self._moved(job, shift, range(k, k + 1)) if k else shift
            shifts.append(shift)
        before = [] if index == 0 else [0]

        def rest(inside: Scheduler[Any]) -> _Rest:
            return _Rest(
                inside,
                (self.early, self.late),
                state["early"],
                state["late"],
                (*[None] * len(before), *(None if k == 0 else way for k, way in zip(numbers, shifts, strict=True))),
                tuple(f"{STREAM}|{k}" for k in (*before, *numbers)),
                job.seed,
            )

        latents = job.latents(index, lambda: self._run(job, (*before, *numbers), rest)[len(before) :])
        pictures = zip(numbers, shifts, job.images.decode(latents, job.request), strict=True)
        frames = (
            Frame.of(
                k,
                job.timeline,
                image,
                FrameInfo(
                    seeds=((job.seed, 1.0),),
                    prompts=job.prompts.at(k, job.timeline),
                    values={"right": way[0], "down": way[1]},
                ),
            )
            for k, way, image in pictures
        )
        return Burst(frames, {**state, "shift": list(shift)})

    def _moved(self, job: FrameJob, shift: tuple[float, float], numbers: range) -> tuple[float, float]:
        """Where the view is after the motions to these frames."""
        right, down = shift
        for k in numbers:
            right += self.motion_x.at(k, job.timeline, seed=job.seed)
            down += self.motion_y.at(k, job.timeline, seed=job.seed)
        return right, down

    def _run(self, job: FrameJob, numbers: Sequence[int], scheduler: Any) -> Tensor:
        shots = [Shot(job.prompts.at(k, job.timeline), ((job.seed, 1.0),)) for k in numbers]
        changed = _Changed(scheduler, len(numbers))
        request = evolve(job.request, modifiers=(*job.request.modifiers, changed))
        return job.images.latents(request, shots, tick=job.tick)
