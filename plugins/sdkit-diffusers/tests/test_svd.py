"""Stable Video Diffusion: against diffusers' own pipeline, and what a clip of it keeps to."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import tinyclips
import torch
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as upstream
from parity import Given, assert_same, drawn
from PIL import Image
from tinyclips import Kept, shell
from torch import Tensor

import sdkit
from sdkit.testing import FrameConformance, ParametrizationConformance
from sdkit_diffusers import svdclip
from sdkit_diffusers.svd import ContinuousVelocity, FramesAutoencoder, shrunk
from sdkit_diffusers.svdclip import Svd

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FRAMES = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("svd")


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return tinyclips.svd()


@pytest.fixture(scope="module")
def folder(parts: Any, place: Path) -> Path:
    return tiny.save_folder(diffusers.StableVideoDiffusionPipeline, parts, place / "my-svd")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return sdkit.load(folder)


def picture(width: int = 64, height: int = 48) -> Image.Image:
    pixels = Image.fromarray((drawn(6, 8, 3, seed=8).sigmoid() * 255).to(torch.uint8).numpy())
    return pixels.resize((width, height), Image.Resampling.BICUBIC)


def clip_latents(pipe: Any, generator: Any = None, *, fps: int = 7, **more: Any) -> Tensor:
    keeper, asked = Kept(), sdkit.Request("", image=picture(), **{"steps": 5, **more})
    timeline, prompts = sdkit.Timeline(FRAMES, fps), sdkit.PromptTrack("")
    job = sdkit.FrameJob(sdkit.image_source(pipe), asked, timeline, prompts, keeper=keeper)
    (generator or Svd()).step(job, 0, {})
    return keeper.found[0]


def clip_of(model: Any, text: str = "svd", *, frames: int = FRAMES, **more: Any) -> sdkit.Clip:
    asked = sdkit.Request("", **{"image": picture(), "steps": 1, **more})
    return sdkit.animate(text, sdkit.pipeline(model), asked, frames=frames, fps=7)


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guidance", "scales"), [("0:(1), max_f:(3)", (1.0, 3.0)), ("1", (1.0, 1.0)), ("0:(2), max_f:(1.5)", (2.0, 1.5))]
)
def test_image_to_video(
    model: Any, parts: Any, guidance: str, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise in the still is diffusers' own draw; its levels begin a rounding error above ours, and so its noise."""
    replayed = torch.Generator().manual_seed(3)
    pixels = torch.randn((1, 3, 48, 64), generator=replayed)
    monkeypatch.setattr(svdclip, "noisy", lambda image, share, seed: image + share * pixels)
    noise = drawn(1, 4, FRAMES, 6, 8)
    start = noise.transpose(1, 2) * (700 / (700**2 + 1) ** 0.5)
    theirs = tiny.pipeline(diffusers.StableVideoDiffusionPipeline, parts)(
        picture(), height=48, width=64, num_frames=FRAMES, num_inference_steps=5, fps=7, motion_bucket_id=100,
        noise_aug_strength=0.05, min_guidance_scale=scales[0], max_guidance_scale=scales[1], latents=start,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).frames  # fmt: skip
    pipe = sdkit.pipeline(model, noise=lambda seeds, grid: Given(noise))
    mine = clip_latents(pipe, Svd(guidance=guidance, motion=100, noise=0.05))
    assert mine.shape == (1, 4, FRAMES, 6, 8)
    assert_same(mine, theirs.transpose(1, 2))


@pytest.mark.parametrize("chunk", [3, 8])
def test_frames_are_those_of_diffusers_decoder(model: Any, parts: Any, chunk: int) -> None:
    import attrs

    latents = drawn(1, 4, FRAMES, 6, 8)
    mine = torch.cat(list(attrs.evolve(model.autoencoder, chunk=chunk).pieces(latents)), dim=2)
    pipe = tiny.pipeline(diffusers.StableVideoDiffusionPipeline, parts)
    theirs = pipe.decode_latents(latents.transpose(1, 2), FRAMES, chunk)
    torch.testing.assert_close(mine, (theirs / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 48), (300, 230), (1024, 576)])
def test_what_clip_sees_is_what_diffusers_shows_it(size: tuple[int, int]) -> None:
    image = drawn(1, 3, size[1], size[0]).clamp(-1, 1)
    theirs = upstream._resize_with_antialiasing(image, (224, 224))
    torch.testing.assert_close(shrunk(image, 224), theirs, rtol=0, atol=1e-5)


def test_levels_are_those_of_diffusers(model: Any, parts: Any) -> None:
    scheduler = parts["scheduler"]
    scheduler.set_timesteps(25)
    grid = sdkit.pipeline(model).plan(sdkit.Request("", steps=25, size=(64, 48))).grid
    torch.testing.assert_close(
        torch.tensor([level.sigma for level in grid]), scheduler.sigmas.float(), rtol=1e-5, atol=1e-6
    )
    told = torch.tensor([ContinuousVelocity()(level).time for level in grid[:-1]])
    torch.testing.assert_close(told, scheduler.timesteps, rtol=1e-5, atol=1e-5)


# --- what a clip is made of -------------------------------------------------------------------------------------------


def test_every_number_the_model_is_told_changes_the_clip(model: Any) -> None:
    pipe = sdkit.pipeline(model)
    plain = clip_latents(pipe)
    assert torch.equal(plain, clip_latents(pipe))
    for other, more in (
        (Svd(motion=20), {}),
        (Svd(noise=0.4), {}),
        (Svd(guidance=2), {}),
        (Svd(), {"fps": 24}),
        (Svd(), {"seeds": (5,)}),
    ):
        assert float((clip_latents(pipe, other, **more) - plain).abs().max()) > 1e-4, other
    assert torch.equal(clip_latents(pipe, Svd(fps=7), fps=24), plain)


def test_the_noise_of_the_still_is_none_of_the_clips() -> None:
    still = svdclip.noisy(torch.zeros(1, 3, 16, 16), 1.0, 5)
    start = sdkit.AddressedNoise((5,)).initial(still)
    assert abs(float((still * start).mean())) < 0.15 < float((still * still).mean())
    assert torch.equal(still, svdclip.noisy(torch.zeros(1, 3, 16, 16), 1.0, 5))


def test_a_first_frame_that_is_guided_by_one_has_no_need_of_a_second_pass(model: Any) -> None:
    batches: list[int] = []
    network = model.denoiser.network.network
    handle = network.register_forward_pre_hook(lambda _, args: batches.append(args[0].shape[0]))
    try:
        clip_latents(sdkit.pipeline(model), Svd(guidance=1), steps=2)
        clip_latents(sdkit.pipeline(model), Svd(), steps=2)
    finally:
        handle.remove()
    assert batches == [1, 1, 2, 2]


def test_frames_are_decoded_when_they_are_asked_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    decode = type(model.autoencoder.network).decode
    monkeypatch.setattr(
        type(model.autoencoder.network),
        "decode",
        lambda self, z, count, **more: lengths.append(count) or decode(self, z, count, **more),
    )
    clip = clip_of(model, "svd(chunk=2)", frames=5)
    assert lengths == [] and clip.plan.window == 5
    running = iter(clip)
    assert len(list(islice(running, 2))) == 2 and lengths == [2]
    assert len(list(running)) == 3 and lengths == [2, 2, 1]


def test_the_plan_states_evaluations_and_memory(model: Any) -> None:
    plan = clip_of(model, "svd(chunk=2)", frames=5, steps=3).plan
    assert (plan.evaluations, plan.peak_bytes) == (3, 4 * 4 * 4 * 5 * 6 * 8 + 2 * 64 * 48 * 3 * 5)


def test_more_frames_than_were_learned_are_told(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(clip_of(model, frames=6))) == 6 and "learned" not in caplog.text
    clip_of(model, frames=7)
    assert "This model learned 6 frames together; 7 are possible" in caplog.text


@pytest.mark.parametrize("scheduler", ["heun", "dpmpp-2m", "euler-ancestral"])
def test_other_solvers_move_it_too(model: Any, scheduler: str) -> None:
    assert bool(torch.isfinite(clip_latents(sdkit.pipeline(model), steps=3, scheduler=scheduler)).all())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_any_work(model: Any) -> None:
    for message, more in (
        ("moves a picture: give it one", {"image": None, "size": (64, 48)}),
        ("reads no text and guides every frame", {"guidance": 7.0}),
        ("reads no text and guides every frame", {"negative": "blurry"}),
        ("multiples of 8; near is 64x48", {"image": picture(60, 48)}),
        ("A strength means nothing", {"strength": 0.5}),
    ):
        with pytest.raises(sdkit.InvalidRequest, match=message):
            clip_of(model, **more)
    with pytest.raises(sdkit.InvalidRequest, match="at least 2 frames"):
        clip_of(model, frames=1)
    with pytest.raises(sdkit.InvalidRequest, match="does not close"):
        asked = sdkit.Request("", image=picture())
        sdkit.animate("svd", sdkit.pipeline(model), asked, frames=4, loop="closed")
    for text in ("svd(motion=-1)", "svd(noise=2)", "svd(fps=0.5)", "svd(chunk=1.5)", "svd(guidance='0:(')"):
        with pytest.raises(sdkit.ParameterError):
            sdkit.registry().make("frames", text)


def test_it_makes_no_pictures_of_text(model: Any) -> None:
    with pytest.raises(sdkit.InvalidRequest, match="reads no text and makes no pictures"):
        sdkit.pipeline(model)(sdkit.Request("a fox", size=(64, 48), steps=1))


def test_generators_keep_to_their_own_models(model: Any) -> None:
    with pytest.raises(sdkit.InvalidRequest, match="'my-svd' makes clips with the generator svd, not with ltx"):
        sdkit.animate("ltx", sdkit.pipeline(model), "a fox", frames=9)
    with pytest.raises(sdkit.InvalidRequest, match="'emoji' makes pictures"):
        clip_of(sdkit.load("emoji"), image=picture(128, 128))


# --- loading, the shell, and the kit's rules --------------------------------------------------------------------------


def test_facts_of_the_model(model: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = model.spec
    assert (spec.family, spec.spacing, spec.steps, spec.guidance) == ("svd", "karras", 25, None)
    assert spec.latent.size == (1024, 576) and spec.licence.id == "Stability-AI-SVD"
    assert shell("licence", "check", "--commercial", str(folder)) == 2
    assert "Non-Commercial Community License, 2023-11-21, or Community License" in capsys.readouterr().out


def test_damaged_folders_are_refused_from_the_headers_alone(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "image_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(sdkit.FileError, match="cut off: 10 bytes are missing"):
        sdkit.load(copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "image_encoder": [None, None]}))
    with pytest.raises(sdkit.FileError, match="lacks its image_encoder"):
        sdkit.load(copy)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "epsilon"}))
    with pytest.raises(sdkit.FileError, match="are 'epsilon' and 'continuous'"):
        sdkit.load(other)
    path.unlink()
    assert sdkit.load(other, sha256=False).schedule.noisiest.sigma == 700
    seen = other / "feature_extractor" / "preprocessor_config.json"
    seen.write_text('{"image_mean": [1, 2]}')
    with pytest.raises(sdkit.FileError, match="image_mean and image_std are three numbers each"):
        sdkit.load(other, sha256=False)


def test_a_clip_from_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture().save(tmp_path / "still.png")
    out = tmp_path / "moved.webp"
    code = shell(
        "animate", "svd", "--model", str(folder), "--image", str(tmp_path / "still.png"), "--frames", "5", "--fps", "7",
        "--curve", "guidance=0:(1), 4:(2.5)", "--curve", "motion=40", "--steps", "2", "--seed", "3", "--out", str(out),
    )  # fmt: skip
    assert code == 0 and "Non-Commercial" in capsys.readouterr().err
    frames, manifest = sdkit.registry().make("frame-sink", "webp").read(out)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 5
    said = sdkit.ClipManifest.from_json(manifest)
    assert said.generator == "svd(guidance='0:(1), 4:(2.5)', motion=40)" and said.licence == "Stability-AI-SVD"
    assert said.request.image is not None


def test_a_render_taken_up_makes_no_latents_again(model: Any, tmp_path: Path) -> None:
    straight = [frame.image for frame in clip_of(model)]
    asked = sdkit.Request("", image=picture(), steps=1)
    running = iter(sdkit.animate("svd", sdkit.pipeline(model), asked, frames=FRAMES, fps=7, journal=tmp_path / "j"))
    next(running)
    running.close()  # type: ignore[attr-defined]

    def refused() -> None:
        raise AssertionError("the model was asked again")

    resumed = sdkit.animate(
        "svd", sdkit.pipeline(model), asked, frames=FRAMES, fps=7, journal=tmp_path / "j", resume=True, tick=refused
    )
    assert all(np.array_equal(one, frame.image) for one, frame in zip(straight, resumed, strict=True))


class TestSvd(FrameConformance):
    frames = Svd()


class TestContinuousVelocity(ParametrizationConformance):
    parametrization = ContinuousVelocity()


def test_the_autoencoder_of_a_single_frame_gives_a_picture(model: Any) -> None:
    assert isinstance(model.autoencoder, FramesAutoencoder)
    image = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 255
    latents = model.autoencoder.encode(image)
    assert latents.shape == (1, 4, 1, 6, 8) and model.autoencoder(latents).shape == (1, 3, 48, 64)
