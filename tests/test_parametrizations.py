"""Parametrizations: what is trained is what is sampled, and all of them describe one model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkit import (
    ContractError,
    Edm,
    Epsilon,
    Flow,
    Level,
    LevelError,
    NetworkDenoiser,
    NoiseSchedule,
    ParameterError,
    Parametrization,
    Sample,
    Velocity,
)
from tests.oracles import EDM, FLOW, VP, Gaussian, Mixture, exact_network, latents

ALL: dict[str, Parametrization] = {
    "epsilon": Epsilon(),
    "velocity": Velocity(),
    "flow": Flow(),
    "flow-1000": Flow(time_scale=1000),
    "sample": Sample(),
    "edm": Edm(),
    "edm-1": Edm(sigma_data=1.3),
}
every = pytest.mark.parametrize("parametrization", ALL.values(), ids=ALL.keys())
NEVER_UNDEFINED = ("velocity", "flow", "flow-1000", "sample")

factors = st.floats(1e-3, 1e3)
levels = st.builds(Level, st.floats(0, 999), factors, factors)


def denoised(parametrization: Parametrization, answer: Tensor, x: Tensor, level: Level) -> Tensor:
    scaling = parametrization(level)
    return scaling.skip * x + scaling.out * answer


def assert_gives_x0(parametrization: Parametrization, level: Level) -> None:
    x0, noise = latents((1, 2)), latents((3, 4))
    x = level.alpha * x0 + level.sigma * noise
    answer = parametrization.target(x0, noise, level)
    # Dividing by alpha loses what dividing by alpha loses.
    slack = 1e-10 * max(1.0, level.noise_to_signal if level.alpha else 1.0)
    torch.testing.assert_close(denoised(parametrization, answer, x, level), x0, rtol=0, atol=slack)


@every
@given(level=levels)
def test_denoising_the_target_gives_the_picture(parametrization: Parametrization, level: Level) -> None:
    assert_gives_x0(parametrization, level)


@pytest.mark.parametrize("name", NEVER_UNDEFINED)
def test_the_law_holds_where_nothing_of_the_picture_is_left(name: str) -> None:
    assert_gives_x0(ALL[name], Level(999, 0, 1))
    assert_gives_x0(ALL[name], Level(999, 0, 7.5))


@pytest.mark.parametrize("name", ["epsilon", *NEVER_UNDEFINED])
def test_the_law_holds_where_there_is_no_noise(name: str) -> None:
    assert_gives_x0(ALL[name], Level(-1, 1, 0))
    assert_gives_x0(ALL[name], Level(-1, 0.2, 0))


def test_undefined_places_are_errors_that_say_so() -> None:
    with pytest.raises(LevelError, match="predicts noise cannot start"):
        Epsilon()(Level(999, 0, 1))
    x = latents()
    for level in (Level(999, 0, 1), Level(0, 1, 0)):
        with pytest.raises(LevelError, match="EDM preconditioning is undefined"):
            Edm()(level)
        with pytest.raises(LevelError, match="EDM preconditioning is undefined"):
            Edm().target(x, x, level)


@every
@given(level=levels, scale=st.floats(1e-3, 1e3))
def test_the_network_sees_the_same_in_any_scale(parametrization: Parametrization, level: Level, scale: float) -> None:
    here, there = parametrization(level), parametrization(Level(level.t, scale * level.alpha, scale * level.sigma))
    assert math.isclose(here.in_, there.in_ * scale, rel_tol=1e-9)
    assert math.isclose(here.skip, there.skip * scale, rel_tol=1e-9)
    assert math.isclose(here.out, there.out, rel_tol=1e-9)
    assert math.isclose(here.time, there.time, rel_tol=1e-9, abs_tol=1e-12)


@every
@given(level=levels, scale=st.floats(1e-3, 1e3))
def test_the_target_is_the_same_in_any_scale(parametrization: Parametrization, level: Level, scale: float) -> None:
    x0, noise = latents((1,)), latents((2,))
    there = Level(level.t, scale * level.alpha, scale * level.sigma)
    torch.testing.assert_close(
        parametrization.target(x0, noise, level), parametrization.target(x0, noise, there), rtol=1e-9, atol=1e-12
    )


@given(level=levels)
def test_edm_keeps_input_and_target_at_unit_variance(level: Level) -> None:
    # Karras et al. 2022, section 5, for data N(0, sigma_data^2): in_^2 Var(x) = 1 and the target's variance is 1.
    d = 0.7
    scaling = Edm(d)(level)
    assert math.isclose(scaling.in_**2 * ((level.alpha * d) ** 2 + level.sigma**2), 1, rel_tol=1e-9)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    picture, noise = Edm(d).target(one, zero, level).item(), Edm(d).target(zero, one, level).item()
    assert math.isclose(d**2 * picture**2 + noise**2, 1, rel_tol=1e-9)


def test_edm_has_the_numbers_of_its_table() -> None:
    s, d = 2.0, 0.5
    scaling = Edm()(Level(s, 1, s))
    assert scaling.skip == pytest.approx(d**2 / (s**2 + d**2))
    assert scaling.out == pytest.approx(s * d / math.sqrt(s**2 + d**2))
    assert scaling.in_ == pytest.approx(1 / math.sqrt(s**2 + d**2))
    assert scaling.time == pytest.approx(math.log(s) / 4)


def test_targets_have_their_signs() -> None:
    x0, noise = torch.tensor([2.0]), torch.tensor([5.0])
    level = Level(7, 0.8, 0.6)
    assert Epsilon().target(x0, noise, level).item() == 5
    assert Velocity().target(x0, noise, level).item() == pytest.approx(0.8 * 5 - 0.6 * 2)
    assert Flow().target(x0, noise, level).item() == 3
    assert Sample().target(x0, noise, level).item() == 2


def test_time_is_told_as_each_model_knows_it() -> None:
    level = Level(7, 0.3, 0.6)
    for parametrization in (Epsilon(), Velocity(), Sample()):
        assert parametrization(level).time == 7
    assert Flow()(level).time == pytest.approx(2 / 3)
    assert Flow(1000)(level).time == pytest.approx(2000 / 3)
    assert Edm()(level).time == pytest.approx(math.log(2) / 4)


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan])
def test_impossible_sigma_data_is_refused(bad: float) -> None:
    with pytest.raises(ParameterError):
        Edm(bad)


# Through NetworkDenoiser.

KINDS: dict[str, Parametrization] = {
    "epsilon": Epsilon(),
    "velocity": Velocity(),
    "sample": Sample(),
    "flow": Flow(),
    "edm": Edm(),
}


def home(kind: str, log_snr: float) -> Level:
    """The level with this log_snr in the schedule a network of this kind was trained on."""
    others: dict[str, NoiseSchedule] = {"flow": FLOW, "edm": EDM}
    schedule = others.get(kind, VP)
    return schedule.level(schedule.time(log_snr))


@pytest.mark.parametrize("data", [Gaussian(), Mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("kind", KINDS)
@given(log_snr=st.floats(-2.6, 3.5), scale=st.floats(0.01, 100))
def test_every_parametrization_of_one_model_gives_one_denoiser(
    data: Gaussian | Mixture, kind: str, log_snr: float, scale: float
) -> None:
    level = home(kind, log_snr)
    x = data.start(level, latents((5, 6)))
    denoise = NetworkDenoiser(exact_network(kind, data), KINDS[kind])
    torch.testing.assert_close(denoise(x, level, None), data(x, level), rtol=1e-7, atol=1e-7)
    there = Level(level.t, scale * level.alpha, scale * level.sigma)
    torch.testing.assert_close(denoise(x * scale, there, None), data(x, level), rtol=1e-7, atol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None])
def test_latents_keep_their_type_while_the_network_has_its_own(
    parametrization: Parametrization, dtype: torch.dtype | None
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, time: Tensor, cond: object) -> Tensor:
        seen.append((x, time))
        return x * 0.5

    x = latents(dtype=torch.float32)
    level = Level(500, 0.7, 0.5)
    result = NetworkDenoiser(network, parametrization, dtype=dtype)(x, level, None)
    given_x, time = seen[0]
    assert given_x.dtype == (dtype or torch.float32)
    assert result.dtype == time.dtype == torch.float32
    assert time.shape == (2,)
    torch.testing.assert_close(time, torch.full((2,), parametrization(level).time))
    scaling = parametrization(level)
    wanted = scaling.skip * x + scaling.out * 0.5 * scaling.in_ * x
    torch.testing.assert_close(result, wanted, rtol=1e-2, atol=1e-2)


@every
def test_a_denoiser_leaves_its_input_alone(parametrization: Parametrization) -> None:
    x = latents()
    kept = x.clone()
    for level in (Level(500, 0.6, 0.8), Level(500, 1, 2)):
        result = NetworkDenoiser(lambda x, time, cond: x, parametrization)(x, level, None)
        assert result.data_ptr() != x.data_ptr()
        assert torch.equal(x, kept)


def test_the_condition_reaches_the_network() -> None:
    denoise = NetworkDenoiser(lambda x, time, cond: x * 0 + cond["k"], Sample())
    assert torch.equal(denoise(latents(), Level(1, 0.6, 0.8), {"k": 3.0}), torch.full((2, 4, 6), 3.0).double())


def test_a_network_that_answers_another_shape_is_named() -> None:
    denoiser = NetworkDenoiser(lambda x, time, cond: x[:1], Sample())
    with pytest.raises(ContractError, match=r"\(1, 3\) for latents of shape \(2, 3\)"):
        denoiser(torch.zeros(2, 3), Level(1, 0.5, 0.5), None)
