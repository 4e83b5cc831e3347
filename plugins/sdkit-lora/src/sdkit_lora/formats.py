"""The formats adapters are written in: which keys they use, and what their tensors mean.

A format turns a mapping of tensors into deltas by place. What they share is here once: every key is a stem (a module,
found in the `KeyMap` of the model) and a suffix (a factor); the suffixes of a stem tell the kind of its delta.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Protocol

from attrs import evolve, field, frozen
from torch import Tensor

from sdkit_lora.deltas import Delta, Dense, Dora, LoHa, LoKr, LowRank, Replacement
from sdkit_lora.errors import AdapterError
from sdkit_lora.keys import DENOISERS, KeyMap, Place

__all__ = ["AdapterFormat", "Generic", "Parsed", "described", "groups", "read"]

SUFFIXES = {
    # suffix in the file -> name of the factor
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_mid.weight": "mid",
    "lora_B.weight": "up",
    "lora_A.weight": "down",
    "lora_B.default.weight": "up",
    "lora_A.default.weight": "down",
    "lora.up.weight": "up",
    "lora.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_magnitude_vector": "row_magnitude",
    "lora_magnitude_vector.weight": "row_magnitude",
    "lora_magnitude_vector.default.weight": "row_magnitude",
    "dora_scale": "magnitude",
    "alpha": "alpha",
    "hada_w1_a": "w1_a",
    "hada_w1_b": "w1_b",
    "hada_w2_a": "w2_a",
    "hada_w2_b": "w2_b",
    "hada_t1": "t1",
    "hada_t2": "t2",
    "lokr_w1": "kr_w1",
    "lokr_w1_a": "kr_w1_a",
    "lokr_w1_b": "kr_w1_b",
    "lokr_w2": "kr_w2",
    "lokr_w2_a": "kr_w2_a",
    "lokr_w2_b": "kr_w2_b",
    "lokr_t2": "kr_t2",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "diff",
    "b_norm": "diff_b",
    "set_weight": "set_weight",
}
UNSUPPORTED = {
    "a1.weight": "GLoRA",
    "a2.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "b2.weight": "GLoRA",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "oft_R": "OFT",
    "boft_R": "BOFT",
    "on_input": "IA3",
    "ia3_l": "IA3",
    "vera_lambda_b": "VeRA",
    "lora_embedding_A": "LoRA of an embedding",
    "lora_embedding_B": "LoRA of an embedding",
    "lora_B.bias": "LoRA with a bias",
    "lora_up.bias": "LoRA with a bias",
}
"""Suffixes of kinds that sdkit does not apply: refused by name, never passed over."""
# The two oldest diffusers formats have the factor's layer glued to the processor's name.
PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(up|down)\.weight")
XLABS = re.compile(r"(.+\.processor\.\w*lora\d?)\.(up|down)\.weight")


@frozen
class Parsed:
    """What a file means for one model.

    Attributes:
        deltas: What is added where.
        unmatched: Keys that found no place, as they stand in the file.
    """

    deltas: Mapping[Place, Delta] = field(repr=False)
    unmatched: tuple[str, ...]

    @cached_property
    def picture(self) -> Mapping[Place, Delta]:
        """Those of the denoiser."""
        return {place: delta for place, delta in self.deltas.items() if place.target in DENOISERS}

    @cached_property
    def words(self) -> Mapping[Place, Delta]:
        """Those of text encoders."""
        return {place: delta for place, delta in self.deltas.items() if place.target not in DENOISERS}


class AdapterFormat(Protocol):
    """A component of the kind ``adapter-format``."""

    def recognises(self, keys: Collection[str], metadata: Mapping[str, str], /) -> bool:
        """Whether a file with these keys is written in this format; looks at names alone."""
        ...

    def read(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], keys: KeyMap, /) -> Parsed:
        """The deltas.

        Raises:
            AdapterError: the tensors are of a kind that is not supported, or incomplete.
        """
        ...


@frozen
class Generic:
    """A format told by a pattern that some key of it matches.

    Attributes:
        pattern: Regular expression searched for in the keys.
        alphas: Whether scales stand in the metadata or the configuration file (PEFT) rather than beside the factors.
    """

    pattern: str
    alphas: bool = False

    def recognises(self, keys: Collection[str], metadata: Mapping[str, str], /) -> bool:
        """Whether a key matches the pattern."""
        expression = re.compile(self.pattern)
        return any(expression.search(key) for key in keys)

    def read(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], keys: KeyMap, /) -> Parsed:
        """The deltas of all stems that have a place."""
        return read(tensors, keys, Scales.of(metadata) if self.alphas else None)


@frozen
class Scales:
    """Scales that PEFT and diffusers write apart from the tensors.

    Attributes:
        alpha: lora_alpha, or None if it is not stated: alpha is the rank then.
        patterns: (regular expression of module paths, alpha) for modules with one of their own.
        root: Whether the scale is ``alpha / sqrt(rank)`` (rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
    """

    alpha: float | None = None
    patterns: tuple[tuple[str, float], ...] = ()
    root: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Mapping[str, Scales]:
        """By target prefix; ``""`` holds for all."""
        text = metadata.get("adapter_config") or metadata.get("lora_adapter_metadata") or "{}"
        try:
            config: Any = json.loads(text)
        except ValueError as error:
            raise AdapterError(f"The adapter's configuration is not JSON: {error}.") from error
        if not isinstance(config, dict):
            raise AdapterError(f"The adapter's configuration is a {type(config).__name__}, not an object of settings.")
        found: dict[str, dict[str, Any]] = {}
        for name, value in config.items():
            prefix, dot, rest = name.rpartition(".")
            found.setdefault(prefix if dot else "", {})[rest] = value
        return {
            prefix: cls(
                None if settings.get("lora_alpha") is None else float(settings["lora_alpha"]),
                tuple((str(k), float(v)) for k, v in (settings.get("alpha_pattern") or {}).items()),
                bool(settings.get("use_rslora")),
            )
            for prefix, settings in found.items()
        }

    def scale(self, path: str, rank: int) -> float | None:
        """The alpha that, divided by the rank, gives the scale of this module."""
        alpha = self.alpha
        for pattern, value in self.patterns:
            if re.search(rf"(^|\.)({pattern.lstrip('^')})$", path):
                alpha = value
        if alpha is None:
            return None
        return alpha * rank**0.5 if self.root else alpha


def groups(names: Collection[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Stems, each with its factors and the keys they have in the file; and keys with no known suffix.

    Raises:
        AdapterError: a key belongs to a kind that is not supported.
    """
    found: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in names:
        old = PROCESSOR.fullmatch(key)
        if old:
            layer = "to_out.0" if old[2] == "to_out" else old[2]
            found.setdefault(f"{old[1]}.{layer}", {})[old[3]] = key
            continue
        labs = XLABS.fullmatch(key)
        if labs:
            found.setdefault(labs[1], {})[labs[2]] = key
            continue
        for bad, kind in UNSUPPORTED.items():
            if key.endswith((f".{bad}", f".{bad}.weight")) or f".{bad}." in key:
                raise AdapterError(
                    f"The adapter is a {kind} ({key!r}); sdkit applies LoRA, LoCon, LoHa, LoKr, DoRA, full differences "
                    "and norms."
                )
        # the longest suffix first: `lora.up.weight` ends in `up.weight`
        suffix = next((one for one in sorted(SUFFIXES, key=len, reverse=True) if key.endswith(f".{one}")), None)
        if suffix is None:
            unknown.append(key)
        else:
            found.setdefault(key[: -len(suffix) - 1], {})[SUFFIXES[suffix]] = key
    return found, unknown


def read(tensors: Mapping[str, Tensor], keys: KeyMap, scales: Mapping[str, Scales] | None = None) -> Parsed:
    """The deltas of a file, for the model the key map was made of.

    Args:
        tensors: All tensors of the file.
        keys: The model's map.
        scales: Scales that stand apart from the tensors, by target.

    Raises:
        AdapterError: a group of tensors is incomplete or of a kind that is not supported.
    """
    found, unmatched = groups(tensors)
    deltas: dict[Place, Delta] = {}
    for stem, factors in found.items():
        places = keys.find(stem)
        if not places:
            unmatched.extend(factors.values())
            continue
        given = {name: tensors[key] for name, key in factors.items()}
        for part, delta in _deltas(stem, given).items():
            if scales is not None and "alpha" not in given:
                own = scales.get(places[0].target, scales.get("", Scales()))
                delta = _scaled(delta, own, places[0].path)
            for place in places:
                where = evolve(place, parameter=part, rows=None)
                if keys.parameter(where) is None:
                    unmatched.extend(key for name, key in factors.items() if name.endswith("_b") == (part == "bias"))
                    continue
                deltas[where] = delta if place.rows is None else delta.rows(*place.rows)
    return Parsed(deltas, tuple(sorted(unmatched)))


def described(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Delta]:
    """By stem (and ``" (bias)"``): what a file holds, without a model; tensors of no known suffix are left out.

    Raises:
        AdapterError: a group of tensors is incomplete or of a kind that is not supported.
    """
    scales = Scales.of(metadata)
    found: dict[str, Delta] = {}
    for stem, factors in groups(tensors)[0].items():
        given = {name: tensors[key] for name, key in factors.items()}
        for part, delta in _deltas(stem, given).items():
            if "alpha" not in given:
                own = scales.get(stem.split(".")[0], scales.get("", Scales()))
                delta = _scaled(delta, own, stem.partition(".")[2])
            found[stem if part == "weight" else f"{stem} (bias)"] = delta
    return found


def _scaled(delta: Delta, scales: Scales, path: str) -> Delta:
    if isinstance(delta, Dora):
        return evolve(delta, inner=_scaled(delta.inner, scales, path))
    if isinstance(delta, LowRank):
        return evolve(delta, alpha=scales.scale(path, delta.rank))
    return delta


def _deltas(stem: str, given: Mapping[str, Tensor]) -> dict[str, Delta]:
    """By parameter: what a stem's factors add to its weight, and to its bias."""
    result: dict[str, Delta] = {}
    raw = given.get("alpha")
    alpha = None if raw is None or float(raw) == 0 else float(raw)
    names = set(given) - {"alpha", "magnitude", "row_magnitude", "diff_b"}
    # PEFT's magnitudes belong to output rows whatever their shape; those of LyCORIS say by it what they belong to
    magnitude = given["row_magnitude"].flatten() if "row_magnitude" in given else given.get("magnitude")
    inner: Delta | None = None
    if {"up", "down"} <= names and names <= {"up", "down", "mid"}:
        inner = LowRank(given["down"], given["up"], given.get("mid"), alpha)
    elif {"w1_a", "w1_b", "w2_a", "w2_b"} <= names and names <= {"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}:
        inner = LoHa(**{name: given[name] for name in names}, alpha=alpha)
    elif names and all(name.startswith("kr_") for name in names):
        inner = LoKr(**{name.removeprefix("kr_"): given[name] for name in names}, alpha=alpha)
    elif names == {"diff"}:
        inner = Dense(given["diff"])
    elif names == {"set_weight"}:
        inner = Replacement(given["set_weight"])
    elif names:
        raise AdapterError(f"The tensors of {stem!r} ({', '.join(sorted(names))}) do not make a whole adapter.")
    if inner is not None:
        result["weight"] = inner if magnitude is None else Dora(inner, magnitude)
    elif magnitude is not None:
        raise AdapterError(f"{stem!r} has a DoRA magnitude but no direction; the file is incomplete.")
    if "diff_b" in given:
        result["bias"] = Dense(given["diff_b"])
    return result
