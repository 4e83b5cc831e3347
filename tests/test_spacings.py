"""Spacings: n steps asked are n steps given, from the noisiest level to clean, and never a level twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdkit import (
    DiscreteSchedule,
    EdmSchedule,
    Grid,
    GridError,
    Karras,
    NoiseSchedule,
    ParameterError,
    RectifiedFlow,
    Spacing,
    Trailing,
    Uniform,
    UniformLogSnr,
    cosine,
    linear,
    scaled_linear,
)
from sdkit.spacings import DROWNED

SD = scaled_linear()
SCHEDULES: dict[str, NoiseSchedule] = {
    "scaled-linear": SD,
    "zero-snr": SD.zero_terminal_snr(),
    "linear": linear(),
    "cosine": cosine(),
    "edm": EdmSchedule(),
    "flow": RectifiedFlow(),
    "flow-3": RectifiedFlow(3),
}
SPACINGS: dict[str, Spacing] = {
    "uniform": Uniform(),
    "trailing": Trailing(),
    "karras": Karras(),
    "karras-3": Karras(rho=3),
    "uniform-log-snr": UniformLogSnr(),
}
every = pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())
on_every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def assert_lawful(grid: Grid, schedule: NoiseSchedule, steps: int) -> None:
    assert len(grid) == steps + 1
    assert grid[0] == schedule.noisiest
    assert grid[-1] == schedule.clean
    assert grid[-1].sigma == 0
    singles = np.array([level.log_snr for level in grid], dtype=np.float32)
    assert (singles[1:] > singles[:-1]).all()
    for level in grid:
        assert schedule.noisiest.log_snr <= level.log_snr
        assert level.log_snr <= schedule.cleanest.log_snr or level.sigma == 0 or schedule.train_steps is None


@every
@on_every_schedule
@pytest.mark.parametrize("steps", [1, 2, 61, 201, 1000, 1001, 1777])
def test_every_number_of_steps_is_given_exactly(spacing: Spacing, schedule: NoiseSchedule, steps: int) -> None:
    assert_lawful(spacing(schedule, steps), schedule, steps)


@every
@on_every_schedule
@given(steps=st.integers(1, 150))
def test_any_number_of_steps_is_given_exactly(spacing: Spacing, schedule: NoiseSchedule, steps: int) -> None:
    assert_lawful(spacing(schedule, steps), schedule, steps)


@every
@given(betas=st.lists(st.floats(1e-3, 0.6), min_size=2, max_size=40), steps=st.integers(1, 90), zero=st.booleans())
def test_any_discrete_schedule_is_divided(spacing: Spacing, betas: list[float], steps: int, zero: bool) -> None:
    schedule = DiscreteSchedule(betas)
    if zero:
        schedule = schedule.zero_terminal_snr()
    assert_lawful(spacing(schedule, steps), schedule, steps)


def test_trailing_on_stable_diffusion_visits_distinct_trained_times() -> None:
    # diffusers 0.42.1 gives one time too many, ending at -1, for 62 of these numbers: binary floats.
    for steps in (*range(1, 140), *range(140, 1001, 7), 999, 1000):
        times = np.array([level.t for level in Trailing()(SD, steps)])
        assert len(times) == steps + 1
        assert (times == times.round()).all()
        assert (times[0], times[-1]) == (999, -1)
        gaps = -np.diff(times)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1, f"{steps} steps are not evenly spaced"
        exact = 1000 * np.arange(steps, 0, -1) / steps - 1
        assert abs(times[:-1] - exact).max() <= 0.5 + 1e-9, f"{steps} steps are not rounded to the nearest time"


@every
@on_every_schedule
def test_a_spacing_is_pure(spacing: Spacing, schedule: NoiseSchedule) -> None:
    assert spacing(schedule, 17) == spacing(schedule, 17)


@every
@pytest.mark.parametrize("bad", [0, -3, 2.0, 2.5, True, "10", None])
def test_what_is_no_number_of_steps_is_refused(spacing: Spacing, bad: object) -> None:
    with pytest.raises(ParameterError, match="whole number of at least 1"):
        spacing(SD, bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan])
def test_impossible_rho_is_refused(bad: float) -> None:
    with pytest.raises(ParameterError):
        Karras(rho=bad)


def test_a_schedule_that_cannot_be_divided_says_so() -> None:
    narrow = EdmSchedule(1.0, math.nextafter(1.0, 2.0))
    for spacing in SPACINGS.values():
        if not isinstance(spacing, Trailing):
            with pytest.raises(GridError, match="ask for fewer steps"):
                spacing(narrow, 5)


# What each one means.


@on_every_schedule
@given(steps=st.integers(2, 60))
def test_uniform_is_even_in_time(schedule: NoiseSchedule, steps: int) -> None:
    times = [level.t for level in Uniform()(schedule, steps)[:-1]]
    assert times[-1] == schedule.cleanest.t
    np.testing.assert_allclose(times, np.linspace(times[0], times[-1], steps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["edm", "flow", "flow-3"])
@given(steps=st.integers(1, 60))
def test_trailing_is_even_in_time_down_to_clean(name: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    times = [level.t for level in Trailing()(schedule, steps)]
    np.testing.assert_allclose(times, np.linspace(schedule.noisiest.t, 0, steps + 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["scaled-linear", "linear", "edm", "cosine"])
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@given(steps=st.integers(2, 60))
def test_karras_is_even_in_a_root_of_sigma_over_alpha(name: str, rho: float, steps: int) -> None:
    grid = Karras(rho)(SCHEDULES[name], steps)[:-1]
    assert grid[-1] == SCHEDULES[name].cleanest
    roots = np.array([level.noise_to_signal for level in grid]) ** (1 / rho)
    np.testing.assert_allclose(roots, np.linspace(roots[0], roots[-1], steps), rtol=1e-7)


@pytest.mark.parametrize("name", ["scaled-linear", "linear", "edm", "cosine"])
@given(steps=st.integers(2, 60))
def test_uniform_log_snr_is_even_in_log_snr(name: str, steps: int) -> None:
    grid = UniformLogSnr()(SCHEDULES[name], steps)[:-1]
    assert grid[-1] == SCHEDULES[name].cleanest
    values = [level.log_snr for level in grid]
    np.testing.assert_allclose(values, np.linspace(values[0], values[-1], steps), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["zero-snr", "flow", "flow-3"])
@pytest.mark.parametrize("spacing", [Karras(), UniformLogSnr()], ids=["karras", "uniform-log-snr"])
def test_ramps_spend_their_levels_where_there_is_a_picture(name: str, spacing: Spacing) -> None:
    grid = spacing(SCHEDULES[name], 20)
    assert grid[0].alpha == 0
    ratios = [level.noise_to_signal for level in grid[1:]]
    assert max(ratios) < DROWNED
    if isinstance(spacing, Karras):
        roots = [level.noise_to_signal ** (1 / 7) for level in grid[1:-1]]
        assert np.ptp(np.diff(roots)) < 1e-7
        assert roots[0] == pytest.approx(DROWNED ** (1 / 7) + (roots[-1] - DROWNED ** (1 / 7)) / 19, rel=1e-6)


# Golden numbers: 20 steps of Stable Diffusion as other tools run them.


@pytest.mark.parametrize(
    ("spacing", "first", "second", "before_last", "last"),
    [
        (Uniform(), 14.6146, 10.7468, 0.23217, 0.02917),
        (Trailing(), 14.6146, 10.9042, 0.34167, 0.22300),
        (Karras(), 14.6146, 11.7254, 0.04848, 0.02917),
    ],
    ids=["uniform", "trailing", "karras"],
)
def test_twenty_steps_of_stable_diffusion(
    spacing: Spacing, first: float, second: float, before_last: float, last: float
) -> None:
    sigmas = [level.noise_to_signal for level in spacing(SD, 20)]
    assert sigmas[:2] == pytest.approx([first, second], abs=6e-5)
    # The table's "uniform" interpolates sigma linearly between trained times, we its logarithm: 1.5e-5 apart.
    assert sigmas[-3:-1] == pytest.approx([before_last, last], abs=6e-6 if not isinstance(spacing, Uniform) else 1.5e-5)
    assert sigmas[-1] == 0


def test_trailing_times_of_twenty_steps() -> None:
    assert [level.t for level in Trailing()(SD, 20)] == [*range(999, 0, -50), -1]


def test_flow_sigmas_of_four_steps() -> None:
    sigmas = [level.sigma for level in Trailing()(RectifiedFlow(3), 4)]
    assert sigmas == pytest.approx([1, 0.9, 0.75, 0.5, 0])
