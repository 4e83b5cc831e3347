"""Commands that plugins add: listed without being imported, found by name, and no danger to the others."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import click
import pytest

from sdkit import Component, Registry
from sdkit.cli import app, main


@click.command()
@click.argument("word")
def shout(word: str) -> None:
    """Say it loudly."""
    click.echo(word.upper())


NO_COMMAND = "text"


def plugin(*components: Component) -> object:
    from sdkit import hookimpl

    def sdkit_components() -> list[Component]:
        return list(components)

    return SimpleNamespace(sdkit_components=hookimpl(sdkit_components))


def command(name: str, target: str = f"{__name__}:shout") -> Component:
    return Component("command", name, target, "Says it loudly.")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Registry.of(
        {
            "one": plugin(command("shout"), command("twice"), command("generate")),
            "two": plugin(
                command("twice"), command("gone", "no_such_module:x"), command("odd", f"{__name__}:NO_COMMAND")
            ),
        }
    )
    assert all(status.ok for status in made.plugins)
    monkeypatch.setattr(app, "registry", lambda: made)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[shout.callback.__module__])


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_a_plugins_command_runs_and_is_listed_with_its_summary(
    plugins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("shout", "fox") == 0
    assert capsys.readouterr().out == "FOX\n"
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "Commands of plugins:" in text
    listed = [line.split()[0] for line in text.partition("Commands of plugins:")[2].splitlines() if line.strip()]
    assert sorted(listed) == ["gone", "odd", "one:twice", "shout", "two:twice"]


def test_a_built_in_name_wins(plugins: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--help") == 0
    assert "Make pictures of PROMPT" in capsys.readouterr().out
    assert run("one:generate", "fox") == 0
    assert capsys.readouterr().out == "FOX\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "command 'gone' cannot be loaded from no_such_module:x"),
        ("odd", "two:odd is a str, not a click command"),
        ("twice", "one:twice and two:twice; use a full name"),
        ("nothing", "No such command 'nothing'"),
    ],
)
def test_what_cannot_run_is_one_line_and_breaks_no_other(
    plugins: None, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert run(name, "fox") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert run("two:twice", "fox") == 0


def test_help_of_a_plugins_command_loads_no_torch() -> None:
    for arguments in (["--help"], ["lora", "train", "--help"], ["lora", "inspect", "--help"]):
        code = f"from sdkit.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        check = "import sys\nassert 'torch' not in sys.modules, 'torch was imported'"
        subprocess.run([sys.executable, "-c", code + check], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:.5", r"C:\loras\a.safetensors", 0.5),
        ("a:b:2e-1", "a:b", 0.2),
        ("it's.safetensors", "it's.safetensors", 1.0),
    ],
)
def test_only_a_number_at_the_end_is_a_strength(
    monkeypatch: pytest.MonkeyPatch, text: str, file: str, strength: float
) -> None:
    from sdkit.cli import generate

    pytest.importorskip("sdkit_lora")
    monkeypatch.setattr("pathlib.Path.exists", lambda self: True)
    from sdkit import registry

    made = registry().make("modifier", generate._lora(text))
    assert (made.file, made.strength) == (file, strength)


def test_without_the_plugin_an_adapter_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdkit import InvalidRequest
    from sdkit.cli import generate

    monkeypatch.setattr(generate, "registry", lambda: Registry.of({}))
    with pytest.raises(InvalidRequest, match="pip install sdkit-lora"):
        generate._lora("a.safetensors")
