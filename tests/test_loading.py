"""From names and files to models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sdkit
from sdkit import (
    Component,
    FileError,
    InvalidRequest,
    ParameterError,
    PluginError,
    Registry,
    UnknownComponent,
    hookimpl,
)
from sdkit.plugins import registry
from tests.toys import toy_model


class ToyFamily:
    """Recognises files that end in .toy and folders that hold a toy.json."""

    def probe(self, path: Path) -> bool:
        return path.suffix == ".toy" or (path / "toy.json").exists()

    def load(self, path: Path, *, device: str = "cpu") -> sdkit.Model[Any]:
        return toy_model(device=device)


class BrokenFamily:
    def probe(self, path: Path) -> bool:
        raise RuntimeError("cannot look")


class Plugin:
    @staticmethod
    @hookimpl
    def sdkit_components() -> list[Component]:
        return [
            Component("model", "toy", "tests.toys:toy_model"),
            Component("model", "odd", "tests.test_loading:odd"),
            Component("model-family", "absent", "nowhere_at_all:Family"),
            Component("model-family", "broken", "tests.test_loading:BrokenFamily"),
            Component("model-family", "toys", "tests.test_loading:ToyFamily"),
        ]

    @staticmethod
    @hookimpl
    def sdkit_find_model(reference: str) -> Path | None:
        return Path("found.toy") if reference == "remote-toy" else None


def odd(*, device: str = "cpu") -> str:
    return "not a model"


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    made = Registry.of({"toys": Plugin()})
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield
    registry.cache_clear()


def test_a_registered_name_gives_its_model() -> None:
    assert sdkit.load("toy").spec.name == "toy"
    assert sdkit.load("toys:toy").spec.name == "toy"


def test_a_file_or_folder_gives_the_model_of_the_family_that_knows_it(tmp_path: Path) -> None:
    (tmp_path / "a.toy").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "toy.json").touch()
    for reference in ("a.toy", tmp_path / "a.toy", "./folder", tmp_path / "folder", "folder"):
        assert sdkit.load(reference).spec.family == "toy"


def test_a_name_wins_over_a_folder_of_the_same_name_unless_it_is_written_as_a_path(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    assert sdkit.load("toy").spec.name == "toy"
    with pytest.raises(FileError, match="No model family recognises 'toy'"):
        sdkit.load("./toy")


def test_a_plugin_may_know_where_a_model_is(tmp_path: Path) -> None:
    assert sdkit.load("remote-toy").spec.name == "toy"


def test_what_is_neither_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UnknownComponent, match="no model 'toi'.*did you mean toy"):
        sdkit.load("toi")


def test_a_file_no_family_knows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(
        FileError,
        match=r"recognises 'a\.safetensors' \(families: toys:absent failed: .*broken failed: RuntimeError: cannot look, toys:toys\)",
    ):
        sdkit.load("a.safetensors")


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.PTH", "a.bin"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FileError, match="pickle"):
        sdkit.load(name)


def test_a_device_that_does_not_exist_is_refused() -> None:
    for device in ("gpu", "cuda:99", ""):
        with pytest.raises(InvalidRequest, match="cannot be used"):
            sdkit.load("toy", device=device)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ParameterError, match="no parameter 'dtipe'"):
        sdkit.load("toy", dtipe="float16")


def test_a_loader_that_gives_something_else_is_named() -> None:
    with pytest.raises(PluginError, match="The model toys:odd gave a str"):
        sdkit.load("odd")


def test_a_model_is_closed_on_leaving_its_scope() -> None:
    import attrs

    closed = []
    with attrs.evolve(toy_model(), on_close=lambda: closed.append(1)) as model:
        assert model.spec.name == "toy"
        assert closed == []
    assert closed == [1]
    with toy_model():
        pass


def test_a_pipeline_takes_names_and_values_alike() -> None:
    model = toy_model()
    by_name = sdkit.pipeline(model, scheduler="heun", spacing="karras(rho=5)")
    assert by_name.scheduler == sdkit.Heun()
    assert by_name.spacing == sdkit.Karras(rho=5)
    by_value = sdkit.pipeline(model, scheduler=sdkit.Heun(), spacing=sdkit.Karras(rho=5))
    assert (by_value.scheduler, by_value.spacing) == (by_name.scheduler, by_name.spacing)
    recommended = sdkit.pipeline(model)
    assert recommended.scheduler == sdkit.DpmPP2M()


def test_a_name_with_a_dot_is_looked_for_among_the_models_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dotted:
        @staticmethod
        @hookimpl
        def sdkit_components() -> list[Component]:
            return [Component("model", "toy", "tests.toys:toy_model", aliases=("Toy 1.5",))]

    made = Registry.of({"dotted": Dotted()})
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    assert sdkit.load("Toy 1.5").spec.name == "toy"


def test_a_loaders_own_error_is_not_blamed_on_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.toys.toy_model", raising)
    with pytest.raises(ValueError, match="^damaged$"):
        sdkit.load("toy")
    with pytest.raises(InvalidRequest, match="not by 7"):
        sdkit.load(7)  # type: ignore[arg-type]


def raising(*, device: str = "cpu") -> None:
    raise ValueError("damaged")
