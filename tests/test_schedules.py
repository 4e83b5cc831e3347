"""Noise schedules: time and log_snr are inverse, everything is monotone, and Stable Diffusion's numbers are pinned."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdkit import (
    DiscreteSchedule,
    EdmSchedule,
    LevelError,
    NoiseSchedule,
    ParameterError,
    RectifiedFlow,
    cosine,
    linear,
    scaled_linear,
)

DISCRETE = {
    "scaled-linear": scaled_linear(),
    "zero-snr": scaled_linear().zero_terminal_snr(),
    "linear": linear(),
    "cosine": cosine(),
    "short": linear(1e-3, 0.5, steps=7),
    "two": DiscreteSchedule((0.1, 0.9)),
}
CONTINUOUS: dict[str, NoiseSchedule] = {
    "edm": EdmSchedule(),
    "flow": RectifiedFlow(),
    "flow-3": RectifiedFlow(3),
    "flow-half": RectifiedFlow(0.5),
}
ALL: dict[str, NoiseSchedule] = {**DISCRETE, **CONTINUOUS}

every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
discrete = pytest.mark.parametrize("schedule", DISCRETE.values(), ids=DISCRETE.keys())
betas = st.lists(st.floats(1e-5, 0.9), min_size=2, max_size=30)


def at(schedule: NoiseSchedule, share: float) -> float:
    """The time this share of the way from the cleanest to the noisiest level."""
    low, high = schedule.cleanest.t, schedule.noisiest.t
    return min(low + share * (high - low), high)


@every
@given(share=st.floats(0, 1))
def test_time_is_the_inverse_of_level(schedule: NoiseSchedule, share: float) -> None:
    t = at(schedule, share)
    level = schedule.level(t)
    assert level.t == t
    assert math.isclose(schedule.time(level.log_snr), t, rel_tol=1e-9, abs_tol=1e-8)


@every
@given(share=st.floats(0, 1))
def test_level_is_the_inverse_of_time(schedule: NoiseSchedule, share: float) -> None:
    low, high = max(schedule.noisiest.log_snr, -12.0), schedule.cleanest.log_snr
    wanted = low + share * (high - low)
    assert math.isclose(schedule.level(schedule.time(wanted)).log_snr, wanted, rel_tol=1e-9, abs_tol=1e-8)


@discrete
def test_every_training_time_comes_back(schedule: DiscreteSchedule) -> None:
    for t in range(schedule.train_steps):
        assert math.isclose(schedule.time(schedule.level(t).log_snr), t, abs_tol=1e-9)


@every
@given(shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_time_is_more_noise(schedule: NoiseSchedule, shares: tuple[float, float]) -> None:
    early, late = sorted(at(schedule, share) for share in shares)
    assume(late - early > 1e-9 * schedule.noisiest.t)
    assert schedule.level(early).log_snr > schedule.level(late).log_snr


@every
def test_ends_are_ends(schedule: NoiseSchedule) -> None:
    assert schedule.noisiest.log_snr < schedule.cleanest.log_snr < schedule.clean.log_snr == math.inf
    assert schedule.clean.alpha == 1
    for level in (schedule.noisiest, schedule.cleanest, schedule.clean):
        assert schedule.level(level.t) == level
    assert schedule.time(math.inf) == schedule.clean.t
    assert schedule.time(schedule.noisiest.log_snr) == pytest.approx(schedule.noisiest.t, abs=1e-9)


@every
def test_a_schedule_is_a_value(schedule: NoiseSchedule) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again.level(again.noisiest.t) == schedule.noisiest


@discrete
@given(share=st.floats(0, 1))
def test_discrete_levels_preserve_variance(schedule: DiscreteSchedule, share: float) -> None:
    level = schedule.level(at(schedule, share))
    assert math.isclose(level.alpha**2 + level.sigma**2, 1, abs_tol=1e-12)
    assert level.norm == 1.0


@given(betas)
def test_a_discrete_level_is_the_product_of_its_betas(values: list[float]) -> None:
    schedule = DiscreteSchedule(values)
    for t in range(len(values)):
        product = math.prod(1 - beta for beta in values[: t + 1])
        assert math.isclose(schedule.level(t).alpha ** 2, product, rel_tol=1e-10)
        assert math.isclose(schedule.level(t).sigma ** 2, 1 - product, rel_tol=1e-10)


@given(betas, st.floats(0, 1))
def test_any_discrete_schedule_inverts(values: list[float], share: float) -> None:
    schedule = DiscreteSchedule(values)
    t = at(schedule, share)
    assert math.isclose(schedule.time(schedule.level(t).log_snr), t, abs_tol=1e-6)


def test_sigma_is_accurate_where_almost_no_noise_was_added() -> None:
    level = DiscreteSchedule((1e-13, 0.5)).level(0)
    assert math.isclose(level.sigma, math.sqrt(1e-13), rel_tol=1e-12)


@discrete
def test_between_training_times_log_snr_is_a_straight_line(schedule: DiscreteSchedule) -> None:
    low, high = schedule.level(0).log_snr, schedule.level(1).log_snr
    if math.isfinite(high):
        assert math.isclose(schedule.level(0.25).log_snr, 0.75 * low + 0.25 * high, rel_tol=1e-12, abs_tol=1e-12)


@discrete
@pytest.mark.parametrize("t", [-2, -0.5, math.nan, math.inf, "last + 0.01"])
def test_a_discrete_schedule_refuses_times_it_does_not_have(schedule: DiscreteSchedule, t: float | str) -> None:
    with pytest.raises(LevelError, match="outside this schedule"):
        schedule.level(schedule.train_steps - 1 + 0.01 if isinstance(t, str) else t)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_a_flow_refuses_times_it_does_not_have(t: float) -> None:
    with pytest.raises(LevelError, match="between 0"):
        RectifiedFlow().level(t)


@pytest.mark.parametrize("t", [-0.1, math.inf, math.nan])
def test_edm_refuses_times_it_does_not_have(t: float) -> None:
    with pytest.raises(LevelError, match="finite sigma"):
        EdmSchedule().level(t)


@discrete
def test_log_snr_beyond_the_ends_is_refused(schedule: DiscreteSchedule) -> None:
    with pytest.raises(LevelError, match="outside"):
        schedule.time(schedule.cleanest.log_snr + 0.1)
    if math.isfinite(schedule.noisiest.log_snr):
        with pytest.raises(LevelError, match="outside"):
            schedule.time(schedule.noisiest.log_snr - 0.1)


@every
def test_log_snr_that_is_no_number_is_refused(schedule: NoiseSchedule) -> None:
    with pytest.raises(LevelError):
        schedule.time(math.nan)


@pytest.mark.parametrize("name", ["scaled-linear", "linear", "cosine", "short", "two"])
def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_start_alone(name: str) -> None:
    plain, zero = DISCRETE[name], DISCRETE[name].zero_terminal_snr()
    assert zero.noisiest.alpha == 0
    assert zero.noisiest.sigma == 1
    assert zero.noisiest.log_snr == -math.inf
    assert math.isclose(zero.cleanest.alpha, plain.cleanest.alpha, rel_tol=1e-12)
    # Lin et al. 2023, algorithm 1: alpha is shifted and scaled, so the differences keep their proportions.
    half = plain.train_steps // 2
    wanted = (plain.level(half).alpha - plain.noisiest.alpha) / (plain.cleanest.alpha - plain.noisiest.alpha)
    assert math.isclose(zero.level(half).alpha / zero.cleanest.alpha, wanted, rel_tol=1e-10, abs_tol=1e-14)


def test_zero_terminal_snr_twice_is_once() -> None:
    once = DISCRETE["zero-snr"]
    twice = once.zero_terminal_snr()
    for t in (0, 500, 998, 999):
        assert math.isclose(twice.level(t).alpha, once.level(t).alpha, rel_tol=1e-11)


@given(share=st.floats(0, 0.999999))
def test_the_last_interval_before_no_signal_is_finite_and_invertible(share: float) -> None:
    schedule = DISCRETE["zero-snr"]
    level = schedule.level(998 + share)
    assert level.alpha > 0
    assert math.isclose(schedule.time(level.log_snr), 998 + share, abs_tol=1e-9)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@given(t=st.floats(0, 1))
def test_a_flow_is_a_straight_line_shifted(shift: float, t: float) -> None:
    level, plain = RectifiedFlow(shift).level(t), RectifiedFlow().level(t)
    assert math.isclose(level.alpha + level.sigma, 1, rel_tol=1e-12)
    # Shifting adds a constant to log_snr.
    if 1e-6 < t < 1 - 1e-6:
        assert math.isclose(level.log_snr, plain.log_snr - math.log(shift), abs_tol=1e-9)


def test_a_flow_starts_from_noise_alone() -> None:
    assert RectifiedFlow(3).noisiest.alpha == 0
    assert RectifiedFlow(3).time(-math.inf) == 1.0


@given(st.floats(0, 100))
def test_edm_time_is_sigma(sigma: float) -> None:
    level = EdmSchedule().level(sigma)
    assert (level.alpha, level.sigma, level.t) == (1.0, sigma, sigma)


@pytest.mark.parametrize("values", [(0.1,), (0.0, 0.1), (0.1, 1.5), (1.0, 0.1), (0.1, math.nan), (-0.1, 0.1)])
def test_impossible_betas_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ParameterError):
        DiscreteSchedule(values)


@pytest.mark.parametrize("make", [linear, scaled_linear, cosine])
@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_a_schedule_of_less_than_two_steps_is_refused(make: object, steps: int) -> None:
    with pytest.raises(ParameterError, match="at least 2"):
        make(steps=steps)  # type: ignore[operator]


def test_impossible_parameters_are_refused() -> None:
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(ParameterError):
            RectifiedFlow(bad)
    for bad in (0, 1, math.nan):
        with pytest.raises(ParameterError):
            RectifiedFlow(cleanest_time=bad)
    for low, high in ((0, 1), (2, 1), (1, math.inf), (math.nan, 1)):
        with pytest.raises(ParameterError):
            EdmSchedule(low, high)


# Golden numbers.


def test_stable_diffusion_has_its_sigmas() -> None:
    schedule = scaled_linear()
    assert schedule.train_steps == 1000
    assert schedule.cleanest.noise_to_signal == pytest.approx(0.0291672, abs=5e-8)
    assert schedule.noisiest.noise_to_signal == pytest.approx(14.6146412, abs=5e-8)


def test_ddpm_and_cosine_have_their_ends() -> None:
    assert linear().cleanest.sigma == pytest.approx(0.01, rel=1e-12)
    assert linear().noisiest.alpha ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
    # Nichol and Dhariwal 2021, equation 17.
    angle = (501 / 1000 + 0.008) / 1.008 * math.pi / 2
    start = math.cos(0.008 / 1.008 * math.pi / 2)
    assert cosine().level(500).alpha == pytest.approx(math.cos(angle) / start, rel=1e-10)
    assert max(cosine().betas) == 0.999


def test_edm_has_its_ends() -> None:
    assert (EdmSchedule().cleanest.sigma, EdmSchedule().noisiest.sigma) == (0.002, 80.0)


def test_scaled_linear_betas_are_squares_of_a_straight_line() -> None:
    roots = np.sqrt(scaled_linear().betas)
    steps = [b - a for a, b in pairwise(roots)]
    assert roots[0] ** 2 == pytest.approx(0.00085)
    assert roots[-1] ** 2 == pytest.approx(0.012)
    assert max(steps) - min(steps) < 1e-12
