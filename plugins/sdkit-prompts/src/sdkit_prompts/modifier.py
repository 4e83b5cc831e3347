"""A dialect at work: an encoder around an encoder, and the modifier that puts it into a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from sdkit import Grid, InvalidRequest, ParameterError, Parts, map_tensors, registry, take
from sdkit_prompts import laws
from sdkit_prompts.compel import Compel
from sdkit_prompts.composed import Composed, composing
from sdkit_prompts.steps import Flat, Mixture, Moment, flatten, schedule
from sdkit_prompts.tree import Break, Dialect, Prompt, Text, adapters

__all__ = ["GUIDANCE", "Prompted", "Prompts", "WeighingEncoder", "flat"]

C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)
GUIDANCE = "guidance"
"""The law of encoders that know no weights: D + sum_f (w_f - 1) (D - D_f), D_f without fragment f; see `_weighed`."""


class WeighingEncoder(Protocol[C_co]):
    """An encoder that takes weights, breaks and embeddings itself; `sdkit_prompts.chunks.encode` does the work."""

    def __call__(self, prompts: Sequence[str], /) -> C_co:
        """Plain prompts to a conditioning."""
        ...

    def weighted(self, flats: Sequence[Flat], law: str, /) -> C_co:
        """Flat prompts to a conditioning, of the same shapes for all of them; ``law`` is one of `laws.LAWS`."""
        ...


def flat(text: str, dialect: str | Dialect = "a1111", *, step: int = 0, steps: int = 1) -> Flat:
    """What a prompt says at one step, as texts with weights, embeddings and breaks.

    Args:
        text: The prompt.
        dialect: The name of a dialect, parameters may follow, or a dialect.
        step: Which step, from 0.
        steps: Of how many.

    Raises:
        InvalidRequest: it joins or blends several prompts, or asks for adapters.
        UnknownComponent: no dialect has that name.
    """
    tree = _dialect(dialect).parse(text)
    if not isinstance(tree, Prompt):
        raise InvalidRequest(f"{text!r} joins several prompts; sdkit_prompts.steps.schedule tells them apart.")
    _refuse_adapters(text, adapters(tree))
    return flatten(tree, step, steps)


def _dialect(dialect: str | Dialect) -> Dialect:
    made: Dialect = registry().make("prompt-dialect", dialect) if isinstance(dialect, str) else dialect
    return made


def _refuse_adapters(text: str, found: Sequence[Any]) -> None:
    if found:
        names = ", ".join(f"<{adapter.kind}:{adapter.name}>" for adapter in found)
        raise InvalidRequest(
            f"The prompt {text!r} asks for {names}, and a prompt opens no files: take it out, and give the adapter as "
            "a modifier."
        )


@frozen(eq=False)
class Prompted(Generic[C]):
    """An encoder that reads a dialect; what it gives is for a `composing` denoiser.

    Attributes:
        encoder: What encodes single prompts.
        dialect: How prompts are read.
        law: What weights do: one of `laws.LAWS` for an encoder with ``weighted``, or ``"guidance"``.
        grid: The way that will be walked; without it, prompts that change on the way are refused.
    """

    encoder: Any
    dialect: Dialect
    law: str
    grid: Grid | None = None

    @property
    def per_image(self) -> bool:
        """Whether the encoder inside must be asked for every image, even where prompts are the same."""
        return bool(getattr(self.encoder, "per_image", False))

    def along(self, grid: Grid, /) -> Prompted[C]:
        """The encoder for a run along ``grid``."""
        inner = self.encoder.along(grid) if hasattr(self.encoder, "along") else self.encoder
        return attrs.evolve(self, encoder=inner, grid=grid)

    def __call__(self, prompts: Sequence[str], /) -> Composed[C]:
        """The conditioning of prompts, b of them.

        Raises:
            InvalidRequest: a prompt asks for adapters, changes with the steps where none are known, or says what the
                encoder cannot take.
        """
        stories = [self._story(prompt) for prompt in prompts]
        mixtures = [list(dict.fromkeys(m for moment in story for m, _ in moment)) for story in stories]
        most = max((len(row) for row in mixtures), default=1)
        # a prompt that says fewer things than others repeats its last, which is never looked up under that number
        columns = [[row[min(place, len(row) - 1)] for row in mixtures] for place in range(most)]
        if self.per_image:
            parts = tuple(self._encode(column) for column in columns)
        else:
            distinct = list(dict.fromkeys(mixture for column in columns for mixture in column))
            encoded, rows = self._encode(distinct), {mixture: row for row, mixture in enumerate(distinct)}
            parts = tuple(take(encoded, [rows[mixture] for mixture in column]) for column in columns)
        return Composed(parts, *self._tables(stories, mixtures))

    def _story(self, prompt: str) -> tuple[Moment, ...]:
        tree = self.dialect.parse(prompt)
        _refuse_adapters(prompt, adapters(tree))
        steps = 2 if self.grid is None else len(self.grid) - 1
        story = tuple(_weighed(moment) if self.law == GUIDANCE else moment for moment in schedule(tree, steps))
        if self.grid is None and (len(set(story)) > 1 or len(set(schedule(tree, 1000))) > 1):
            raise InvalidRequest(
                f"The prompt {prompt!r} changes with the steps, which are not known here: call encoder.along(grid) "
                "first, as a pipeline does."
            )
        return story

    def _tables(
        self, stories: Sequence[tuple[Moment, ...]], mixtures: Sequence[Sequence[Mixture]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``which``, ``starts`` and ``weights`` of `Composed`."""
        cuts = [[i for i, moment in enumerate(story) if i == 0 or moment != story[i - 1]] for story in stories]
        n = max((len(row) for row in cuts), default=1)
        m = max((len(moment) for story in stories for moment in story), default=1)
        which = torch.zeros(len(stories), m, n, dtype=torch.long)
        starts = torch.zeros(len(stories), n, dtype=torch.float64)
        weights = torch.zeros(len(stories), m, n, dtype=torch.float64)
        for row, (story, said, begins) in enumerate(zip(stories, mixtures, cuts, strict=True)):
            for segment in range(n):
                begin = begins[min(segment, len(begins) - 1)]
                starts[row, segment] = -torch.inf if begin == 0 or self.grid is None else self.grid[begin].log_snr
                for branch, (mixture, weight) in enumerate(story[begin]):
                    which[row, branch, segment] = said.index(mixture)
                    weights[row, branch, segment] = weight
        return which, starts, weights

    def _encode(self, mixtures: Sequence[Mixture]) -> Any:
        """The conditionings of mixtures, one row each."""
        if self.per_image:
            if any(len(mixture) > 1 for mixture in mixtures):
                raise InvalidRequest("A blend cannot be encoded anew for each image; use AND instead.")
            return self._flats([mixture[0][0] for mixture in mixtures])
        flats = list(dict.fromkeys(flat for mixture in mixtures for flat, _ in mixture))
        rows = {flat: row for row, flat in enumerate(flats)}
        encoded = self._flats(flats)
        if all(len(mixture) == 1 for mixture in mixtures):
            return take(encoded, [rows[mixture[0][0]] for mixture in mixtures])
        shares = [[(rows[flat], share) for flat, share in mixture] for mixture in mixtures]
        return map_tensors(lambda tensor: torch.stack([_mixed(tensor, share) for share in shares]), encoded)

    def _flats(self, flats: Sequence[Flat]) -> Any:
        return (
            self.encoder([_text(f) for f in flats]) if self.law == GUIDANCE else self.encoder.weighted(flats, self.law)
        )


def _mixed(tensor: Tensor, shares: Sequence[tuple[int, float]]) -> Tensor:
    """A weighted sum of rows; a mask is true where any of them is."""
    if tensor.dtype == torch.bool:
        return torch.stack([tensor[row] for row, _ in shares]).any(dim=0)
    if not tensor.is_floating_point():
        raise InvalidRequest("This model's encoder gives whole numbers, of which there is no blend; use AND instead.")
    return torch.stack([tensor[row] * share for row, share in shares]).sum(dim=0)


def _text(flat: Flat) -> str:
    if any(isinstance(node, Break) for node in flat):
        raise InvalidRequest("This model's encoder reads a prompt in one piece; take BREAK out of it.")
    return "".join(node.text if isinstance(node, Text) else node.name for node in flat if not isinstance(node, Break))


def _weighed(moment: Moment) -> Moment:
    """Weights as composition: ``D + sum_f (w_f - 1) (D - D_f)``, where D_f lacks the fragment f.

    It needs nothing of an encoder but text, at one more prediction for each fragment of weight other than 1; its
    weights sum to those of the moment.
    """
    found: list[tuple[Mixture, float]] = []
    for mixture, weight in moment:
        plain = tuple((_unweighted(flat), share) for flat, share in mixture)
        own, lacking = 1.0, []
        for place, (flat, share) in enumerate(mixture):
            for part, node in enumerate(flat):
                if not isinstance(node, Break) and node.weight != 1:
                    rest = _unweighted(flat[:part] + flat[part + 1 :])
                    lacking.append(((*plain[:place], (rest, share), *plain[place + 1 :]), 1 - node.weight))
                    own += node.weight - 1
        found += [(plain, weight * own), *((mixture, weight * factor) for mixture, factor in lacking)]
    return tuple(found)


def _unweighted(flat: Flat) -> Flat:
    nodes = tuple(node if isinstance(node, Break) else attrs.evolve(node, weight=1.0) for node in flat)
    return flatten(Prompt(nodes), 0, 1)


def _known_law(_: object, __: object, law: str | None) -> None:
    if law not in (None, GUIDANCE, *laws.LAWS):
        raise ParameterError(f"There is no weight law {law!r}; known: {', '.join((*laws.LAWS, GUIDANCE))}.")


@frozen
class Prompts:
    """A modifier: prompts are read in a dialect. It must be the last modifier of a request.

    Attributes:
        dialect: The name of a dialect, parameters may follow.
        law: What weights do; by default what the dialect's own tool does if the model's encoder takes weights, else
            ``"guidance"``, which every model can do.
    """

    dialect: str = "a1111"
    law: str | None = field(default=None, validator=_known_law)

    def apply(self, parts: Parts[Any, Any, Any], /) -> AbstractContextManager[Parts[Any, Any, Any]]:
        """A scope in which prompts are read so.

        Raises:
            InvalidRequest: the law needs an encoder that takes weights, and the model's does not.
            UnknownComponent: no dialect has that name.
        """
        return self._applied(parts)

    @contextmanager
    def _applied(self, parts: Parts[Any, Any, Any]) -> Iterator[Parts[Any, Any, Any]]:
        dialect = _dialect(self.dialect)
        weighs = hasattr(parts.encoder, "weighted")
        own = "compel" if isinstance(dialect, Compel) else "a1111"
        law = self.law or (own if weighs else GUIDANCE)
        if law != GUIDANCE and not weighs:
            raise InvalidRequest(
                f"The weight law {law!r} acts on the embeddings of tokens, and this model's encoder gives none; leave "
                f"law out, or take {GUIDANCE!r}."
            )
        yield attrs.evolve(parts, encoder=Prompted(parts.encoder, dialect, law), denoiser=composing(parts.denoiser))
