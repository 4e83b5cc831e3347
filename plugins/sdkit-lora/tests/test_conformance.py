"""Adapters by the kit's rules, on the model that is always there."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sdkit
from sdkit.testing import Adaptation, AdapterConformance
from sdkit_lora import Lora, targets
from sdkit_lora.deltas import Dora, LowRank
from sdkit_lora.keys import KeyMap, Place


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float() * 0.2


@cache
def parts() -> sdkit.Parts[Any, Any, Any]:
    model = sdkit.load("emoji")
    return sdkit.Parts(model.encoder, model.denoiser, None, model.autoencoder)  # type: ignore[arg-type]


@cache
def file(name: str) -> str:
    """Adapters of linear layers and convolutions, in both networks; one as LoHa, one as LoKr, one that fits nothing."""
    folder = Path(mkdtemp())
    tensors: dict[str, Tensor] = {}
    seed = sum(name.encode())
    for target, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        network = targets(parts().encoder, parts().denoiser)[target]
        kinds = [(p, m) for p, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        for k, (path, layer) in enumerate(kinds[:: 3 if target == "unet" else 2]):
            out, *rest = layer.weight.shape
            wide, ones = rest[0] * (9 if rest[1:] == [3, 3] else 1), [1] * (len(rest) - 1)
            stem = prefix + path.replace(".", "_")
            shapes: dict[str, tuple[int, ...]]
            if name == "loha":
                shapes = {"hada_w1_a": (out, 2), "hada_w1_b": (2, wide), "hada_w2_a": (out, 2), "hada_w2_b": (2, wide)}
            elif name == "lokr" and out % 2 == 0 == rest[0] % 2:
                shapes = {"lokr_w1": (2, 2), "lokr_w2": (out // 2, rest[0] // 2, *rest[1:])}
            else:
                shapes = {"lora_down.weight": (4, *rest), "lora_up.weight": (out, 4, *ones)}
            for m, (suffix, shape) in enumerate(shapes.items()):
                tensors[f"{stem}.{suffix}"] = drawn(*shape, seed=seed + 10 * k + m) * (0.3 if "lokr" in suffix else 1.0)
            if name == "dora" and "lora_up.weight" in shapes:
                tensors[f"{stem}.dora_scale"] = layer.weight.detach().flatten(1).norm(dim=1).reshape(-1, 1, *ones) * 1.1
    if name == "misfit":
        tensors = {key: value[..., :3] if "down" in key else value for key, value in tensors.items()}
        tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def adaptation(name: str) -> Adaptation:
    return Adaptation(
        make=lambda strength: Lora(file(name), strength),
        parts=parts(),
        shape=(8, 16, 16),
        other=lambda strength: Lora(file("other"), strength),
        merged=lambda strength: Lora(file(name), strength, merge=True),
        broken=(Lora("missing.safetensors"), Lora(file("misfit"))),
        per_image=True,
        tolerance=2e-3,
    )


class TestLora(AdapterConformance):
    adapter = adaptation("lora")


class TestLoha(AdapterConformance):
    adapter = adaptation("loha")


class TestLokr(AdapterConformance):
    adapter = adaptation("lokr")


class TestDora(AdapterConformance):
    adapter = adaptation("dora")


def test_the_dora_file_is_read_as_dora() -> None:
    from sdkit_lora import open_adapter

    keys = KeyMap.of(targets(parts().encoder, parts().denoiser))
    deltas = open_adapter(file("dora")).fitted(keys).deltas
    assert all(isinstance(delta, Dora) and isinstance(delta.inner, LowRank) for delta in deltas.values())
    assert {place.target for place in deltas} == {"unet", "text_encoder"} == {p.target for p in deltas}
    assert isinstance(next(iter(deltas)), Place)
