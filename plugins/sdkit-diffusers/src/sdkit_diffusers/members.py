"""Which member of a family a model is, where licences differ. From an index or a header; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdkit_diffusers.folders import read_family, read_json
from sdkit_diffusers.singlefile import family_of_keys
from sdkit_diffusers.tensors import Weights

__all__ = ["distilled", "member_of", "named"]


def distilled(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is that of a model for one to four steps without guidance."""
    kind, spacing = scheduler.get("_class_name"), scheduler.get("timestep_spacing")
    # the second is how Turbo models are published
    return kind in ("LCMScheduler", "TCDScheduler") or (
        kind == "EulerAncestralDiscreteScheduler" and spacing == "trailing"
    )


def named(family: str, *, few_steps: bool = False, normed: bool = False, guided: bool = False) -> str:
    """The family in the words of the licences.

    Args:
        family: As told from names and parts.
        few_steps: Whether the scheduler's configuration is that of a Turbo model, see `distilled`.
        normed: Whether Stable Diffusion 3's transformer norms queries and keys, as that of 3.5 does.
        guided: Whether FLUX.1's transformer reads a guidance scale, as dev does.
    """
    if family == "sd3":
        return "sd35" if normed else "sd3"
    if family == "flux":
        return "flux-dev" if guided else "flux-schnell"
    if few_steps and family in ("sd2", "sdxl"):
        return {"sd2": "sd-turbo", "sdxl": "sdxl-turbo"}[family]
    return family


def member_of(path: Path) -> str:
    """The member of a folder or a file with original names; reads no tensor.

    Raises:
        FileError: it is damaged, or of no family known here.
    """
    if path.is_dir():
        family, config = read_family(path), path / "transformer" / "config.json"
        scheduler = path / "scheduler" / "scheduler_config.json"
        transformer = read_json(config) if config.is_file() else {}
        return named(
            family,
            few_steps=scheduler.is_file() and distilled(read_json(scheduler)),
            normed=bool(transformer.get("qk_norm")),
            guided=bool(transformer.get("guidance_embeds")),
        )
    weights = Weights.of([path])
    return named(
        family_of_keys(weights) or "unknown",
        normed=any(name.endswith("joint_blocks.0.x_block.attn.ln_q.weight") for name in weights.stored),
        guided=any(name.endswith("guidance_in.in_layer.weight") for name in weights.stored),
    )
