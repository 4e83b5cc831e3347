"""Random numbers with addresses: a pure function of (seed, name), whatever was drawn before.

So step 1,000 of a resumed training draws what it would have drawn in the straight one, and nothing touches a global
generator. The numbers are those of `sdkit.AddressedNoise`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdkit import AddressedNoise

__all__ = ["normals", "order", "uniforms"]


def normals(seed: int, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of this shape, on the CPU.

    Args:
        seed: 0 to 2^64 - 1.
        name: What they are for; another name gives independent numbers.
        shape: Of the result.
        dtype: Of the result; drawn in float64.

    Raises:
        NoiseError: the seed is out of range.
    """
    like = torch.empty((1, *shape), dtype=torch.float64, device="cpu")
    return AddressedNoise((seed,), stream=f"training {name}").initial(like)[0].to(dtype)


def uniforms(seed: int, name: str, count: int) -> list[float]:
    """``count`` numbers, each in (0, 1), as host floats."""
    shares: list[float] = torch.special.ndtr(normals(seed, name, count, dtype=torch.float64)).tolist()
    # ndtr rounds to 0 or 1 far out, where a logit would be infinite
    return [min(max(share, 2.0**-53), 1 - 2.0**-53) for share in shares]


def order(seed: int, name: str, count: int, first: int, stop: int) -> list[int]:
    """Places ``first`` to ``stop`` of an endless walk over ``count`` things, in which every round is shuffled anew."""
    found: list[int] = []
    for epoch in range(first // count, math.ceil(stop / count)):
        shuffled: list[int] = torch.argsort(normals(seed, f"{name} round {epoch}", count, dtype=torch.float64)).tolist()
        found += shuffled[max(first - epoch * count, 0) : min(stop - epoch * count, count)]
    return found
