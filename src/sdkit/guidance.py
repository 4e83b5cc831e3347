"""Guidance: wrappers of a denoiser that are denoisers again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from attrs import field, frozen

from sdkit.conditioning import concatenate, take
from sdkit.errors import ParameterError
from sdkit.levels import Grid, Level
from sdkit.protocols import MAX_GUIDANCE, Denoiser, NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Conditions", "Guided", "Inpainted", "condition", "guided"]

C = TypeVar("C")


@frozen(eq=False)
class Conditions(Generic[C]):
    """What a guided denoiser is conditioned on: what to move toward, and what to move away from."""

    positive: C
    negative: C


def _interval(value: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))


@frozen(eq=False)
class Guided(Generic[C]):
    """Classifier-free guidance: ``D = D_neg + scale (D_pos - D_neg)``. Made by `guided`."""

    denoiser: Denoiser[C]
    scale: float = field(converter=float)
    rescale: float = field(default=0.0, converter=float)
    interval: tuple[float, float] | None = field(default=None, converter=_interval)

    def __attrs_post_init__(self) -> None:
        if not abs(self.scale) <= MAX_GUIDANCE:
            raise ParameterError(f"The guidance scale must be a number up to {MAX_GUIDANCE:g}, not {self.scale}.")
        if not 0 <= self.rescale <= 1:
            raise ParameterError(f"Guidance rescale must lie between 0 (off) and 1, not {self.rescale}.")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ParameterError(f"A guidance interval needs 0 <= low < high in sigma / alpha, not {self.interval}.")

    @property
    def takes_negative(self) -> bool:
        """A guided denoiser is conditioned on `Conditions`."""
        return True

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The schedule of the denoiser inside."""
        return cast("NoiseSchedule | None", getattr(self.denoiser, "schedule", None))

    def acts(self, level: Level) -> bool:
        """Whether guidance changes anything at ``level``; if not, there is one forward pass instead of two."""
        if self.scale == 1:
            return False
        return self.interval is None or self.interval[0] <= level.noise_to_signal <= self.interval[1]

    def __call__(self, x: Tensor, level: Level, cond: Conditions[C], /) -> Tensor:
        """The guided prediction; both conditionings go through the denoiser as one batch of twice the size."""
        if not self.acts(level):
            return self.denoiser(x, level, cond.positive)
        # a denoiser may answer both at once in a way of its own: see `pair` in the docstring of `guided`
        positive, negative = getattr(self.denoiser, "pair", self._pair)(x, level, cond)
        result = negative.lerp(positive, self.scale)
        if self.rescale > 0:
            axes = tuple(range(1, x.ndim))
            wanted = positive.std(dim=axes, keepdim=True, correction=0)
            ratio = wanted / result.std(dim=axes, keepdim=True, correction=0).clamp_min(1e-12)
            result = result * (ratio * self.rescale + (1 - self.rescale))
        return result

    def _pair(self, x: Tensor, level: Level, cond: Conditions[C]) -> Sequence[Tensor]:
        both = self.denoiser(x.repeat(2, *[1] * (x.ndim - 1)), level, concatenate(cond.positive, cond.negative))
        return both.chunk(2)


def guided(
    denoiser: Denoiser[C],
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Guided[C]:
    """Classifier-free guidance around a denoiser, in one batched forward pass.

    Args:
        denoiser: What to guide; one that is guided already is guided anew, not twice.
        scale: 1 is no guidance (and one forward pass, not two); larger follows the prompt more closely.
        rescale: Share by which the standard deviation of the result is brought back to that of the positive prediction
            (Lin et al. 2023, https://arxiv.org/abs/2305.08891, section 3.4; on the predicted clean latent), 0 to 1.
        interval: ``(low, high)`` in ``sigma / alpha``: guidance acts only there (Kynkaanniemi et al. 2024,
            https://arxiv.org/abs/2404.07724).

    A denoiser with a method ``pair(x, level, conditions) -> (positive, negative)`` is asked that way for what to move
    toward and what to move away from: where the one depends on the other, as in prompts joined by AND.

    Source: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.

    Raises:
        ParameterError: a value is out of range.
    """
    return Guided(denoiser.denoiser if isinstance(denoiser, Guided) else denoiser, scale, rescale, interval)


def condition(
    encoder: Any, denoiser: Denoiser[Any], prompts: Sequence[Any], negatives: Sequence[Any], grid: Grid = ()
) -> Any:
    """What ``denoiser`` is conditioned on: `Conditions` if it is guided, else the encoded prompts alone.

    A prompt that stands several times is encoded once; all images of it then have the very same numbers. An encoder
    with a true ``per_image`` (an adapter at another strength for each image) is asked for every image instead.
    An encoder that depends on the way has ``along(grid) -> Encoder``, which is called first.
    """
    encoder = encoder.along(grid) if hasattr(encoder, "along") else encoder
    pair = bool(getattr(denoiser, "takes_negative", False))
    texts = [*prompts, *negatives] if pair else list(prompts)
    distinct = texts if getattr(encoder, "per_image", False) else list(dict.fromkeys(texts))
    encoded = encoder(distinct)
    rows = range(len(texts)) if distinct is texts else [distinct.index(text) for text in texts]
    positive = take(encoded, list(rows[: len(prompts)]))
    return Conditions(positive, take(encoded, list(rows[len(prompts) :]))) if pair else positive


@frozen(eq=False)
class Inpainted(Generic[C]):
    """A denoiser that knows part of the picture: ``D = mask D + (1 - mask) known``.

    Where the clean latent is known, it *is* ``E[x0 | x]``; every scheduler that is exact on a point mass then carries
    the known part along its own noise and ends in it, with no scheduler knowing of masks.

    Attributes:
        denoiser: What paints.
        known: Clean latents, broadcastable to the batch.
        mask: 1 where to paint, 0 where to keep, broadcastable to the latents.
    """

    denoiser: Denoiser[C]
    known: Tensor
    mask: Tensor

    @property
    def takes_negative(self) -> bool:
        """As the denoiser inside."""
        return bool(getattr(self.denoiser, "takes_negative", False))

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The schedule of the denoiser inside."""
        return cast("NoiseSchedule | None", getattr(self.denoiser, "schedule", None))

    def __call__(self, x: Tensor, level: Level, cond: C, /) -> Tensor:
        """The prediction, with what is known put in."""
        return self.known + (self.denoiser(x, level, cond) - self.known) * self.mask
