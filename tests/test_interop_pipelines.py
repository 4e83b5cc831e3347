"""sdkit's schedulers inside diffusers' own pipelines: tiny networks, the latents of sdkit's own loop."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import sdkit
from sdkit import (
    AddressedNoise,
    Epsilon,
    Flow,
    Level,
    NetworkDenoiser,
    NoNoise,
    RectifiedFlow,
    Velocity,
    scaled_linear,
    solve,
)
from sdkit.interop import Lent, for_diffusers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

THEIRS: Any = diffusers
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD = scaled_linear()


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (3, 4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT, EMPTY = normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        unet = THEIRS.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=4,
        ).eval()
        vae = THEIRS.AutoencoderKL(
            block_out_channels=(8,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
        ).eval()
        config = CLIPTextConfig(
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=20,
            bos_token_id=0,
            eos_token_id=1,
        )
        encoder = CLIPTextModel(config).eval()
    return {"vae": vae, "text_encoder": encoder, "tokenizer": None, "unet": unet}


def pipeline(parts: dict[str, Any], scheduler: Any, kind: str = "StableDiffusionPipeline") -> Any:
    base = THEIRS.EulerDiscreteScheduler(**BETAS)
    pipe = getattr(THEIRS, kind)(
        **parts, scheduler=base, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler
    return pipe


def picture(parts: dict[str, Any], scheduler: Any, steps: int = 5, **options: Any) -> Tensor:
    made = pipeline(parts, scheduler)(
        prompt_embeds=TEXT,
        negative_prompt_embeds=EMPTY,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=generators(),
        output_type="latent",
        height=8,
        width=8,
        **options,
    )
    latents: Tensor = made.images
    return latents


def own_loop(parts: dict[str, Any], lent: Lent, x: Tensor, begin: int = 0, parametrization: Any = None) -> Tensor:
    """sdkit's loop with the same network, levels and noise."""

    def network(x: Tensor, time: Tensor, cond: None) -> Tensor:
        both = parts["unet"](torch.cat([x, x]), time[0], encoder_hidden_states=torch.cat([EMPTY, TEXT])).sample
        plain, told = both.chunk(2)
        guided: Tensor = plain + 3.0 * (told - plain)
        return guided

    denoiser: NetworkDenoiser[None] = NetworkDenoiser(network, parametrization or Epsilon(), SD)
    noise: Any = AddressedNoise(lent.seeds, "diffusers") if lent.seeds else NoNoise()
    with torch.no_grad():
        *_, last = solve(lent.scheduler, lambda x, level: denoiser(x, level, None), x, lent.grid[begin:], noise)
    return last.x


def beginning(lent: Lent) -> Tensor:
    return torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators()]) * lent.grid[0].sigma


def assert_near(a: Tensor, b: Tensor, digits: float = 2e-5) -> None:
    assert float((a - b).abs().max()) <= digits * float(b.abs().max())


NAMES = ["euler", "ddim", "heun", "dpmpp-2m", "ddim(eta=1)", "dpmpp-sde", "unipc", "dpmpp-3m-sde"]


@pytest.mark.parametrize("name", NAMES)
def test_text_to_image_gives_the_latents_of_our_own_loop(parts: dict[str, Any], name: str) -> None:
    lent = for_diffusers(name, spacing="karras", like=THEIRS.EulerDiscreteScheduler(**BETAS))
    made = picture(parts, lent)
    assert lent.scheduler.traits.stochastic == bool(lent.seeds)
    assert_near(made, own_loop(parts, lent, beginning(lent)))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("ddim", "DDIMScheduler"), ("dpmpp-2m", "DPMSolverMultistepScheduler"), ("heun", "HeunDiscreteScheduler")],
)
def test_it_gives_what_diffusers_equal_class_gives(parts: dict[str, Any], name: str, theirs: str) -> None:
    settings = dict(BETAS, timestep_spacing="trailing")
    if theirs == "DDIMScheduler":
        settings["clip_sample"] = False
    like = getattr(THEIRS, theirs)(**settings)
    ours, expected = picture(parts, for_diffusers(name, like=like), 5), picture(parts, like, 5)
    # its tables are float32, and its noisiest latent begins at sigma 1 or sqrt(sigma^2 + 1) where ours is 0.9977
    assert_near(ours, expected, 5e-3)


def test_a_velocity_model_and_its_schedule_carry_over(parts: dict[str, Any]) -> None:
    like = THEIRS.DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    lent = for_diffusers("dpmpp-2m", like=like)
    made = picture(parts, lent)
    assert lent.grid[0].alpha == 0
    assert_near(made, own_loop(parts, lent, beginning(lent), parametrization=Velocity()))


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "ddim(eta=1)"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_image_to_image(parts: dict[str, Any], name: str, strength: float) -> None:
    lent = for_diffusers(name, spacing="karras", like=THEIRS.EulerDiscreteScheduler(**BETAS))
    clean = normal(2, 4, 8, 8, seed=9)
    made = pipeline(parts, lent, "StableDiffusionImg2ImgPipeline")(
        image=clean,
        prompt_embeds=TEXT,
        negative_prompt_embeds=EMPTY,
        num_inference_steps=5,
        strength=strength,
        guidance_scale=3.0,
        generator=generators(),
        output_type="latent",
    ).images
    begin = 5 - int(5 * strength)
    level = lent.grid[begin]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators()])
    assert_near(made, own_loop(parts, lent, clean * level.alpha + noise * level.sigma, begin))


def test_image_k_of_a_batch_and_a_second_run(parts: dict[str, Any]) -> None:
    lent = for_diffusers("dpmpp-2m-sde", like=THEIRS.EulerDiscreteScheduler(**BETAS))
    first, again = picture(parts, lent), picture(parts, lent)
    assert torch.equal(first, again)
    seeds = lent.seeds
    assert len(set(seeds)) == 2


def test_a_callback_that_changes_latents_is_heard(parts: dict[str, Any]) -> None:
    def halve(pipe: Any, i: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": given["latents"] * (0.5 if i == 1 else 1.0)}

    lent = for_diffusers("euler", like=THEIRS.EulerDiscreteScheduler(**BETAS))
    changed = picture(parts, lent, callback_on_step_end=halve)
    states = list(solve_steps(parts, lent, beginning(lent)))
    expected = own_loop(parts, lent, states[1] * 0.5, 2)
    assert_near(changed, expected)


def solve_steps(parts: dict[str, Any], lent: Lent, x: Tensor) -> list[Tensor]:
    found = []
    for stop in range(2, 4):
        grid = lent.grid
        lent.grid = grid[:stop]
        found.append(own_loop(parts, lent, x))
        lent.grid = grid
    return found


# Flows.


class Line:
    """A flow's network in closed form: normal data with mean 0.3 and deviation 0.5."""

    def __call__(self, x: Tensor, t: float) -> Tensor:
        sigma = t / 1000
        alpha = 1 - sigma
        mean = 0.3 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.3)
        return (x - mean) / sigma


def through(scheduler: Any, x: Tensor, steps: int, **options: Any) -> Tensor:
    """The loop of a flow's pipeline."""
    scheduler.set_timesteps(steps, **options)
    for t in scheduler.timesteps:
        x = scheduler.step(Line()(x, float(t)), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "unipc"])
def test_a_flow_gives_the_latents_of_our_own_loop(name: str) -> None:
    lent = for_diffusers(name, like=THEIRS.FlowMatchEulerDiscreteScheduler(shift=3.0))
    x = normal(2, 4, 3, 3).double()
    made = through(lent, x, 6)
    denoiser: NetworkDenoiser[None] = NetworkDenoiser(
        lambda x, t, c: Line()(x, float(t[0])), Flow(1000), RectifiedFlow(3)
    )
    *_, last = solve(lent.scheduler, lambda x, level: denoiser(x, level, None), x, lent.grid, NoNoise())
    assert_near(made, last.x, 1e-5)  # the pipeline's times are float32


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m"])
def test_inside_a_pipeline_of_a_flow(parts: dict[str, Any], name: str) -> None:
    with torch.random.fork_rng():
        transformer = THEIRS.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            pos_embed_max_size=8,
        ).eval()
    like = THEIRS.FlowMatchEulerDiscreteScheduler(shift=3.0)
    words = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    pipe = THEIRS.StableDiffusion3Pipeline(transformer=transformer, scheduler=like, vae=parts["vae"], **words)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = lent = for_diffusers(name, like=like)
    pooled = normal(2, 8, seed=4)
    made = pipe(
        prompt_embeds=TEXT,
        pooled_prompt_embeds=pooled,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=generators(),
        output_type="latent",
        height=8,
        width=8,
    ).images

    def network(x: Tensor, time: Tensor, cond: None) -> Tensor:
        answer: Tensor = transformer(x, encoder_hidden_states=TEXT, pooled_projections=pooled, timestep=time).sample
        return answer

    denoiser: NetworkDenoiser[None] = NetworkDenoiser(network, Flow(1000), RectifiedFlow(3))
    with torch.no_grad():
        *_, last = solve(
            lent.scheduler, lambda x, level: denoiser(x, level, None), beginning(lent), lent.grid, NoNoise()
        )
    assert_near(made, last.x)


def test_a_flows_dynamic_shift_and_its_sigmas_are_those_of_diffusers() -> None:
    theirs = THEIRS.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = for_diffusers("euler", like=theirs)
    given = [1.0, 0.75, 0.5, 0.25]
    theirs.set_timesteps(sigmas=given, mu=0.9)
    ours.set_timesteps(sigmas=given, mu=0.9)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=0)
    ours.set_timesteps(4, mu=0.9)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)
    x = normal(1, 4, 3, 3)
    torch.testing.assert_close(through(ours, x, 4, mu=0.9), through_theirs(theirs, x, given, 0.9), rtol=0, atol=2e-6)


def through_theirs(theirs: Any, x: Tensor, sigmas: list[float], mu: float) -> Tensor:
    theirs.set_timesteps(sigmas=sigmas, mu=mu)
    for t in theirs.timesteps:
        x = theirs.step(Line()(x, float(t)), t, x, return_dict=False)[0]
    return x


# What pipelines and people do with it besides.


def lent(name: str = "euler") -> Lent:
    return for_diffusers(name, spacing="karras", like=THEIRS.EulerDiscreteScheduler(**BETAS))


def test_noise_is_added_at_the_level_of_each_items_timestep() -> None:
    scheduler = lent()
    clean, noise = normal(2, 4, 2, 2), normal(2, 4, 2, 2, seed=5)
    mixed = scheduler.add_noise(clean, noise, torch.tensor([10, 900]))  # before set_timesteps, as in training
    for row, t in enumerate((10, 900)):
        level = SD.level(t)
        torch.testing.assert_close(mixed[row], clean[row] * level.alpha + noise[row] * level.sigma)
    scheduler.set_timesteps(6)
    level = scheduler.grid[2]
    mixed = scheduler.add_noise(clean, noise, scheduler.timesteps[2:3])
    torch.testing.assert_close(mixed, clean * level.alpha + noise * level.sigma)


def test_own_timesteps_and_own_sigmas() -> None:
    scheduler = lent()
    scheduler.set_timesteps(timesteps=[900, 500, 20])
    assert scheduler.timesteps.tolist() == [900, 500, 20]
    scheduler.set_timesteps(sigmas=[10.0, 2.0, 0.1, 0.0])
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([10.0, 2.0, 0.1, 0.0]))


def test_half_precision_latents_are_kept_in_float32_inside() -> None:
    def wander(dtype: torch.dtype) -> Tensor:
        scheduler = lent("dpmpp-2m")
        scheduler.set_timesteps(30)
        x = normal(1, 4, 4, 4).to(dtype)
        for t in scheduler.timesteps:
            answer = (x.float() * 0.9).to(dtype)
            x = scheduler.step(answer, t, x).prev_sample
        assert x.dtype == dtype
        return x.float()

    assert float((wander(torch.bfloat16) - wander(torch.float32)).abs().max()) < 0.1


def test_noise_without_a_generator_reads_the_global_state_and_leaves_it() -> None:
    scheduler = lent("ddim(eta=1)")
    scheduler.set_timesteps(3)
    x = normal(2, 4, 2, 2)
    scheduler.step(x, scheduler.timesteps[0], x)
    assert len(set(scheduler.seeds)) == 2  # and conftest sees that nothing was drawn


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda: lent("dpm-adaptive"), sdkit.ParameterError, "decides during the run"),
        (lambda: lent("no-such"), sdkit.UnknownComponent, "no-such"),
        (lambda: for_diffusers("euler", like=object()), sdkit.ParameterError, "is not known"),
        (lambda: lent().set_timesteps(), sdkit.InvalidRequest, "needs num_inference_steps"),
        (lambda: lent().set_timesteps(timesteps=[9], sigmas=[1.0]), sdkit.InvalidRequest, "not both"),
        (lambda: lent().set_timesteps(4, mu=1.0), sdkit.InvalidRequest, "shifts a flow"),
        (lambda: lent().set_begin_index(0), sdkit.InvalidRequest, "before set_timesteps"),
        (
            lambda: for_diffusers("euler", spacing=(Level(1, 1, 1), Level(0, 1, 0)), like=lent()).set_timesteps(3),
            sdkit.InvalidRequest,
            "has 1 steps, not 3",
        ),
    ],
)
def test_what_cannot_be_done_is_said(act: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        act()


def test_a_run_is_over_when_it_is_over_and_begins_at_a_step() -> None:
    scheduler, x = lent("heun"), normal(1, 4, 2, 2)
    scheduler.set_timesteps(2)
    with pytest.raises(sdkit.InvalidRequest, match="No step of Heun begins at call 1"):
        scheduler.set_begin_index(1)
    with pytest.raises(sdkit.InvalidRequest, match="No step of this run begins at timestep 123"):
        scheduler.step(x, 123, x)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(sdkit.InvalidRequest, match="is over"):
        scheduler.step(x, 0, x)
