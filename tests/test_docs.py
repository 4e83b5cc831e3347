"""What the pages say is so: their code runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sdkit
from sdkit.cli.app import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/README.md")])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", [i for i, b in enumerate(blocks("python")) if "hookimpl" not in b])
def test_the_readmes_python_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[number], f"README block {number}", "exec"), {"__name__": "readme"})


def test_the_readmes_plugin_is_found_when_installed_and_makes_the_same_picture(tmp_path: Path) -> None:
    (tmp_path / "my_package.py").write_text(next(b for b in blocks("python") if "hookimpl" in b))
    info = tmp_path / "my_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    points = re.search(r"\[project.entry-points.sdkit\]\n(.*)", blocks("toml")[0])
    assert points is not None
    (info / "entry_points.txt").write_text("[sdkit]\n" + points[1].replace('"', "") + "\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import sdkit, torch\n"
        "pipe = sdkit.pipeline(sdkit.load('emoji'))\n"
        "mine, ours = (pipe(sdkit.Request('a fox', steps=4, scheduler=s)) for s in ('my-euler', 'euler'))\n"
        "assert torch.allclose(mine.latents, ours.latents, atol=1e-4)\n"
        "print(mine.manifest.request.scheduler)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "my-euler\n"


def test_the_readmes_commands_exist_with_their_options() -> None:
    known = {name: {o for p in command.params for o in p.opts} for name, command in commands().items()}
    lines = [line for block in blocks("sh") for line in block.splitlines() if "sdkit " in line]
    used = [re.split(r"(?:^|/)sdkit ", line.split("#")[0])[-1] for line in lines]
    assert used
    for line in used:
        name, *rest = shlex.split(line)
        assert name in known, line
        assert {word for word in rest if word.startswith("--")} <= known[name], line


def commands() -> dict[str, object]:
    from sdkit.cli import animate, conform, generate, licence, listing, new_plugin, plot

    found = (generate.generate, generate.rerun, listing.plugins, listing.schedulers, listing.models)
    found = (*found, conform.conform, new_plugin.new_plugin, licence.licence, plot.bench_schedulers, plot.plot_grids)
    found = (*found, animate.animate, animate.contact_sheet)
    assert cli.name == "cli"
    return {str(command.name): command for command in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_changelog_names_the_version() -> None:
    assert f"({sdkit.__version__})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_ci_takes_from_the_readme_is_the_one_people_read() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "readme_command.py"))
    assert tool["command"]("test") in README
    assert tool["command"]("test").endswith("pytest")
    assert "sdkit generate" in tool["command"]("try")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_each_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = {"compare_schedulers": {"reference_steps": 60}, "train_folder": {"steps": 2, "draw_steps": 2}}
    outcome = module.main(**options.get(path.stem, {}))
    if isinstance(outcome, Path):
        assert outcome.stat().st_size > 1000
    else:
        assert all(errors[-1] < errors[0] for errors in outcome.values())
