"""One run by diffusers' own pipeline and by sdkit's, on the same noise, levels, text and guidance."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

import sdkit
from sdkit import Grid, Level

TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a red fox, sitting in the snow; 2nd day's light", "blurry"


@frozen(eq=False)
class Given:
    """A noise source that starts with given noise, and has none for steps."""

    noise: Tensor

    def initial(self, like: Tensor, /) -> Tensor:
        return self.noise.to(like)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ours(model: Any, noise: Tensor, request: Any, **slots: Any) -> Tensor:
    """Final latents of sdkit's pipeline, started from given noise."""
    result: Tensor = sdkit.pipeline(model, noise=lambda seeds, grid: Given(noise), **slots)(request).latents
    return result


def grid_of(scheduler: Any, schedule: Any, steps: int) -> Grid:
    """The levels diffusers' scheduler visits, ending clean: its integer times on our schedule.

    It takes the step before the next time from ``1000 // steps``, so ``steps`` divides 1000; and it multiplies its
    ``alphas_cumprod`` up in float32, which is off by 1e-5 at the end, so it is given ours.
    """
    assert 1000 % steps == 0
    alphas = [schedule.level(float(t)).alpha ** 2 for t in range(1000)]
    scheduler.alphas_cumprod = torch.tensor(alphas, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return (*(schedule.level(float(t)) for t in scheduler.timesteps), schedule.clean)


def assert_same(mine: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert mine.shape == theirs.shape
    difference = float((mine - theirs).abs().max())
    assert difference <= tolerance, f"{difference:.2e} on latents of size {float(theirs.std()):.2f}"


def ddim(**fields: Any) -> Any:
    """diffusers' DDIM on levels that start at the noisiest and end clean, as ours."""
    import tiny

    given = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing", "steps_offset": 1}
    return diffusers.DDIMScheduler(**{**tiny.BETAS, **given, **fields})


def picture() -> Image.Image:
    pixels = (drawn(64, 64, 3, seed=8).sigmoid() * 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def mask(latents: int = 8) -> Image.Image:
    """White where to paint; made of whole latent elements, so that both ways to shrink it agree."""
    blocks = (drawn(latents, latents, seed=9) > 0).to(torch.uint8) * 255
    return Image.fromarray(blocks.numpy()).resize((64, 64), Image.Resampling.NEAREST)


def second_draws(channels: int = 4) -> Tensor:
    """What generators of the seeds 1 and 2 give second: diffusers first draws for the posterior of the picture."""
    shape = (1, channels, 8, 8)
    rows = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        rows.append(torch.randn(shape, generator=generator))
    return torch.cat(rows)
