"""T2I-Adapter and IP-Adapter against diffusers' own pipelines, on models built on the spot; see ``test_parity_sd``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
import transformers
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of, ours
from safetensors.torch import save_file
from tinycontrol import (
    control_net,
    edges,
    image_encoder,
    ip_adapter,
    shapes_are_no_draws,  # noqa: F401 - a fixture
    t2i_adapter,
)

import sdkit
from sdkit_diffusers.adapters import T2I, load_t2i, with_t2i
from sdkit_diffusers.control import Control
from sdkit_diffusers.imageprompt import ImagePrompt, with_image_prompt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
REQUEST: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (1, 2), "size": (64, 64)}
CALL: dict[str, Any] = {
    "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip
FAMILIES = {"sd1": tiny.sd1, "sdxl": tiny.sdxl}
TEXT = {"sd1": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
T2I_PIPES = {"sd1": diffusers.StableDiffusionAdapterPipeline, "sdxl": diffusers.StableDiffusionXLAdapterPipeline}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def parts(family: str) -> dict[str, Any]:
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def place(family: str, parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(family)


@pytest.fixture(scope="module")
def model(family: str, parts: dict[str, Any], place: Path) -> Any:
    return sdkit.load(tiny.save_folder(TEXT[family], parts, place / "model"))


def mine_of(model: Any, grid: Any, *modifiers: Any, **fields: Any) -> Any:
    request = sdkit.Request(PROMPT, modifiers=modifiers, **{**REQUEST, **fields})
    return ours(model, drawn(2, 4, 8, 8), request, scheduler="ddim", spacing=grid)


def theirs_of(pipe: Any, schedule: Any, steps: int = 5, **call: Any) -> Any:
    grid = grid_of(pipe.scheduler, schedule, steps)
    latents = drawn(2, 4, 8, 8) * grid[0].sigma
    return grid, pipe(**{**CALL, **call}, num_inference_steps=steps, latents=latents).images


def test_t2i_adapter(family: str, model: Any, parts: Any, place: Path) -> None:
    adapter = t2i_adapter(family)
    adapter.save_pretrained(place / "t2i")
    pipe = tiny.pipeline(T2I_PIPES[family], {**parts, "scheduler": ddim(), "adapter": adapter})
    grid, theirs = theirs_of(pipe, model.schedule, image=[edges(0)] * 2, adapter_conditioning_scale=0.7)
    modifier = T2I(str(place / "t2i"), edges(0), weight=0.7)
    mine = mine_of(model, grid, modifier)
    assert_same(mine, theirs)
    assert (mine - mine_of(model, grid)).abs().max() > 0.05
    network = load_t2i(model.denoiser, place / "t2i")
    guided = sdkit.guided(with_t2i(model.denoiser, network, edges(0), weight=0.7), 3.0)
    cond = sdkit.Conditions(model.encoder([PROMPT] * 2), model.encoder([NEGATIVE] * 2))
    start = drawn(2, 4, 8, 8) * grid[0].sigma
    steps = sdkit.solve(sdkit.Ddim(), lambda x, level: guided(x, level, cond), start, grid, sdkit.NoNoise())
    assert_same(list(steps)[-1].x, mine, 1e-5)


def test_two_t2i_adapters(family: str, model: Any, parts: Any, place: Path) -> None:
    nets = [t2i_adapter(family, seed) for seed in (41, 42)]
    for k, net in enumerate(nets):
        net.save_pretrained(place / f"t2i{k}")
    both = diffusers.MultiAdapter(nets)
    pipe = tiny.pipeline(T2I_PIPES[family], {**parts, "scheduler": ddim(), "adapter": both})
    grid, theirs = theirs_of(
        pipe, model.schedule, image=[[edges(0)] * 2, [edges(1)] * 2], adapter_conditioning_scale=[0.5, 0.8]
    )
    modifiers = (T2I(str(place / "t2i0"), edges(0), weight=0.5), T2I(str(place / "t2i1"), edges(1), weight=0.8))
    assert_same(mine_of(model, grid, *modifiers), theirs)


def test_t2i_adapter_on_a_part_of_the_way(model: Any, family: str, parts: Any, place: Path) -> None:
    """diffusers has it for XL alone: ``adapter_conditioning_factor``."""
    if family != "sdxl":
        pytest.skip("diffusers has no share of the way for Stable Diffusion 1")
    adapter = t2i_adapter(family)
    adapter.save_pretrained(place / "t2i")
    pipe = tiny.pipeline(T2I_PIPES[family], {**parts, "scheduler": ddim(), "adapter": adapter})
    grid, theirs = theirs_of(pipe, model.schedule, image=[edges(0)] * 2, adapter_conditioning_factor=0.6)
    assert_same(mine_of(model, grid, T2I(str(place / "t2i"), edges(0), end=0.6)), theirs)


def ip_pipe(kind: Any, parts: Any, place: Path, files: list[str], weights: list[float]) -> Any:
    """diffusers' pipeline with adapters."""
    encoder = transformers.CLIPVisionModelWithProjection.from_pretrained(place / "image_encoder")
    side = encoder.config.image_size
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pipe = tiny.pipeline(kind, {**parts, "scheduler": ddim(), "image_encoder": encoder})
    pipe.register_modules(feature_extractor=extractor)
    pipe.load_ip_adapter(str(place), subfolder="", weight_name=files, image_encoder_folder=None, local_files_only=True)
    pipe.set_ip_adapter_scale(weights)
    return pipe


CONTROLLED = {
    "sd1": diffusers.StableDiffusionControlNetPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
}


@pytest.fixture(scope="module")
def ip_files(family: str, parts: Any, place: Path) -> Path:
    image_encoder().save_pretrained(place / "image_encoder")
    image_encoder(width=64).save_pretrained(place / "other_encoder")
    control_net(parts["unet"]).save_pretrained(place / "net")
    for k, plus in enumerate((False, True)):
        tensors = ip_adapter(parts["unet"], plus=plus, seed=50 + k)
        save_file(tensors, place / ("plus.safetensors" if plus else "plain.safetensors"))
    return place


@pytest.fixture(scope="module")
def pipes(family: str, ip_files: Path) -> dict[str, Any]:
    """diffusers changes the U-Net, so each pipeline gets one of its own; and its networks draw numbers when made."""
    with torch.random.fork_rng(devices=[]):
        made = {
            kind: ip_pipe(TEXT[family], FAMILIES[family](), ip_files, [f"{kind}.safetensors"], [0.7])
            for kind in ("plain", "plus")
        }
        own = FAMILIES[family]()
        own["controlnet"] = control_net(own["unet"])
        names = ["plain.safetensors", "plus.safetensors"]
        made["both"] = ip_pipe(CONTROLLED[family], own, ip_files, names, [0.7, 0.4])
    return made


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_ip_adapter(kind: str, model: Any, pipes: Any, ip_files: Path) -> None:
    """A picture that is no square, so that CLIP's cut counts."""
    wide = edges(0, 96).crop((0, 0, 96, 64))
    grid, theirs = theirs_of(pipes[kind], model.schedule, ip_adapter_image=wide)
    modifier = ImagePrompt(str(ip_files / f"{kind}.safetensors"), wide, weight=0.7)
    mine = mine_of(model, grid, modifier)
    assert_same(mine, theirs)
    assert (mine - mine_of(model, grid)).abs().max() > 0.05
    prompted = with_image_prompt(model.denoiser, ip_files / f"{kind}.safetensors", wide, weight=0.7)
    guided = sdkit.guided(prompted, 3.0)
    cond = sdkit.Conditions(model.encoder([PROMPT] * 2), model.encoder([NEGATIVE] * 2))
    start = drawn(2, 4, 8, 8) * grid[0].sigma
    steps = sdkit.solve(sdkit.Ddim(), lambda x, level: guided(x, level, cond), start, grid, sdkit.NoNoise())
    assert_same(list(steps)[-1].x, mine, 1e-5)


def test_ip_adapter_without_guidance(model: Any, pipes: Any, ip_files: Path) -> None:
    call: Any = {"guidance_scale": 1.0, "negative_prompt": None}
    grid, theirs = theirs_of(pipes["plus"], model.schedule, ip_adapter_image=edges(0), **call)
    modifier = ImagePrompt(str(ip_files / "plus.safetensors"), edges(0), weight=0.7)
    assert_same(mine_of(model, grid, modifier, guidance=1, negative=""), theirs)


def test_two_ip_adapters_and_a_control_net(model: Any, pipes: Any, ip_files: Path) -> None:
    """In any order; the control net reads the text alone."""
    grid, theirs = theirs_of(
        pipes["both"], model.schedule, image=edges(2), ip_adapter_image=[edges(0), edges(1)],
        controlnet_conditioning_scale=0.8,
    )  # fmt: skip
    one = ImagePrompt(str(ip_files / "plain.safetensors"), edges(0), weight=0.7)
    two = ImagePrompt(str(ip_files / "plus.safetensors"), edges(1), weight=0.4)
    control = Control(str(ip_files / "net"), edges(2), weight=0.8)
    for order in ((one, two, control), (control, two, one), (one, control, two)):
        assert_same(mine_of(model, grid, *order), theirs)


def test_ip_adapter_with_other_modifiers(family: str, model: Any, ip_files: Path) -> None:
    """What guides away from the picture's own prediction, and acts on a part of the way, sees the same rows."""
    grid = (*(model.schedule.level(float(t)) for t in (999, 750, 500, 250)), model.schedule.clean)
    image = ImagePrompt(str(ip_files / "plus.safetensors"), edges(0))
    assert_same(mine_of(model, grid, image, "pag"), mine_of(model, grid, "pag", image), 1e-5)
    part = ImagePrompt(str(ip_files / "plus.safetensors"), edges(0), start=0.5)
    found = mine_of(model, grid, part, "freeu")
    assert_same(found, mine_of(model, grid, "freeu", part), 1e-5)
    assert (found - mine_of(model, grid, image, "freeu")).abs().max() > 1e-3


def test_bad_input(family: str, model: Any, parts: Any, ip_files: Path, tmp_path: Path) -> None:
    pipe = sdkit.pipeline(model)

    def refused(error: type[Exception], match: str, modifier: Any) -> None:
        with pytest.raises(error, match=match):
            pipe(sdkit.Request(PROMPT, steps=2, size=(64, 64), modifiers=(modifier,)))

    t2i_adapter(family).save_pretrained(tmp_path / "t2i")
    other = "sdxl" if family == "sd1" else "sd1"
    t2i_adapter(other).save_pretrained(tmp_path / "other")
    refused(sdkit.InvalidRequest, "made for another family: it gives", T2I(str(tmp_path / "other"), edges(0)))
    refused(sdkit.InvalidRequest, "32x32 but the picture to make is 64x64", T2I(str(tmp_path / "t2i"), edges(0, 32)))
    refused(sdkit.FileError, "is no T2I-Adapter|no T2I-Adapter", T2I(str(ip_files / "image_encoder"), edges(0)))
    refused(sdkit.FileError, "comes as a folder", T2I(str(ip_files / "plain.safetensors"), edges(0)))
    (tmp_path / "away").mkdir()
    save_file(ip_adapter(FAMILIES[other]()["unet"]), tmp_path / "away" / "ip.safetensors")
    file = str(tmp_path / "away" / "ip.safetensors")
    refused(sdkit.FileError, "no image encoder beside 'ip.safetensors'", ImagePrompt(file, edges(0)))
    encoder = str(ip_files / "image_encoder")
    refused(sdkit.InvalidRequest, "made for another family: its tokens", ImagePrompt(file, edges(0), encoder=encoder))
    refused(
        sdkit.InvalidRequest, "encoder gives vectors of 64 numbers and the IP-Adapter reads 32",
        ImagePrompt(str(ip_files / "plus.safetensors"), edges(0), encoder=str(ip_files / "other_encoder")),
    )  # fmt: skip
    save_file({"image_proj.a": torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(
        sdkit.FileError, "is no IP-Adapter, plain or plus",
        ImagePrompt(str(tmp_path / "a.safetensors"), edges(0), encoder=encoder),
    )  # fmt: skip
    refused(sdkit.FileError, "'none.png' cannot be read", ImagePrompt(file, "none.png", encoder=encoder))
    with pytest.raises(sdkit.ParameterError, match="The weight of an image prompt"):
        ImagePrompt(file, edges(0), weight=float("inf"))
