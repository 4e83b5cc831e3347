"""The distillation into four steps: its change of the weights, and the ways it learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import sdkit
from sdkit_emoji.networks import TextStates
from sdkit_lora import Lora


@pytest.fixture(scope="module")
def turbo(programs: Callable[..., Any]) -> Any:
    return programs("train_turbo").train_turbo


@pytest.fixture(scope="module")
def model() -> sdkit.Model[TextStates]:
    return sdkit.load("emoji")


def flow(model: sdkit.Model[TextStates], x: Tensor, change: dict[str, Tensor] | None = None) -> Tensor:
    network: Any = model.denoiser.network  # type: ignore[attr-defined]
    own = dict(network.named_parameters()) if change is None else change
    cond = model.encoder(["fox, 3d style"] * len(x))
    found: Tensor = torch.func.functional_call(network, own, (x, torch.full((len(x),), 0.6), cond))
    return found


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def first() -> Tensor:
    """The noise of seed 0, as the pipeline draws it."""
    return sdkit.AddressedNoise((0,)).initial(torch.zeros(1, 8, 16, 16))


def test_the_change_begins_as_none_and_reaches_every_layer(turbo: Any, model: sdkit.Model[TextStates]) -> None:
    unet: Any = model.denoiser.network  # type: ignore[attr-defined]
    low = turbo.factors(unet, 4, seed=0)
    x = noise(2, 8, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(flow(model, x, turbo.changed(unet, low)), flow(model, x), rtol=0, atol=0)
    weights = {name for name, value in unet.named_parameters() if name.endswith("weight") and value.ndim > 1}
    assert {f"{name.removesuffix('.up')}.weight" for name in low if name.endswith(".up")} == weights


def test_the_file_is_a_lora_that_changes_the_model_as_it_was_trained(
    turbo: Any, model: sdkit.Model[TextStates], tmp_path: Path
) -> None:
    unet: Any = model.denoiser.network  # type: ignore[attr-defined]
    low = {name: value.detach() for name, value in turbo.factors(unet, 4, seed=0).items()}
    for number, (name, value) in enumerate(low.items()):
        if name.endswith(".up"):
            value.copy_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
    turbo.write(tmp_path / "turbo.safetensors", low, 4)
    pipe = sdkit.pipeline(model)
    request = sdkit.Request("fox, 3d style", seeds=0, steps=turbo.STEPS, guidance=1.0)
    plain = pipe(request).latents
    adapted = pipe(attrs.evolve(request, modifiers=(Lora(str(tmp_path / "turbo.safetensors")),))).latents
    # by hand: Euler in four steps over the changed network
    with torch.no_grad():
        cond, x = model.encoder(["fox, 3d style"]), first()
        change = turbo.changed(unet, {name: value.half().float() for name, value in low.items()})
        for quarter in range(turbo.STEPS):
            time = torch.full((1,), 1 - quarter / turbo.STEPS)
            x = x - torch.func.functional_call(unet, change, (x, time, cond)) / turbo.STEPS
    assert (plain - adapted).abs().max() > 0.05
    torch.testing.assert_close(adapted, x, rtol=1e-3, atol=1e-3)


def test_a_way_ends_where_the_pipeline_does(turbo: Any, model: sdkit.Model[TextStates]) -> None:
    cond, empty, start = model.encoder(["fox, 3d style"]), model.encoder([""]), first()
    network: Any = model.denoiser.network  # type: ignore[attr-defined]
    found = turbo.ways(network, cond, empty, start, 8, 4.0)
    assert found.shape == (1, turbo.STEPS + 1, 8, 16, 16)
    assert torch.equal(found[:, 0], start)
    request = sdkit.Request("fox, 3d style", seeds=0, steps=8, guidance=4.0)
    result = sdkit.pipeline(model)(request)
    torch.testing.assert_close(found[:, -1], result.latents, rtol=1e-3, atol=1e-3)
