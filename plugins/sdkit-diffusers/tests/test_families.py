"""Every family from the shell, its licence from a header alone, its levels, and what a request can tell it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import diffusers
import pytest
import tiny
import torch
from parity import PROMPT, assert_same, ddim, drawn, grid_of, ours, picture, second_draws

import sdkit
from sdkit_diffusers import schedules
from sdkit_diffusers.family import StableDiffusion
from sdkit_diffusers.modifiers import EmbeddedGuidance, RefinerScores, Sizes
from sdkit_diffusers.schedules import SizedFlow, flow, trained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
XL = diffusers.StableDiffusionXLPipeline
TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
# family: parts, diffusers' pipeline, the licences' name, the name of the original layout
FAMILIES: dict[str, tuple[Any, Any, str, str]] = {
    "sd1": (lambda place: tiny.sd1(), diffusers.StableDiffusionPipeline, "sd1", "sd1"),
    "sd1-paints": (lambda place: tiny.sd1(inputs=9), diffusers.StableDiffusionInpaintPipeline, "sd1", "sd1"),
    "sd2": (lambda place: tiny.sd2(), diffusers.StableDiffusionPipeline, "sd2", "sd2"),
    "sdxl": (lambda place: tiny.sdxl(), XL, "sdxl", "sdxl"),
    "sdxl-refiner": (
        lambda place: tiny.refiner(), diffusers.StableDiffusionXLImg2ImgPipeline, "sdxl-refiner", "sdxl-refiner"
    ),
    "sd3": (lambda place: tiny.sd3(place), diffusers.StableDiffusion3Pipeline, "sd3", "sd3"),
    "sd35": (lambda place: tiny.sd3(place, newer=True), diffusers.StableDiffusion3Pipeline, "sd35", "sd3"),
    "flux-schnell": (lambda place: tiny.flux(place), diffusers.FluxPipeline, "flux-schnell", "flux"),
    "flux-dev": (lambda place: tiny.flux(place, dev=True), diffusers.FluxPipeline, "flux-dev", "flux"),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(family, folder, file) of a tiny model."""
    family, place = str(request.param), tmp_path_factory.mktemp(str(request.param))
    parts, kind, _, layout = FAMILIES[family][0](place / "t5"), *FAMILIES[family][1:]
    return (
        family,
        tiny.save_folder(kind, parts, place / "folder"),
        tiny.save_original(layout, parts, place / "one.safetensors"),
    )


def shell(*arguments: str) -> int:
    from sdkit.cli import main

    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_generate_from_the_shell(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, folder, file = made
    picture().save(tmp_path / "start.png")
    picture().convert("L").save(tmp_path / "mask.png")
    paints = (
        ["--image", str(tmp_path / "start.png"), "--mask", str(tmp_path / "mask.png")] if "paints" in family else []
    )
    # a single file brings no tokenizer of T5, which Stable Diffusion 3 does without and FLUX.1 does not
    for name, model in (("folder", folder), ("file", file)):
        out = tmp_path / f"{name}.png"
        code = shell(
            "generate", "a fox", "--model", str(model), "--size", "64x64", "--steps", "2", "--seed", "1",
            *paints, "--out", str(out),
        )  # fmt: skip
        if name == "file" and family.startswith("flux"):
            assert code == 2 and "t5_tokenizer=FOLDER" in capsys.readouterr().err
            continue
        assert code == 0
        assert sdkit.read_manifest(out).licence == StableDiffusion().licence(model).id


def test_the_licence_is_read_from_a_header_alone(
    made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family, folder, file = made
    name, model = FAMILIES[family][2], sdkit.load(folder, sha256=False)
    assert model.spec.family == name
    assert StableDiffusion().licence(folder) == StableDiffusion().licence(file) == model.spec.licence
    assert StableDiffusion().licences()[name] == model.spec.licence
    monkeypatch.setattr(StableDiffusion, "load", lambda *args, **kwargs: pytest.fail("a whole model was loaded"))
    capsys.readouterr()
    for path in (folder, file):
        assert shell("licence", "show", str(path)) == 0
        assert capsys.readouterr().out.startswith(model.spec.licence.name)
    assert shell("licence", "check", "--commercial", "--revenue", "2000000", str(folder)) == {
        "sd3": 1, "sd35": 1, "flux-dev": 1
    }.get(name, 0)  # fmt: skip


def test_a_family_by_name_and_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("licence", "check", "--commercial", "--revenue", "2000000", "sd35") == 1
    assert "USD 1,000,000" in capsys.readouterr().out
    (tmp_path / "x.safetensors").write_bytes(b"12345678{}")
    assert shell("licence", "show", str(tmp_path / "x.safetensors")) == 2
    assert "cut off" in capsys.readouterr().err


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_levels_of_stable_diffusion_3_are_those_of_diffusers(steps: int) -> None:
    """The shift is the schedule's, once: the recommended spacing adds none, and `flow-shift` sees that it is there."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    how = flow(dict(scheduler.config), shift=None, time_scale=1000.0, spacing="uniform", side=128, patch=2)
    scheduler.set_timesteps(steps)
    assert (how.scheduler, how.spacing) == ("euler", "uniform")
    grid = sdkit.registry().make("spacing", how.spacing)(how.schedule, steps)
    assert [level.sigma for level in grid] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    trailing = sdkit.registry().make("spacing", "trailing")(how.schedule, steps)
    named = sdkit.registry().make("spacing", "flow-shift(shift=3.0)")(how.schedule, steps)
    assert [level.sigma for level in named] == pytest.approx([level.sigma for level in trailing])


@pytest.mark.parametrize("size", [(1024, 1024), (512, 512), (768, 1344), (256, 256)])
def test_levels_of_flux_dev_depend_on_the_size(size: tuple[int, int], tmp_path: Path) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    how = flow(dict(scheduler.config), shift=None, time_scale=1.0, spacing="trailing", side=128, patch=2)
    assert isinstance(how.schedule, SizedFlow)
    schedule = how.schedule.sized((1, 16, size[1] // 8, size[0] // 8))
    tokens = (size[0] // 16) * (size[1] // 16)
    scheduler.set_timesteps(sigmas=[1 - k / 10 for k in range(10)], mu=calculate_shift(tokens))
    grid = sdkit.registry().make("spacing", how.spacing)(schedule, 10)
    assert [level.sigma for level in grid] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    if size == (1024, 1024):
        assert how.schedule.level(0.5) == schedule.level(0.5) and how.schedule.noisiest == schedule.noisiest


def test_a_pipeline_takes_the_levels_of_its_size(tmp_path: Path) -> None:
    parts = tiny.flux(tmp_path / "t5", dev=True)
    model = sdkit.load(tiny.save_folder(diffusers.FluxPipeline, parts, tmp_path / "folder"), sha256=False)
    pipe = sdkit.pipeline(model)
    grids = [pipe.plan(sdkit.Request("a", steps=4, size=size)).grid for size in ((64, 64), (1024, 1024))]
    assert grids[0][1].sigma < grids[1][1].sigma
    given = sdkit.load(tmp_path / "folder", sha256=False, shift=2.0)
    assert given.schedule == attrs.evolve(given.schedule, shift=2.0)  # type: ignore[misc]


CONFIGS = [
    ({"_class_name": "PNDMScheduler", "timestep_spacing": "leading", "steps_offset": 1}, ("plms", "leading")),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, ("dpmpp-2m", "karras")),
    ({"_class_name": "LCMScheduler"}, ("lcm", "lcm")),
    ({**TURBO}, ("euler-ancestral", "trailing")),
    ({"_class_name": "SomebodysScheduler"}, ("euler", "uniform")),
]


@pytest.mark.parametrize(("config", "expected"), CONFIGS)
def test_the_recommended_sampler_is_what_the_folder_says(config: Any, expected: tuple[str, str]) -> None:
    how = trained({**tiny.BETAS, **config})
    assert (how.scheduler, how.spacing) == expected
    sdkit.registry().make("scheduler", how.scheduler)
    sdkit.registry().make("spacing", how.spacing)


def test_without_the_samplers_plugin_the_core_has_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdkit_samplers.names", None)
    found = [schedules._recommended(config) for config, _ in CONFIGS]
    assert found == [
        ("euler", "uniform"), ("dpmpp-2m", "uniform"), ("euler", "uniform"), ("euler", "trailing"), ("euler", "uniform")
    ]  # fmt: skip


# --- what a request tells ---------------------------------------------------------------------------------------------


def test_flux_reads_the_scale_of_a_request(tmp_path: Path) -> None:
    parts = tiny.flux(tmp_path / "t5", dev=True)
    model = sdkit.load(tiny.save_folder(diffusers.FluxPipeline, parts, tmp_path / "folder"), sha256=False)
    noise = drawn(1, 16, 8, 8)
    theirs = tiny.pipeline(diffusers.FluxPipeline, parts)(
        PROMPT, guidance_scale=7.0, height=64, width=64, num_inference_steps=3, output_type="latent",
        max_sequence_length=256, latents=diffusers.FluxPipeline._pack_latents(noise, 1, 16, 8, 8),
    ).images  # fmt: skip
    request = sdkit.Request(PROMPT, steps=3, size=(64, 64), modifiers=("embedded-guidance(scale=7.0)",))
    mine = ours(model, noise, request)
    assert_same(mine, diffusers.FluxPipeline._unpack_latents(theirs, 64, 64, 8))
    assert not torch.allclose(mine, ours(model, noise, attrs.evolve(request, modifiers=())), atol=1e-3)
    with pytest.raises(sdkit.InvalidRequest, match="only|Only"):
        ours(model, noise, attrs.evolve(request, modifiers=(Sizes(),)))


def test_lcm_reads_the_scale_of_a_request(tmp_path: Path) -> None:
    file = tiny.save_original("sd1", tiny.sd1(guidance_width=32), tmp_path / "one.safetensors")
    request = sdkit.Request("a fox", steps=2, size=(64, 64), modifiers=("prompts", EmbeddedGuidance(4.0)))
    model, other = sdkit.load(file, sha256=False), sdkit.load(file, sha256=False, embedded_guidance=4.0)
    mine = ours(model, drawn(1, 4, 8, 8), request, scheduler="euler")
    assert torch.equal(mine, ours(other, drawn(1, 4, 8, 8), attrs.evolve(request, modifiers=()), scheduler="euler"))
    plain = sdkit.load(tiny.save_original("sd1", tiny.sd1(), tmp_path / "two.safetensors"), sha256=False)
    with pytest.raises(sdkit.InvalidRequest, match="reads no guidance scale"):
        sdkit.pipeline(plain)(request)


def test_xl_is_told_the_sizes_of_a_request(tmp_path: Path) -> None:
    parts = tiny.sdxl()
    model = sdkit.load(tiny.save_folder(XL, parts, tmp_path / "folder"), sha256=False)
    scheduler, noise = ddim(), drawn(1, 4, 8, 8)
    grid = grid_of(scheduler, model.schedule, 4)
    theirs = tiny.pipeline(XL, {**parts, "scheduler": scheduler})(
        PROMPT, guidance_scale=3.0, num_inference_steps=4, latents=noise * grid[0].sigma, output_type="latent",
        original_size=(200, 300), crops_coords_top_left=(5, 7), target_size=(128, 96),
    ).images  # fmt: skip
    sizes = Sizes(original=(300, 200), crop=(7, 5), target=(96, 128))
    request = sdkit.Request(PROMPT, guidance=3.0, size=(64, 64), modifiers=(sizes,))
    assert_same(ours(model, noise, request, scheduler="ddim", spacing=grid), theirs)
    result = sdkit.pipeline(model, scheduler="ddim", spacing=grid)(request)
    again = sdkit.from_json(sdkit.to_json(result.manifest), sdkit.Manifest)
    assert again.request.modifiers == (sizes,)
    with pytest.raises(sdkit.ParameterError, match="two whole numbers"):
        Sizes(original=(3.5, 2))  # type: ignore[arg-type]
    with pytest.raises(sdkit.InvalidRequest, match="Only the refiner"):
        sdkit.pipeline(model)(attrs.evolve(request, modifiers=(RefinerScores(),)))


def test_the_refiner_is_told_the_scores_of_a_request(tmp_path: Path) -> None:
    parts, kind = tiny.refiner(), diffusers.StableDiffusionXLImg2ImgPipeline
    settings = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    model = sdkit.load(tiny.save_original("sdxl-refiner", parts, tmp_path / "one.safetensors"), sha256=False)
    scheduler = ddim()
    grid = grid_of(scheduler, model.schedule, 8)
    theirs = tiny.pipeline(kind, {**parts, **settings, "scheduler": scheduler})(
        [PROMPT] * 2, negative_prompt=["blurry"] * 2, guidance_scale=3.0, output_type="latent", num_inference_steps=8,
        image=[picture()] * 2, strength=0.5, aesthetic_score=9.0, negative_aesthetic_score=1.5,
        original_size=(64, 64), target_size=(64, 64),
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    ).images  # fmt: skip
    request = sdkit.Request(
        PROMPT, negative="blurry", guidance=3.0, seeds=(1, 2), image=picture(), strength=0.5,
        modifiers=("refiner-scores(score=9.0, negative=1.5)",),
    )  # fmt: skip
    assert_same(ours(model, second_draws(), request, scheduler="ddim", spacing=grid), theirs)


# --- marks and old files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "kind", "name"), [(tiny.sd2, diffusers.StableDiffusionPipeline, "sd-turbo"),
                                                    (tiny.sdxl, XL, "sdxl-turbo")])  # fmt: skip
def test_turbo_is_seen_by_its_scheduler(make: Any, kind: Any, name: str, tmp_path: Path) -> None:
    folder = tiny.save_folder(kind, make(), tmp_path / "folder")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **TURBO}))
    spec = sdkit.load(folder, sha256=False).spec
    assert (spec.family, spec.guidance, spec.steps) == (name, None, 4)
    assert StableDiffusion().licence(folder) == spec.licence and spec.licence.id == "Stability-AI-Turbo"


def test_marks_of_velocity_and_zero_terminal_snr(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = tiny.save_original("sdxl", tiny.sdxl(), tmp_path / "one.safetensors")
    plain = sdkit.load(file, sha256=False)
    assert plain.spec.prediction == "epsilon" and plain.schedule.noisiest.alpha > 0
    tensors = load_file(file)
    for marks, prediction, ends in ((["v_pred"], "velocity", False), (["v_pred", "ztsnr"], "velocity", True)):
        save_file({**tensors, **{mark: torch.tensor([]) for mark in marks}}, tmp_path / "marked.safetensors")
        model = sdkit.load(tmp_path / "marked.safetensors", sha256=False)
        assert model.spec.prediction == prediction
        assert (model.schedule.noisiest.alpha == 0) == ends
        request = sdkit.Request("a fox", steps=2, size=(64, 64))
        assert bool(torch.isfinite(sdkit.pipeline(model, spacing="trailing")(request).latents).all())


def test_xl_that_paints_with_nine_channels(tmp_path: Path) -> None:
    parts = tiny.sdxl()
    parts["unet"] = tiny.unet(**{**dict(parts["unet"].config), "in_channels": 9})
    model = sdkit.load(tiny.save_original("sdxl", parts, tmp_path / "one.safetensors"), sha256=False)
    kind, scheduler = diffusers.StableDiffusionXLInpaintPipeline, ddim()
    grid = grid_of(scheduler, model.schedule, 4)
    hole = picture().convert("L").point(lambda value: 255 * (value > 127))
    theirs = tiny.pipeline(kind, {**parts, "scheduler": scheduler})(
        [PROMPT] * 2, guidance_scale=3.0, output_type="latent", num_inference_steps=4, image=[picture()] * 2,
        mask_image=[hole] * 2, strength=0.5, height=64, width=64, original_size=(64, 64), target_size=(64, 64),
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    ).images  # fmt: skip
    request = sdkit.Request(PROMPT, guidance=3.0, seeds=(1, 2), image=picture(), mask=hole, strength=0.5)
    assert_same(ours(model, second_draws(), request, scheduler="ddim", spacing=grid), theirs)


def test_an_autoencoder_saved_with_old_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.save_folder(diffusers.StableDiffusionPipeline, tiny.sd1(), tmp_path / "folder")
    latents = drawn(1, 4, 8, 8)
    expected = sdkit.load(folder, sha256=False).autoencoder(latents)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(weights)
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, weights)
    assert torch.equal(sdkit.load(folder, sha256=False).autoencoder(latents), expected)


COMPILED = """
import sys, torch, sdkit
noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
plain, compiled = (sdkit.load(sys.argv[1], sha256=False, compile=compile) for compile in (False, True))
assert compiled.denoiser.network.network._compiled_call_impl is not None
level, made = plain.schedule.level(500), []
with torch.no_grad():
    for model in (plain, compiled):
        made.append(model.denoiser(noise, level, model.encoder(["a fox"])))
from torch._dynamo.utils import counters
assert counters["stats"]["unique_graphs"] >= 1, counters
torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-3)
"""


@pytest.mark.slow
def test_compiled_predicts_the_same(tmp_path: Path) -> None:
    """In a process of its own: torch's compiler draws from the global generator, which is refused here."""
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    file = tiny.save_original("sd1", tiny.sd1(), tmp_path / "one.safetensors")
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED, str(file)], check=True)


def test_a_tokenizer_of_vocabulary_and_merges(tmp_path: Path) -> None:
    from sdkit_diffusers.tokens import clip_tokenizer, read_tokenizer

    ours_, model = clip_tokenizer(), json.loads(clip_tokenizer().backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    read = read_tokenizer(tmp_path, length=77)
    for text in (PROMPT, "", "Füße, 3 naïve cats — don't!", "漢字 🦊"):
        assert read([text]).tolist() == ours_([text]).tolist()
    assert (read.start, read.end, read.pad) == (49406, 49407, 49407)
