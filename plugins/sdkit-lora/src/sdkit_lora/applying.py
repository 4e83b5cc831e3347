"""Adapters at work, without a single weight being written.

While an adapted network runs, torch hands every operation to `Bypass` first (a ``TorchFunctionMode``, which belongs to
one thread and one scope). Where an operation uses a weight that has deltas, the low-rank product is added to its
result; where that is no gain (LoHa, DoRA, full differences), or where merging was asked for, the operation is given a
merged copy of the weight instead. The model's own modules and tensors are never touched: two threads with different
adapters on one model do not see each other, and leaving the scope leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sdkit import ContractError
from sdkit_lora.deltas import Delta, LowRank
from sdkit_lora.errors import AdapterError
from sdkit_lora.keys import KeyMap, Place

__all__ = ["Active", "Bypass", "Strength", "Table"]

Strength = float | tuple[float, ...]
"""One number, or one per image."""
LAYERS: tuple[Callable[..., Any], ...] = (F.linear, F.conv1d, F.conv2d, F.conv3d)


@frozen(eq=False)
class Active:
    """A file's deltas at a strength.

    Attributes:
        sha256: Hash of the file, which orders adapters: the order of loading changes no bit.
        deltas: What is added where.
        strength: Factor, or one per image.
        merge: Whether to form merged copies even where a bypass would do.
    """

    sha256: str
    deltas: Mapping[Place, Delta] = field(repr=False)
    strength: Strength
    merge: bool = False

    @property
    def acts(self) -> bool:
        """Whether it changes anything."""
        return any(self.strength) if isinstance(self.strength, tuple) else self.strength != 0


@frozen(eq=False)
class _Entry:
    weight: Tensor
    parts: tuple[tuple[Delta, Strength], ...]
    merged: bool


_MOVED: WeakKeyDictionary[Delta, dict[Any, Delta]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@frozen(eq=False)
class Table:
    """What is added to which tensor of a model: by the tensor's identity.

    Attributes:
        entries: By ``id`` of the parameter.
        images: Images in a batch where strengths differ by image, else None.
    """

    entries: Mapping[int, _Entry] = field(repr=False)
    images: int | None
    _cache: dict[Any, Tensor | Delta] = field(factory=dict, repr=False)
    _lock: threading.Lock = field(factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, keys: KeyMap, active: Sequence[Active]) -> Table:
        """The table of some adapters on one model.

        Raises:
            AdapterError: strengths for different numbers of images, or a merge of strengths that differ by image.
        """
        counts = {len(one.strength) for one in active if isinstance(one.strength, tuple)}
        if len(counts) > 1:
            raise AdapterError(f"Adapters have strengths for {sorted(counts)} images; give each one per image.")
        found: dict[Place, list[tuple[Delta, Strength]]] = {}
        merged: set[Place] = set()
        for one in sorted(active, key=lambda one: (one.sha256, str(one.strength))):
            if not one.acts:
                continue
            if one.merge and isinstance(one.strength, tuple):
                raise AdapterError("Strengths that differ by image cannot be merged; leave merge out.")
            for place, delta in one.deltas.items():
                found.setdefault(place, []).append((delta, one.strength))
                merged |= {place} if one.merge else set()
        entries: dict[int, _Entry] = {}
        for place, parts in found.items():
            weight = keys.parameter(place)
            if weight is not None:
                # tied weights are one tensor in two places
                before = entries.get(id(weight), _Entry(weight, (), False))
                entries[id(weight)] = _Entry(weight, (*before.parts, *parts), before.merged or place in merged)
        return cls(entries, counts.pop() if counts else None)

    def merged(self, entry: _Entry) -> Tensor:
        """``W + sum strength * delta`` as a tensor of its own, computed in float32 and cast once."""
        weight = entry.weight

        def make() -> Tensor:
            total = weight.detach().float()
            for delta, strength in entry.parts:
                near = delta.to(weight.device, torch.float32)
                assert not isinstance(strength, tuple)
                total = total + near.matrix(weight.detach()) * strength
            return total.to(weight.dtype)

        kept: Tensor = self._kept((id(weight), weight.device, weight.dtype), make)
        return kept

    def moved(self, delta: Delta, x: Tensor) -> Delta:
        """The delta where ``x`` is, in its precision; kept as long as the delta, whatever its strength."""
        if isinstance(delta, LowRank) and delta.down.requires_grad:
            return delta.to(x.device, x.dtype)  # in training it changes
        key = (x.device, x.dtype)
        with _LOCK:
            known = _MOVED.setdefault(delta, {})
            if key not in known:
                known[key] = delta.to(x.device, x.dtype)
            return known[key]

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = make()
            return self._cache[key]


class Bypass(TorchFunctionMode):
    """The scope in which a table acts, in the thread that entered it.

    Args:
        table: What is added to what.
        rows: Batch rows the network is given, where strengths differ by image.
    """

    def __init__(self, table: Table, rows: int | None = None) -> None:
        super().__init__()
        self._table = table
        self._rows = rows
        self.hits = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation."""
        kwargs = kwargs or {}
        entries = self._table.entries
        for arg in args:
            if id(arg) in entries:
                break
        else:
            if not any(id(value) in entries for value in kwargs.values()):
                return func(*args, **kwargs)
        if func in _PASSIVE:
            return func(*args, **kwargs)
        self.hits += 1
        if func in LAYERS and len(args) > 1 and id(args[1]) in entries and not entries[id(args[1])].merged:
            return self._layer(func, entries[id(args[1])], args, kwargs)
        swapped = [self._swap(arg) for arg in args]
        return func(*swapped, **{key: self._swap(value) for key, value in kwargs.items()})

    def _swap(self, value: Any) -> Any:
        entry = self._table.entries.get(id(value)) if isinstance(value, Tensor) else None
        if entry is None:
            return value
        if any(isinstance(strength, tuple) for _, strength in entry.parts):
            raise AdapterError(
                "An adapter with strengths that differ by image changes a tensor that is used for the whole batch "
                f"at once (shape {tuple(entry.weight.shape)}); run the images apart."
            )
        return self._table.merged(entry)

    def _layer(self, func: Callable[..., Any], entry: _Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``W x + b`` and what the deltas add, factor by factor where that is cheaper."""
        x, weight = args[0], args[1]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        settings, named = args[3:], {key: value for key, value in kwargs.items() if key != "bias"}
        grouped = func is not F.linear and (named.get("groups", 1) != 1 or (len(settings) > 3 and settings[3] != 1))

        def operation(given: Tensor, other: Tensor) -> Tensor:
            result: Tensor = func(given, other, None, *settings, **named)
            return result

        per_image = any(isinstance(strength, tuple) for _, strength in entry.parts)
        added: list[tuple[Tensor, Strength]] = []
        for delta, strength in entry.parts:
            near = self._table.moved(delta, x)
            extra = None if grouped else near.bypass(x, weight, operation)
            if extra is None and not per_image:
                return func(x, self._table.merged(entry), self._swap(bias), *settings, **named)
            if extra is None:
                extra = operation(x, near.matrix(weight.detach()).to(x.dtype))
            added.append((extra, strength))
        y: Tensor = func(x, weight, self._swap(bias), *settings, **named)
        for extra, strength in added:
            if isinstance(strength, tuple):
                y = self._by_image(y, extra, strength)
            else:
                y = torch.add(y, extra, alpha=strength)
        return y

    def _by_image(self, y: Tensor, extra: Tensor, strength: tuple[float, ...]) -> Tensor:
        rows, images = y.shape[0], len(strength)
        batch = self._rows or rows
        if batch % images or rows % batch:
            raise ContractError(
                f"An adapter has strengths for {images} images, but a layer was given {rows} rows of a batch of "
                f"{batch}."
            )
        # guidance puts the whole batch twice, one after the other; a layer may see several rows per item
        factors = torch.tensor(strength, device=y.device, dtype=y.dtype).repeat(batch // images)
        factors = factors.repeat_interleave(rows // batch)
        return torch.addcmul(y, extra, factors.reshape(-1, *[1] * (y.ndim - 1)))


# what asks about a tensor and computes nothing with it
_PASSIVE = frozenset(
    getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "is_cuda", "ndim", "layout", "requires_grad")
) | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.stride}
