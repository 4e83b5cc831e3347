"""Names of parameters in the original files (LDM, OpenCLIP, SD3, FLUX), from their names in diffusers' networks.

Each function gives, for one layout, the `Origin` of a parameter. All are read off the published files' keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdkit_diffusers.parts import Origin
from sdkit_diffusers.tensors import Weights

__all__ = ["Naming", "flux", "ldm_autoencoder", "ldm_unet", "open_clip", "sd3"]

Naming = Callable[[str, Weights], Origin]
Rules = Sequence[tuple[str, str]]


def _renamed(name: str, rules: Rules) -> str:
    """``name`` with the first rule that matches it whole (a pattern and what to write instead)."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return name


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET: Rules = (
    (r"time_embedding\.linear_1\.(.*)", r"time_embed.0.\1"),
    (r"time_embedding\.linear_2\.(.*)", r"time_embed.2.\1"),
    (r"time_embedding\.cond_proj\.(.*)", r"time_embed.cond_proj.\1"),
    (r"add_embedding\.linear_1\.(.*)", r"label_emb.0.0.\1"),
    (r"add_embedding\.linear_2\.(.*)", r"label_emb.0.2.\1"),
    (r"conv_in\.(.*)", r"input_blocks.0.0.\1"),
    (r"conv_norm_out\.(.*)", r"out.0.\1"),
    (r"conv_out\.(.*)", r"out.2.\1"),
    (r"mid_block\.resnets\.0\.(.*)", r"middle_block.0.\1"),
    (r"mid_block\.attentions\.0\.(.*)", r"middle_block.1.\1"),
    (r"mid_block\.resnets\.1\.(.*)", r"middle_block.2.\1"),
)
UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")


def ldm_unet(config: Mapping[str, Any]) -> Naming:
    """The U-Net of Stable Diffusion 1.x, 2.x and XL: ``input_blocks``, ``middle_block``, ``output_blocks``."""
    layers = int(config["layers_per_block"])
    attends = ["Attn" in kind for kind in config["up_block_types"]]

    def name_of(name: str) -> str:
        match = UNET_BLOCK.fullmatch(name)
        if match is None:
            return _renamed(name, UNET)
        way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op', 1)}"
        if kind == "upsamplers":
            return f"output_blocks.{block * (layers + 1) + layers}.{2 if attends[block] else 1}.{rest}"
        place = block * (layers + 1) + index
        side = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
        return f"{side}.{1 if kind == 'attentions' else 0}.{rest}"

    def origin(name: str, weights: Weights) -> Origin:
        key = name_of(name)
        head, _, layer = key.rpartition(".")
        stem, _, last = head.rpartition(".")
        if last in RESNET and "transformer_blocks" not in head:
            key = f"{stem}.{RESNET[last]}.{layer}"
        return Origin(key)

    return origin


AUTOENCODER: Rules = (
    (r"(encoder|decoder)\.conv_norm_out\.(.*)", r"\1.norm_out.\2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0\.(.*)", r"\1.mid.block_1.\2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1\.(.*)", r"\1.mid.block_2.\2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.group_norm\.(.*)", r"\1.mid.attn_1.norm.\2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_([qkv])\.(.*)", r"\1.mid.attn_1.\2.\3"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_out\.0\.(.*)", r"\1.mid.attn_1.proj_out.\2"),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", r"encoder.down.\1.block.\2.\3"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.(.*)", r"encoder.down.\1.downsample.\2"),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", r"decoder.up.\1.block.\2.\3"),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.*)", r"decoder.up.\1.upsample.\2"),
)


def ldm_autoencoder(config: Mapping[str, Any]) -> Naming:
    """The autoencoder, of the same layout in all families; the decoder's levels are counted from the other end."""
    levels = len(config["block_out_channels"])

    def origin(name: str, weights: Weights) -> Origin:
        key = _renamed(name, AUTOENCODER).replace(".conv_shortcut.", ".nin_shortcut.")
        key = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", key)
        return Origin(key)

    return origin


OPEN_CLIP: Rules = (
    (r"embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm\.(.*)", r"ln_final.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"transformer.resblocks.\1.attn.out_proj.\2"),
)


def open_clip(name: str, weights: Weights) -> Origin:
    """OpenCLIP's text tower (Stable Diffusion 2.x, the second one of XL)."""
    name = name.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Origin("text_projection", transposed=True)
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
    if match:
        piece = "qkv".index(match[2])
        return Origin(f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}", piece, piece + 1, 3)
    return Origin(_renamed(name, OPEN_CLIP))


SD3: Rules = (
    (r"pos_embed\.pos_embed", "pos_embed"),
    (r"pos_embed\.proj\.(.*)", r"x_embedder.proj.\1"),
    (r"time_text_embed\.timestep_embedder\.linear_1\.(.*)", r"t_embedder.mlp.0.\1"),
    (r"time_text_embed\.timestep_embedder\.linear_2\.(.*)", r"t_embedder.mlp.2.\1"),
    (r"time_text_embed\.text_embedder\.linear_1\.(.*)", r"y_embedder.mlp.0.\1"),
    (r"time_text_embed\.text_embedder\.linear_2\.(.*)", r"y_embedder.mlp.2.\1"),
    (r"transformer_blocks\.(\d+)\.(attn2?)\.norm_([qk])\.(.*)", r"joint_blocks.\1.x_block.\2.ln_\3.\4"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_([qk])\.(.*)", r"joint_blocks.\1.context_block.attn.ln_\2.\3"),
    (r"transformer_blocks\.(\d+)\.(attn2?)\.to_out\.0\.(.*)", r"joint_blocks.\1.x_block.\2.proj.\3"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out\.(.*)", r"joint_blocks.\1.context_block.attn.proj.\2"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.(.*)", r"joint_blocks.\1.x_block.adaLN_modulation.1.\2"),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear\.(.*)", r"joint_blocks.\1.context_block.adaLN_modulation.1.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(.*)", r"joint_blocks.\1.x_block.mlp.fc1.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.(.*)", r"joint_blocks.\1.x_block.mlp.fc2.\2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.(.*)", r"joint_blocks.\1.context_block.mlp.fc1.\2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2\.(.*)", r"joint_blocks.\1.context_block.mlp.fc2.\2"),
    (r"proj_out\.(.*)", r"final_layer.linear.\1"),
    (r"norm_out\.linear\.(.*)", r"final_layer.adaLN_modulation.1.\1"),
)


def sd3(config: Mapping[str, Any]) -> Naming:
    """The transformer of Stable Diffusion 3 and 3.5."""
    last = f"transformer_blocks.{int(config['num_layers']) - 1}.norm1_context."

    def origin(name: str, weights: Weights) -> Origin:
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(attn2?)\.(?:to_([qkv])|add_([qkv])_proj)\.(.*)", name)
        if match:
            side, piece = "x_block" if match[3] else "context_block", "qkv".index(match[3] or match[4])
            return Origin(f"joint_blocks.{match[1]}.{side}.{match[2]}.qkv.{match[5]}", piece, piece + 1, 3)
        # (shift, scale) in the original, (scale, shift) in diffusers' norms without a gate
        swapped = name.startswith(("norm_out.", last))
        return Origin(_renamed(name, SD3), swapped=swapped)

    return origin


FLUX: Rules = (
    (r"time_text_embed\.timestep_embedder\.linear_1\.(.*)", r"time_in.in_layer.\1"),
    (r"time_text_embed\.timestep_embedder\.linear_2\.(.*)", r"time_in.out_layer.\1"),
    (r"time_text_embed\.text_embedder\.linear_1\.(.*)", r"vector_in.in_layer.\1"),
    (r"time_text_embed\.text_embedder\.linear_2\.(.*)", r"vector_in.out_layer.\1"),
    (r"time_text_embed\.guidance_embedder\.linear_1\.(.*)", r"guidance_in.in_layer.\1"),
    (r"time_text_embed\.guidance_embedder\.linear_2\.(.*)", r"guidance_in.out_layer.\1"),
    (r"context_embedder\.(.*)", r"txt_in.\1"),
    (r"x_embedder\.(.*)", r"img_in.\1"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.(.*)", r"double_blocks.\1.img_mod.lin.\2"),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear\.(.*)", r"double_blocks.\1.txt_mod.lin.\2"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_q\.weight", r"double_blocks.\1.txt_attn.norm.query_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_k\.weight", r"double_blocks.\1.txt_attn.norm.key_norm.scale"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(.*)", r"double_blocks.\1.img_mlp.0.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.(.*)", r"double_blocks.\1.img_mlp.2.\2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.(.*)", r"double_blocks.\1.txt_mlp.0.\2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2\.(.*)", r"double_blocks.\1.txt_mlp.2.\2"),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0\.(.*)", r"double_blocks.\1.img_attn.proj.\2"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out\.(.*)", r"double_blocks.\1.txt_attn.proj.\2"),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear\.(.*)", r"single_blocks.\1.modulation.lin.\2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"single_transformer_blocks\.(\d+)\.proj_out\.(.*)", r"single_blocks.\1.linear2.\2"),
    (r"proj_out\.(.*)", r"final_layer.linear.\1"),
    (r"norm_out\.linear\.(.*)", r"final_layer.adaLN_modulation.1.\1"),
)


def flux(name: str, weights: Weights) -> Origin:
    """The transformer of FLUX.1. Its single blocks keep query, key, value and four widths of MLP in one tensor."""
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.attn\.(?:to_([qkv])|add_([qkv])_proj)\.(.*)", name)
    if match:
        side, piece = "img_attn" if match[2] else "txt_attn", "qkv".index(match[2] or match[3])
        return Origin(f"double_blocks.{match[1]}.{side}.qkv.{match[4]}", piece, piece + 1, 3)
    match = re.fullmatch(r"single_transformer_blocks\.(\d+)\.(?:attn\.to_([qkv])|proj_mlp)\.(.*)", name)
    if match:
        first, last = ("qkv".index(match[2]), "qkv".index(match[2]) + 1) if match[2] else (3, 7)
        return Origin(f"single_blocks.{match[1]}.linear1.{match[3]}", first, last, 7)
    return Origin(_renamed(name, FLUX), swapped=name.startswith("norm_out."))
