"""Tiny models of every family: diffusers' and transformers' own classes, random weights, saved in both layouts.

Latents are 8 x 8, pictures 64 x 64. The names of the original layouts are written here a second time, walking the
layout's own numbering, so that the loader's tables are checked against something else than themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, T5Config

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def fill(network: nn.Module, seed: int = 0) -> Any:
    """Weights from a generator of their own, scaled so that signals keep their size through the layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("pos_embed.pos_embed"):
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                drawn *= tensor[0].numel() ** -0.5 if "embedding" not in name else 0.5
            else:
                drawn = drawn * 0.1 + (1.0 if name.endswith("weight") and "norm" in name else 0.0)
            tensor.copy_(drawn)
    return network.eval().requires_grad_(False)


def made(kind: Any, config: Any, seed: int = 0, **fields: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        network = kind(config) if config is not None else kind(**fields)
    return fill(network, seed)


def vae(seed: int = 1, *, channels: int = 4, scaling: float = 0.18215, shift: float | None = None) -> Any:
    """Four levels as the real one, so that a latent element is 8 pixels; its posterior has next to no variance."""
    quant = channels == 4
    network = made(
        diffusers.AutoencoderKL,
        None,
        seed,
        block_out_channels=(32, 32, 32, 64),
        layers_per_block=1,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )
    # diffusers draws from the posterior where sdkit takes its mean; here both are the same to 1e-6
    last = network.quant_conv if quant else network.encoder.conv_out
    last.weight[channels:] = 0
    last.bias[channels:] = -30
    return network


def clip(seed: int = 2, *, width: int = 64, layers: int = 3, act: str = "quick_gelu", projected: bool = False) -> Any:
    """CLIP's real vocabulary, everything else small."""
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=77, hidden_act=act, projection_dim=width,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return made(kind, config, seed)


def clip_tokenizer(pad: str = "<|endoftext|>") -> Any:
    """transformers' tokenizer on the vocabulary of this package."""
    from sdkit_diffusers.tokens import clip_tokenizer as ours

    model = json.loads(ours().backend.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=77, pad_token=pad)


def unet(seed: int = 3, **fields: Any) -> Any:
    """Three levels of two blocks; the last has no attention, as in Stable Diffusion 1 and 2."""
    given = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 64,
    }  # fmt: skip
    network = made(diffusers.UNet2DConditionModel, None, seed, **{**given, **fields})
    # group norms of few numbers make much of rounding errors where the time's share, the same for all pixels, is large
    for name, weight in network.named_parameters():
        if "time_emb_proj" in name:
            weight *= 0.1
    network.conv_out.weight *= 0.3
    return network


def sd1(*, inputs: int = 4, guidance_width: int | None = None, **scheduler: Any) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1 by their names in a folder."""
    return {
        "unet": unet(in_channels=inputs, attention_head_dim=8, time_cond_proj_dim=guidance_width),
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "scheduler": diffusers.DDIMScheduler(**{**BETAS, "clip_sample": False, "steps_offset": 1, **scheduler}),
    }


def sd2(**scheduler: Any) -> dict[str, Any]:
    """The parts of a Stable Diffusion 2: velocity, OpenCLIP (its last layer left out), linear projections."""
    fields = {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1}
    return {
        "unet": unet(attention_head_dim=(1, 1, 1), use_linear_projection=True),
        "vae": vae(),
        "text_encoder": clip(act="gelu"),
        "tokenizer": clip_tokenizer(pad="!"),
        "scheduler": diffusers.DDIMScheduler(**{**BETAS, **fields, **scheduler}),
    }


def sdxl(**scheduler: Any) -> dict[str, Any]:
    """The parts of a Stable Diffusion XL: no attention at the first level, more of it further down."""
    attends, plain = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    return {
        "unet": unet(
            attention_head_dim=(1, 1, 1), use_linear_projection=True, cross_attention_dim=128,
            down_block_types=("DownBlock2D", *attends), up_block_types=(*plain, "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=64 + 6 * 256,
        ),
        "vae": vae(scaling=0.13025),
        "text_encoder": clip(),
        "text_encoder_2": clip(seed=4, act="gelu", projected=True),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(pad="!"),
        "scheduler": diffusers.EulerDiscreteScheduler(**{**BETAS, "steps_offset": 1, **scheduler}),
    }  # fmt: skip


def refiner(**scheduler: Any) -> dict[str, Any]:
    """The parts of XL's refiner: one text encoder, four levels of which the outer two have no attention."""
    attends, plain = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    return {
        "unet": unet(
            attention_head_dim=(1, 1, 1, 1), use_linear_projection=True, block_out_channels=(32, 64, 64, 64),
            down_block_types=("DownBlock2D", *attends, "DownBlock2D"),
            up_block_types=("UpBlock2D", *plain, "UpBlock2D"), transformer_layers_per_block=2,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=64 + 5 * 256,
        ),
        "vae": vae(scaling=0.13025),
        "text_encoder": None,
        "text_encoder_2": clip(seed=4, act="gelu", projected=True),
        "tokenizer": None,
        "tokenizer_2": clip_tokenizer(pad="!"),
        "scheduler": diffusers.EulerDiscreteScheduler(**{**BETAS, "steps_offset": 1, **scheduler}),
    }  # fmt: skip


def t5(seed: int = 6) -> Any:
    """T5 1.1's encoder."""
    config = T5Config(
        vocab_size=200, d_model=192, d_kv=64, d_ff=128, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return made(transformers.T5EncoderModel, config, seed)


def t5_tokenizer(folder: Path) -> Any:
    """A tokenizer of letters, with T5's marks."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", *(chr(number) for number in range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=256,
    )  # fmt: skip


def sd3(folder: Path, *, with_t5: bool = True, newer: bool = False) -> dict[str, Any]:
    """The parts of a Stable Diffusion 3, or of 3.5 medium (normed keys, a second attention in the first blocks)."""
    fields: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if newer else {}
    return {
        "transformer": made(
            diffusers.SD3Transformer2DModel, None, 7, sample_size=8, patch_size=2, in_channels=16, num_layers=2,
            attention_head_dim=64, num_attention_heads=2, joint_attention_dim=192, caption_projection_dim=128,
            pooled_projection_dim=128, out_channels=16, pos_embed_max_size=12, **fields,
        ),
        "vae": vae(channels=16, scaling=1.5305, shift=0.0609),
        "text_encoder": clip(projected=True),
        "text_encoder_2": clip(seed=4, act="gelu", projected=True),
        "text_encoder_3": t5() if with_t5 else None,
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(pad="!"),
        "tokenizer_3": t5_tokenizer(folder) if with_t5 else None,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip


def flux(folder: Path, *, dev: bool = False) -> dict[str, Any]:
    """The parts of a FLUX.1 schnell, or of dev (which reads a guidance scale)."""
    shifting = {"use_dynamic_shifting": True, "shift": 3.0} if dev else {"shift": 1.0}
    return {
        "transformer": made(
            diffusers.FluxTransformer2DModel, None, 8, patch_size=1, in_channels=64, num_layers=2, num_single_layers=2,
            attention_head_dim=128, num_attention_heads=1, joint_attention_dim=192, pooled_projection_dim=64,
            guidance_embeds=dev, axes_dims_rope=(16, 56, 56),
        ),
        "vae": vae(channels=16, scaling=0.3611, shift=0.1159),
        "text_encoder": clip(),
        "text_encoder_2": t5(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(folder),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**shifting),
    }  # fmt: skip


def pipeline(kind: Any, parts: dict[str, Any]) -> Any:
    """diffusers' own pipeline of these parts."""
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made_of = kind(**parts, **(absent if kind.__name__.startswith("StableDiffusion") and _checked(kind) else {}))
    made_of.set_progress_bar_config(disable=True)
    return made_of


def _checked(kind: Any) -> bool:
    return "safety_checker" in kind.__init__.__code__.co_varnames


# --- original layouts -------------------------------------------------------------------------------------------------


def original_unet(network: Any) -> dict[str, Tensor]:
    """An LDM U-Net: the input blocks counted through, then the middle, then the output blocks counted through."""
    config, moves = network.config, [("conv_in", "input_blocks.0.0")]
    number = 1
    levels = len(config.block_out_channels)
    for level in range(levels):
        for block in range(config.layers_per_block):
            moves.append((f"down_blocks.{level}.resnets.{block}", f"input_blocks.{number}.0"))
            moves.append((f"down_blocks.{level}.attentions.{block}", f"input_blocks.{number}.1"))
            number += 1
        if level < levels - 1:
            moves.append((f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"))
            number += 1
    moves += [("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1")]
    moves += [("mid_block.resnets.1", "middle_block.2")]
    number = 0
    for level in range(levels):
        attends = hasattr(network.up_blocks[level], "attentions")
        for block in range(config.layers_per_block + 1):
            moves.append((f"up_blocks.{level}.resnets.{block}", f"output_blocks.{number}.0"))
            moves.append((f"up_blocks.{level}.attentions.{block}", f"output_blocks.{number}.1"))
            if block == config.layers_per_block and level < levels - 1:
                place = 2 if attends else 1
                moves.append((f"up_blocks.{level}.upsamplers.0", f"output_blocks.{number}.{place}"))
            number += 1
    moves += [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2")]
    moves += [("time_embedding.cond_proj", "time_embed.cond_proj")]
    moves += [("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2")]
    moves += [("conv_norm_out", "out.0"), ("conv_out", "out.2")]
    inside = [
        (".norm1.", ".in_layers.0."), (".conv1.", ".in_layers.2."), (".time_emb_proj.", ".emb_layers.1."),
        (".norm2.", ".out_layers.0."), (".conv2.", ".out_layers.3."), (".conv_shortcut.", ".skip_connection."),
    ]  # fmt: skip
    return moved(network.state_dict(), moves, inside, only="resnets")


def moved(
    tensors: dict[str, Tensor], moves: list[tuple[str, str]], inside: list[tuple[str, str]], only: str = ""
) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        old, new = max((pair for pair in moves if name.startswith(pair[0] + ".")), key=lambda pair: len(pair[0]))
        key = new + name[len(old) :]
        for theirs, original in inside if only in name else []:
            key = key.replace(theirs, original)
        found[key] = tensor
    assert len(found) == len(tensors)
    return found


def original_vae(network: Any) -> dict[str, Tensor]:
    levels = len(network.config.block_out_channels)
    moves = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for side, down in (("encoder", True), ("decoder", False)):
        moves += [(f"{side}.conv_in", f"{side}.conv_in"), (f"{side}.conv_norm_out", f"{side}.norm_out")]
        moves += [(f"{side}.conv_out", f"{side}.conv_out"), (f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1")]
        moves += [(f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}") for i in (0, 1)]
        for level in range(levels):
            if down:
                moves.append((f"encoder.down_blocks.{level}.resnets", f"encoder.down.{level}.block"))
                moves.append((f"encoder.down_blocks.{level}.downsamplers.0", f"encoder.down.{level}.downsample"))
            else:
                theirs = levels - 1 - level
                moves.append((f"decoder.up_blocks.{theirs}.resnets", f"decoder.up.{level}.block"))
                moves.append((f"decoder.up_blocks.{theirs}.upsamplers.0", f"decoder.up.{level}.upsample"))
    inside = [(".conv_shortcut.", ".nin_shortcut."), (".group_norm.", ".norm."), (".to_q.", ".q."), (".to_k.", ".k.")]
    inside += [(".to_v.", ".v."), (".to_out.0.", ".proj_out.")]
    found = moved(network.state_dict(), moves, inside)
    # attention was written with 1 x 1 convolutions
    return {
        key: tensor[:, :, None, None] if "attn_1" in key and tensor.ndim == 2 else tensor
        for key, tensor in found.items()
    }


def named_clip(network: Any) -> dict[str, Tensor]:
    """With the prefix that transformers before release 5 wrote, and the buffer they kept."""
    found = {}
    for name, tensor in network.state_dict().items():
        bare = name.startswith(("text_model.", "text_projection."))
        found[name if bare else f"text_model.{name}"] = tensor
    found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return found


def open_clip(network: Any, *, extra_layer: bool = False) -> dict[str, Tensor]:
    """OpenCLIP's text tower; with a last layer that Stable Diffusion 2 does not use."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
    layers = network.config.num_hidden_layers
    found = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "logit_scale": torch.tensor(1.0),
    }
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = tensors[f"final_layer_norm.{kind}"]
    for layer in range(layers + extra_layer):
        ours, theirs = f"transformer.resblocks.{layer}", f"encoder.layers.{min(layer, layers - 1)}"
        for kind in ("weight", "bias"):
            fused = [tensors[f"{theirs}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{ours}.attn.in_proj_{kind}"] = torch.cat(fused)
            found[f"{ours}.attn.out_proj.{kind}"] = tensors[f"{theirs}.self_attn.out_proj.{kind}"]
            for here, there in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                found[f"{ours}.{here}.{kind}"] = tensors[f"{theirs}.{there}.{kind}"]
            for here, there in (("c_fc", "fc1"), ("c_proj", "fc2")):
                found[f"{ours}.mlp.{here}.{kind}"] = tensors[f"{theirs}.mlp.{there}.{kind}"]
    if "text_projection.weight" in tensors:
        found["text_projection"] = tensors["text_projection.weight"].T
    elif extra_layer:
        found["text_projection"] = torch.eye(network.config.hidden_size)
    return found


def named_t5(network: Any) -> dict[str, Tensor]:
    """Without the copy of the embedding that transformers' module has."""
    return {name: tensor for name, tensor in network.state_dict().items() if name != "encoder.embed_tokens.weight"}


def turned(tensor: Tensor) -> Tensor:
    """Its halves in the other order: (scale, shift) and (shift, scale)."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def original_sd3(network: Any) -> dict[str, Tensor]:
    """The transformer of Stable Diffusion 3 as its authors name it, block by block."""
    left = dict(network.state_dict())
    layers = network.config.num_layers
    found = {"pos_embed": left.pop("pos_embed.pos_embed")}

    def move(new: str, *old: str, turn: bool = False) -> None:
        for kind in ("weight", "bias"):
            names = [f"{name}.{kind}" for name in old]
            if names[0] in left:
                tensor = torch.cat([left.pop(name) for name in names])
                found[f"{new}.{kind}"] = turned(tensor) if turn else tensor

    move("x_embedder.proj", "pos_embed.proj")
    for new, old in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        move(f"{new}.mlp.0", f"time_text_embed.{old}.linear_1")
        move(f"{new}.mlp.2", f"time_text_embed.{old}.linear_2")
    move("context_embedder", "context_embedder")
    for i in range(layers):
        new, old, last = f"joint_blocks.{i}", f"transformer_blocks.{i}", i == layers - 1
        for attention in ("attn", "attn2"):
            move(f"{new}.x_block.{attention}.qkv", *(f"{old}.{attention}.to_{letter}" for letter in "qkv"))
            move(f"{new}.x_block.{attention}.proj", f"{old}.{attention}.to_out.0")
            for letter in "qk":
                move(f"{new}.x_block.{attention}.ln_{letter}", f"{old}.{attention}.norm_{letter}")
        move(f"{new}.context_block.attn.qkv", *(f"{old}.attn.add_{letter}_proj" for letter in "qkv"))
        move(f"{new}.context_block.attn.proj", f"{old}.attn.to_add_out")
        for letter in "qk":
            move(f"{new}.context_block.attn.ln_{letter}", f"{old}.attn.norm_added_{letter}")
        move(f"{new}.x_block.adaLN_modulation.1", f"{old}.norm1.linear")
        move(f"{new}.context_block.adaLN_modulation.1", f"{old}.norm1_context.linear", turn=last)
        for side, ff in (("x_block", "ff"), ("context_block", "ff_context")):
            move(f"{new}.{side}.mlp.fc1", f"{old}.{ff}.net.0.proj")
            move(f"{new}.{side}.mlp.fc2", f"{old}.{ff}.net.2")
    move("final_layer.linear", "proj_out")
    move("final_layer.adaLN_modulation.1", "norm_out.linear", turn=True)
    assert not left, list(left)
    return found


def original_flux(network: Any) -> dict[str, Tensor]:
    """The transformer of FLUX.1 as its authors name it, block by block."""
    left, found = dict(network.state_dict()), {}

    def move(new: str, *old: str, turn: bool = False) -> None:
        for kind in ("weight", "bias"):
            names = [f"{name}.{kind}" for name in old]
            if names[0] in left:
                tensor = torch.cat([left.pop(name) for name in names])
                found[f"{new}.{kind}"] = turned(tensor) if turn else tensor

    def norms(new: str, old: str, added: str = "") -> None:
        for letter, word in (("q", "query"), ("k", "key")):
            found[f"{new}.{word}_norm.scale"] = left.pop(f"{old}.norm_{added}{letter}.weight")

    inputs = (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"))
    for new, old in inputs:
        move(f"{new}.in_layer", f"time_text_embed.{old}.linear_1")
        move(f"{new}.out_layer", f"time_text_embed.{old}.linear_2")
    move("txt_in", "context_embedder")
    move("img_in", "x_embedder")
    for i in range(network.config.num_layers):
        new, old = f"double_blocks.{i}", f"transformer_blocks.{i}"
        sides = (("img", "to_{}", "to_out.0", "", "norm1", "ff"), ("txt", "add_{}_proj", "to_add_out", "added_",
                 "norm1_context", "ff_context"))  # fmt: skip
        for side, fused, out, added, norm, ff in sides:
            move(f"{new}.{side}_mod.lin", f"{old}.{norm}.linear")
            move(f"{new}.{side}_attn.qkv", *(f"{old}.attn.{fused.format(letter)}" for letter in "qkv"))
            norms(f"{new}.{side}_attn.norm", f"{old}.attn", added)
            move(f"{new}.{side}_attn.proj", f"{old}.attn.{out}")
            move(f"{new}.{side}_mlp.0", f"{old}.{ff}.net.0.proj")
            move(f"{new}.{side}_mlp.2", f"{old}.{ff}.net.2")
    for i in range(network.config.num_single_layers):
        new, old = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        move(f"{new}.modulation.lin", f"{old}.norm.linear")
        move(f"{new}.linear1", *(f"{old}.attn.to_{letter}" for letter in "qkv"), f"{old}.proj_mlp")
        norms(f"{new}.norm", f"{old}.attn")
        move(f"{new}.linear2", f"{old}.proj_out")
    move("final_layer.linear", "proj_out")
    move("final_layer.adaLN_modulation.1", "norm_out.linear", turn=True)
    assert not left, list(left)
    return found


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def original(family: str, parts: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of a model under the names of the original files."""
    found = prefixed("first_stage_model.", original_vae(parts["vae"]))
    if "unet" in parts:
        found |= prefixed("model.diffusion_model.", original_unet(parts["unet"]))
    if family == "sd1":
        found |= prefixed("cond_stage_model.transformer.", named_clip(parts["text_encoder"]))
    if family == "sd2":
        found |= prefixed("cond_stage_model.model.", open_clip(parts["text_encoder"], extra_layer=True))
    if family == "sdxl":
        found |= prefixed("conditioner.embedders.0.transformer.", named_clip(parts["text_encoder"]))
        found |= prefixed("conditioner.embedders.1.model.", open_clip(parts["text_encoder_2"]))
    if family == "sdxl-refiner":
        found |= prefixed("conditioner.embedders.0.model.", open_clip(parts["text_encoder_2"]))
    if family == "sd3":
        found |= prefixed("model.diffusion_model.", original_sd3(parts["transformer"]))
        found |= prefixed("text_encoders.clip_l.transformer.", named_clip(parts["text_encoder"]))
        found |= prefixed("text_encoders.clip_g.transformer.", named_clip(parts["text_encoder_2"]))
        if parts["text_encoder_3"] is not None:
            found |= prefixed("text_encoders.t5xxl.transformer.", named_t5(parts["text_encoder_3"]))
    if family == "flux":
        found |= prefixed("model.diffusion_model.", original_flux(parts["transformer"]))
        found |= prefixed("text_encoders.clip_l.transformer.", named_clip(parts["text_encoder"]))
        found |= prefixed("text_encoders.t5xxl.transformer.", named_t5(parts["text_encoder_2"]))
    found["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    return found


def save_original(family: str, parts: dict[str, Any], path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """One file with original names."""
    save_file({name: tensor.to(dtype) for name, tensor in original(family, parts).items()}, path)
    return path


def save_folder(kind: Any, parts: dict[str, Any], path: Path, **options: Any) -> Path:
    """A folder as diffusers saves it."""
    pipeline(kind, parts).save_pretrained(path, **options)
    return path
