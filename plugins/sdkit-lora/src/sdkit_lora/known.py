"""The formats that are shipped, as factories the registry can call."""

from __future__ import annotations

from sdkit_lora.formats import Generic

__all__ = ["diffusers", "diffusers_old", "generic", "kohya", "lycoris", "onetrainer", "peft", "xlabs"]


def xlabs() -> Generic:
    """Keys such as ``double_blocks.0.processor.qkv_lora1.down.weight``."""
    return Generic(r"\.processor\.(qkv|proj)_lora\d?\.(up|down)\.weight$")


def diffusers_old() -> Generic:
    """Keys such as ``unet...attn1.processor.to_q_lora.down.weight`` or ``...lora_linear_layer.up.weight``."""
    return Generic(r"\.processor\.to_\w+_lora\.|\.lora_linear_layer\.(up|down)\.weight$|\.lora\.(up|down)\.weight$")


def peft() -> Generic:
    """Keys such as ``base_model.model...lora_A.weight``; scales stand in ``adapter_config.json``."""
    return Generic(r"^base_model\.model\.", alphas=True)


def lycoris() -> Generic:
    """Keys such as ``lycoris_transformer_blocks_0_attn_to_q.lokr_w1``."""
    return Generic(r"^lycoris_")


def onetrainer() -> Generic:
    """Keys such as ``lora_transformer_...`` or ``lora_te1_text_projection...``."""
    return Generic(r"^lora_transformer_")


def kohya() -> Generic:
    """Keys such as ``lora_unet_down_blocks_0_...lora_down.weight``, with ``.alpha`` beside them."""
    return Generic(r"^lora_(unet|te\d?|prior)_")


def diffusers() -> Generic:
    """Keys such as ``unet.down_blocks.0...lora_A.weight``; scales in the metadata, or none."""
    return Generic(r"^(unet|transformer|text_encoder(_\d)?)\.", alphas=True)


def generic() -> Generic:
    """Keys such as ``diffusion_model.double_blocks.0...lora_A.weight``, or the bare original path."""
    return Generic(
        r"\.(lora_(A|B|up|down)(\.default)?\.weight|hada_w1_a|lokr_w1(_a)?|diff(_b)?|[wb]_norm|set_weight)$",
        alphas=True,
    )
