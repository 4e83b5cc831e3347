"""The tables of original names at the size of the published models, against diffusers' own converters.

For every parameter of a full-sized network (without memory) the table says where it is in an original file. A file of
exactly these tensors is given to diffusers' converter, which must find the same parameter in the same place.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor

from sdkit_diffusers import configs, names
from sdkit_diffusers.parts import Origin
from sdkit_diffusers.tensors import Stored, Weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
NOTHING = Weights({})
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP = "CrossAttnUpBlock2D", "UpBlock2D"
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": [320, 640, 1280], "down_block_types": [PLAIN, CROSS, CROSS],
        "up_block_types": [UP_CROSS, UP_CROSS, UP], "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": {
        "block_out_channels": [384, 768, 1536, 1536], "down_block_types": [PLAIN, CROSS, CROSS, PLAIN],
        "up_block_types": [UP, UP_CROSS, UP_CROSS, UP], "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24], "cross_attention_dim": 1280, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}  # fmt: skip


def empty(kind: Any, **config: Any) -> Any:
    with torch.device("meta"):
        return kind(**config)


def file_of(network: Any, origin: Any) -> tuple[dict[str, Tensor], dict[str, Origin]]:
    """The tensors of an original file of a network, and where each parameter is among them."""
    state = network.state_dict()
    origins = {name: origin(name, NOTHING) for name in state}
    made = {
        one.key: torch.empty(one.stored_shape(tuple(state[name].shape)), device="meta") for name, one in origins.items()
    }
    return made, origins


@pytest.mark.parametrize("family", list(UNETS))
def test_unet(family: str) -> None:
    network = empty(diffusers.UNet2DConditionModel, sample_size=64, **UNETS[family])
    made, origins = file_of(network, names.ldm_unet(network.config))
    assert len(made) == len(origins)
    given = {f"model.diffusion_model.{key}": tensor for key, tensor in made.items()}
    found = theirs.convert_ldm_unet_checkpoint(given, dict(network.config))
    assert found.keys() == origins.keys()
    assert all(found[name] is made[origin.key] for name, origin in origins.items())


@pytest.mark.parametrize("family", list(UNETS))
def test_the_configuration_is_read_off_the_header(family: str) -> None:
    network = empty(diffusers.UNet2DConditionModel, sample_size=64, **UNETS[family])
    made, _ = file_of(network, names.ldm_unet(network.config))
    from pathlib import Path

    weights = Weights({key: Stored(Path("x"), key, "F16", tuple(one.shape)) for key, one in made.items()})
    read = configs.unet(weights, configs.known_of(family)["unet"])
    again = empty(diffusers.UNet2DConditionModel, **read)
    shapes = {name: tuple(one.shape) for name, one in network.state_dict().items()}
    assert {name: tuple(one.shape) for name, one in again.state_dict().items()} == shapes
    heads = [layer.heads for name, layer in network.named_modules() if name.endswith("attn1")]
    assert [layer.heads for name, layer in again.named_modules() if name.endswith("attn1")] == heads


def test_autoencoder() -> None:
    network = empty(
        diffusers.AutoencoderKL, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    made, origins = file_of(network, names.ldm_autoencoder(network.config))
    given = {f"first_stage_model.{key}": tensor for key, tensor in made.items()}
    found = theirs.convert_ldm_vae_checkpoint(given, dict(network.config))
    assert found.keys() == origins.keys()
    assert all(found[name] is made[origin.key] for name, origin in origins.items())


def numbered(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same file with numbers that tell every element's place, small enough to be held."""
    found, first = {}, 0
    for key, tensor in made.items():
        count = tensor.numel()
        found[key] = torch.arange(first, first + count, dtype=torch.float64).reshape(tensor.shape)
        first += count
    return found


@pytest.mark.parametrize("newer", [False, True])
def test_sd3(newer: bool) -> None:
    fields: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if newer else {}
    network = empty(
        diffusers.SD3Transformer2DModel, sample_size=8, num_layers=3, num_attention_heads=2, attention_head_dim=8,
        caption_projection_dim=16, joint_attention_dim=24, pooled_projection_dim=8, pos_embed_max_size=6, **fields,
    )  # fmt: skip
    made, origins = file_of(network, names.sd3(network.config))
    file = numbered(made)
    found = theirs.convert_sd3_transformer_checkpoint_to_diffusers(dict(file))
    assert found.keys() == origins.keys()
    assert all(torch.equal(found[name], origin.cut(file[origin.key])) for name, origin in origins.items())


def test_flux() -> None:
    """At full width, which diffusers' converter takes for granted, with one block of each kind."""
    network = empty(diffusers.FluxTransformer2DModel, num_layers=1, num_single_layers=1, guidance_embeds=True)
    made, origins = file_of(network, names.flux)
    # rows alone are told apart: every column of a row is the same number
    file = {
        key: (
            torch.arange(tensor.shape[0], dtype=torch.float32)[:, None]
            if tensor.ndim > 1
            else torch.arange(tensor.shape[0])
        )
        for key, tensor in made.items()
    }
    found = theirs.convert_flux_transformer_checkpoint_to_diffusers(dict(file))
    assert found.keys() == origins.keys()
    assert all(torch.equal(found[name], origin.cut(file[origin.key])) for name, origin in origins.items())


def test_open_clip() -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=1,
                            vocab_size=50, projection_dim=16, bos_token_id=48, eos_token_id=49)  # fmt: skip
    with torch.device("meta"):
        network = CLIPTextModelWithProjection(config)
    made, origins = file_of(network, names.open_clip)
    file = numbered(made)
    given = {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in file.items()}
    with torch.device("meta"):
        found = theirs.convert_open_clip_checkpoint(network, dict(given), prefix="conditioner.embedders.1.model.")
    ours = {name.removeprefix("text_model."): origin.cut(file[origin.key]) for name, origin in origins.items()}
    for name, tensor in found.items():
        if not name.endswith("position_ids"):
            assert torch.equal(tensor, ours[name.removeprefix("text_model.")]), name
