"""Zoom, pan and turn of one still, which is given or made once: the simplest generator, and a pattern for others.

In a closed loop every value travels back during the second half of the clip, so that frame n would be frame 0; one that
is back by itself (a turn of 360 degrees, a periodic expression) is left as it is.
"""

from __future__ import annotations

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray

from sdkit import Burst, Capability, Curve, Frame, FrameInfo, FrameJob, FramePlan, Loop, Shot
from sdkit_frames.warp import Motion, check_border, from_tensor, plane, to_tensor, warp

__all__ = ["Zoom", "closed_value", "first_picture"]


def closed_value(curve: Curve, i: int, job: FrameJob, *, period: float = 0.0) -> float:
    """A curve's value that in a closed loop is at frame n what it is at frame 0.

    Args:
        curve: The values.
        i: The frame.
        job: Its timeline and seed.
        period: Values that differ by this look the same; 0 for none.
    """
    timeline, n = job.timeline, job.timeline.frames
    value = curve.at(i, timeline, seed=job.seed)
    if timeline.loop is not Loop.CLOSED or 2 * i <= n:
        return value
    gap = curve.at(n, timeline, seed=job.seed) - curve.at(0, timeline, seed=job.seed)
    off = gap - round(gap / period) * period if period else gap
    if abs(off) < 1e-9:
        return value
    back = (2 * i - n) / n
    return (1 - back) * value + back * curve.at(i - n, timeline, seed=job.seed)


def first_picture(job: FrameJob) -> NDArray[np.uint8]:
    """The request's image, at the size of the request, or one made of the first prompt and seed."""
    still = job.request.image
    if still is not None:
        return np.array(still.image().convert("RGB"))
    shot = Shot(job.prompts.at(0, job.timeline), ((job.seed, 1.0),))
    latents = job.latents(0, lambda: job.images.latents(job.request, [shot], tick=job.tick))
    return next(iter(job.images.decode(latents, job.request)))


@frozen
class Zoom:
    """Zoom, pan and turn of a still: the request's image, or a picture of its prompt.

    Attributes:
        zoom: How near, at each frame; 1 is the picture as it is.
        angle: Degrees, counter-clockwise.
        x: How far the picture is moved to the right, as a share of its width.
        y: How far down, as a share of its height.
        center_x: Of zoom and turn, as a share of the width.
        center_y: As a share of the height.
        border: ``replicate``, ``reflection``, ``wrap`` or ``zeros``: what lies beyond the edge.
        sampling: ``bicubic`` or ``bilinear``.

    Raises:
        ParameterError: a curve cannot be read, or a name means nothing.
    """

    zoom: Curve = field(default=Curve("0:(1), max(1,max_f):(1.4); ease=cosine"), converter=Curve)
    angle: Curve = field(default=Curve(0), converter=Curve)
    x: Curve = field(default=Curve(0), converter=Curve)
    y: Curve = field(default=Curve(0), converter=Curve)
    center_x: Curve = field(default=Curve(0.5), converter=Curve)
    center_y: Curve = field(default=Curve(0.5), converter=Curve)
    border: str = "replicate"
    sampling: str = "bicubic"

    def __attrs_post_init__(self) -> None:
        check_border(self.border, self.sampling)

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """A picture of the prompt, where no image is given."""
        return frozenset() if job.request.image is not None else frozenset({Capability.TEXT_TO_IMAGE})

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What it takes; every curve is tried at every frame."""
        still = job.request.image
        size = still.size if still is not None else job.images.size(job.request)
        for i in range(job.timeline.frames):
            self._motion(size, self._values(job, i))
        return FramePlan(1, 0 if still is not None else None, size[0] * size[1] * 3)

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """The still."""
        return {"still": torch.from_numpy(first_picture(job))}

    def step(self, job: FrameJob, index: int, state: dict[str, torch.Tensor], /) -> Burst:
        """One frame."""
        values, still = self._values(job, index), state["still"].numpy()
        size = (still.shape[1], still.shape[0])
        moved = warp(to_tensor(still), self._motion(size, values), border=self.border, sampling=self.sampling)
        prompts = job.prompts.at(0, job.timeline)
        info = FrameInfo("warped", ((job.seed, 1.0),), prompts, values)
        return Burst([Frame.of(index, job.timeline, from_tensor(moved), info)], state)

    def _values(self, job: FrameJob, i: int) -> dict[str, float]:
        names, turns = ("zoom", "angle", "x", "y", "center_x", "center_y"), {"angle": 360.0}
        if self.border == "wrap":
            turns |= {"x": 1.0, "y": 1.0}
        return {name: closed_value(getattr(self, name), i, job, period=turns.get(name, 0.0)) for name in names}

    def _motion(self, size: tuple[int, int], values: dict[str, float]) -> Motion:
        return plane(
            size,
            zoom=values["zoom"],
            angle=values["angle"],
            shift=(values["x"] * size[0], values["y"] * size[1]),
            center=(values["center_x"], values["center_y"]),
        )
