"""From an empty folder to a plugin that is installed, found and conforming; and the example package of the docs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdkit.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin-scheduler"


def make(name: str, into: Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["new-plugin", "scheduler", name, "--into", str(into)])
    return int(caught.value.code or 0)


def installed(package: Path, target: Path) -> dict[str, str]:
    """Install into a folder of its own, outside the tree; the environment in which it is found."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(package)]
    subprocess.run(command, check=True, capture_output=True, cwd=target.parent)
    return os.environ | {"PYTHONPATH": str(target)}


def sdkit(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", "from sdkit.cli import main; main()", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd="/").stdout


def test_a_new_plugin_conforms_as_it_stands(tmp_path: Path) -> None:
    assert make("my-euler", tmp_path) == 0
    package = tmp_path / "sdkit-my-euler"
    environment = installed(package, tmp_path / "site")
    status = {p["name"]: p for p in json.loads(sdkit(environment, "plugins", "--json"))}["my-euler"]
    assert status["ok"]
    assert status["distribution"] == "sdkit-my-euler"
    rows = json.loads(sdkit(environment, "conform", "my-euler", "--json", "--examples", "5"))
    assert len(rows) > 10
    assert {row["state"] for row in rows} <= {"pass", "skip"}


def test_the_example_package_conforms_and_its_own_tests_pass(tmp_path: Path) -> None:
    environment = installed(EXAMPLE, tmp_path / "site")
    rows = {
        r["rule_name"]: r for r in json.loads(sdkit(environment, "conform", "midpoint", "--json", "--examples", "5"))
    }
    assert rows["order"]["detail"].endswith("(promised 2)")
    assert all(row["state"] in ("pass", "skip") for row in rows.values())
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
    ]
    done = subprocess.run(
        [*tests, str(EXAMPLE / "tests")], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert re.search(r"\d\d passed", done.stdout)


def test_the_page_shows_the_code_of_the_example() -> None:
    page = (ROOT / "docs" / "write-your-own-scheduler.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown in (EXAMPLE / "src" / "sdkit_midpoint" / "scheduler.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["My-Euler", "my--euler", "-euler", "1euler", "a/b", ""])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["new-plugin", "scheduler", "--into", str(tmp_path), "--", name])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sdkit-mine").mkdir()
    assert make("mine", tmp_path) == 2
    assert "exists" in capsys.readouterr().err
    assert list((tmp_path / "sdkit-mine").iterdir()) == []
