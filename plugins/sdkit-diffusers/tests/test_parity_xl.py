"""Stable Diffusion XL and its refiner against diffusers' own pipelines; where they differ by default, see
``test_parity_sd``. Besides: diffusers encodes an empty negative prompt that is given and puts zeros for one that is not
given; sdkit has one empty prompt, which is zeros in the base model."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import tiny
import torch
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of, mask, ours, picture, second_draws

import sdkit
from sdkit_diffusers.sdxl import SizeConditions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TEXT = diffusers.StableDiffusionXLPipeline
IMAGE = diffusers.StableDiffusionXLImg2ImgPipeline
PAINT = diffusers.StableDiffusionXLInpaintPipeline
REQUEST: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (1, 2), "size": (64, 64)}
CALL: dict[str, Any] = {
    "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip
SIZES = {"original_size": (64, 64), "target_size": (64, 64)}


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return tiny.sdxl()


@pytest.fixture(scope="module", params=["folder", "file"])
def model(request: pytest.FixtureRequest, parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("sdxl")
    if request.param == "file":
        return sdkit.load(tiny.save_original("sdxl", parts, place / "one.safetensors"))
    return sdkit.load(tiny.save_folder(TEXT, parts, place / "folder"))


def run(kind: Any, parts: Any, schedule: Any, steps: int, **call: Any) -> tuple[Any, Any]:
    """The grid, and diffusers' latents."""
    scheduler = ddim()
    grid = grid_of(scheduler, schedule, steps)
    pipe = tiny.pipeline(kind, {**parts, "scheduler": scheduler})
    if "latents" in call:
        call["latents"] = call["latents"] * grid[0].sigma
    return grid, pipe(**{**CALL, **call}, num_inference_steps=steps).images


def test_text_to_image(model: Any, parts: Any) -> None:
    noise = drawn(2, 4, 8, 8)
    grid, theirs = run(TEXT, parts, model.schedule, 5, latents=noise)
    assert_same(ours(model, noise, sdkit.Request(PROMPT, **REQUEST), scheduler="ddim", spacing=grid), theirs)


def test_an_empty_negative_prompt_is_the_one_not_given(model: Any, parts: Any) -> None:
    noise = drawn(2, 4, 8, 8)
    grid, theirs = run(TEXT, parts, model.schedule, 5, latents=noise, negative_prompt=None)
    request = sdkit.Request(PROMPT, **{**REQUEST, "negative": ""})
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_image_to_image(model: Any, parts: Any) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    grid, theirs = run(
        IMAGE, parts, model.schedule, 8, image=[picture()] * 2, strength=0.5, generator=generators, **SIZES
    )
    request = sdkit.Request(PROMPT, image=picture(), strength=0.5, **REQUEST)
    assert_same(ours(model, second_draws(), request, scheduler="ddim", spacing=grid), theirs)


def test_inpainting(model: Any, parts: Any) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    grid, theirs = run(
        PAINT, parts, model.schedule, 8, image=[picture()] * 2, mask_image=[mask()] * 2, strength=0.5,
        generator=generators, height=64, width=64, **SIZES,
    )  # fmt: skip
    request = sdkit.Request(PROMPT, image=picture(), mask=mask(), strength=0.5, **REQUEST)
    assert_same(ours(model, second_draws(), request, scheduler="ddim", spacing=grid), theirs)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_refiner(layout: str, tmp_path: Any) -> None:
    """It is told a score for the prompt and another for the negative one."""
    parts = tiny.refiner()
    if layout == "file":
        model = sdkit.load(tiny.save_original("sdxl-refiner", parts, tmp_path / "one.safetensors"))
    else:
        pipe = tiny.pipeline(IMAGE, {**parts, "requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False})
        pipe.save_pretrained(tmp_path / "folder")
        model = sdkit.load(tmp_path / "folder")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    settings = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    grid, theirs = run(
        IMAGE, {**parts, **settings}, model.schedule, 8, image=[picture()] * 2, strength=0.5, generator=generators,
        original_size=(64, 64), target_size=(64, 64),
    )  # fmt: skip
    request = sdkit.Request(PROMPT, image=picture(), strength=0.5, **REQUEST)
    assert_same(ours(model, second_draws(), request, scheduler="ddim", spacing=grid), theirs)


def test_sizes_and_crops_are_told_height_first(model: Any, parts: Any) -> None:
    """A wide picture: sdkit writes (width, height) and (x, y) everywhere, diffusers (height, width) and (top, left)."""
    wide, cond = torch.zeros(2, 4, 8, 16), model.encoder(["a", "b"])
    added = SizeConditions(original=(300, 200), crop=(7, 5))(wide, cond)["added_cond_kwargs"]["time_ids"]
    assert added.tolist() == [[200.0, 300.0, 5.0, 7.0, 64.0, 128.0]] * 2
    pipe = tiny.pipeline(TEXT, parts)
    pipe_ids = pipe._get_add_time_ids((200, 300), (5, 7), (64, 128), torch.float32, 64)
    assert pipe_ids.tolist() == added[:1].tolist()
