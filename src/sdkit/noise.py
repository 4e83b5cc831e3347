"""Noise with addresses.

A draw is a pure function of (image seed, stream, interval): a counter-based generator (Philox, Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405) is keyed with the address, its bits become normals by a transform written
here, on the CPU, and the result is moved to the latent's device. So image k of a batch equals the image made alone, a
resumed run equals the straight one, and all devices see the same noise. numpy promises the bit stream of a bit
generator for ever (NEP 19) but not that of its normals, hence the transform.
"""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from sdkit.errors import NoiseError
from sdkit.levels import Grid, Level
from sdkit.protocols import MAX_SEED

__all__ = ["Addressed", "AddressedNoise", "NoNoise", "NoiseMaker", "NoiseSource", "check_batch", "seed_tuple"]


def seed_tuple(seeds: object) -> tuple[int, ...]:
    """One seed per image, checked."""
    values = tuple(seeds) if isinstance(seeds, (tuple, list, range)) else (seeds,)
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise NoiseError(f"A seed is a whole number from 0 to {MAX_SEED}, not {seed!r}.")
    if not values:
        raise NoiseError("Noise needs at least one seed, one per image.")
    return values


class NoiseSource(Protocol):
    """What a run draws from: the noise a picture starts as, and `sdkit.protocols.Noise` for its steps."""

    def initial(self, like: Tensor, /) -> Tensor:
        """Standard normal noise the run starts from; the same for every schedule, spacing and scheduler."""
        ...

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor: ...


def standard_normal(key: bytes, count: int) -> NDArray[np.float64]:
    """``count`` standard normal float64 numbers that depend on ``key`` alone, by Box and Muller 1958.

    Two 53-bit uniforms of a Philox4x64-10 stream make two normals; the first uniform lies in (0, 1], so the logarithm
    is finite. ``key`` is hashed (BLAKE2b) to the generator's 128 bits.
    """
    digest = hashlib.blake2b(key, digest_size=16).digest()
    words = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    pairs = (count + 1) // 2
    raw = np.random.Philox(key=words).random_raw(2 * pairs)
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform[:pairs]))
    angle = (2.0 * math.pi) * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _address(level: Level) -> str:
    # log_snr does not change when a schedule is written in another scale; nine decimals forgive its rounding errors,
    # which are absolute (it is a difference of logarithms), and adding 0 makes minus zero zero.
    return f"{round(level.log_snr, 9) + 0.0:.9f}"


def check_batch(like: Tensor, seeds: tuple[int, ...]) -> None:
    """Raises `NoiseError` unless there is one seed per image."""
    if like.shape[0] != len(seeds):
        raise NoiseError(
            f"There are {len(seeds)} seeds for a batch of {like.shape[0]}; noise needs one seed per image."
        )


@frozen
class AddressedNoise:
    """The noise source of sdkit: every draw has an address, one seed per image.

    Attributes:
        seeds: One per image of the batch, each 0 to 2^64 - 1.
        stream: Name that separates independent uses of the same seed.
    """

    seeds: tuple[int, ...] = field(converter=seed_tuple)
    stream: str = ""

    def initial(self, like: Tensor, /) -> Tensor:
        """Noise of the shape of ``like`` for the start of a run; does not depend on the grid."""
        return self._draw(like, "initial")

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        """Noise of the shape, dtype and device of ``like`` for the interval from ``start`` to ``stop``."""
        return self._draw(like, f"{_address(start)}>{_address(stop)}")

    def _draw(self, like: Tensor, address: str) -> Tensor:
        check_batch(like, self.seeds)
        shape = like.shape[1:]
        count = math.prod(shape)
        rows = [standard_normal(f"sdkit-1|{seed}|{self.stream}|{address}".encode(), count) for seed in self.seeds]
        noise = torch.from_numpy(np.stack(rows)).reshape(like.shape)
        return noise.to(device=like.device, dtype=like.dtype)


@frozen
class NoNoise:
    """A source for deterministic runs: asking it is an error, which proves that nothing asked."""

    def initial(self, like: Tensor, /) -> Tensor:
        """Raises `NoiseError`."""
        raise NoiseError("This run was given no noise, but something asked for the noise it starts from.")

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        """Raises `NoiseError`."""
        raise NoiseError(f"This run was given no noise, but the scheduler asked for some from {start} to {stop}.")


class NoiseMaker(Protocol):
    """The noise of a run, from its seeds and levels: what a component of kind ``noise`` is a class of.

    Its name says which numbers it draws, so what draws others gets another name (``addressed-1``): a file names it.
    """

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> NoiseSource: ...


@frozen
class Addressed:
    """`AddressedNoise`, what sdkit uses unless told otherwise."""

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> AddressedNoise:
        """The noise of a run."""
        return AddressedNoise(seeds)
