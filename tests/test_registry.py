"""Plugins: found, isolated when broken, asked by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdkit
from sdkit import AmbiguousComponent, Component, ParameterError, PluginError, Registry, UnknownComponent, hookimpl
from sdkit.plugins import registry as the_registry
from sdkit.plugins.discovery import Candidate
from sdkit.plugins.spelling import parse, spell


def plugin(*components: Any, **hooks: Callable[..., Any]) -> Any:
    """An object with hooks, as a plugin's module is."""

    @hookimpl
    def sdkit_components() -> Any:
        return components

    return SimpleNamespace(sdkit_components=sdkit_components, **{n: hookimpl(f) for n, f in hooks.items()})


def scheduler(name: str = "mine", target: str = "sdkit.schedulers:Euler", **fields: Any) -> Component:
    return Component("scheduler", name, target, **fields)


def raising(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


GOOD = Candidate("good", lambda: plugin(scheduler("good-one")), "good_module", "good-dist", "1.0")


def status_of(candidate: Candidate) -> Any:
    """What discovery makes of a candidate; the good plugin beside it must not suffer."""
    registry = Registry.from_candidates([candidate, GOOD])
    assert registry.get("scheduler", "good-one") is sdkit.Euler
    assert registry.get("scheduler", "euler") is sdkit.Euler
    (status,) = [s for s in registry.plugins if s.name == candidate.name]
    assert "\n" not in status.error
    return status


def test_a_plugin_of_three_lines_works() -> None:
    registry = Registry.of({"my-plugin": plugin(scheduler("my-euler", aliases=("My Euler",)))})
    for name in ("my-euler", "my-plugin:my-euler", "My Euler", "my euler"):
        assert registry.get("scheduler", name) is sdkit.Euler
    assert registry.make("scheduler", "my-euler") == sdkit.Euler()


def test_an_import_error_is_data() -> None:
    status = status_of(Candidate("broken", raising(ModuleNotFoundError("No module named 'nowhere'"))))
    assert not status.ok
    assert status.error == "ModuleNotFoundError: No module named 'nowhere'"


def test_even_an_exit_at_import_is_data() -> None:
    assert status_of(Candidate("broken", raising(SystemExit(3)))).error == "SystemExit: 3"


def test_a_component_for_another_api_is_refused() -> None:
    @hookimpl
    def sdkit_components() -> Any:
        return [scheduler(api=2)]

    status = status_of(Candidate("future", lambda: SimpleNamespace(sdkit_components=sdkit_components)))
    assert "written for plugin API 2; this sdkit speaks 1" in status.error


def test_an_unknown_hook_is_refused() -> None:
    status = status_of(Candidate("typo", lambda: plugin(sdkit_componentz=lambda: None)))
    assert "sdkit_componentz" in status.error


def test_a_hook_with_a_wrong_signature_is_refused() -> None:
    status = status_of(Candidate("typo", lambda: plugin(sdkit_find_model=lambda ref: None)))
    assert "ref" in status.error


def test_a_raising_hook_is_data() -> None:
    @hookimpl
    def sdkit_components() -> Any:
        raise ZeroDivisionError("no\n  second line")

    status = status_of(Candidate("raising", lambda: SimpleNamespace(sdkit_components=sdkit_components)))
    assert status.error == "ZeroDivisionError: no second line"


def test_a_hook_that_gives_something_else_is_refused() -> None:
    assert "not a Component" in status_of(Candidate("odd", lambda: plugin("text"))).error
    number = SimpleNamespace(sdkit_components=hookimpl(lambda: 7))
    assert "not iterable" in status_of(Candidate("odd", lambda: number)).error


def test_the_same_component_twice_in_one_plugin_is_refused() -> None:
    assert "'mine' twice" in status_of(Candidate("twice", lambda: plugin(scheduler(), scheduler()))).error


def test_two_distributions_with_one_plugin_name_are_both_left_out_and_named() -> None:
    pair = [Candidate("same", lambda: plugin(scheduler()), "m", dist, "1") for dist in ("dist-a", "dist-b")]
    registry = Registry.from_candidates([*pair, GOOD])
    errors = [s.error for s in registry.plugins if s.name == "same"]
    assert len(errors) == 2
    assert all("used by dist-a and dist-b" in error for error in errors)
    assert registry.get("scheduler", "good-one") is sdkit.Euler


def test_the_name_of_the_core_is_taken() -> None:
    registry = Registry.of({"core": plugin(scheduler())})
    assert [(s.name, s.ok) for s in registry.plugins] == [("core", True), ("core", False)]
    assert registry.get("scheduler", "euler") is sdkit.Euler


def test_a_malformed_plugin_name_is_refused() -> None:
    assert "not of the form" in status_of(Candidate("My_Plugin", lambda: plugin(scheduler()))).error


def test_a_name_clash_is_an_error_that_lists_the_full_names() -> None:
    registry = Registry.of({"a": plugin(scheduler("euler")), "b": plugin(scheduler("x", aliases=("nick",)))})
    with pytest.raises(AmbiguousComponent, match=r"'euler' is answered by a:euler and core:euler"):
        registry.get("scheduler", "euler")
    assert registry.get("scheduler", "core:euler") is sdkit.Euler
    twice = Registry.of({n: plugin(scheduler(n, aliases=("nick",))) for n in ("a", "b")})
    with pytest.raises(AmbiguousComponent, match=r"a:a and b:b"):
        twice.get("scheduler", "nick")


def test_an_alias_that_is_anothers_name_is_a_clash_too() -> None:
    registry = Registry.of({"a": plugin(scheduler("mine", "sdkit.schedulers:Heun", aliases=("euler",)))})
    with pytest.raises(AmbiguousComponent, match="answered by a:mine and core:euler"):
        registry.get("scheduler", "euler")


def test_case_tells_apart_where_it_must_and_is_forgiven_where_it_can() -> None:
    registry = Registry.of({"a": plugin(scheduler("mine", aliases=("EULER",)))})
    assert registry.find("scheduler", "EULER").plugin == "a"
    assert registry.find("scheduler", "euler").plugin == "core"
    assert registry.find("scheduler", "MINE").plugin == "a"


def test_a_broken_target_is_found_at_the_first_ask_and_says_what_to_install() -> None:
    registry = Registry.of(
        {
            "lazy": plugin(
                scheduler("missing", "sdkit_nowhere.x:Y", requires="pip install nowhere"),
                scheduler("wrong", "sdkit.schedulers:NoSuchThing"),
                scheduler("fine"),
            )
        }
    )
    assert all(s.ok for s in registry.plugins)
    with pytest.raises(PluginError, match=r"cannot be loaded.*No module named.*requires: pip install nowhere"):
        registry.get("scheduler", "missing")
    with pytest.raises(PluginError, match="NoSuchThing"):
        registry.get("scheduler", "wrong")
    assert registry.get("scheduler", "fine") is sdkit.Euler


def test_an_unknown_name_gets_the_nearest_and_the_broken_plugins() -> None:
    registry = Registry.from_candidates([Candidate("broken", raising(ImportError("x"))), GOOD])
    with pytest.raises(UnknownComponent, match=r"no scheduler 'heunn'; did you mean heun.*failed to load: broken"):
        registry.get("scheduler", "heunn")
    with pytest.raises(UnknownComponent, match="DPM"):
        registry.get("scheduler", "DPM+ 2M")


def test_strict_discovery_raises() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry.from_candidates([Candidate("broken", raising(ModuleNotFoundError("x")))], strict=True)


def test_the_environment_chooses_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [GOOD, Candidate("other", lambda: plugin(scheduler("other-one")))]
    monkeypatch.setattr(sys.modules["sdkit.plugins.discovery"], "_installed", lambda: candidates)

    def names(**environ: str) -> list[str]:
        return [s.name for s in Registry.discover(environ).plugins]

    assert names() == ["core", "good", "other"]
    assert names(SDKIT_PLUGINS="other") == ["core", "other"]
    typo = Registry.discover({"SDKIT_PLUGINS": "other,good,gud"}).plugins
    assert [(s.name, s.ok) for s in typo] == [("core", True), ("good", True), ("other", True), ("gud", False)]
    assert "names it, but it is not installed" in typo[-1].error
    assert names(SDKIT_PLUGINS="") == ["core"]
    assert names(SDKIT_BLOCK_PLUGINS="other, unknown") == ["core", "good"]


def test_discovery_can_be_traced(capsys: pytest.CaptureFixture[str]) -> None:
    Registry.from_candidates([Candidate("broken", raising(ImportError("why")))], trace=True)
    assert "broken" in (err := capsys.readouterr().err)
    assert "FAIL ImportError: why" in err


def test_find_model_asks_plugins_until_one_answers(tmp_path: Path) -> None:
    registry = Registry.of(
        {
            "a": plugin(sdkit_find_model=lambda reference: None),
            "b": plugin(sdkit_find_model=lambda reference: tmp_path if reference == "mine" else None),
        }
    )
    assert registry.find_model("mine") == tmp_path
    assert registry.find_model("other") is None

    def boom(reference: str) -> Path:
        raise KeyError(reference)

    with pytest.raises(PluginError, match="failed to look for the model 'x': KeyError"):
        Registry.of({"c": plugin(sdkit_find_model=boom)}).find_model("x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "schedular"}, "unknown kind 'schedular'; did you mean scheduler"),
        ({"name": "My Euler"}, "'My Euler' is not lower-case"),
        ({"name": "a--b"}, "single hyphens"),
        ({"target": "sdkit.schedulers"}, "not 'package.module:object'"),
        ({"aliases": "Euler"}, "tuple of names"),
        ({"api": 7}, "API 7"),
    ],
)
def test_a_malformed_component_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Component(**({"kind": "scheduler", "name": "x", "target": "a:b"} | fields))


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
keywords = st.from_regex(r"[a-z]{2,8}_", fullmatch=True)


@given(st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True), st.dictionaries(keywords, literals, max_size=3))
def test_what_is_spelled_is_read_back(name: str, parameters: dict[str, Any]) -> None:
    assert parse(spell(name, parameters)) == (name, parameters)


@given(st.text(max_size=60))
def test_reading_arbitrary_text_gives_a_name_or_one_kind_of_error(text: str) -> None:
    try:
        name, parameters = parse(text)
    except ParameterError as error:
        assert "\n" not in str(error).replace(repr(text), "")
    else:
        assert name == name.strip()
        assert isinstance(parameters, dict)


@pytest.mark.parametrize(
    "text", ["ddim(", "ddim(1)", "ddim(eta)", "ddim(eta=x)", "ddim(eta=1", "ddim(eta=1)x", "ddim(eta=1, eta=2)", "f(**{})",
             "ddim(eta=__import__('os'))", "ddim(eta=[x for x in y])", "ddim(eta=1)+(2)", "ddim(eta=1)(eta=2)"]
)  # fmt: skip
def test_what_is_no_literal_is_refused_and_never_evaluated(text: str) -> None:
    with pytest.raises(ParameterError):
        parse(text)


@pytest.mark.parametrize("text", ["euler", "ddim", "ddim(eta=0.5)", "heun(variable='flow')", "dpmpp-2m"])
def test_a_made_scheduler_spells_itself(text: str) -> None:
    registry = Registry.of()
    assert registry.spell("scheduler", registry.make("scheduler", text)) == text


class Plain:
    """A class that takes nothing: its name makes it again."""


class Hidden:
    """A class whose parameters cannot be seen from outside."""

    def __init__(self, secret: int = 1) -> None:
        self._secret = secret


def test_what_no_component_makes_has_no_spelling() -> None:
    assert Registry.of().spell("scheduler", Plain()) is None
    mine = Registry.of(
        {"a": plugin(scheduler("plain", f"{__name__}:Plain"), scheduler("hidden", f"{__name__}:Hidden"))}
    )
    assert mine.spell("scheduler", mine.make("scheduler", "plain")) == "plain"
    assert mine.spell("scheduler", Hidden(2)) is None
    clash = Registry.of({"a": plugin(scheduler("euler", "sdkit.schedulers:Heun"))})
    assert clash.spell("scheduler", sdkit.Euler()) == "core:euler"


def test_the_cores_components_all_load() -> None:
    for entry in Registry.of().entries():
        assert entry.component.load() is not None
        assert entry.component.summary


def test_a_real_installed_distribution_is_found_and_a_broken_one_isolated(tmp_path: Path) -> None:
    """The whole way, with entry points on disk and a process of its own."""
    for name, body in (
        ("nice", "from sdkit import Component, hookimpl\n\n@hookimpl\ndef sdkit_components():\n"
                 "    return [Component('scheduler', 'nice-euler', 'sdkit.schedulers:Euler')]\n"),
        ("nasty", "import module_that_is_not_there\n"),
    ):  # fmt: skip
        (tmp_path / f"{name}_plugin.py").write_text(body)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sdkit]\n{name} = {name}_plugin\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from sdkit.cli import main\n"
        "try:\n    main(['plugins', '--json'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {status["name"]: status for status in json.loads(run.stdout)}
    assert found["nice"]["ok"] and found["nice"]["version"] == "1.0"
    assert found["nice"]["components"][0]["name"] == "nice-euler"
    assert not found["nasty"]["ok"]
    assert "module_that_is_not_there" in found["nasty"]["error"]
    assert found["core"]["ok"]


def test_the_registry_is_discovered_once() -> None:
    assert the_registry() is the_registry()
