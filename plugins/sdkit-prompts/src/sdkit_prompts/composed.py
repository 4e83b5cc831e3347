r"""Conditionings that change on the way, and several at once: what schedules, alternation and ``AND`` are made of.

Notation: b batch, m most branches of a prompt, n most segments (runs of steps that say the same), k distinct flat
prompts. At a level each image looks up its segment, and for each of its branches the conditioning that is said there;
the prediction is ``sum_j w_j D_j``.

Guided by a scale s away from a negative prompt, a composed prompt with total weight ``W = sum_j w_j`` is

    D = D_neg + s sum_j w_j (D_j - D_neg) = D_neg + s (P - D_neg),   P = sum_j w_j D_j + (1 - W) D_neg

(Liu et al. 2022, https://arxiv.org/abs/2206.01714), so guidance needs ``P`` and nothing else of the composition:
`Composing.pair` gives it. Without guidance there is no D_neg, and the prediction is the weighted mean, ``W`` being 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from attrs import frozen
from torch import Tensor

from sdkit import Conditions, Denoiser, InvalidRequest, Level, NoiseSchedule, concatenate, map_tensors

__all__ = ["Composed", "Composing", "composing"]

C = TypeVar("C")


@frozen(eq=False)
class Composed(Generic[C]):
    """What a composing denoiser is conditioned on.

    Attributes:
        parts: k conditionings of batch b: row i of part p is the p-th thing that the prompt of image i ever says.
        which: (b, m, n) int64 on the CPU: the part that branch j of image i says in a segment.
        starts: (b, n) float64 on the CPU: the log_snr at which a segment begins; the first is -inf.
        weights: (b, m, n) float64 on the CPU: the weights of the branches in a segment; 0 where there is none.
    """

    parts: tuple[C, ...]
    which: Tensor
    starts: Tensor
    weights: Tensor


@frozen(eq=False)
class Composing(Generic[C]):
    """A denoiser of composed conditionings; the one inside sees those of single prompts only. Made by `composing`."""

    denoiser: Denoiser[C]

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The schedule of the denoiser inside."""
        return cast("NoiseSchedule | None", getattr(self.denoiser, "schedule", None))

    def __call__(self, x: Tensor, level: Level, cond: Composed[C], /) -> Tensor:
        """The mean of the branches' predictions, in one forward pass.

        Raises:
            InvalidRequest: the weights of a prompt sum to zero or less, which only guidance gives a meaning.
        """
        return _mean(self._sums(x, level, cond), level, cond)

    def pair(self, x: Tensor, level: Level, cond: Conditions[Composed[C]], /) -> tuple[Tensor, Tensor]:
        """What guidance moves toward, ``P``, and away from, ``D_neg``, in one forward pass."""
        inner = getattr(self.denoiser, "pair", None)
        if inner is not None:
            sums, negatives = self._paired(inner, x, level, cond)
        else:
            twice = x.repeat(2, *[1] * (x.ndim - 1))
            sums, negatives = self._sums(twice, level, concatenate(cond.positive, cond.negative)).chunk(2)
        negative = _mean(negatives, level, cond.negative)
        rest = 1 - _totals(level, cond.positive)
        if not rest.any():
            return sums, negative
        return sums + negative * rest.to(x).reshape(-1, *[1] * (x.ndim - 1)), negative

    def _paired(
        self, inner: Callable[..., Sequence[Tensor]], x: Tensor, level: Level, cond: Conditions[Composed[C]]
    ) -> tuple[Tensor, Tensor]:
        """The sums of both sides from a denoiser that itself answers both at once: each branch with a negative."""
        both = (cond.positive, cond.negative)
        sides = [_branches(level, side) for side in both]
        counts = [max(1, *map(len, branches)) for branches in zip(*sides, strict=True)]
        images = [image for image, count in enumerate(counts) for _ in range(count)]
        self._refuse_per_image(images, len(x))
        # the shorter side of an image repeats its last branch with weight 0
        filled = [
            [
                entry
                for row, count in zip(side, counts, strict=True)
                for entry in (*row, *[(row[-1][0] if row else 0, 0.0)] * (count - len(row)))
            ]
            for side in sides
        ]
        chosen = [
            _chosen(side.parts, [(image, part) for image, (part, _) in zip(images, row, strict=True)])
            for side, row in zip(both, filled, strict=True)
        ]
        found = inner(torch.stack([x[image] for image in images]), level, Conditions(*chosen))
        positive, negative = (
            _added(prediction, images, [weight for _, weight in row], x)
            for prediction, row in zip(found, filled, strict=True)
        )
        return positive, negative

    def _refuse_per_image(self, images: list[int], count: int) -> None:
        if images != list(range(count)) and getattr(self.denoiser, "per_image", False):
            raise InvalidRequest(
                "A batch with an adapter of another strength for each image cannot join prompts by AND; make the "
                "images one by one."
            )

    def _sums(self, x: Tensor, level: Level, cond: Composed[C]) -> Tensor:
        """``sum_j w_j D_j`` per image; branches of weight 0 are not computed."""
        rows = [(image, *branch) for image, said in enumerate(_branches(level, cond)) for branch in said]
        images = [image for image, _, _ in rows]
        once = images == list(range(len(x)))
        self._refuse_per_image(images, len(x))
        if once and len({part for _, part, _ in rows}) == 1:
            chosen = cond.parts[rows[0][1]]
        else:
            chosen = _chosen(cond.parts, [(image, part) for image, part, _ in rows])
        found = self.denoiser(x if once else torch.stack([x[image] for image in images]), level, chosen)
        if once and all(weight == 1 for _, _, weight in rows):
            return found
        return _added(found, images, [weight for _, _, weight in rows], x)


def _branches(level: Level, cond: Composed[Any]) -> list[list[tuple[int, float]]]:
    """Per image, (part, weight) of what it says at a level; all on the host, so that no step waits for a device."""
    said, weights = _now(cond.which, level, cond).tolist(), _now(cond.weights, level, cond).tolist()
    return [
        [(part, weight) for part, weight in zip(branches, shares, strict=True) if weight != 0]
        for branches, shares in zip(said, weights, strict=True)
    ]


def _chosen(parts: tuple[C, ...], rows: list[tuple[int, int]]) -> C:
    """The conditioning of rows (image, part)."""
    return map_tensors(lambda *trees: torch.stack([trees[part][image] for image, part in rows]), *parts)


def _added(found: Tensor, images: list[int], weights: list[float], x: Tensor) -> Tensor:
    """``sum_j w_j D_j`` per image of ``x``, from predictions of rows; a row of weight 0 adds nothing."""
    sums: list[Any] = [None] * len(x)
    for image, weight, prediction in zip(images, weights, found, strict=True):
        if weight != 0:
            term = prediction * weight
            sums[image] = term if sums[image] is None else sums[image] + term
    return torch.stack([torch.zeros_like(x[0]) if one is None else one for one in sums])


def _now(table: Tensor, level: Level, cond: Composed[Any]) -> Tensor:
    """The column (b, m) of a table (b, m, n) for the segment in which each image is at a level."""
    segments = (cond.starts <= level.log_snr).sum(dim=1).clamp(min=1) - 1
    return table.gather(2, segments[:, None, None].expand(-1, table.shape[1], 1))[..., 0]


def _totals(level: Level, cond: Composed[Any]) -> Tensor:
    """(b,) float64: the total weight of each image's prompt, rounding errors such as 0.1 + 0.2 - 0.3 removed."""
    totals = _now(cond.weights, level, cond).sum(dim=1)
    return torch.where((totals - totals.round()).abs() < 1e-12, totals.round(), totals)


def _mean(sums: Tensor, level: Level, cond: Composed[Any]) -> Tensor:
    totals = _totals(level, cond)
    if not bool((totals > 0).all()):
        raise InvalidRequest(
            f"The weights of the prompts joined by AND sum to {float(totals.min()):g}; without guidance, and in a "
            "negative prompt, they must sum to more than 0."
        )
    if bool((totals == 1).all()):
        return sums
    return sums / totals.to(sums).reshape(-1, *[1] * (sums.ndim - 1))


def composing(denoiser: Denoiser[C]) -> Composing[C]:
    """A denoiser that takes composed conditionings, around one that takes plain ones.

    Guidance goes around it (`sdkit.guided`), everything that looks into a conditioning inside.
    """
    return Composing(denoiser)
