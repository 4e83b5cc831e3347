"""What a prompt asks for besides pictures: adapters, as modifiers of the request.

A1111 takes ``<lora:name:0.8>`` out of the prompt before anything else reads it, and applies the adapter from the first
step to the last wherever it stood. Only the prompt is searched, not the negative one. The kind is ``lora`` or ``lyco``.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from sdkit import FileError, InvalidRequest, Request
from sdkit_prompts.tree import Adapter, Alternate, And, Blend, Dialect, Node, Prompt, Schedule, Text, Tree, adapters

__all__ = ["with_adapters", "without_adapters"]

KINDS = ("lora", "lyco", "lycoris")


def with_adapters(request: Request, dialect: Dialect, folder: str | os.PathLike[str] = ".") -> Request:
    """The request with the adapters that its prompt asks for as modifiers, and without their mention.

    Args:
        request: With a prompt in the dialect.
        dialect: How the prompt is read.
        folder: Where adapters are found by their names, as ``NAME.safetensors`` in it or in a folder below it.

    Raises:
        FileError: an adapter is not there.
        InvalidRequest: a name leads out of the folder, or the prompt asks for something that is no LoRA.
        ParameterError: a strength cannot be read.
    """
    tree = dialect.parse(request.prompt)
    found = adapters(tree)
    if not found:
        return request
    modifiers = tuple(_modifier(adapter, Path(folder)) for adapter in found)
    prompt = dialect.print(without_adapters(tree))
    return attrs.evolve(request, prompt=prompt, modifiers=(*modifiers, *request.modifiers))


def without_adapters(tree: Tree) -> Tree:
    """The tree with the adapters taken out, and the space they leave at the ends of a prompt."""
    if isinstance(tree, Prompt):
        return _without(tree)
    branches = tuple((_without(prompt), weight) for prompt, weight in tree.branches)
    return And(branches) if isinstance(tree, And) else Blend(branches, tree.normalise)


def _without(prompt: Prompt) -> Prompt:
    kept: list[Node] = []
    for node in prompt.nodes:
        if isinstance(node, Adapter):
            continue
        if isinstance(node, Schedule):
            node = Schedule(_without(node.before), _without(node.after), node.when)
        elif isinstance(node, Alternate):
            node = Alternate(tuple(_without(option) for option in node.options))
        kept.append(node)
    if len(kept) < len(prompt.nodes) and kept:
        # `a fox <lora:x>` means `a fox`
        if isinstance(kept[-1], Text):
            kept[-1] = attrs.evolve(kept[-1], text=kept[-1].text.rstrip())
        if isinstance(kept[0], Text):
            kept[0] = attrs.evolve(kept[0], text=kept[0].text.lstrip())
    return Prompt(tuple(kept))


def _modifier(adapter: Adapter, folder: Path) -> str:
    said = f"<{adapter.kind}:{adapter.name}>"
    if adapter.kind.casefold() not in KINDS:
        raise InvalidRequest(f"The prompt asks for {said}; sdkit knows {', '.join(KINDS)}: take it out.")
    path = folder / f"{adapter.name}.safetensors"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidRequest(f"The prompt asks for {said}, which leads out of the folder of adapters; name one in it.")
    if not path.is_file():
        raise FileError(
            f"The prompt asks for {said}, and there is no {path.name!r} in the folder of adapters "
            f"({folder.name or 'the current one'}); put it there, or take it out."
        )
    text, denoiser = adapter.strengths
    return f"lora(file={str(path)!r}, strength={denoiser!r}, text_strength={text!r})"
