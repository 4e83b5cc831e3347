"""The page about adapters: its Python runs from the root of the repository, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sdkit.cli.generate import generate
from sdkit_lora.cli import lora

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (128, 128), "red").save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("a red square")
    (tmp_path / "plugins").symlink_to(ROOT / "plugins")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)):
        exec(compile(block, f"lora.md block {number}", "exec"), names)
    assert (tmp_path / "style.safetensors").exists()


def test_its_commands_exist() -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    commands = {"generate": generate, "inspect": lora.commands["inspect"], "train": lora.commands["train"]}
    for line in lines:
        words = shlex.split(line)
        name = words[2] if words[1] == "lora" else words[1]
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
