"""Layers that look along the frames of a clip, put between the frozen blocks of the image model's U-Net.

Frames lie on a circle: frame k of f is at the angle ``2 pi k / f``, and layers know angles between frames alone. So a
clip is a closed loop by construction, clips of any number of frames go through the same layers, and turning the frames
of what goes in turns the frames of what comes out, neither more nor less. Where nothing was learned yet the layers
change nothing, and every frame is a picture of the image model.

The noise of the frames lies on the circle too: the same at every angle in part, and for the rest waves of random
strength, the slow ones the strongest; so neighbouring frames begin alike, and the noise of every frame alone is
standard normal, as the image model expects.

Sources: motion modules in a frozen image model, Guo et al. 2023, https://arxiv.org/abs/2307.04725. Angles by rotating
queries and keys, Su et al. 2021, https://arxiv.org/abs/2104.09864; here values are rotated as well, so that a layer can
tell what is before from what is after. Noise that frames share in part, Ge et al. 2023,
https://arxiv.org/abs/2305.10474.

Notation: b clips, f frames of each, c channels, h x w elements of a latent, m a harmonic (turns per clip).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from safetensors import SafetensorError
from safetensors import safe_open as opened_safely
from torch import Tensor, nn
from torch.nn import functional as F

from sdkit import AddressedNoise, ContractError, FileError, Grid, Level, ParameterError
from sdkit_emoji.networks import TextStates, UNet

__all__ = ["Circle", "CircleNoise", "Motion", "Moving", "circle", "layers_for", "load_motion"]

HARMONICS = 5
"""Angles are told apart by 0 to 4 turns per clip: 4 is the most that 8 frames can show."""
WAVES = 8
"""Harmonics of the noise, so that the noise of 16 frames spans all that 16 frames can be."""
TRAVEL = 0.5
"""Share of the noise's variance that differs between frames, unless something else is asked for."""


class Along(nn.Module):
    """Attention along the frames at each place of the picture, and a small network of each frame after it.

    Args:
        width: Channels, a multiple of twice the heads.
        heads: Attention heads.
        widening: Width of the small network inside, in widths.
    """

    def __init__(self, width: int, heads: int = 4, widening: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, widening * width)
        self.down = nn.Linear(widening * width, width)
        for last in (self.out, self.down):  # nothing is changed before something is learned
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Of x (b f, c, h, w), frames of a clip one after the other -> the same shape."""
        c, h, w = x.shape[1:]
        tokens = x.reshape(-1, frames, c, h * w).permute(0, 3, 1, 2).reshape(-1, frames, c)
        split = (tokens.shape[0], frames, 3, self.heads, c // self.heads)
        # (3, rows, heads, f, c / heads)
        qkv = self.qkv(self.norm(tokens)).view(split).permute(2, 0, 3, 1, 4)
        cos, sin = _angles(frames, split[-1] // 2, x)
        query, key, value = turned(qkv, cos, sin).unbind(0)
        mixed = turned(F.scaled_dot_product_attention(query, key, value), cos, -sin)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(-1, frames, c))
        tokens = tokens + self.down(F.gelu(self.up(self.norm_mlp(tokens))))
        made: Tensor = tokens.reshape(-1, h * w, frames, c).permute(0, 2, 3, 1).reshape(x.shape)
        return made


def _angles(frames: int, pairs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (frames, pairs) of the frames' angles, each pair of channels with its harmonic."""
    steps = torch.arange(frames, device=like.device, dtype=torch.float64) * (2 * math.pi / frames)
    harmonics = torch.arange(pairs, device=like.device, dtype=torch.float64) % HARMONICS
    angles = steps[:, None] * harmonics
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of channels of x (..., f, 2 pairs) turned by angles given as (f, pairs)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def layers_for(unet: UNet) -> dict[int, int]:
    """Where motion layers go, and their widths: the middle and all blocks upwards.

    What is before them does not depend on the other frames, so training needs no gradients there.
    """
    widths, first = unet.places(), len(unet.down)
    return {place: widths[place] for place in range(first, len(widths))}


class Motion(nn.Module):
    """The motion module: a layer for each of some places of a U-Net.

    Args:
        layers: Widths by number of the place, see `UNet.places`; JSON makes the numbers texts.
        heads: Attention heads.
        widening: See `Along`.
    """

    def __init__(self, layers: Mapping[Any, int], heads: int = 4, widening: int = 2) -> None:
        super().__init__()
        self.widths = {str(place): width for place, width in layers.items()}
        self.layers = nn.ModuleDict({place: Along(width, heads, widening) for place, width in self.widths.items()})

    def forward(self, place: int, x: Tensor, frames: int) -> Tensor:
        """What goes on from a place of the U-Net, of x (b f, c, h, w)."""
        name = str(place)
        if name not in self.layers:
            return x
        made: Tensor = self.layers[name](x, frames)
        return made

    def fits(self, unet: UNet) -> bool:
        """Whether its layers have the widths of the U-Net's places."""
        widths = unet.places()
        return all(int(name) < len(widths) and width == widths[int(name)] for name, width in self.widths.items())


@frozen(eq=False)
class Moving:
    """A network of clips: what `sdkit.NetworkDenoiser` asks in the place of the U-Net.

    Attributes:
        unet: The image model's.
        motion: The motion module, or None for none.
        frames: Of a clip; the rows of a batch are the frames of one or several clips.
    """

    unet: UNet = field(repr=False)
    motion: Motion | None = field(repr=False)
    frames: int

    def __call__(self, x: Tensor, time: Tensor, cond: TextStates, /) -> Tensor:
        """The predicted flow of x (b f, channels, h, w).

        Raises:
            ContractError: the batch is no whole number of clips.
        """
        motion = self.motion
        if motion is None:
            return self.unet(x, time, cond)  # type: ignore[no-any-return]
        if x.shape[0] % self.frames:
            raise ContractError(f"A batch of {x.shape[0]} is no whole number of clips of {self.frames} frames.")
        return self.unet.run(
            x, time, cond.tokens, cond.mask, cond.pooled, lambda place, y: motion(place, y, self.frames)
        )


def circle(frames: int, travel: float = TRAVEL) -> Tensor:
    """How the noise of frames is mixed of independent noises: (frames, 1 + 2 `WAVES`) float64, rows of length one.

    Column 0 is what all frames share; 2 m - 1 and 2 m are the cosine and sine of m turns per clip, whose variances
    fall as 1 / m^2. The rows of ``2 frames`` at even numbers are those of ``frames``.

    Args:
        frames: Of the clip.
        travel: Share of the variance that is not shared by all frames, 0 to 1.
    """
    harmonics = torch.arange(1, WAVES + 1, dtype=torch.float64)
    shares = travel * harmonics**-2 / (harmonics**-2).sum()
    angles = torch.arange(frames, dtype=torch.float64)[:, None] * (2 * math.pi / frames) * harmonics
    waves = torch.stack([angles.cos(), angles.sin()], dim=2) * shares.sqrt()[:, None]
    return torch.cat([torch.full((frames, 1), math.sqrt(1 - travel), dtype=torch.float64), waves.flatten(1)], dim=1)


@frozen
class CircleNoise:
    """Noise of the frames of a clip, all of one seed; see `circle`.

    Attributes:
        seeds: One per row; each clip's are the same.
        frames: Of a clip.
        travel: See `circle`.
    """

    seeds: tuple[int, ...]
    frames: int
    travel: float

    def initial(self, like: Tensor, /) -> Tensor:
        """Noise the run starts from, of the shape of ``like``."""
        return self._mixed(like, lambda source, one: source.initial(one))

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        """Noise of a step, for solvers that add some: on the circle as well."""
        return self._mixed(like, lambda source, one: source(one, start, stop))

    def _mixed(self, like: Tensor, draw: Any) -> Tensor:
        if like.shape[0] != len(self.seeds):
            raise ContractError(f"There are {len(self.seeds)} seeds for a batch of {like.shape[0]}.")
        weights = circle(self.frames, self.travel)
        bases: dict[int, Tensor] = {}
        rows = []
        for row, seed in enumerate(self.seeds):
            if seed not in bases:
                one = torch.empty((1, *like.shape[1:]), dtype=torch.float64)
                sources = [AddressedNoise((seed,), f"circle {wave}") for wave in range(weights.shape[1])]
                bases[seed] = torch.cat([draw(source, one) for source in sources])
            rows.append(torch.einsum("k,k...->...", weights[row % self.frames], bases[seed]))
        return torch.stack(rows).to(device=like.device, dtype=like.dtype)


@frozen
class Circle:
    """A source of noise for closed loops: the frames of a clip are the rows of a batch.

    Attributes:
        frames: Of a clip, at least 1.
        travel: Share of the noise's variance that differs between frames, 0 to 1; 0 makes all frames the same.

    Raises:
        ParameterError: a value is out of range.
    """

    frames: int
    travel: float = TRAVEL

    def __attrs_post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or self.frames < 1:
            raise ParameterError(f"frames is a whole number of at least 1, not {self.frames!r}.")
        check_travel(self.travel)

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> CircleNoise:
        """The noise of a run."""
        return CircleNoise(tuple(seeds), self.frames, float(self.travel))


def check_travel(travel: Any) -> None:
    """Raises `ParameterError` unless it is a share."""
    if isinstance(travel, bool) or not isinstance(travel, (int, float)) or not 0 <= travel <= 1:
        raise ParameterError(
            f"travel is the share of the noise that differs between frames, 0 (a still picture) to 1, not {travel!r}."
        )


def load_motion(file: str | os.PathLike[str], unet: UNet) -> Motion:
    """A motion module, in float32 where the U-Net is, ready for use.

    Args:
        file: A ``.safetensors`` file that ``training/train_motion.py`` wrote.
        unet: The image model's.

    Raises:
        FileError: it cannot be read, is no motion module, or is one for another U-Net.
    """
    path = Path(file)
    about, tensors = _read(path)
    try:
        with torch.device("meta"):
            motion = Motion(**about["config"])
        motion.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"{path.name!r} is damaged or no motion module of this version: {error}") from error
    if not motion.fits(unet):
        raise FileError(f"The motion module {path.name!r} was made for a U-Net with blocks of other widths.")
    return motion.to(next(unet.parameters()).device).eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with opened_safely(path, "pt") as opened:
            about = json.loads((opened.metadata() or {}).get("motion", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except OSError as error:
        raise FileError(f"The motion module {path.name!r} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, ValueError) as error:
        raise FileError(f"{path.name!r} is damaged or no motion module: {error}") from error
    if not isinstance(about, dict):
        raise FileError(f"{path.name!r} is no motion module: its header does not say how it is built.")
    return about, tensors


def digest(parts: Sequence[Tensor]) -> str:
    """SHA-256 of tensors' values, hexadecimal: which image model a motion module was trained on."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()
