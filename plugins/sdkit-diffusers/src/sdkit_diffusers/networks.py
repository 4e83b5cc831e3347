"""The classes of diffusers and transformers that networks are made of, each imported where it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["MAKERS"]


def _unet(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return _diffusers(UNet2DConditionModel, config)


def _autoencoder(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return _diffusers(AutoencoderKL, config)


def _sd3(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    return _diffusers(SD3Transformer2DModel, config)


def _flux(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return _diffusers(FluxTransformer2DModel, config)


def _ltx(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

    return _diffusers(LTXVideoTransformer3DModel, config)


def _ltx_autoencoder(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo

    return _diffusers(AutoencoderKLLTXVideo, config)


def _svd(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

    return _diffusers(UNetSpatioTemporalConditionModel, config)


def _svd_autoencoder(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder

    return _diffusers(AutoencoderKLTemporalDecoder, config)


def _vision(config: Mapping[str, Any]) -> nn.Module:
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    made: nn.Module = CLIPVisionModelWithProjection(
        CLIPVisionConfig.from_dict({**config, "attn_implementation": "sdpa"})
    )
    return made


def _clip(config: Mapping[str, Any]) -> nn.Module:
    from transformers.models.clip.modeling_clip import CLIPTextModel

    return _clip_of(CLIPTextModel, config)


def _clip_projected(config: Mapping[str, Any]) -> nn.Module:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    return _clip_of(CLIPTextModelWithProjection, config)


def _t5(config: Mapping[str, Any]) -> nn.Module:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    made: nn.Module = T5EncoderModel(T5Config.from_dict(dict(config)))
    return made


def _clip_of(network: Any, config: Mapping[str, Any]) -> nn.Module:
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    made: nn.Module = network(CLIPTextConfig.from_dict({**config, "attn_implementation": "sdpa"}))
    return made


def _diffusers(network: Any, config: Mapping[str, Any]) -> nn.Module:
    """From a configuration as saved, with the marks of its class and release, which are not settings."""
    made: nn.Module = network.from_config({name: value for name, value in config.items() if name[:1] != "_"})
    return made


MAKERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _autoencoder,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip_projected,
    "T5EncoderModel": _t5,
    "LTXVideoTransformer3DModel": _ltx,
    "AutoencoderKLLTXVideo": _ltx_autoencoder,
    "UNetSpatioTemporalConditionModel": _svd,
    "AutoencoderKLTemporalDecoder": _svd_autoencoder,
    "CLIPVisionModelWithProjection": _vision,
}
"""By the class name in ``model_index.json``."""
