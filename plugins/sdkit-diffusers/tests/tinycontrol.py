"""Tiny networks that work beside tiny models, and the pictures they read."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import transformers
from parity import drawn
from PIL import Image
from tiny import fill, made, moved
from torch import Tensor


@pytest.fixture(autouse=True)
def shapes_are_no_draws(no_global_random_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where networks are made, a draw gives a shape and no numbers."""
    guarded = torch.randn

    def randn(*args: Any, **kwargs: Any) -> Any:
        on_meta = torch.get_default_device().type == "meta"
        return torch.empty(*args, **kwargs) if on_meta else guarded(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", randn)


def edges(seed: int = 0, side: int = 64) -> Image.Image:
    """A picture of blocks."""
    blocks = (drawn(side // 8, side // 8, 3, seed=30 + seed) > 0).to(torch.uint8) * 255
    return Image.fromarray(blocks.numpy()).resize((side, side), Image.Resampling.NEAREST)


def control_net(unet: Any, seed: int = 21, **fields: Any) -> Any:
    """A control net of the form of a U-Net; its last convolutions are not zero, as they are before training."""
    with torch.random.fork_rng(devices=[]):
        network = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False, **fields)
    fill(network, seed)
    for name, weight in network.named_parameters():
        if "time_emb_proj" in name:
            weight *= 0.1
        # `fill` takes these convolutions for tables of words; signals are to keep their size through them too
        if name.startswith("controlnet_cond_embedding") and weight.ndim == 4:
            weight *= 3 * weight[0].numel() ** -0.5
    return network


def original_control(network: Any) -> dict[str, Tensor]:
    """A control net with the names of the original code: the first half of a U-Net, and what is its own."""
    tensors = dict(network.state_dict())
    found: dict[str, Tensor] = {}
    hint = [name for name in tensors if name.startswith("controlnet_cond_embedding.") and name.endswith(".weight")]
    order = ["conv_in", *sorted({n.split(".")[1] + "." + n.split(".")[2] for n in hint if ".blocks." in n}), "conv_out"]
    for index, name in enumerate(order):
        for kind in ("weight", "bias"):
            found[f"input_hint_block.{2 * index}.{kind}"] = tensors.pop(f"controlnet_cond_embedding.{name}.{kind}")
    for name in list(tensors):
        if name.startswith("controlnet_down_blocks."):
            _, index, kind = name.split(".")
            found[f"zero_convs.{index}.0.{kind}"] = tensors.pop(name)
        if name.startswith("controlnet_mid_block."):
            found[f"middle_block_out.0.{name.rpartition('.')[2]}"] = tensors.pop(name)
    return found | half_unet(network, tensors)


def half_unet(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rest of a control net under the names of the original code."""
    config = network.config
    moves = [("conv_in", "input_blocks.0.0")]
    number = 1
    for level in range(len(config.block_out_channels)):
        for block in range(config.layers_per_block):
            moves.append((f"down_blocks.{level}.resnets.{block}", f"input_blocks.{number}.0"))
            moves.append((f"down_blocks.{level}.attentions.{block}", f"input_blocks.{number}.1"))
            number += 1
        if level < len(config.block_out_channels) - 1:
            moves.append((f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"))
            number += 1
    moves += [("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1")]
    moves += [("mid_block.resnets.1", "middle_block.2")]
    moves += [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2")]
    moves += [("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2")]
    inside = [
        (".norm1.", ".in_layers.0."), (".conv1.", ".in_layers.2."), (".time_emb_proj.", ".emb_layers.1."),
        (".norm2.", ".out_layers.0."), (".conv2.", ".out_layers.3."), (".conv_shortcut.", ".skip_connection."),
    ]  # fmt: skip
    return moved(tensors, moves, inside, only="resnets")


def t2i_adapter(family: str, seed: int = 41) -> Any:
    """A T2I-Adapter for a tiny model: of Stable Diffusion 1 with a feature per level, of XL as its authors' are."""
    fields: dict[str, Any] = {"channels": [32, 64, 64], "num_res_blocks": 1}
    if family == "sdxl":
        fields.update(adapter_type="full_adapter_xl", downscale_factor=16)
    return made(diffusers.T2IAdapter, None, seed, **fields)


def image_encoder(width: int = 32) -> Any:
    """CLIP's vision model."""
    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=48,
    )  # fmt: skip
    return made(transformers.CLIPVisionModelWithProjection, config, 60)


def ip_adapter(unet: Any, *, plus: bool = False, seed: int = 50) -> dict[str, Tensor]:
    """The tensors of an IP-Adapter under the names of its authors' files."""
    width, found, number = unet.config.cross_attention_dim, {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for k, letter in enumerate("kv"):
                tensor = drawn(inner, width, seed=1000 * seed + 10 * number + k) * width**-0.5
                found[f"ip_adapter.{number}.to_{letter}_ip.weight"] = tensor
            number += 2
    shapes: dict[str, tuple[int, ...]] = {"proj.weight": (4 * width, 48), "proj.bias": (4 * width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    if plus:
        shapes = {"latents": (1, 6, 64), "proj_in.weight": (64, 32), "proj_in.bias": (64,)}
        shapes |= {"proj_out.weight": (width, 64), "proj_out.bias": (width,), "norm_out.weight": (width,)}
        shapes |= {"norm_out.bias": (width,)}
        for layer in range(4):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                shapes |= {f"layers.{layer}.{norm}.weight": (64,), f"layers.{layer}.{norm}.bias": (64,)}
            shapes |= {f"layers.{layer}.0.to_q.weight": (64, 64), f"layers.{layer}.0.to_kv.weight": (128, 64)}
            shapes |= {f"layers.{layer}.0.to_out.weight": (64, 64), f"layers.{layer}.1.1.weight": (256, 64)}
            shapes |= {f"layers.{layer}.1.3.weight": (64, 256)}
    for k, (name, shape) in enumerate(shapes.items()):
        tensor = drawn(*shape, seed=seed + k) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        found[f"image_proj.{name}"] = tensor + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return found
