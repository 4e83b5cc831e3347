"""The judge: a small network that says which concept and which style a picture shows.

It learned from real drawings alone (`train_judge.py`), never from a picture that the model made nor through the model's
autoencoder, so that its opinion is worth something. A classifier over all concepts, not a pair of towers with a shared
space: what is asked is which of the known concepts a picture shows, and near names ("cat", "cat face") must be told
apart by their drawings, not by their words.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SIDE", "WEIGHTS", "Judge", "Judgement", "Network", "load", "save", "shrink"]

SIDE = 64
"""Pixels of a side of what the judge looks at."""
WEIGHTS = Path(__file__).resolve().parent / "judge.safetensors"


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a straight way (He et al. 2016, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) to the same shape."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))


class Down(nn.Module):
    """Half the size, another width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h / 2, w / 2)."""
        return F.relu(self.norm(self.conv(x)))


class Painting(nn.Module):
    """How a picture is painted: colours and small patches, pooled over the whole picture; to scores of styles.

    It sees colours one by one and patches of up to 19 pixels, never a whole drawing: a head on the end of the body that
    names concepts had learned in which styles it had seen a concept, not how it is painted.

    Args:
        styles: How many styles.
    """

    PALETTE, WIDTHS = 48, (16, 40, 64)

    def __init__(self, styles: int) -> None:
        super().__init__()
        one, two, three = self.WIDTHS
        self.palette = nn.Sequential(
            nn.Conv2d(3, self.PALETTE, 1), nn.ReLU(), nn.Conv2d(self.PALETTE, self.PALETTE, 1), nn.ReLU()
        )
        self.patches = nn.ModuleList(
            nn.Sequential(*steps)
            for steps in (
                self._step(3, one, 1),
                [*self._step(one, two, 2), *self._step(two, two, 1)],
                [*self._step(two, three, 2), *self._step(three, three, 1)],
            )
        )
        pooled = 2 * self.PALETTE + 3 * sum(self.WIDTHS)
        self.head = nn.Sequential(
            nn.BatchNorm1d(pooled),
            nn.Dropout(0.3),
            nn.Linear(pooled, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, styles),
        )

    @staticmethod
    def _step(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, 64, 64) in [0, 1] -> scores (b, styles)."""
        x = images * 4 - 2
        parts = self._pooled(self.palette(x[:, :, ::2, ::2]))[:2]
        for step in self.patches:
            x = step(x)
            parts += self._pooled(x)
        scores: Tensor = self.head(torch.cat(parts, 1).float())
        return scores

    @staticmethod
    def _pooled(maps: Tensor) -> list[Tensor]:
        """Mean, standard deviation and maximum of every channel, (b, c) each."""
        mean = maps.mean((2, 3))
        deviation = (maps.square().mean((2, 3)) - mean.square()).clamp_min(1e-4).sqrt()
        return [mean, deviation, maps.amax((2, 3))]


class Network(nn.Module):
    """The judge's network: pictures of 64 x 64 to features of length one, and from these to concepts and styles.

    Args:
        widths: Channels at sides of 32, 16, 8 and 4 pixels.
        features: Length of the feature vector.
        concepts: How many concepts it tells apart.
        styles: How many styles.
    """

    def __init__(self, widths: Sequence[int], features: int, concepts: int, styles: int) -> None:
        super().__init__()
        one, two, three, four = widths
        self.body = nn.Sequential(
            Down(3, one),
            Down(one, two),
            Block(two),
            Down(two, three),
            Block(three),
            Down(three, four),
            Block(four),
        )
        self.features = nn.Linear(four * 4, features)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.concepts = nn.Parameter(torch.zeros(concepts, features))
        self.styles = Painting(styles)

    def look(self, images: Tensor) -> Tensor:
        """Images (b, 3, 64, 64) in [0, 1] -> maps of the body at a side of 4 pixels."""
        maps: Tensor = self.body(images * 4 - 2)
        return maps

    def name(self, late: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of the body's end -> features (b, f) of length one and concept scores (b, c)."""
        features = F.normalize(self.features(F.adaptive_avg_pool2d(late, 2).flatten(1)), dim=-1)
        return features, self.scale.exp() * features @ F.normalize(self.concepts, dim=-1).T

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (b, 3, 64, 64) in [0, 1] -> features (b, f) of length one, concept scores (b, c), style scores (b, s).

        Scores are logits.
        """
        return *self.name(self.look(images)), self.styles(images)


def shrink(images: Tensor) -> Tensor:
    """Images (b, 3, h, w) with sides in whole multiples of 64 -> (b, 3, 64, 64), by means over squares.

    Raises:
        ValueError: a side is no multiple of 64.
    """
    height, width = images.shape[-2:]
    if height % SIDE or width % SIDE or not height or not width:
        raise ValueError(f"The judge looks at pictures whose sides are multiples of {SIDE}, not {width} x {height}.")
    return F.avg_pool2d(images, (height // SIDE, width // SIDE))


@frozen(eq=False)
class Judgement:
    """What the judge says of pictures, b of them.

    Attributes:
        features: Of length one, (b, f).
        concepts: Log-probabilities over all concepts, (b, c).
        styles: Log-probabilities over the styles, (b, s).
    """

    features: Tensor
    concepts: Tensor
    styles: Tensor


@frozen(eq=False)
class Judge:
    """A judge, ready for use.

    Attributes:
        network: Its network.
        concepts: Names of the concepts it tells apart.
        styles: Names of the styles.
        facts: What was measured on held-out drawings when it was trained.
        sha256: Of its weights file.
    """

    network: Network = field(repr=False)
    concepts: tuple[str, ...] = field(repr=False)
    styles: tuple[str, ...]
    facts: dict[str, Any] = field(repr=False)
    sha256: str

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 64) -> Judgement:
        """Images (b, 3, h, w) in [0, 1], sides in multiples of 64."""
        parts = [self.network(shrink(part.float())) for part in torch.split(images, batch)] if len(images) else []
        if not parts:
            parts = [self.network(images.new_zeros(1, 3, SIDE, SIDE).float())]
        features, concepts, styles = (torch.cat(part)[: len(images)] for part in zip(*parts, strict=True))
        return Judgement(features, concepts.log_softmax(-1), styles.log_softmax(-1))

    def columns(self, labels: Sequence[str]) -> Tensor:
        """Where concepts stand among the judge's.

        Raises:
            ValueError: a label is none of them.
        """
        place = {name: index for index, name in enumerate(self.concepts)}
        unknown = sorted({label for label in labels if label not in place})
        if unknown:
            raise ValueError(f"The judge does not know {', '.join(map(repr, unknown))}.")
        return torch.tensor([place[label] for label in labels])


def save(path: Path, network: Network, about: dict[str, Any]) -> None:
    """Write a judge: weights as float16, and as JSON in the header widths, features, concepts, styles and facts."""
    tensors = {name: value.half() for name, value in network.state_dict().items() if value.is_floating_point()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"judge": json.dumps(about)})


def load(path: str | os.PathLike[str] = WEIGHTS) -> Judge:
    """Read a judge.

    Raises:
        ValueError: the file is missing, damaged or no judge.
    """
    file = Path(path)
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {})["judge"])
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 - no mapping
        with torch.device("meta"):
            network = Network(about["widths"], about["features"], len(about["concepts"]), len(about["styles"]))
        counters = {name: torch.tensor(0) for name, value in network.state_dict().items() if value.ndim == 0}
        network.load_state_dict({**counters, **tensors}, assign=True)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"The judge cannot be read from {file.name!r}: {error}") from error
    network.eval().requires_grad_(False)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Judge(network, tuple(about["concepts"]), tuple(about["styles"]), about["facts"], sha256)
