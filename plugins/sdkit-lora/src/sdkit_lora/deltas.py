"""What an adapter adds to a weight, by kind.

Notation: ``W`` is a weight of shape (out, in, *kernel), ``y = W x + b`` what its layer computes; a delta is what is
added to ``W`` at strength 1. Low-rank factors are ``down`` (rank, in, *kernel) and ``up`` (out, rank), so that the
delta is ``alpha / rank * up @ down``. Products are computed in float32, whatever precision the file has.

Kinds and sources: LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), LoCon, LoHa and LoKr (Yeh et al. 2023,
https://arxiv.org/abs/2309.14859; LoHa after Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098), DoRA (Liu et al.
2024, https://arxiv.org/abs/2402.09353).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit_lora.errors import AdapterError

__all__ = ["Apply", "Delta", "Dense", "Dora", "LoHa", "LoKr", "LowRank", "Replacement", "Sliced"]

D = TypeVar("D", "LoHa", "LoKr")
Apply = Callable[[Tensor, Tensor], Tensor]
"""The layer's own operation without its bias: ``(x, weight) -> W x``, with its stride, padding and dilation."""


class Delta(Protocol):
    """What is added to one weight."""

    @property
    def rank(self) -> int | None:
        """Inner dimension, or None where there is none."""
        ...

    @property
    def kind(self) -> str:
        """Name of the kind, for people."""
        ...

    def matrix(self, weight: Tensor, /) -> Tensor:
        """The delta of ``weight`` at strength 1: its shape, float32.

        Raises:
            AdapterError: the shapes do not fit.
        """
        ...

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """What the delta adds to ``W x`` without being multiplied out; None where that is no gain."""
        ...

    def rows(self, start: int, stop: int, /) -> Delta:
        """The delta of these output rows alone: a part of a weight that other tools keep fused."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Delta:
        """The same elsewhere or in another precision."""
        ...

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether a weight of this shape can take it."""
        ...


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _moved(value: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(device, dtype)


def _all_moved(delta: D, names: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> D:
    changes: dict[str, Any] = {name: _moved(getattr(delta, name), device, dtype) for name in names}
    return evolve(delta, **changes)


def _size(shape: torch.Size | tuple[int, ...]) -> int:
    return math.prod(shape)


def _reshaped(matrix: Tensor, weight: Tensor, kind: str) -> Tensor:
    if matrix.numel() != weight.numel() or matrix.shape[0] != weight.shape[0]:
        raise AdapterError(
            f"A {kind} delta of shape {tuple(matrix.shape)} does not fit a weight of shape {tuple(weight.shape)}; the "
            "adapter was made for another model."
        )
    return matrix.reshape(weight.shape)


@frozen(eq=False)
class LowRank:
    """LoRA and LoCon: ``alpha / rank * up @ down``, with ``mid`` (rank, rank, *kernel) a Tucker product.

    Attributes:
        down: (rank, in, *kernel), or (rank, in, 1, 1) with ``mid``.
        up: (out, rank), or with trailing ones.
        mid: Core of the Tucker product, or None.
        alpha: Scale; None is the rank, so a factor of 1.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return self.down.shape[0]

    @property
    def kind(self) -> str:
        """LoRA on matrices, LoCon on convolutions."""
        return "LoCon" if self.mid is not None or _size(self.down.shape[2:]) > 1 else "LoRA"

    def matrix(self, weight: Tensor, /) -> Tensor:
        """``alpha / rank * up @ down``."""
        up, down = self.up.float().flatten(1), self.down.float()
        if self.mid is None:
            product = up @ down.flatten(1)
        else:
            product = torch.einsum("or,rs...,si->oi...", up, self.mid.float(), down.flatten(1))
        return _reshaped(product * _scale(self.alpha, self.rank), weight, self.kind)

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """``alpha / rank * up (down x)``: two thin products instead of one wide one."""
        if weight.ndim == 2:
            low = F.linear(x, self.down.flatten(1))
            return F.linear(low, self.up.flatten(1)).mul_(_scale(self.alpha, self.rank))
        ones = [1] * (weight.ndim - 2)
        convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
        up = self.up.reshape(*self.up.shape[:2], *ones)
        if self.mid is None:
            low = operation(x, self.down.reshape(self.rank, *weight.shape[1:]))
        else:
            thin = convolve(x, self.down.reshape(*self.down.shape[:2], *ones))
            low = operation(thin, self.mid)
        result: Tensor = convolve(low, up)
        return result.mul_(_scale(self.alpha, self.rank))

    def rows(self, start: int, stop: int, /) -> LowRank:
        """Rows of ``up``."""
        return evolve(self, up=self.up[start:stop])

    def to(self, device: torch.device, dtype: torch.dtype, /) -> LowRank:
        """The factors elsewhere."""
        mid = _moved(self.mid, device, dtype)
        return evolve(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype), mid=mid)

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether out, in and kernel agree."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        same = self.up.shape[0] == shape[0] and self.down.shape[1] == shape[1]
        inner = self.rank if self.mid is None else self.mid.shape[0]
        thin = _size(self.up.shape[2:]) == 1 and self.up.shape[1] == inner
        return same and thin and _kernel(kernel) == _kernel(shape[2:])


def _kernel(shape: torch.Size) -> tuple[int, ...]:
    """A kernel of ones is no kernel: a 1 x 1 convolution is a matrix."""
    return () if _size(shape) == 1 else tuple(shape)


@frozen(eq=False)
class LoHa:
    """``alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b)``, elementwise; with ``t1``, ``t2`` Tucker products.

    Attributes:
        w1_a, w1_b, w2_a, w2_b: Factors (out, rank) and (rank, in * kernel); with Tucker cores ``a`` is (rank, out).
        t1, t2: Cores (rank, rank, *kernel), or None.
        alpha: Scale; None is the rank.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Inner dimension of each product."""
        return self.w1_b.shape[0]

    @property
    def kind(self) -> str:
        """LoHa."""
        return "LoHa"

    def _product(self) -> Tensor:
        first, second = (
            a.float() @ b.float().flatten(1)
            if core is None
            else torch.einsum("rs...,si,ro->oi...", core.float(), b.float(), a.float())
            for a, b, core in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        )
        return first * second * _scale(self.alpha, self.rank)

    def matrix(self, weight: Tensor, /) -> Tensor:
        """The product, in the weight's shape."""
        return _reshaped(self._product(), weight, self.kind)

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """An elementwise product cannot be applied factor by factor."""
        return None

    def rows(self, start: int, stop: int, /) -> Delta:
        """Rows of the product."""
        return Sliced(self, start, stop)

    def to(self, device: torch.device, dtype: torch.dtype, /) -> LoHa:
        """The factors elsewhere."""
        return _all_moved(self, ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"), device, dtype)

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether the product has the weight's size."""
        if self.t1 is not None:
            return self.w1_a.shape[1] == shape[0] and self.w1_b.shape[1] == shape[1]
        return self.w1_a.shape[0] == shape[0] and _size(self.w1_b.shape[1:]) == _size(shape[1:])


@frozen(eq=False)
class LoKr:
    """``scale * kron(w1, w2)``; either factor may itself be a product of two.

    The scale is ``alpha / rank`` of the factor that is a product (the second if both are), and 1 if neither is: a file
    then holds any number for alpha.

    Attributes:
        w1: (a, c), as one matrix.
        w2: (b, d, *kernel), as one matrix or kernel, or its left factor (b, rank) if ``w2_b`` is given.
        w1_a, w1_b: Left and right factor of ``w1``, used where ``w1`` is None.
        w2_a, w2_b: Left and right factor of ``w2``, used where ``w2`` is None.
        t2: Tucker core of ``w2``, or None.
        alpha: Scale; None is the rank.
    """

    w1: Tensor | None = None
    w2: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int | None:
        """Inner dimension of the factor that is a product, or None if none is."""
        if self.w2_b is not None:
            return self.w2_b.shape[0]
        return None if self.w1_b is None else self.w1_b.shape[0]

    @property
    def kind(self) -> str:
        """LoKr."""
        return "LoKr"

    def _factors(self) -> tuple[Tensor, Tensor]:
        """``w1`` (a, c) with the scale in it, and ``w2`` (b, d, *kernel), float32."""
        first = _whole(self.w1, self.w1_a, self.w1_b, None)
        second = _whole(self.w2, self.w2_a, self.w2_b, self.t2)
        return first * (1.0 if self.rank is None else _scale(self.alpha, self.rank)), second

    def matrix(self, weight: Tensor, /) -> Tensor:
        """The Kronecker product, in the weight's shape."""
        first, second = self._factors()
        return _reshaped(_kron(first, second), weight, self.kind)

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """``kron(w1, w2) x = w2 X w1^T`` with ``x`` written as a matrix ``X``: no wide product is formed."""
        first, second = (factor.to(x.dtype) for factor in self._factors())
        c = first.shape[1]
        d = weight.shape[1] // c  # a kernel may be stored flat
        if weight.ndim == 2:
            inner = F.linear(x.reshape(*x.shape[:-1], c, d), second.flatten(1))
            return torch.einsum("ac,...cb->...ab", first, inner).flatten(-2)
        kernel = second.reshape(-1, d, *weight.shape[2:])
        inner = operation(x.reshape(-1, d, *x.shape[2:]), kernel)
        inner = inner.reshape(x.shape[0], c, *inner.shape[1:])
        return torch.einsum("ac,nc...->na...", first, inner).flatten(1, 2)

    def rows(self, start: int, stop: int, /) -> Delta:
        """A window of rows of the product."""
        return Sliced(self, start, stop)

    def to(self, device: torch.device, dtype: torch.dtype, /) -> LoKr:
        """The factors elsewhere."""
        return _all_moved(self, ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2"), device, dtype)

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether the Kronecker product has the weight's size."""
        first, second = self._factors()
        inside = first.shape[1] * second.shape[1] * _size(second.shape[2:])
        return first.shape[0] * second.shape[0] == shape[0] and inside == _size(shape[1:])


def _whole(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    if whole is not None:
        return whole.float()
    if a is None or b is None:
        raise AdapterError("A LoKr group lacks one of its factors; the file is incomplete.")
    if core is not None:
        return torch.einsum("rs...,si,ro->oi...", core.float(), b.float(), a.float())
    return (a.float() @ b.float().flatten(1)).reshape(a.shape[0], *b.shape[1:])


def _kron(first: Tensor, second: Tensor) -> Tensor:
    ones = [1] * (second.ndim - 2)
    return torch.kron(first.reshape(*first.shape, *ones), second.contiguous())


@frozen(eq=False)
class Dense:
    """A full difference of a weight or bias.

    Attributes:
        difference: What is added.
    """

    difference: Tensor

    @property
    def rank(self) -> None:
        """A full matrix."""
        return None

    @property
    def kind(self) -> str:
        """Full difference."""
        return "full"

    def matrix(self, weight: Tensor, /) -> Tensor:
        """The difference itself."""
        return _reshaped(self.difference.float(), weight, self.kind)

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """It is as wide as the weight."""
        return None

    def rows(self, start: int, stop: int, /) -> Dense:
        """Rows of the difference."""
        return Dense(self.difference[start:stop])

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Dense:
        """The difference elsewhere."""
        return Dense(self.difference.to(device, dtype))

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether the sizes agree."""
        return self.difference.shape[0] == shape[0] and self.difference.numel() == _size(shape)


@frozen(eq=False)
class Replacement:
    """A weight put in the place of another: the delta is the difference.

    Attributes:
        value: The new weight.
    """

    value: Tensor

    @property
    def rank(self) -> None:
        """A full matrix."""
        return None

    @property
    def kind(self) -> str:
        """Replacement."""
        return "replacement"

    def matrix(self, weight: Tensor, /) -> Tensor:
        """New minus old."""
        return _reshaped(self.value.float(), weight, self.kind) - weight.float()

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """It is as wide as the weight."""
        return None

    def rows(self, start: int, stop: int, /) -> Replacement:
        """Rows of the new weight."""
        return Replacement(self.value[start:stop])

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Replacement:
        """The new weight elsewhere."""
        return Replacement(self.value.to(device, dtype))

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether the sizes agree."""
        return self.value.shape[0] == shape[0] and self.value.numel() == _size(shape)


@frozen(eq=False)
class Dora:
    """A direction from another delta, a magnitude of its own: ``W' = magnitude * V / |V|`` with ``V = W + delta``.

    The norm is taken per output row, or per input column where the magnitude has that shape (older LyCORIS files).
    At a strength ``k`` other than 1 the weight is ``W + k (W' - W)``, as in ComfyUI; LyCORIS scales the magnitude
    instead, PEFT the delta inside ``V``.

    Attributes:
        inner: The delta of the direction.
        magnitude: (out,) or (in,), or with further ones.
    """

    inner: Delta
    magnitude: Tensor

    @property
    def rank(self) -> int | None:
        """That of the direction."""
        return self.inner.rank

    @property
    def kind(self) -> str:
        """DoRA on the kind of the direction."""
        return f"DoRA on {self.inner.kind}"

    def _by_row(self, weight: Tensor) -> bool:
        return self.magnitude.numel() == weight.shape[0] and not (
            self.magnitude.ndim >= 2 and self.magnitude.shape[0] == 1 and weight.shape[0] != 1
        )

    def _factor(self, direction: Tensor) -> Tensor:
        """``magnitude / |V|``, broadcastable to the weight."""
        ones = [1] * (direction.ndim - 2)
        if self._by_row(direction):
            norm: Tensor = torch.linalg.vector_norm(direction.flatten(1), dim=1)
            return (self.magnitude.float().flatten() / norm).reshape(-1, 1, *ones)
        norm = torch.linalg.vector_norm(direction.transpose(0, 1).flatten(1), dim=1)
        return (self.magnitude.float().flatten() / norm).reshape(1, -1, *ones)

    def matrix(self, weight: Tensor, /) -> Tensor:
        """``W' - W``."""
        direction = weight.float() + self.inner.matrix(weight)
        return direction * self._factor(direction) - weight.float()

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """The norm of ``V`` needs it whole, so nothing is gained."""
        return None

    def rows(self, start: int, stop: int, /) -> Dora:
        """Rows of both.

        Raises:
            AdapterError: the magnitude belongs to columns, whose norms need all rows.
        """
        if self.magnitude.ndim >= 2 and self.magnitude.shape[0] == 1 and self.magnitude.numel() > 1:
            raise AdapterError(
                "A DoRA with magnitudes of columns cannot be taken apart where its weight is fused in the file and not "
                "in the model."
            )
        return Dora(self.inner.rows(start, stop), self.magnitude.flatten()[start:stop])

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Dora:
        """Both elsewhere."""
        return Dora(self.inner.to(device, dtype), self.magnitude.to(device, dtype))

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether the direction fits, and the magnitude one of its sides."""
        return self.inner.fits(shape) and self.magnitude.numel() in (shape[0], shape[1] if len(shape) > 1 else 0)


@frozen(eq=False)
class Sliced:
    """Some output rows of a delta that is formed as a whole.

    Attributes:
        inner: The whole delta; one that needs no weight to be formed.
        start: First row.
        stop: One past the last row.
    """

    inner: LoHa | LoKr
    start: int
    stop: int

    @property
    def rank(self) -> int | None:
        """That of the whole."""
        return self.inner.rank

    @property
    def kind(self) -> str:
        """That of the whole."""
        return self.inner.kind

    def _window(self) -> Tensor:
        whole = self.inner._product() if isinstance(self.inner, LoHa) else _kron(*self.inner._factors())
        return whole[self.start : self.stop]

    def matrix(self, weight: Tensor, /) -> Tensor:
        """The rows."""
        return _reshaped(self._window(), weight, self.kind)

    def bypass(self, x: Tensor, weight: Tensor, operation: Apply, /) -> Tensor | None:
        """The whole is formed anyway."""
        return None

    def rows(self, start: int, stop: int, /) -> Sliced:
        """Rows of the rows."""
        return Sliced(self.inner, self.start + start, self.start + stop)

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Sliced:
        """The whole elsewhere."""
        return Sliced(self.inner.to(device, dtype), self.start, self.stop)

    def fits(self, shape: torch.Size, /) -> bool:
        """Whether the rows have the weight's size."""
        window = self._window()
        return window.shape[0] == shape[0] and window.numel() == _size(shape)
