"""Figures about shares, colours and clouds of points; nothing here knows a model or a judge.

Colours are sRGB in [0, 1] and CIELAB under D65 (CIE 15:2004; sRGB by IEC 61966-2-1:1999).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["border_colour", "frechet", "lab", "mean_distance", "named", "wilson"]

Z95 = 1.959963984540054
"""Two-sided 95 % point of the standard normal distribution."""
TO_XYZ = (
    (0.4123907992659595, 0.35758433938387796, 0.1804807884018343),
    (0.21263900587151036, 0.7151686787677559, 0.07219231536073371),
    (0.01933081871559185, 0.11919477979462599, 0.9505321522496606),
)
WHITE = (0.9504559270516717, 1.0, 1.0890577507598784)
"""XYZ of sRGB's white: the rows' sums."""


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Args:
        successes: How many of the trials went well.
        trials: How many there were; with none the interval is (0, 1).
        z: Point of the standard normal distribution; the default gives 95 %.

    Raises:
        ValueError: there are more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} trials cannot have gone well.")
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def lab(colours: Tensor) -> Tensor:
    """SRGB (..., 3) in [0, 1] -> CIELAB (..., 3), L in [0, 100]."""
    x = colours.double()
    linear = torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ torch.tensor(TO_XYZ, dtype=torch.float64).T / torch.tensor(WHITE, dtype=torch.float64)
    small = (6 / 29) ** 3
    f = torch.where(xyz > small, xyz.clamp_min(small) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def border_colour(images: Tensor, width: int = 3) -> Tensor:
    """Median of each channel over the frame of ``width`` pixels: images (b, 3, h, w) -> (b, 3)."""
    inner = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inner[width:-width, width:-width] = True
    return images[:, :, ~inner].median(-1).values


def named(colours: Tensor, names: Mapping[str, Sequence[float]]) -> list[str]:
    """The name whose colour is nearest in CIELAB (Euclidean, CIE 1976): colours (n, 3) and names' colours in [0, 1]."""
    known = list(names)
    distances = torch.cdist(lab(colours), lab(torch.tensor([list(names[name]) for name in known], dtype=torch.float64)))
    return [known[index] for index in distances.argmin(-1).tolist()]


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the normal distributions with the means and covariances of two clouds.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Dowson and Landau 1982,
    https://doi.org/10.1016/0047-259X(82)90077-X); used on features of pictures by Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500. Grows with few points, so only equal counts compare.

    Args:
        a: One cloud, (n, d), n at least 2.
        b: The other, (m, d).
    """
    a, b = a.double(), b.double()
    first, second = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    # the product's root has the trace of the root of this symmetric matrix
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * mixed
    return max(0.0, float(distance))


def mean_distance(points: Tensor) -> float:
    """Mean Euclidean distance over all pairs of points (n, d), n at least 2."""
    return float(torch.pdist(points.double()).mean())
