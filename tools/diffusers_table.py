"""Write docs/diffusers-schedulers.md: the conformance kit run on the schedulers of diffusers.

python tools/diffusers_table.py [CLASS ...]

With classes named, their rows are printed and no file is written.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import attrs
import diffusers
import torch

import sdkit
from sdkit import testing
from sdkit.interop import KINDS, Borrowed, from_diffusers
from sdkit.testing.strategies import SCHEDULES

EXAMPLES = 6
ROUNDING = 1e-3
"""A rule that fails by less than this fails by float32 arithmetic; its tolerance is 1e-9."""
SETTINGS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "skip_prk_steps": True,
}
MARKS = {"pass": "yes", "skip": "-", "rounding": "f32", "alpha": "a=0", "fail": "**NO**"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DDIMScheduler, eta=1": ({}, {"eta": 1.0}),
    "DPMSolverMultistepScheduler, solver_order=3": ({"solver_order": 3}, {}),
    "DPMSolverMultistepScheduler, sde-dpmsolver++": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPMSolverMultistepScheduler, sde-dpmsolver++, solver_order=3": (
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        {},
    ),
    "DEISMultistepScheduler, solver_order=3": ({"solver_order": 3}, {}),
    "DPMSolverSinglestepScheduler, solver_order=3": ({"solver_order": 3}, {}),
}
HEAD = """# The schedulers of diffusers under our rules

Each scheduler class of diffusers that `sdkit.interop.from_diffusers` can drive, tried on the [rules](rules.md) that
sdkit's own schedulers have to keep. Read the marks before the table:

- **yes**: the rule holds. **-**: it says nothing about this class (by what the class promises).
- **f32**: it fails, but by less than 1e-3: the class computes in float32 where the rule, on float64 latents, allows a
  rounding error of 1e-9. That is no mistake of a method; it hides mistakes from tests.
- **a=0**: refused. The class works in `sigma / alpha`, which is infinite where nothing of the picture is left; flows
  and zero-terminal-SNR models start there. S11 and S13 try such levels; for these classes all other rules
  were tried on levels with signal only.
- **NO**: it fails; the reason and the figures are below the table.

What this is and is not:

- The **solver** of each class is judged, on levels that sdkit gives it ([how](interop.md)). Its own time grids, known
  to repeat or miss levels, are stepped around; so is its cursor, since the adapter steps a copy. That S3, S10 and S11
  hold is the adapter's doing and no merit of the class.
- The adapter passes the noise in. That S17 holds says nothing about what the class would draw if left alone.
- `DEISMultistepScheduler` has no step to clean; the adapter takes the prediction there.
- `KDPM2AncestralDiscreteScheduler` fails wherever one step divides sigma by a thousand or so: in float32 its
  `sigma_down` is then the root of a negative number.
- `DDIMScheduler` with `eta=1` gives NaN on grids that start at alpha = 0: `1 - alpha'^2 - std^2`, which is 0 there, can
  round to below 0, and its root is taken.
- `DPMSolverSinglestepScheduler` of order 3 walks in blocks of three steps. S7 stops after 16, 32, 64 and 128, inside a
  block, where the latents have a lower order: its figure there is the fault of the measurement, not of the class.
- The third-order DPM-Solver++ lacks a factor 2 in its last term (order 2), its SDE form has a wrong sign besides
  (order 1). PNDM and iPNDM have weights for equal steps: order 2 on even grids, 1 where every other step is longer.
- Orders promised are those of the papers: 2 for DPM-Solver++(2M) and so on; for PNDM and iPNDM, 2.
- Not driven: classes whose steps depend on the training time itself (LCM, TCD, SASolver), that take other inputs
  than latents and a prediction, or that belong to one model (CogVideoX, SCM, Helios, ...); and
  `PNDMScheduler(skip_prk_steps=False)`, which takes half steps of its own.
"""


def make(name: str) -> Borrowed:
    """The scheduler of a row: a class, settings may follow."""
    settings, options = VARIANTS.get(name, ({}, {}))
    theirs: Any = diffusers
    target = getattr(theirs, name.split(",")[0])
    takes = inspect.signature(target).parameters
    known = {key: value for key, value in SETTINGS.items() if key in takes}
    return from_diffusers(target(**known, **settings), options=options)


def outcomes(name: str) -> list[tuple[str, str, str]]:
    """(rule, mark, detail) of every rule on one row."""
    scheduler = make(name)
    everywhere = scheduler.knows_alpha_zero
    names = tuple(key for key, schedule in SCHEDULES.items() if everywhere or schedule.noisiest.alpha > 0)
    found = []
    for rule in testing.catalogue("scheduler"):
        narrowed = rule if rule.cases is None else attrs.evolve(rule, cases=lambda: testing.cases(names=names))
        try:
            detail, mark = str(testing.apply(narrowed, scheduler, examples=EXAMPLES) or ""), "pass"
        except testing.Skip:
            detail, mark = "", "skip"
        except sdkit.LevelError as error:
            detail, mark = str(error), "alpha" if "is infinite at" in str(error) else "fail"
        except Exception as error:  # whatever a class does wrong is its outcome
            words = " ".join(str(error).split())
            detail = words if isinstance(error, testing.NonConformance) else f"{type(error).__name__}: {words}"
            mark = "rounding" if rule.name != "order" and _figure(detail) < ROUNDING else "fail"
        found.append((rule.id, mark, detail))
    return found


def _figure(detail: str) -> float:
    """The first figure of a message: by how much a rule is broken."""
    found = re.search(r"(?:by|ends|step \d+,) (\d+(?:\.\d+)?(?:e[-+]\d+)?)\b(?! of)", detail)
    return float(found[1]) if found else float("inf")


def row(name: str, found: list[tuple[str, str, str]]) -> str:
    """One line of the table."""
    order = next(detail for rule, _, detail in found if rule == "S7")
    measured = re.search(r"order (-?[\d.]+(?:, -?[\d.]+)*)", order)
    shown = measured[1] if measured else "-"
    promised = make(name).traits.order
    return f"| {name} | {promised} | {shown} | " + " | ".join(MARKS[mark] for _, mark, _ in found) + " |"


def notes(name: str, found: list[tuple[str, str, str]]) -> str:
    """What failed, and by how much."""
    lines = [f"- {rule}: {detail}" for rule, mark, detail in found if mark == "fail"]
    lines += [f"- {rule} (float32): {detail}" for rule, mark, detail in found if mark == "rounding"]
    return f"\n### {name}\n\n{chr(10).join(lines) or 'Nothing failed.'}\n" if lines else ""


def page(results: dict[str, list[tuple[str, str, str]]]) -> str:
    """The whole page."""
    rules = [rule.id for rule in testing.catalogue("scheduler")]
    version = torch.__version__.split("+")[0]
    made = f"Made with diffusers {diffusers.__version__}, torch {version} and sdkit {sdkit.__version__}"
    table = [f"| class | promised | measured order | {' | '.join(rules)} |", "|---" * (len(rules) + 3) + "|"]
    table += [row(name, found) for name, found in results.items()]
    return (
        f"{HEAD}\n{made} by `python tools/diffusers_table.py`; a test holds some of its rows to the code.\n\n"
        + "\n".join(table)
        + "\n\n## What failed\n"
        + "".join(notes(name, found) for name, found in results.items())
    )


def main(names: list[str]) -> None:
    """Write the page, or print the rows of the classes named."""
    warnings.simplefilter("ignore")
    results = {}
    for name in names or [*KINDS, *VARIANTS]:
        results[name] = outcomes(name)
        sys.stdout.write(row(name, results[name]) + "\n" + (notes(name, results[name]) if names else ""))
        sys.stdout.flush()
    if not names:
        target = Path(__file__).parent.parent / "docs" / "diffusers-schedulers.md"
        target.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
