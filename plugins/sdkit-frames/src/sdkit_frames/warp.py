"""Moving pictures in the plane, and the plane in space.

Notation: a motion is a 3 x 3 matrix (float64) that takes a point (x, y, 1) of the old picture to where it is in the new
one, up to scale; x to the right, y down, in pixels, pixel (0, 0) having its centre there. f is the distance of the
picture from the camera, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sdkit import ParameterError

__all__ = [
    "BORDERS",
    "Motion",
    "check_border",
    "flat_3d",
    "from_tensor",
    "inverse",
    "moved",
    "plane",
    "to_tensor",
    "warp",
]

Motion: TypeAlias = NDArray[np.float64]
BORDERS = {"replicate": "border", "reflection": "reflection", "zeros": "zeros", "wrap": "border"}
"""What lies beyond the edge: the edge's pixels, the picture mirrored, black, or the picture again."""
SAMPLING = ("bicubic", "bilinear")
RIM = 2  # pixels that bicubic sampling looks beyond


def check_border(border: str, sampling: str = "bicubic") -> None:
    """Raises `ParameterError` unless both are known."""
    if border not in BORDERS:
        raise ParameterError(f"There is no border {border!r}; known: {', '.join(BORDERS)}.")
    if sampling not in SAMPLING:
        raise ParameterError(f"Pictures are sampled {' or '.join(SAMPLING)}, not {sampling!r}.")


def plane(
    size: tuple[int, int],
    *,
    zoom: float = 1.0,
    angle: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    center: tuple[float, float] = (0.5, 0.5),
) -> Motion:
    """Shift, then turn and zoom about a point.

    Args:
        size: (width, height) in pixels.
        zoom: Above 1 comes nearer.
        angle: Degrees, counter-clockwise as seen.
        shift: (right, down) in pixels.
        center: Of the turn, as shares of width and height.

    Raises:
        ParameterError: zoom is not above 0, or beyond all measure.
    """
    if not 1e-6 <= zoom <= 1e6:
        where = "above 0" if zoom <= 0 else "between 1e-6 and 1e6"
        raise ParameterError(f"Zoom must be {where}, not {zoom:g}; 1 leaves the size as it is.")
    x, y = (share * side - 0.5 for share, side in zip(center, size, strict=True))
    turn = math.radians(angle)
    cosine, sine = zoom * math.cos(turn), zoom * math.sin(turn)
    about = np.array([[cosine, sine, x - cosine * x - sine * y], [-sine, cosine, y + sine * x - cosine * y], [0, 0, 1]])
    moved: Motion = about @ np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1.0]])
    return moved


def flat_3d(
    size: tuple[int, int], *, turn: tuple[float, float, float], nearer: float = 0.0, fov: float = 70.0
) -> Motion:
    """The picture as a plane in space, turned about its centre and moved along the view: depth is flat.

    Args:
        size: (width, height) in pixels.
        turn: Degrees about the axes x (right), y (down) and z (into the picture).
        nearer: How far the plane comes to the camera, as a share of its distance; below 1.
        fov: The camera's horizontal field of view in degrees, above 0 and below 180.

    Raises:
        ParameterError: a value is out of range.
    """
    if not 0 < fov < 180:
        raise ParameterError(f"The field of view lies between 0 and 180 degrees, not at {fov:g}.")
    if not nearer < 1:
        raise ParameterError(f"The plane stays before the camera: nearer is below 1, not {nearer:g}.")
    f = size[0] / 2 / math.tan(math.radians(fov) / 2)
    rotation = np.eye(3)
    for axis, degrees in enumerate(turn):
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        one, two = (axis + 1) % 3, (axis + 2) % 3
        about = np.eye(3)
        about[[one, one, two, two], [one, two, one, two]] = cosine, -sine, sine, cosine
        rotation = about @ rotation
    if abs(rotation[2, 2]) < 1e-6:
        shown = ", ".join(f"{degrees:g}" for degrees in turn)
        raise ParameterError(f"Turned by {shown} degrees, the picture is seen from its edge; nothing of it is left.")
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    # a point (u, v) of the plane is u r1 + v r2 before a centre at distance f (1 - nearer)
    placed = np.column_stack([rotation[:, 0], rotation[:, 1], [0, 0, f * (1 - nearer)]])
    camera = np.array([[f, 0, x], [0, f, y], [0, 0, 1.0]])
    motion: Motion = camera @ placed @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    return motion


def moved(motions: Sequence[Motion]) -> Motion:
    """One motion for several, made one after the other."""
    whole: Motion = np.eye(3)
    for motion in motions:
        whole = motion @ whole
    return whole


def inverse(motion: Motion) -> Motion:
    """The motion back.

    Raises:
        ParameterError: the motion leaves nothing of the picture.
    """
    try:
        return np.linalg.inv(motion).astype(np.float64)
    except np.linalg.LinAlgError as error:
        raise ParameterError("The motions together leave nothing of the picture: a point or a line.") from error


def warp(image: Tensor, motion: Motion, *, border: str = "replicate", sampling: str = "bicubic") -> Tensor:
    """A picture after a motion: each new pixel is sampled where it was in the old one.

    Args:
        image: Float (3, height, width).
        motion: See the module's text.
        border: What lies beyond the edge, see `BORDERS`.
        sampling: ``bicubic`` or ``bilinear``.
    """
    check_border(border, sampling)
    height, width = image.shape[-2:]
    back = inverse(motion)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    points = back @ np.stack([x.ravel(), y.ravel(), np.ones(height * width)])
    depth = points[2]
    behind = np.abs(depth) < 1e-9
    column, row = (np.where(behind, 1e6, values / np.where(behind, 1, depth)) for values in points[:2])
    column, row = np.clip(column, -1e6, 1e6), np.clip(row, -1e6, 1e6)
    if border == "wrap":
        image = F.pad(image[None], (RIM, RIM, RIM, RIM), mode="circular")[0]
        column, row = np.mod(column, width) + RIM, np.mod(row, height) + RIM
        height, width = height + 2 * RIM, width + 2 * RIM
    grid = np.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], axis=-1)
    grid = grid.reshape(1, *y.shape, 2)
    sampled = F.grid_sample(
        image[None].double(),
        torch.from_numpy(grid),
        mode=sampling,
        padding_mode=BORDERS[border],
        align_corners=False,
    )
    return sampled[0].clamp(0, 1).to(image.dtype)


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """uint8 (height, width, 3) as float32 (3, height, width) in [0, 1]."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255


def from_tensor(image: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_tensor`, rounded."""
    array: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return array
