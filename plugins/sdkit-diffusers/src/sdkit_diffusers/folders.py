"""Models in folders as diffusers saves them: ``model_index.json`` and one folder per part."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit import FileError
from sdkit_diffusers.tensors import Weights, some

if TYPE_CHECKING:
    from sdkit_diffusers.parts import Part, Source
    from sdkit_diffusers.tokens import TextTokenizer

__all__ = ["INDEX", "read_family", "read_folder", "read_json", "read_part"]

INDEX = "model_index.json"
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"(?:\.(?P<late>\w+))?\.safetensors"
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        FileError: it cannot be read, or is something else.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path.parent.name}/{path.name} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path.parent.name}/{path.name} is not JSON: {error}") from error
    if not isinstance(made, dict):
        raise FileError(f"{path.parent.name}/{path.name} is not a JSON object.")
    return made


def _listed(index: Mapping[str, Any]) -> dict[str, str]:
    """Class names of the parts a ``model_index.json`` lists; those that are absent (null) left out."""
    return {
        name: str(entry[1])
        for name, entry in index.items()
        if name[:1] != "_" and isinstance(entry, list) and len(entry) == 2 and entry[1]
    }


def family_of(folder: Path, index: Mapping[str, Any]) -> str | None:
    """The family of a folder, from its parts, or None."""
    parts = _listed(index)
    if parts.get("transformer") == "SD3Transformer2DModel":
        return "sd3"
    if parts.get("transformer") == "FluxTransformer2DModel":
        return "flux"
    if parts.get("transformer") == "LTXVideoTransformer3DModel" and parts.get("vae") == "AutoencoderKLLTXVideo":
        return "ltx-video"
    if parts.get("unet") == "UNetSpatioTemporalConditionModel" and parts.get("vae") == "AutoencoderKLTemporalDecoder":
        return "svd"
    if parts.get("unet") != "UNet2DConditionModel" or parts.get("vae") != "AutoencoderKL":
        return None
    if "text_encoder_2" in parts:
        return "sdxl" if "text_encoder" in parts else "sdxl-refiner"
    if parts.get("text_encoder") != "CLIPTextModel":
        return None
    # OpenCLIP's text towers use the exact activation, OpenAI's the quick one
    return "sd2" if read_json(folder / "text_encoder" / "config.json").get("hidden_act") == "gelu" else "sd1"


def weight_files(folder: Path, precision: str) -> list[Path]:
    """The files of one part: of the variants in the folder, that of the wanted precision, else the plain one.

    Args:
        folder: Of the part.
        precision: ``"fp16"`` or ``"bf16"`` if such a variant is preferred, else empty.

    Raises:
        FileError: there is none, or shards are missing.
    """
    found: dict[str, list[tuple[Path, int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = WEIGHTS.fullmatch(path.name)
        if match:
            variant = match["variant"] or match["late"] or ""
            found.setdefault(variant, []).append((path, int(match["shards"] or 1)))
    if not found:
        pickles = [path.name for path in sorted(folder.glob("*.bin"))]
        why = f"only the pickle {some(pickles)}; convert it to safetensors in a sandbox" if pickles else "none"
        raise FileError(f"There should be weights (.safetensors) in the folder {folder.name!r}; there is {why}.")
    variant = next((name for name in (precision, "", "fp16", "bf16") if name in found), min(found))
    shards = found[variant]
    # a whole file beside shards of the same variant is a copy of them
    whole = [path for path, count in shards if count == 1]
    if whole:
        return whole[:1]
    if len(shards) != shards[0][1]:
        raise FileError(f"The folder {folder.name!r} has {len(shards)} of {shards[0][1]} files of weights.")
    return [path for path, _ in shards]


def read_part(folder: Path, kind: str, *, name: str = "", precision: str = "") -> Part:
    """One network in a folder with ``config.json``.

    Args:
        folder: Of the part.
        kind: Its class name, as in ``model_index.json``.
        name: What messages call it; by default the folder's name.
        precision: See `weight_files`.

    Raises:
        FileError: files are missing or damaged, or the class is not known.
    """
    from sdkit_diffusers.networks import MAKERS
    from sdkit_diffusers.parts import Part, saved

    if kind not in MAKERS:
        raise FileError(f"The part {folder.name!r} is a {kind}, which is not known; known are {', '.join(MAKERS)}.")
    config = read_json(folder / "config.json")
    weights = Weights.of(weight_files(folder, precision))
    keep = (lambda name: name.endswith(".wo.weight")) if kind == "T5EncoderModel" else (lambda name: False)
    return Part(name or folder.name, MAKERS[kind], config, weights, saved, keep)


def read_family(folder: Path) -> str:
    """The family of a folder with ``model_index.json``.

    Raises:
        FileError: it is none that is known here.
    """
    index = read_json(folder / INDEX)
    family = family_of(folder, index)
    if family is None:
        raise FileError(
            f"The folder {folder.name!r} holds a {index.get('_class_name')}, which is no model known here that makes "
            "pictures or clips."
        )
    return family


def read_folder(folder: Path, *, precision: str = "") -> Source:
    """The model in a folder with ``model_index.json``.

    Raises:
        FileError: it is none, or a part of it is missing or damaged.
    """
    from sdkit_diffusers.configs import known_of
    from sdkit_diffusers.parts import Source

    family, index = read_family(folder), read_json(folder / INDEX)
    listed = _listed(index)
    seen = ("image_encoder",) if family == "svd" else ()
    names = [name for name in ("unet", "transformer", "vae", *seen, *_encoders(listed)) if name in listed]
    parts = {name: read_part(folder / name, listed[name], precision=precision) for name in names}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return Source(
        path=folder,
        family=family,
        parts=parts,
        tokenizers={name: _tokenizer(folder, name, parts[name]) for name in _encoders(listed)},
        scheduler=read_json(scheduler) if scheduler.is_file() else known_of(family)["scheduler"],
        facts={name: value for name, value in index.items() if not isinstance(value, list)},
    )


def _encoders(listed: Mapping[str, str]) -> list[str]:
    return [name for name in listed if name.startswith("text_encoder")]


def _tokenizer(folder: Path, encoder: str, part: Part) -> TextTokenizer:
    from sdkit_diffusers.tokens import T5_LENGTH, read_tokenizer

    length = int(part.config.get("max_position_embeddings", T5_LENGTH))
    return read_tokenizer(folder / encoder.replace("text_encoder", "tokenizer"), length=length)
