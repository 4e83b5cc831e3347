"""Tiny models that make clips: diffusers' and transformers' own classes, random weights, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
import transformers


class Kept:
    """A keeper of latents, as a journal is; in memory."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def latents(self, index: int, make: Any, /) -> torch.Tensor:
        self.found.append(make())
        return self.found[-1]


def shell(*arguments: str) -> int:
    """The exit code of a command."""
    from sdkit.cli import main

    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


SHIFTING = {
    "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
    "max_image_seq_len": 4096, "shift_terminal": 0.1,
}  # fmt: skip


def ltx_autoencoder(seed: int = 11, **fields: Any) -> Any:
    """32 pixels and 8 frames per element, as the real one; its posterior has next to no variance."""
    given = {
        "latent_channels": 8, "block_out_channels": (8, 8, 16, 16), "decoder_block_out_channels": (8, 8, 16, 16),
        "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }  # fmt: skip
    network = tiny.made(diffusers.AutoencoderKLLTXVideo, None, seed, **{**given, **fields})
    network.latents_mean.copy_(0.3 * torch.randn(8, generator=torch.Generator().manual_seed(1)))
    network.latents_std.copy_(0.5 + torch.rand(8, generator=torch.Generator().manual_seed(2)))
    last = network.encoder.conv_out.conv
    last.weight[8:] = 0
    last.bias[8:] = -30
    return network


def ltx_timed_autoencoder() -> Any:
    """The decoder of 0.9.5, which takes off the last noise itself and doubles its width less than it shrinks."""
    return ltx_autoencoder(
        timestep_conditioning=True, decoder_block_out_channels=(8, 16, 32), decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True,) * 3, decoder_inject_noise=(False,) * 4, upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2),
    )  # fmt: skip


def ltx(folder: Path, *, terminal: float | None = 0.1, vae: Any = None) -> dict[str, Any]:
    """The parts of an LTX-Video."""
    return {
        "transformer": tiny.made(
            diffusers.LTXVideoTransformer3DModel, None, 12, in_channels=8, out_channels=8, num_attention_heads=2,
            attention_head_dim=16, cross_attention_dim=32, num_layers=2, caption_channels=192,
        ),
        "vae": vae or ltx_autoencoder(),
        "text_encoder": tiny.t5(),
        "tokenizer": tiny.t5_tokenizer(folder),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**{**SHIFTING, "shift_terminal": terminal}),
    }  # fmt: skip


def svd_autoencoder(seed: int = 13) -> Any:
    """Four levels as the real one, so that an element is 8 pixels; its decoder looks along time."""
    return tiny.made(
        diffusers.AutoencoderKLTemporalDecoder, None, seed, block_out_channels=(32, 32, 32, 64), layers_per_block=1,
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4, sample_size=64,
    )  # fmt: skip


def svd(**scheduler: Any) -> dict[str, Any]:
    """The parts of a Stable Video Diffusion."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, patch_size=32, image_size=224,
        projection_dim=48,
    )  # fmt: skip
    unet = tiny.made(
        diffusers.UNetSpatioTemporalConditionModel, None, 14, sample_size=8, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), block_out_channels=(32, 64),
        addition_time_embed_dim=32, projection_class_embeddings_input_dim=96, layers_per_block=1,
        cross_attention_dim=48, num_attention_heads=(2, 4), num_frames=6,
    )  # fmt: skip
    for name, weight in unet.named_parameters():
        if "time_emb_proj" in name:
            weight *= 0.1
    unet.conv_out.weight *= 0.3
    given = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
        "timestep_type": "continuous", "timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True,
        "sigma_min": 0.002, "sigma_max": 700.0, **scheduler,
    }  # fmt: skip
    return {
        "unet": unet,
        "vae": svd_autoencoder(),
        "image_encoder": tiny.made(transformers.CLIPVisionModelWithProjection, vision, 15),
        "feature_extractor": transformers.CLIPImageProcessor(),
        "scheduler": diffusers.EulerDiscreteScheduler(**given),
    }
