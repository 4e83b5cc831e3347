"""Models in one ``.safetensors`` file with the names of the original code, as people share them.

Families are told apart by the names and shapes in the file's header.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sdkit import FileError
from sdkit_diffusers.tensors import Weights, some

if TYPE_CHECKING:
    from sdkit_diffusers.parts import Part, Source
    from sdkit_diffusers.tokens import TextTokenizer

__all__ = ["family_of_keys", "read_autoencoder", "read_file"]

DIFFUSION = "model.diffusion_model."


@frozen
class Place:
    """Where a part is in a file.

    Attributes:
        kind: Its layout, see `_part`.
        prefixes: What its names may begin with.
        pad: What fills the rows of this text encoder's tokens; None is the mark of the end.
        optional: Whether the model works without it.
    """

    kind: str
    prefixes: tuple[str, ...]
    pad: int | None = None
    optional: bool = False


VAE = Place("vae", ("first_stage_model.", "vae."))
FAMILIES: Mapping[str, Mapping[str, Place]] = {
    "sd1": {
        "unet": Place("unet", (DIFFUSION,)),
        "vae": VAE,
        "text_encoder": Place("clip", ("cond_stage_model.transformer.",)),
    },
    "sd2": {
        "unet": Place("unet", (DIFFUSION,)),
        "vae": VAE,
        "text_encoder": Place("open-clip-penultimate", ("cond_stage_model.model.",), pad=0),
    },
    "sdxl": {
        "unet": Place("unet", (DIFFUSION,)),
        "vae": VAE,
        "text_encoder": Place("clip", ("conditioner.embedders.0.transformer.",)),
        "text_encoder_2": Place("open-clip", ("conditioner.embedders.1.model.",), pad=0),
    },
    "sdxl-refiner": {
        "unet": Place("unet", (DIFFUSION,)),
        "vae": VAE,
        "text_encoder_2": Place("open-clip", ("conditioner.embedders.0.model.",), pad=0),
    },
    "sd3": {
        "transformer": Place("sd3", (DIFFUSION, "")),
        "vae": VAE,
        "text_encoder": Place("clip-projected", ("text_encoders.clip_l.transformer.",)),
        "text_encoder_2": Place("clip-projected", ("text_encoders.clip_g.transformer.",), pad=0),
        "text_encoder_3": Place("t5", ("text_encoders.t5xxl.transformer.",), optional=True),
    },
    "flux": {
        "transformer": Place("flux", (DIFFUSION, "")),
        "vae": VAE,
        "text_encoder": Place("clip", ("text_encoders.clip_l.transformer.",)),
        "text_encoder_2": Place("t5", ("text_encoders.t5xxl.transformer.",)),
    },
}


def family_of_keys(weights: Weights) -> str | None:
    """The family of an original file, from the names in it, or None."""
    names = weights.stored
    for prefix in (DIFFUSION, ""):
        if f"{prefix}joint_blocks.0.context_block.attn.qkv.weight" in names:
            return "sd3"
        if f"{prefix}double_blocks.0.img_attn.qkv.weight" in names and f"{prefix}txt_in.weight" in names:
            return "flux"
    if f"{DIFFUSION}input_blocks.0.0.weight" not in names:
        return None
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return "sdxl"
    if any(name.startswith("conditioner.embedders.0.model.") for name in names):
        return "sdxl-refiner"
    if any(name.startswith("cond_stage_model.model.") for name in names):
        return "sd2"
    return "sd1" if any(name.startswith("cond_stage_model.") for name in names) else None


def _part(name: str, kind: str, weights: Weights, known: Mapping[str, Any]) -> Part:
    """A part of one layout: what makes its network, its configuration, and where parameters are."""
    from sdkit_diffusers import configs, names
    from sdkit_diffusers.networks import MAKERS
    from sdkit_diffusers.parts import Part, saved

    if kind == "unet":
        config = configs.unet(weights, known)
        return Part(name, MAKERS["UNet2DConditionModel"], config, weights, names.ldm_unet(config))
    if kind == "vae":
        config = configs.autoencoder(weights, known)
        return Part(name, MAKERS["AutoencoderKL"], config, weights, names.ldm_autoencoder(config))
    if kind == "sd3":
        config = configs.sd3(weights, known)
        return Part(name, MAKERS["SD3Transformer2DModel"], config, weights, names.sd3(config))
    if kind == "flux":
        config = configs.flux(weights, known)
        return Part(name, MAKERS["FluxTransformer2DModel"], config, weights, names.flux)
    if kind == "t5":
        config = configs.t5(weights, known)
        return Part(
            name, MAKERS["T5EncoderModel"], config, weights, saved, lambda parameter: parameter.endswith(".wo.weight")
        )
    if kind.startswith("clip"):
        config = configs.clip(weights, known)
        made = MAKERS["CLIPTextModelWithProjection" if kind == "clip-projected" else "CLIPTextModel"]
        return Part(name, made, config, weights, saved)
    config = configs.open_clip(weights, known)
    if kind == "open-clip":
        return Part(name, MAKERS["CLIPTextModelWithProjection"], config, weights, names.open_clip)
    # Stable Diffusion 2 reads the last but one layer, so the last and the projection are not needed
    last = f"transformer.resblocks.{config['num_hidden_layers'] - 1}."
    config["num_hidden_layers"] -= 1
    used = {key: one for key, one in weights.stored.items() if not key.startswith((last, "text_projection"))}
    return Part(name, MAKERS["CLIPTextModel"], config, Weights(used), names.open_clip)


def read_file(path: Path, *, t5_tokenizer: Path | None = None, without: frozenset[str] = frozenset()) -> Source:
    """The model in one file with original names.

    Args:
        path: The file.
        t5_tokenizer: A folder with T5's ``tokenizer.json``; without it T5 is left out where the model works without.
        without: Parts that come from elsewhere.

    Raises:
        FileError: it is damaged or of no family known here, or a part is missing.
    """
    from sdkit_diffusers.configs import known_of
    from sdkit_diffusers.parts import Source

    weights = Weights.of([path])
    family = family_of_keys(weights)
    if family is None:
        raise FileError(unknown(path, weights))
    known = known_of(family)
    parts: dict[str, Part] = {}
    tokenizers: dict[str, TextTokenizer] = {}
    for name, place in FAMILIES[family].items():
        prefix = next((one for one in place.prefixes if any(key.startswith(one) for key in weights.stored)), None)
        if name in without or (place.optional and (prefix is None or t5_tokenizer is None)):
            continue
        if prefix is None:
            how = "give vae=PATH" if name == "vae" else "use a file with all parts, or a diffusers folder"
            raise FileError(f"{path.name!r} has no {name}: no tensor begins with {place.prefixes[0]!r}; {how}.")
        parts[name] = _part(name, place.kind, weights.under(prefix), known[name])
        if name.startswith("text_encoder"):
            tokenizers[name] = _tokenizer(path, name, place, t5_tokenizer)
    scheduler = {**known["scheduler"], **_stated(weights)}
    if any(key.endswith("guidance_in.in_layer.weight") for key in weights.stored):  # FLUX.1 dev, not schnell
        scheduler["use_dynamic_shifting"] = True
    return Source(path, family, parts, tokenizers, scheduler, known["facts"])


def _stated(weights: Weights) -> dict[str, Any]:
    """What empty tensors beside the parts say of training: ``v_pred`` and ``ztsnr``, as tools for XL write them."""
    stated: dict[str, Any] = {}
    if "v_pred" in weights:
        stated["prediction_type"] = "v_prediction"
    if "ztsnr" in weights:
        stated["rescale_betas_zero_snr"] = True
    return stated


def _tokenizer(path: Path, name: str, place: Place, t5_tokenizer: Path | None) -> TextTokenizer:
    from sdkit_diffusers.tokens import T5_LENGTH, clip_tokenizer, read_tokenizer

    if place.kind != "t5":
        return clip_tokenizer(pad=place.pad)
    if t5_tokenizer is None:
        raise FileError(
            f"{path.name!r} reads prompts with T5 ({name}), whose tokenizer is not in the file; give "
            "t5_tokenizer=FOLDER, a folder with T5's tokenizer.json."
        )
    return read_tokenizer(t5_tokenizer, length=T5_LENGTH)


def unknown(path: Path, weights: Weights) -> str:
    """Why a file is none of ours."""
    return (
        f"{path.name!r} is of no model family known here ({', '.join(FAMILIES)}): its tensors are "
        f"{some(sorted(weights.stored)) or 'none'}."
    )


def read_autoencoder(path: Path, family: str) -> Part:
    """An autoencoder from a file or folder of its own.

    Args:
        path: A ``.safetensors`` file with original or diffusers' names, or a folder with ``config.json``.
        family: What it is for; says how its latents are scaled where the file does not.

    Raises:
        FileError: it is damaged, or no autoencoder.
    """
    from sdkit_diffusers.configs import known_of
    from sdkit_diffusers.folders import read_part

    if path.is_dir():
        return read_part(path, "AutoencoderKL", name="vae")
    weights = Weights.of([path])
    for prefix in ("", *VAE.prefixes):
        if f"{prefix}decoder.conv_in.weight" in weights and f"{prefix}encoder.down.0.block.0.conv1.weight" in weights:
            return _part("vae", "vae", weights.under(prefix), known_of(family)["vae"])
    raise FileError(
        f"{path.name!r} is no autoencoder with original names: its tensors are {some(sorted(weights.stored))}; one "
        "with diffusers' names comes as a folder with config.json."
    )
