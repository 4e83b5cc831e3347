"""Control nets in one ``.safetensors`` file: with the names of the original code, or with diffusers'.

Such a file does not say how its network is built; it is that of the U-Net it was made for, and shapes tell whether
that is the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sdkit import FileError, InvalidRequest
from sdkit_diffusers.names import ldm_unet
from sdkit_diffusers.parts import Origin, Part, saved
from sdkit_diffusers.tensors import Weights, some

__all__ = ["read"]

TAKEN = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps",
    "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", "num_attention_heads",
    "use_linear_projection", "class_embed_type", "addition_embed_type", "addition_time_embed_dim", "num_class_embeds",
    "upcast_attention", "resnet_time_scale_shift", "projection_class_embeddings_input_dim", "mid_block_type",
)  # fmt: skip
"""Settings that a control net has from its U-Net."""
PREFIXES = ("control_model.", "")


def read(path: Path, unet: Any, make: Callable[[Mapping[str, Any]], nn.Module]) -> Part:
    """The control net in a file, for a U-Net.

    Args:
        path: The file.
        unet: Configuration of the U-Net.
        make: The network from a configuration.

    Raises:
        FileError: it is damaged, or no control net.
        InvalidRequest: it was made for another U-Net.
    """
    if path.suffix.lower() != ".safetensors":
        raise FileError(f"A control net is a folder or a .safetensors file, not {path.name!r}.")
    weights = Weights.of([path])
    prefix = next((one for one in PREFIXES if f"{one}input_hint_block.0.weight" in weights), None)
    if prefix is not None:
        found = weights.under(prefix)
        first, hint, naming = "input_blocks.0.0.weight", "input_hint_block.{}.weight", _original(unet)
        read_text = "attn2.to_k.weight"
    elif "controlnet_cond_embedding.conv_in.weight" in weights:
        found, naming = weights, saved
        first, hint, read_text = "conv_in.weight", "", "attn2.to_k.weight"
    else:
        raise FileError(
            f"{path.name!r} is no control net: it has no tensor 'control_model.input_hint_block.0.weight' or "
            f"'controlnet_cond_embedding.conv_in.weight', but {some(sorted(weights.stored)) or 'none'}."
        )
    _check(path.name, found, unet, first, read_text)
    config = {key: unet[key] for key in TAKEN if unet.get(key) is not None}
    config["in_channels"] = found.shape(first)[1]
    config.update(_hint(found, hint))
    return Part("control net", make, config, found, naming)


def _check(name: str, weights: Weights, unet: Any, first: str, text: str) -> None:
    widths = {weights.shape(key)[1] for key in weights.stored if key.endswith(text)}
    if "down_block_types" not in unet:
        raise InvalidRequest(f"The control net {name!r} is for models with a U-Net, and this model has none.")
    if weights.shape(first)[0] != unet["block_out_channels"][0] or widths - {unet["cross_attention_dim"]}:
        raise InvalidRequest(
            f"The control net {name!r} was made for another family: it reads text of width "
            f"{', '.join(map(str, sorted(widths))) or 'none'}, the model's U-Net {unet['cross_attention_dim']}; take "
            "one made for this model's family."
        )


def _hint(weights: Weights, pattern: str) -> dict[str, Any]:
    """What reads the picture: channels of the picture, and of each resolution."""
    if pattern:
        last = max(int(key.split(".")[1]) for key in weights.stored if key.startswith("input_hint_block."))
        rows = [weights.shape(pattern.format(index)) for index in range(0, last, 2)]
    else:
        rows = [weights.shape("controlnet_cond_embedding.conv_in.weight")]
        rows += [
            weights.shape(f"controlnet_cond_embedding.blocks.{index}.weight")
            for index in range(weights.count("controlnet_cond_embedding.blocks.{}."))
        ]
    # a resolution is two convolutions, of which the second gives the next one's channels
    return {
        "conditioning_channels": rows[0][1],
        "conditioning_embedding_out_channels": [row[0] for row in rows[::2]],
    }


def _original(unet: Any) -> Callable[[str, Weights], Origin]:
    """Names of the original code."""
    shared = ldm_unet(unet)

    def origin(name: str, weights: Weights) -> Origin:
        for pattern, replacement in (
            (r"controlnet_cond_embedding\.conv_in\.(.*)", r"input_hint_block.0.\1"),
            (r"controlnet_down_blocks\.(\d+)\.(.*)", r"zero_convs.\1.0.\2"),
            (r"controlnet_mid_block\.(.*)", r"middle_block_out.0.\1"),
        ):
            match = re.fullmatch(pattern, name)
            if match:
                return Origin(match.expand(replacement))
        match = re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.*)", name)
        if match:
            return Origin(f"input_hint_block.{2 + 2 * int(match[1])}.{match[2]}")
        if name.startswith("controlnet_cond_embedding.conv_out."):
            last = max(int(key.split(".")[1]) for key in weights.stored if key.startswith("input_hint_block."))
            return Origin(f"input_hint_block.{last}.{name.rpartition('.')[2]}")
        return shared(name, weights)

    return origin
