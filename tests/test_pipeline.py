"""From a request to pictures, on a model whose every part has a closed form."""

from __future__ import annotations

import pickle
import sys
import threading
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import sdkit
from sdkit import Request
from tests.toys import LATENT, ToyAutoencoder, ToyDenoiser, ToyEncoder, close, toy_model


def picture(colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def split_mask(size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Paint the right half, keep the left."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, size[0], size[1]))
    return mask


def test_a_request_gives_one_image_per_seed_of_the_models_size() -> None:
    result = sdkit.pipeline(toy_model())(Request("hello", seeds=(3, 4)))
    assert [image.size for image in result.images] == [(32, 32), (32, 32)]
    assert result.latents.shape == (2, 3, 8, 8)
    assert result.seeds == (3, 4)
    assert result.images[0].tobytes() != result.images[1].tobytes()


def test_the_picture_is_a_draw_from_the_models_distribution() -> None:
    # "x" * 20 has mean 0.5, the empty prompt mean 0; guidance 1 draws from N(0.5, 0.1^2).
    result = sdkit.pipeline(toy_model())(Request("x" * 20, seeds=tuple(range(16)), guidance=1.0, steps=40))
    assert float(result.latents.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(result.latents.std()) == pytest.approx(0.1, abs=0.01)


def test_guidance_moves_away_from_the_negative_prompt() -> None:
    pipe = sdkit.pipeline(toy_model())
    plain = pipe(Request("x" * 8, guidance=2.0)).latents.mean()
    pushed = pipe(Request("x" * 8, negative="x" * 16, guidance=2.0)).latents.mean()
    assert pushed < plain - 0.1


@pytest.mark.parametrize("scheduler", ["euler", "heun", "dpmpp-2m", "ddim(eta=1)"])
def test_image_k_of_a_batch_equals_the_image_made_alone(scheduler: str) -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler=scheduler)
    batch = pipe(Request("some text", seeds=(7, 8, 9)))
    for k, seed in enumerate((7, 8, 9)):
        assert close(batch.latents[k : k + 1], pipe(Request("some text", seeds=(seed,))).latents, 1e-6)


def test_the_stream_has_one_event_per_step_and_the_result_last() -> None:
    pipe = sdkit.pipeline(toy_model())
    *steps, last = pipe.stream(Request("hello", steps=5))
    assert isinstance(last, sdkit.ResultEvent)
    assert all(isinstance(step, sdkit.StepEvent) for step in steps)
    assert [step.index for step in steps] == [1, 2, 3, 4, 5]  # type: ignore[union-attr]
    assert {step.steps for step in steps} == {5}  # type: ignore[union-attr]
    assert [step.evaluations for step in steps] == [1, 2, 3, 4, 5]  # type: ignore[union-attr]
    times = [step.elapsed for step in steps]  # type: ignore[union-attr]
    assert times == sorted(times) and times[0] > 0
    assert steps[-1].level == last.result.manifest.grid[-1]  # type: ignore[union-attr]
    assert torch.equal(steps[-1].x, last.result.latents)  # type: ignore[union-attr]


def test_what_a_caller_does_to_an_events_tensors_changes_nothing() -> None:
    pipe = sdkit.pipeline(toy_model())
    for event in pipe.stream(Request("hello")):
        if isinstance(event, sdkit.StepEvent):
            event.x.fill_(9)
            event.denoised.fill_(9)
            if event.state is not None:
                event.state.denoised.fill_(9)
        else:
            disturbed = event.result.latents
    assert torch.equal(disturbed, pipe(Request("hello")).latents)


@given(scheduler=st.sampled_from(["euler", "heun", "dpmpp-2m", "ddim(eta=0.5)"]), steps=st.integers(1, 12))
def test_the_planned_evaluations_are_the_executed_ones(scheduler: str, steps: int) -> None:
    model = toy_model()
    pipe = sdkit.pipeline(model, scheduler=scheduler)
    request = Request("hello", steps=steps)
    plan = pipe.plan(request)
    result = pipe(request)
    assert isinstance(model.denoiser, ToyDenoiser)
    assert plan.evaluations == result.manifest.evaluations == len(model.denoiser.calls)
    assert plan.grid == result.manifest.grid
    assert plan.latent_shape == tuple(result.latents.shape)


@given(steps=st.integers(1, 120), strength=st.floats(0.01, 1))
def test_image_to_image_walks_the_share_of_steps_it_says(steps: int, strength: float) -> None:
    pipe = sdkit.pipeline(toy_model(), spacing="trailing")
    plan = pipe.plan(Request("hello", image=picture(), strength=strength, steps=steps))
    assert len(plan.grid) - 1 == max(1, round(steps * strength))
    whole = pipe.plan(Request("hello", steps=steps)).grid
    assert plan.grid == whole[-len(plan.grid) :]


def test_strengths_that_binary_fractions_miss_are_counted_right() -> None:
    pipe = sdkit.pipeline(toy_model(), spacing="trailing")
    for steps, strength, walked in ((100, 0.29, 29), (100, 0.57, 57), (50, 0.58, 29), (20, 0.04, 1)):
        plan = pipe.plan(Request("hello", image=picture(), strength=strength, steps=steps))
        assert len(plan.grid) - 1 == walked


def test_the_exact_policy_walks_as_many_steps_as_asked() -> None:
    pipe = sdkit.pipeline(toy_model(), spacing="trailing")
    request = Request("hello", image=picture(), strength=0.5, steps=10, steps_policy="exact")
    plan = pipe.plan(request)
    assert len(plan.grid) - 1 == 10
    assert plan.grid[0] == pipe.plan(attrs.evolve(request, steps_policy="proportional")).grid[0]


def test_a_weak_strength_keeps_the_image_and_a_full_one_does_not() -> None:
    pipe = sdkit.pipeline(toy_model())
    start = torch.tensor([200, 100, 50]).reshape(1, 3, 1, 1) / 255

    def distance(strength: float) -> float:
        latents = pipe(Request("x" * 20, image=picture(), strength=strength, steps=30, guidance=1.0)).latents
        return float((latents - start).abs().mean())

    distances = [distance(s) for s in (0.05, 0.4, 1.0)]
    assert distances[0] < 0.1
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("scheduler", ["euler", "heun", "dpmpp-2m", "ddim(eta=1)"])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_inpainting_keeps_the_pixels_outside_the_mask_exactly(scheduler: str, strength: float | None) -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler=scheduler)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    result = pipe(Request("x" * 30, image=image, mask=split_mask(), strength=strength, guidance=1.0))
    before, after = np.asarray(image), np.asarray(result.images[0])
    assert (before[:, :16] == after[:, :16]).all()
    assert not (before[:, 16:] == after[:, 16:]).all()
    # and the latents there are those of the image, whatever the scheduler did
    known = torch.nn.functional.avg_pool2d(torch.from_numpy(before.copy()).permute(2, 0, 1)[None] / 255, 4)
    assert close(result.latents[..., :4], known[..., :4], 1e-5)


def test_a_mask_with_strength_one_paints_without_regard_to_what_was_there() -> None:
    pipe = sdkit.pipeline(toy_model(sdkit.RectifiedFlow()))
    results = [
        pipe(Request("x" * 20, image=picture(colour), mask=Image.new("L", (32, 32), 255)))
        for colour in ((0, 0, 0), (255, 255, 255))
    ]
    assert torch.equal(results[0].latents, results[1].latents)


def test_one_pipeline_serves_many_threads() -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler="ddim(eta=1)")
    alone = {seed: pipe(Request("hello", seeds=(seed,))).latents for seed in range(8)}
    found: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        found[seed] = pipe(Request("hello", seeds=(seed,))).latents

    threads = [threading.Thread(target=work, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], alone[seed]) for seed in alone)


def test_two_streams_interleaved_equal_two_apart() -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler="dpmpp-2m")
    requests = [Request("one", steps=6), Request("another text", steps=6, seeds=(5,))]
    apart = [pipe(request).latents for request in requests]
    last: list[Any] = [None, None]
    for pair in zip(*(pipe.stream(request) for request in requests), strict=True):
        last = list(pair)
    assert all(torch.equal(event.result.latents, straight) for event, straight in zip(last, apart, strict=True))


class Recorder:
    """A modifier that doubles the denoiser's answer inside its scope, and says when it was entered and left."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def apply(self, parts: sdkit.Parts[Any, Any, Any], /) -> Any:
        self.log.append("enter")
        inner = parts.denoiser

        def doubled(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
            return inner(x, level, cond) * 2

        try:
            yield attrs.evolve(parts, denoiser=doubled)
        finally:
            self.log.append("leave")


def test_a_stopped_stream_leaves_its_modifiers_and_the_next_run_is_as_ever() -> None:
    pipe = sdkit.pipeline(toy_model())
    straight = pipe(Request("hello", steps=6)).latents
    for stop in range(1, 7):
        recorder = Recorder()
        stream = pipe.stream(Request("hello", steps=6, modifiers=(recorder,)))
        for _ in range(stop):
            next(stream)
        assert recorder.log == ["enter"]
        stream.close()  # type: ignore[attr-defined]
        assert recorder.log == ["enter", "leave"]
        assert torch.equal(pipe(Request("hello", steps=6)).latents, straight)


def test_a_modifier_changes_the_run_it_is_asked_for_and_no_other() -> None:
    pipe = sdkit.pipeline(toy_model())
    plain = pipe(Request("hello")).latents
    changed = pipe(Request("hello", modifiers=(Recorder(),))).latents
    assert not torch.equal(plain, changed)
    assert torch.equal(plain, pipe(Request("hello")).latents)


def test_gradients_are_off_inside_a_run_and_as_before_for_the_caller() -> None:
    model = toy_model()
    seen = []

    def denoiser(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return model.denoiser(x, level, cond)

    pipe = attrs.evolve(sdkit.pipeline(model), denoiser=denoiser)
    for _ in pipe.stream(Request("hello", steps=3)):
        assert torch.is_grad_enabled()
    assert seen == [False] * 3


def test_equal_prompts_are_encoded_once() -> None:
    model = toy_model()
    sdkit.pipeline(model)(Request("hello", seeds=(1, 2, 3)))
    assert isinstance(model.encoder, ToyEncoder)
    assert model.encoder.calls == [["hello", ""]]


def test_a_pipeline_composed_by_hand_needs_no_model() -> None:
    schedule = sdkit.scaled_linear()
    own = sdkit.Pipeline(
        encoder=ToyEncoder(),
        denoiser=sdkit.guided(ToyDenoiser(schedule, []), scale=2.0),
        scheduler=sdkit.Heun(),
        decoder=ToyAutoencoder(),
        spacing=sdkit.Karras(),
    )
    result = own(Request("hello", steps=6))
    expected = sdkit.pipeline(toy_model(), scheduler="heun")(Request("hello", steps=6))
    assert torch.equal(result.latents, expected.latents)
    assert result.manifest.request.scheduler == "heun"
    assert result.manifest.request.guidance == 2.0


def test_a_grid_given_by_hand_is_walked_verbatim() -> None:
    grid = (sdkit.Level(900, 0.1, 0.9), sdkit.Level(300, 0.6, 0.4), sdkit.Level(1, 1, 0.01))
    model = toy_model()
    result = sdkit.pipeline(model, spacing=grid)(Request("hello"))
    assert result.manifest.grid == grid
    assert isinstance(model.denoiser, ToyDenoiser)
    assert [t for _, t in model.denoiser.calls] == [900, 300]


def test_guidance_one_runs_the_denoiser_on_a_single_batch() -> None:
    model = toy_model()
    sdkit.pipeline(model)(Request("hello", guidance=1.0, seeds=(1, 2)))
    assert isinstance(model.denoiser, ToyDenoiser)
    assert {batch for batch, _ in model.denoiser.calls} == {2}
    sdkit.pipeline(model)(Request("hello", guidance=3.0, seeds=(1, 2)))
    assert {batch for batch, _ in model.denoiser.calls} == {2, 4}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_an_error_that_names_the_slot_and_the_level(bad: float) -> None:
    def broken(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        return x * bad if level.sigma < 0.5 else x

    pipe = attrs.evolve(sdkit.pipeline(toy_model()), denoiser=broken)
    with pytest.raises(sdkit.NonFiniteError, match="out of the denoiser in evaluation .* at t="):
        pipe(Request("hello"))


def test_nan_from_the_decoder_is_an_error_and_not_a_black_picture() -> None:
    class Black(ToyAutoencoder):
        def __call__(self, latents: Tensor, /) -> Tensor:
            return super().__call__(latents) * float("nan")

    with pytest.raises(sdkit.NonFiniteError, match="decoder"):
        attrs.evolve(sdkit.pipeline(toy_model()), decoder=Black())(Request("hello"))


def test_an_error_inside_a_step_says_where() -> None:
    def broken(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom") as caught:
        attrs.evolve(sdkit.pipeline(toy_model()), denoiser=broken)(Request("hello", steps=4))
    assert caught.value.__notes__[0] == "in the denoiser"
    assert "in step 1 of 4" in caught.value.__notes__[1]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("x", size=(33, 32)), "multiples of 8; near is 32x32"),
        (Request("x", size=(4, 4)), "near is 8x8"),
        (Request("x", scheduler="eulr"), "did you mean euler"),
        (Request("x", spacing="karas"), "did you mean karras"),
        (Request("x", scheduler="ddim(etaa=1)"), "no parameter 'etaa'; did you mean eta"),
        (Request("x", scheduler="ddim(eta=7)"), "between 0 .* and 1 .*not 7"),
        (Request("x", scheduler="ddim(eta='a')"), "refuses"),
        (Request("x", negative="y", guidance=1.0), "negative prompt acts through guidance"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused_before_anything_runs(request_: Request, message: str) -> None:
    model = toy_model()
    pipe = sdkit.pipeline(model)
    with pytest.raises(sdkit.SdkitError, match=message):
        pipe.stream(request_)
    assert isinstance(model.denoiser, ToyDenoiser)
    assert model.denoiser.calls == []


def test_a_decoder_that_cannot_encode_takes_no_start_image() -> None:
    def decode(latents: Tensor, /) -> Tensor:
        return latents.clamp(0, 1)

    pipe = attrs.evolve(sdkit.pipeline(toy_model()), decoder=decode)
    with pytest.raises(sdkit.InvalidRequest, match="cannot encode"):
        pipe.plan(Request("x", image=picture()))


def test_a_bare_spacing_without_a_schedule_says_what_to_give() -> None:
    def denoiser(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        return x

    pipe = sdkit.Pipeline(ToyEncoder(), denoiser, sdkit.Euler(), ToyAutoencoder(), spacing=sdkit.Karras())
    with pytest.raises(sdkit.InvalidRequest, match="give the Pipeline schedule="):
        pipe.plan(Request("x"))


def test_a_decoder_of_other_things_than_tensors_gives_what_it_gives() -> None:
    def decode(latents: Tensor, /) -> list[str]:
        return [f"{float(row.mean()):.1f}" for row in latents]

    pipe = sdkit.Pipeline(
        ToyEncoder(),
        ToyDenoiser(sdkit.scaled_linear(), []),
        sdkit.Euler(),
        decode,
        spacing=sdkit.Karras(),
        spec=sdkit.ModelSpec("toy", "toy", LATENT),
    )
    assert pipe(Request("x" * 40, seeds=(1, 2), steps=4)).images == ("1.0", "1.0")


class Plain:
    """A scheduler no plugin registers, as a user writes it in a notebook."""

    traits = sdkit.Traits(1, None, False, True, 1)

    def init(self, x: Tensor, grid: sdkit.Grid, /) -> None:
        return None

    def step(
        self,
        denoise: sdkit.Denoise,
        x: Tensor,
        start: sdkit.Level,
        stop: sdkit.Level,
        state: None,
        noise: sdkit.Noise,
        /,
    ) -> sdkit.Step[None]:
        assert x.ndim == 4
        return sdkit.Euler().step(denoise, x, start, stop, None, noise)


def test_a_scheduler_nobody_registered_runs_and_says_so(tmp_path: Path) -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler=Plain())
    result = pipe(Request("hello"))
    assert torch.equal(result.latents, sdkit.pipeline(toy_model(), scheduler="euler")(Request("hello")).latents)
    assert result.manifest.request.scheduler == "custom:Plain"
    (file,) = result.save(tmp_path / "a.png")
    with pytest.raises(sdkit.UnknownComponent, match="custom:Plain"):
        sdkit.rerun(file, model=toy_model())


@pytest.mark.parametrize("spacing", ["karras", (sdkit.Level(900, 0.1, 0.9), sdkit.Level(-1, 1, 0))])
def test_a_planned_request_asked_again_does_the_same(spacing: Any) -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler=Plain(), spacing=spacing)
    plan = pipe.plan(Request("hello", seeds=(3,)))
    assert torch.equal(pipe(plan.request).latents, pipe(Request("hello", seeds=(3,))).latents)
    assert pipe.plan(plan.request).request == plan.request


def test_names_are_written_as_the_registry_knows_them() -> None:
    request = sdkit.pipeline(toy_model()).plan(Request("x", scheduler="k_heun", spacing="Simple")).request
    assert (request.scheduler, request.spacing) == ("heun", "trailing")


class Particular(Recorder):
    """A modifier that serves pictures of one size alone."""

    def check(self, request: Request) -> None:
        if request.size != (32, 32) or request.steps is None:
            raise sdkit.InvalidRequest(f"not of {request.size} in {request.steps} steps")


def test_a_modifier_is_asked_about_the_request_before_anything_is_computed() -> None:
    pipe, modifier = sdkit.pipeline(toy_model()), Particular()
    for ask in (pipe.plan, pipe, lambda request: next(pipe.stream(request))):
        with pytest.raises(sdkit.InvalidRequest, match=r"not of \(64, 32\) in [0-9]+ steps"):
            ask(Request("hello", size=(64, 32), modifiers=(modifier,)))
    assert modifier.log == []
    pipe(Request("hello", modifiers=(modifier,)))  # the size and the steps that the model recommends are filled in
    assert modifier.log == ["enter", "leave"]


def test_guidance_goes_around_what_modifiers_make_of_the_denoiser() -> None:
    model = toy_model()
    hand = attrs.evolve(sdkit.pipeline(model), denoiser=sdkit.guided(model.denoiser, 2.0))
    changed = hand(Request("hello", modifiers=(Recorder(),)))
    assert torch.equal(
        changed.latents, sdkit.pipeline(model)(Request("hello", guidance=2.0, modifiers=(Recorder(),))).latents
    )


def test_rescale_and_interval_of_a_request_reach_the_denoiser_and_can_switch_a_pipelines_off() -> None:
    model = toy_model()
    plain = sdkit.pipeline(model)

    def latents(pipe: Any, **fields: Any) -> Tensor:
        return pipe(Request("hello", guidance=4.0, **fields)).latents  # type: ignore[no-any-return]

    base = latents(plain)
    rescaled, limited = latents(plain, guidance_rescale=0.7), latents(plain, guidance_interval=(0.1, 2.0))
    assert not torch.equal(base, rescaled)
    assert not torch.equal(base, limited)
    own = attrs.evolve(plain, denoiser=sdkit.guided(model.denoiser, 4.0, rescale=0.7))
    assert torch.equal(own(Request("hello")).latents, rescaled)
    assert torch.equal(latents(own, guidance_rescale=0.0), base)
    own = attrs.evolve(plain, denoiser=sdkit.guided(model.denoiser, 4.0, interval=(0.1, 2.0)))
    assert torch.equal(own(Request("hello")).latents, limited)
    assert torch.equal(latents(own, guidance_interval=(0.0, float("inf"))), base)


def test_image_to_image_starts_from_the_noised_image_exactly() -> None:
    model, image = toy_model(), Image.effect_noise((32, 32), 90).convert("RGB")
    seen: list[Tensor] = []

    def denoiser(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        seen.append(x.clone())
        return x

    pipe = attrs.evolve(sdkit.pipeline(model), denoiser=denoiser)
    request = Request("x", image=image, strength=0.5, seeds=(8,), guidance=1.0)
    pipe(request)
    level = pipe.plan(request).grid[0]
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    noise = sdkit.AddressedNoise((8,)).initial(seen[0])
    assert close(seen[0], level.alpha * model.autoencoder.encode(pixels) + level.sigma * noise, 1e-6)


def test_a_latent_element_is_painted_if_any_of_its_pixels_is() -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.putpixel((5, 9), 255)
    pipe = sdkit.pipeline(toy_model())
    start = picture()
    result = pipe(Request("x" * 40, image=start, mask=mask, guidance=1.0))
    known = torch.tensor([200, 100, 50]).reshape(1, 3, 1, 1) / 255
    changed = ((result.latents - known).abs() > 1e-3).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("scheduler", ["heun", "dpmpp-2m", "ddim(eta=1)"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_run_goes_on_from_any_event_in_the_same_bits(scheduler: str, masked: bool) -> None:
    pipe = sdkit.pipeline(toy_model(), scheduler=scheduler)
    extra = {"image": picture(), "mask": split_mask()} if masked else {}
    request = Request("hello", steps=6, seeds=(1, 2), **extra)  # type: ignore[arg-type]
    *events, last = pipe.stream(request)
    assert isinstance(last, sdkit.ResultEvent)
    for event in events[:-1]:
        kept = pickle.loads(pickle.dumps(event))
        *rest, end = pipe.stream(request, resume=kept)
        assert isinstance(end, sdkit.ResultEvent)
        assert torch.equal(end.result.latents, last.result.latents)
        assert len(rest) == 6 - event.index  # type: ignore[union-attr]
        assert end.result.manifest.evaluations == last.result.manifest.evaluations
    with pytest.raises(sdkit.InvalidRequest, match="cannot go on"):
        next(pipe.stream(attrs.evolve(request, steps=9), resume=events[2]))  # type: ignore[arg-type]


def test_a_call_keeps_no_step_but_the_last() -> None:
    pipe = sdkit.pipeline(toy_model())
    alive: list[int] = []
    kept: list[Any] = []

    class Counting(sdkit.Euler):  # type: ignore[misc]
        def step(self, *arguments: Any) -> Any:
            alive.append(sum(ref() is not None for ref in kept))
            step = super().step(*arguments)
            kept.append(weakref.ref(step.denoised))
            return step

    attrs.evolve(pipe, scheduler=Counting())(Request("hello", steps=20))
    assert max(alive) <= 3


def test_a_denoiser_that_changes_the_shape_is_named() -> None:
    pipe = attrs.evolve(sdkit.pipeline(toy_model()), denoiser=lambda x, level, cond: x[:, :1])
    with pytest.raises(sdkit.ContractError, match=r"shape \(1, 1, 8, 8\) for latents of shape \(1, 3, 8, 8\)"):
        pipe(Request("hello", guidance=1.0))


@pytest.mark.parametrize("slot", ["encoder", "denoiser", "decoder"])
def test_an_error_carries_the_name_of_its_slot(slot: str) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError) as caught:
        attrs.evolve(sdkit.pipeline(toy_model()), **{slot: broken})(Request("hello"))
    assert f"in the {slot}" in caught.value.__notes__


def test_nan_from_a_scheduler_is_named() -> None:
    class Broken(Plain):
        def step(self, *arguments: Any) -> Any:
            step = super().step(*arguments)
            return attrs.evolve(step, x=step.x * float("nan"))

    with pytest.raises(sdkit.NonFiniteError, match="out of the scheduler in step 1"):
        sdkit.pipeline(toy_model(), scheduler=Broken())(Request("hello"))


def test_on_other_devices_the_check_waits_for_the_end_and_still_names_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = sys.modules["sdkit.pipelines"]._FiniteCheck
    looked: list[int] = []
    settle = check.settle
    monkeypatch.setattr(check, "settle", lambda self: (looked.append(len(self._pending)), settle(self))[1])
    # the tensors are the CPU's, but the check is told otherwise: nothing may be read before the end
    monkeypatch.setattr(check, "waits", lambda self, tensor: True)

    def broken(x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        return x * (float("nan") if level.sigma < 0.5 else 1)

    pipe = attrs.evolve(sdkit.pipeline(toy_model()), denoiser=broken)
    first = next(i for i, level in enumerate(pipe.plan(Request("hello")).grid) if level.sigma < 0.5) + 1
    with pytest.raises(sdkit.NonFiniteError, match=f"denoiser in evaluation {first} "):
        pipe(Request("hello"))
    assert looked == [12]


def test_decoders_of_one_channel_or_of_videos_are_taken_as_they_are() -> None:
    pipe = sdkit.pipeline(toy_model())
    grey = attrs.evolve(pipe, decoder=lambda latents: latents[:, :1].clamp(0, 1))(Request("x" * 20))
    assert grey.images[0].mode == "L"
    film = attrs.evolve(pipe, decoder=lambda latents: latents[:, :, None])(Request("x" * 20, seeds=(1, 2)))
    assert [frame.shape for frame in film.images] == [(3, 1, 8, 8)] * 2
    arrays = attrs.evolve(pipe, decoder=lambda latents: list(latents.numpy()))(Request("x" * 20))
    assert arrays.images[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: sdkit.pipeline(m)("a fox"), r"takes a Request, not 'a fox'; write sdkit.Request\('a fox'\)"),
        (lambda m: sdkit.pipeline("toy"), "made of a model, not of 'toy'"),
        (lambda m: sdkit.pipeline(m, scheduler=sdkit.Heun), r"is a class; give one of its objects: Heun\(\)"),
        (lambda m: Request("x", scheduler=sdkit.Heun()), "names its scheduler"),  # type: ignore[arg-type]
        (lambda m: Request("x", modifiers="dbl"), "tuple of modifiers"),
        (lambda m: sdkit.pipeline(m)(Request("x", modifiers=("dbl",))), "no modifier 'dbl'"),
        (
            lambda m: sdkit.pipeline(m)(Request("x", image=picture(), strength=1e-9, steps_policy="exact")),
            "allowed are 100000",
        ),
    ],
)
def test_what_people_try_first_gets_a_sentence(use: Any, message: str) -> None:
    with pytest.raises(sdkit.SdkitError, match=message):
        use(toy_model())


def test_a_list_of_levels_is_a_grid() -> None:
    grid = [sdkit.Level(900, 0.1, 0.9), sdkit.Level(-1, 1, 0)]
    assert sdkit.pipeline(toy_model(), spacing=grid)(Request("x")).manifest.grid == tuple(grid)  # type: ignore[arg-type]


def test_a_name_may_hold_scheduler_and_spacing() -> None:
    pipe = sdkit.pipeline(toy_model(), spacing="trailing")
    request = pipe.plan(Request("x", scheduler="DPM++ 2M Karras")).request
    assert (request.scheduler, request.spacing) == ("dpmpp-2m", "karras")
    assert pipe.plan(request).request == request
    with pytest.raises(sdkit.ParameterError, match="names the spacing karras; leave 'trailing' out"):
        pipe.plan(Request("x", scheduler="DPM++ 2M Karras", spacing="trailing"))
    both = sdkit.pipeline(toy_model(), scheduler="Heun Karras")
    assert (both.scheduler, both.spacing) == (sdkit.Heun(), sdkit.Karras())
    with pytest.raises(sdkit.ParameterError, match="names the spacing karras"):
        sdkit.pipeline(toy_model(), scheduler="Heun Karras", spacing="trailing")
    with pytest.raises(sdkit.UnknownComponent, match="no scheduler 'DPM.. 2M Kerras'"):
        pipe.plan(Request("x", scheduler="DPM++ 2M Kerras"))
