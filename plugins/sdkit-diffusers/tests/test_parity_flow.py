"""Stable Diffusion 3, 3.5 and FLUX.1 against diffusers' own pipelines, on its own levels.

The levels are those diffusers takes by default: for Stable Diffusion 3 its row is even between the noisiest and a
cleanest level that was shifted already, and is then shifted; the model's schedule has that cleanest level. For FLUX.1 dev
the shift depends on the size of the picture, here as there.
Pictures are encoded by their mean, see ``test_parity_sd``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from parity import NEGATIVE, PROMPT, assert_same, drawn, mask, ours, picture, second_draws

import sdkit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SD3 = (
    diffusers.StableDiffusion3Pipeline,
    diffusers.StableDiffusion3Img2ImgPipeline,
    diffusers.StableDiffusion3InpaintPipeline,
)
FLUX = (diffusers.FluxPipeline, diffusers.FluxImg2ImgPipeline, diffusers.FluxInpaintPipeline)
KINDS = {
    "sd3": lambda folder: tiny.sd3(folder),
    "sd35-without-t5": lambda folder: tiny.sd3(folder, newer=True, with_t5=False),
    "flux-schnell": lambda folder: tiny.flux(folder),
    "flux-dev": lambda folder: tiny.flux(folder, dev=True),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def place(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def parts(kind: str, place: Path) -> dict[str, Any]:
    return KINDS[kind](place / "t5")


@pytest.fixture(scope="module", params=["folder", "file"])
def model(request: pytest.FixtureRequest, kind: str, place: Path, parts: Any) -> Any:
    family = "flux" if kind.startswith("flux") else "sd3"
    options: dict[str, Any] = {}
    if request.param == "folder":
        return sdkit.load(tiny.save_folder(pipes(kind)[0], parts, place / "folder"), **options)
    if "without" not in kind:
        options["t5_tokenizer"] = place / "t5"
    return sdkit.load(tiny.save_original(family, parts, place / "one.safetensors"), **options)


def pipes(kind: str) -> tuple[Any, Any, Any]:
    return FLUX if kind.startswith("flux") else SD3


def call(kind: str) -> dict[str, Any]:
    """What diffusers is asked; FLUX.1 takes its guidance as an input and knows no negative prompt here."""
    shared = {"prompt": [PROMPT] * 2, "output_type": "latent", "num_inference_steps": 6, "max_sequence_length": 256}
    if kind.startswith("flux"):
        return {**shared, "guidance_scale": 3.5, "height": 64, "width": 64}
    return {**shared, "guidance_scale": 3.0, "negative_prompt": [NEGATIVE] * 2, "height": 64, "width": 64}


def request_of(kind: str, **more: Any) -> sdkit.Request:
    guided = {} if kind.startswith("flux") else {"negative": NEGATIVE, "guidance": 3.0}
    return sdkit.Request(PROMPT, seeds=(1, 2), size=(64, 64), steps=6, **guided, **more)


def unpacked(kind: str, latents: Any) -> Any:
    return diffusers.FluxPipeline._unpack_latents(latents, 64, 64, 8) if kind.startswith("flux") else latents


def test_text_to_image(model: Any, kind: str, parts: Any) -> None:
    noise = drawn(2, 16, 8, 8)
    given = diffusers.FluxPipeline._pack_latents(noise, 2, 16, 8, 8) if kind.startswith("flux") else noise
    theirs = tiny.pipeline(pipes(kind)[0], parts)(**call(kind), latents=given).images
    assert_same(ours(model, noise, request_of(kind)), unpacked(kind, theirs))


def test_image_to_image(model: Any, kind: str, parts: Any) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    pipe = tiny.pipeline(pipes(kind)[1], parts)
    theirs = pipe(**call(kind), image=[picture()] * 2, strength=0.5, generator=generators).images
    mine = ours(model, second_draws(16), request_of(kind, image=picture(), strength=0.5))
    assert_same(mine, unpacked(kind, theirs))


def test_inpainting(model: Any, kind: str, parts: Any) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    pipe = tiny.pipeline(pipes(kind)[2], parts)
    theirs = pipe(
        **call(kind), image=[picture()] * 2, mask_image=[mask()] * 2, strength=0.5, generator=generators
    ).images
    mine = ours(model, second_draws(16), request_of(kind, image=picture(), mask=mask(), strength=0.5))
    assert_same(mine, unpacked(kind, theirs))
