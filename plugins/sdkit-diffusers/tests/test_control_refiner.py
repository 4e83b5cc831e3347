"""The hand-over from XL to its refiner against diffusers' two pipelines (``denoising_end``, ``denoising_start``); see
``test_parity_sd`` for the setting. diffusers walks both parts on one row of levels, so one grid says both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of, ours

import sdkit
from sdkit_diffusers.refiner import Refiner, refined

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TEXT = diffusers.StableDiffusionXLPipeline
IMAGE = diffusers.StableDiffusionXLImg2ImgPipeline
REQUEST: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (1, 2), "size": (64, 64)}
CALL: dict[str, Any] = {
    "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip
SETTINGS = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, Any], dict[str, Any]]:
    return tiny.sdxl(), tiny.refiner()


@pytest.fixture(scope="module")
def place(both: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    tiny.save_folder(TEXT, both[0], folder / "base")
    tiny.save_folder(IMAGE, {**both[1], **SETTINGS}, folder / "refiner")
    return folder


@pytest.fixture(scope="module")
def base(place: Path) -> Any:
    return sdkit.load(place / "base")


def theirs_of(both: Any, schedule: Any, at: float, noise: Any, *, guided: bool = True) -> tuple[Any, Any]:
    call = CALL if guided else {"prompt": [PROMPT] * 2, "guidance_scale": 1.0, "output_type": "latent"}
    first, second = ddim(), ddim()
    grid = grid_of(first, schedule, 10)
    grid_of(second, schedule, 10)
    begin = tiny.pipeline(TEXT, {**both[0], "scheduler": first})
    halfway = begin(**call, num_inference_steps=10, denoising_end=at, latents=noise * grid[0].sigma).images
    end = tiny.pipeline(IMAGE, {**both[1], **SETTINGS, "scheduler": second})
    theirs = end(
        **call, num_inference_steps=10, denoising_start=at, image=halfway, original_size=(64, 64), target_size=(64, 64)
    ).images
    return grid, theirs


@pytest.mark.parametrize("at", [0.8, 0.45])
def test_hand_over(at: float, both: Any, base: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)
    grid, theirs = theirs_of(both, base.schedule, at, noise)
    request = sdkit.Request(PROMPT, modifiers=(Refiner(str(place / "refiner"), at=at),), **REQUEST)
    mine = ours(base, noise, request, scheduler="ddim", spacing=grid)
    assert_same(mine, theirs)
    alone = ours(base, noise, sdkit.Request(PROMPT, **REQUEST), scheduler="ddim", spacing=grid)
    assert (mine - alone).abs().max() > 0.05
    with sdkit.load(place / "base") as model, sdkit.load(place / "refiner") as refiner:
        pair = refined(model, refiner, at=at)
        assert_same(ours(pair, noise, sdkit.Request(PROMPT, **REQUEST), scheduler="ddim", spacing=grid), mine, 1e-5)


def test_hand_over_without_guidance(both: Any, base: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)
    grid, theirs = theirs_of(both, base.schedule, 0.8, noise, guided=False)
    request = sdkit.Request(
        PROMPT, guidance=1, seeds=(1, 2), size=(64, 64), modifiers=(Refiner(str(place / "refiner")),)
    )
    assert_same(ours(base, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_a_level_in_place_of_a_share(base: Any, place: Path) -> None:
    noise, level = drawn(2, 4, 8, 8), base.schedule.level(200.0)
    grid = (*(base.schedule.level(float(t)) for t in (999, 600, 200, 100)), base.schedule.clean)
    one, two = (
        ours(base, noise, sdkit.Request(PROMPT, modifiers=(modifier,), **REQUEST), scheduler="ddim", spacing=grid)
        for modifier in (
            Refiner(str(place / "refiner"), at=0.8), Refiner(str(place / "refiner"), below=level.noise_to_signal),
        )
    )  # fmt: skip
    assert (one - two).abs().max() == 0


def test_the_refiner_is_loaded_once_and_closed_with_the_model(place: Path) -> None:
    from sdkit_diffusers import refiner as module

    model: Any = sdkit.load(place / "base")
    request = sdkit.Request(PROMPT, steps=2, size=(64, 64), modifiers=(Refiner(str(place / "refiner")),))
    pipe = sdkit.pipeline(model)
    first = pipe(request).latents
    (loaded,) = module._LOADED[model.denoiser.network.placement].values()
    assert (pipe(request).latents - first).abs().max() == 0
    assert list(module._LOADED[model.denoiser.network.placement].values()) == [loaded]
    model.close()
    with pytest.raises(sdkit.InvalidRequest, match="was closed"):
        loaded.encoder(["a"])


def test_bad_pairs(base: Any, place: Path, tmp_path: Path) -> None:
    pipe = sdkit.pipeline(base)
    other = tiny.save_folder(TEXT, {**tiny.sdxl(beta_end=0.02)}, tmp_path / "other")
    with pytest.raises(sdkit.InvalidRequest, match="another noise schedule"):
        pipe(sdkit.Request(PROMPT, modifiers=(Refiner(str(other)),)))
    big = {**tiny.sd3(tmp_path / "t5", with_t5=False)}
    three = tiny.save_folder(diffusers.StableDiffusion3Pipeline, big, tmp_path / "sd3")
    with pytest.raises(sdkit.InvalidRequest, match="latents of 16 channels"):
        pipe(sdkit.Request(PROMPT, modifiers=(Refiner(str(three)),)))
    for at in (0, 1, 2, "x"):
        with pytest.raises(sdkit.ParameterError, match="takes over"):
            Refiner("a", at=at)
