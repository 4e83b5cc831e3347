"""Levels and grids."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdkit import GridError, Level, LevelError, check_grid

positive = st.floats(1e-6, 1e6)


@given(positive, positive)
def test_log_snr_is_the_logarithm_of_alpha_over_sigma(alpha: float, sigma: float) -> None:
    level = Level(0, alpha, sigma)
    assert math.isclose(math.exp(level.log_snr), alpha / sigma, rel_tol=1e-12)
    assert math.isclose(level.noise_to_signal * alpha, sigma, rel_tol=1e-12)


@given(positive, positive, positive)
def test_log_snr_does_not_depend_on_the_scale(alpha: float, sigma: float, scale: float) -> None:
    here, there = Level(0, alpha, sigma), Level(0, scale * alpha, scale * sigma)
    assert math.isclose(here.log_snr, there.log_snr, rel_tol=0, abs_tol=1e-13)
    assert math.isclose(here.norm * scale, there.norm, rel_tol=1e-11)


def test_ends_are_infinite() -> None:
    clean, drowned = Level(-1, 1, 0), Level(999, 0, 1)
    assert clean.log_snr == math.inf
    assert clean.noise_to_signal == 0
    assert drowned.log_snr == -math.inf
    assert drowned.noise_to_signal == math.inf


def test_norm_of_a_variance_preserving_level_is_exactly_one() -> None:
    pairs = [(math.cos(angle / 1000), math.sin(angle / 1000)) for angle in range(1571)]
    assert any(math.hypot(*pair) != 1 for pair in pairs)
    assert all(Level(0, *pair).norm == 1 for pair in pairs)


def test_norm_elsewhere_is_not_rounded_to_one() -> None:
    assert Level(0, 1, 1e-3).norm == math.hypot(1, 1e-3)
    assert Level(0, 3, 4).norm == 5.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_level_refuses_numbers_that_are_not_finite(bad: float, place: int) -> None:
    values = [1.0, 1.0, 1.0]
    values[place] = bad
    with pytest.raises(LevelError, match="finite"):
        Level(*values)


@pytest.mark.parametrize(("alpha", "sigma"), [(-0.1, 1), (1, -0.1), (0, 0)])
def test_a_level_refuses_negative_factors_and_nothing_at_all(alpha: float, sigma: float) -> None:
    with pytest.raises(LevelError, match="alpha >= 0"):
        Level(0, alpha, sigma)


def test_a_level_is_a_value() -> None:
    level = Level(1, 0.6, 0.8)
    assert level == Level(1.0, 0.6, 0.8)
    assert hash(level) == hash(Level(1.0, 0.6, 0.8))
    assert pickle.loads(pickle.dumps(level)) == level
    assert isinstance(level.t, float)
    with pytest.raises(AttributeError):
        level.alpha = 1.0  # type: ignore[misc]
    assert str(level) == "t=1 (alpha=0.6, sigma=0.8)"


@given(st.lists(st.integers(-2000, 2000), min_size=2, max_size=20, unique=True))
def test_a_grid_is_taken_verbatim_in_the_right_order_and_refused_in_any_other(values: list[int]) -> None:
    levels = [Level(0, 1, math.exp(-value / 100)) for value in sorted(values)]
    assert check_grid(levels) == tuple(levels)
    with pytest.raises(GridError, match="does not rise from level 0"):
        check_grid(levels[::-1])


def test_a_grid_may_go_from_no_signal_to_no_noise() -> None:
    grid = (Level(1, 0, 1), Level(0, 1, 0))
    assert check_grid(iter(grid)) == grid


@pytest.mark.parametrize("grid", [(), (Level(0, 1, 0),)])
def test_a_grid_has_at_least_one_step(grid: tuple[Level, ...]) -> None:
    with pytest.raises(GridError, match="at least two levels"):
        check_grid(grid)


def test_a_repeat_is_named() -> None:
    level = Level(5, 0.6, 0.8)
    with pytest.raises(GridError, match="from level 1 .* to level 2"):
        check_grid((Level(9, 0.1, 1), level, level, Level(0, 1, 0)))
