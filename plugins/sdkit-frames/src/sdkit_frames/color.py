"""Colours: spaces, and the histogram of one picture given to another.

Pictures are float64 (height, width, 3). RGB is sRGB in [0, 1] (IEC 61966-2-1); LAB is CIE 1976 L*a*b* under D65; HSV
has all three in [0, 1] (Smith 1978, "Color gamut transform pairs", SIGGRAPH).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sdkit import ParameterError

__all__ = ["SPACES", "check_space", "from_space", "match", "match_histogram", "to_space"]

Array: TypeAlias = NDArray[np.float64]
SPACES = ("LAB", "HSV", "RGB")
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = TO_XYZ.sum(axis=1)  # D65, as the matrix has it, so that white has a = b = 0 exactly
KNEE = 6 / 29


def check_space(space: str) -> str:
    """The name in capitals.

    Raises:
        ParameterError: there is no such space.
    """
    if str(space).upper() not in SPACES:
        raise ParameterError(f"Colours are matched in {', '.join(SPACES)}, not in {space!r}.")
    return str(space).upper()


def to_space(rgb: Array, space: str) -> Array:
    """RGB in another space."""
    if space == "RGB":
        return rgb
    return _to_hsv(rgb) if space == "HSV" else _to_lab(rgb)


def from_space(values: Array, space: str) -> Array:
    """Another space in RGB, cut to [0, 1]."""
    if space == "HSV":
        values = _from_hsv(values)
    elif space == "LAB":
        values = _from_lab(values)
    return np.clip(values, 0, 1)


def _to_lab(rgb: Array) -> Array:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = (linear @ TO_XYZ.T) / WHITE
    bent = np.where(ratio > KNEE**3, np.cbrt(ratio), ratio / (3 * KNEE**2) + 4 / 29)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _from_lab(lab: Array) -> Array:
    y = (lab[..., 0] + 16) / 116
    bent = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    ratio = np.where(bent > KNEE, bent**3, 3 * KNEE**2 * (bent - 4 / 29))
    linear = np.clip((ratio * WHITE) @ np.linalg.inv(TO_XYZ).T, 0, None)
    curved: Array = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return curved


def _to_hsv(rgb: Array) -> Array:
    high, low = rgb.max(-1), rgb.min(-1)
    spread = high - low
    safe = np.where(spread > 0, spread, 1)
    r, g, b = np.moveaxis(rgb, -1, 0)
    sixth = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = np.where(spread > 0, sixth / 6, 0)
    return np.stack([hue, np.where(high > 0, spread / np.where(high > 0, high, 1), 0), high], axis=-1)


def _from_hsv(hsv: Array) -> Array:
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    shift = (np.array([5.0, 3.0, 1.0]) + hue[..., None] * 6) % 6
    dip = np.clip(np.minimum(shift, 4 - shift), 0, 1)
    found: Array = value[..., None] * (1 - saturation[..., None] * dip)
    return found


def match_histogram(values: Array, reference: Array) -> Array:
    """One channel with the distribution of another: each value becomes the reference's of the same rank.

    Values that are equal stay equal. Source: Gonzalez and Woods, "Digital Image Processing", histogram matching.
    """
    _, inverse, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    there, reference_counts = np.unique(reference.ravel(), return_counts=True)
    rank = np.cumsum(counts) / values.size
    reference_rank = np.cumsum(reference_counts) / reference.size
    matched: Array = np.interp(rank, reference_rank, there)[inverse].reshape(values.shape)
    return matched


def match(image: NDArray[np.uint8], reference: NDArray[np.uint8], space: str) -> NDArray[np.uint8]:
    """A picture with the colours of another, channel by channel in a space; both uint8 (height, width, 3)."""
    one, two = (to_space(each.astype(np.float64) / 255, space) for each in (image, reference))
    # seven decimals: equal colours must be equal whatever the last bit of the conversion says
    one, two = one.round(7), two.round(7)
    matched = np.stack([match_histogram(one[..., k], two[..., k]) for k in range(3)], axis=-1)
    return (from_space(matched, space) * 255).round().astype(np.uint8)
