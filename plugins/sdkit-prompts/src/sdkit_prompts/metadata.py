"""What other tools wrote into their pictures about how they were made.

A1111 and Forge write a text chunk ``parameters``, ComfyUI ``prompt`` (a graph as JSON), InvokeAI
``invokeai_metadata`` (JSON). sdkit's own manifest comes first where there is one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from sdkit import FileError, Manifest, ManifestError, read_manifest

__all__ = ["ForeignManifest", "parse_a1111", "parse_comfyui", "parse_invokeai", "read"]

PAIR = re.compile(r'\s*(\w[\w /-]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"
# What a value that is not written means, as A1111 reads its own files.
MISSING = {"Clip skip": "1", "RNG": "GPU", "Schedule type": "Automatic"}


@frozen
class ForeignManifest:
    """What another tool says made a picture.

    Attributes:
        tool: ``"a1111"``, ``"comfyui"`` or ``"invokeai"``.
        prompt: The prompt; empty where none was found.
        negative: The negative prompt.
        parameters: Everything else that was understood, as text, under the tool's own names.
        unknown: What was there and not understood.
    """

    tool: str
    prompt: str
    negative: str = ""
    parameters: dict[str, str] = field(factory=dict)
    unknown: tuple[str, ...] = ()


def read(path: str | os.PathLike[str]) -> Manifest | ForeignManifest:
    """What made the picture in a PNG, whichever tool wrote it.

    Raises:
        FileError: the file cannot be read as a picture.
        ManifestError: it says nothing about how it was made.
    """
    from PIL import Image

    name = Path(path).name
    try:
        with Image.open(path) as image:
            image.load()
            chunks = {key: value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f"{name!r} cannot be read as a picture: {error}.") from error
    if "sdkit" in chunks:
        return read_manifest(path)
    readers = {"invokeai_metadata": parse_invokeai, "prompt": parse_comfyui, "parameters": parse_a1111}
    for chunk, parse in readers.items():
        if chunk in chunks:
            return parse(chunks[chunk])
    raise ManifestError(
        f"{name!r} says nothing about how it was made: it has none of the text chunks sdkit, {', '.join(readers)}."
    )


def parse_a1111(text: str) -> ForeignManifest:
    """A1111's text: prompt lines, a line ``Negative prompt: ...``, and last a line ``Key: value, ...``.

    The last line counts as such from three pairs on. ``512x768`` also becomes ``NAME-1`` and ``NAME-2``.
    """
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    parameters: dict[str, str] = {}
    for key, value in pairs:
        parameters[key] = _unquoted(value.strip())
        if size := re.fullmatch(r"(\d+)x(\d+)", value.strip()):
            parameters[f"{key}-1"], parameters[f"{key}-2"] = size[1], size[2]
    cut = next((i for i, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[cut:]).strip().removeprefix(NEGATIVE).strip()
    unknown = () if pairs else ("no line of parameters",)
    return ForeignManifest(
        "a1111", "\n".join(lines[:cut]).strip(), negative, MISSING | parameters if pairs else {}, unknown
    )


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_comfyui(text: str) -> ForeignManifest:
    """ComfyUI's graph: the first sampler's values, and the texts its prompts lead back to."""
    graph = _json(text)
    nodes = {key: node for key, node in graph.items() if isinstance(node, Mapping)} if isinstance(graph, dict) else {}
    samplers = [node for node in nodes.values() if "positive" in _inputs(node) and "negative" in _inputs(node)]
    samplers.sort(key=lambda node: "sampler" not in str(node.get("class_type", "")).lower())
    if not samplers:
        return ForeignManifest("comfyui", "", unknown=("no sampler in the graph",))
    inputs = _inputs(samplers[0])
    prompt, negative = (" ".join(_texts(nodes, inputs[side])) for side in ("positive", "negative"))
    values = {str(key): str(value) for key, value in inputs.items() if isinstance(value, (str, int, float))}
    missing = tuple(f"no text leads to {side}" for side, text in (("positive", prompt),) if not text)
    more = (f"{len(samplers) - 1} more samplers",) if len(samplers) > 1 else ()
    return ForeignManifest("comfyui", prompt, negative, values, (*missing, *more))


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _texts(nodes: Mapping[str, Any], link: Any) -> Iterator[str]:
    """The texts a link leads back to, nearest first, each node once."""
    waiting, seen = [link], set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, list) or len(link) != 2 or str(link[0]) in seen or str(link[0]) not in nodes:
            continue
        seen.add(str(link[0]))
        inputs = _inputs(nodes[str(link[0])])
        texts = [inputs[key] for key in ("text", "text_g", "text_l") if isinstance(inputs.get(key), str)]
        yield from dict.fromkeys(texts)
        if not texts:
            waiting += inputs.values()


def parse_invokeai(text: str) -> ForeignManifest:
    """InvokeAI's JSON."""
    data = _json(text)
    if not isinstance(data, dict):
        return ForeignManifest("invokeai", "", unknown=("no JSON object",))
    prompt, negative = (str(data.pop(key, None) or "") for key in ("positive_prompt", "negative_prompt"))
    plain = {key: str(value) for key, value in data.items() if isinstance(value, (str, int, float))}
    return ForeignManifest("invokeai", prompt, negative, plain, tuple(key for key in data if key not in plain))
