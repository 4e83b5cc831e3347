"""``sdkit bench-schedulers`` and ``sdkit plot-grids``: what schedulers and spacings do, as tables and as pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sdkit.cli.generate import Size
from sdkit.cli.listing import table
from sdkit.errors import FileError, InvalidRequest, PluginError
from sdkit.files import write_whole
from sdkit.plugins import registry

if TYPE_CHECKING:
    from sdkit.levels import Grid, Level
    from sdkit.testing.precision import Contender, Diagram, Progress

__all__ = ["bench_schedulers", "plot_grids"]

SCHEDULERS = ("euler", "heun", "dpmpp-2m", "dpmpp-3m", "unipc", "dpm-fast")
"""Compared where none is named, as far as they are installed: orders 1 to 3, one to three evaluations a step."""
SPACINGS = ("trailing", "uniform", "karras", "uniform-log-snr")
MOST_CURVES, MOST_STEPS, LEAST_SIDE, MOST_SIDE = 40, 10_000, 400, 8000


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """Whole numbers with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, rising, each once."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        wrong = [w for w in words if not (w.isascii() and w.isdigit()) or not 1 <= int(w[:9]) <= MOST_STEPS]
        if wrong:
            self.fail(
                f"{wrong[0]!r} is no number of steps; write whole numbers from 1 to {MOST_STEPS} with commas between "
                "them, for example 10,20,40.",
                param,
                ctx,
            )
        return tuple(sorted({int(word) for word in words}))


def _outputs(command: Any) -> Any:
    """The options about where things go, the same for both commands."""
    for option in (
        click.option("--size", type=Size(), default="1200x800", show_default=True, help="Of the picture, in pixels."),
        click.option("--csv", "csv_file", metavar="FILE", help="Also write the table as comma-separated values."),
        click.option("--json", "as_json", is_flag=True, help="The table as JSON, for programs."),
        click.option("--out", metavar="FILE", help="PNG to draw; needs the extra sdkit-core[plot]."),
    ):
        command = option(command)
    return command


@click.command(name="bench-schedulers")
@click.argument("names", nargs=-1, metavar="[SCHEDULER]...")
@click.option("--spacing", "spacings", multiple=True, metavar="NAME", help="Which levels to visit; may be repeated.")
@click.option("--steps", type=Counts(), help="Numbers of steps [default: 8,16,...,256; of a model 5,10,20,40,80].")
@click.option("--problem", metavar="NAME", help="Exact data: gaussian, correlated or mixture [default: mixture].")
@click.option("--schedule", metavar="NAME", help="Noise schedule of exact data [default: scaled-linear].")
@click.option("--moments", is_flag=True, help="Compare the final mean and covariance, also of those that add noise.")
@click.option("--to-clean", is_flag=True, help="Also walk the last step of exact data, to no noise at all.")
@click.option("--model", metavar="NAME", help="Compare on this model's latents instead of exact data.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="For the model; may be repeated.")
@click.option("--guidance", type=float, metavar="F", help="For the model [default: the model's].")
@click.option("--reference-steps", type=int, metavar="N", help="Steps of the model's own solution [default: 1000].")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the start noise.")
@click.option("--device", metavar="D", help="Where to run the model [default: cpu].")
@_outputs
def bench_schedulers(
    names: tuple[str, ...],
    spacings: tuple[str, ...],
    steps: tuple[int, ...] | None,
    problem: str | None,
    schedule: str | None,
    moments: bool,
    to_clean: bool,
    model: str | None,
    prompts: tuple[str, ...],
    guidance: float | None,
    reference_steps: int | None,
    seed: int,
    device: str | None,
    out: str | None,
    as_json: bool,
    csv_file: str | None,
    size: tuple[int, int],
) -> None:
    r"""Work-precision: errors of schedulers against the number of denoiser evaluations.

    On exact data the error is the distance from the exact probability flow; on a model, from its own solution in 1,000
    steps of the same noise. One curve per scheduler and spacing; "DPM++ 2M Karras" names both.

    \b
    sdkit bench-schedulers euler heun dpmpp-2m --out work-precision.png
    sdkit bench-schedulers --model emoji --prompt "a fox" --spacing uniform
    """
    exact = {"--problem": problem, "--schedule": schedule, "--moments": moments, "--to-clean": to_clean}
    networks = {"--prompt": prompts, "--guidance": guidance, "--reference-steps": reference_steps, "--device": device}
    # 0 is a value of --guidance, and equal to False
    for name in [o for o, v in (exact if model else networks).items() if not (v is None or v is False or v == ())]:
        other = "is about exact data, and --model about a network" if model else "is for a model; give --model"
        raise InvalidRequest(f"{name} {other}.")
    if model and not prompts:
        raise InvalidRequest("A model needs something to draw: give --prompt, once or more.")
    _check_outputs(out, csv_file, size)
    drawing = _drawing() if out else None
    precision = _precision()
    known = {entry.component.name for entry in registry().entries("scheduler")}
    wanted = names or tuple(name for name in SCHEDULERS if name in known)

    if model:
        import sdkit

        loaded = sdkit.load(model, device=device or "cpu")
        contenders = _contenders(wanted, spacings or (loaded.spec.spacing,), noise=False)
        with _progress() as progress:
            diagram = precision.model_precision(
                contenders,
                loaded,
                prompts,
                steps or (5, 10, 20, 40, 80),
                seed=seed,
                guidance=guidance,
                reference_steps=1000 if reference_steps is None else reference_steps,
                progress=progress,
            )
    else:
        contenders = _contenders(wanted, spacings or ("karras",), noise=moments)
        with _progress() as progress:
            diagram = precision.exact_precision(
                contenders,
                problem or ("gaussian" if moments else "mixture"),
                schedule or "scaled-linear",
                steps or (8, 16, 32, 64, 128, 256),
                measure="moments" if moments else "path",
                to_clean=to_clean,
                seed=seed,
                progress=progress,
            )
    _put_diagram(diagram, as_json)
    if csv_file:
        _write_csv(
            csv_file, ["scheduler", "spacing", "order", "slope", "steps", "evaluations", "error"], _rows(diagram)
        )
    if drawing is not None:
        _write_png(str(out), drawing.png(drawing.precision_figure(diagram, size)))


@click.command(name="plot-grids")
@click.argument("names", nargs=-1, metavar="[SPACING]...")
@click.option("--steps", type=Counts(), default="10,20", show_default=True, help="Numbers of steps.")
@click.option("--schedule", default="scaled-linear", show_default=True, metavar="NAME", help="Which to divide.")
@click.option(
    "--quantity",
    type=click.Choice(["noise", "t"]),
    default="noise",
    show_default=True,
    help="noise: sigma / alpha, logarithmic; t: the schedule's own time.",
)
@_outputs
def plot_grids(
    names: tuple[str, ...],
    steps: tuple[int, ...],
    schedule: str,
    quantity: Literal["noise", "t"],
    out: str | None,
    as_json: bool,
    csv_file: str | None,
    size: tuple[int, int],
) -> None:
    r"""Which levels spacings visit, over their index.

    \b
    sdkit plot-grids karras trailing "beta(alpha=0.6)" --steps 20 --out grids.png
    """
    _check_outputs(out, csv_file, size)
    drawing = _drawing() if out else None
    levels = registry().make("schedule", schedule)
    spacings = {name: registry().make("spacing", name) for name in names or SPACINGS}
    _few_enough(len(spacings) * len(steps))
    grids: dict[tuple[str, int], Grid] = {}
    for name, spacing in spacings.items():
        for count in steps:
            try:
                grids[name, count] = tuple(spacing(levels, count))
            except Exception as error:
                error.add_note(f"in {name}, {count} steps")
                raise
    rows = [
        (name, count, i, level.t, level.alpha, level.sigma)
        for (name, count), grid in grids.items()
        for i, level in enumerate(grid)
    ]
    header = ["spacing", "steps", "index", "t", "alpha", "sigma"]
    if as_json:
        found = [dict(zip(header, row, strict=True)) for row in rows]
        click.echo(json.dumps({"schedule": schedule, "levels": found}, indent=2))
    else:
        click.echo(_grid_table(grids, quantity))
    if csv_file:
        _write_csv(csv_file, header, rows)
    if drawing is not None:
        _write_png(str(out), drawing.png(drawing.grids_figure(grids, schedule, quantity, size)))


def _contenders(names: Sequence[str], spacings: Sequence[str], *, noise: bool) -> list[Contender]:
    """Each scheduler on each spacing, once; without ``noise``, those that add some are left out with a sentence."""
    precision = _precision()
    found: dict[str, Contender] = {}
    left: list[str] = []
    for name in names:
        for spacing in spacings:
            one = precision.Contender.of(name, spacing)
            if one.scheduler.traits.stochastic and not noise:
                left.append(one.scheduler_name)
                continue
            found.setdefault(one.name, one)
    if left:
        which = ", ".join(dict.fromkeys(left))
        reason = f"{which}: adds noise, so it does not follow the probability flow; see --moments"
        if not found:
            raise InvalidRequest(f"There is no scheduler left to compare. {reason}.")
        click.echo(f"Note: left out {reason}.", err=True)
    _few_enough(len(found))
    return list(found.values())


def _few_enough(curves: int) -> None:
    if curves > MOST_CURVES:
        raise InvalidRequest(f"These are {curves} curves; more than {MOST_CURVES} cannot be told apart: name fewer.")


def _precision() -> Any:
    try:
        from sdkit.testing import precision
    except ImportError as error:
        raise PluginError(f"The kit needs hypothesis: pip install 'sdkit-core[testing]' ({error}).") from error
    return precision


def _drawing() -> Any:
    try:
        from sdkit.cli import drawing
    except ImportError as error:
        raise PluginError(
            f"A picture needs matplotlib: pip install 'sdkit-core[plot]', or leave --out away for the table ({error})."
        ) from error
    return drawing


def _check_outputs(out: str | None, csv_file: str | None, size: tuple[int, int]) -> None:
    """Refuse what could not be written before minutes of work."""
    for name, ending in ((out, ".png"), (csv_file, ".csv")):
        if name is None:
            continue
        path = Path(name)
        if path.suffix.lower() != ending:
            raise FileError(f"{name!r} is no name that ends in {ending}.")
        if not path.parent.is_dir():
            raise FileError(f"The folder {str(path.parent)!r} does not exist; make it first.")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise FileError(f"{name!r} cannot be written: no permission, or it is a folder.")
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in size):
        raise InvalidRequest(
            f"A picture of {size[0]}x{size[1]} is not one to read; its sides lie between {LEAST_SIDE} and {MOST_SIDE}."
        )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar (evaluations, time left) on stderr where that is a terminal."""
    with click.progressbar(length=1, label="evaluating", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def tell(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield tell


def _rows(diagram: Diagram) -> list[tuple[Any, ...]]:
    return [
        (c.scheduler, c.spacing, c.order, "" if c.slope is None else c.slope, p.steps, p.evaluations, p.error)
        for c in diagram.curves
        for p in c.points
    ]


def _put_diagram(diagram: Diagram, as_json: bool) -> None:
    if as_json:
        import attrs

        click.echo(json.dumps(attrs.asdict(diagram), indent=2))
        return
    click.echo(f"{diagram.title}\n{diagram.measure}\n{diagram.floor:.1e}: {diagram.floor_reason}\n")
    counts = sorted({point.steps for curve in diagram.curves for point in curve.points})
    rows = [("scheduler", "spacing", "order", "slope", *(f"{n} steps" for n in counts))]
    for curve in diagram.curves:
        cells = [f"{point.error:.1e} ({point.evaluations})" for point in curve.points]
        slope = "-" if curve.slope is None else f"{curve.slope:.2f}"
        rows.append((curve.scheduler, curve.spacing, str(curve.order), slope, *cells))
    click.echo(table(rows))
    click.echo("\nIn parentheses: denoiser evaluations. Slope: fitted over the finer half of the points.")


def _grid_table(grids: dict[tuple[str, int], Grid], quantity: str) -> str:
    """Levels as rows, grids as columns."""

    def value(level: Level) -> str:
        number = level.t if quantity == "t" else level.noise_to_signal
        return "no signal" if math.isinf(number) else f"{number:.4g}"

    rows = [("index", *(f"{name}, {count}" for name, count in grids))]
    for i in range(max(len(grid) for grid in grids.values())):
        rows.append((str(i), *(value(grid[i]) if i < len(grid) else "" for grid in grids.values())))
    return table(rows)


def _write_csv(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(name, lambda file: file.write(text.getvalue().encode()))
    click.echo(name, err=True)


def _write_png(name: str, data: bytes) -> None:
    write_whole(name, lambda file: file.write(data))
    click.echo(name, err=True)
