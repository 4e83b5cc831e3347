"""Names that other tools have: labels, vocabularies, "Automatic", and `sdkit schedulers --for`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import sdkit
from sdkit import (
    AmbiguousComponent,
    Component,
    ParameterError,
    PluginError,
    Registry,
    Request,
    UnknownComponent,
    hookimpl,
)
from sdkit.cli import main
from sdkit.plugins import registry
from tests.toys import toy_model


def plugin(*components: Component) -> Any:
    @hookimpl
    def sdkit_components() -> Any:
        return components

    return SimpleNamespace(sdkit_components=sdkit_components)


def scheduler(name: str = "mine", **fields: Any) -> Component:
    return Component("scheduler", name, "sdkit.schedulers:Euler", **fields)


def vocabulary(name: str = "words") -> Component:
    return Component("vocabulary", name, f"tests.test_names:{name}")


def words(kind: str, text: str) -> tuple[str, str | None] | None:
    """A vocabulary for tests."""
    if text == "broken":
        raise UnknownComponent("There is no such thing here; take heun.")
    if kind == "scheduler" and text.startswith("Fancy("):
        return "heun", "karras(rho=5)"
    if kind == "scheduler" and text == "euler":
        return "heun", None
    return None


CORE = Registry.of()


def test_a_label_is_a_name_with_a_tool_a_fidelity_and_a_remark() -> None:
    component = scheduler(labels=("a1111 = My Euler", "my-tool.2 ~ Class(a=1, b='x') # of its own"))
    assert component.known_as == (
        ("a1111", "=", "My Euler", ""),
        ("my-tool.2", "~", "Class(a=1, b='x')", "of its own"),
    )
    made = Registry.of({"p": plugin(component)})
    for name in ("My Euler", "my euler", "Class(a=1, b='x')"):
        assert made.find("scheduler", name).component is component


@pytest.mark.parametrize(
    "label", ["Euler", "a1111 Euler", "a1111 =", "a1111 = ", "A1111 = Euler", "a1111 == E", "= E", "a = # x"]
)
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(PluginError, match="not 'tool = name' or 'tool ~ name'"):
        scheduler(labels=(label,))


def test_labels_are_several() -> None:
    with pytest.raises(PluginError, match="tuple of names"):
        scheduler(labels="a1111 = Euler")


def test_a_label_of_two_components_is_ambiguous() -> None:
    both = Registry.of({"p": plugin(scheduler("a", labels=("x = Nick",)), scheduler("b", aliases=("nick",)))})
    assert both.find("scheduler", "Nick").component.name == "a"
    with pytest.raises(AmbiguousComponent, match="p:a and p:b"):
        both.find("scheduler", "NICK")


@pytest.mark.parametrize(
    ("text", "spacing", "pair"),
    [
        ("DPM++ 2M", "Automatic", ("DPM++ 2M", "karras")),
        ("dpmpp_2m", "automatic", ("dpmpp_2m", "karras")),
        ("Euler", "Automatic", ("Euler", "uniform")),
        ("DPM++ 2M Exponential", "Automatic", ("dpmpp-2m", "uniform-log-snr")),
        ("ddim(eta=0.5)", "Automatic", ("ddim(eta=0.5)", "uniform")),
        ("euler", "grid", ("euler", "grid")),
        ("Euler Karras", "karras(rho=7)", ("euler", "karras(rho=7)")),
        ("Euler Karras", sdkit.Karras(), ("euler", sdkit.Karras())),
        ("dpmpp_2m+karras", None, ("dpmpp-2m", "karras")),
        ("ddim_trailing", None, ("ddim", "trailing")),
        ("sample_dpmpp_2m", None, ("sample_dpmpp_2m", None)),
    ],
)
def test_a_pair(text: str, spacing: Any, pair: tuple[str, Any]) -> None:
    assert CORE.pair(text, spacing) == pair


@pytest.mark.parametrize("spacing", ["trailing", "karras(rho=5)", sdkit.Uniform(), "karras(rho=6.5)"])
def test_two_spacings_are_refused(spacing: Any) -> None:
    with pytest.raises(ParameterError, match="'Euler Karras' names the spacing karras; leave .* out"):
        CORE.pair("Euler Karras", spacing)


def test_the_spacing_of_a_component_is_what_automatic_means() -> None:
    made = Registry.of({"p": plugin(scheduler(automatic="trailing"))})
    assert made.pair("mine", "Automatic") == ("mine", "trailing")


def test_a_vocabulary_reads_what_is_no_name() -> None:
    made = Registry.of({"p": plugin(vocabulary(), scheduler())})
    assert made.pair("Fancy(solver=2)") == ("heun", "karras(rho=5)")
    assert made.pair("euler") == ("euler", None)
    assert made.pair("ddim(eta=1)") == ("ddim(eta=1)", None)
    for ask in (lambda: made.pair("broken"), lambda: made.make("spacing", "broken")):
        with pytest.raises(UnknownComponent, match="take heun"):
            ask()
    with pytest.raises(UnknownComponent, match="no scheduler 'nothing'"):
        made.pair("nothing")


def test_a_broken_vocabulary_leaves_the_names_of_components_alone() -> None:
    made = Registry.of({"p": plugin(vocabulary("missing"))})
    assert made.pair("euler") == ("euler", None)
    assert made.pair("ddim(eta=1)", "karras") == ("ddim(eta=1)", "karras")
    assert made.make("spacing", "Karras") == sdkit.Karras()
    with pytest.raises(PluginError, match=r"vocabulary 'missing' cannot be loaded"):
        made.pair("Fancy(solver=2)")


def test_a_request_may_leave_the_spacing_to_the_scheduler() -> None:
    pipe = sdkit.pipeline(toy_model(), spacing="trailing")
    filled = pipe.plan(Request("x", scheduler="DPM++ 2M", spacing="Automatic")).request
    assert (filled.scheduler, filled.spacing) == ("dpmpp-2m", "karras")
    assert pipe.plan(filled).request == filled
    own = sdkit.pipeline(toy_model(), scheduler="dpmpp_2m", spacing="Automatic")
    assert (own.scheduler, own.spacing) == (sdkit.DpmPP2M(), sdkit.Karras())
    # without a scheduler in the request it is the pipeline's own that decides
    assert own.plan(Request("x", spacing="Automatic")).request.spacing == "karras"


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[str, str]]]:
    mine = scheduler(labels=("a1111 ~ My Euler # odd",), automatic="karras")
    made = Registry.of({"p": plugin(mine)})
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()

    def call(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit):
            main(list(arguments))
        captured = capsys.readouterr()
        return captured.out, captured.err

    yield call
    registry.cache_clear()


def test_schedulers_for_a_tool(run: Callable[..., tuple[str, str]]) -> None:
    out, err = run("schedulers", "--for", "a1111")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert err == ""
    assert "dpmpp-2m = DPM++ 2M Automatic: karras" in lines
    assert "mine ~ My Euler Automatic: karras, odd" in lines
    assert "uniform = Normal" in lines
    assert "scheduler a1111 remark" in lines
    out, _ = run("schedulers", "--for", "invokeai")
    assert "without a name there: mine" in out
    assert "Automatic" not in out


def test_schedulers_for_a_tool_as_json(run: Callable[..., tuple[str, str]]) -> None:
    data = json.loads(run("schedulers", "--for", "comfyui", "--json")[0])
    assert set(data) == {"tool", "schedulers", "spacings"}
    rows = {row["name"]: row for row in data["schedulers"]}
    assert rows["dpmpp-2m"]["labels"] == [{"name": "dpmpp_2m", "fidelity": "=", "remark": ""}]
    assert rows["dpmpp-2m"]["automatic"] == "karras"
    assert rows["mine"] == {"name": "mine", "plugin": "p", "labels": [], "automatic": "karras"}
    assert {row["name"]: [label["name"] for label in row["labels"]] for row in data["spacings"]} == {
        "uniform": ["normal"], "trailing": ["simple"], "karras": ["karras"], "uniform-log-snr": ["exponential"],
    }  # fmt: skip


def test_an_unknown_tool_is_refused_with_the_known_ones(run: Callable[..., tuple[str, str]]) -> None:
    out, err = run("schedulers", "--for", "a1112")
    assert out == ""
    assert err == "Error: There are no names for the tool 'a1112'; did you mean a1111?\n"
