"""The parts of a model on disk, whatever the layout, and the networks made of them.

A network is built on the meta device, where it takes no memory. Where each of its parameters comes from (an `Origin`)
is known by name, so missing tensors and wrong shapes are found from the files' headers alone; then tensors are read one
at a time, converted while reading, and assigned.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdkit import FileError
from sdkit_diffusers.tensors import READABLE, Stored, Weights, some

if TYPE_CHECKING:
    from sdkit_diffusers.tokens import TextTokenizer

__all__ = ["Origin", "Part", "Plan", "Source", "fill", "plan", "saved", "weight_files"]


@frozen
class Origin:
    """Where a parameter is in a file.

    Attributes:
        key: Name of the stored tensor.
        first: The parameter is the rows ``first / of`` ...
        last: ... to ``last / of`` of the stored tensor (fused query, key and value are one tensor in some layouts).
        of: See ``first``.
        transposed: It is stored transposed.
        swapped: Its two halves are stored in the other order.
    """

    key: str
    first: int = 0
    last: int = 1
    of: int = 1
    transposed: bool = False
    swapped: bool = False

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the stored tensor's shape must be for a parameter of ``shape``."""
        full = (shape[0] * self.of // (self.last - self.first), *shape[1:]) if shape else shape
        return full[::-1] if self.transposed else full

    def cut(self, stored: Tensor) -> Tensor:
        """The parameter out of the stored tensor."""
        made = stored.T if self.transposed else stored
        if self.of > 1:
            unit = made.shape[0] // self.of
            made = made[self.first * unit : self.last * unit]
        return torch.cat([*reversed(made.chunk(2))]) if self.swapped else made


@frozen(eq=False)
class Part:
    """One network on disk.

    Attributes:
        name: What messages call it: ``"unet"``, ``"text_encoder_2"``, ...
        make: The network from ``config``; called on the meta device.
        config: What diffusers or transformers build the network from.
        weights: Its tensors.
        origin: Where a parameter is among them, from the parameter's name.
        full_precision: Whether a parameter stays float32 when the others become float16, from its name.
    """

    name: str
    make: Callable[[Mapping[str, Any]], nn.Module] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    weights: Weights
    origin: Callable[[str, Weights], Origin] = field(repr=False)
    full_precision: Callable[[str], bool] = field(default=lambda name: False, repr=False)


@frozen(eq=False)
class Source:
    """A model on disk.

    Attributes:
        path: The folder or file.
        family: ``"sd1"``, ``"sd2"``, ``"sdxl"``, ``"sdxl-refiner"``, ``"sd3"`` or ``"flux"``.
        parts: Its networks by name; a missing optional one is not in it.
        tokenizers: One per text encoder, by the name of the text encoder.
        scheduler: What it was trained on, as diffusers writes it in ``scheduler_config.json``.
        facts: Settings of the pipeline beside its parts, as in ``model_index.json``.
    """

    path: Path
    family: str
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, TextTokenizer] = field(repr=False)
    scheduler: Mapping[str, Any] = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def saved(name: str, weights: Weights) -> Origin:
    """Where a parameter is in a file that diffusers or transformers saved, this release or an earlier one."""
    candidates = [name, f"text_model.{name}", name.removeprefix("text_model.")]
    if name == "encoder.embed_tokens.weight":
        candidates.append("shared.weight")
    if name == "shared.weight":
        candidates.append("encoder.embed_tokens.weight")
    for old, new in OLD_ATTENTION.items():  # autoencoders saved before diffusers 0.17
        candidates.append(name.replace(f".{new}.", f".{old}."))
    return Origin(next((candidate for candidate in candidates if candidate in weights), name))


@frozen(eq=False)
class Plan:
    """A network without memory, and where its parameters are; the files are known to hold them all."""

    part: Part
    network: nn.Module
    origins: Mapping[str, Origin]

    @property
    def size(self) -> int:
        """Number of elements of all parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def plan(part: Part) -> Plan:
    """The network on the meta device, every parameter found in the headers.

    Raises:
        FileError: the configuration makes no network, or tensors are missing, of another shape, or packed.
    """
    try:
        with torch.device("meta"):
            network = part.make(part.config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
        raise FileError(f"The configuration of the {part.name} makes no network: {error}") from error
    wanted = network.state_dict()
    origins = {name: part.origin(name, part.weights) for name in wanted}
    _check(part, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, origins)
    return Plan(part, network, origins)


def _check(part: Part, shapes: Mapping[str, tuple[int, ...]], origins: Mapping[str, Origin]) -> None:
    keys = dict.fromkeys(origin.key for origin in origins.values())
    missing = [key for key in keys if key not in part.weights]
    if missing:
        raise FileError(
            f"The {part.name} lacks the tensors {some(missing)}; the file is incomplete or of another kind."
        )
    for name, origin in origins.items():
        stored = part.weights.stored[origin.key]
        needed = origin.stored_shape(shapes[name])
        if _bare(stored.shape) != _bare(needed):
            raise FileError(
                f"The {part.name}'s tensor {origin.key!r} has the shape {stored.shape}, but {needed} is needed; the "
                "file is damaged or of another kind."
            )
        if stored.dtype not in READABLE:
            raise FileError(f"The {part.name}'s tensor {origin.key!r} is stored as {stored.dtype}, which is no weight.")
    scales = [key for key in part.weights.stored if key.endswith((".scale_weight", ".weight_scale", "scaled_fp8"))]
    if scales:
        raise FileError(
            f"The {part.name} is quantised with scales of its own ({some(scales)}), which is not supported; use the "
            "float16 or bfloat16 file."
        )
    left = [key for key in part.weights.stored if key not in keys and not key.endswith(HARMLESS)]
    if left:
        warnings.warn(f"The {part.name} does not use the tensors {some(left)} of the file.", stacklevel=2)


HARMLESS = ("position_ids", "logit_scale", "num_batches_tracked")


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the trailing ones that tell a 1 x 1 convolution from a linear layer."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def fill(planned: Plan, *, dtype: torch.dtype, device: str) -> nn.Module:
    """The network with its weights, in eval mode and without gradients.

    Raises:
        FileError: a file cannot be read, or was changed meanwhile.
    """
    part, network = planned.part, planned.network
    wanted = network.state_dict()
    state: dict[str, Tensor] = {}
    made: dict[tuple[Origin, torch.dtype], Tensor] = {}  # what is one tensor in the file stays one in memory
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for name, origin in planned.origins.items():
            keep = dtype == torch.float16 and part.full_precision(name)
            kind = torch.float32 if keep else dtype
            if (origin, kind) not in made:
                path = part.weights.stored[origin.key].file
                if path not in files:
                    files[path] = stack.enter_context(_opened(path))
                tensor = origin.cut(_read(files[path], part.weights.stored[origin.key])).reshape(wanted[name].shape)
                made[origin, kind] = torch.empty(tensor.shape, dtype=kind, device=device).copy_(tensor)
            state[name] = made[origin, kind]
    network.load_state_dict(state, assign=True)
    _rest(network, device)
    return network.eval().requires_grad_(False)


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path.name!r} cannot be read: {error}") from error


def _read(file: Any, stored: Stored) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(stored.name)
    except (OSError, SafetensorError) as error:
        raise FileError(f"The tensor {stored.name!r} of {stored.file.name!r} cannot be read: {error}") from error
    return tensor


def _rest(network: nn.Module, device: str) -> None:
    """Buffers that no file holds; only the positions of CLIP's tokens are known to be such."""
    for name, buffer in list(network.named_buffers()):
        if not buffer.is_meta:
            continue
        if not name.endswith("position_ids"):
            raise FileError(f"The network's buffer {name!r} is in no file, and how to make it is not known.")
        owner = network.get_submodule(name.rpartition(".")[0])
        owner.position_ids = torch.arange(math.prod(buffer.shape), device=device).reshape(buffer.shape)


def weight_files(parts: Iterable[Part]) -> tuple[Path, ...]:
    """The files that hold the parts' tensors."""
    return tuple(dict.fromkeys(stored.file for part in parts for stored in part.weights.stored.values()))
