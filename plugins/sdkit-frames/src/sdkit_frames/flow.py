"""Frames in between that follow what moves: dense optical flow, and a blend where it finds nothing to follow.

Of two frames I0 and I1 and a share t of the way:

1. flow F01 and F10 (DIS), each as far as it agrees with the other: a pixel that does not come back is not believed;
2. both are carried to where things are at t, which gives the motion u there; holes are filled from around;
3. A = I0 at ``x - t u`` and B = I1 at ``x + (1 - t) u``, mixed (1 - t) to t, or the one of them that lies inside;
4. where A and B differ nearly as much as I0 and I1 do, motion explains nothing, and the frame is a blend of I0 and I1.

Every step treats both ends alike, so a clip played backwards has the same frames in between.

Sources: Kroeger, Timofte, Dai, Van Gool 2016, "Fast optical flow using dense inverse search", arXiv:1603.03590; for 2.
and 3. Baker et al. 2011, "A database and evaluation methodology for optical flow", section 3.3.3, doi:10.1007/
s11263-010-0390-2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import cv2
import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from sdkit import Frame, ParameterError, Timeline
from sdkit_frames.filters import check_times, mixed, sampled

__all__ = ["Flow", "between", "flows"]

Pixels: TypeAlias = NDArray[np.uint8]
Array: TypeAlias = NDArray[np.float32]
QUALITIES = {"fast": 2, "medium": 1, "fine": 0}
"""The finest scale at which flow is looked for, as a power of two."""
LEAST = 12
"""Frames with a smaller side are blended: patches of flow have 8 pixels."""


@frozen
class Flow:
    """More frames per second, things being where they are in between; in a loop, between the last and the first too.

    Attributes:
        times: How many times as many frames, 2 to 16.
        quality: ``fast``, ``medium`` or ``fine``: how finely flow is looked for.

    Raises:
        ParameterError: a value is out of range.
    """

    times: int = 2
    quality: str = "fine"
    window: int = field(default=3, init=False)

    def __attrs_post_init__(self) -> None:
        check_times(self.times)
        if self.quality not in QUALITIES:
            raise ParameterError(f"Flow is looked for {', '.join(QUALITIES)}, not {self.quality!r}.")

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As long, with more frames."""
        return evolve(timeline, frames=timeline.frames * self.times, fps=timeline.fps * self.times)

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The frames with those between."""
        return sampled(frames, timeline, self.timeline(timeline), mix=_remembering(self.quality))


def _remembering(quality: str) -> Callable[[Pixels, Pixels, float], Pixels]:
    """`between` that looks for the flow of a pair once, whatever the number of frames in between."""
    kept: list[tuple[Pixels, Pixels, tuple[Array, Array]]] = []

    def act(one: Pixels, two: Pixels, share: float) -> Pixels:
        if one is two:  # behind the last frame, where no loop goes on
            return one
        if not kept or kept[0][0] is not one or kept[0][1] is not two:
            kept[:] = [(one, two, flows(one, two, quality))]
        return between(one, two, share, kept[0][2])

    return act


def flows(one: Pixels, two: Pixels, quality: str = "fine") -> tuple[Array, Array]:
    """Flow from one picture to the other and back: float32 (height, width, 2), right and down, in pixels.

    Args:
        one: uint8 (height, width, 3).
        two: As ``one``.
        quality: See `Flow`.
    """
    still = np.zeros((*one.shape[:2], 2), np.float32)
    if min(one.shape[:2]) < LEAST or np.array_equal(one, two):
        return still, still
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(QUALITIES[quality])
    greys = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (one, two)]
    found = [np.asarray(search.calc(a, b, still.copy()), np.float32) for a, b in (greys, greys[::-1])]
    # what looks the same at the same place has not moved, whatever its neighbours pull it to
    same = cv2.erode((one == two).all(-1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    for flow in found:
        flow[same] = 0
    return found[0], found[1]


def between(one: Pixels, two: Pixels, share: float, motion: tuple[Array, Array]) -> Pixels:
    """The picture at a share of the way from one to the other.

    Args:
        one: uint8 (height, width, 3).
        two: As ``one``.
        share: 0 to 1.
        motion: `flows` of the two.
    """
    if share <= 0 or np.array_equal(one, two):
        return one
    blend = mixed(one, two, share)
    if min(one.shape[:2]) < LEAST:
        return blend
    place = _places(one.shape[:2])
    flow = _carried(motion, share, place)
    points = (place - share * flow, place + (1 - share) * flow)
    seen = [_sampled(image, at) for image, at in zip((one, two), points, strict=True)]
    inside = [_inside(at) for at in points]
    weights = [(1 - share) * inside[0], share * inside[1]]
    total = (weights[0] + weights[1])[..., None]
    moved = weights[0][..., None] * seen[0] + weights[1][..., None] * seen[1]
    moved = np.where(total > 0, moved / np.where(total > 0, total, 1), blend)
    # believed whole where less than 0.4 of the difference is left, not at all above 0.8; two levels are noise
    apart, stood = _apart(seen[0], seen[1]), _apart(one.astype(np.float32), two.astype(np.float32))
    trust = np.clip((0.8 * stood + 2 - apart) / (0.4 * stood + 1e-3), 0, 1)
    # of what one frame alone shows there is nothing to compare
    trust = np.where(inside[0] * inside[1] > 0, trust, np.minimum(inside[0] + inside[1], 1))
    trust = cv2.blur(trust.astype(np.float32), (5, 5))[..., None]
    return np.clip(np.rint(trust * moved + (1 - trust) * blend), 0, 255).astype(np.uint8)


def _places(size: tuple[int, ...]) -> Array:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x, y], axis=-1).astype(np.float32)


def _sampled(image: NDArray[np.generic], at: Array) -> Array:
    """A picture at places, by cubic interpolation; beyond its edge, the edge."""
    values = image.astype(np.float32)
    found = cv2.remap(values, at[..., 0], at[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def _inside(at: Array) -> Array:
    """1 for places in the picture, 0 for those more than half a pixel outside."""
    far = np.array([at.shape[1], at.shape[0]], np.float32) - 0.5
    return np.asarray(((at >= -0.5) & (at <= far)).all(-1), np.float32)


def _apart(one: Array, two: Array) -> Array:
    """How far two pictures differ around each pixel, in levels."""
    return np.asarray(cv2.blur(np.abs(one - two).mean(-1), (7, 7)), np.float32)


def _trusted(flow: Array, back: Array, place: Array) -> Array:
    """How far a flow is believed, 0 to 1: by how far from itself each pixel comes back."""
    returned = cv2.remap(
        back,
        place[..., 0] + flow[..., 0],
        place[..., 1] + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    off, long = np.square(flow + returned).sum(-1), np.square(flow).sum(-1) + np.square(returned).sum(-1)
    # Sundaram, Brox, Keutzer 2010, "Dense point trajectories by GPU-accelerated large displacement optical flow"
    return np.asarray(np.exp(-off / (0.02 * long + 0.5)), np.float32)


def _carried(motion: tuple[Array, Array], share: float, place: Array) -> Array:
    """The motion from one picture to the other of what is at each place at a share of the way."""
    size = place.shape[:2]
    summed = np.zeros((size[0] * size[1], 2))
    weight = np.zeros(size[0] * size[1])
    for flow, back, way, sign, part in (
        (motion[0], motion[1], share, 1, 1 - share),
        (motion[1], motion[0], 1 - share, -1, share),
    ):
        at = place + way * flow
        believed = part * _trusted(flow, back, place) + 1e-3
        corner = np.floor(at).astype(np.int64)
        rest = at - corner
        for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = corner[..., 0] + right, corner[..., 1] + down
            near = np.abs(1 - right - rest[..., 0]) * np.abs(1 - down - rest[..., 1]) * believed
            held = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
            index, near = (y * size[1] + x)[held], near[held]
            weight += np.bincount(index, near, len(weight))
            for axis in (0, 1):
                summed[:, axis] += np.bincount(index, near * sign * flow[..., axis][held], len(weight))
    return _filled(summed.reshape(*size, 2).astype(np.float32), weight.reshape(size).astype(np.float32))


def _filled(summed: Array, weight: Array) -> Array:
    """``summed / weight``, with holes filled from ever wider surroundings (push and pull)."""
    if min(weight.shape) <= 2:
        return np.asarray(summed / np.maximum(weight, 1e-9)[..., None], np.float32)
    half = (-(-weight.shape[1] // 2), -(-weight.shape[0] // 2))
    smaller = [cv2.resize(each, half, interpolation=cv2.INTER_AREA) for each in (summed, weight)]
    coarse = _filled(np.asarray(smaller[0], np.float32), np.asarray(smaller[1], np.float32))
    around = cv2.resize(coarse, (weight.shape[1], weight.shape[0]), interpolation=cv2.INTER_LINEAR)
    share = np.minimum(weight / 0.1, 1)[..., None]
    return np.asarray(share * summed / np.maximum(weight, 1e-9)[..., None] + (1 - share) * around, np.float32)
