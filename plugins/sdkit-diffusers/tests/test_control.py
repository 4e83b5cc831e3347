"""ControlNet against diffusers' own pipelines, on models built on the spot; see ``test_parity_sd`` for the setting."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of, mask, ours, picture, second_draws
from PIL import Image
from safetensors.torch import load_file, save_file
from test_parity_sd import pixels_of
from tinycontrol import control_net, edges, original_control

import sdkit
from sdkit_diffusers.adapters import T2I
from sdkit_diffusers.beside import picture as image_of
from sdkit_diffusers.control import Control, load_control, with_control

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
REQUEST: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (1, 2), "size": (64, 64)}
CALL: dict[str, Any] = {
    "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip
FAMILIES = {"sd1": tiny.sd1, "sdxl": tiny.sdxl}
PIPES = {
    "sd1": (
        diffusers.StableDiffusionPipeline,
        diffusers.StableDiffusionControlNetPipeline,
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
    ),
    "sdxl": (
        diffusers.StableDiffusionXLPipeline,
        diffusers.StableDiffusionXLControlNetPipeline,
        diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
    ),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def parts(family: str) -> dict[str, Any]:
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def nets(parts: dict[str, Any]) -> list[Any]:
    return [control_net(parts["unet"], seed) for seed in (21, 22)]


@pytest.fixture(scope="module")
def place(family: str, nets: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both control nets, and their pictures."""
    folder = tmp_path_factory.mktemp(family)
    for k, net in enumerate(nets):
        net.save_pretrained(folder / f"net{k}")
        edges(k).save(folder / f"edges{k}.png")
    return folder


@pytest.fixture(scope="module")
def model(family: str, parts: dict[str, Any], place: Path) -> Any:
    return sdkit.load(tiny.save_folder(PIPES[family][0], parts, place / "model"))


def theirs_of(family: str, parts: Any, nets: Any, schedule: Any, steps: int, kind: int = 1, **call: Any) -> Any:
    """diffusers' latents, and the grid."""
    scheduler = ddim()
    grid = grid_of(scheduler, schedule, steps)
    pipe = tiny.pipeline(PIPES[family][kind], {**parts, "scheduler": scheduler, "controlnet": nets})
    if "latents" in call:
        call["latents"] = call["latents"] * grid[0].sigma
    return grid, pipe(**CALL, num_inference_steps=steps, **call).images


def control(place: Path, k: int = 0, **fields: Any) -> Control:
    return Control(str(place / f"net{k}"), str(place / f"edges{k}.png"), **fields)


def test_control(family: str, model: Any, parts: Any, nets: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)
    grid, theirs = theirs_of(
        family, parts, nets[0], model.schedule, 5, latents=noise, image=[edges(0)] * 2,
        controlnet_conditioning_scale=0.7,
    )  # fmt: skip
    request = sdkit.Request(PROMPT, modifiers=(control(place, weight=0.7),), **REQUEST)
    mine = ours(model, noise, request, scheduler="ddim", spacing=grid)
    assert_same(mine, theirs)
    plain = ours(model, noise, sdkit.Request(PROMPT, **REQUEST), scheduler="ddim", spacing=grid)
    assert (mine - plain).abs().max() > 0.05, "the control net changes nothing"


def test_control_without_guidance(family: str, model: Any, parts: Any, nets: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)
    scheduler = ddim()
    grid = grid_of(scheduler, model.schedule, 5)
    pipe = tiny.pipeline(PIPES[family][1], {**parts, "scheduler": scheduler, "controlnet": nets[0]})
    theirs = pipe(
        [PROMPT] * 2, guidance_scale=1.0, output_type="latent", num_inference_steps=5, image=[edges(0)] * 2,
        latents=noise * grid[0].sigma, controlnet_conditioning_scale=1.0,
    ).images  # fmt: skip
    request = sdkit.Request(PROMPT, guidance=1, seeds=(1, 2), size=(64, 64), modifiers=(control(place),))
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_two_controls_each_on_a_part_of_the_way(family: str, model: Any, parts: Any, nets: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)
    both = diffusers.MultiControlNetModel(nets)
    grid, theirs = theirs_of(
        family, parts, both, model.schedule, 10, latents=noise, image=[edges(0), edges(1)],
        controlnet_conditioning_scale=[0.5, 0.8], control_guidance_start=[0.0, 0.25], control_guidance_end=[0.65, 1.0],
    )  # fmt: skip
    modifiers = (control(place, 0, weight=0.5, end=0.65), control(place, 1, weight=0.8, start=0.25))
    request = sdkit.Request(PROMPT, modifiers=modifiers, **REQUEST)
    mine = ours(model, noise, request, scheduler="ddim", spacing=grid)
    assert_same(mine, theirs)
    everywhere = (control(place, 0, weight=0.5), control(place, 1, weight=0.8))
    whole = ours(model, noise, sdkit.Request(PROMPT, modifiers=everywhere, **REQUEST), scheduler="ddim", spacing=grid)
    assert (mine - whole).abs().max() > 1e-3


def test_image_to_image(family: str, model: Any, parts: Any, nets: Any, place: Path) -> None:
    """Shares are of the way that is walked, as in diffusers."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    grid, theirs = theirs_of(
        family, parts, nets[0], model.schedule, 8, 2, image=[picture()] * 2, control_image=[edges(0)] * 2, strength=0.5,
        generator=generators, controlnet_conditioning_scale=0.7, control_guidance_start=0.25, height=64, width=64,
        **({"original_size": (64, 64), "target_size": (64, 64)} if family == "sdxl" else {}),
    )  # fmt: skip
    request = sdkit.Request(
        PROMPT, image=picture(), strength=0.5, modifiers=(control(place, weight=0.7, start=0.25),), **REQUEST
    )
    assert_same(ours(model, second_draws(), request, scheduler="ddim", spacing=grid), theirs)


@pytest.mark.parametrize("layout", ["original", "bare", "diffusers"])
def test_a_control_net_in_one_file(
    layout: str, family: str, model: Any, parts: Any, nets: Any, place: Path, tmp_path: Path
) -> None:
    file = tmp_path / "net.safetensors"
    if layout == "diffusers":
        tensors = nets[0].state_dict()
    else:
        prefix = "control_model." if layout == "original" else ""
        tensors = {prefix + name: tensor for name, tensor in original_control(nets[0]).items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
    loaded: Any = load_control(model.denoiser, file)
    assert loaded.config.conditioning_embedding_out_channels == [16, 32, 96, 256]
    for name, tensor in nets[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_as_a_function(model: Any, place: Path) -> None:
    """The same numbers as the modifier; on a part of the way it needs the way."""
    grid = (*(model.schedule.level(float(t)) for t in (999, 750, 500, 250)), model.schedule.clean)
    noise = drawn(2, 4, 8, 8)
    request = sdkit.Request(PROMPT, modifiers=(control(place, start=0.25, end=0.75),), **REQUEST)
    mine = ours(model, noise, request, scheduler="ddim", spacing=grid)
    net = load_control(model.denoiser, place / "net0")
    assert load_control(model.denoiser, place / "net0") is net, "it is kept"
    guided = sdkit.guided(with_control(model.denoiser, net, edges(0), start=0.25, end=0.75, grid=grid), 3.0)
    cond = sdkit.Conditions(model.encoder([PROMPT] * 2), model.encoder([NEGATIVE] * 2))
    steps = sdkit.solve(
        sdkit.Ddim(), lambda x, level: guided(x, level, cond), noise * grid[0].sigma, grid, sdkit.NoNoise()
    )
    assert_same(list(steps)[-1].x, mine, 1e-5)
    with pytest.raises(sdkit.InvalidRequest, match="needs the way"):
        with_control(model.denoiser, net, edges(0), start=0.5)


def test_two_threads_with_different_control_do_not_see_each_other(model: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)

    def run(*modifiers: Any) -> Any:
        request = sdkit.Request(PROMPT, steps=4, modifiers=modifiers, **REQUEST)
        return ours(model, noise, request, scheduler="ddim")

    kinds = [(), (control(place, 0),), (control(place, 1, weight=0.5),), ("freeu",), ("pag",)]
    alone = [run(*kind) for kind in kinds]
    before = {name: tensor.clone() for name, tensor in unet_of(model).state_dict().items()}
    found: dict[int, Any] = {}

    def work(k: int) -> None:
        found[k] = run(*kinds[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, expected in enumerate(alone):
        assert torch.equal(found[k], expected), k
    for name, tensor in unet_of(model).state_dict().items():
        assert torch.equal(tensor, before[name])


def unet_of(model: Any) -> Any:
    return model.denoiser.network.network


def test_bad_input(family: str, model: Any, parts: Any, nets: Any, place: Path, tmp_path: Path) -> None:
    pipe = sdkit.pipeline(model)

    def refused(error: type[Exception], match: str, modifier: Any) -> None:
        calls: list[int] = []
        hook = unet_of(model).register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            with pytest.raises(error, match=match):
                pipe(sdkit.Request(PROMPT, steps=2, size=(64, 64), modifiers=(modifier,)))
        finally:
            hook.remove()
        assert not calls, "the network ran"

    small = tmp_path / "small.png"
    edges(0, 32).save(small)
    refused(
        sdkit.InvalidRequest, "32x32 but the picture to make is 64x64; .* fit=True", Control(str(place / "net0"), small)
    )
    refused(sdkit.FileError, "'none.png' cannot be read", Control(str(place / "net0"), str(tmp_path / "none.png")))
    refused(sdkit.FileError, "'nowhere' cannot be read", Control(str(tmp_path / "nowhere"), edges(0)))
    other = control_net(FAMILIES["sdxl" if family == "sd1" else "sd1"]()["unet"])
    other.save_pretrained(tmp_path / "other")
    refused(
        sdkit.InvalidRequest,
        "made for another family: its cross_attention_dim",
        Control(str(tmp_path / "other"), edges(0)),
    )
    save_file(
        {f"control_model.{n}": t.clone().contiguous() for n, t in original_control(other).items()},
        tmp_path / "o.safetensors",
    )
    refused(
        sdkit.InvalidRequest,
        "made for another family: it reads text of width",
        Control(str(tmp_path / "o.safetensors"), edges(0)),
    )
    refused(
        sdkit.FileError,
        "holds a UNet2DConditionModel, which is no control net",
        Control(str(place / "model" / "unet"), edges(0)),
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(sdkit.FileError, "is no control net: it has no tensor", Control(str(tmp_path / "a.safetensors"), edges(0)))
    tensors = load_file(place / "net0" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text((place / "net0" / "config.json").read_text())
    tensors.pop("conv_in.weight")
    save_file(tensors, tmp_path / "cut" / "diffusion_pytorch_model.safetensors")
    refused(sdkit.FileError, "lacks the tensors 'conv_in.weight'", Control(str(tmp_path / "cut"), edges(0)))
    for start, end in ((0.5, 0.5), (-0.1, 1), (0, 1.1)):
        with pytest.raises(sdkit.InvalidRequest, match="shares of the way"):
            Control("net", edges(0), start=start, end=end)
    for image in (None, "", 3):
        with pytest.raises(sdkit.ParameterError, match="An image is"):
            Control("net", image)
    with pytest.raises(sdkit.ParameterError, match="needs image"):
        pipe(sdkit.Request(PROMPT, modifiers=("control(file='net')",)))


def test_a_wrong_size_is_found_before_anything_is_computed(family: str, model: Any, place: Path) -> None:
    """Whatever decides the size: the request, its start image, or the model. No part runs, no net is loaded."""
    pipe = sdkit.pipeline(model)
    ran: list[str] = []
    hooks = [part.register_forward_pre_hook(lambda *_: ran.append("ran")) for part in model.autoencoder.placement.parts]
    wrong, nowhere = edges(0, 32), str(place / "nowhere")
    start = Image.new("RGB", (96, 64))
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (Control(nowhere, wrong), "64x64", {"size": (64, 64)}),
        (Control(nowhere, wrong), "64x64", {}),
        (Control(nowhere, edges(0)), "96x64", {"image": start, "mask": Image.new("L", (96, 64), 255)}),
        (T2I(nowhere, wrong), "64x64", {"size": (64, 64)}),
    ]
    try:
        for modifier, size, fields in cases:
            request = sdkit.Request(PROMPT, steps=2, modifiers=("freeu", modifier), **fields)
            what = "T2I-Adapter" if isinstance(modifier, T2I) else "control"
            match = f"The {what}'s image is {modifier_size(modifier)} but the picture to make is {size}; .* fit=True"
            for ask in (pipe.plan, pipe, lambda r: next(pipe.stream(r))):
                with pytest.raises(sdkit.InvalidRequest, match=match):
                    ask(request)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == []
    fitting = Control(nowhere, wrong, fit=True)
    assert pipe.plan(sdkit.Request(PROMPT, modifiers=(fitting,))).request.modifiers == (fitting,)
    with pytest.raises(sdkit.UnknownComponent, match="'contrl'"):
        pipe.plan(sdkit.Request(PROMPT, modifiers=("contrl",)))


def modifier_size(modifier: Any) -> str:
    return "{}x{}".format(*image_of(modifier.image).size)


def test_an_image_is_resized_if_asked(family: str, model: Any, parts: Any, nets: Any, place: Path) -> None:
    noise = drawn(2, 4, 8, 8)
    grid, theirs = theirs_of(family, parts, nets[0], model.schedule, 2, latents=noise, image=[edges(0, 32)] * 2, height=64, width=64)  # fmt: skip
    modifier = Control(str(place / "net0"), edges(0, 32), fit=True)
    request = sdkit.Request(PROMPT, modifiers=(modifier,), **REQUEST)
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_it_travels(model: Any, place: Path, tmp_path: Path) -> None:
    """A request with control as JSON and in a picture; pictures given as values travel inside."""
    modifiers = (
        Control(str(place / "net0"), edges(0), weight=0.5),
        f"control(file={str(place / 'net1')!r}, image={str(place / 'edges1.png')!r}, end=0.5)",
    )
    request = sdkit.Request(PROMPT, steps=2, size=(64, 64), modifiers=modifiers)
    text = sdkit.to_json(request)
    assert str(place) not in text and "net1" in text
    again = sdkit.from_json(text, sdkit.Request)
    assert again.modifiers[0] == Control("net0", edges(0), weight=0.5)
    assert again.modifiers[1] == Control("net1", "edges1.png", end=0.5)
    (saved,) = sdkit.pipeline(model)(request).save(tmp_path / "out.png")
    assert sdkit.read_manifest(saved).request.modifiers == again.modifiers


def test_from_the_shell(model: Any, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sdkit.cli import main

    def run(*words: str) -> bytes:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        call = ["generate", PROMPT, "--model", str(place / "model"), "--steps", "2", "--seed", "1", "--size", "64x64"]
        try:
            main([*call, *words, "--out", str(out)])
        except SystemExit as ended:
            assert not ended.code, capsys.readouterr().err
        return Image.open(out).tobytes()

    spelled = f"control(file={str(place / 'net0')!r}, image={str(place / 'edges0.png')!r}, weight=0.7)"
    assert run("--modifier", spelled) != run()
    assert run("--modifier", spelled, "--modifier", "freeu(b1=1.2)") != run("--modifier", spelled)
    with pytest.raises(AssertionError, match=r"'none.png' cannot be read as a picture: No such file or directory"):
        run("--modifier", spelled.replace("edges0", "none"))


def test_a_picture_that_is_no_square(family: str, model: Any, parts: Any, nets: Any, place: Path) -> None:
    wide, noise = edges(0, 96).crop((0, 0, 96, 64)), drawn(2, 4, 8, 12)
    grid, theirs = theirs_of(family, parts, nets[0], model.schedule, 2, latents=noise, image=[wide] * 2, height=64, width=96)  # fmt: skip
    modifier = Control(str(place / "net0"), wide)
    request = sdkit.Request(PROMPT, modifiers=(modifier,), **{**REQUEST, "size": (96, 64)})
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)


def test_offloaded_and_closed(model: Any, place: Path) -> None:
    """With parts that wait their turn the numbers are the same; two nets at once do not wait for each other."""
    modifiers = (control(place, 0, end=0.5), control(place, 1, weight=0.5), "freeu")
    request = sdkit.Request(PROMPT, steps=4, modifiers=modifiers, **REQUEST)
    noise = drawn(2, 4, 8, 8)
    with sdkit.load(place / "model") as model:
        plain = ours(model, noise, request, scheduler="ddim")
    model = sdkit.load(place / "model", offload="stages")
    assert torch.equal(ours(model, noise, request, scheduler="ddim"), plain)
    net = load_control(model.denoiser, place / "net0")
    assert next(net.parameters()).device.type == "cpu"
    model.close()
    assert next(net.parameters()).device.type == "meta"


def test_a_model_for_inpainting(tmp_path: Path) -> None:
    """Nine channels: the control net reads the latents alone."""
    parts = tiny.sd1(inputs=9)
    net = control_net(tiny.sd1()["unet"])
    net.save_pretrained(tmp_path / "net")
    kind = diffusers.StableDiffusionControlNetInpaintPipeline
    model = sdkit.load(tiny.save_folder(diffusers.StableDiffusionInpaintPipeline, parts, tmp_path / "model"))
    scheduler = ddim()
    grid, noise = grid_of(scheduler, model.schedule, 5), drawn(2, 4, 8, 8)
    pipe = tiny.pipeline(kind, {**parts, "scheduler": scheduler, "controlnet": net})
    theirs = pipe(
        **CALL, num_inference_steps=5, image=[picture()] * 2, mask_image=[mask()] * 2, control_image=[edges(0)] * 2,
        strength=1.0, height=64, width=64, latents=noise * grid[0].sigma, generator=torch.Generator().manual_seed(0),
        controlnet_conditioning_scale=0.7,
    ).images  # fmt: skip
    painting = model.denoiser.painting(pixels_of(picture()), pixels_of(mask()))  # type: ignore[attr-defined]
    net = load_control(painting, tmp_path / "net")
    guided = sdkit.guided(with_control(painting, net, edges(0), weight=0.7), 3.0)
    cond = sdkit.Conditions(model.encoder([PROMPT] * 2), model.encoder([NEGATIVE] * 2))
    steps = sdkit.solve(
        sdkit.Ddim(), lambda x, level: guided(x, level, cond), noise * grid[0].sigma, grid, sdkit.NoNoise()
    )
    assert_same(list(steps)[-1].x, theirs)
