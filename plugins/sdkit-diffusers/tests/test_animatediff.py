"""AnimateDiff as a generator of frames: parity with diffusers, plans, windows, adapters, journal, and the shell."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import diffusers
import pytest
import tiny
import tinymotion
import torch
from parity import NEGATIVE, PROMPT, Given, assert_same, ddim, drawn, grid_of
from PIL import Image
from safetensors.torch import save_file
from tinycontrol import (
    control_net,
    edges,
    shapes_are_no_draws,  # noqa: F401 - a fixture
)
from torch import Tensor

import sdkit
from sdkit import Capability, FrameJob, Loop, PromptTrack, Request, Timeline, testing
from sdkit_diffusers.animatediff import AnimateDiff, Motion, frame_seed
from sdkit_diffusers.betas import LinearBetas
from sdkit_diffusers.control import Control
from sdkit_diffusers.wiring import network_call

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 4
LINEAR = sdkit.linear(0.00085, 0.012, 1000)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return tiny.sd1()


@pytest.fixture(scope="module")
def place(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model (``model``) and the motion module (``mm.safetensors``)."""
    made = tmp_path_factory.mktemp("animatediff")
    tiny.save_folder(diffusers.StableDiffusionPipeline, parts, made / "model")
    tinymotion.save_original(tinymotion.adapter(), made / "mm.safetensors")
    return made


@pytest.fixture(scope="module")
def model(place: Path) -> sdkit.Model[Any]:
    return sdkit.load(place / "model")


def small(model: sdkit.Model[Any], steps: int = 2) -> Any:
    """A pipeline of clips of 32 x 32 pixels and a few steps."""
    spec = attrs.evolve(model.spec, latent=attrs.evolve(model.spec.latent, size=(32, 32)), steps=steps)
    return sdkit.pipeline(attrs.evolve(model, spec=spec))


def job(pipe: Any, frames: int, request: Any = "a cat", loop: Loop = Loop.NONE) -> FrameJob:
    asked = Request(request, seeds=(3,)) if isinstance(request, str) else request
    return FrameJob(sdkit.image_source(pipe), asked, Timeline(frames, 8, loop), PromptTrack(asked.prompt))


def latents(generator: AnimateDiff, work: FrameJob) -> Tensor:
    """The latents of the whole clip, caught on their way to the journal."""
    kept: list[Tensor] = []

    class Keeper:
        def latents(self, index: int, make: Any, /) -> Tensor:
            kept.append(make())
            return kept[0]

    burst = generator.step(attrs.evolve(work, keeper=Keeper()), 0, {})
    next(iter(burst.frames))
    return kept[0]


# --- parity -------------------------------------------------------------------------------------------------------------


def both(
    parts: dict[str, Any], model: Any, generator: AnimateDiff, frames: int, **free_noise: Any
) -> tuple[Tensor, Tensor]:
    """sdkit's latents and diffusers', on the same noise, levels, text and guidance."""
    scheduler, noise = ddim(beta_schedule="linear"), drawn(frames, 4, 8, 8)
    grid = grid_of(scheduler, LINEAR, STEPS)
    with torch.random.fork_rng(devices=[]):
        pipe = tinymotion.theirs(parts, tinymotion.adapter(), scheduler)
        if free_noise:
            pipe.enable_free_noise(**free_noise)
    wanted = pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_frames=frames, height=64, width=64, num_inference_steps=STEPS,
        guidance_scale=3.0, latents=(noise * grid[0].sigma).transpose(0, 1)[None], output_type="latent",
    ).frames[0].transpose(0, 1)  # fmt: skip
    request = Request(
        PROMPT, negative=NEGATIVE, guidance=3.0, steps=STEPS, size=(64, 64), scheduler="ddim", spacing="trailing"
    )
    ours = sdkit.pipeline(model, noise=lambda seeds, grid: Given(noise))
    return latents(generator, job(ours, frames, request)), wanted


def test_a_clip_is_that_of_diffusers(parts: dict[str, Any], model: Any, place: Path) -> None:
    mine, theirs = both(parts, model, AnimateDiff(place / "mm.safetensors"), 8)
    assert_same(mine, theirs)


def test_a_long_clip_by_free_noise_is_that_of_diffusers(parts: dict[str, Any], model: Any, place: Path) -> None:
    generator = AnimateDiff(place / "mm.safetensors", windows="inside", context_length=6, context_overlap=4)
    mine, theirs = both(parts, model, generator, 10, context_length=6, context_stride=2)
    assert_same(mine, theirs)


@pytest.mark.usefixtures("shapes_are_no_draws")
def test_a_clip_under_control_is_that_of_diffusers(
    parts: dict[str, Any], model: Any, place: Path, tmp_path: Path
) -> None:
    """A control net reads one picture for all frames; motion goes into the network under it."""
    frames, scheduler, net, picture = 4, ddim(beta_schedule="linear"), control_net(parts["unet"]), edges()
    net.save_pretrained(tmp_path / "net")
    picture.save(tmp_path / "edges.png")
    grid, noise = grid_of(scheduler, LINEAR, STEPS), drawn(frames, 4, 8, 8)
    given = {name: parts[name] for name in ("unet", "vae", "text_encoder", "tokenizer")}
    with torch.random.fork_rng(devices=[]):
        pipe = diffusers.AnimateDiffControlNetPipeline(
            **given, motion_adapter=tinymotion.adapter(), controlnet=net, scheduler=scheduler
        )
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_frames=frames, height=64, width=64, num_inference_steps=STEPS,
        guidance_scale=3.0, latents=(noise * grid[0].sigma).transpose(0, 1)[None], output_type="latent",
        conditioning_frames=[picture] * frames,
    ).frames[0].transpose(0, 1)  # fmt: skip
    request = Request(
        PROMPT, negative=NEGATIVE, guidance=3.0, steps=STEPS, size=(64, 64), scheduler="ddim", spacing="trailing",
        modifiers=(Control(tmp_path / "net", tmp_path / "edges.png"),),
    )  # fmt: skip
    ours = sdkit.pipeline(model, noise=lambda seeds, grid: Given(noise))
    assert_same(latents(AnimateDiff(place / "mm.safetensors"), job(ours, frames, request)), wanted)


def test_the_levels_are_those_of_linear_betas(model: Any, place: Path) -> None:
    """Also those between two of the grid, for solvers of several stages."""
    generator = AnimateDiff(place / "mm.safetensors")
    work = job(small(model), 4, Request("a cat", spacing="trailing"))
    request = generator._request(work)
    grid = work.images.pipe.plan(attrs.evolve(request, modifiers=())).grid  # type: ignore[attr-defined]
    assert grid[0] == LINEAR.noisiest != model.schedule.noisiest
    own = attrs.evolve(generator, betas="model")
    assert own._request(work).spacing == "trailing"
    motion = request.modifiers[-1]
    assert isinstance(motion, Motion)
    with motion.apply(sdkit.Parts(model.encoder, model.denoiser, sdkit.Euler(), model.autoencoder)) as parts:
        assert parts.denoiser.schedule == LINEAR
    assert model.denoiser.schedule == model.schedule
    karras = attrs.evolve(work, request=Request("a cat", scheduler="euler", spacing="karras(rho=5)"))
    text = generator._request(karras).spacing
    assert sdkit.registry().make("spacing", text) == LinearBetas("karras(rho=5.0)")
    assert LinearBetas("karras")(model.schedule, 5) == sdkit.Karras()(LINEAR, 5)
    verbatim = sdkit.pipeline(model, spacing=grid)
    assert generator._request(job(verbatim, 4)).spacing is None, "a grid is used as it is given"


# --- what a clip is -----------------------------------------------------------------------------------------------------


def test_frames_move_together(model: Any, place: Path) -> None:
    """A frame depends on the others through the motion module alone."""
    pipe, generator = small(model), AnimateDiff(place / "mm.safetensors")
    six, five = (latents(generator, job(pipe, frames)) for frames in (6, 5))
    assert float((six[:5] - five).abs().max()) > 1e-2
    shots = [generator._shot(job(pipe, 6), i) for i in range(6)]
    assert len({shot.seeds for shot in shots}) == 6 and shots[2].seeds[0][0] == frame_seed(3, 2)


def test_the_model_makes_the_same_pictures_after_a_clip(model: Any, place: Path) -> None:
    pipe, request = small(model), Request("a cat", seeds=(5,))
    before = pipe(request).latents
    list(sdkit.animate(AnimateDiff(place / "mm.safetensors"), pipe, request, frames=4))
    assert torch.equal(pipe(request).latents, before)


def test_prompts_travel(model: Any, place: Path) -> None:
    clip = sdkit.animate(AnimateDiff(place / "mm.safetensors"), small(model), "0: a cat | 4: a dog", frames=6)
    assert [frame.info.prompts for frame in clip][3:5] == [(("a cat", 0.25), ("a dog", 0.75)), (("a dog", 1.0),)]
    one, two = (
        latents(AnimateDiff(place / "mm.safetensors"), job(small(model), 6, prompt))
        for prompt in ("a cat", "0: a cat | 5: a dog")
    )
    assert float((one - two).abs().max()) > 1e-3


@pytest.mark.parametrize("windows", ["uniform", "static", "inside"])
def test_any_length_in_windows(model: Any, place: Path, windows: str) -> None:
    """More frames than the motion module has positions for."""
    generator = AnimateDiff(place / "mm.safetensors", windows=windows, context_length=4, context_overlap=2)
    made = latents(generator, job(small(model), 11))
    assert made.shape == (11, 4, 4, 4) and bool(torch.isfinite(made).all())


def test_windows_of_a_step_are_turned(model: Any, place: Path) -> None:
    work = job(small(model), 11)
    generator = AnimateDiff(place / "mm.safetensors", context_length=4, context_overlap=2)
    outside = generator._outside(work)
    assert outside is not None
    assert len({tuple(window for window, _ in outside(step)) for step in range(4)}) == 4
    static = attrs.evolve(generator, windows="static")._outside(work)
    assert static is not None and static(0) == static(1)
    strided = attrs.evolve(generator, context_stride=2)._outside(work)
    assert strided is not None and (1 in {window[1] - window[0] for window, _ in strided(0)})
    assert {window[1] - window[0] for window, _ in strided(0)} == {1, 2}
    ring = generator._outside(job(small(model), 11, loop=Loop.CLOSED))
    assert ring is not None and any(window[0] > window[-1] for step in range(4) for window, _ in ring(step))
    # a loop no longer than a window is closed too
    assert generator._outside(job(small(model), 4, loop=Loop.CLOSED)) is not None
    assert generator._outside(job(small(model), 4)) is None


def test_free_noise_begins_frames_with_the_noise_of_others(model: Any, place: Path) -> None:
    inside = AnimateDiff(place / "mm.safetensors", windows="inside", context_length=4, context_overlap=2)
    work = job(small(model), 10)

    def seeds(generator: AnimateDiff) -> list[int]:
        return [generator._shot(work, i).seeds[0][0] for i in range(10)]

    shuffled = seeds(inside)
    assert sorted(set(shuffled)) == sorted(set(shuffled[:4])) and sorted(shuffled[4:6]) == sorted(shuffled[:2])
    assert seeds(attrs.evolve(inside, noise_type="repeat_context")) == (shuffled[:4] * 3)[:10]
    assert len(set(seeds(attrs.evolve(inside, noise_type="random")))) == 10
    assert len(set(seeds(attrs.evolve(inside, windows="uniform")))) == 10


# --- plans and refusals -------------------------------------------------------------------------------------------------


class Calls:
    """How many pictures the network is asked for."""

    def __init__(self, network: Any) -> None:
        self.rows, self._hook = 0, network.register_forward_pre_hook(self._count)

    def _count(self, module: Any, given: Any) -> None:
        self.rows += len(given[0])

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize(
    ("options", "request_options", "frames", "loop"),
    [
        ({}, {}, 5, "none"),
        ({"context_length": 4, "context_overlap": 1}, {"steps": 5}, 9, "none"),
        ({"context_length": 4, "context_overlap": 2, "context_stride": 2}, {"scheduler": "heun"}, 9, "closed"),
        ({"context_length": 4, "windows": "static"}, {"guidance": 1.0}, 9, "none"),
        ({"context_length": 4, "windows": "inside"}, {"guidance_interval": (0.0, 5.0)}, 9, "none"),
        ({}, {"scheduler": "ddim(eta=1)", "seeds": (1, 2)}, 2, "none"),
    ],
)
def test_a_plan_counts_what_is_evaluated(
    model: Any, place: Path, options: Any, request_options: Any, frames: int, loop: str
) -> None:
    options = {"context_overlap": 1, **options}
    generator = AnimateDiff(place / "mm.safetensors", **options)
    request = Request("a cat", **{"steps": 3, **request_options})
    clip = sdkit.animate(generator, small(model), request, frames=frames, loop=loop)
    network = network_call(model.denoiser).network
    with Calls(network.conv_in) as calls:
        list(clip)
    assert clip.plan.evaluations == calls.rows
    assert clip.plan.window == frames and clip.plan.peak_bytes > 4 * frames * 4 * 4 * 4


def test_a_clip_longer_than_the_positions_names_the_most(model: Any, place: Path) -> None:
    for options, frames in (({"windows": "none"}, 9), ({"context_length": 9}, 20)):
        with pytest.raises(sdkit.InvalidRequest, match=r"'mm.safetensors' sees at most 8 frames together, not 9: ask"):
            sdkit.animate(AnimateDiff(place / "mm.safetensors", **options), small(model), "a cat", frames=frames)
    sdkit.animate(AnimateDiff(place / "mm.safetensors", windows="none"), small(model), "a cat", frames=8)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"windows": "round"}, "windows is one of uniform, static, inside, none, not 'round'"),
        ({"fuse": "mean"}, "fuse is one of flat"),
        ({"noise_type": "blue"}, "noise_type is one of"),
        ({"betas": "cosine"}, "betas is one of linear, model"),
        ({"blend": "mix"}, "blend is one of"),
        ({"context_length": 0}, "context_length is a whole number from 1 to 4096, not 0"),
        ({"context_overlap": 16}, "context_overlap is a whole number from 0 to 15, not 16"),
        ({"context_stride": True}, "context_stride is a whole number from 1 to 8, not True"),
        ({"loras": 3}, "MotionLoRAs are files"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(sdkit.ParameterError, match=match):
        AnimateDiff("mm.safetensors", **parameters)


def test_what_cannot_be_is_refused_before_anything_runs(model: Any, place: Path, tmp_path: Path) -> None:
    pipe, generator = small(model), AnimateDiff(place / "mm.safetensors")
    image = Request("a cat", image=Image.new("RGB", (32, 32)))
    with pytest.raises(sdkit.InvalidRequest, match="starts from noise, not from an image"):
        sdkit.animate(generator, pipe, image, frames=4)
    with pytest.raises(sdkit.InvalidRequest, match="no source of images"):
        sdkit.animate(generator, None, "a cat", frames=4)
    with pytest.raises(sdkit.FileError, match="cannot be read"):
        sdkit.animate(AnimateDiff(place / "other.safetensors"), pipe, "a cat", frames=4)
    foreign = tinymotion.save_original(tinymotion.adapter(channels=(32, 32, 64)), tmp_path / "xl.safetensors")
    with pytest.raises(sdkit.InvalidRequest, match="another family"):
        sdkit.animate(AnimateDiff(foreign), pipe, "a cat", frames=4)
    nameless = sdkit.pipeline(model, spacing=lambda schedule, steps: sdkit.Trailing()(schedule, steps))
    with pytest.raises(sdkit.InvalidRequest, match="custom:function. has no name.*betas='model'"):
        sdkit.animate(generator, nameless, "a cat", frames=4)
    with pytest.raises(sdkit.InvalidRequest, match="acts on models of this package"):
        sdkit.animate(generator, testing.fake_pipeline(), "a cat", frames=4)
    assert generator.needs(job(pipe, 4)) == {Capability.TEXT_TO_IMAGE, Capability.LATENTS}


# --- adapters -----------------------------------------------------------------------------------------------------------


def deltas(seed: int = 40) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) of a MotionLoRA of rank 2 on queries, and on what comes out, of two motion modules."""
    found = {}
    for module, width in (("down_blocks.0.motion_modules.0", 32), ("up_blocks.1.motion_modules.2", 64)):
        for attention in ("attn1", "attn2"):
            for layer in ("to_q", "to_out"):
                name = f"{module}.transformer_blocks.0.{attention}.{layer}"
                found[name] = (drawn(2, width, seed=seed), drawn(width, 2, seed=seed + 1) * 0.3)
                seed += 2
    return found


def lora_file(layout: str, path: Path) -> Path:
    tensors = {}
    for name, (down, up) in deltas().items():
        stem, _, layer = name.rpartition(".")
        if layout == "peft":
            place = f"unet.{stem}.{layer}{'.0' if layer == 'to_out' else ''}"
            tensors |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
            continue
        if layout == "original":
            stem = stem.replace(".transformer_blocks", ".temporal_transformer.transformer_blocks")
            stem = stem.replace(".attn1", ".attention_blocks.0").replace(".attn2", ".attention_blocks.1")
        tensors |= {f"{stem}.processor.{layer}_lora.{way}.weight": t for way, t in (("down", down), ("up", up))}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("layout", ["original", "diffusers", "peft"])
def test_a_motion_lora_is_the_motion_module_with_its_products_added(
    model: Any, place: Path, layout: str, tmp_path: Path
) -> None:
    merged = tinymotion.adapter()
    with torch.no_grad():
        for name, (down, up) in deltas().items():
            merged.get_submodule(f"{name}.0" if name.endswith("to_out") else name).weight.add_(0.7 * up @ down)
    wanted = latents(
        AnimateDiff(tinymotion.save_original(merged, tmp_path / "merged.safetensors")), job(small(model), 5)
    )
    lora = lora_file(layout, tmp_path / "zoom.safetensors")
    generator = AnimateDiff(place / "mm.safetensors", loras=f"{lora}:0.7")
    made = latents(generator, job(small(model), 5))
    plain = latents(attrs.evolve(generator, loras=()), job(small(model), 5))
    assert float((plain - wanted).abs().max()) > 1e-2
    assert float((made - wanted).abs().max()) < 1e-4 * float(wanted.std())


def test_a_motion_lora_acts_in_windows_and_beside_one_of_pictures(model: Any, place: Path, tmp_path: Path) -> None:
    motion = lora_file("original", tmp_path / "zoom.safetensors")
    down, up = drawn(2, 32, seed=60), drawn(32, 2, seed=61) * 0.3
    where = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{where}.lora_A.weight": down, f"{where}.lora_B.weight": up}, tmp_path / "style.safetensors")
    style = f"lora(file={str(tmp_path / 'style.safetensors')!r})"
    plain = AnimateDiff(place / "mm.safetensors", context_length=4, context_overlap=2)
    made = {
        (bool(loras), bool(modifiers)): latents(
            attrs.evolve(plain, loras=loras), job(small(model), 7, Request("a cat", modifiers=modifiers))
        )
        for loras in ((), (str(motion),))
        for modifiers in ((), (style,))
    }
    pairs = [(one, two) for one in made for two in made if one < two]
    assert all(float((made[one] - made[two]).abs().max()) > 1e-3 for one, two in pairs)


def test_a_motion_lora_of_another_family_is_refused(model: Any, place: Path, tmp_path: Path) -> None:
    key = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
    save_file(
        {f"{key}.down.weight": torch.ones(2, 48), f"{key}.up.weight": torch.ones(48, 2)}, tmp_path / "x.safetensors"
    )
    generator = AnimateDiff(place / "mm.safetensors", loras=(str(tmp_path / "x.safetensors"),))
    with pytest.raises(sdkit.SdkitError, match="does not fit its shape"):
        latents(generator, job(small(model), 4))


# --- the contract -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def least(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The smallest model that motion goes into, as a pipeline of clips of one step, and its motion module."""
    made = tmp_path_factory.mktemp("least")
    unet = tiny.unet(
        attention_head_dim=8, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    model = sdkit.load(tiny.save_folder(diffusers.StableDiffusionPipeline, {**parts, "unet": unet}, made / "model"))
    model = attrs.evolve(model, spec=attrs.evolve(model.spec, guidance=None))
    motion = tinymotion.adapter(channels=(32, 32), layers=1)
    return small(model, steps=1), tinymotion.save_original(motion, made / "mm.safetensors")


@pytest.mark.parametrize("text", ["context_length=8", "windows='inside', context_length=4, context_overlap=2"])
def test_it_conforms(least: tuple[Any, Path], text: str) -> None:
    """The kit's own model has no U-Net that motion could go into; a tiny one takes its place."""
    pipe, motion = least
    generator = sdkit.registry().make("frames", f"animatediff(motion={str(motion)!r}, {text})")
    with testing.tried_on(pipe):
        outcomes = list(testing.run(generator, "frames"))
    assert [f"{o.rule.name}: {o.detail}" for o in outcomes if o.state != "pass"] == []


def test_a_killed_render_goes_on_without_denoising_again(model: Any, place: Path, tmp_path: Path) -> None:
    generator, pipe = AnimateDiff(place / "mm.safetensors"), small(model)

    def clip(**more: Any) -> Any:
        return sdkit.animate(generator, pipe, Request("a cat", seeds=(3,)), frames=6, fps=8, **more)

    straight = [frame.image.tobytes() for frame in clip()]
    running = iter(clip(journal=tmp_path / "run"))
    assert [next(running).image.tobytes() for _ in range(2)] == straight[:2]
    running.close()

    def refuse() -> None:
        raise AssertionError("the latents were kept")

    resumed = list(clip(journal=tmp_path / "run", resume=True, tick=refuse))
    assert [frame.image.tobytes() for frame in resumed] == straight
    assert [frame.pts for frame in resumed] == [Fraction(i, 8) for i in range(6)]


def test_latents_are_kept_before_the_first_frame_is_decoded(
    model: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And frames come as they are asked for."""
    rows = []

    def watched(self: Any, made: Tensor, request: Any, *, first: int = 0) -> Iterator[Any]:
        assert list((tmp_path / "run" / "latents").iterdir())
        for row in decode(self, made, request, first=first):
            rows.append(row)
            yield row

    source = type(sdkit.image_source(small(model)))
    decode = source.decode
    monkeypatch.setattr(source, "decode", watched)
    running = iter(
        sdkit.animate(AnimateDiff(place / "mm.safetensors"), small(model), "a cat", frames=5, journal=tmp_path / "run")
    )
    next(running)
    assert len(rows) == 1
    running.close()  # type: ignore[attr-defined]


def test_a_run_is_cancelled_between_windows(model: Any, place: Path) -> None:
    generator = AnimateDiff(place / "mm.safetensors", context_length=4, context_overlap=1)
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    clip = sdkit.animate(generator, small(model), "a cat", frames=10, tick=stop)
    network = network_call(model.denoiser).network
    with Calls(network.conv_in) as counted, pytest.raises(KeyboardInterrupt):
        list(clip)
    assert counted.rows == 2 * 2 * 4  # two windows of 4 frames, both sides of guidance


def test_a_clip_from_the_shell(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.webp"
    command = [
        sys.executable, "-c", "from sdkit.cli import main; main()", "animate",
        f"animatediff(motion={str(place / 'mm.safetensors')!r}, context_length=8)", "--model", str(place / "model"),
        "--prompt", "0: a cat | 16: a dog", "--frames", "24", "--size", "32x32", "--steps", "1", "--seed", "1",
        "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as image:
        assert image.n_frames == 24 and image.size == (32, 32)  # type: ignore[attr-defined]
    frames, manifest = sdkit.registry().make("frame-sink", "webp").read(out)
    made = sdkit.ClipManifest.from_json(manifest)
    assert made.generator == "animatediff(motion='mm.safetensors', context_length=8)"
    assert len({frame.image.tobytes() for frame in frames}) == 24


PAGE = (Path(__file__).parents[3] / "docs" / "animations.md").read_text(encoding="utf-8")


def test_the_pages_commands_can_be_planned(
    model: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the models: the tiny one sees 16 frames too."""
    monkeypatch.chdir(tmp_path)
    tinymotion.save_original(tinymotion.adapter(positions=32), tmp_path / "mm_sd_v15_v2.safetensors")
    lora_file("original", tmp_path / "zoom-in.safetensors")
    (block,) = re.findall(r"```sh\n(sdkit animate \"animatediff.*?)```", PAGE, re.DOTALL)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 3
    for words in commands:
        option = dict(itertools.pairwise(words))
        clip = sdkit.animate(
            words[2], small(model), Request(option["--prompt"], steps=1), frames=int(option["--frames"]),
            fps=option["--fps"], loop=option.get("--loop", "none"),
        )  # fmt: skip
        assert clip.plan.evaluations and clip.plan.window == int(option["--frames"])
        known = {word for word in words if word.startswith("--")}
        assert known <= {"--model", "--prompt", "--frames", "--fps", "--loop", "--out"}
