"""An adapter as a value: part of a request, or a scope around a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from typing import Any

import attrs
from attrs import field, frozen
from torch import Tensor

from sdkit import ContractError, Level, Model, ParameterError, Parts
from sdkit_lora.applying import Active, Bypass, Strength, Table
from sdkit_lora.cache import CachedEncoder
from sdkit_lora.errors import AdapterError
from sdkit_lora.files import open_adapter
from sdkit_lora.keys import KeyMap, targets

__all__ = ["AdaptedDenoiser", "AdaptedEncoder", "Lora", "on"]


def _strength(value: Any) -> Strength:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= 1e3:
            raise ParameterError(f"An adapter's strength is a number up to 1000 (1 is as trained), not {number!r}.")
    if not numbers:
        raise ParameterError("An adapter's strengths are one number per image; there are none.")
    return tuple(float(number) for number in numbers) if isinstance(value, (list, tuple)) else float(value)


def _file(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ParameterError(f"An adapter is named by its file, not by {value!r}.")
    return os.fspath(value)


@frozen
class Lora:
    """An adapter of any kind (LoRA, LoCon, LoHa, LoKr, DoRA, full) from a file, as a modifier.

    Base weights are never written; see `sdkit_lora.applying`.

    Attributes:
        file: A ``.safetensors`` file, or a PEFT folder.
        strength: Factor of what it changes in the denoiser: 1 is as trained, 0 is nothing; or one number per image.
        text_strength: The same for text encoders; None is as ``strength``.
        merge: Form merged copies of the weights it touches: a step is then as fast as without it, for that much memory.
        unmatched: ``"error"`` if a key of the file finds no place in the model, or ``"skip"`` to do without it.

    Raises:
        ParameterError: a value is out of range.
    """

    file: str = field(converter=_file)
    strength: Strength = field(default=1.0, converter=_strength)
    text_strength: Strength | None = field(default=None, converter=attrs.converters.optional(_strength), kw_only=True)
    merge: bool = field(default=False, kw_only=True, validator=attrs.validators.instance_of(bool))
    unmatched: str = field(default="error", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.unmatched not in ("error", "skip"):
            raise ParameterError(f"unmatched is 'error' or 'skip', not {self.unmatched!r}.")

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the denoiser and the encoder are adapted.

        Raises:
            FileError, AdapterError: the file cannot be used with these parts; they are as before.
        """
        yield adapted(parts, [self])

    def __str__(self) -> str:
        return f"{PurePath(self.file).name} at {self.strength}"


def adapted(parts: Parts[Any, Any, Any], adapters: Sequence[Lora]) -> Parts[Any, Any, Any]:
    """The parts with adapters on them, beside those that are on them already.

    Raises:
        FileError, AdapterError: one of the files cannot be used with these parts.
    """
    denoiser, encoder = parts.denoiser, parts.encoder
    memory = encoder if isinstance(encoder, CachedEncoder) else None
    encoder = encoder if memory is None else memory.inner
    before_denoiser = denoiser.active if isinstance(denoiser, AdaptedDenoiser) else ()
    before_encoder = encoder.active if isinstance(encoder, AdaptedEncoder) else ()
    bare_denoiser = denoiser.inner if isinstance(denoiser, AdaptedDenoiser) else denoiser
    bare_encoder = encoder.inner if isinstance(encoder, AdaptedEncoder) else encoder
    keys = KeyMap.of(targets(bare_encoder, bare_denoiser))
    if not keys.modules:
        raise AdapterError("The model has no network that an adapter could change.")
    in_denoiser, in_encoder = list(before_denoiser), list(before_encoder)
    for one in adapters:
        file = open_adapter(one.file)
        parsed = file.fitted(keys, unmatched=one.unmatched)
        text = one.strength if one.text_strength is None else one.text_strength
        if parsed.picture:
            in_denoiser.append(Active(file.sha256, parsed.picture, one.strength, one.merge))
        if parsed.words:
            in_encoder.append(Active(file.sha256, parsed.words, text, one.merge))
    if any(one.acts for one in in_denoiser):
        denoiser = AdaptedDenoiser(bare_denoiser, tuple(in_denoiser), Table.of(keys, in_denoiser))
    if any(one.acts for one in in_encoder):
        encoder = AdaptedEncoder(bare_encoder, tuple(in_encoder), Table.of(keys, in_encoder))
    if memory is not None:
        on_it = sorted((one.sha256, str(one.strength), one.merge) for one in in_encoder if one.acts)
        encoder = attrs.evolve(memory, inner=encoder, adapters=tuple(on_it))
    return attrs.evolve(parts, denoiser=denoiser, encoder=encoder)


@contextmanager
def on(model: Model[Any], *adapters: Lora) -> Iterator[Model[Any]]:
    """A scope with a model that has adapters on it; the model given is as before, inside and after.

    Raises:
        FileError, AdapterError: one of the files cannot be used with this model.
    """
    parts = adapted(Parts(model.encoder, model.denoiser, _NoScheduler(), model.autoencoder), adapters)
    yield attrs.evolve(model, encoder=parts.encoder, denoiser=parts.denoiser)


class _NoScheduler:
    """In the place of a scheduler where none is needed."""

    traits: Any = None
    init: Any = None
    step: Any = None


@frozen(eq=False)
class AdaptedDenoiser:
    """A denoiser whose network runs with adapters.

    Attributes:
        inner: The denoiser as it was.
        active: Adapters on it.
        table: What they add to which weights.
    """

    inner: Any
    active: tuple[Active, ...] = field(repr=False)
    table: Table = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.inner, name)
        # both sides of guidance at once, where the denoiser inside has a way of its own for it: with adapters too
        return partial(self._pair, found) if name == "pair" else found

    @property
    def per_image(self) -> bool:
        """Whether the images of a batch have adapters of different strength, so that their order matters."""
        return self.table.images is not None

    def _pair(self, inner: Callable[..., Any], x: Tensor, level: Level, cond: Any, /) -> Any:
        self._check(x)
        with Bypass(self.table) as bypass:
            result = inner(x, level, cond)
        _used(bypass, "denoiser")
        return result

    def _check(self, x: Tensor) -> None:
        images = self.table.images
        if images is not None and x.shape[0] % images:
            raise ContractError(f"An adapter has strengths for {images} images, the batch has {x.shape[0]}.")

    def __call__(self, x: Tensor, level: Level, cond: Any, /) -> Tensor:
        """The prediction with adapters; shape and dtype of ``x``.

        Raises:
            ContractError: the network used none of the adapted weights, so that nothing was changed.
        """
        self._check(x)
        with Bypass(self.table, x.shape[0]) as bypass:
            result: Tensor = self.inner(x, level, cond)
        _used(bypass, "denoiser")
        return result


@frozen(eq=False)
class AdaptedEncoder:
    """An encoder whose networks run with adapters.

    Attributes:
        inner: The encoder as it was.
        active: Adapters on it.
        table: What they add to which weights.
    """

    inner: Any
    active: tuple[Active, ...] = field(repr=False)
    table: Table = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def along(self, grid: Any) -> AdaptedEncoder:
        """The encoder for a way to be walked, where the one inside depends on it."""
        return attrs.evolve(self, inner=self.inner.along(grid)) if hasattr(self.inner, "along") else self

    @property
    def per_image(self) -> bool:
        """Whether the same prompt may give different numbers for different images of a batch."""
        return self.table.images is not None

    def __call__(self, prompts: Sequence[Any], /) -> Any:
        """Prompts to numbers, with adapters."""
        with Bypass(self.table, len(prompts)) as bypass:
            result = self.inner(prompts)
        _used(bypass, "encoder")
        return result


def _used(bypass: Bypass, what: str) -> None:
    if not bypass.hits:
        raise ContractError(
            f"The {what} used none of the weights that adapters change; a compiled or quantised network hides them: "
            "load the model without."
        )
