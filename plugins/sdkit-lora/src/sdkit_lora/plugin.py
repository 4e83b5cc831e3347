"""What sdkit reads at discovery. Imports no torch."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]

# Most particular first: a file belongs to the first format that recognises it.
FORMATS = (
    ("xlabs", "XLabs' names for FLUX"),
    ("diffusers-old", "diffusers' attention processors, before PEFT"),
    ("peft", "PEFT's own, a folder or a file"),
    ("lycoris", "SimpleTuner's LyCORIS"),
    ("onetrainer", "OneTrainer"),
    ("kohya", "kohya's sd-scripts: SD 1 and 2, XL, SD 3, FLUX"),
    ("diffusers", "diffusers with PEFT"),
    ("generic", "original module names, as ComfyUI, ai-toolkit and BFL write them"),
)


@hookimpl
def sdkit_components() -> list[Component]:
    """The modifier, the formats and the commands."""
    formats = [
        Component("adapter-format", name, f"sdkit_lora.known:{name.replace('-', '_')}", summary)
        for name, summary in FORMATS
    ]
    return [
        Component("command", "lora", "sdkit_lora.cli:lora", "Look into adapter files, and train one."),
        Component("modifier", "lora", "sdkit_lora.modifier:Lora", "an adapter from a file, at a strength"),
        *formats,
    ]
