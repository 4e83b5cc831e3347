"""Stable Diffusion 1.x and 2.x against diffusers' own pipelines, on models built on the spot.

Where diffusers does something else by default it is told to do as sdkit does:

- Its DDIM ends at the cleanest trained level and starts at ``t = 981`` of 1000; here it ends clean and starts at 999
  (``set_alpha_to_one=True``, ``timestep_spacing="trailing"``).
- It starts from noise of size 1 at a level whose ``sigma`` is 0.9977; sdkit starts from ``sigma * noise``.
- It encodes pictures by drawing from the autoencoder's posterior, sdkit takes the mean; the tiny autoencoder's posterior
  has next to no variance.
- It shrinks a mask to latents by taking the nearest pixel, sdkit paints a latent element if any of its pixels is to be
  painted; the mask here is made of whole latent elements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import diffusers
import pytest
import tiny
import torch
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of, mask, ours, picture, second_draws
from torch import Tensor

import sdkit
from sdkit_diffusers.unet import PaintingDenoiser

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TEXT = diffusers.StableDiffusionPipeline
IMAGE = diffusers.StableDiffusionImg2ImgPipeline
PAINT = diffusers.StableDiffusionInpaintPipeline
FAMILIES = {"sd1": tiny.sd1, "sd2": tiny.sd2}
REQUEST: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (1, 2), "size": (64, 64)}
CALL: dict[str, Any] = {
    "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def parts(family: str) -> dict[str, Any]:
    return FAMILIES[family]()


@pytest.fixture(scope="module", params=["folder", "file"])
def model(
    request: pytest.FixtureRequest, family: str, parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> sdkit.Model[Any]:
    place = tmp_path_factory.mktemp(family)
    if request.param == "file":
        return sdkit.load(tiny.save_original(family, parts, place / "one.safetensors"))
    return sdkit.load(tiny.save_folder(TEXT, parts, place / "folder"))


def scheduler_of(parts: dict[str, Any]) -> Any:
    return ddim(prediction_type=parts["scheduler"].config.prediction_type)


def test_text_to_image(model: Any, parts: dict[str, Any]) -> None:
    scheduler = scheduler_of(parts)
    grid, noise = grid_of(scheduler, model.schedule, 5), drawn(2, 4, 8, 8)
    pipe = tiny.pipeline(TEXT, {**parts, "scheduler": scheduler})
    theirs = pipe(**CALL, num_inference_steps=5, latents=noise * grid[0].sigma).images
    mine = ours(model, noise, sdkit.Request(PROMPT, **REQUEST), scheduler="ddim", spacing=grid)
    assert_same(mine, theirs)


def test_image_to_image(model: Any, parts: dict[str, Any]) -> None:
    scheduler = scheduler_of(parts)
    grid = grid_of(scheduler, model.schedule, 8)
    pipe = tiny.pipeline(IMAGE, {**parts, "scheduler": scheduler})
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    noise = second_draws()
    theirs = pipe(**CALL, num_inference_steps=8, image=[picture()] * 2, strength=0.5, generator=generators).images
    request = sdkit.Request(PROMPT, image=picture(), strength=0.5, **REQUEST)
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_inpainting(model: Any, parts: dict[str, Any]) -> None:
    """diffusers overwrites what is known after every step, sdkit puts it into the prediction: the same for DDIM."""
    scheduler = scheduler_of(parts)
    grid = grid_of(scheduler, model.schedule, 8)
    pipe = tiny.pipeline(PAINT, {**parts, "scheduler": scheduler})
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    noise = second_draws()
    theirs = pipe(
        **CALL, num_inference_steps=8, image=[picture()] * 2, mask_image=[mask()] * 2, strength=0.5,
        generator=generators, height=64, width=64,
    ).images  # fmt: skip
    request = sdkit.Request(PROMPT, image=picture(), mask=mask(), strength=0.5, **REQUEST)
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_pictures_are_decoded_as_diffusers_does(model: Any, parts: dict[str, Any]) -> None:
    latents = drawn(2, 4, 8, 8)
    theirs = parts["vae"].decode(latents / parts["vae"].config.scaling_factor).sample
    assert_same(model.autoencoder(latents), (theirs / 2 + 0.5).clamp(0, 1), 1e-5)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_a_model_for_inpainting(layout: str, tmp_path: Path) -> None:
    """Nine channels: latents, mask, and what is around it. diffusers does not put the known pixels back, sdkit does; so
    the denoiser is compared, in a run of its own."""
    parts = tiny.sd1(inputs=9)
    if layout == "file":
        model = sdkit.load(tiny.save_original("sd1", parts, tmp_path / "one.safetensors"))
    else:
        model = sdkit.load(tiny.save_folder(PAINT, parts, tmp_path / "folder"))
    scheduler = scheduler_of(parts)
    grid, noise = grid_of(scheduler, model.schedule, 5), drawn(2, 4, 8, 8)
    pipe = tiny.pipeline(PAINT, {**parts, "scheduler": scheduler})
    theirs = pipe(
        **CALL, num_inference_steps=5, image=[picture()] * 2, mask_image=[mask()] * 2, strength=1.0, height=64,
        width=64, latents=noise * grid[0].sigma, generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert isinstance(model.denoiser, PaintingDenoiser)
    pixels, hole = pixels_of(picture()), pixels_of(mask())
    painting = sdkit.guided(model.denoiser.painting(pixels, hole), 3.0)
    cond = sdkit.Conditions(model.encoder([PROMPT] * 2), model.encoder([NEGATIVE] * 2))
    steps = sdkit.solve(
        sdkit.Ddim(), lambda x, level: painting(x, level, cond), noise * grid[0].sigma, grid, sdkit.NoNoise()
    )
    assert_same(list(steps)[-1].x, theirs)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_nine_channels_from_a_request(strength: float, tmp_path: Path) -> None:
    """Such a network sees what is around the hole, so neither tool puts known latents back on the way."""
    parts = tiny.sd1(inputs=9)
    model = sdkit.load(tiny.save_original("sd1", parts, tmp_path / "one.safetensors"))
    scheduler = scheduler_of(parts)
    grid, noise = grid_of(scheduler, model.schedule, 8), second_draws()
    # given strength 1, diffusers starts from noise alone; at its first level sdkit's start holds 7 % of the picture
    known = model.autoencoder.encode(pixels_of(picture()))
    start = {"latents": noise * grid[0].sigma + known * grid[0].alpha} if strength == 1 else {}
    theirs = tiny.pipeline(PAINT, {**parts, "scheduler": scheduler})(
        **CALL, num_inference_steps=8, image=[picture()] * 2, mask_image=[mask()] * 2, strength=strength, height=64,
        width=64, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)], **start,
    ).images  # fmt: skip
    request = sdkit.Request(PROMPT, image=picture(), mask=mask(), strength=strength, **REQUEST)
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)
    assert ours(model, noise, attrs.evolve(request, modifiers=("prompts",)), scheduler="ddim", spacing=grid).equal(
        ours(model, noise, request, scheduler="ddim", spacing=grid)
    )
    image = sdkit.pipeline(model, scheduler="ddim", spacing=grid)(request).images[0]
    kept = [(pixel, known) for pixel, known, hole in zip(*map(pixels, (image, picture(), mask())), strict=True)
            if not hole]  # fmt: skip
    assert kept and all(pixel == known for pixel, known in kept)  # what a mask keeps is the input's, exactly


def pixels(image: Any) -> list[Any]:
    return list(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())


def test_a_model_for_inpainting_needs_a_picture(tmp_path: Path) -> None:
    model = sdkit.load(tiny.save_original("sd1", tiny.sd1(inputs=9), tmp_path / "one.safetensors"))
    with pytest.raises(sdkit.InvalidRequest, match="give it an image and a mask"):
        sdkit.pipeline(model)(sdkit.Request(PROMPT, steps=2, size=(64, 64)))


@pytest.mark.parametrize("scale", [None, 4.0])
def test_a_model_distilled_with_guidance(scale: float | None, tmp_path: Path) -> None:
    """LCM reads the guidance scale as an input; one pass per step, and the noise of a step is diffusers' own."""
    parts = {**tiny.sd1(guidance_width=32), "scheduler": diffusers.LCMScheduler(**tiny.BETAS)}
    model = sdkit.load(
        tiny.save_folder(TEXT, parts, tmp_path / "folder"), **({} if scale is None else {"embedded_guidance": scale})
    )
    assert model.spec.guidance is None and model.spec.steps == 4
    grid, noise = grid_of(ddim(), model.schedule, 4), drawn(2, 4, 8, 8)
    pipe = tiny.pipeline(TEXT, {**parts, "scheduler": ddim()})
    ours_latents = ours(
        model, noise, sdkit.Request(PROMPT, seeds=(1, 2), size=(64, 64)), scheduler="ddim", spacing=grid
    )
    grid_of(pipe.scheduler, model.schedule, 4)
    theirs = pipe(
        [PROMPT] * 2, guidance_scale=scale or 8.5, output_type="latent", num_inference_steps=4,
        latents=noise * grid[0].sigma,
    ).images  # fmt: skip
    assert_same(ours_latents, theirs)


def pixels_of(image: Any) -> Tensor:
    """(1, channels, height, width) in [0, 1]."""
    import numpy as np

    array = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return (array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)[None]
