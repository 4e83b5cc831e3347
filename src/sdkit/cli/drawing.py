"""Pictures of work-precision diagrams and of grids, by matplotlib (the extra ``sdkit-core[plot]``).

Only matplotlib's objects are used: a `Figure` and its canvas, no pyplot and none of its global state. Colours are those
of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any kind of colour vision can tell apart; markers
say the same again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sdkit.levels import Grid
    from sdkit.testing.precision import Diagram

__all__ = ["grids_figure", "png", "precision_figure"]

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">", "h", "*", "d")  # 7 and 11 share no factor: 77 different pairs
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
GREY = "#8a8a8a"


def precision_figure(diagram: Diagram, size: tuple[int, int]) -> Figure:
    """Error against evaluations, both logarithmic, with grey guides of slope 1, 2 and 3.

    Colour and marker tell the scheduler, the line the spacing. The legend is in the order of the curves' last errors.

    Args:
        diagram: What was measured.
        size: (width, height) in pixels.
    """
    figure, axes = _figure(size)
    schedulers = list(dict.fromkeys(curve.scheduler for curve in diagram.curves))
    spacings = list(dict.fromkeys(curve.spacing for curve in diagram.curves))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ordered = sorted(diagram.curves, key=lambda curve: -curve.points[-1].error)
    for place, curve in enumerate(ordered):
        k = schedulers.index(curve.scheduler)
        name = curve.scheduler if len(spacings) == 1 else curve.name
        axes.plot(
            [point.evaluations for point in curve.points],
            # an error of zero has no logarithm; it is drawn where rounding begins
            [max(point.error, diagram.floor / 100) for point in curve.points],
            label=name if curve.slope is None else f"{name}  ({curve.slope:.1f})",
            **_style(k, spacings.index(curve.spacing) if len(spacings) > 1 else k // len(COLOURS)),
            **_widths(place, len(ordered)),
        )
    _limits(axes, diagram)
    _guides(axes, diagram)
    title = diagram.title if len(spacings) > 1 else f"{diagram.title}, {spacings[0]} spacing"
    axes.set_title(_wrapped(title, size), fontsize=10, loc="left")
    axes.set_xlabel("denoiser evaluations per image", fontsize=9)
    axes.set_ylabel(_wrapped(diagram.measure, (size[1], 0)), fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(axes, "curve  (fitted slope)", len(diagram.curves))
    return figure


def grids_figure(grids: Mapping[tuple[str, int], Grid], schedule: str, quantity: str, size: tuple[int, int]) -> Figure:
    """Levels over their index, one curve per spacing and number of steps.

    Args:
        grids: By name of the spacing and number of steps.
        schedule: Its name.
        quantity: ``"noise"`` for sigma / alpha, logarithmic; ``"t"`` for the schedule's time.
        size: (width, height) in pixels.
    """
    figure, axes = _figure(size)
    spacings = list(dict.fromkeys(name for name, _ in grids))
    counts = list(dict.fromkeys(count for _, count in grids))
    off: set[str] = set()
    for place, ((name, count), grid) in enumerate(grids.items()):
        values = [level.t if quantity == "t" else level.noise_to_signal for level in grid]
        drawn = [(i, v) for i, v in enumerate(values) if quantity == "t" or 0 < v < math.inf]
        if quantity == "noise":
            off |= {"clean end"} if 0 in values else set()
            off |= {"start without signal"} if math.inf in values else set()
        k = spacings.index(name)
        axes.plot(
            *zip(*drawn, strict=True),
            label=name if len(counts) == 1 else f"{name}, {count} steps",
            markevery=max(1, len(grid) // 12) if len(grid) > 40 else 1,
            **_style(k, counts.index(count) if len(counts) > 1 else k // len(COLOURS)),
            **_widths(place, len(grids)),
        )
    if quantity == "noise":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left = f" (not drawn: {', '.join(sorted(off))})" if off else ""
    axes.set_title(_wrapped(f"levels on the {schedule} schedule{left}", size), fontsize=10, loc="left")
    axes.set_xlabel("index of the level in its grid (0: where sampling starts)", fontsize=9)
    axes.set_ylabel("time t of the schedule" if quantity == "t" else "noise to signal, sigma / alpha", fontsize=9)
    _legend(axes, "spacing", len(grids))
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes, in 256 colours, enough for lines and letters, at a third of the bytes."""
    from PIL import Image

    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()  # type: ignore[no-untyped-call]
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    picture = picture.convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _figure(size: tuple[int, int]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _style(colour: int, line: int) -> dict[str, Any]:
    return {
        "color": COLOURS[colour % len(COLOURS)],
        "marker": MARKERS[colour % len(MARKERS)],
        "linestyle": LINES[line % len(LINES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def _widths(place: int, curves: int) -> dict[str, Any]:
    """Curves drawn first are wider, so that one that coincides with a later one shows on both sides of it."""
    share = 1 - place / max(1, curves - 1)
    return {"linewidth": 1.1 + 0.6 * share, "markersize": 4.2 + 1.2 * share}


def _limits(axes: Axes, diagram: Diagram) -> None:
    work = [point.evaluations for curve in diagram.curves for point in curve.points]
    wrong = [max(point.error, diagram.floor / 100) for curve in diagram.curves for point in curve.points]
    axes.set_xlim(min(work) / 1.25, max(work) * 1.25)
    axes.set_ylim(min(wrong) / 2.5, max(wrong) * 2.5)
    bottom = axes.get_ylim()[0]
    if diagram.floor > bottom:
        axes.axhspan(bottom, diagram.floor, color="#f1f1f1", zorder=0, linewidth=0)
        axes.text(
            0.01, diagram.floor, diagram.floor_reason, transform=axes.get_yaxis_transform(), fontsize=7, color=GREY,
            va="top",
        )  # fmt: skip


def _guides(axes: Axes, diagram: Diagram) -> None:
    """Lines error = c / evaluations^p from the upper left corner, each with its slope written where it leaves."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for slope in (1, 2, 3):
        end = min(right, left * (top / bottom) ** (1 / slope))
        axes.plot([left, end], [top, top * (end / left) ** -slope], color="#c4c4c4", linewidth=0.8, zorder=1)
        # a little inside, so that the words stay on the axes whichever side the line leaves by
        x = left * (end / left) ** 0.93
        axes.annotate(
            f"slope {slope}", (x, top * (x / left) ** -slope), fontsize=7, color=GREY, style="italic", ha="center",
            va="center", zorder=1, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _legend(axes: Axes, title: str, entries: int) -> None:
    """Outside, at the right, so that it hides no curve; smaller where there are many."""
    font = 8 if entries <= 16 else 6.5 if entries <= 28 else 5.5
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False, fontsize=font, title=title,
        title_fontsize=font, alignment="left", handlelength=2.6, labelspacing=0.45,
    )  # fmt: skip


def _wrapped(text: str, size: tuple[int, int]) -> str:
    """In lines that fit the axes, about two thirds of the width."""
    import textwrap

    return "\n".join(textwrap.wrap(text, max(24, size[0] // 13)))
