"""Motion modules in files: a folder as diffusers saves it, or one file with original names or with diffusers'.

The original file does not say how its network is built; names and shapes tell (number of blocks, channels, layers,
whether there is one in the middle, positions). What they do not tell is the number of attention heads, which is 8 in
every motion module that was published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdkit import FileError, InvalidRequest
from sdkit_diffusers.beside import of_config, part_in_folder
from sdkit_diffusers.parts import Origin, Part, saved
from sdkit_diffusers.tensors import Weights, some

__all__ = ["check", "positions", "read", "renamed"]

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
PREFIXES = ("", "module.")
RENAMED = (
    (".temporal_transformer.", "."),
    (".attention_blocks.0.pos_encoder.pe", ".pos_embed.pe"),
    (".attention_blocks.0.", ".attn1."),
    (".attention_blocks.1.", ".attn2."),
    (".norms.0.", ".norm1."),
    (".norms.1.", ".norm2."),
    (".ff_norm.", ".norm3."),
)
HEADS = 8
POSITIONS = "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"


def renamed(name: str) -> str:
    """A name of AnimateDiff's own code as diffusers has it; diffusers' names stay."""
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def read(path: Path) -> Part:
    """The motion module in a file or folder; only headers are read.

    Raises:
        FileError: it is damaged, a pickle, or no motion module.
    """
    if path.is_dir():
        part = part_in_folder(path, {"MotionAdapter": _adapter}, "motion module")
        if part.config.get("conv_in_channels"):
            raise FileError(
                f"The motion module {path.name!r} is of the kind PIA, with inputs for a picture; not supported."
            )
        return _made(part.weights, part.config)
    if path.suffix.lower() in PICKLES:
        raise FileError(
            f"{path.name!r} is a pickle file, which can run any code when it is opened; take the .safetensors file of "
            "the same motion module, or convert it in a sandbox: "
            f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), 'motion.safetensors')."
        )
    if path.suffix.lower() != ".safetensors":
        raise FileError(f"A motion module is a folder or a .safetensors file, not {path.name!r}.")
    weights = Weights.of([path])
    if any("lora" in name for name in weights.stored):
        raise FileError(f"{path.name!r} is an adapter (a MotionLoRA?), not a motion module; give it as loras=.")
    prefix = next((one for one in PREFIXES if weights.count(f"{one}down_blocks.{{}}.motion_modules.")), None)
    if prefix is None:
        raise FileError(
            f"{path.name!r} is no motion module: it has no tensor named 'down_blocks.0.motion_modules.0...', but "
            f"{some(sorted(weights.stored)) or 'none'}."
        )
    found = weights.under(prefix)
    return _made(found, _config(path.name, Weights({renamed(name): one for name, one in found.stored.items()})))


def _config(name: str, weights: Weights) -> dict[str, Any]:
    """How the network is built, from diffusers' names and the shapes."""
    blocks = range(weights.count("down_blocks.{}.motion_modules."))
    first = [f"down_blocks.{i}.motion_modules.0." for i in blocks]
    if any(re.match(r"(down|mid|up)_block\S*\.attn3\.", key) for key in weights.stored):
        raise FileError(
            f"{name!r} has three attentions in a layer of motion, where there are two; it is of another kind."
        )
    return {
        "block_out_channels": [weights.shape(f"{one}norm.weight")[0] for one in first],
        "motion_layers_per_block": [weights.count(f"down_blocks.{i}.motion_modules.{{}}.") for i in blocks],
        "motion_transformer_layers_per_block": [weights.count(f"{one}transformer_blocks.{{}}.") for one in first],
        "motion_mid_block_layers_per_block": max(1, weights.count("mid_block.motion_modules.{}.")),
        "motion_transformer_layers_per_mid_block": max(
            1, weights.count("mid_block.motion_modules.0.transformer_blocks.{}.")
        ),
        "motion_num_attention_heads": HEADS,
        "motion_max_seq_length": weights.shape(POSITIONS)[1] if POSITIONS in weights else 32,
        "use_motion_mid_block": "mid_block.motion_modules.0.norm.weight" in weights,
    }


def _made(weights: Weights, config: Mapping[str, Any]) -> Part:
    """The part of these weights, whichever names they have."""
    # both attentions of an original layer come with the same table of positions
    kept = {name: one for name, one in weights.stored.items() if not name.endswith("attention_blocks.1.pos_encoder.pe")}
    theirs = {renamed(name): name for name in kept}

    def origin(name: str, weights: Weights) -> Origin:
        return Origin(theirs[name]) if name in theirs else saved(name, weights)

    return Part("motion module", _adapter if POSITIONS in theirs else _with_positions, config, Weights(kept), origin)


def _adapter(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    return of_config(MotionAdapter, config)


def _with_positions(config: Mapping[str, Any]) -> nn.Module:
    """The network of a file that leaves out the table of positions, which is no weight but sines and cosines."""
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    network = _adapter(config)
    for module in network.modules():
        if isinstance(module, SinusoidalPositionalEmbedding):
            _, count, width = module.get_buffer("pe").shape
            with torch.device("cpu"):
                table = SinusoidalPositionalEmbedding(width, count).get_buffer("pe")
            module.register_buffer("pe", table, persistent=False)
    return network


def positions(part: Part) -> int:
    """How many frames the motion module has positions for: the most it can see together."""
    return int(part.config.get("motion_max_seq_length", 32))


def check(name: str, motion: Mapping[str, Any], unet: Any) -> None:
    """Refuses a motion module that was made for another U-Net.

    Args:
        name: Of the file, for the message.
        motion: Configuration of the motion module.
        unet: Configuration of the U-Net.

    Raises:
        InvalidRequest: it does not fit.
    """
    if "down_block_types" not in unet:
        raise InvalidRequest(f"The motion module {name!r} is for models with a U-Net, and this model has none.")
    channels = list(motion.get("block_out_channels", (320, 640, 1280, 1280)))
    count = len(channels)
    for key, theirs, own in (
        ("block_out_channels", channels, list(unet["block_out_channels"])),
        (
            "layers_per_block",
            _each(motion.get("motion_layers_per_block", 2), count),
            _each(unet["layers_per_block"], count),
        ),
    ):
        if theirs != own:
            raise InvalidRequest(
                f"The motion module {name!r} was made for another family: its {key} is {theirs}, the model's {own}; "
                "take one made for this model's family."
            )


def _each(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)
