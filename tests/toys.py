"""A model whose every part has a closed form: data are N(mean of the prompt, scale^2), the autoencoder is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

import sdkit

LATENT = sdkit.LatentSpec(channels=3, factor=4, size=(32, 32), multiple=8)


@frozen
class Words:
    """A conditioning in a form of its own: an attrs class holding a tensor and a plain value."""

    mean: Tensor
    scale: float


class ToyEncoder:
    """The mean of a prompt's data is its number of letters over 40."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts: Sequence[str], /) -> Words:
        self.calls.append(list(prompts))
        return Words(torch.tensor([len(p) / 40 for p in prompts]), 0.1)


@frozen(eq=False)
class ToyDenoiser:
    """E[x0 | x] of Gaussian data."""

    schedule: sdkit.NoiseSchedule
    calls: list[tuple[int, float]]

    def __call__(self, x: Tensor, level: sdkit.Level, cond: Words, /) -> Tensor:
        self.calls.append((x.shape[0], level.t))
        mean = cond.mean.to(x).reshape(-1, *[1] * (x.ndim - 1))
        gain = level.alpha * cond.scale**2 / (level.alpha**2 * cond.scale**2 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)


class ToyAutoencoder:
    """Pixels are latents, each repeated 4 x 4."""

    latent = LATENT

    def __call__(self, latents: Tensor, /) -> Tensor:
        return latents.repeat_interleave(4, -1).repeat_interleave(4, -2).clamp(0, 1)

    def encode(self, images: Tensor, /) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)


def toy_model(schedule: sdkit.NoiseSchedule | None = None, *, device: str = "cpu") -> sdkit.Model[Words]:
    schedule = schedule or sdkit.scaled_linear()
    spec = sdkit.ModelSpec(
        "toy", "toy", LATENT, steps=6, scheduler="dpmpp-2m", spacing="karras", guidance=2.0, sha256="ab" * 32
    )
    denoiser = ToyDenoiser(schedule, [])
    return sdkit.Model(spec, ToyEncoder(), denoiser, ToyAutoencoder(), schedule, device)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and math.isfinite(float(a.abs().max())) and float((a - b).abs().max()) <= tolerance


class ToyPlugin:
    """What `Registry.of(toys=ToyPlugin())` registers: the model above under the name `toy`."""

    @staticmethod
    @sdkit.hookimpl
    def sdkit_components() -> list[sdkit.Component]:
        return [sdkit.Component("model", "toy", "tests.toys:toy_model", "closed forms")]
