"""FreeU, perturbed-attention and skip-layer guidance against diffusers' own pipelines; see ``test_parity_sd``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of, ours
from tinycontrol import control_net, edges

import sdkit
from sdkit_diffusers.attention import FreeU, PerturbedAttention, SkipLayers
from sdkit_diffusers.control import Control
from sdkit_diffusers.wiring import twin

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
REQUEST: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (1, 2), "size": (64, 64)}
CALL: dict[str, Any] = {
    "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip
FAMILIES = {"sd1": tiny.sd1, "sdxl": tiny.sdxl}
PIPES = {
    "sd1": (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionPAGPipeline),
    "sdxl": (diffusers.StableDiffusionXLPipeline, diffusers.StableDiffusionXLPAGPipeline),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def parts(family: str) -> dict[str, Any]:
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def model(family: str, parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sdkit.load(tiny.save_folder(PIPES[family][0], parts, tmp_path_factory.mktemp(family) / "model"))


def mine_of(model: Any, grid: Any, *modifiers: Any, **fields: Any) -> Any:
    request = sdkit.Request(PROMPT, modifiers=modifiers, **{**REQUEST, **fields})
    return ours(model, drawn(2, 4, 8, 8), request, scheduler="ddim", spacing=grid)


def theirs_of(kind: Any, parts: Any, schedule: Any, *, freeu: dict[str, float] | None = None, **call: Any) -> Any:
    scheduler = ddim()
    grid = grid_of(scheduler, schedule, 5)
    pipe = tiny.pipeline(kind, {**parts, "scheduler": scheduler, "image_encoder": None})
    if freeu:
        pipe.enable_freeu(**freeu)
    try:
        given = {**CALL, **call}
        return grid, pipe(**given, num_inference_steps=5, latents=drawn(2, 4, 8, 8) * grid[0].sigma).images
    finally:
        if freeu:
            pipe.disable_freeu()


def test_freeu(family: str, model: Any, parts: Any) -> None:
    factors = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    grid, theirs = theirs_of(PIPES[family][0], parts, model.schedule, freeu=factors)
    mine = mine_of(model, grid, FreeU(**factors))
    assert_same(mine, theirs)
    plain = mine_of(model, grid)
    assert (mine - plain).abs().max() > 0.05, "FreeU changes nothing"
    _, theirs_plain = theirs_of(PIPES[family][0], parts, model.schedule)
    assert_same(plain, theirs_plain)


@pytest.mark.parametrize("layers", [("mid",), ("down_blocks.1", "mid")])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_perturbed_attention(guidance: float, layers: tuple[str, ...], family: str, model: Any, parts: Any) -> None:
    call = {} if guidance > 1 else {"guidance_scale": 1.0, "negative_prompt": None}
    pipe = PIPES[family][1]
    scheduler = ddim()
    grid = grid_of(scheduler, model.schedule, 5)
    made = tiny.pipeline(pipe, {**parts, "scheduler": scheduler, "pag_applied_layers": list(layers)})
    before = dict(made.unet.attn_processors)
    theirs = made(
        **{**CALL, **call}, num_inference_steps=5, latents=drawn(2, 4, 8, 8) * grid[0].sigma, pag_scale=2.0
    ).images
    made.unet.set_attn_processor(before)
    fields = {} if guidance > 1 else {"guidance": 1, "negative": ""}
    mine = mine_of(model, grid, PerturbedAttention(2.0, layers), **fields)
    assert_same(mine, theirs)
    assert (mine - mine_of(model, grid, **fields)).abs().max() > 0.05


def test_together_with_a_control_net(family: str, model: Any, parts: Any, tmp_path: Path) -> None:
    """In any order the same, with FreeU and perturbed attention; and as diffusers' with a control net and FreeU."""
    net = control_net(parts["unet"])
    net.save_pretrained(tmp_path / "net")
    control = Control(str(tmp_path / "net"), edges(0), weight=0.7)
    kind = {
        "sd1": diffusers.StableDiffusionControlNetPAGPipeline,
        "sdxl": diffusers.StableDiffusionXLControlNetPAGPipeline,
    }[family]
    factors = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    scheduler = ddim()
    grid = grid_of(scheduler, model.schedule, 5)
    made = tiny.pipeline(kind, {**parts, "scheduler": scheduler, "controlnet": net, "pag_applied_layers": ["mid"]})
    before = dict(made.unet.attn_processors)
    made.enable_freeu(**factors)
    theirs = made(
        **CALL, num_inference_steps=5, latents=drawn(2, 4, 8, 8) * grid[0].sigma, pag_scale=2.0, image=edges(0),
        controlnet_conditioning_scale=0.7,
    ).images  # fmt: skip
    made.disable_freeu()
    made.unet.set_attn_processor(before)
    modifiers: list[Any] = [control, FreeU(**factors), PerturbedAttention(2.0)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        assert_same(mine_of(model, grid, *(modifiers[k] for k in order)), theirs)


def test_guidance_on_a_part_of_the_way(model: Any) -> None:
    grid = (*(model.schedule.level(float(t)) for t in (999, 750, 500, 250)), model.schedule.clean)
    whole, none = mine_of(model, grid, PerturbedAttention(2.0)), mine_of(model, grid)
    part = mine_of(model, grid, PerturbedAttention(2.0, start=0.5))
    assert (part - whole).abs().max() > 1e-3 and (part - none).abs().max() > 1e-3
    assert torch.equal(mine_of(model, grid, PerturbedAttention(2.0, start=0.1, end=0.2)), none), "no whole step"


def test_a_twin_shares_weights_and_nothing_else(parts: Any) -> None:
    unet: Any = parts["unet"]
    before = {name: dict(vars(module)) for name, module in unet.named_modules()}

    def change(network: Any) -> None:
        network.enable_freeu(0.9, 0.2, 1.3, 1.4)
        network.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(object())
        network.up_blocks = torch.nn.ModuleList()

    made: Any = twin(unet, change)
    assert made is not unet and made.conv_in.weight is unet.conv_in.weight
    for name, module in unet.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[key] is value for key, value in before[name].items()), name


def test_bad_input(model: Any, tmp_path: Path) -> None:
    grid = (model.schedule.level(999.0), model.schedule.clean)
    with pytest.raises(sdkit.InvalidRequest, match=r"no self-attention in the layer 'up'; there is in down_blocks"):
        mine_of(model, grid, PerturbedAttention(layers="up"))
    with pytest.raises(sdkit.InvalidRequest, match="acts on Stable Diffusion 3"):
        mine_of(model, grid, SkipLayers())
    for wrong in ({"scale": "a"}, {"layers": ()}, {"scale": float("nan")}):
        with pytest.raises(sdkit.ParameterError):
            PerturbedAttention(**wrong)
    with pytest.raises(sdkit.ParameterError, match="whole numbers from 0"):
        SkipLayers((-1,))
    with pytest.raises(sdkit.ParameterError, match="A factor of FreeU is a number from 0 to 10"):
        FreeU(b1=-1)


def test_skipped_layers(tmp_path: Path) -> None:
    """On diffusers' own levels, which for Stable Diffusion 3 are sdkit's (``test_parity_flow``)."""
    parts = tiny.sd3(tmp_path / "t5", newer=True, with_t5=False)
    model = sdkit.load(tiny.save_folder(diffusers.StableDiffusion3Pipeline, parts, tmp_path / "model"))
    noise = drawn(2, 16, 8, 8)
    # diffusers skips in steps i with i > n start and i < n end; with start just above 0 that is from its second on
    theirs = tiny.pipeline(diffusers.StableDiffusion3Pipeline, parts)(
        prompt=[PROMPT] * 2, negative_prompt=[NEGATIVE] * 2, guidance_scale=3.0, output_type="latent",
        num_inference_steps=10, max_sequence_length=256, height=64, width=64, latents=noise,
        skip_guidance_layers=[1], skip_layer_guidance_scale=2.0, skip_layer_guidance_start=0.01,
        skip_layer_guidance_stop=0.4,
    ).images  # fmt: skip

    def mine(*modifiers: Any) -> Any:
        return ours(model, noise, sdkit.Request(PROMPT, steps=10, modifiers=modifiers, **REQUEST))

    found = mine(SkipLayers((1,), 2.0, end=0.4))
    assert_same(found, theirs)
    assert (found - mine()).abs().max() > 0.01
    with pytest.raises(sdkit.InvalidRequest, match="layers 0 to 1, so layer 9"):
        mine(SkipLayers())
    for modifier in (FreeU(), PerturbedAttention()):
        with pytest.raises(sdkit.InvalidRequest, match="acts on models with a U-Net"):
            mine(modifier)
