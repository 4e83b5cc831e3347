"""Motion modules in a U-Net: read from files, equal to diffusers' network, and nothing of the model touched."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import tinymotion
import torch
from parity import drawn
from safetensors.torch import load_file
from torch import Tensor

import sdkit
from sdkit_diffusers import motionfiles
from sdkit_diffusers.motion import Inside, Moving, OfStep, load_motion, with_motion
from sdkit_diffusers.windows import fused, line, ring
from sdkit_diffusers.wiring import core, network_call

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FRAMES = 6


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return tiny.sd1()


@pytest.fixture(scope="module")
def model(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sdkit.Model[Any]:
    return sdkit.load(
        tiny.save_folder(diffusers.StableDiffusionPipeline, parts, tmp_path_factory.mktemp("motion") / "model")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tinymotion.save_folder(tinymotion.adapter(), tmp_path / "motion")


def unet(denoiser: Any) -> Any:
    return network_call(denoiser).network


def asked(network: Any, clips: int = 1, frames: int = FRAMES) -> Tensor:
    """What a network of frames as rows says of some noise."""
    rows = clips * frames
    x, states = drawn(rows, 4, 8, 8), drawn(rows, 77, 64, seed=9)
    made: Tensor = network(x, torch.full((rows,), 500.0), states, return_dict=False)[0]
    return made


@pytest.fixture(scope="module")
def networks(parts: dict[str, Any]) -> dict[bool, Any]:
    """diffusers' ``UNetMotionModel``, with motion in the middle and without."""
    made = {}
    for middle in (True, False):
        with torch.random.fork_rng(devices=[]):
            made[middle] = diffusers.UNetMotionModel.from_unet2d(parts["unet"], tinymotion.adapter(middle=middle))
        made[middle].requires_grad_(False)
    return made


def theirs(network: Any, clips: int = 1, frames: int = FRAMES) -> Tensor:
    """The same by diffusers' network."""
    x, states = drawn(clips * frames, 4, 8, 8), drawn(clips * frames, 77, 64, seed=9)
    volume = x.unflatten(0, (clips, frames)).transpose(1, 2)
    made: Tensor = network(volume, torch.tensor([500.0] * clips), states).sample
    return made.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("middle", [True, False], ids=["v2", "v1 and v3"])
@pytest.mark.parametrize("layout", ["folder", "original", "training", "diffusers", "without positions"])
def test_every_layout_makes_the_network_of_diffusers(
    model: Any, networks: dict[bool, Any], middle: bool, layout: str, tmp_path: Path
) -> None:
    motion = tinymotion.adapter(middle=middle)
    if layout == "folder":
        path = tinymotion.save_folder(motion, tmp_path / "motion")
    else:
        tensors = dict(motion.state_dict()) if layout == "diffusers" else tinymotion.original(motion)
        if layout == "training":
            tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
        if layout == "without positions":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".pe")}
        path = tinymotion.save_tensors(tensors, tmp_path / "mm.safetensors")
    moving = with_motion(model.denoiser, load_motion(model.denoiser, path), FRAMES)
    wanted = theirs(networks[middle])
    assert float((asked(unet(moving)) - wanted).abs().max()) < 1e-5
    # and motion does something: frames are not what they are alone
    assert float((asked(unet(model.denoiser)) - wanted).abs().max()) > 1e-2


def test_two_clips_do_not_see_each_other(model: Any, networks: dict[bool, Any], folder: Path) -> None:
    moving = unet(with_motion(model.denoiser, load_motion(model.denoiser, folder), FRAMES))
    both = asked(moving, clips=2)
    assert float((both - theirs(networks[True], clips=2)).abs().max()) < 1e-5
    with pytest.raises(sdkit.ContractError, match="batch of 7 is no whole number of clips of 6"):
        asked(moving, frames=7)


def test_the_model_is_not_touched_and_no_weight_is_copied(model: Any, folder: Path) -> None:
    base = unet(model.denoiser)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    alone = asked(base)
    network = load_motion(model.denoiser, folder)
    moving = unet(with_motion(model.denoiser, network, FRAMES))
    asked(moving)
    assert torch.equal(asked(base), alone)
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in base.modules())
    ours = {id(one) for one in (*base.parameters(), *network.parameters())}
    assert {id(one) for one in moving.parameters()} == ours
    assert load_motion(model.denoiser, folder) is network, "read once"


def test_names_are_those_of_diffusers(model: Any, networks: dict[bool, Any], folder: Path) -> None:
    """Adapters for motion look for them."""
    ours = unet(with_motion(model.denoiser, load_motion(model.denoiser, folder), FRAMES))
    ours_names = {name for name, _ in ours.named_parameters()}
    # what it calls differently in every block: the convolution that halves
    assert ours_names == {
        name.replace("downsamplers.0.op.", "downsamplers.0.conv.") for name, _ in networks[True].named_parameters()
    }


@pytest.mark.parametrize("rows", [64, 2**25])
def test_pieces_of_the_picture_make_no_difference(
    model: Any, folder: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = unet(with_motion(model.denoiser, load_motion(model.denoiser, folder), FRAMES))
    whole = asked(moving)
    monkeypatch.setattr("sdkit_diffusers.motion.AT_ONCE", {"": rows})
    assert float((asked(moving) - whole).abs().max()) < 1e-5


def test_windows_inside_are_those_of_free_noise(
    model: Any, parts: dict[str, Any], networks: dict[bool, Any], folder: Path
) -> None:
    """FreeNoise's windows, 4 of 8 frames and each 2 further, so that its last one ends with the clip."""
    frames, windows = 8, line(8, 4, 2)
    with torch.random.fork_rng(devices=[]):
        pipe = tinymotion.theirs(parts, tinymotion.adapter(), parts["scheduler"])
        pipe.enable_free_noise(context_length=4, context_stride=2, weighting_scheme="delayed_reverse_sawtooth")
    x, states = drawn(frames, 4, 8, 8), drawn(frames, 77, 64, seed=9)
    with torch.no_grad():
        wanted = pipe.unet(x.transpose(0, 1)[None], torch.tensor([500.0]), states).sample[0].transpose(0, 1)
    shares = fused(windows, frames, "delayed-reverse-sawtooth", 2)
    inside = Inside(tuple(zip(windows, shares, strict=True)))
    moving = with_motion(model.denoiser, load_motion(model.denoiser, folder), frames, inside=inside)
    assert float((asked(unet(moving), frames=frames) - wanted).abs().max()) < 1e-5
    assert float((wanted - theirs(networks[True], frames=frames)).abs().max()) > 1e-3


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_pickles_are_refused_with_the_way_to_convert(model: Any, tmp_path: Path) -> None:
    for name in ("mm_sd_v15_v2.ckpt", "mm.pth", "mm.bin"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 whatever")
        with pytest.raises(sdkit.FileError, match=r"pickle.*weights_only=True.*safetensors"):
            load_motion(model.denoiser, tmp_path / name)
    (tmp_path / "mm.safetensors").write_bytes(b"PK\x03\x04" + b"0" * 64)
    with pytest.raises(sdkit.FileError, match="pickle"):
        load_motion(model.denoiser, tmp_path / "mm.safetensors")


def test_damaged_and_foreign_files_are_one_clear_error(model: Any, folder: Path, tmp_path: Path) -> None:
    whole = tinymotion.original(tinymotion.adapter())

    def refused(tensors: dict[str, Tensor], match: str, kind: type[Exception] = sdkit.FileError) -> None:
        path = tinymotion.save_tensors(tensors, tmp_path / "mm.safetensors")
        before = len(network_call(model.denoiser).placement.parts)
        with pytest.raises(kind, match=match) as caught:
            load_motion(model.denoiser, path)
        assert "\n" not in str(caught.value)
        assert len(network_call(model.denoiser).placement.parts) == before, "nothing was loaded"

    name = "up_blocks.1.motion_modules.2.temporal_transformer.proj_in.weight"
    refused(
        {key: tensor for key, tensor in whole.items() if key != name},
        f"lacks the tensors '{motionfiles.renamed(name)}'",
    )
    refused({**whole, name: whole[name][:8]}, "has the shape .8, 64., but .64, 64. is needed")
    refused({"conv.weight": torch.zeros(2)}, "no motion module.*but 'conv.weight'")
    lora = {"down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 32)}
    refused(lora, "MotionLoRA.*loras=")
    foreign = tinymotion.original(tinymotion.adapter(channels=(32, 32, 64)))
    refused(foreign, r"another family: its block_out_channels is \[32, 32, 64\], the model's \[32, 64, 64\]",
            sdkit.InvalidRequest)  # fmt: skip
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tinymotion.save_original(tinymotion.adapter(), tmp_path / "whole.safetensors").read_bytes()[:-100])
    with pytest.raises(sdkit.FileError, match="cut off: 100 bytes are missing"):
        load_motion(model.denoiser, cut)
    with pytest.raises(sdkit.FileError, match="cannot be read"):
        load_motion(model.denoiser, tmp_path / "nothing.safetensors")
    (tmp_path / "mm.txt").write_text("no weights")
    with pytest.raises(sdkit.FileError, match=r"folder or a .safetensors file, not 'mm.txt'"):
        load_motion(model.denoiser, tmp_path / "mm.txt")
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    with pytest.raises(sdkit.FileError, match="holds a ControlNetModel, which is no motion module"):
        load_motion(model.denoiser, folder)


def test_a_motion_module_with_inputs_for_a_picture_is_refused(model: Any, folder: Path) -> None:
    config = (folder / "config.json").read_text().replace('"conv_in_channels": null', '"conv_in_channels": 9')
    (folder / "config.json").write_text(config)
    with pytest.raises(sdkit.FileError, match="PIA"):
        load_motion(model.denoiser, folder)


def test_original_files_keep_the_table_of_positions(tmp_path: Path) -> None:
    """The builder writes both tables of a layer, as AnimateDiff's files have them."""
    saved = load_file(tinymotion.save_original(tinymotion.adapter(), tmp_path / "mm.safetensors"))
    tables = [name for name in saved if name.endswith("pos_encoder.pe")]
    assert len(tables) == 2 * (2 * 3 + 3 * 3 + 1) and saved[tables[0]].shape == (1, tinymotion.POSITIONS, 32)


# --- windows around the network -----------------------------------------------------------------------------------------


class Places:
    """A denoiser that answers where in its window a frame stands, and what it is conditioned on."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, x: Tensor, level: Any, cond: Tensor, /) -> Tensor:
        self.seen.append([int(row) for row in x[:, 0, 0, 0]])
        return torch.arange(float(len(x)))[:, None, None, None].expand_as(x) + cond[:, None, None, None]


def numbered(frames: int, clips: int = 1) -> Tensor:
    return torch.arange(float(frames * clips))[:, None, None, None].expand(-1, 1, 2, 2)


LEVEL = sdkit.Level(1.0, 0.6, 0.8)


def test_a_clip_in_windows_is_the_average_of_their_answers() -> None:
    windows = line(10, 4, 1)
    shares = fused(windows, 10, "pyramid", 1)
    inside, ticks = Places(), []
    moving = Moving(inside, 10, lambda step: tuple(zip(windows, shares, strict=True)), lambda: ticks.append(1))
    cond = torch.linspace(5, 6, 10)
    made = moving(numbered(10), LEVEL, cond)
    assert inside.seen == [list(window) for window in windows] and len(ticks) == len(windows)
    wanted = cond.clone()
    for window, share in zip(windows, shares, strict=True):
        for place, frame in enumerate(window):
            wanted[frame] += place * share[place]
    assert torch.allclose(made[:, 0, 0, 0], wanted)


def test_both_sides_of_guidance_go_through_the_same_windows() -> None:
    windows = ring(6, 4, 2, phase=0.5)
    shares = fused(windows, 6, "flat", 2)
    inside = Places()
    moving = Moving(inside, 6, lambda step: tuple(zip(windows, shares, strict=True)))
    conditions = sdkit.Conditions(torch.zeros(12), torch.full((12,), 100.0))
    positive, negative = moving.pair(numbered(6, clips=2), LEVEL, conditions)
    # two clips behind each other, then both once more for the negative prompt
    rows = [list(window) + [frame + 6 for frame in window] for window in windows]
    assert inside.seen == [row + row for row in rows]
    assert positive.shape == negative.shape == (12, 1, 2, 2)
    assert torch.allclose(negative - positive, torch.full_like(positive, 108.0))  # 8 rows further on in the batch


def test_the_step_is_told_from_the_level() -> None:
    """Also of levels between, which solvers of several stages visit."""
    grid = sdkit.Trailing()(sdkit.scaled_linear(), 5)
    begins = tuple(level.log_snr for level in grid[:-1])
    steps = []
    moving = Moving(Places(), 2, lambda step: steps.append(step) or (((0, 1), (1.0, 1.0)),))  # type: ignore[func-returns-value]
    for one, two in itertools.pairwise(grid[:-1]):
        for level in (one, sdkit.between(one, two, (one.log_snr + two.log_snr) / 2)):
            moving(numbered(2), level, OfStep(torch.zeros(2), begins))
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_core_is_found_under_the_twin(model: Any, folder: Path) -> None:
    moving = with_motion(model.denoiser, load_motion(model.denoiser, folder), FRAMES)
    assert core(unet(moving)).config == core(unet(model.denoiser)).config
