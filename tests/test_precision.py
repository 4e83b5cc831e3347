"""Work-precision and grids: the numbers against exact orders, the pictures as pictures, and the lines of refusal."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sdkit
from sdkit import Registry
from sdkit.cli import main
from sdkit.loop import solve
from sdkit.noise import AddressedNoise
from sdkit.plugins import registry
from sdkit.testing.precision import (
    PROBLEMS,
    Contender,
    Curve,
    Diagram,
    Point,
    _slope,
    exact_precision,
    model_precision,
)
from sdkit.testing.problems import Gaussian
from tests.toys import ToyPlugin, toy_model

STEPS = (16, 32, 64, 128)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The core, the samplers and the toy model are installed; the working folder is empty."""
    from sdkit_samplers import plugin as samplers

    made = Registry.of({"toys": ToyPlugin(), "samplers": samplers}, strict=True)
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield
    registry.cache_clear()


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        captured = capsys.readouterr()
        code = caught.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


def curves(names: list[str], problem: str = "gaussian", spacing: str = "karras", **options: Any) -> list[Curve]:
    contenders = [Contender.of(name, spacing) for name in names]
    return list(exact_precision(contenders, problem, "scaled-linear", STEPS, **options).curves)


@pytest.mark.parametrize("spacing", ["karras", "uniform-log-snr"])
@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_slopes_are_the_orders(problem: str, spacing: str) -> None:
    for curve, order in zip(curves(["euler", "heun", "dpmpp-2m"], problem, spacing), (1, 2, 2), strict=True):
        assert curve.slope == pytest.approx(order, abs=0.15), curve.name
        assert curve.order == order


def test_the_error_is_that_of_the_formula_by_hand() -> None:
    """DDIM's step on centred normal data multiplies by a number that is written out here."""
    grid = sdkit.Karras()(sdkit.scaled_linear(), 9)[:-1]
    mean, scale, x0 = 0.3, 0.5, AddressedNoise((0,)).initial(torch.empty(1, 2, 256, dtype=torch.float64)).numpy()
    spread = [np.hypot(level.alpha * scale, level.sigma) for level in grid]
    away = spread[0] * x0
    for i in range(8):
        a, b = grid[i], grid[i + 1]
        gain = a.alpha * scale**2 / spread[i] ** 2
        away = b.sigma / a.sigma * away + (b.alpha - a.alpha * b.sigma / a.sigma) * gain * away
    exact = spread[-1] * x0
    error = np.sqrt(np.mean((away - exact) ** 2) / np.mean((exact + grid[-1].alpha * mean) ** 2))
    contender = Contender.of("euler", "karras")
    (curve,) = exact_precision([contender], "gaussian", sdkit.scaled_linear(), [8]).curves
    assert [(point.steps, point.evaluations) for point in curve.points] == [(8, 8)]
    assert curve.points[0].error == pytest.approx(error, rel=1e-9)
    assert curve.slope is None


def test_evaluations_are_the_counted_ones() -> None:
    calls = 0
    problem = PROBLEMS["mixture"]

    def denoise(x: Tensor, level: sdkit.Level, /) -> Tensor:
        nonlocal calls
        calls += 1
        return problem(x, level)

    names = ["euler", "heun", "dpm-fast", "plms", "dpm-adaptive"]
    for name, curve in zip(names, curves(names, "mixture"), strict=True):
        one = Contender.of(name, "karras")
        for point in curve.points:
            calls = 0
            grid = one.spacing(sdkit.scaled_linear(), point.steps + 1)[:-1]
            noise = AddressedNoise((0,))
            x = problem.start(grid[0], noise.initial(torch.empty(1, 2, 256, dtype=torch.float64)))
            list(solve(one.scheduler, denoise, x, grid, noise))
            assert point.evaluations == calls, name
    assert [point.evaluations for point in curves(["heun"])[0].points] == [2 * n for n in STEPS]


def test_to_clean_walks_the_spacings_own_grid_and_shows_its_last_step() -> None:
    (without,), (whole,) = curves(["heun"]), curves(["heun"], to_clean=True)
    assert [point.evaluations for point in whole.points] == [2 * n - 1 for n in STEPS]
    # the prediction at the cleanest level, sigma = 0.029, is off by about sigma^2 / (2 * 0.5^2), however many steps
    assert 1e-3 < whole.points[-1].error < 3e-3
    assert without.points[-1].error < 3e-4


def test_moments_of_an_ancestral_method_agree_with_many_samples() -> None:
    """The exact moments against 200,000 runs; the sampling error of a variance is sqrt(2 / 200000) = 0.003 of it."""
    one, n, count = Contender.of("ddim(eta=1)", "karras"), 12, 200_000
    (curve,) = exact_precision([one], "gaussian", "scaled-linear", [n], measure="moments").curves
    grid = sdkit.Karras()(sdkit.scaled_linear(), n + 1)[:-1]
    problem, noise = PROBLEMS["gaussian"], AddressedNoise((1,))
    assert isinstance(problem, Gaussian)
    x = problem.start(grid[0], noise.initial(torch.empty(1, 2, count, dtype=torch.float64)))
    for step in solve(one.scheduler, problem, x, grid, noise):
        x = step.x
    sampled = np.cov(x[0].numpy())
    exact = np.eye(2) * (0.25 * grid[-1].alpha ** 2 + grid[-1].sigma ** 2)
    error = np.linalg.norm(sampled - exact) / np.linalg.norm(exact)
    assert curve.points[0].error == pytest.approx(error, abs=0.01)
    assert error > 0.1


def test_moments_of_a_deterministic_method_follow_its_order() -> None:
    euler, heun, ancestral = curves(["euler", "heun", "euler-ancestral"], "correlated", measure="moments")
    assert euler.slope == pytest.approx(1, abs=0.15)
    assert heun.slope == pytest.approx(2, abs=0.15)
    assert ancestral.slope == pytest.approx(1, abs=0.2)


def test_moments_refuse_a_scheduler_that_is_not_affine(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sdkit.Euler.step

    def clipped(self: Any, denoise: Any, *rest: Any) -> Any:
        return plain(self, lambda x, level: denoise(x, level).clamp(-0.1, 0.5), *rest)

    monkeypatch.setattr(sdkit.Euler, "step", clipped)
    with pytest.raises(sdkit.InvalidRequest, match="euler is not an affine map"):
        curves(["euler"], measure="moments")


def test_slopes_leave_out_what_lies_at_the_floor() -> None:
    def points(*pairs: tuple[int, float]) -> list[Point]:
        return [Point(n, n, error) for n, error in pairs]

    falling = points((10, 1e-1), (20, 2.5e-2), (40, 6.25e-3), (80, 1.5625e-3))
    assert _slope(falling, 0) == pytest.approx(2)
    assert _slope([*falling, *points((160, 1.6e-3))], 1e-3) == pytest.approx(2)
    assert _slope(falling, 1) is None
    assert _slope([Point(8, 30, 1e-2), Point(16, 30, 1e-3)], 0) is None


def test_a_model_is_measured_against_its_own_solution() -> None:
    """The toy's denoiser is linear and guided by 2: dpmpp-2m in 400 steps is near the solution, and orders show."""
    told: list[tuple[int, int]] = []
    model = toy_model(sdkit.RectifiedFlow())
    contenders = [Contender.of(name, "karras") for name in ("euler", "heun")]
    diagram = model_precision(
        contenders, model, ["a fox", "toadstool"], (10, 20, 40), reference_steps=400, progress=lambda *n: told.append(n)
    )
    euler, heun = diagram.curves
    assert [point.evaluations for point in euler.points] == [10, 20, 40]
    assert [point.evaluations for point in heun.points] == [19, 39, 79]  # the step to clean costs one
    assert euler.points[-1].error > 10 * diagram.floor
    assert euler.points[0].error > 1.5 * euler.points[1].error > 2 * euler.points[2].error
    assert heun.points[-1].error < euler.points[-1].error
    assert told[-1][0] == told[-1][1] == 2 * (400 + 200 + 70 + 140)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_models_error_is_the_distance_of_its_latents() -> None:
    model = toy_model()
    diagram = model_precision([Contender.of("euler", "trailing")], model, ["a fox"], [7], seed=5, reference_steps=50)
    pipe = sdkit.pipeline(model)
    request = {"prompt": "a fox", "seeds": (5,)}
    got = pipe(sdkit.Request(**request, scheduler="euler", spacing="trailing", steps=7)).latents  # type: ignore[arg-type]
    solution = pipe(sdkit.Request(**request, scheduler="dpmpp-2m", spacing="karras", steps=50)).latents  # type: ignore[arg-type]
    error = float((got - solution).norm() / solution.norm())
    assert diagram.curves[0].points[0].error == pytest.approx(error, rel=1e-5)
    assert "50 steps of dpmpp-2m, karras" in diagram.measure
    assert "guidance 2" in diagram.title


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "no number of steps"),
        ({"steps": [0]}, "at least 1, not 0"),
        ({"contenders": []}, "name at least one"),
        ({"problem": "cauchy"}, "known: gaussian, correlated, mixture"),
        ({"problem": "mixture", "measure": "moments"}, "'mixture' are none"),
        ({"measure": "speed"}, "not 'speed'"),
        ({"schedule": "squared"}, "no schedule 'squared'"),
        ({"contenders": ["euler-ancestral"]}, "adds noise"),
        ({"steps": [2000]}, "at most 1000 steps, not 2001"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"problem": "gaussian", "schedule": "scaled-linear", "steps": [8], "contenders": ["euler"]} | change
    contenders = [Contender.of(name, "leading") for name in given.pop("contenders")]
    with pytest.raises(sdkit.SdkitError, match=message):
        exact_precision(contenders, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "at least one"),
        ({"reference_steps": 10}, "10 against 10"),
        ({"reference_steps": 0}, "at least 1, not 0"),
        ({"guidance": float("nan")}, "finite"),
    ],
)
def test_what_cannot_be_measured_on_a_model_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"prompts": ["a fox"], "steps": [10]} | change
    model = toy_model()
    with pytest.raises(sdkit.SdkitError, match=message):
        model_precision([Contender.of("euler", "karras")], model, **given)
    assert model.denoiser.calls == []  # type: ignore[attr-defined]


def test_an_error_that_is_not_finite_names_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sdkit.Euler.step

    def broken(self: Any, denoise: Any, *rest: Any) -> Any:
        return plain(self, lambda x, level: denoise(x, level) / 0, *rest)

    monkeypatch.setattr(sdkit.Euler, "step", broken)
    with pytest.raises(sdkit.NonFiniteError, match="euler, karras ends in NaN or infinity in 16 steps"):
        curves(["euler"])


def test_a_spacing_in_the_schedulers_name_is_taken() -> None:
    one = Contender.of("DPM++ 2M Karras", "trailing")
    assert (one.scheduler_name, one.spacing_name) == ("dpmpp-2m", "karras")
    assert Contender.of("ddim(eta=0)", "karras(rho=5)").name == "ddim, karras(rho=5.0)"
    assert Contender.of("exp_heun_2_x0", "simple").name == "exp-heun, trailing"


# --- the commands ---


def test_the_table_agrees_with_json_and_csv(run: Run) -> None:
    arguments = ["bench-schedulers", "euler", "heun", "--spacing", "karras", "--spacing", "trailing", "--steps", "8,16"]
    table, data = run(*arguments, "--csv", "a.csv"), json.loads(run(*arguments, "--json").out)
    assert (table.code, table.err) == (0, "a.csv\n")
    with open("a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(c["scheduler"], c["spacing"]) for c in data["curves"]] == [
        (scheduler, spacing) for scheduler in ("euler", "heun") for spacing in ("karras", "trailing")
    ]
    flat = [(curve, point) for curve in data["curves"] for point in curve["points"]]
    assert len(rows) == len(flat) == 8
    for row, (curve, point) in zip(rows, flat, strict=True):
        assert (row["scheduler"], row["spacing"], int(row["order"])) == (
            curve["scheduler"], curve["spacing"], curve["order"],
        )  # fmt: skip
        assert (int(row["steps"]), int(row["evaluations"])) == (point["steps"], point["evaluations"])
        assert (float(row["error"]), float(row["slope"])) == (point["error"], curve["slope"])
    lines = table.out.splitlines()
    for curve in data["curves"]:
        (line,) = [text for text in lines if text.split()[:2] == [curve["scheduler"], curve["spacing"]]]
        cells = [f"{point['error']:.1e} ({point['evaluations']})" for point in curve["points"]]
        assert line.split()[2:4] == [str(curve["order"]), f"{curve['slope']:.2f}"]
        assert all(cell in line for cell in cells)


def is_a_real_picture(name: str, size: tuple[int, int]) -> bool:
    """Of the size asked for, with several colours besides black, white and greys, and not over 150 kB."""
    with Image.open(name) as image:
        assert image.format == "PNG"
        assert image.size == size
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    coloured = pixels[np.ptp(pixels, axis=-1) > 60]
    return len(np.unique(coloured, axis=0)) > 4 and len(coloured) > 300 and Path(name).stat().st_size < 150_000


def test_the_pictures_are_pictures(run: Run) -> None:
    many = ["euler", "heun", "dpmpp-2m", "unipc", "deis", "lms", "ipndm", "dpm-2", "dpmpp-3m"]
    outcome = run("bench-schedulers", *many, "--steps", "4,8", "--out", "a.png")
    assert (outcome.code, outcome.err) == (0, "a.png\n")
    assert is_a_real_picture("a.png", (1200, 800))
    for quantity in ("noise", "t"):
        arguments = ["--schedule", "rectified-flow", "--quantity", quantity, "--size", "600x400"]
        outcome = run("plot-grids", *arguments, "--out", f"{quantity}.png")
        assert outcome.code == 0, outcome.err
        assert is_a_real_picture(f"{quantity}.png", (600, 400))
    assert {path.name for path in Path().iterdir()} == {"a.png", "noise.png", "t.png"}


def test_what_is_drawn_is_what_was_measured() -> None:
    from sdkit.cli.drawing import grids_figure, png, precision_figure

    found = tuple(curves(["euler", "heun"]))
    diagram = Diagram("data", "error", 1e-3, "a floor", found)
    figure = precision_figure(diagram, (800, 600))
    (axes,) = figure.axes
    drawn = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    assert f"euler  ({found[0].slope:.1f})" in drawn
    for curve in found:
        expected = [(point.evaluations, point.error) for point in curve.points]
        assert drawn[f"{curve.scheduler}  ({curve.slope:.1f})"].tolist() == [list(pair) for pair in expected]
    guides = [xy for label, xy in drawn.items() if str(label).startswith("_")]
    slopes = [-np.diff(np.log(xy[:, 1]))[0] / np.diff(np.log(xy[:, 0]))[0] for xy in guides]
    assert slopes == pytest.approx([1, 2, 3])
    assert "a floor" in {text.get_text() for text in axes.texts}
    assert png(figure) == png(precision_figure(diagram, (800, 600)))

    grid = sdkit.Karras()(sdkit.RectifiedFlow(), 5)
    (axes,) = grids_figure({("karras", 5): grid}, "rectified-flow", "noise", (1200, 600)).axes
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[i, grid[i].noise_to_signal] for i in range(1, 5)]
    assert "not drawn: clean end, start without signal" in axes.get_title(loc="left")
    (axes,) = grids_figure({("karras", 5): grid}, "rectified-flow", "t", (800, 600)).axes
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[i, grid[i].t] for i in range(6)]


def test_grids_as_table_json_and_csv(run: Run) -> None:
    arguments = ["plot-grids", "karras(rho=5)", "trailing", "--steps", "3,5", "--schedule", "rectified-flow"]
    outcome = run(*arguments, "--csv", "a.csv")
    lines = outcome.out.splitlines()
    assert lines[0].split("  ")[0] == "index"
    assert [name in lines[0] for name in ("karras(rho=5), 3", "trailing, 5")] == [True, True]
    assert len(lines) == 7
    assert "no signal" in lines[1]
    data = json.loads(run(*arguments, "--json").out)
    assert data["schedule"] == "rectified-flow"
    grid = sdkit.Trailing()(sdkit.RectifiedFlow(), 5)
    levels = [row for row in data["levels"] if (row["spacing"], row["steps"]) == ("trailing", 5)]
    assert [(r["index"], r["t"], r["alpha"], r["sigma"]) for r in levels] == [
        (i, level.t, level.alpha, level.sigma) for i, level in enumerate(grid)
    ]
    with open("a.csv", newline="") as file:
        assert [{k: str(v) for k, v in row.items()} for row in data["levels"]] == list(csv.DictReader(file))
    times = run(*arguments, "--quantity", "t").out
    assert f"{grid[2].t:.4g}" in times


def test_a_model_on_the_command_line(run: Run) -> None:
    outcome = run(
        "bench-schedulers", "euler", "ddim(eta=1)", "--model", "toy", "--prompt", "a fox", "--steps", "5,10",
        "--reference-steps", "40", "--guidance", "3", "--seed", "2", "--out", "a.png",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "guidance 3" in outcome.out
    assert "left out ddim(eta=1.0): adds noise" in outcome.err
    assert outcome.out.count("karras") == 2  # the toy's own spacing: of the curve, and of the solution
    assert is_a_real_picture("a.png", (1200, 800))


def test_a_terminal_sees_progress(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    outcome = run("bench-schedulers", "euler", "--steps", "4,8")
    assert "evaluating" in outcome.err
    assert "100%" in outcome.err


def test_interrupted_it_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdkit.cli.drawing.precision_figure", interrupted)
    Path("a.png").write_bytes(b"before")
    outcome = run("bench-schedulers", "euler", "--steps", "4", "--out", "a.png")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (130, "Error: stopped.")
    assert Path("a.png").read_bytes() == b"before"
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_without_matplotlib_there_is_a_sentence_before_any_work_and_still_a_table(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib" or name == "sdkit.cli.drawing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("sdkit.cli.drawing", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("bench-schedulers", "euler", "--steps", "4").code == 0
    assert run("plot-grids", "karras").code == 0

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("something was computed")

    monkeypatch.setattr("sdkit.testing.precision.exact_precision", refuse)
    for command in ("bench-schedulers", "plot-grids"):
        outcome = run(command, "--out", "a.png")
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert "needs matplotlib: pip install 'sdkit-core[plot]'" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench-schedulers", "eulr"], "did you mean euler"),
        (["bench-schedulers", "euler", "--spacing", "karas"], "did you mean karras"),
        (["bench-schedulers", "--problem", "cauchy"], "known: gaussian"),
        (["bench-schedulers", "--schedule", "squared"], "no schedule 'squared'"),
        (["bench-schedulers", "--steps", "0"], "'0' is no number of steps"),
        (["bench-schedulers", "--steps", "8,,16"], "'' is no number of steps"),
        (["bench-schedulers", "--steps", "99999999999"], "whole numbers from 1 to 10000"),
        (["bench-schedulers", "--steps", "2.5"], "'2.5' is no number"),
        (["bench-schedulers", "euler-ancestral", "lcm"], "no scheduler left to compare. euler-ancestral, lcm: adds"),
        (["bench-schedulers", "euler", "--moments", "--problem", "mixture"], "'mixture' are none"),
        (["bench-schedulers", "euler", "--prompt", "a fox"], "--prompt is for a model"),
        (["bench-schedulers", "euler", "--guidance", "0"], "--guidance is for a model"),
        (["bench-schedulers", "--model", "toy"], "give --prompt"),
        (["bench-schedulers", "--model", "toy", "--prompt", "x", "--problem", "mixture"], "--problem is about exact"),
        (["bench-schedulers", "--model", "tiy", "--prompt", "x"], "did you mean toy"),
        (["bench-schedulers", "--model", "toy", "--prompt", "x", "--reference-steps", "9"], "9 against 80"),
        (["bench-schedulers", "--seed", "-1"], "not -1"),
        (["bench-schedulers", "--out", "a.jpg"], "ends in .png"),
        (["bench-schedulers", "--csv", "a.txt"], "ends in .csv"),
        (["bench-schedulers", "--out", "missing/a.png"], "'missing' does not exist"),
        (["bench-schedulers", "--out", "a.png", "--size", "30x30"], "between 400 and 8000"),
        (["bench-schedulers", *(f"ddim(eta={k}e-3)" for k in range(41)), "--moments"], "41 curves"),
        (["plot-grids", "karas"], "did you mean karras"),
        (["plot-grids", "leading", "--steps", "2000"], "at most 1000 steps, not 2000.; in leading, 2000 steps"),
        (["plot-grids", "--steps", ",".join(map(str, range(1, 12)))], "44 curves"),
        (["plot-grids", "--quantity", "sigma"], "sigma"),
        (["plot-grids", "--schedule", "squared"], "no schedule 'squared'"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run: Run, arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert list(Path().iterdir()) == []


def test_help_loads_no_torch_and_no_matplotlib() -> None:
    import subprocess

    code = (
        "import sys\nfrom sdkit.cli import main\n"
        "for words in (['--help'], ['bench-schedulers', '--help'], ['plot-grids', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
