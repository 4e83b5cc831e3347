"""Levels that solvers make between those of the grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdkit
from sdkit import Level, LevelError, between

SCHEDULES = [
    sdkit.scaled_linear(),
    sdkit.scaled_linear().zero_terminal_snr(),
    sdkit.EdmSchedule(),
    sdkit.RectifiedFlow(),
    sdkit.RectifiedFlow(3),
]


@given(
    schedule=st.sampled_from(SCHEDULES),
    where=st.floats(-0.2, 1.2),
    ends=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
)
def test_a_level_between_has_the_log_snr_asked_for_and_the_schedules_scale(
    schedule: sdkit.NoiseSchedule, where: float, ends: tuple[float, float]
) -> None:
    first, last = schedule.noisiest.t, schedule.cleanest.t
    start, stop = (schedule.level(first + (last - first) * (0.05 + share)) for share in sorted(ends))
    if stop.log_snr - start.log_snr < 1e-6:
        return
    log_snr = start.log_snr + where * (stop.log_snr - start.log_snr)
    level = between(start, stop, log_snr)
    assert level.log_snr == pytest.approx(log_snr, abs=1e-9)
    assert level.interpolated
    exact = schedule.level(schedule.time(log_snr)) if 0 <= where <= 1 else None
    if exact is not None:
        assert level.alpha == pytest.approx(exact.alpha, rel=1e-9)
        assert level.sigma == pytest.approx(exact.sigma, rel=1e-9)
        assert min(start.t, stop.t) <= level.t <= max(start.t, stop.t)


def test_one_end_may_have_no_signal_or_no_noise() -> None:
    flow = sdkit.RectifiedFlow()
    level = between(flow.noisiest, flow.clean, 0.0)
    assert (level.alpha, level.sigma, level.t) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("log_snr", [math.inf, -math.inf, math.nan])
def test_only_finite_levels_lie_between(log_snr: float) -> None:
    with pytest.raises(LevelError, match="finite log_snr"):
        between(Level(1, 0.1, 0.9), Level(0, 1, 0), log_snr)


def test_a_network_is_told_the_schedules_own_time_there_and_a_given_time_elsewhere() -> None:
    schedule = sdkit.scaled_linear()
    times: list[float] = []

    def network(x: Tensor, time: Tensor, cond: None, /) -> Tensor:
        times.append(float(time[0]))
        return x

    denoiser = sdkit.NetworkDenoiser(network, sdkit.Epsilon(), schedule)
    level = between(schedule.level(900), schedule.level(100), 0.0)
    x = torch.zeros(1, 1, dtype=torch.float64)
    denoiser(x, level, None)
    assert times[0] == pytest.approx(schedule.time(0.0))
    assert abs(level.t - times[0]) > 1
    denoiser(x, Level(123.0, level.alpha, level.sigma), None)
    assert times[1] == 123.0
