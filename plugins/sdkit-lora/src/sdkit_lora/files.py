"""Adapter files: read whole, once per content, and told about."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from attrs import define, field, frozen
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from sdkit import FileError, registry
from sdkit_lora.errors import AdapterError, IncompatibleAdapter, UnmatchedKeys
from sdkit_lora.formats import Parsed
from sdkit_lora.keys import KeyMap

__all__ = ["Adapter", "family_of_model", "forget", "open_adapter", "write_whole"]

KEPT = 32
"""How many files, and how many meanings of files for each model, are kept in memory; the oldest goes first."""
KEPT_BYTES = 2**30
"""How much the kept files may hold together; the last one is kept whatever it holds."""
_TRIGGERS = ("ss_trigger_words", "modelspec.trigger_phrase", "trigger_words", "trigger")


@frozen(eq=False)
class Adapter:
    """A file of adapter weights in memory.

    Attributes:
        name: The file's name without its folder.
        sha256: Hash of its content, hexadecimal.
        tensors: What it holds, as stored.
        metadata: What its header says besides; for a PEFT folder, ``adapter_config`` is its JSON text.
    """

    name: str
    sha256: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def format(self) -> str:
        """The name of the ``adapter-format`` component that recognises it: others' formats are asked before sdkit's.

        Raises:
            AdapterError: none does.
        """
        for name in _formats():
            if registry().make("adapter-format", name).recognises(self.tensors.keys(), self.metadata):
                return name.removeprefix("lora:")
        some = ", ".join(sorted(self.tensors)[:3])
        names = ", ".join(name.removeprefix("lora:") for name in _formats())
        raise AdapterError(f"{self.name!r} is in no adapter format sdkit knows ({names}); its keys begin {some}.")

    def trigger(self) -> str:
        """The words that call what it was trained on, if the file says them."""
        return next((self.metadata[name] for name in _TRIGGERS if self.metadata.get(name)), "")

    def family(self) -> str:
        """The family of models it was made for, told from its keys and shapes; empty if they do not tell."""
        keys = self.tensors.keys()
        if any("double_blocks" in key or "single_transformer_blocks" in key or "single_blocks" in key for key in keys):
            return "flux"
        if any("joint_blocks" in key or "add_k_proj" in key or "context_block" in key for key in keys):
            return "sd3"
        widths = {
            tensor.shape[1]
            for key, tensor in self.tensors.items()
            if re.search(r"attn2[._](to_k|to_v)[._].*(down|lora_A(\.default)?)\.weight$", key) and tensor.ndim > 1
        }
        for width, family in _BY_CONTEXT.items():
            if width in widths:
                return family
        if any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in keys):
            return "sdxl"
        return self.metadata.get("ss_base_model_version", "") if "sdkit.trained_with" in self.metadata else ""

    def parsed(self, keys: KeyMap) -> Parsed:
        """What it means for a model; worked out once per model.

        Raises:
            AdapterError: it is in no known format, or holds what is not supported.
        """
        return self._meaning(keys).parsed

    def _meaning(self, keys: KeyMap) -> _Meaning:
        if not keys.modules:
            raise AdapterError("The model has no network that an adapter could change.")
        networks = tuple(keys.modules.values())
        mark = (self.sha256, self.name, tuple(keys.modules))
        with _LOCK:
            kept = _MEANINGS.get(networks[0], {}).get(mark)
        if kept is not None and all(ref() is one for ref, one in zip(kept.networks, networks, strict=True)):
            return kept
        parsed: Parsed = registry().make("adapter-format", self.format()).read(self.tensors, self.metadata, keys)
        made = _Meaning(parsed, tuple(weakref.ref(network) for network in networks))
        with _LOCK:
            known = _MEANINGS.setdefault(networks[0], {})
            known.pop(mark, None)
            known[mark] = made
            while len(known) > KEPT:
                del known[next(iter(known))]
        return made

    def fitted(self, keys: KeyMap, *, unmatched: str = "error") -> Parsed:
        """What it means for a model, with everything checked that can go wrong later.

        Args:
            keys: The model's map.
            unmatched: ``"error"``, or ``"skip"`` to let keys pass that find no place.

        Raises:
            IncompatibleAdapter: it was made for another family: shapes differ, or nothing finds a place.
            UnmatchedKeys: some keys find no place.
            AdapterError: see `parsed`.
        """
        meaning = self._meaning(keys)
        parsed = meaning.parsed
        if not meaning.fits:
            self._check(parsed, keys)
            meaning.fits = True
        if parsed.unmatched and unmatched == "error":
            shown = ", ".join(parsed.unmatched[:5]) + (", ..." if len(parsed.unmatched) > 5 else "")
            raise UnmatchedKeys(
                f"{len(parsed.unmatched)} of {len(self.tensors)} keys of {self.name!r} find no place in the model "
                f"({shown}); take an adapter made for it, or say unmatched='skip' to do without them."
            )
        return parsed

    def _check(self, parsed: Parsed, keys: KeyMap) -> None:
        """Raises `IncompatibleAdapter` unless every delta fits its weight, and there is one."""
        here, made_for = family_of_model(keys.modules), self.family() or "another family"
        if not parsed.deltas:
            some = ", ".join(sorted(self.tensors)[:3])
            raise IncompatibleAdapter(
                f"{self.name!r} was made for {made_for} and the model is {here or 'of another'}: none of its "
                f"{len(self.tensors)} tensors finds a place (they begin {some}); take an adapter of the model's family."
            )
        for place, delta in parsed.deltas.items():
            weight = keys.parameter(place)
            if weight is not None and not delta.fits(weight.shape):
                raise IncompatibleAdapter(
                    f"{self.name!r} was made for {made_for} and the model is {here or 'of another'}: the {delta.kind} "
                    f"for {place} does not fit its shape {tuple(weight.shape)}; take an adapter of the model's family."
                )


@define(eq=False)
class _Meaning:
    """What a file means for some networks, without keeping them in memory."""

    parsed: Parsed
    networks: tuple[weakref.ref[nn.Module], ...]
    fits: bool = False


def _formats() -> list[str]:
    """Full names of the formats, the most particular first: a file belongs to the first that recognises it."""
    found = [
        (status.name == "lora", f"{status.name}:{component.name}")
        for status in registry().plugins
        for component in status.components
        if component.kind == "adapter-format"
    ]
    return [name for _, name in sorted(found, key=lambda one: one[0])]  # each plugin's in its own order


_LOCK = threading.Lock()
_FILES: OrderedDict[tuple[str, int, int, int], Adapter] = OrderedDict()
_MEANINGS: WeakKeyDictionary[nn.Module, dict[Any, _Meaning]] = WeakKeyDictionary()
_BY_CONTEXT = {768: "sd15", 1024: "sd2", 2048: "sdxl"}


def family_of_model(modules: Mapping[str, nn.Module]) -> str:
    """The family told from the networks themselves; empty if they do not tell."""
    if "transformer" in modules:
        network = modules["transformer"]
        return "flux" if hasattr(network, "single_transformer_blocks") else "sd3"
    for path, module in modules["unet"].named_modules() if "unet" in modules else ():
        if path.endswith("attn2.to_k") and isinstance(module, nn.Linear):
            return _BY_CONTEXT.get(module.in_features, "")
    return ""


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """An adapter from a ``.safetensors`` file, or from a PEFT folder; kept in memory by what it holds.

    Raises:
        FileError: it does not exist, is no safetensors file, or is damaged.
    """
    given = Path(path)
    source, config = given, ""
    if given.is_dir():
        source = given / "adapter_model.safetensors"
        try:
            config = (given / "adapter_config.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(
                f"The folder {given.name!r} is no PEFT adapter: adapter_config.json {_why(error)}."
            ) from error
    if source.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise FileError(
            f"{source.name!r} is a pickle file, which can run any code when it is opened; convert it to safetensors."
        )
    try:
        state = source.stat()
    except OSError as error:
        raise FileError(f"The adapter {given.name!r} {_why(error)}.") from error
    mark = (str(source.resolve()), state.st_size, state.st_mtime_ns, hash(config))
    with _LOCK:
        kept = _FILES.get(mark)
        if kept is not None:
            _FILES.move_to_end(mark)
            return kept
    made = _read(source, given.name, config)
    with _LOCK:
        # the same content under another name, or touched, is the same adapter
        same = next((one for one in _FILES.values() if one.sha256 == made.sha256 and one.name == made.name), made)
        _FILES[mark] = same
        while len(_FILES) > KEPT or (len(_FILES) > 1 and sum(one.size for one in set(_FILES.values())) > KEPT_BYTES):
            _FILES.popitem(last=False)
    return same


def _read(source: Path, name: str, config: str) -> Adapter:
    """Read at once into memory of our own: a file that is overwritten later must not change what is in use."""
    try:
        content = source.read_bytes()
        tensors, metadata = load_tensors(content), _metadata(content)
    except OSError as error:
        raise FileError(f"The adapter {name!r} {_why(error)}.") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileError(f"{name!r} is damaged or no safetensors file: {error}.") from error
    if config:
        metadata["adapter_config"] = _object(config, name)
    digest = hashlib.sha256(config.encode())
    digest.update(content)
    return Adapter(name, digest.hexdigest(), tensors, metadata)


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in a safetensors header, which begins with its length in eight bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return {str(name): str(value) for name, value in header.items()}


def _object(text: str, name: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        raise FileError(f"adapter_config.json of {name!r} is no JSON: {error}.") from error
    return text


def _why(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read ({reason})"


def forget() -> None:
    """Drop every file, and what files mean for models, from memory; they are read again when they are asked for."""
    with _LOCK:
        _FILES.clear()
        _MEANINGS.clear()


def write_whole(path: Path, content: bytes) -> Path:
    """Under a temporary name, then renamed: what stood there stays until the new file is whole.

    Raises:
        FileError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FileError(f"{path.name!r} cannot be written: {error.strerror or error}.") from error
    return path
