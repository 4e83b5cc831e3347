"""The mutation score of our own solvers: the tool's parts quickly, a sample with a fixed seed slowly."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PATH = ROOT / "tools" / "mutation.py"
TOOL: dict[str, Any] = runpy.run_path(str(PATH))
FILES, SAMPLE, SEED, FLOOR = ("ddim", "dpmpp", "euler", "heun"), 16, 0, 85.0
"""Of which solvers how many mutants, which, and how many percent of them must be killed, equivalent ones aside."""

SOURCE = '''"""A solver in small."""

from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def step(x: Tensor | None, h: float, /, *, order: int = 2) -> float | None:
    """One step."""
    if h > 0:
        return h - order
    return None
'''


def mutants_of(source: str, folder: Path, **options: Any) -> list[Any]:
    (folder / "solver.py").write_text(source, encoding="utf-8")
    chosen = {"sample": None, "seed": 0} | options
    return [mutant for mutant, _ in TOOL["make_mutants"](folder, ["solver.py"], **chosen)]


def test_mutants_are_programs_that_do_something_else(tmp_path: Path) -> None:
    changes = {(mutant.before, mutant.after.replace(" ", "")) for mutant in mutants_of(SOURCE, tmp_path)}
    assert ("return h - order", "returnh+order") in changes
    assert ("if h > 0:", "ifh>=0:") in changes
    assert ("if h > 0:", "ifh>1:") in changes
    # neither an annotation, what is imported for one, the marks of a signature, nor an operator nobody mistypes
    before = {line for line, _ in changes}
    assert before == {
        "return h - order",
        "if h > 0:",
        "def step(x: Tensor | None, h: float, /, *, order: int = 2) -> float | None:",
    }
    assert all("order:int=" in after for line, after in changes if line.startswith("def"))
    assert not any("<<" in after or "//" in after for _, after in changes)
    assert {mutant.function for mutant in mutants_of(SOURCE, tmp_path)} == {"step"}


def test_a_sample_depends_on_its_seed_alone(tmp_path: Path) -> None:
    every = mutants_of(SOURCE, tmp_path)
    first, again = (mutants_of(SOURCE, tmp_path, sample=5, seed=3) for _ in range(2))
    assert first == again != mutants_of(SOURCE, tmp_path, sample=5, seed=4)
    assert len(first) == len(set(first)) == 5
    assert set(first) <= set(every)


def test_equivalent_mutants_name_lines_that_exist_and_have_reasons() -> None:
    reasons = TOOL["equivalent"]()
    for (file, function, before, after), reason in reasons.items():
        assert file in TOOL["solver_files"]()
        source = (ROOT / file).read_text(encoding="utf-8")
        assert before in " ".join(source.split()), f"{file} has no line {before!r} any more"
        names = {TOOL["_definition"](source, n) for n, _ in enumerate(source.splitlines(), 1)}
        assert function in names, f"{file} has no {function}"
        assert before != after
        assert len(reason) > 20


def test_the_score_leaves_equivalent_mutants_out() -> None:
    mutant, key = TOOL["Mutant"], next(iter(TOOL["equivalent"]()))
    file, function, before, after = key
    mutants = [
        mutant(file, 1, function, "X", before, after, "survived"),
        mutant(file, 2, "f", "X", "a + b", "a - b", "survived"),
        mutant(file, 3, "f", "X", "a", "b", "killed", "S7 order (euler): order 0.01, promised 1"),
        mutant(file, 4, "f", "X", "a", "c", "killed", "tests/test_schedulers.py::test_x[euler]"),
        mutant(file, 5, "f", "X", "a", "d", "killed", "time"),
    ]
    score = TOOL["score"]("all", mutants)
    assert (score.rules, score.tests, score.other, score.equivalent, score.survived) == (1, 1, 1, 1, 1)
    assert score.mutants == 5
    assert score.share == 3 / 4
    assert "| 75.0 % |" in TOOL["table"](mutants)
    page = TOOL["page"](mutants, "python tools/mutation.py")
    assert "`a + b`` became ``a - b``" in page
    assert TOOL["equivalent"]()[key] in page


def test_a_file_that_is_no_solvers_is_refused_in_one_sentence() -> None:
    with pytest.raises(SystemExit, match="No solver's file is called 'levels'; there are src/sdkit/schedulers/ddim.py"):
        TOOL["solver_files"](["levels"])


@pytest.mark.slow
def test_the_score_of_a_sample_is_above_the_floor() -> None:
    command = [sys.executable, str(PATH), "--files", *FILES, "--sample", str(SAMPLE), "--seed", str(SEED)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (total,) = re.findall(r"^\| all \| (\d+) \|.*\| ([\d.]+) % \|$", made.stdout, re.MULTILINE)
    assert int(total[0]) == SAMPLE
    assert float(total[1]) >= FLOOR, made.stdout
