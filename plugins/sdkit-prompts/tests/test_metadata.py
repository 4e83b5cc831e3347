"""Reading what other tools wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdkit
from sdkit import FileError, ManifestError
from sdkit_prompts.metadata import ForeignManifest, parse_a1111, parse_comfyui, parse_invokeai, read

A1111 = """a (red:1.2) fox,
in snow
Negative prompt: blurry,
dark
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 512x768, Lora hashes: "fox: 12, snow: 34", Model: x"""
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 20, "positive": ["9", 0], "negative": ["7", 0], "model": ["4", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "9": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "strength": 1.0, "loop": ["9", 0]}},
}


def test_a1111() -> None:
    found = parse_a1111(A1111)
    assert (found.prompt, found.negative) == ("a (red:1.2) fox,\nin snow", "blurry,\ndark")
    wanted = {"Steps": "20", "Size-1": "512", "Size-2": "768", "Lora hashes": "fox: 12, snow: 34", "Clip skip": "1"}
    assert wanted.items() <= found.parameters.items()
    assert found.unknown == ()


def test_a_last_line_with_few_pairs_is_prompt() -> None:
    assert parse_a1111("a fox\nstyle: flat, mood: calm") == ForeignManifest(
        "a1111", "a fox\nstyle: flat, mood: calm", unknown=("no line of parameters",)
    )


def test_what_sdkit_writes_for_other_tools_is_read_as_they_read_it(tmp_path: Path) -> None:
    from tests.toys import toy_model

    result = sdkit.pipeline(toy_model())(sdkit.Request("a fox", negative="dark, cold", seeds=(7,)))
    (theirs,) = result.save(tmp_path / "a.png", metadata="a1111")
    found: Any = read(theirs)
    assert (found.tool, found.prompt, found.negative) == ("a1111", "a fox", "dark, cold")
    assert {"Seed": "7", "Steps": "6", "Size": "32x32"}.items() <= found.parameters.items()
    (ours,) = result.save(tmp_path / "b.png")
    assert read(ours) == sdkit.read_manifest(ours)


def test_comfyui_and_invokeai() -> None:
    found = parse_comfyui(json.dumps(GRAPH))
    assert found == ForeignManifest("comfyui", "a fox", "blurry", {"seed": "5", "steps": "20"})
    found = parse_invokeai(json.dumps({"positive_prompt": "a fox", "negative_prompt": None, "seed": 5, "model": {}}))
    assert found == ForeignManifest("invokeai", "a fox", "", {"seed": "5"}, ("model",))


def test_each_tool_is_found_by_its_chunk(tmp_path: Path) -> None:
    for chunk, text in {"parameters": A1111, "prompt": json.dumps(GRAPH), "invokeai_metadata": "{}"}.items():
        info = PngInfo()
        info.add_itxt(chunk, text)
        Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
        found: Any = read(tmp_path / "x.png")
        assert found.tool == {"parameters": "a1111", "prompt": "comfyui"}.get(chunk, "invokeai")
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    with pytest.raises(ManifestError, match="says nothing about how it was made"):
        read(tmp_path / "bare.png")
    with pytest.raises(FileError, match="cannot be read"):
        read(tmp_path / "none.png")


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["inputs", "positive", "negative", "text", "1", "class_type"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)


@given(st.one_of(st.text(), VALUES.map(json.dumps), st.text(st.sampled_from(list('ab:,"\\ \n1x')), max_size=60)))
def test_no_text_is_refused(text: str) -> None:
    for parse in (parse_a1111, parse_comfyui, parse_invokeai):
        found = parse(text)
        assert isinstance(found.prompt, str)
        assert isinstance(found.negative, str)
