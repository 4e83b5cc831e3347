"""LTX-Video: against diffusers' own pipelines, and what a clip of it keeps to."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import diffusers
import numpy as np
import pytest
import tiny
import tinyclips
import torch
from parity import NEGATIVE, PROMPT, Given, assert_same, drawn
from tinyclips import Kept, shell

import sdkit
from sdkit.testing import FrameConformance, SpacingConformance
from sdkit_diffusers.ltx import ClipAutoencoder
from sdkit_diffusers.ltxclip import Ltx
from sdkit_diffusers.stretched import Stretched

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ltx")


@pytest.fixture(scope="module")
def parts(place: Path) -> dict[str, Any]:
    return tinyclips.ltx(place / "t5")


@pytest.fixture(scope="module")
def folder(parts: Any, place: Path) -> Path:
    return tiny.save_folder(diffusers.LTXPipeline, parts, place / "my-ltx")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return sdkit.load(folder)


@pytest.fixture(scope="module")
def scaled(place: Path) -> tuple[Any, Path]:
    """Another factor of the latents than 1: the parts and their folder."""
    made = tinyclips.ltx(place / "scaled-t5", vae=tinyclips.ltx_autoencoder(scaling_factor=0.7))
    return made, tiny.save_folder(diffusers.LTXPipeline, made, place / "scaled")


@pytest.fixture(scope="module")
def timed(place: Path) -> tuple[Any, Path]:
    """A decoder that takes off the last noise itself: the parts and their folder."""
    made = tinyclips.ltx(place / "timed-t5", terminal=None, vae=tinyclips.ltx_timed_autoencoder())
    return made, tiny.save_folder(diffusers.LTXPipeline, made, place / "timed")


def picture(width: int = 64, height: int = 64) -> Any:
    from PIL import Image

    return Image.fromarray((drawn(height, width, 3, seed=8).sigmoid() * 255).to(torch.uint8).numpy())


def unpacked(latents: Any, frames: int = 3) -> Any:
    return diffusers.LTXPipeline._unpack_latents(latents, frames, 2, 2, 1, 1)


def asked(**more: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "width": 64, "height": 64, "num_frames": 17, "frame_rate": 12,
        "num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent", **more,
    }  # fmt: skip


def request(**more: Any) -> sdkit.Request:
    given = {"size": (64, 64), "guidance": 3.0, "negative": NEGATIVE, "steps": 5, **more}
    return sdkit.Request(PROMPT, **given)


def pipe_from(model: Any, noise: Any, **slots: Any) -> Any:
    return sdkit.pipeline(model, noise=lambda seeds, grid: Given(noise), **slots)


def job_of(pipe: Any, asked_for: sdkit.Request, frames: int = 17, fps: int = 12) -> tuple[Any, Kept]:
    keeper = Kept()
    timeline, prompts = sdkit.Timeline(frames, fps), sdkit.PromptTrack(asked_for.prompt)
    return sdkit.FrameJob(sdkit.image_source(pipe), asked_for, timeline, prompts, keeper=keeper), keeper


def clip_latents(pipe: Any, asked_for: sdkit.Request, frames: int = 17) -> torch.Tensor:
    job, keeper = job_of(pipe, asked_for, frames)
    Ltx().step(job, 0, {})
    (made,) = keeper.found
    return made


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_text_to_video(model: Any, parts: Any, guidance: float) -> None:
    noise = drawn(1, 8, 3, 2, 2)
    packed = diffusers.LTXPipeline._pack_latents(noise, 1, 1)
    theirs = tiny.pipeline(diffusers.LTXPipeline, parts)(**asked(latents=packed, guidance_scale=guidance)).frames
    negative = NEGATIVE if guidance > 1 else ""
    mine = clip_latents(pipe_from(model, noise), request(guidance=guidance, negative=negative))
    assert mine.ndim == 5
    assert_same(mine, unpacked(theirs))


def test_image_to_video(model: Any, parts: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    pipe = tiny.pipeline(diffusers.LTXImageToVideoPipeline, parts)
    theirs = pipe(**asked(), image=picture(), generator=generator).frames
    replayed = torch.Generator().manual_seed(3)
    torch.randn((1, 8, 1, 2, 2), generator=replayed)  # for the posterior of the picture
    noise = torch.randn((1, 8, 3, 2, 2), generator=replayed)
    mine = clip_latents(pipe_from(model, noise), request(image=picture(), size=None))
    assert_same(mine, unpacked(theirs))


def test_frames_are_those_of_diffusers_decoder(scaled: tuple[Any, Path]) -> None:
    parts, made = scaled[0], sdkit.load(scaled[1])
    latents = drawn(1, 8, 3, 2, 2)
    mine = made.autoencoder(latents)
    assert mine.shape == (1, 3, 17, 64, 64)
    vae = parts["vae"]
    z = diffusers.LTXPipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, 0.7)
    theirs = vae.decode(z, None, return_dict=False)[0]
    torch.testing.assert_close(mine, (theirs / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    image = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 255
    again = made.autoencoder.encode(image)  # type: ignore[attr-defined]
    assert again.shape == (1, 8, 1, 2, 2)
    z = vae.encode(image[:, :, None] * 2 - 1).latent_dist.mode()
    wanted = diffusers.LTXPipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, 0.7)
    torch.testing.assert_close(again, wanted, rtol=0, atol=1e-5)


def test_a_decoder_that_takes_off_the_last_noise_itself(timed: tuple[Any, Path]) -> None:
    parts, made = timed[0], sdkit.load(timed[1])
    assert made.spec.spacing == "trailing"
    latents, decoder = drawn(1, 8, 2, 2, 2), made.autoencoder
    assert isinstance(decoder, ClipAutoencoder)
    (mine,) = decoder.pieces(latents, 5)
    vae = parts["vae"]
    z = latents * vae.latents_std.reshape(1, -1, 1, 1, 1) + vae.latents_mean.reshape(1, -1, 1, 1, 1)
    noise = sdkit.AddressedNoise((5,), stream="decode").initial(z)
    theirs = vae.decode((1 - 0.025) * z + 0.025 * noise, torch.tensor([0.05]), return_dict=False)[0]
    torch.testing.assert_close(mine, (theirs / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    (other,) = decoder.pieces(latents, 6)
    assert not torch.equal(mine, other)


# --- decoding in parts ------------------------------------------------------------------------------------------------


def test_a_clip_decoded_in_parts(model: Any) -> None:
    latents = drawn(1, 8, 24, 1, 1)
    (whole,) = attrs.evolve(model.autoencoder, chunk=0).pieces(latents, 0)
    for chunk, overlap in ((4, 1), (5, 3), (23, 2), (24, 2), (2, 1)):
        parts = list(attrs.evolve(model.autoencoder, chunk=chunk, overlap=overlap).pieces(latents, 0))
        assert sum(part.shape[2] for part in parts) == whole.shape[2] == 185
        assert max(part.shape[2] for part in parts) <= 8 * (chunk - 1) + 1
    # farther from a border between parts than what the decoder sees (8 elements of this one), pixels are the same
    joined = torch.cat(list(attrs.evolve(model.autoencoder, chunk=18, overlap=12).pieces(latents, 0)), dim=2)
    assert float((joined - whole).abs().max()) > 1e-4
    for frames in (slice(0, 8 * 6 - 7), slice(8 * 18, None)):
        torch.testing.assert_close(joined[:, :, frames], whole[:, :, frames], rtol=0, atol=1e-5)


def test_parts_fade_into_each_other() -> None:
    """Of a decoder that answers with the number of the part, the frames that two parts share go from one to the next."""

    class Numbers:
        config = diffusers.configuration_utils.FrozenDict({"timestep_conditioning": False})
        dtype = torch.float32
        latents_mean, latents_std = torch.zeros(1), torch.ones(1)

        def __init__(self) -> None:
            self.calls = 0

        def decode(self, z: torch.Tensor, time: None, return_dict: bool) -> tuple[torch.Tensor]:
            self.calls += 1
            return (torch.full((1, 3, 8 * (z.shape[2] - 1) + 1, 1, 1), 0.5 * self.calls - 1),)

    from sdkit_diffusers.placement import Placement

    latent = sdkit.LatentSpec(1, 32, (32, 32), frames=(1,))
    decoder = ClipAutoencoder(Numbers(), latent, Placement("cpu", ()), 8, chunk=4, overlap=2)
    made = torch.cat(list(decoder.pieces(torch.zeros(1, 1, 6, 1, 1), 0)), dim=2)[0, 0, :, 0, 0]
    assert made.shape == (41,)
    fade = 0.25 + 0.25 * torch.arange(1, 10) / 10
    torch.testing.assert_close(made, torch.cat([torch.full((16,), 0.25), fade, torch.full((16,), 0.5)]))


def test_frames_are_decoded_when_they_are_asked_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    decoded = ClipAutoencoder._decoded

    def watched(self: Any, z: Any, time: Any) -> Any:
        lengths.append(z.shape[2])
        return decoded(self, z, time)

    monkeypatch.setattr(ClipAutoencoder, "_decoded", watched)
    clip = sdkit.animate("ltx(chunk=2, overlap=1)", sdkit.pipeline(model), request(steps=1), frames=41)
    assert lengths == []
    running = iter(clip)
    first = list(islice(running, 8))
    assert lengths == [2] and [frame.index for frame in first] == list(range(8))
    assert len(list(running)) == 33 and lengths == [2] * 5


# --- the rule of frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "near"), [(18, "17 or 25"), (48, "41 or 49"), (8, "1 or 9"), (2, "1 or 9")])
def test_a_wrong_number_of_frames_names_the_nearest_two(model: Any, frames: int, near: str) -> None:
    with pytest.raises(sdkit.InvalidRequest, match=rf"takes 8k\+1 frames, not {frames}: {near}\."):
        sdkit.animate("ltx", sdkit.pipeline(model), request(), frames=frames)


def test_what_a_clip_cannot_have_is_refused_before_any_work(model: Any) -> None:
    pipe = sdkit.pipeline(model)
    for message, more, options in (
        ("does not close", {}, {"loop": "closed"}),
        ("multiples of 32; near is 96x64", {"size": (100, 64)}, {}),
        ("multiples of 32", {"image": picture(40, 64), "size": None}, {}),
        ("A strength means nothing", {"image": picture(), "strength": 0.5}, {}),
    ):
        with pytest.raises(sdkit.InvalidRequest, match=message):
            sdkit.animate("ltx", pipe, request(**more), frames=17, **options)
    for text in ("ltx(chunk=2, overlap=2)", "ltx(overlap=0)", "ltx(fps=-3)", "ltx(decode_noise=2)"):
        with pytest.raises(sdkit.ParameterError):
            sdkit.registry().make("frames", text)


def test_a_model_of_pictures_is_refused() -> None:
    with pytest.raises(sdkit.InvalidRequest, match="needs a model that makes clips, and 'emoji' makes pictures"):
        sdkit.animate("ltx", sdkit.pipeline(sdkit.load("emoji")), "a fox", frames=9)


def test_a_there_and_back_clip_renders_one_way(model: Any) -> None:
    clip = sdkit.animate("ltx", sdkit.pipeline(model), request(steps=1), frames=16, loop="pingpong")
    images = [frame.image for frame in clip]
    assert len(images) == 16 and all(np.array_equal(images[k], images[16 - k]) for k in range(1, 8))


# --- what a clip is made of -------------------------------------------------------------------------------------------


def test_the_first_frame_is_the_given_picture(model: Any) -> None:
    still = picture()
    for more in ({}, {"guidance_rescale": 0.7, "scheduler": "heun"}):
        latents = clip_latents(sdkit.pipeline(model), request(image=still, size=None, **more))
        pixels = torch.from_numpy(np.array(still)).permute(2, 0, 1)[None] / 255
        torch.testing.assert_close(latents[:, :, :1], model.autoencoder.encode(pixels), rtol=0, atol=0)
    plain = clip_latents(sdkit.pipeline(model), request(size=(64, 64)))
    assert float((plain[:, :, 1:] - latents[:, :, 1:]).abs().max()) > 1e-3


def test_the_model_is_told_the_frames_per_second(model: Any) -> None:
    pipe = sdkit.pipeline(model)
    made = []
    for fps, text in ((12, "ltx"), (24, "ltx"), (24, "ltx(fps=12)")):
        job, keeper = job_of(pipe, request(), fps=fps)
        sdkit.registry().make("frames", text).step(job, 0, {})
        made += keeper.found
    assert torch.equal(made[0], made[2]) and not torch.allclose(made[0], made[1], atol=1e-4)


def test_several_prompts_are_told_to_be_one_too_many(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    pipe = sdkit.pipeline(model)
    clip = sdkit.animate("ltx", pipe, sdkit.Request("0: a cat | 8: a dog", steps=1, size=(64, 64)), frames=9)
    assert "reads one prompt for the whole clip, the first: 'a cat'" in caplog.text
    frame = next(iter(clip))
    assert frame.info.prompts == (("a cat", 1.0),)
    alone = next(iter(sdkit.animate("ltx", pipe, sdkit.Request("a cat", steps=1, size=(64, 64)), frames=9)))
    assert np.array_equal(frame.image, alone.image)


def test_the_plan_states_evaluations_and_memory(model: Any) -> None:
    plan = sdkit.animate("ltx(chunk=2, overlap=1)", sdkit.pipeline(model), request(), frames=41).plan
    assert (plan.window, plan.evaluations) == (41, 5)
    latents, pixels = 8 * 6 * 2 * 2 * 4, 9 * 64 * 64 * 3
    assert plan.peak_bytes == 4 * latents + pixels * 5


# --- latents of five dimensions in every part of a pipeline -------------------------------------------------------------


def with_frames(model: Any, frames: int, **slots: Any) -> Any:
    latent = attrs.evolve(model.spec.latent, frames=(frames,))
    return sdkit.pipeline(attrs.evolve(model, spec=attrs.evolve(model.spec, latent=latent)), **slots)


@pytest.mark.parametrize("scheduler", ["euler", "heun", "dpmpp-2m", "euler-ancestral", "unipc"])
def test_a_clip_of_a_batch_is_the_clip_made_alone(model: Any, scheduler: str) -> None:
    pipe = with_frames(model, 2)
    both = pipe(request(seeds=(3, 4), scheduler=scheduler, steps=3))
    alone = pipe(request(seeds=(4,), scheduler=scheduler, steps=3))
    assert both.latents.shape == (2, 8, 2, 2, 2)
    torch.testing.assert_close(both.latents[1:], alone.latents, rtol=0, atol=2e-5)
    assert both.images[0].shape == (3, 9, 64, 64)
    assert both.manifest.grid == pipe.plan(request(seeds=(3, 4), scheduler=scheduler, steps=3)).grid


def test_a_run_over_clips_goes_on_where_it_stopped(model: Any) -> None:
    pipe, asked_for = with_frames(model, 2), request(scheduler="euler-ancestral", steps=4, guidance_rescale=0.5)
    events = list(pipe.stream(asked_for))
    resumed = list(pipe.stream(asked_for, resume=events[1]))
    assert torch.equal(resumed[-1].result.latents, events[-1].result.latents)


def test_the_shift_depends_on_the_number_of_frames(model: Any) -> None:
    one, many = (with_frames(model, count).plan(request(steps=4)).grid for count in (1, 40))
    assert one[1].sigma < many[1].sigma
    assert one[-2].sigma == pytest.approx(0.1) and many[-2].sigma == pytest.approx(0.1)


def test_a_single_frame_is_a_picture(model: Any) -> None:
    result = sdkit.pipeline(model)(request(steps=2))
    assert result.images[0].size == (64, 64)
    again = sdkit.pipeline(model)(request(steps=2, image=picture(), size=None, strength=0.5))
    assert again.latents.shape == (1, 8, 1, 2, 2)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_facts_of_the_model(model: Any, folder: Path) -> None:
    spec = model.spec
    assert (spec.family, spec.licence.id, spec.spacing) == (
        "ltx-video", "LTX-Video-OpenRAIL-M", "stretched(terminal=0.1)",
    )  # fmt: skip
    assert spec.latent.shape((64, 96)) == (8, 1, 3, 2) and len(spec.sha256) == 64
    assert sdkit.registry().get("model-family", "stable-diffusion")().licence(folder).id == spec.licence.id


def damaged(folder: Path, where: Path) -> Path:
    return Path(shutil.copytree(folder, where))


def test_damaged_folders_are_refused_from_the_headers_alone(folder: Path, tmp_path: Path) -> None:
    short = damaged(folder, tmp_path / "short") / "transformer" / "diffusion_pytorch_model.safetensors"
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(sdkit.FileError, match="cut off: 100 bytes are missing"):
        sdkit.load(tmp_path / "short")
    bare = damaged(folder, tmp_path / "bare")
    index = json.loads((bare / "model_index.json").read_text())
    (bare / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    with pytest.raises(sdkit.FileError, match="lacks its text_encoder"):
        sdkit.load(bare)
    wrong = damaged(folder, tmp_path / "wrong") / "vae" / "config.json"
    config = json.loads(wrong.read_text())
    wrong.write_text(json.dumps({**config, "latent_channels": 6}))
    with pytest.raises(sdkit.FileError, match=r"The vae's tensor .* has the shape"):
        sdkit.load(tmp_path / "wrong")
    wrong.write_text(json.dumps({**config, "decoder_inject_noise": [True, False, False, False, False]}))
    with pytest.raises(sdkit.FileError, match="draws noise of its own from torch's global state"):
        sdkit.load(tmp_path / "wrong")


def test_options_that_mean_nothing_to_clips_are_refused(folder: Path) -> None:
    with pytest.raises(sdkit.ParameterError, match="vae_tiling means nothing to LTX-Video"):
        sdkit.load(folder, vae_tiling=True)


def test_a_closed_model_says_so(folder: Path) -> None:
    with sdkit.load(folder, sha256=False, offload="stages", dtype="bfloat16") as model:
        assert bool(torch.isfinite(sdkit.pipeline(model)(request(steps=1)).latents).all())
        pipe = sdkit.pipeline(model)
    with pytest.raises(sdkit.InvalidRequest, match="was closed"):
        pipe(request(steps=1))


# --- from the shell, and the kit's rules ------------------------------------------------------------------------------


def test_a_clip_from_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--model", str(folder), "--prompt", "a fox", "--size", "64x64", "--steps", "2", "--seed", "3"]
    out = tmp_path / "fox.webp"
    assert shell("animate", "ltx", *shared, "--frames", "17", "--fps", "24", "--out", str(out), "--resume") == 0
    frames, manifest = sdkit.registry().make("frame-sink", "webp").read(out)
    assert len(list(frames)) == 17
    said = sdkit.ClipManifest.from_json(manifest)
    assert (said.generator, said.model, said.licence) == ("ltx", "my-ltx", "LTX-Video-OpenRAIL-M")
    assert (tmp_path / "fox.webp.journal" / "latents" / "0000000.safetensors").exists()
    assert "Open RAIL-M" in capsys.readouterr().err
    assert shell("animate", "ltx", *shared, "--frames", "18", "--out", str(out)) != 0
    assert "takes 8k+1 frames, not 18: 17 or 25" in capsys.readouterr().err


def test_a_render_taken_up_makes_no_latents_again(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sdkit.pipeline(model)
    straight = [frame.image for frame in sdkit.animate("ltx", pipe, request(), frames=17)]
    clip = sdkit.animate("ltx", pipe, request(), frames=17, journal=tmp_path / "j")
    running = iter(clip)
    list(islice(running, 5))
    running.close()  # type: ignore[attr-defined]

    def refused() -> None:
        raise AssertionError("the model was asked again")

    resumed = sdkit.animate("ltx", pipe, request(), frames=17, journal=tmp_path / "j", resume=True, tick=refused)
    found = [frame.image for frame in resumed]
    assert len(found) == 17 and all(np.array_equal(one, two) for one, two in zip(straight, found, strict=True))


class TestLtx(FrameConformance):
    frames = Ltx()


class TestStretched(SpacingConformance):
    spacing = Stretched()
