"""Adapters that a prompt asks for become modifiers of its request."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdkit import FileError, InvalidRequest, ParameterError, Request
from sdkit_prompts.a1111 import A1111
from sdkit_prompts.requested import with_adapters, without_adapters
from sdkit_prompts.tree import adapters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for name in ("style.safetensors", "below/line art.safetensors"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def meant(prompt: str, folder: Path) -> tuple[str, tuple[str, ...]]:
    request = with_adapters(Request(prompt, modifiers=("other",)), A1111(), folder)
    return request.prompt, request.modifiers


@pytest.mark.parametrize(
    ("prompt", "words", "strengths"),
    [
        ("a fox <lora:style:0.8>", "a fox", "strength=0.8, text_strength=0.8"),
        ("<lora:style>a fox", "a fox", "strength=1.0, text_strength=1.0"),
        ("a fox<lora:style:0.5:0.25>", "a fox", "strength=0.25, text_strength=0.5"),
        ("a <lyco:style:te=0.1:unet=0.9>fox", "a fox", "strength=0.9, text_strength=0.1"),
        ("[a fox<lora:style:1>:a cat:0.5]", "[a fox:a cat:0.5]", "strength=1.0, text_strength=1.0"),
        ("a fox <lora:style:1> AND a cat :0.5", "a fox AND a cat :0.5", "strength=1.0, text_strength=1.0"),
    ],
)
def test_a_prompts_adapters_become_modifiers(folder: Path, prompt: str, words: str, strengths: str) -> None:
    got, modifiers = meant(prompt, folder)
    assert got == words
    assert modifiers == (f"lora(file={str(folder / 'style.safetensors')!r}, {strengths})", "other")


def test_a_prompt_without_adapters_is_left_as_it_is(folder: Path) -> None:
    request = Request("a (fox")
    assert with_adapters(request, A1111(), folder) is request


def test_folders_below_are_searched_and_none_above(folder: Path) -> None:
    assert "line art" in meant("<lora:below/line art:1> a fox", folder)[1][0]
    with pytest.raises(InvalidRequest, match="leads out of the folder"):
        meant("<lora:../style:1> a fox", folder / "below")
    with pytest.raises(InvalidRequest, match="leads out of the folder"):
        meant(f"<lora:{folder}/style:1> a fox", folder / "below")


def test_what_is_not_there_or_is_none_is_one_sentence(folder: Path) -> None:
    with pytest.raises(FileError, match=r"no 'nowhere.safetensors'"):
        meant("<lora:nowhere:1> a fox", folder)
    with pytest.raises(InvalidRequest, match="hypernet"):
        meant("<hypernet:style:1> a fox", folder)
    with pytest.raises(ParameterError, match="strength"):
        meant("<lora:style:much> a fox", folder)


@given(st.text(alphabet="ab <lora:x1>[]():|\\AND", max_size=60))
def test_what_is_left_asks_for_nothing_and_reads_back(text: str) -> None:
    dialect = A1111()
    left = without_adapters(dialect.parse(text))
    assert adapters(left) == ()
    assert adapters(dialect.parse(dialect.print(left))) == ()
