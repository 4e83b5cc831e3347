"""Tiny motion modules for the tiny U-Net: diffusers' own class with random weights, and AnimateDiff's own names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch
from diffusers.models.unets.unet_motion_model import MotionAdapter
from safetensors.torch import save_file
from torch import Tensor

POSITIONS = 8


def adapter(
    seed: int = 11, *, middle: bool = True, positions: int = POSITIONS, channels: Any = (32, 64, 64), layers: int = 2
) -> Any:
    """A motion module; its last layers, zero where training begins, are not, so that motion acts."""
    network = tiny.made(
        MotionAdapter,
        None,
        seed,
        block_out_channels=channels,
        motion_layers_per_block=layers,
        motion_num_attention_heads=8,
        motion_max_seq_length=positions,
        use_motion_mid_block=middle,
    )
    for name, tensor in network.named_parameters():
        if name.endswith("proj_out.weight"):  # what a clip says of its frames is less than what each says of itself
            tensor *= 0.2
    table = diffusers.models.embeddings.SinusoidalPositionalEmbedding
    for module in network.modules():
        if isinstance(module, table):  # not a weight: `tiny.fill` put noise there
            _, count, width = module.pe.shape
            module.pe.copy_(table(width, count).pe)
    return network


def original(network: Any) -> dict[str, Tensor]:
    """Its tensors as AnimateDiff's own code names them, written from that code's modules."""
    found = {}
    for name, tensor in network.state_dict().items():
        block, rest = re.fullmatch(r"(.+\.motion_modules\.\d+)\.(.+)", name).groups()
        layer = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", rest)
        if layer is None:
            found[f"{block}.temporal_transformer.{rest}"] = tensor
            continue
        stem, inner = f"{block}.temporal_transformer.transformer_blocks.{layer[1]}", layer[2]
        head, _, tail = inner.partition(".")
        if head == "pos_embed":
            for k in (0, 1):
                found[f"{stem}.attention_blocks.{k}.pos_encoder.pe"] = tensor.clone()
            continue
        heads = {
            "attn1": "attention_blocks.0", "attn2": "attention_blocks.1", "norm1": "norms.0", "norm2": "norms.1",
            "norm3": "ff_norm", "ff": "ff",
        }  # fmt: skip
        found[f"{stem}.{heads[head]}.{tail}"] = tensor
    return found


def save_tensors(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def save_original(network: Any, path: Path) -> Path:
    return save_tensors(original(network), path)


def save_folder(network: Any, path: Path) -> Path:
    network.save_pretrained(path)
    return path


def theirs(parts: dict[str, Any], motion: Any, scheduler: Any) -> Any:
    """diffusers' own pipeline of these."""
    with torch.random.fork_rng(devices=[]):
        made = diffusers.AnimateDiffPipeline(
            vae=parts["vae"],
            text_encoder=parts["text_encoder"],
            tokenizer=parts["tokenizer"],
            unet=parts["unet"],
            motion_adapter=motion,
            scheduler=scheduler,
        )
    made.set_progress_bar_config(disable=True)
    return made
