"""The page on interop runs, and the page on diffusers' schedulers says what its command finds."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest

from sdkit.interop import KINDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
TABLE = ROOT / "docs" / "diffusers-schedulers.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_example_runs(number: int) -> None:
    exec(compile(BLOCKS[number], f"interop.md, block {number + 1}", "exec"), {"__name__": "page"})


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "diffusers_table.py"))


def test_every_class_has_a_row(tool: dict[str, Any]) -> None:
    rows = re.findall(r"^\| (\S.*?) \| \d", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [*KINDS, *tool["VARIANTS"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "FlowMatchHeunDiscreteScheduler"]
)
def test_rows_are_what_the_command_finds(tool: dict[str, Any], name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tool["outcomes"](name)
    assert tool["row"](name, found) in TABLE.read_text(encoding="utf-8")
