"""Where in a model a key of a file belongs.

The map is made from the model, in every naming scheme, and the file's keys are looked up in it. The other way round,
from ``down_blocks_0_attentions_1`` back to dots, is ambiguous.

A *target* is one network of a model, by the name diffusers has for it: ``unet``, ``transformer``, ``text_encoder``,
``text_encoder_2``, ``text_encoder_3``. A *stem* is a key without the suffix that says which factor it is.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from attrs import field, frozen
from torch import Tensor, nn

from sdkit import Guided, Inpainted, NetworkDenoiser

__all__ = ["KeyMap", "Place", "inside", "targets"]

DENOISERS = ("unet", "transformer")
DOTTED = {
    "unet": ("unet.", "diffusion_model.", "model.diffusion_model.", "base_model.model.unet.", "base_model.model.", ""),
    "transformer": ("transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", ""),
    "text_encoder": ("text_encoder.", "text_encoders.clip_l.", "text_encoders.clip_l.transformer.", "te1."),
    "text_encoder_2": ("text_encoder_2.", "text_encoders.clip_g.", "text_encoders.clip_g.transformer.", "te2."),
    "text_encoder_3": ("text_encoder_3.", "text_encoders.t5xxl.", "text_encoders.t5xxl.transformer.", "te3."),
}
"""What stands before a dotted path, per target."""
JOINED = {
    "unet": ("lora_unet_", "lycoris_unet_", "lycoris_"),
    "transformer": ("lora_unet_", "lora_transformer_", "lycoris_transformer_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_", "lycoris_text_encoder_"),
    "text_encoder_2": ("lora_te2_", "lycoris_text_encoder_2_"),
    "text_encoder_3": ("lora_te3_", "lycoris_text_encoder_3_"),
}
"""What stands before a path whose dots are underscores, per target."""


@frozen(cache_hash=True)
class Place:
    """A weight or bias of a model, or some of its rows seen from a file's fused tensor.

    Attributes:
        target: Which network.
        path: Dotted path of the module in it.
        parameter: ``"weight"`` or ``"bias"``.
        rows: (start, stop): the rows of the *file's* tensor that belong here, or None for all.
    """

    target: str
    path: str
    parameter: str = "weight"
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.target}.{self.path}.{self.parameter}"


def targets(*parts: object) -> dict[str, nn.Module]:
    """The networks that adapters can change, found in encoders, denoisers and models.

    A part may say so itself by ``adapter_targets``, a mapping from target names to modules. Otherwise a denoiser's
    network is ``unet`` if it has down blocks or convolutions, else ``transformer``; modules in an encoder's fields are
    ``text_encoder`` and, for further ones, ``text_encoder_2`` and so on.
    """
    found: dict[str, nn.Module] = {}
    for part in parts:
        said = getattr(part, "adapter_targets", None)
        if said is not None:
            found.update({name: _plain(module) for name, module in said.items()})
            continue
        part = inside(part)
        if isinstance(part, NetworkDenoiser):
            found.update(targets_of_network(part.network))
        else:
            found.update(_texts(part))
    return found


def _texts(encoder: object) -> dict[str, nn.Module]:
    """An encoder's networks, in the order of its fields.

    A field that is None keeps its number: XL's refiner has no first text encoder, and its only one is still the second.
    """
    found: dict[str, nn.Module] = {}
    fields = [encoder] if isinstance(encoder, nn.Module) else list(_fields(encoder))
    number = 0
    for value in fields:
        number += value is None
        for module in _modules(value):
            number += 1
            found["text_encoder" if number == 1 else f"text_encoder_{number}"] = _plain(module)
    return found


def _modules(value: object, depth: int = 2) -> list[nn.Module]:
    """The networks in a value of an encoder: itself, or in its fields."""
    if isinstance(value, nn.Module):
        return [value]
    if depth == 0 or not attrs.has(type(value)):
        return []
    return [module for inner in _fields(value) for module in _modules(inner, depth - 1)]


def targets_of_network(network: object) -> dict[str, nn.Module]:
    """The denoising network under its target's name."""
    said = getattr(network, "adapter_targets", None)
    if said is not None:
        return {name: _plain(module) for name, module in said.items()}
    modules = [network] if isinstance(network, nn.Module) else [m for m in _fields(network) if isinstance(m, nn.Module)]
    if not modules:
        return {}
    plain = _plain(modules[0])
    convolutions = any(isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) for module in plain.modules())
    blocks = hasattr(plain, "down_blocks") or (convolutions and not hasattr(plain, "transformer_blocks"))
    return {"unet" if blocks else "transformer": plain}


def inside(part: object, *, deep: bool = True) -> object:
    """The denoiser under guidance, masks and adapters; with ``deep`` under any wrapper with a ``denoiser``."""
    while not isinstance(part, NetworkDenoiser):
        inner = getattr(part, "denoiser", None) or getattr(part, "inner", None)
        if inner is None or not (deep or isinstance(part, (Guided, Inpainted))):
            break
        part = inner
    return part


def _fields(value: Any) -> Iterator[object]:
    if attrs.has(type(value)):
        yield from (getattr(value, one.name) for one in attrs.fields(type(value)))
    elif hasattr(value, "__dict__"):
        yield from vars(value).values()


def _plain(module: nn.Module) -> nn.Module:
    """The module that was compiled, if it was: its paths are the ones files know."""
    original: nn.Module = getattr(module, "_orig_mod", module)
    return original


@frozen(eq=False)
class KeyMap:
    """Stems to places, in all naming schemes.

    Attributes:
        modules: The networks, by target.
        stems: By target, every stem a file could use; an empty tuple marks one that two modules would share.
    """

    modules: Mapping[str, nn.Module]
    stems: tuple[Mapping[str, tuple[Place, ...]], ...] = field(repr=False)
    _layers: Mapping[str, Mapping[str, nn.Module]] = field(repr=False)

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module]) -> KeyMap:
        """The map of these networks; what is worked out for a network is kept as long as the network."""
        known = {target: _known(target, network) for target, network in modules.items()}
        stems = tuple(one.stems for one in known.values())
        return cls(dict(modules), stems, {target: one.layers for target, one in known.items()})

    @property
    def places(self) -> Mapping[str, tuple[Place, ...]]:
        """Every stem with its places."""
        return {stem: self.find(stem) for stems in self.stems for stem in stems}

    def find(self, stem: str) -> tuple[Place, ...]:
        """The places of a stem: several where the file's tensor is fused; none if it has no place here."""
        found = [stems[stem] for stems in self.stems if stem in stems]
        return found[0] if len(found) == 1 else ()

    def parameter(self, place: Place) -> Tensor | None:
        """The weight or bias itself, or None where the layer has no such thing."""
        layer = self._layers[place.target].get(place.path)
        if layer is None:
            layer = self.modules[place.target].get_submodule(place.path)
        value = layer._parameters.get(place.parameter)
        if value is None:  # not every weight is a parameter
            value = getattr(layer, place.parameter, None)
        return value if isinstance(value, Tensor) else None


@frozen(eq=False)
class _Known:
    """What is worked out once for a network; its layers are held, itself is not."""

    shape: int
    stems: Mapping[str, tuple[Place, ...]]
    layers: Mapping[str, nn.Module]


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, _Known]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _shape(network: nn.Module) -> int:
    """Changes when a layer is put in, taken out or exchanged. ``network.modules()`` is ten times slower."""
    found, waiting = [], [network]
    while waiting:
        module = waiting.pop()
        found.append(id(module))
        waiting += [inner for inner in module._modules.values() if inner is not None]
    return hash(tuple(found))


def _known(target: str, network: nn.Module) -> _Known:
    shape = _shape(network)
    with _LOCK:
        kept = _KNOWN.get(network, {}).get(target)
    if kept is not None and kept.shape == shape:
        return kept
    places: dict[str, tuple[Place, ...]] = {}

    def add(stem: str, where: tuple[Place, ...]) -> None:
        places[stem] = where if places.get(stem, where) == where else ()

    for path, where in _paths(target, network):
        for prefix in DOTTED.get(target, (f"{target}.",)):
            add(prefix + path, where)
        for prefix in JOINED.get(target, (f"lora_{target}_",)):
            add(prefix + path.replace(".", "_"), where)
    layers = {path: module for path, module in network.named_modules() if path}
    made = _Known(shape, places, layers)
    with _LOCK:
        _KNOWN.setdefault(network, {})[target] = made
    return made


def _paths(target: str, network: nn.Module) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """Every layer's path and its names in other tools, with its places."""
    own = [path for path, module in network.named_modules() if path and isinstance(_weight(module), Tensor)]
    layers = {path: (Place(target, path),) for path in own}
    yield from layers.items()
    if target.startswith("text_encoder"):
        # transformers dropped this level in 5.0; files have it
        for path, where in layers.items():
            if not path.startswith("text_model."):
                yield f"text_model.{path}", where
            else:
                yield path.removeprefix("text_model."), where
    elif hasattr(network, "down_blocks"):
        for path, where in layers.items():
            for other in _ldm_unet(path, network):
                yield other, where
    elif any(path.startswith("transformer_blocks.0.attn.") for path in own):
        yield from _fused(target, layers, network)


def _weight(module: nn.Module) -> object:
    return getattr(module, "weight", None)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _ldm_unet(path: str, network: Any) -> Iterator[str]:
    """The name of a diffusers U-Net's layer in the original (LDM, sgm, ComfyUI) layout."""
    if path in UNET_ENDS:
        yield UNET_ENDS[path]
        return
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", path)
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path)
    if middle:
        part, j, rest = middle[1], int(middle[2]), middle[3]
        if part == "resnets":
            yield f"middle_block.{2 * j}.{_resnet(rest)}"
        else:
            yield f"middle_block.{2 * j + 1}.{rest}"
    elif block:
        side, i, part, j, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        blocks = network.down_blocks if side == "down" else network.up_blocks
        first = sum(len(one.resnets) for one in list(blocks)[:i])
        if side == "down":
            first += 1 + i  # the convolution at the start, and a downsampler after each block before this one
        has_attention = bool(len(getattr(blocks[i], "attentions", ()) or ()))
        name = "input_blocks" if side == "down" else "output_blocks"
        if part == "resnets":
            yield f"{name}.{first + j}.0.{_resnet(rest)}"
        elif part == "attentions":
            yield f"{name}.{first + j}.1.{rest}"
        elif part == "downsamplers":
            yield f"{name}.{first + len(blocks[i].resnets)}.0.{rest.replace('conv', 'op')}"
        else:
            yield f"{name}.{first + len(blocks[i].resnets) - 1}.{1 + has_attention}.{rest}"


def _resnet(rest: str) -> str:
    return RESNET.get(rest, rest)


FUSED = {
    # SD 3: original name -> the layers whose rows it holds, in order
    "joint_blocks.{i}.x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "joint_blocks.{i}.context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "joint_blocks.{i}.x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "joint_blocks.{i}.x_block.attn.proj": ("attn.to_out.0",),
    "joint_blocks.{i}.x_block.attn2.proj": ("attn2.to_out.0",),
    "joint_blocks.{i}.context_block.attn.proj": ("attn.to_add_out",),
    "joint_blocks.{i}.x_block.mlp.fc1": ("ff.net.0.proj",),
    "joint_blocks.{i}.x_block.mlp.fc2": ("ff.net.2",),
    "joint_blocks.{i}.context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "joint_blocks.{i}.context_block.mlp.fc2": ("ff_context.net.2",),
    "joint_blocks.{i}.x_block.adaLN_modulation.1": ("norm1.linear",),
    "joint_blocks.{i}.context_block.adaLN_modulation.1": ("norm1_context.linear",),
    # FLUX, blocks of two streams
    "double_blocks.{i}.img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "double_blocks.{i}.txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "double_blocks.{i}.img_attn.proj": ("attn.to_out.0",),
    "double_blocks.{i}.txt_attn.proj": ("attn.to_add_out",),
    "double_blocks.{i}.img_mlp.0": ("ff.net.0.proj",),
    "double_blocks.{i}.img_mlp.2": ("ff.net.2",),
    "double_blocks.{i}.txt_mlp.0": ("ff_context.net.0.proj",),
    "double_blocks.{i}.txt_mlp.2": ("ff_context.net.2",),
    "double_blocks.{i}.img_mod.lin": ("norm1.linear",),
    "double_blocks.{i}.txt_mod.lin": ("norm1_context.linear",),
    # FLUX in XLabs' naming
    "double_blocks.{i}.processor.qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "double_blocks.{i}.processor.qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "double_blocks.{i}.processor.proj_lora1": ("attn.to_out.0",),
    "double_blocks.{i}.processor.proj_lora2": ("attn.to_add_out",),
}
FUSED_SINGLE = {
    "single_blocks.{i}.linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "single_blocks.{i}.linear2": ("proj_out",),
    "single_blocks.{i}.modulation.lin": ("norm.linear",),
    "single_blocks.{i}.processor.qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "single_blocks.{i}.processor.proj_lora": ("proj_out",),
}
TRANSFORMER_ENDS = {
    "x_embedder.proj": "pos_embed.proj",  # SD 3
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "img_in": "x_embedder",  # FLUX
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}


def _fused(
    target: str, layers: Mapping[str, tuple[Place, ...]], network: nn.Module
) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """Original names of SD 3's and FLUX's layers; queries, keys and values are one tensor there."""
    for blocks, table in (("transformer_blocks", FUSED), ("single_transformer_blocks", FUSED_SINGLE)):
        count = len(getattr(network, blocks, ()))
        for name, parts in table.items():
            for i in range(count):
                paths = [f"{blocks}.{i}.{part}" for part in parts]
                if all(path in layers for path in paths):
                    yield name.format(i=i), _windows(target, paths, network)
    for other, own in TRANSFORMER_ENDS.items():
        if own in layers:
            yield other, layers[own]


def _windows(target: str, paths: list[str], network: nn.Module) -> tuple[Place, ...]:
    if len(paths) == 1:
        return (Place(target, paths[0]),)
    found, start = [], 0
    for path in paths:
        weight = _weight(network.get_submodule(path))
        stop = start + (weight.shape[0] if isinstance(weight, Tensor) else 0)
        found.append(Place(target, path, rows=(start, stop)))
        start = stop
    return tuple(found)
