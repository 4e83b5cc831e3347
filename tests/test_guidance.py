"""Guidance and inpainting: denoisers around denoisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkit import (
    AddressedNoise,
    Conditions,
    Ddim,
    DpmPP2M,
    Euler,
    Guided,
    Heun,
    Inpainted,
    Karras,
    Level,
    NoiseSchedule,
    ParameterError,
    RectifiedFlow,
    Scheduler,
    Trailing,
    guided,
    scaled_linear,
    solve,
)
from sdkit.guidance import condition
from tests.oracles import latents

LEVEL = Level(500, 0.6, 0.8)
scales = st.floats(-5, 20)
offsets = st.floats(-3, 3)


class Counting:
    """A linear denoiser toward its conditioning, a mean per image; remembers what it was called with."""

    schedule = scaled_linear()

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, level: Level, cond: Tensor, /) -> Tensor:
        self.batches.append(x.shape[0])
        mean = cond.to(x).reshape(-1, *[1] * (x.ndim - 1))
        return mean + 0.5 * x * (1 + 0.1 * mean)


def means(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(positive: Sequence[float] = (1.0, 2.0), negative: Sequence[float] = (-1.0, 0.5)) -> Conditions[Tensor]:
    return Conditions(means(*positive), means(*negative))


def test_scale_one_is_one_forward_pass_of_the_batch_itself() -> None:
    inner, x, cond = Counting(), latents(), pair()
    result = guided(inner, 1, rescale=0.7)(x, LEVEL, cond)
    assert inner.batches == [2]
    assert torch.equal(result, Counting()(x, LEVEL, cond.positive))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 7.5])
def test_any_other_scale_is_one_forward_pass_of_twice_the_batch(scale: float) -> None:
    inner = Counting()
    guided(inner, scale)(latents(), LEVEL, pair())
    assert inner.batches == [4]


@given(scales, st.tuples(offsets, offsets), st.tuples(offsets, offsets))
def test_guidance_is_its_formula(scale: float, positive: tuple[float, float], negative: tuple[float, float]) -> None:
    x, cond = latents(), pair(positive, negative)
    one = Counting()(x, LEVEL, cond.positive)
    other = Counting()(x, LEVEL, cond.negative)
    result = guided(Counting(), scale)(x, LEVEL, cond)
    torch.testing.assert_close(result, other + scale * (one - other), rtol=1e-12, atol=1e-12)


@given(scales)
def test_the_same_prompt_twice_guides_nowhere(scale: float) -> None:
    x, cond = latents(), pair((1.0, 2.0), (1.0, 2.0))
    torch.testing.assert_close(guided(Counting(), scale)(x, LEVEL, cond), Counting()(x, LEVEL, cond.positive))


def test_scale_zero_is_the_negative_prompt() -> None:
    x, cond = latents(), pair()
    assert torch.equal(guided(Counting(), 0)(x, LEVEL, cond), Counting()(x, LEVEL, cond.negative))


def test_images_of_a_batch_do_not_mix() -> None:
    x, cond = latents(), pair()
    together = guided(Counting(), 5, rescale=0.6)(x, LEVEL, cond)
    for k in range(2):
        alone = Conditions(cond.positive[k : k + 1], cond.negative[k : k + 1])
        torch.testing.assert_close(guided(Counting(), 5, rescale=0.6)(x[k : k + 1], LEVEL, alone), together[k : k + 1])


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 6), (2, 3, 4, 5)])
def test_latents_of_any_rank_are_guided(shape: tuple[int, ...]) -> None:
    x, cond = latents(shape=shape), pair()
    one, other = Counting()(x, LEVEL, cond.positive), Counting()(x, LEVEL, cond.negative)
    torch.testing.assert_close(guided(Counting(), 3)(x, LEVEL, cond), other + 3 * (one - other))


@given(st.floats(1.5, 20), st.floats(0, 1))
def test_rescale_brings_the_spread_back_by_its_share(scale: float, rescale: float) -> None:
    x, cond = latents(), pair()
    plain = guided(Counting(), scale)(x, LEVEL, cond)
    result = guided(Counting(), scale, rescale=rescale)(x, LEVEL, cond)
    wanted = Counting()(x, LEVEL, cond.positive).std(dim=(1, 2))
    expected = rescale * wanted + (1 - rescale) * plain.std(dim=(1, 2))
    torch.testing.assert_close(result.std(dim=(1, 2)), expected, rtol=1e-9, atol=1e-12)
    # The picture is scaled as a whole, each by one number.
    ratio = result / plain
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-9, atol=1e-12)


def test_rescale_of_a_latent_of_one_number_is_finite() -> None:
    x, cond = latents(shape=(1,)), pair()
    assert torch.isfinite(guided(Counting(), 5, rescale=0.7)(x, LEVEL, cond)).all()


@given(st.floats(0, 15), st.floats(0.01, 15), st.floats(0, 1))
def test_guidance_acts_inside_its_interval_only(low: float, width: float, share: float) -> None:
    x, cond = latents(), pair()
    inside = Level(1, 1, low + width * share)
    if low <= inside.sigma <= low + width:
        inner = Counting()
        guided(inner, 7, interval=(low, low + width))(x, inside, cond)
        assert inner.batches == [4]
    for outside in (low - 0.01, low + width + 0.01):
        if outside >= 0:
            inner = Counting()
            result = guided(inner, 7, interval=(low, low + width))(x, Level(1, 2, 2 * outside), cond)
            assert inner.batches == [2]
            assert torch.equal(result, Counting()(x, LEVEL, cond.positive))


def test_an_interval_is_in_sigma_over_alpha_and_leaves_out_what_has_no_signal() -> None:
    guide = guided(Counting(), 7, interval=(0.5, 3))
    assert guide.acts(Level(0, 0.5, 1))
    assert not guide.acts(Level(0, 2, 0.9))
    assert not guide.acts(Level(0, 0, 1))
    assert guided(Counting(), 7, interval=(0.5, math.inf)).acts(Level(0, 0, 1))
    assert guided(Counting(), 7).acts(Level(0, 0, 1))


def test_the_latents_are_left_alone() -> None:
    x = latents()
    kept = x.clone()
    for scale in (0, 1, 7):
        guided(Counting(), scale, rescale=0.5)(x, LEVEL, pair())
    assert torch.equal(x, kept)


def test_guiding_anew_replaces_the_guidance() -> None:
    inner = Counting()
    again = guided(guided(inner, 3, rescale=0.5), 7)
    assert isinstance(again, Guided)
    assert again.denoiser is inner  # type: ignore[comparison-overlap]
    assert (again.scale, again.rescale) == (7, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e7, -1e7])
def test_a_scale_that_is_no_number_or_absurd_is_refused(bad: float) -> None:
    with pytest.raises(ParameterError, match="scale must be a number"):
        guided(Counting(), bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_share_outside_its_range_is_refused(bad: float) -> None:
    with pytest.raises(ParameterError, match="rescale"):
        guided(Counting(), 7, rescale=bad)


@pytest.mark.parametrize("bad", [(2, 1), (1, 1), (-1, 1), (math.nan, 1)])
def test_an_interval_that_is_none_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ParameterError, match="interval"):
        guided(Counting(), 7, interval=bad)


def test_guidance_works_the_same_through_a_whole_run() -> None:
    """Guiding a linear model is a linear model: the run with it equals the run with its own formula."""
    cond, grid, x = pair(), Karras()(scaled_linear(), 8), latents()
    plain = Counting()

    def by_hand(x: Tensor, level: Level) -> Tensor:
        one, other = plain(x, level, cond.positive), plain(x, level, cond.negative)
        return one * 4 - other * 3

    guide = guided(Counting(), 4)
    noise = AddressedNoise((1, 2))
    for scheduler in SCHEDULERS.values():
        *_, a = solve(scheduler, lambda x, level: guide(x, level, cond), x, grid, noise)
        *_, b = solve(scheduler, by_hand, x, grid, noise)
        torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)


# The conditioning of a run.


class Letters:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts: Sequence[str], /) -> Tensor:
        self.calls.append(list(prompts))
        return means(*(len(p) for p in prompts))


def test_each_distinct_prompt_is_encoded_once() -> None:
    encoder = Letters()
    cond = condition(encoder, guided(Counting(), 7), ["cat", "horse", "cat"], ["", "", "horse"])
    assert encoder.calls == [["cat", "horse", ""]]
    assert cond.positive.tolist() == [3, 5, 3]
    assert cond.negative.tolist() == [0, 0, 5]


def test_a_denoiser_that_is_not_guided_gets_the_prompts_alone() -> None:
    encoder = Letters()
    assert condition(encoder, Counting(), ["cat", "cat"], ["no", "no"]).tolist() == [3, 3]
    assert encoder.calls == [["cat"]]


def test_wrappers_pass_on_what_they_wrap() -> None:
    inner = Counting()
    mask = torch.ones(1)
    for wrapped in (guided(inner, 2), Inpainted(inner, mask, mask), Inpainted(guided(inner, 2), mask, mask)):
        assert wrapped.schedule is inner.schedule
    assert Inpainted(guided(inner, 2), mask, mask).takes_negative
    assert not Inpainted(inner, mask, mask).takes_negative


# Inpainting.

SCHEDULERS: dict[str, Scheduler[Any]] = {
    "euler": Euler(),
    "ddim": Ddim(),
    "ddim-half": Ddim(0.5),
    "ancestral": Ddim(1.0),
    "heun": Heun(),
    "heun-flow": Heun("flow"),
    "dpmpp-2m": DpmPP2M(),
}
SCHEDULES: dict[str, NoiseSchedule] = {
    "sd": scaled_linear(),
    "zero-snr": scaled_linear().zero_terminal_snr(),
    "flow": RectifiedFlow(3),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_inpainting_keeps_the_known_part_exactly(
    scheduler: Scheduler[Any], schedule: NoiseSchedule, steps: int
) -> None:
    known, x = latents((8, 9)), latents((1, 2))
    mask = torch.zeros_like(known)
    mask[..., 3:] = 1
    mask[..., 3] = 0.25
    cond = means(1.0, 2.0)
    denoise = Inpainted(Counting(), known, mask)
    free = Counting()
    grid = Trailing()(schedule, steps)
    noise = AddressedNoise((1, 2))
    *_, last = solve(scheduler, lambda x, level: denoise(x, level, cond), x, grid, noise)
    *_, unbound = solve(scheduler, lambda x, level: free(x, level, cond), x, grid, noise)
    assert torch.equal(last.x[..., :3], known[..., :3])
    # Elsewhere this denoiser, which looks at each element alone, paints what it would have painted anyway.
    torch.testing.assert_close(last.x[..., 4:], unbound.x[..., 4:], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(last.x[..., 4:], known[..., 4:])


def test_a_soft_mask_mixes_the_prediction() -> None:
    known, x = latents((8, 9)), latents()
    cond = means(1.0, 2.0)
    painted = Counting()(x, LEVEL, cond)
    for share in (0.0, 0.3, 1.0):
        result = Inpainted(Counting(), known, torch.tensor(share))(x, LEVEL, cond)
        torch.testing.assert_close(result, share * painted + (1 - share) * known)


def test_inpainting_a_guided_denoiser_keeps_one_pass() -> None:
    inner, known = Counting(), latents((8, 9))
    mask = torch.zeros(1, 1, 6)
    mask[..., 3:] = 1
    result = Inpainted(guided(inner, 7), known, mask)(latents(), LEVEL, pair())
    assert inner.batches == [4]
    assert torch.equal(result[..., :3], known[..., :3])
