"""Configurations of networks, read off the names and shapes of their tensors in original files.

What names and shapes do not say (activations, epsilons, widths of heads) is in ``data/FAMILY.json``, under the name of
the part; these functions are given that as ``known``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from sdkit import FileError
from sdkit_diffusers.tensors import Weights

__all__ = ["autoencoder", "clip", "flux", "known_of", "open_clip", "sd3", "t5", "unet"]

Config = dict[str, Any]
HEAD = 64
"""Width of an attention head in every text encoder of these families."""


@lru_cache
def known_of(family: str) -> Mapping[str, Any]:
    """What is known of a family beforehand: a configuration per part, the scheduler's, and the pipeline's facts."""
    made: Mapping[str, Any] = json.loads(files("sdkit_diffusers").joinpath(f"data/{family}.json").read_bytes())
    return made


def unet(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `diffusers`' ``UNet2DConditionModel``, from the tensors of an LDM U-Net."""
    config = dict(known)
    first = weights.shape("input_blocks.0.0.weight")
    widths, depths, blocks = _levels(weights)
    middle = weights.count("middle_block.1.transformer_blocks.{}.")
    if depths[-1] not in (0, middle):
        raise FileError(
            f"The unet has {middle} transformer blocks in its middle and {depths[-1]} beside it; only models in which "
            "they are as many are read from a single file (a diffusers folder says how others are built)."
        )
    depths[-1] = middle
    attends = [weights.count(f"input_blocks.{1 + level * (blocks + 1)}.1.transformer_blocks.{{}}.") > 0
               for level in range(len(widths))]  # fmt: skip
    projection = weights.shape("middle_block.1.proj_in.weight")
    config.update(
        in_channels=first[1],
        out_channels=weights.shape("out.2.weight")[0],
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        up_block_types=["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
        transformer_layers_per_block=[max(depth, 1) for depth in depths],
        cross_attention_dim=weights.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        use_linear_projection=len(projection) == 2,
    )
    if "head_width" in config:
        head = config.pop("head_width")
        config["attention_head_dim"] = [max(width // head, 1) for width in widths]
    if "label_emb.0.0.weight" in weights:
        config["projection_class_embeddings_input_dim"] = weights.shape("label_emb.0.0.weight")[1]
    if "time_embed.cond_proj.weight" in weights:
        config["time_cond_proj_dim"] = weights.shape("time_embed.cond_proj.weight")[1]
    return config


def _levels(weights: Weights) -> tuple[list[int], list[int], int]:
    """Widths and depths of transformers per level of an LDM U-Net, and residual blocks per level."""
    widths: list[list[int]] = [[]]
    depths: list[int] = [0]
    for index in range(1, weights.count("input_blocks.{}.")):
        if f"input_blocks.{index}.0.op.weight" in weights:
            widths.append([])
            depths.append(0)
            continue
        widths[-1].append(weights.shape(f"input_blocks.{index}.0.in_layers.2.weight")[0])
        depths[-1] = weights.count(f"input_blocks.{index}.1.transformer_blocks.{{}}.")
    blocks = {len(level) for level in widths}
    if len(blocks) != 1 or 0 in blocks or any(len(set(level)) != 1 for level in widths):
        raise FileError(f"The unet's input blocks have the widths {widths}; levels of one width and length are needed.")
    return [level[0] for level in widths], depths, blocks.pop()


def autoencoder(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `diffusers`' ``AutoencoderKL``, from the tensors of an LDM autoencoder."""
    levels = weights.count("encoder.down.{}.")
    return {
        **known,
        "in_channels": weights.shape("encoder.conv_in.weight")[1],
        "out_channels": weights.shape("decoder.conv_out.weight")[0],
        "latent_channels": weights.shape("decoder.conv_in.weight")[1],
        "block_out_channels": [
            weights.shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)
        ],
        "layers_per_block": weights.count("encoder.down.0.block.{}."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
    }


def clip(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `transformers`' CLIP text model, from tensors under its own names (``text_model.``)."""
    vocabulary, width = weights.shape("text_model.embeddings.token_embedding.weight")
    return {
        **known,
        **_clip(vocabulary, width),
        "intermediate_size": weights.shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": weights.count("text_model.encoder.layers.{}."),
        "max_position_embeddings": weights.shape("text_model.embeddings.position_embedding.weight")[0],
        "projection_dim": weights.shape("text_projection.weight")[0] if "text_projection.weight" in weights else width,
    }


def open_clip(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `transformers`' CLIP text model, from the tensors of OpenCLIP's text tower."""
    vocabulary, width = weights.shape("token_embedding.weight")
    return {
        **known,
        **_clip(vocabulary, width),
        "intermediate_size": weights.shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": weights.count("transformer.resblocks.{}."),
        "max_position_embeddings": weights.shape("positional_embedding")[0],
        "projection_dim": weights.shape("text_projection")[1] if "text_projection" in weights else width,
    }


def _clip(vocabulary: int, width: int) -> Config:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": max(width // HEAD, 1),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 1,
    }


def t5(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `transformers`' T5 encoder, from tensors under its own names."""
    vocabulary, width = weights.shape("shared.weight")
    query = weights.shape("encoder.block.0.layer.0.SelfAttention.q.weight")[0]
    return {
        **known,
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": weights.shape("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        "d_kv": HEAD,
        "num_heads": query // HEAD,
        "num_layers": weights.count("encoder.block.{}."),
    }


def sd3(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `diffusers`' ``SD3Transformer2DModel``, from the tensors of the original transformer."""
    config = dict(known)
    layers = weights.count("joint_blocks.{}.")
    width, channels, patch, _ = weights.shape("x_embedder.proj.weight")
    head = config.pop("head_width")
    config.update(
        num_layers=layers,
        num_attention_heads=width // head,
        attention_head_dim=head,
        in_channels=channels,
        out_channels=weights.shape("final_layer.linear.weight")[0] // patch**2,
        patch_size=patch,
        joint_attention_dim=weights.shape("context_embedder.weight")[1],
        caption_projection_dim=weights.shape("context_embedder.weight")[0],
        pooled_projection_dim=weights.shape("y_embedder.mlp.0.weight")[1],
        pos_embed_max_size=round(weights.shape("pos_embed")[1] ** 0.5),
        dual_attention_layers=[i for i in range(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in weights],
        qk_norm="rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in weights else None,
    )
    return config


def flux(weights: Weights, known: Mapping[str, Any]) -> Config:
    """Of `diffusers`' ``FluxTransformer2DModel``, from the tensors of the original transformer."""
    config = dict(known)
    width, packed = weights.shape("img_in.weight")
    config.update(
        num_layers=weights.count("double_blocks.{}."),
        num_single_layers=weights.count("single_blocks.{}."),
        num_attention_heads=width // config["attention_head_dim"],
        in_channels=packed,
        out_channels=weights.shape("final_layer.linear.weight")[0],
        joint_attention_dim=weights.shape("txt_in.weight")[1],
        pooled_projection_dim=weights.shape("vector_in.in_layer.weight")[1],
        guidance_embeds="guidance_in.in_layer.weight" in weights,
    )
    return config
