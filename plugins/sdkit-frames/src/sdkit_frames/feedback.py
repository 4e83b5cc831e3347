"""Every frame is painted over the last one, warped: what Deforum does, in 2D and with flat depth in 3D.

The order of operations, for each frame the model paints (a test holds it):

1. warp the frame before by the motion of the frames since;
2. match its colours to the first frame's (``color``);
3. contrast, about middle grey;
4. sharpen (unsharp mask, against the blur of warping);
5. add noise;
6. image to image with ``strength``;
7. match the colours again, and keep the frame.

``strength`` has Deforum's meaning: how much of the frame before is kept, 1 - denoise; at 1 nothing is painted. With a
cadence of c the model paints every c-th frame; those between are blends of the frame before warped forward and the
frame after warped back (Deforum shows the frame after where it will be; warped back, both show the same place).

Curves are evaluated at each frame i for the motion from frame i - 1. Numbers are Deforum's: zoom and angle about the
centre, translation in pixels, noise in units of full brightness. Not Deforum's: depth is a plane at the distance that
``fov`` gives, and ``translation_z`` is a share of that distance.

In a closed loop the last quarter of the clip is blended with frame 0, warped back from where it stands.

Source: behaviour and defaults of Deforum (github.com/deforum-art), described from its settings and public discussion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit import (
    AddressedNoise,
    Burst,
    Capability,
    Curve,
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    Loop,
    ParameterError,
    Shot,
)
from sdkit_frames.color import check_space, match
from sdkit_frames.warp import Motion, check_border, flat_3d, from_tensor, inverse, moved, plane, to_tensor, warp
from sdkit_frames.zoom import first_picture

__all__ = ["Feedback", "seed_at"]

SEEDS = ("iter", "fixed", "random", "ladder", "alternate", "schedule")
MOTION = (
    "zoom",
    "angle",
    "translation_x",
    "translation_y",
    "translation_z",
    "rotation_3d_x",
    "rotation_3d_y",
    "rotation_3d_z",
    "center_x",
    "center_y",
    "fov",
)
PAINT = ("strength", "noise", "contrast", "sharpen")
MOST = 2**64


def seed_at(behavior: str, seed: int, k: int) -> int:
    """The seed of the k-th painted frame, from 0, of all behaviours but ``schedule``.

    ``iter`` counts up; ``ladder`` goes two up and one down (0, 2, 1, 3, 2, 4, ...); ``alternate`` goes up and down
    (0, 1, 0, 1, ...); ``random`` is a hash of the first seed and k, the same in every run.
    """
    if behavior == "random" and k > 0:
        return int.from_bytes(hashlib.blake2b(f"{seed}|{k}".encode(), digest_size=4).digest(), "little")
    add = {"iter": k, "ladder": k // 2 + 2 * (k % 2), "alternate": k % 2}.get(behavior, 0)
    return (seed + add) % MOST


def _optional(value: object) -> Curve | None:
    return None if value is None else Curve(value)


@frozen
class Feedback:
    """Deforum-like animation; see the module's text for the order of operations and the units.

    Attributes:
        zoom: Above 1 comes nearer, per frame.
        angle: Degrees per frame, counter-clockwise.
        translation_x: Pixels per frame to the right.
        translation_y: Pixels per frame down.
        translation_z: How far the plane comes nearer per frame, as a share of its distance.
        rotation_3d_x: Degrees per frame about the axis to the right.
        rotation_3d_y: Degrees per frame about the axis down.
        rotation_3d_z: Degrees per frame about the axis into the picture.
        center_x: Of zoom and angle, as a share of the width.
        center_y: As a share of the height.
        fov: The camera's horizontal field of view in degrees.
        strength: How much of the frame before is kept: 1 - denoise.
        noise: Standard deviation of what is added before painting, 1 being full brightness.
        contrast: Factor about middle grey.
        sharpen: Amount of the unsharp mask, radius of 1 pixel.
        guidance: Scale of guidance, or None for the request's.
        cadence: The model paints every so many frames.
        color: ``LAB``, ``HSV``, ``RGB`` or ``none``.
        seeds: ``iter``, ``fixed``, ``random``, ``ladder``, ``alternate`` or ``schedule``.
        seed_schedule: The seed at each frame, with ``seeds="schedule"``.
        border: ``replicate``, ``wrap``, ``reflection`` or ``zeros``.
        sampling: ``bicubic`` or ``bilinear``.

    Raises:
        ParameterError: a curve cannot be read, or a value is out of range.
    """

    zoom: Curve = field(default=Curve("0:(1.0025+0.002*sin(1.25*3.14*t/30))"), converter=Curve)
    angle: Curve = field(default=Curve(0), converter=Curve)
    translation_x: Curve = field(default=Curve(0), converter=Curve)
    translation_y: Curve = field(default=Curve(0), converter=Curve)
    translation_z: Curve = field(default=Curve(0), converter=Curve)
    rotation_3d_x: Curve = field(default=Curve(0), converter=Curve)
    rotation_3d_y: Curve = field(default=Curve(0), converter=Curve)
    rotation_3d_z: Curve = field(default=Curve(0), converter=Curve)
    center_x: Curve = field(default=Curve(0.5), converter=Curve)
    center_y: Curve = field(default=Curve(0.5), converter=Curve)
    fov: Curve = field(default=Curve(70), converter=Curve)
    strength: Curve = field(default=Curve(0.65), converter=Curve)
    noise: Curve = field(default=Curve(0.065), converter=Curve)
    contrast: Curve = field(default=Curve(1), converter=Curve)
    sharpen: Curve = field(default=Curve(0.1), converter=Curve)
    guidance: Curve | None = field(default=None, converter=_optional)
    cadence: int = 2
    color: str = "LAB"
    seeds: str = "iter"
    seed_schedule: Curve = field(default=Curve("s"), converter=Curve)
    border: str = "replicate"
    sampling: str = "bicubic"

    def __attrs_post_init__(self) -> None:
        check_border(self.border, self.sampling)
        if self.color != "none":
            check_space(self.color)
        if self.seeds not in SEEDS:
            raise ParameterError(f"Seeds behave as one of {', '.join(SEEDS)}, not as {self.seeds!r}.")
        if isinstance(self.cadence, bool) or not isinstance(self.cadence, int) or not 1 <= self.cadence <= 64:
            raise ParameterError(f"The cadence is a whole number from 1 to 64, not {self.cadence!r}.")

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Image to image; text to image where no first image is given."""
        needs = {Capability.IMAGE_TO_IMAGE, Capability.LATENTS}
        if job.request.image is None:
            needs.add(Capability.TEXT_TO_IMAGE)
        if len(job.prompts.keys) > 1:
            needs.add(Capability.CONDITIONING)
        return frozenset(needs)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What it takes; every curve is tried at every frame.

        Raises:
            ParameterError: a curve leaves its range; says where.
        """
        width, height = job.images.size(_sized(job).request)
        closed = job.timeline.loop is Loop.CLOSED
        for i in range(job.timeline.frames + closed):  # a closed loop also moves from its last frame to its first
            values = self._values(job, i)
            self._motion((width, height), values)
            if i == job.timeline.frames:
                break
            self._seed(job, i, i)
            if self.guidance is not None:
                self.guidance.at(i, job.timeline, seed=job.seed)
            if not 0 <= values["strength"] <= 1:
                raise ParameterError(f"Strength is between 0 and 1, not {values['strength']:g} as at frame {i}.")
            if values["noise"] < 0:
                raise ParameterError(f"Noise is at least 0, not {values['noise']:g} as at frame {i}.")
        return FramePlan(min(self.cadence, job.timeline.frames), None, self.cadence * width * height * 3)

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing was painted yet."""
        return {"painted": 0, "at": -1}

    def step(self, job: FrameJob, index: int, state: Mapping[str, Any], /) -> Burst:
        """The first frame; later, the next painted frame and those between."""
        job = _sized(job)
        if index == 0:
            first = first_picture(job)
            kept = torch.from_numpy(first)
            info = FrameInfo("diffused", ((self._seed(job, 0, 0), 1.0),), job.prompts.at(0, job.timeline), {})
            now = {"painted": 1, "at": 0, "image": kept, "first": kept}
            return Burst([Frame.of(0, job.timeline, self._closing(job, 0, first, first), info)], now)
        at, last = state["at"], state["image"].numpy()
        to = min(at + self.cadence, job.timeline.frames - 1)
        size = (last.shape[1], last.shape[0])
        values = {i: self._values(job, i) for i in range(at + 1, to + 1)}
        motions = {i: self._motion(size, values[i]) for i in values}
        first = state["first"].numpy()
        seed = self._seed(job, to, state["painted"])
        before = warp(to_tensor(last), moved(list(motions.values())), border=self.border, sampling=self.sampling)
        painted = self._painted(job, index, to, before, first, values[to], seed)
        frames = []
        for i in values:
            image = painted
            if i < to:
                image = self._between(last, painted, motions, i, (i - at) / (to - at))
            origin = "interpolated" if i < to else "diffused" if values[to]["strength"] < 1 else "warped"
            info = FrameInfo(origin, ((seed, 1.0),), job.prompts.at(i, job.timeline), values[i])  # type: ignore[arg-type]
            frames.append(Frame.of(i, job.timeline, self._closing(job, i, image, first), info))
        now = {**state, "painted": state["painted"] + 1, "at": to, "image": torch.from_numpy(painted)}
        return Burst(frames, now)

    def _painted(
        self, job: FrameJob, index: int, i: int, image: Tensor, first: Any, values: dict[str, float], seed: int
    ) -> Any:
        """Steps 2 to 7 of the order of operations; uint8."""
        image = self._matched(image, first)
        image = ((image - 0.5) * values["contrast"] + 0.5).clamp(0, 1)
        image = _sharpened(image, values["sharpen"])
        if values["noise"] > 0:
            grain = AddressedNoise((job.seed,), f"sdkit-frames feedback {i}").initial(image[None])[0]
            image = (image + values["noise"] * grain).clamp(0, 1)
        pixels = from_tensor(image)
        if values["strength"] >= 1:
            return pixels
        request = job.request
        if self.guidance is not None:
            request = attrs.evolve(request, guidance=self.guidance.at(i, job.timeline, seed=job.seed))
        shot = Shot(job.prompts.at(i, job.timeline), ((seed, 1.0),))

        def paint() -> Tensor:
            start = job.images.encode([pixels], request)
            return job.images.latents(request, [shot], start=start, strength=1 - values["strength"], tick=job.tick)

        made = next(iter(job.images.decode(job.latents(index, paint), request)))
        return made if self.color == "none" else match(made, first, check_space(self.color))

    def _matched(self, image: Tensor, first: Any) -> Tensor:
        if self.color == "none":
            return image
        return to_tensor(match(from_tensor(image), first, check_space(self.color)))

    def _between(self, last: Any, painted: Any, motions: dict[int, Motion], i: int, share: float) -> Any:
        """A blend of the frame before, warped forward, and the frame after, warped back."""
        forward = moved([motions[k] for k in motions if k <= i])
        back = inverse(moved([motions[k] for k in motions if k > i]))
        one, two = (
            warp(to_tensor(image), motion, border=self.border, sampling=self.sampling)
            for image, motion in ((last, forward), (painted, back))
        )
        return from_tensor((1 - share) * one + share * two)

    def _closing(self, job: FrameJob, i: int, image: Any, first: Any) -> Any:
        """The frame as shown: near the end of a closed loop, going over into frame 0 warped back to frame i."""
        n = job.timeline.frames
        long = max(1, n // 4)
        if job.timeline.loop is not Loop.CLOSED or i == 0 or i < n - long:
            return image
        size = (image.shape[1], image.shape[0])
        rest = moved([self._motion(size, self._values(job, k)) for k in range(i + 1, n + 1)])
        ahead = warp(to_tensor(first), inverse(rest), border=self.border, sampling=self.sampling)
        share = (i - (n - long) + 1) / (long + 1)
        return from_tensor((1 - share) * to_tensor(image) + share * ahead)

    def _values(self, job: FrameJob, i: int) -> dict[str, float]:
        return {name: getattr(self, name).at(i, job.timeline, seed=job.seed) for name in (*MOTION, *PAINT)}

    def _motion(self, size: tuple[int, int], v: dict[str, float]) -> Motion:
        turn = (v["rotation_3d_x"], v["rotation_3d_y"], v["rotation_3d_z"])
        flat = plane(
            size,
            zoom=v["zoom"],
            angle=v["angle"],
            shift=(v["translation_x"], v["translation_y"]),
            center=(v["center_x"], v["center_y"]),
        )
        if not any(turn) and not v["translation_z"]:
            return flat
        return flat_3d(size, turn=turn, nearer=v["translation_z"], fov=v["fov"]) @ flat

    def _seed(self, job: FrameJob, i: int, k: int) -> int:
        if self.seeds != "schedule":
            return seed_at(self.seeds, job.seed, k)
        value = round(self.seed_schedule.at(i, job.timeline, seed=job.seed))
        if not 0 <= value < MOST:
            raise ParameterError(f"The seed schedule gives {value} at frame {i}; seeds are 0 to 2^64 - 1.")
        return value


def _sized(job: FrameJob) -> FrameJob:
    """The job with the size of its image, where it has one: what is painted over it has the same."""
    still = job.request.image
    return job if still is None else attrs.evolve(job, request=attrs.evolve(job.request, size=still.size))


def _sharpened(image: Tensor, amount: float) -> Tensor:
    """Unsharp mask: what a Gaussian blur of radius 1 takes away is added, ``amount`` times."""
    if amount == 0:
        return image
    offsets = torch.arange(-2.0, 3.0)
    kernel = torch.exp(-(offsets**2) / 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], (2, 2, 2, 2), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, 5)), kernel.reshape(1, 1, 5, 1))[:, 0]
    return (image + amount * (image - blurred)).clamp(0, 1)
