"""What a registered model is, asked without loading it where that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.errors import PluginError
from sdkit.plugins import Entry

if TYPE_CHECKING:
    from sdkit.model import ModelSpec

__all__ = ["spec_of"]


def spec_of(entry: Entry) -> ModelSpec:
    """The facts about a registered model; it is loaded only if what is registered cannot say them without.

    What is registered may have a method ``spec() -> ModelSpec``, of what it loads when it is called with no more than a
    device.

    Raises:
        PluginError: it gives something else, or cannot be imported.
    """
    from sdkit.model import ModelSpec

    factory = entry.component.load()
    told = getattr(factory, "spec", None)
    if isinstance(factory, type) or not callable(told):
        import sdkit

        with sdkit.load(entry.full_name) as model:
            return model.spec
    spec = told()
    if not isinstance(spec, ModelSpec):
        raise PluginError(f"The model {entry.full_name} says it is a {type(spec).__name__}, not a sdkit ModelSpec.")
    return spec
