"""MotionLoRA under the names of AnimateDiff's own code, as an adapter format: renamed, then read as any other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs
from torch import Tensor

from sdkit import FileError, registry
from sdkit_diffusers.motionfiles import renamed

__all__ = ["MotionLora"]


class MotionLora:
    """Reads ``...temporal_transformer.transformer_blocks.0.attention_blocks.0...`` as diffusers' names.

    What the tensors mean is told by the adapter formats of the plugin ``lora``.
    """

    def recognises(self, keys: Collection[str], metadata: Mapping[str, str], /) -> bool:
        """Whether a key has one of the original names; looks at names alone."""
        return any(".temporal_transformer." in key for key in keys)

    def read(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], keys: Any, /) -> Any:
        """The deltas.

        Raises:
            FileError: with diffusers' names, no known adapter format is left.
        """
        theirs = {renamed(key): key for key in tensors}
        known = {ours: tensors[key] for ours, key in theirs.items()}
        for status in registry().plugins:
            for component in status.components if status.name == "lora" else ():
                if component.kind != "adapter-format":
                    continue
                how = registry().make("adapter-format", f"lora:{component.name}")
                if how.recognises(known.keys(), metadata):
                    parsed = how.read(known, metadata, keys)
                    return attrs.evolve(parsed, unmatched=tuple(theirs[key] for key in parsed.unmatched))
        raise FileError(
            f"The adapter's keys are of motion modules, but in no known format: {', '.join(sorted(tensors)[:3])}."
        )
