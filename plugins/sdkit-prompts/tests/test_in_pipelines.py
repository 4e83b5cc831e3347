"""Dialects at work in pipelines whose every part has a closed form: schedules, alternation, AND, weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdkit
from sdkit import Conditions, InvalidRequest, Level, ParameterError, guided, registry, take
from sdkit_prompts import chunks
from sdkit_prompts.a1111 import A1111
from sdkit_prompts.composed import Composed, Composing, composing
from sdkit_prompts.modifier import Prompted, Prompts

LATENT = sdkit.LatentSpec(channels=3, factor=4, size=(16, 16))
SCHEDULE = sdkit.scaled_linear()
GRID = sdkit.Karras()(SCHEDULE, 6)
LEVEL = Level(500, 0.6, 0.8)
MEANS = {"a fox": 0.3, "a cat": -0.4, "red": 0.9, "": 0.05, "blurry": -0.7, "a  fox": 0.2, "a red fox": 0.5}


class Means:
    """Prompts to the mean of their data; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, prompts: Sequence[str], /) -> Tensor:
        self.asked.append(list(prompts))
        return torch.tensor([MEANS[prompt] for prompt in prompts])


class Gaussian:
    """E[x0 | x] of data N(mean, 0.2^2); remembers its batches and the means it saw."""

    schedule = SCHEDULE

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def __call__(self, x: Tensor, level: Level, cond: Tensor, /) -> Tensor:
        self.seen.append([round(value, 4) for value in cond.tolist()])
        return exact(x, level, cond)


def exact(x: Tensor, level: Level, mean: Tensor) -> Tensor:
    mean = mean.to(x).reshape(-1, *[1] * (x.ndim - 1))
    gain = level.alpha * 0.04 / (level.alpha**2 * 0.04 + level.sigma**2)
    return mean + gain * (x - level.alpha * mean)


def pipeline(encoder: Any = None, denoiser: Any = None, scheduler: Any = None) -> sdkit.Pipeline[Any, Any, Any]:
    spec = sdkit.ModelSpec("toy", "toy", LATENT, steps=6)
    return sdkit.Pipeline(
        encoder or Means(), denoiser or Gaussian(), scheduler or sdkit.Euler(), lambda x: x, spacing=GRID, spec=spec
    )


def x_of(count: int) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def encoded(*prompts: str, law: str = "guidance") -> Composed[Tensor]:
    return Prompted(Means(), A1111(), law).along(GRID)(prompts)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_prompt_without_syntax_is_what_it_was(guidance: float | None) -> None:
    request = sdkit.Request("a fox", seeds=(1, 2), guidance=guidance)
    plain = pipeline()(request).latents
    assert torch.equal(pipeline()(attrs.evolve(request, modifiers=("prompts",))).latents, plain)


@pytest.mark.parametrize("scheduler", [sdkit.Euler(), sdkit.Ddim(1.0), sdkit.DpmPP2M()])
def test_a_schedule_says_the_one_and_then_the_other(scheduler: Any) -> None:
    """The run equals one whose denoiser is told by hand which prompt is active at a level."""

    def by_hand(x: Tensor, level: Level, cond: Tensor) -> Tensor:
        means = {True: MEANS["a fox"], False: MEANS["a cat"]}
        return exact(x, level, torch.full((len(x),), means[level.log_snr < GRID[2].log_snr]))

    request = sdkit.Request("[a fox:a cat:2]", seeds=(1, 2))
    found = pipeline(scheduler=scheduler)(attrs.evolve(request, modifiers=("prompts",)))
    expected = pipeline(denoiser=by_hand, scheduler=scheduler)(attrs.evolve(request, prompt="a fox"))
    torch.testing.assert_close(found.latents, expected.latents, rtol=1e-5, atol=1e-5)
    plain = pipeline(scheduler=scheduler)(attrs.evolve(request, prompt="a fox")).latents
    assert not torch.allclose(found.latents, plain, atol=0.01)


def test_steps_see_the_prompt_of_their_step() -> None:
    cases = {
        "[a fox:a cat:0.5]": [0.3] * 3 + [-0.4] * 3,
        "[a fox|a cat]": [0.3, -0.4] * 3,
        "[a fox:a cat:99]": [0.3] * 6,
        "[a fox::4]": [0.3] * 4 + [0.05] * 2,
    }
    for prompt, expected in cases.items():
        denoiser = Gaussian()
        pipeline(denoiser=denoiser)(sdkit.Request(prompt, modifiers=("prompts",)))
        assert [seen[0] for seen in denoiser.seen] == expected


def test_a_resumed_run_goes_on_with_the_prompt_of_its_step() -> None:
    request = sdkit.Request("[a fox|a cat]", modifiers=("prompts",), guidance=2)
    events = list(pipeline().stream(request))
    for event in events[:-2]:
        *_, last = pipeline().stream(request, resume=event)  # type: ignore[arg-type]
        assert torch.equal(last.result.latents, events[-1].result.latents)  # type: ignore[union-attr]


def test_each_distinct_prompt_is_encoded_once() -> None:
    encoder = Means()
    request = sdkit.Request("[a fox|a cat]", negative="blurry", seeds=(1, 2, 3), guidance=2, modifiers=("prompts",))
    pipeline(encoder)(request)
    assert encoder.asked == [["a fox", "blurry", "a cat"]]


# AND.

PROMPTS = st.lists(st.tuples(st.sampled_from(["a fox", "a cat", "red"]), st.floats(-2, 3)), min_size=2, max_size=3)


def formula(x: Tensor, branches: Sequence[tuple[str, float]], negative: str, scale: float) -> Tensor:
    """D_neg + scale sum_i w_i (D_i - D_neg), Liu et al. 2022, in float64."""
    x = x.double()

    def d(prompt: str) -> Tensor:
        return exact(x, LEVEL, torch.tensor([MEANS[prompt]]).double())

    away = d(negative)
    return away + scale * sum((w * (d(p) - away) for p, w in branches), torch.zeros_like(x))


def text_of(branches: Sequence[tuple[str, float]]) -> str:
    return " AND ".join(f"{prompt} :{weight:.12f}" for prompt, weight in branches)


@given(PROMPTS, st.sampled_from(["", "blurry"]), st.floats(-3, 9).filter(lambda s: s != 1))
def test_and_is_its_formula(branches: list[tuple[str, float]], negative: str, scale: float) -> None:
    x = x_of(1)
    cond = encoded(text_of(branches), negative)
    found = guided(composing(Gaussian()), scale)(x, LEVEL, Conditions(take(cond, [0]), take(cond, [1])))
    torch.testing.assert_close(found.double(), formula(x, branches, negative, scale), rtol=1e-4, atol=1e-4)


def test_and_of_weights_that_sum_to_nothing_still_moves() -> None:
    x, branches = x_of(1), [("a fox", 1.0), ("a cat", -1.0)]
    cond = encoded(text_of(branches), "")
    found = guided(composing(Gaussian()), 4)(x, LEVEL, Conditions(take(cond, [0]), take(cond, [1])))
    torch.testing.assert_close(found.double(), formula(x, branches, "", 4), rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidRequest, match="sum to 0; without guidance"):
        composing(Gaussian())(x, LEVEL, take(cond, [0]))


def test_and_costs_one_prediction_for_each_prompt_and_one_for_the_negative() -> None:
    denoiser = Gaussian()
    pipeline(denoiser=denoiser)(
        sdkit.Request("a fox AND a cat :0.5", negative="blurry", seeds=(1, 2), guidance=3, modifiers=("prompts",))
    )
    assert denoiser.seen == [[0.3, -0.4, 0.3, -0.4, -0.7, -0.7]] * 6


def test_without_guidance_and_is_the_weighted_mean() -> None:
    x, cond = x_of(1), encoded("a fox :1 AND a cat :3")
    mean = (exact(x, LEVEL, torch.tensor([0.3])) + 3 * exact(x, LEVEL, torch.tensor([-0.4]))) / 4
    torch.testing.assert_close(composing(Gaussian())(x, LEVEL, cond), mean)


def test_images_of_a_batch_do_not_mix() -> None:
    texts = ["a fox AND a cat :0.5", "[a fox:red:2]", "red", "[a cat|a fox]"]
    cond, x = encoded(*texts, "blurry"), x_of(4)
    pairs = Conditions(take(cond, [0, 1, 2, 3]), take(cond, [4] * 4))
    together = guided(composing(Gaussian()), 4)(x, LEVEL, pairs)
    for k, text in enumerate(texts):
        alone = encoded(text, "blurry")
        pair = Conditions(take(alone, [0]), take(alone, [1]))
        torch.testing.assert_close(guided(composing(Gaussian()), 4)(x[k : k + 1], LEVEL, pair), together[k : k + 1])


def test_and_of_schedules_changes_each_branch_on_its_own() -> None:
    denoiser = Gaussian()
    pipeline(denoiser=denoiser)(sdkit.Request("[a fox:a cat:2] AND [red|]", modifiers=("prompts",)))
    assert denoiser.seen == [[0.3, 0.9], [0.3, 0.05], [-0.4, 0.9], [-0.4, 0.05], [-0.4, 0.9], [-0.4, 0.05]]


def test_a_blend_is_a_sum_of_conditionings() -> None:
    denoiser = Gaussian()
    modifier = Prompts("compel")
    pipeline(denoiser=denoiser)(sdkit.Request('("a fox", "a cat").blend(1, 3)', modifiers=(modifier,)))
    assert denoiser.seen == [[round(0.25 * 0.3 - 0.75 * 0.4, 4)]] * 6


# Weights.


def test_the_guidance_law_strengthens_what_a_fragment_changes() -> None:
    """D + (w - 1) (D - D without the fragment), for an encoder that knows no weights."""
    x = x_of(1)
    full, without = (exact(x, LEVEL, torch.tensor([MEANS[p]])) for p in ("a red fox", "a  fox"))
    for weight in (0.0, 0.5, 1.7):
        found = composing(Gaussian())(x, LEVEL, encoded(f"a (red:{weight}) fox"))
        torch.testing.assert_close(found, full + (weight - 1) * (full - without))


class Weighing:
    """An encoder that takes weights: what is asked of it, and embeddings through `chunks.encode`."""

    def __init__(self) -> None:
        self.laws: list[str] = []

    def __call__(self, prompts: Sequence[str], /) -> Tensor:
        raise AssertionError("an encoder with `weighted` is asked for that")

    def weighted(self, flats: Sequence[Any], law: str, /) -> Tensor:
        self.laws.append(law)

        def network(ids: Tensor, mask: Tensor | None) -> Tensor:
            return torch.sin(ids.float())[..., None] * torch.ones(3)

        marks = chunks.Marks(1000, 1001, size=8)
        states = chunks.encode(flats, law, network, lambda text: [ord(c) for c in text], marks).states
        return states[:, 1, 0]  # the first letter's, weighted


@pytest.mark.parametrize(
    ("modifier", "prompt", "law"),
    [
        ("prompts", "(x:2)", "a1111"),
        ("prompts(law='comfyui')", "(x:2)", "comfyui"),
        ("prompts(dialect='compel')", "(x)2", "compel"),
        ("prompts(dialect='compel', law='a1111')", "(x)2", "a1111"),
    ],
)
def test_an_encoder_that_takes_weights_gets_them_with_the_law(modifier: str, prompt: str, law: str) -> None:
    encoder, denoiser = Weighing(), Gaussian()
    result = pipeline(encoder, denoiser)(sdkit.Request(prompt, modifiers=(modifier,)))
    assert encoder.laws == [law]
    assert result.manifest.request.modifiers == (modifier,)
    letter, empty = (float(torch.sin(torch.tensor(float(i)))) for i in (ord("x"), 1001))
    if law != "a1111":
        assert denoiser.seen[0] == [round(empty + 2 * (letter - empty), 4)]


def test_what_the_modifier_was_travels_in_the_manifest() -> None:
    modifier = registry().make("modifier", "prompts(dialect='compel')")
    assert modifier == Prompts("compel")
    result = pipeline()(sdkit.Request("a fox", modifiers=(modifier,)))
    again = sdkit.from_json(sdkit.to_json(result.manifest), sdkit.Manifest)
    assert again.request.modifiers == (modifier,)


def test_an_encoder_asked_for_every_image_is() -> None:
    class PerImage(Means):
        per_image = True

    encoder = PerImage()
    pipeline(encoder)(sdkit.Request("[a fox|a cat]", seeds=(1, 2), guidance=2, modifiers=("prompts",)))
    assert encoder.asked == [["a fox", "a fox", "", ""], ["a cat", "a cat", "", ""]]


# Refusals.


@pytest.mark.parametrize(
    ("prompt", "modifier", "reason"),
    [
        ("a fox <lora:x:1>", "prompts", "asks for <lora:x>, and a prompt opens no files"),
        ("a fox BREAK red", "prompts", "take BREAK out"),
        ("a fox", "prompts(law='a1111')", "this model's encoder gives none"),
        ("a fox", "prompts(dialect='a1112')", "There is no prompt-dialect 'a1112'; did you mean a1111"),
    ],
)
def test_what_cannot_be_done_is_said(prompt: str, modifier: str, reason: str) -> None:
    with pytest.raises(sdkit.SdkitError, match=reason):
        pipeline()(sdkit.Request(prompt, modifiers=(modifier,)))


def test_an_unknown_law_is_refused_at_once() -> None:
    with pytest.raises(ParameterError, match="no weight law 'loud'"):
        Prompts(law="loud")


def test_without_a_way_what_changes_is_refused() -> None:
    encoder: Prompted[Tensor] = Prompted(Means(), A1111(), "guidance")
    assert encoder(["a fox"]).parts[0].tolist() == pytest.approx([0.3])
    for text in ("[a fox|a cat]", "[a fox:a cat:0.5]", "[a fox:a cat:30]"):
        with pytest.raises(InvalidRequest, match="changes with the steps"):
            encoder([text])


def test_wrappers_pass_on_the_schedule() -> None:
    assert composing(Gaussian()).schedule is SCHEDULE
    assert isinstance(composing(Gaussian()), Composing)


@pytest.mark.slow
def test_the_embedded_model_takes_schedules_and_and() -> None:
    pipe = sdkit.pipeline(sdkit.load("emoji"))

    def latents(prompt: str, *modifiers: str) -> Tensor:
        return pipe(sdkit.Request(prompt, seeds=(1,), steps=4, size=(64, 64), modifiers=modifiers)).latents

    fox, cat = latents("a fox"), latents("a cat")
    assert torch.equal(latents("a fox", "prompts"), fox)
    assert torch.allclose(latents("[a fox:a cat:4]", "prompts"), fox, atol=1e-4)
    assert torch.allclose(latents("[a fox:a cat:0]", "prompts"), cat, atol=1e-4)
    between = latents("[a fox:a cat:2]", "prompts")
    both = latents("a fox :0.5 AND a cat :0.5", "prompts")
    weighted = latents("a (red:1.5) fox", "prompts")
    for found in (between, both, weighted):
        assert torch.isfinite(found).all()
        assert float((found - fox).abs().mean()) > 0.02
        assert float((found - cat).abs().mean()) > 0.02


def test_the_command_line_takes_a_dialect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sdkit.cli import main

    common = ["generate", "[a fox:a cat:0.5]", "--steps", "2", "--size", "32x32", "--seed", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*common, "--dialect", "a1111", "--out", str(tmp_path / "a.png")])
    assert ended.value.code == 0
    assert sdkit.read_manifest(tmp_path / "a.png").request.modifiers == (Prompts(),)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*common, "--dialect", "a1112", "--out", str(tmp_path / "b.png")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: There is no prompt-dialect 'a1112'; did you mean a1111?\n"


# The pages.


@pytest.mark.parametrize("page", ["prompts"])
def test_the_pages_python_runs(page: str) -> None:
    text = (Path(__file__).parents[3] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page} block {number}", "exec"), {"__name__": "page"})


class OwnPair(Gaussian):
    """Answers both sides of guidance in a way of its own: what it is moved toward is shifted, the other is not."""

    def pair(self, x: Tensor, level: Level, cond: Conditions[Tensor]) -> tuple[Tensor, Tensor]:
        return self(x, level, cond.positive) + 1, self(x, level, cond.negative)


@given(st.lists(st.tuples(st.sampled_from(["a fox", "a cat", "red"]), st.floats(-2, 3)), min_size=1, max_size=3))
def test_a_denoiser_that_answers_both_sides_itself_is_asked_for_both(branches: list[tuple[str, float]]) -> None:
    x = x_of(2)
    text = (
        " AND ".join(f"{prompt} :{weight:.12f}" for prompt, weight in branches) if len(branches) > 1 else branches[0][0]
    )
    weights = [weight for _, weight in branches] if len(branches) > 1 else [1.0]
    cond = Conditions(encoded(text, "a fox"), encoded("blurry", "a cat AND red"))
    positive, negative = composing(OwnPair()).pair(x, LEVEL, cond)

    def alone(prompt: str, row: int) -> Tensor:
        return exact(x[row : row + 1], LEVEL, torch.tensor([MEANS[prompt]]))[0]

    terms = [w * (alone(prompt, 0) + 1) for (prompt, _), w in zip(branches, weights, strict=True)]
    first = sum(terms, torch.zeros_like(x[0])) + (1 - sum(weights)) * alone("blurry", 0)
    torch.testing.assert_close(positive[0], first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(negative[0], alone("blurry", 0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(positive[1], alone("a fox", 1) + 1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(negative[1], (alone("a cat", 1) + alone("red", 1)) / 2, rtol=1e-5, atol=1e-5)


def test_and_is_refused_where_images_have_adapters_of_their_own() -> None:
    denoiser = Gaussian()
    denoiser.per_image = True  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequest, match="one by one"):
        composing(denoiser)(x_of(1), LEVEL, encoded("a fox AND red"))
    assert composing(denoiser)(x_of(1), LEVEL, encoded("a fox")).shape == (1, 3, 4, 4)
