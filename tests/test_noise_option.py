"""Which noise a run draws from: by name, by object, in a request, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import sdkit
from sdkit import AddressedNoise, Grid, NoiseError, ParameterError, Request, TorchNoise, UnknownComponent
from sdkit.interop.torchnoise import AsTorch
from sdkit.manifest import write_png
from sdkit.noise import Addressed
from tests.toys import toy_model

NOISY = "ddim(eta=1)"


def halved(seeds: tuple[int, ...], grid: Grid, /) -> Any:
    """A source of one's own that no plugin registers."""
    return attrs.evolve(AddressedNoise(seeds), stream="mine")


@pytest.mark.parametrize(
    ("noise", "name"), [(None, "addressed-1"), ("addressed", "addressed-1"), ("torch", "torch"), (AsTorch(), "torch")]
)
def test_the_noise_is_named_in_the_file_and_rerun_follows_it(noise: Any, name: str, tmp_path: Path) -> None:
    model = toy_model()
    pipe = sdkit.pipeline(model) if noise is None else sdkit.pipeline(model, noise=noise)
    request = Request("x", scheduler=NOISY, seeds=(3, 4))
    plan = pipe.plan(request)
    assert plan.request.noise == name
    assert pipe.plan(plan.request).request == plan.request
    result = pipe(request)
    assert result.manifest.noise == result.manifest.request.noise == name
    file, _ = result.save(tmp_path / "a.png")
    assert sdkit.rerun(file, model=model).same


def test_a_request_names_the_noise_over_the_pipelines() -> None:
    model = toy_model()
    asked = sdkit.pipeline(model)(Request("x", scheduler=NOISY, noise="torch"))
    given = sdkit.pipeline(model, noise="torch")(Request("x", scheduler=NOISY))
    other = sdkit.pipeline(model)(Request("x", scheduler=NOISY))
    assert torch.equal(asked.latents, given.latents)
    assert not torch.equal(asked.latents, other.latents)
    back = sdkit.pipeline(model, noise="torch")(Request("x", scheduler=NOISY, noise="addressed"))
    assert torch.equal(back.latents, other.latents)
    assert sdkit.from_json(sdkit.to_json(asked.manifest.request), Request).noise == "torch"


def test_torchs_noise_is_what_torch_draws_from_its_start() -> None:
    """The latents other tools begin with, and the noise of each step in the order in which they draw."""
    model, seen = toy_model(), []

    class Watching(sdkit.Ddim):
        def step(self, denoise: Any, x: Tensor, start: Any, stop: Any, state: None, noise: Any, /) -> Any:
            if bool(x.any()):
                seen.append((x, noise(x, start, stop)))
            return super().step(denoise, x, start, stop, state, noise)

    pipe = attrs.evolve(sdkit.pipeline(model, noise="torch"), scheduler=Watching(0.0))
    plan = pipe.plan(Request("x", seeds=(7,), steps=4))
    seen.clear()
    pipe(Request("x", seeds=(7,), steps=4))
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(plan.latent_shape, generator=generator)
    assert torch.equal(seen[0][0], first * plan.grid[0].sigma)
    for _, draw in seen:
        assert torch.equal(draw, torch.randn(plan.latent_shape, generator=generator))


def test_what_torchs_noise_cannot_give_is_refused_by_the_plan() -> None:
    class Inside(sdkit.Ddim):
        def step(self, denoise: Any, x: Tensor, start: Any, stop: Any, state: None, noise: Any, /) -> Any:
            noise(x, start, sdkit.between(start, stop, start.log_snr + 0.1))
            return super().step(denoise, x, start, stop, state, noise)

    model = toy_model()
    pipe = attrs.evolve(sdkit.pipeline(model, noise="torch"), scheduler=Inside(1.0))
    with pytest.raises(NoiseError, match="one draw per step of its grid"):
        pipe.plan(Request("x"))
    assert model.denoiser.calls == []  # type: ignore[attr-defined]
    attrs.evolve(pipe, noise=Addressed()).plan(Request("x"))


def test_a_run_that_goes_on_sees_the_same_noise() -> None:
    pipe = sdkit.pipeline(toy_model(), noise="torch")
    request = Request("x", scheduler=NOISY, steps=5)
    whole = pipe(request)
    events = pipe.stream(request)
    third: Any = [next(events) for _ in range(3)][-1]
    events.close()
    *_, last = pipe.stream(request, resume=third)
    assert torch.equal(last.result.latents, whole.latents)  # type: ignore[union-attr]


def test_noise_of_ones_own_is_used_and_said_to_be_so() -> None:
    model = toy_model()
    result = sdkit.pipeline(model, noise=halved)(Request("x"))
    assert result.manifest.noise == "custom:function"
    x = sdkit.pipeline(model).plan(Request("x")).noise.initial(torch.empty(1, 2))
    assert torch.equal(x, AddressedNoise(0).initial(torch.empty(1, 2)))
    assert not torch.equal(result.latents, sdkit.pipeline(model)(Request("x")).latents)
    with pytest.raises(UnknownComponent, match="no noise 'custom:function'"):
        sdkit.pipeline(model).plan(result.manifest.request)


def test_a_file_written_before_requests_named_their_noise_is_still_made_again(tmp_path: Path) -> None:
    model = toy_model()
    made = sdkit.pipeline(model)(Request("x", scheduler=NOISY))
    old = attrs.evolve(made.manifest, request=attrs.evolve(made.manifest.request, noise=None))
    data = json.loads(old.to_json())
    del data["request"]["noise"]
    read = sdkit.Manifest.from_json(json.dumps(data))
    assert read == old
    file = write_png(tmp_path / "a.png", made.images[0], read)
    assert sdkit.rerun(file, model=model).same


@pytest.mark.parametrize("kind", [UnknownComponent, ParameterError, sdkit.InvalidRequest])
def test_what_is_no_noise_is_refused_in_a_sentence(kind: type[Exception]) -> None:
    model = toy_model()
    attempts: dict[Any, Any] = {
        UnknownComponent: lambda: sdkit.pipeline(model, noise="adressed"),
        ParameterError: lambda: sdkit.pipeline(model, noise=AsTorch),  # type: ignore[arg-type]
        sdkit.InvalidRequest: lambda: Request("x", noise=Addressed()),  # type: ignore[arg-type]
    }
    with pytest.raises(kind) as caught:
        attempts[kind]()
    assert "\n" not in str(caught.value)


def test_torch_noise_is_the_public_one() -> None:
    assert AsTorch()((1, 2), ()) == TorchNoise((1, 2), ())
    assert Addressed()((1, 2), ()) == AddressedNoise((1, 2))
