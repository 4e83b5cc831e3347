"""What the mutation score showed that no rule and no other test looks at (tools/mutation.py)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from sdkit import AddressedNoise, Karras, Level, NoNoise, Registry, Scheduler, scaled_linear
from sdkit_samplers import plugin
from tests.oracles import Mixture, latents

REGISTRY = Registry.of({"samplers": plugin})
SD = scaled_linear()
NAMES = ("euler", "heun", "ddim", "dpmpp-2m", *(c.name for c in plugin.sdkit_components() if c.kind == "scheduler"))
every = pytest.mark.parametrize("text", [*NAMES, "heun(variable='flow')", "ddim(eta=1)"])


def make(text: str) -> Scheduler[Any]:
    made: Scheduler[Any] = REGISTRY.make("scheduler", text)
    return made


@every
def test_a_scheduler_is_a_frozen_value(text: str) -> None:
    one: Any = make(text)
    other = make(text)
    assert one == other
    assert hash(one) == hash(other)
    assert {one: 1}[other] == 1
    for name in attrs.fields_dict(type(one)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(one, name, None)
    assert make("euler") != make("heun")


@every
def test_the_most_evaluations_declared_are_made_in_some_step(text: str) -> None:
    """The rule only says that no step makes more: one that declares 2 and makes 1 doubles every progress bar."""
    scheduler, grid = make(text), Karras()(SD, 8)
    if scheduler.traits.evaluations is None:
        return
    calls, data = [0], Mixture()

    def denoise(x: Tensor, level: Level) -> Tensor:
        calls[-1] += 1
        return data(x, level)

    x = data.start(grid[0], latents())
    state = scheduler.init(x, grid)
    for start, stop in pairwise(grid):
        calls.append(0)
        step = scheduler.step(denoise, x, start, stop, state, AddressedNoise((0, 1)))
        x, state = step.x, step.state
    assert max(calls) == scheduler.traits.evaluations


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("text", "uneven"), [("ipndm", 0.0), ("lms", 0.0), ("lms", 0.3)])
def test_adams_weights_integrate_noise_that_is_a_polynomial_in_sigma(text: str, uneven: float, degree: int) -> None:
    """Also those of the first steps, which the order of convergence hides; on even levels if the weights are fixed."""
    scheduler = make(text)
    sigmas = [10.0 - i + uneven * (i % 2) for i in range(8)]
    grid = tuple(Level(sigma, 1.0, sigma) for sigma in sigmas)

    def denoise(x: Tensor, level: Level) -> Tensor:
        return x - level.sigma * level.sigma**degree

    x = latents()
    state = scheduler.init(x, grid)
    for i, (start, stop) in enumerate(pairwise(grid)):
        step = scheduler.step(denoise, x, start, stop, state, NoNoise())
        if i >= degree:  # from here there are enough predictions for a polynomial of this degree
            area = (stop.sigma ** (degree + 1) - start.sigma ** (degree + 1)) / (degree + 1)
            torch.testing.assert_close(step.x, x + area, rtol=1e-11, atol=0)
        x, state = step.x, step.state


@pytest.mark.parametrize("text", ["euler-ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde", "seeds-2"])
@pytest.mark.parametrize("s_noise", [0.9, 1.1])
def test_no_order_is_promised_with_more_or_less_noise_than_the_equation_has(text: str, s_noise: float) -> None:
    assert make(text).traits.order == 1
    assert make(f"{text}(s_noise={s_noise})").traits.order == 0
