"""What sdkit reads at discovery. Imports neither torch nor diffusers."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            "model-family",
            "stable-diffusion",
            "sdkit_diffusers.family:StableDiffusion",
            "Stable Diffusion 1.x, 2.x, XL, 3, 3.5 and FLUX.1, from a diffusers folder or one .safetensors file",
        )
    ]
