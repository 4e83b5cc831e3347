"""Every spacing of this package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdkit
from sdkit import EdmSchedule, FileError, GridError, ParameterError, RectifiedFlow, Registry, scaled_linear
from sdkit_samplers import plugin

REGISTRY = Registry.of({"samplers": plugin})
SCHEDULES: dict[str, Any] = {
    "sd": scaled_linear(),
    "zero-snr": scaled_linear().zero_terminal_snr(),
    "linear": sdkit.linear(),
    "cosine": sdkit.cosine(),
    "edm": EdmSchedule(),
    "flow": RectifiedFlow(),
    "flow-3": RectifiedFlow(3),
}
SPACINGS = [
    "leading", "sgm-uniform", "polyexponential", "polyexponential(rho=2)", "beta", "beta-sigma", "kl-optimal",
    "linear-quadratic", "flow-shift", "flow-shift(shift=0.5)", "flow-shift(tokens=4096)", "smoothstep", "bong-tangent",
    "lcm(original=250)", "drop-penultimate", "drop-penultimate(of='leading')",
]  # fmt: skip
LATE = {"leading", "drop-penultimate(of='leading')"}  # starts below the noisiest level, and says so


def s(grid: sdkit.Grid) -> list[float]:
    return [level.noise_to_signal for level in grid]


@pytest.mark.parametrize("text", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_n_steps_asked_are_n_steps_given(text: str, schedule: Any) -> None:
    spacing = REGISTRY.make("spacing", text)
    for n in (*range(1, 41), 50, 61, 100, 103, 120, 250):
        grid = spacing(schedule, n)
        assert len(grid) == n + 1
        log_snrs = np.asarray([level.log_snr for level in grid], dtype=np.float32)
        assert (log_snrs[1:] > log_snrs[:-1]).all(), f"repeats in float32 at {n} steps"
        assert grid[-1] == schedule.clean
        if text not in LATE:
            assert grid[0] == schedule.noisiest


def test_every_spacing_of_the_package_is_tested() -> None:
    tested = {text.split("(")[0] for text in SPACINGS} | {"align-your-steps", "table"}
    assert tested == {c.name for c in plugin.sdkit_components() if c.kind == "spacing"}


def test_published_values_of_twenty_steps() -> None:
    """The table of measured grids: leading as diffusers with steps_offset=1, sgm-uniform as ComfyUI and A1111."""
    sd = scaled_linear()
    leading, sgm = (s(REGISTRY.make("spacing", t)(sd, 20)) for t in ("leading", "sgm-uniform"))
    assert leading[:2] == pytest.approx([11.0283, 8.3907], rel=1e-4)
    assert leading[-3:-1] == pytest.approx([0.22815, 0.04131], rel=1e-3)
    assert sgm[:2] == pytest.approx([14.6146, 10.9073], rel=1e-4)
    assert sgm[-3:-1] == pytest.approx([0.34370, 0.22545], rel=1e-3)


def test_tables_are_given_back_at_their_own_length() -> None:
    grid = REGISTRY.make("spacing", "align-your-steps")(scaled_linear(), 10)
    assert s(grid)[1:-1] == pytest.approx([6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152], rel=1e-6)
    for table in ("sd15", "sdxl"):
        for n in (1, 2, 5, 10, 30):
            grid = REGISTRY.make("spacing", f"align-your-steps(table='{table}')")(scaled_linear(), n)
            assert len(grid) == n + 1
            assert grid[0] == scaled_linear().noisiest
    svd = REGISTRY.make("spacing", "align-your-steps(table='svd')")
    assert len(svd(EdmSchedule(0.002, 700), 25)) == 26
    with pytest.raises(GridError, match="a table made for this schedule"):
        svd(scaled_linear(), 25)
    with pytest.raises(ParameterError, match="one of sd15, sdxl, svd"):
        REGISTRY.make("spacing", "align-your-steps(table='sd3')")


def test_a_table_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "gits.json"
    file.write_text(json.dumps([14.6, 4.0, 1.0, 0.2, 0]))
    spacing = REGISTRY.make("spacing", f"table(file={str(file)!r})")
    assert s(spacing(scaled_linear(), 4))[1:4] == pytest.approx([4.0, 1.0, 0.2])
    assert len(spacing(scaled_linear(), 9)) == 10
    assert len(spacing(scaled_linear(), 1)) == 2
    for text, message in (
        ("[1, 2]", "falling"),
        ("{}", "JSON list"),
        ("[1", "no JSON"),
        ("[3, true]", "JSON list"),
        ("[2]", "two"),
    ):
        file.write_text(text)
        with pytest.raises(FileError, match=message):
            spacing(scaled_linear(), 4)
    with pytest.raises(FileError, match="cannot be read"):
        REGISTRY.make("spacing", "table(file='nowhere.json')")(scaled_linear(), 4)


def test_shift_is_a_factor_of_noise_to_signal() -> None:
    flow = RectifiedFlow()
    shifted = REGISTRY.make("spacing", "flow-shift(shift=3)")(flow, 8)
    own = sdkit.Trailing()(RectifiedFlow(3), 8)
    assert [level.sigma for level in shifted] == pytest.approx([level.sigma for level in own])
    for schedule in (RectifiedFlow(3), RectifiedFlow(0.7)):  # the shift asked for is the whole one, never a second
        again = REGISTRY.make("spacing", "flow-shift(shift=3)")(schedule, 8)
        assert s(again)[1:] == pytest.approx(s(shifted)[1:])
        assert again[0] == schedule.noisiest
    tokens = REGISTRY.make("spacing", "flow-shift(tokens=256)")(flow, 8)
    static = REGISTRY.make("spacing", f"flow-shift(shift={math.exp(0.5)!r})")(flow, 8)
    assert s(tokens)[1:] == pytest.approx(s(static)[1:])


def test_linear_quadratic_matches_its_definition() -> None:
    grid = REGISTRY.make("spacing", "linear-quadratic")(RectifiedFlow(), 20)
    sigmas = [level.sigma for level in grid]
    assert sigmas[0] == 1
    assert sigmas[9] == pytest.approx(1 - 9 * 0.0025)
    assert sigmas[10] == pytest.approx(1 - 0.025)
    steps = -np.diff(sigmas)
    assert (np.diff(steps[10:]) > 0).all()


@pytest.mark.parametrize(
    "text",
    ["leading(offset=-1)", "polyexponential(rho=0)", "beta(alpha=0)", "flow-shift(shift=0)", "flow-shift(tokens=0)",
     "linear-quadratic(threshold=1)"],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        REGISTRY.make("spacing", text)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_leading_has_noise_to_begin_with_however_few_steps(schedule: Any) -> None:
    spacing = REGISTRY.make("spacing", "leading")
    assert spacing(schedule, 1) == (schedule.noisiest, schedule.clean)
    assert all(spacing(schedule, n)[0].noise_to_signal > 0.9 for n in range(1, 20))


def test_leading_refuses_more_steps_than_were_trained() -> None:
    with pytest.raises(GridError, match="at most 1000"):
        REGISTRY.make("spacing", "leading")(scaled_linear(), 1001)
    assert len(REGISTRY.make("spacing", "leading")(scaled_linear(), 1000)) == 1001
