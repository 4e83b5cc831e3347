"""PEFT's own layers are the reference: the same file gives the same network output."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdkit_lora import KeyMap, open_adapter
from sdkit_lora.applying import Active, Bypass, Table

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")


def fill(network: nn.Module, scale: float = 0.2, seed: int = 0) -> nn.Module:
    """Every weight drawn from a generator of its own: constructors draw from the global one, which tests refuse."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return network.eval().requires_grad_(False)


def make(kind: type, **config: Any) -> nn.Module:
    with torch.device("meta"):
        network = kind(**config)
    return fill(network.to_empty(device="cpu"))


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return make(
        diffusers.UNet2DConditionModel,
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def output(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 7, 24, generator=generator)
    with torch.no_grad():
        result: Tensor = network(x, torch.tensor([500.0, 500.0]), states).sample
    return result


def with_file(network: nn.Module, path: Path, strength: float = 1.0, *, merge: bool = False) -> Tensor:
    keys = KeyMap.of({"unet": network})
    deltas = open_adapter(path).fitted(keys).deltas
    with Bypass(Table.of(keys, [Active("x", deltas, strength, merge)])):
        return output(network)


LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "proj_in"]
CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, use_rslora=True),
    "patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=LINEAR, rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 8}
    ),
    "conv": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=["conv1", "conv2", "conv"]),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=[*LINEAR, "conv1"]),
    "loha-tucker": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=["conv1"], use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=[*LINEAR, "conv1"]),
    "lokr-both": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=LINEAR, decompose_both=True),
}


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("merge", [False, True])
def test_a_peft_folder_gives_what_peft_gives(unet: nn.Module, tmp_path: Path, name: str, merge: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(), _drawing():
        theirs = peft.get_peft_model(copy.deepcopy(unet), CONFIGS[name]())
    with torch.no_grad():
        for key, tensor in theirs.named_parameters():
            if re.search("lora_[AB]|hada_|lokr_", key):  # magnitudes stay the norms of the weights
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    theirs.eval()
    theirs.save_pretrained(tmp_path / name)
    wanted = output(theirs)
    assert (wanted - output(unet)).abs().max() > 1e-2
    got = with_file(unet, _as_lycoris(tmp_path / name, theirs, CONFIGS[name]()), merge=merge)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def _as_lycoris(folder: Path, theirs: Any, config: Any) -> Path:
    """PEFT's LoHa and LoKr keep their scale in a configuration of their own; as a file others write, it is ``alpha``."""
    if isinstance(config, peft.LoraConfig):
        return folder
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    stems = {key.rpartition(".")[0] for key in tensors}
    path = folder / "lycoris.safetensors"
    save_file(
        {
            **{key.replace("base_model.model.", "diffusion_model."): value for key, value in tensors.items()},
            **{
                stem.replace("base_model.model.", "diffusion_model.") + ".alpha": torch.tensor(float(config.alpha))
                for stem in stems
            },
        },
        path,
    )
    return path


class _drawing:  # noqa: N801
    """PEFT draws the first values of its layers from the global generator: the one place where a test lets it."""

    def __enter__(self) -> None:
        self._kept = {}
        for name in ("kaiming_uniform_", "normal_", "zeros_", "ones_", "xavier_uniform_"):
            self._kept[name] = getattr(nn.init, name)
            setattr(nn.init, name, lambda tensor, *a, **k: tensor.data.zero_())

    def __exit__(self, *error: object) -> None:
        for name, value in self._kept.items():
            setattr(nn.init, name, value)


def test_a_diffusers_file_gives_what_diffusers_gives(unet: nn.Module, tmp_path: Path) -> None:
    """``save_lora_adapter`` writes the scale into the file's metadata, not beside the tensors."""
    theirs: Any = copy.deepcopy(unet)
    with _drawing():
        theirs.add_adapter(peft.LoraConfig(r=4, lora_alpha=10, target_modules=LINEAR))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, tensor in theirs.named_parameters():
            if "lora_" in key:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(theirs),
        unet_lora_adapter_metadata=theirs.peft_config["default"].to_dict(),
    )
    got = with_file(unet, tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(got, output(theirs), rtol=1e-4, atol=1e-4)


def kohya_names(unet: nn.Module) -> dict[str, nn.Module]:
    return {name: one for name, one in unet.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))}


def test_ldm_names_are_those_of_diffusers_own_converter(unet: nn.Module) -> None:
    """Every layer has the name from which diffusers' single-file loader makes it."""
    convert: Any = importlib.import_module("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint

    keys = KeyMap.of({"unet": unet})
    marks = {name: torch.full((1,), float(k)) for k, (name, _) in enumerate(unet.state_dict().items())}
    ldm = {}
    for name in marks:
        path, _, parameter = name.rpartition(".")
        names = [
            stem.removeprefix("model.diffusion_model.")
            for stem, places in keys.places.items()
            if stem.startswith("model.diffusion_model.") and [p.path for p in places] == [path]
        ]
        own = [one for one in names if one != path or not re.match("(down|up|mid)_block|conv_|time_emb", one)]
        assert len(own) == 1, (name, names)
        ldm[f"model.diffusion_model.{own[0]}.{parameter}"] = marks[name]
    config = dict(unet.config)  # type: ignore[arg-type]
    back = convert(dict(ldm), config)
    assert {name: value.item() for name, value in back.items()} == {name: value.item() for name, value in marks.items()}


def test_fused_rows_of_sd3_and_flux_go_to_their_layers(tmp_path: Path) -> None:
    flux = make(
        diffusers.FluxTransformer2DModel,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )
    generator = torch.Generator().manual_seed(2)
    down, up = torch.randn(3, 16, generator=generator), torch.randn(48, 3, generator=generator)
    wide = torch.randn(16 * 3 + 64, 3, generator=generator)
    path = tmp_path / "flux.safetensors"
    save_file(
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down,
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": up,
            "lora_unet_single_blocks_0_linear1.lora_down.weight": down.clone(),
            "lora_unet_single_blocks_0_linear1.lora_up.weight": wide,
        },
        path,
    )
    keys = KeyMap.of({"transformer": flux})
    deltas = {place.path: delta for place, delta in open_adapter(path).fitted(keys).deltas.items()}
    for k, name in enumerate(("attn.to_q", "attn.to_k", "attn.to_v")):
        for block, whole in (("transformer_blocks", up), ("single_transformer_blocks", wide)):
            layer = flux.get_submodule(f"{block}.0.{name}")
            got = deltas[f"{block}.0.{name}"].matrix(layer.weight)  # type: ignore[arg-type]
            torch.testing.assert_close(got, (whole @ down)[16 * k : 16 * (k + 1)])
    layer = flux.get_submodule("single_transformer_blocks.0.proj_mlp")
    torch.testing.assert_close(deltas["single_transformer_blocks.0.proj_mlp"].matrix(layer.weight), (wide @ down)[48:])  # type: ignore[arg-type]
