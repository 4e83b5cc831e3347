"""Text2Video-Zero: against diffusers' pipelines on tiny models, its laws, and the rules for generators of frames."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import attrs
import diffusers
import pytest
import tiny
import torch
from diffusers.pipelines.deprecated.text_to_video_synthesis import (
    pipeline_text_to_video_zero as theirs_sd,
)
from diffusers.pipelines.deprecated.text_to_video_synthesis import (
    pipeline_text_to_video_zero_sdxl as theirs_xl,
)
from parity import NEGATIVE, PROMPT, assert_same, ddim, drawn, grid_of
from torch import Tensor

import sdkit
from sdkit import AddressedNoise, FrameJob, InvalidRequest, Level, ParameterError, PromptTrack, Request, Timeline
from sdkit.cli import main
from sdkit.testing import frames as kit
from sdkit.testing import run as conform
from sdkit_diffusers.attention import PerturbedAttention
from sdkit_diffusers.zero import (
    CrossFrameAttention,
    TextToVideoZero,
    moved,
    parting,
    renoised,
    with_cross_frame_attention,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.meshgrid", "ignore:Default grid_sample"
)
ASKED: dict[str, Any] = {"negative": NEGATIVE, "guidance": 3.0, "seeds": (7,), "size": (64, 64)}


@attrs.frozen(eq=False)
class Same:
    """A noise source that starts every picture with the same noise."""

    noise: Tensor

    def initial(self, like: Tensor, /) -> Tensor:
        return self.noise.to(like).expand(like.shape)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")


class Kept:
    """Keeps the latents of every burst."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def latents(self, index: int, make: Any, /) -> Tensor:
        self.rows.append(make())
        return self.rows[-1]


def latents_of(pipe: Any, generator: TextToVideoZero, request: Request, frames: int) -> Tensor:
    """Final latents of a clip; nothing is decoded."""
    kept = Kept()
    timeline = Timeline(frames)
    job = FrameJob(sdkit.image_source(pipe), request, timeline, PromptTrack(request.prompt), keeper=kept)
    generator.plan(job)
    index, state = 0, generator.init(job)
    while index < frames:
        state = generator.step(job, index, state).state
        index += len(kept.rows[-1])
    return torch.cat(kept.rows)


def asked(prompt: str = PROMPT, **fields: Any) -> Request:
    return Request(prompt, **{**ASKED, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_folder(diffusers.StableDiffusionPipeline, tiny.sd1(), tmp_path_factory.mktemp("zero") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return sdkit.load(folder)


@pytest.fixture(scope="module")
def pipe(model: Any) -> Any:
    return sdkit.pipeline(model)


# --- against diffusers ------------------------------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "sd1": (tiny.sd1, diffusers.StableDiffusionPipeline, theirs_sd, "TextToVideoZeroPipeline"),
    "sd2": (tiny.sd2, diffusers.StableDiffusionPipeline, theirs_sd, "TextToVideoZeroPipeline"),
    "sdxl": (tiny.sdxl, diffusers.StableDiffusionXLPipeline, theirs_xl, "TextToVideoZeroSDXLPipeline"),
}


@pytest.mark.parametrize(("family", "steps", "t0", "t1"), [("sd1", 50, 44, 47), ("sd2", 10, 5, 8), ("sdxl", 10, 6, 7)])
def test_parity_with_diffusers(
    family: str, steps: int, t0: int, t1: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its levels and our noise. Diffusers multiplies the forward law's alphas from one training step too early (from
    t0 to t1 instead of t0 + 1 to t1 + 1), which is put right here.
    """
    make, saved, module, name = KINDS[family]
    parts = make()
    model = sdkit.load(tiny.save_folder(saved, parts, tmp_path / "model"))
    scheduler = ddim(prediction_type="v_prediction" if family == "sd2" else "epsilon")
    grid = grid_of(scheduler, model.schedule, steps)
    cumulative = scheduler.alphas_cumprod
    scheduler.alphas = torch.cat([cumulative[1:] / cumulative[:-1], torch.ones(1, dtype=torch.float64)])
    frames, first = 3, drawn(1, 4, 8, 8)
    early, late = grid[steps - 1 - t1], grid[steps - 1 - t0]

    def noise(shape: Any, **_: Any) -> Tensor:
        assert tuple(shape) == (frames - 1, 4, 8, 8)
        like = torch.zeros(1, 4, 8, 8)
        return torch.cat([AddressedNoise((7,), f"text2video-zero|{k}")(like, late, early) for k in range(1, frames)])

    monkeypatch.setattr(module, "randn_tensor", noise)
    absent: Any = (
        {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}
        if family == "sdxl"
        else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )
    theirs_pipe = getattr(module, name)(**{**parts, "scheduler": scheduler}, **absent)
    theirs_pipe.set_progress_bar_config(disable=True)
    motion = {"motion_field_strength_x": 40.0, "motion_field_strength_y": -70.0} if steps < 50 else {}
    theirs = theirs_pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=3.0, output_type="latent", height=64, width=64,
        num_inference_steps=steps, latents=first * grid[0].sigma, video_length=frames, t0=t0, t1=t1, **motion,
    ).images  # fmt: skip

    pipe = sdkit.pipeline(model, noise=lambda seeds, grid: Same(first), scheduler="ddim", spacing=grid)
    generator = TextToVideoZero() if steps == 50 else TextToVideoZero(40, -70, (9 - t1) / 10, (9 - t0) / 10)
    mine = latents_of(pipe, generator, asked(), frames)
    assert_same(mine, theirs.float())
    assert (mine[0] - mine[1]).abs().max() > 0.01, "nothing moves"


def test_the_processor_is_that_of_diffusers() -> None:
    unet: Any = tiny.unet(attention_head_dim=8)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    states = drawn(6, 16, 64)
    mine = CrossFrameAttention(3)(attention, states)
    assert_same(mine, theirs_sd.CrossFrameAttnProcessor2_0(batch_size=2)(attention, states), 1e-6)
    assert_same(mine, theirs_sd.CrossFrameAttnProcessor(batch_size=2)(attention, states), 1e-5)


@pytest.mark.parametrize("sides", [(8, 8), (64, 64), (24, 40)])
@pytest.mark.parametrize("motion", [(12.0, 12.0), (-30.0, 70.0), (600.0, -1300.0), (0.0, 0.0)])
def test_moving_is_that_of_diffusers(sides: tuple[int, int], motion: tuple[float, float]) -> None:
    latents = drawn(1, 4, *sides)
    for k in (1, 2, 7):
        theirs = theirs_sd.create_motion_field_and_warp_latents(*motion, [k], latents)
        assert torch.equal(moved(latents, motion[0] * k, motion[1] * k), theirs)


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_made_noisy_again_it_is_as_if_it_had_been_made_noisy_at_once() -> None:
    """Mean and spread, on schedules of all kinds: variance-preserving, exploding, flow."""
    x0, first, second = drawn(1, 1, 300, 300), drawn(1, 1, 300, 300, seed=6), drawn(1, 1, 300, 300, seed=7)
    pairs = [
        ((0.8, 0.6), (0.6, 0.8)),
        ((1, 2), (1, 9)),
        ((0.7, 0.3), (0.2, 0.8)),
        ((0.8, 0.6), (0, 1)),
        ((1, 0), (0.6, 0.8)),
    ]
    for clean, noisy in pairs:
        cleaner, noisier = Level(1, *clean), Level(2, *noisy)
        made = renoised(cleaner.alpha * x0 + cleaner.sigma * first, cleaner, noisier, second)
        rest = made - noisier.alpha * x0
        assert (
            abs(float(rest.std()) / noisier.sigma - 1) < 0.02 and abs(float((rest * x0).mean())) < 0.02 * noisier.sigma
        )
    assert torch.equal(renoised(x0, cleaner, cleaner, second), x0)


def test_where_frames_part() -> None:
    assert parting(50, 0.04, 0.1) == (2, 5)  # 50 - 48 and 50 - 45
    assert parting(20, 0.04, 0.1) == (1, 2)
    assert parting(3, 0.04, 0.1) == (0, 1)
    assert parting(1, 0.04, 0.1) == (0, 1)
    assert parting(10, 0.5, 0.5) == (5, 5)
    assert parting(10, 0.99, 1) == (9, 10)


# --- laws -------------------------------------------------------------------------------------------------------------


def test_without_motion_and_noise_all_frames_are_the_picture(pipe: Any) -> None:
    """The first frame is the picture the pipeline makes anyway, and nothing sets the others apart from it."""
    request = asked(scheduler="ddim", spacing="uniform", steps=6)
    alone = pipe(request).latents
    still = latents_of(pipe, TextToVideoZero(0, 0, 0.3, 0.3, chunk=3), request, 5)
    assert_same(still, alone.expand(5, -1, -1, -1), 1e-5)
    clip = latents_of(pipe, TextToVideoZero(100, 0, 0.3, 0.6), request, 3)
    assert_same(clip[:1], alone, 1e-5)
    assert (clip[1] - clip[2]).abs().max() > 0.01


def test_chunks_and_length_change_nothing(pipe: Any) -> None:
    request = asked("0: a fox | 3: a dog", steps=4)
    whole = latents_of(pipe, TextToVideoZero(70, -50, 0.25, 0.75), request, 7)
    for chunk in (2, 4):
        assert_same(latents_of(pipe, TextToVideoZero(70, -50, 0.25, 0.75, chunk=chunk), request, 7), whole, 1e-5)
    assert_same(latents_of(pipe, TextToVideoZero(70, -50, 0.25, 0.75), request, 5), whole[:5], 1e-5)
    # a frame does not depend on those before it, only on the first
    curve = "0:(70), 1:(70), 2:(0), 3:(140), 4:(70)"
    other = latents_of(pipe, TextToVideoZero(curve, -50, 0.25, 0.75), request, 5)
    assert_same(other[[0, 1, 3, 4]], whole[[0, 1, 3, 4]], 1e-5)
    assert (other[2] - whole[2]).abs().max() > 0.01


def test_solvers_with_and_without_a_memory(pipe: Any) -> None:
    """Any scheduler goes; those with noise of their own draw the same for all frames."""
    for scheduler in ("heun", "dpmpp-2m", "ddim(eta=1)", "euler"):
        request = asked(scheduler=scheduler, steps=4)
        made = latents_of(pipe, TextToVideoZero(0, 0, 0.25, 0.25), request, 3)
        assert_same(made[1:], made[:1].expand(2, -1, -1, -1), 1e-5)
        if scheduler != "dpmpp-2m":  # which begins anew where the frames part
            assert_same(made[:1], pipe(request).latents, 1e-4)


def test_others_on_the_same_network_see_nothing(pipe: Any, model: Any) -> None:
    unet = model.denoiser.network.network
    before = {name: dict(vars(module)) for name, module in unet.named_modules()}
    request = asked(steps=4)
    alone, clip = pipe(request).latents, latents_of(pipe, TextToVideoZero(90, 0), request, 3)
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.extend(pipe(request).latents for _ in range(3)))
    thread.start()
    beside = latents_of(pipe, TextToVideoZero(90, 0), request, 3)
    thread.join()
    assert torch.equal(beside, clip) and len(found) == 3 and all(torch.equal(each, alone) for each in found)
    for name, module in unet.named_modules():
        assert all(vars(module)[key] is value for key, value in before[name].items()), name


def test_together_with_perturbed_attention(pipe: Any, model: Any) -> None:
    """The perturbed layers stay perturbed: they see nothing but themselves, so they need no first frame."""
    request = asked(steps=4, modifiers=(PerturbedAttention(2.0),))
    made = latents_of(pipe, TextToVideoZero(0, 0, 0.25, 0.25), request, 3)
    assert_same(made, pipe(request).latents.expand(3, -1, -1, -1), 1e-4)
    assert (made - latents_of(pipe, TextToVideoZero(0, 0, 0.25, 0.25), asked(steps=4), 3)).abs().max() > 0.01


def test_conformance(model: Any) -> None:
    """The kit's rules, on a tiny U-Net in place of the kit's model, which has no network."""
    small = attrs.evolve(model.spec.latent, size=(32, 32))
    spec = attrs.evolve(model.spec, latent=small, steps=2, guidance=1.0)
    with kit.tried_on(sdkit.pipeline(attrs.evolve(model, spec=spec))):
        outcomes = list(conform(TextToVideoZero(60, 30), "frames"))
    assert [f"{o.rule.id} {o.detail}" for o in outcomes if o.state == "fail"] == []
    assert sum(o.state == "pass" for o in outcomes) >= 10


def test_a_killed_render_goes_on(pipe: Any, tmp_path: Path) -> None:
    """From the journal, with the same frames, whether or not a chunk was kept before it was decoded."""
    request = asked("0: a fox | 4: a dog", steps=2)
    straight = [f.image.tobytes() for f in sdkit.animate("zero(motion_x=80, chunk=3)", pipe, request, frames=6)]
    again: dict[str, Any] = {"frames": 6, "journal": tmp_path / "j"}
    begun = iter(sdkit.animate("zero(motion_x=80, chunk=3)", pipe, request, **again))
    for _ in range(4):
        next(begun)
    begun.close()  # type: ignore[attr-defined]
    resumed = sdkit.animate("zero(motion_x=80, chunk=3)", pipe, request, resume=True, **again)
    assert [frame.image.tobytes() for frame in resumed] == straight


# --- what is refused --------------------------------------------------------------------------------------------------


def test_loops(pipe: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"ends \(72, 72\) away"):
        sdkit.animate("zero", pipe, asked(steps=2), frames=6, loop="closed")
    turning = "zero(motion_x='60*cos(2*pi*t/(max_f+1))', motion_y='60*sin(2*pi*t/(max_f+1))')"
    found = list(sdkit.animate(turning, pipe, asked(steps=2), frames=6, loop="closed"))
    assert len(found) == 6 and found[0].info.values == {"right": 0, "down": 0}
    assert found[2].info.values["right"] == pytest.approx(0) and found[3].info.values["right"] == pytest.approx(-60)
    assert len(list(sdkit.animate("zero", pipe, asked(steps=2), frames=6, loop="pingpong"))) == 6


def test_models_without_a_unet(pipe: Any, tmp_path: Path) -> None:
    parts = tiny.sd3(tmp_path / "t5", with_t5=False)
    with sdkit.load(tiny.save_folder(diffusers.StableDiffusion3Pipeline, parts, tmp_path / "model")) as transformer:
        for other in (sdkit.pipeline(transformer), kit.fake_pipeline()):
            with pytest.raises(InvalidRequest, match=r"takes a model with a U-Net .* has a \w+; the generators walk"):
                sdkit.animate("text2video-zero", other, asked(), frames=4)


def test_rows_in_another_order_are_refused(model: Any) -> None:
    denoiser = with_cross_frame_attention(model.denoiser, 2)
    cond, level, x = model.encoder(["a"] * 4), model.schedule.level(500.0), drawn(2, 4, 8, 8)
    assert denoiser(x.repeat(2, 1, 1, 1), level, cond).shape == (4, 4, 8, 8)
    with pytest.raises(InvalidRequest, match="asks the network for 4 rows in another"):
        denoiser(x.repeat_interleave(2, 0), level, cond)
    with pytest.raises(InvalidRequest, match="asks the network for 3 rows in another"):
        denoiser(drawn(3, 4, 8, 8), level, model.encoder(["a"] * 3))


def test_bad_values(pipe: Any) -> None:
    for fields in ({"early": 0.5, "late": 0.2}, {"early": 1.0, "late": 1.0}, {"early": True}, {"late": 2}, {"chunk": 1},
                   {"chunk": 8.0}, {"motion_x": "12*"}):  # fmt: skip
        with pytest.raises(ParameterError):
            TextToVideoZero(**fields)
    picture = sdkit.Picture.of(tiny_picture())
    with pytest.raises(InvalidRequest, match="starts from noise"):
        sdkit.animate("zero", pipe, asked(image=picture), frames=4)
    with pytest.raises(ParameterError, match="no value at frame 3"):
        sdkit.animate("zero(motion_x='1/(t-3)')", pipe, asked(), frames=8)


def tiny_picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64))


# --- from the shell ---------------------------------------------------------------------------------------------------


def test_from_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.webp"
    words = ["animate", "text2video-zero", "--model", str(folder), "--prompt", "a fox", "--frames", "8", "--steps", "2"]
    assert shell(*words, "--curve", "motion_x=0:(90)", "--out", str(out)) == 0
    frames, manifest = sdkit.registry().make("frame-sink", "webp").read(out)
    assert len(list(frames)) == 8 and "motion_x='0:(90)'" in sdkit.ClipManifest.from_json(manifest).generator
    capsys.readouterr()
    assert shell("animate", "zero", "--prompt", "a fox", "--frames", "8", "--out", str(tmp_path / "y.webp")) != 0
    assert "takes a model with a U-Net of Stable Diffusion" in capsys.readouterr().err
    assert not (tmp_path / "y.webp").exists()


def shell(*words: str) -> int:
    try:
        main(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0
