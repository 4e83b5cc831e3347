"""The three networks of the emoji model, as plain ``torch.nn`` modules built from a JSON-able configuration.

Notation: b batch, c channels, h and w height and width, n text tokens, d width of the text states.
None of them mixes the items of a batch: item k of a batch equals it alone, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdkit import LatentSpec

__all__ = ["Autoencoder", "TextEncoder", "TextStates", "UNet"]


@attrs.frozen(eq=False)
class TextStates:
    """What the denoiser knows of the prompts.

    Attributes:
        tokens: (b, n, d) float, one state per token; zero under the mask. n is the same for every prompt.
        mask: (b, n) bool, true where a token is.
        pooled: (b, d) float, one state per prompt.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class PlainBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` without normalisation; the second convolution starts small."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)
            self.second.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) -> the same shape."""
        out: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return out


class Autoencoder(nn.Module):
    """Pictures of height and width h, w (multiples of 8) to latents of h / 8, w / 8, and back.

    Args:
        channels: latent channels.
        widths: widths at 1/2, 1/4 and 1/8 of the picture's size.
        encoder_blocks: residual blocks of the encoder at 1/4 and 1/8.
        decoder_blocks: residual blocks of the decoder at 1/8, 1/4 and 1/2.
    """

    mean: Tensor
    std: Tensor
    latent: LatentSpec

    def __init__(
        self,
        channels: int = 8,
        widths: Sequence[int] = (32, 64, 128),
        encoder_blocks: Sequence[int] = (1, 2),
        decoder_blocks: Sequence[int] = (3, 2, 1),
    ) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            *(PlainBlock(quarter) for _ in range(encoder_blocks[0])),
            nn.Conv2d(quarter, eighth, 4, stride=2, padding=1),
            *(PlainBlock(eighth) for _ in range(encoder_blocks[1])),
            nn.ReLU(),
            nn.Conv2d(eighth, channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, eighth, 3, padding=1),
            *(PlainBlock(eighth) for _ in range(decoder_blocks[0])),
            nn.Conv2d(eighth, 4 * quarter, 1),
            nn.PixelShuffle(2),
            *(PlainBlock(quarter) for _ in range(decoder_blocks[1])),
            nn.Conv2d(quarter, 4 * half, 1),
            nn.PixelShuffle(2),
            *(PlainBlock(half) for _ in range(decoder_blocks[2])),
            nn.ReLU(),
            nn.Conv2d(half, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def encode(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1] -> latents (b, channels, h / 8, w / 8), about zero mean and unit variance."""
        raw: Tensor = self.encoder(2 * images.to(self.mean.dtype) - 1)
        return (raw - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (b, 3, h, w), not clamped: what training compares."""
        out: Tensor = self.decoder(latents.to(self.mean.dtype) * self.std[:, None, None] + self.mean[:, None, None])
        return out + 0.5

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (b, channels, h / 8, w / 8) -> images (b, 3, h, w) in [0, 1]."""
        return self.decode(latents).clamp(0, 1)


class TextLayer(nn.Module):
    """One bidirectional transformer layer, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Of x (b, n, d) and mask (b, n), true where a token is -> (b, n, d)."""
        b, n, d = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, n, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm_mlp(x))))
        return out


class TextEncoder(nn.Module):
    """Token ids to token states and one pooled state, whose direction is that of a sentence embedding.

    Args:
        vocabulary: number of tokens.
        width: width of token states and of the pooled state.
        layers: number of transformer layers.
        heads: attention heads, each of ``width / heads``.
        length: most tokens of a text, start and end marks included.
    """

    def __init__(self, vocabulary: int, width: int = 256, layers: int = 3, heads: int = 4, length: int = 24) -> None:
        super().__init__()
        self.length = length
        # Zeros, not nn.Embedding's own draw: on the meta device that draw would import torch's compiler, two seconds.
        self.words = nn.Embedding(vocabulary, width, _weight=torch.zeros(vocabulary, width))
        self.places = nn.Embedding(length, width, _weight=torch.zeros(length, width))
        self.layers = nn.ModuleList(TextLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, width)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of ids (b, n) int64 and mask (b, n) bool -> token states (b, n, d) and pooled (b, d) of length sqrt(d).

        States under the mask are zero.
        """
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        weights = mask.to(x.dtype)[:, :, None]
        x = self.norm(x) * weights
        pooled = self.pool(x.sum(dim=1) / weights.sum(dim=1).clamp_min(1))
        return x, F.normalize(pooled, dim=-1) * math.sqrt(x.shape[-1])


def _stretched(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps (b, c, h, w) at another size."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def fourier(time: Tensor, width: int) -> Tensor:
    """Sines and cosines (b, width) of times (b,) in [0, 1], periods from 2 pi down to 2 pi / 1000."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000), width // 2, device=time.device, dtype=time.dtype))
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FilmBlock(nn.Module):
    """A residual block whose second normalisation is scaled and shifted by the condition."""

    def __init__(self, width_in: int, width: int, condition: int, groups: int = 16) -> None:
        super().__init__()
        self.norm_first = nn.GroupNorm(groups, width_in)
        self.first = nn.Conv2d(width_in, width, 3, padding=1)
        self.film = nn.Linear(condition, 2 * width)
        self.norm_second = nn.GroupNorm(groups, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Of x (b, width_in, h, w), condition (b, condition) -> (b, width, h, w)."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        y = self.first(F.silu(self.norm_first(x)))
        y = self.norm_second(y) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.second(F.silu(y))
        return out


class Attention(nn.Module):
    """Every place looks at all places and at all text tokens at once."""

    def __init__(self, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(16, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.text = nn.Linear(text, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Of x (b, width, h, w), tokens (b, n, text), mask (b, h * w + n) -> (b, width, h, w)."""
        b, width, h, w = x.shape
        split = (b, -1, self.heads, width // self.heads)
        query, key, value = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=2)
        text_key, text_value = self.text(tokens).chunk(2, dim=2)
        key = torch.cat([key, text_key], dim=1).view(split).transpose(1, 2)
        value = torch.cat([value, text_value], dim=1).view(split).transpose(1, 2)
        query = query.reshape(split).transpose(1, 2)
        # Written out: for so few places it is faster on CPUs, in bfloat16 by half, than torch's fused attention.
        score = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        mixed = score.masked_fill(~mask[:, None, None, :], -1e4).softmax(dim=-1).to(value.dtype) @ value
        y = self.out(mixed.transpose(1, 2).reshape(b, h * w, width))
        out: Tensor = x + y.transpose(1, 2).reshape(b, width, h, w)
        return out


class UNet(nn.Module):
    """Predicts the flow ``noise - x0`` of latents from time, text tokens and the pooled text.

    Args:
        channels: latent channels.
        widths: widths at the latent's size, at its half and at its quarter.
        blocks: residual blocks per level on the way down (one more on the way up).
        text: width of the text states.
        condition: width of the vector that scales and shifts every block.
        heads: attention heads.
        hidden: width between the pooled text and the condition; as wide as the condition if None.
        layout: channels of a coarse layout, 4 x 4 places, that is drawn straight from the condition and stretched over
            the latents' quarter; none with 0. What the other layers know of places they take from the noise and the
            edges, which at high noise is little.
    """

    SPOTS = 4

    def __init__(
        self,
        channels: int = 8,
        widths: Sequence[int] = (96, 192, 320),
        blocks: Sequence[int] = (2, 1, 1),
        text: int = 256,
        condition: int = 384,
        heads: int = 4,
        hidden: int | None = None,
        layout: int = 0,
    ) -> None:
        super().__init__()
        between = condition if hidden is None else hidden
        self.from_time = nn.Sequential(nn.Linear(128, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.from_text = nn.Sequential(nn.Linear(text, between), nn.SiLU(), nn.Linear(between, condition))
        self.layout: nn.Module | None = None
        if layout:
            last = nn.Conv2d(layout, widths[-1], 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            spots = (self.SPOTS, self.SPOTS)
            first = nn.Linear(condition, layout * self.SPOTS**2)
            self.layout = nn.Sequential(first, nn.SiLU(), nn.Unflatten(1, (layout, *spots)), last)
        self.token_norm = nn.LayerNorm(text)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.down_attention = nn.ModuleList()
        self.shrink = nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            if level:
                self.shrink.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(blocks[level]):
                self.down.append(FilmBlock(width, width, condition))
                self.down_attention.append(Attention(width, text, heads) if level else nn.Identity())
                skips.append(width)
        self.middle = FilmBlock(widths[-1], widths[-1], condition)
        self.up = nn.ModuleList()
        self.up_attention = nn.ModuleList()
        self.grow = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(len(widths))):
            for _ in range(blocks[level] + 1):
                self.up.append(FilmBlock(below + skips.pop(), widths[level], condition))
                self.up_attention.append(Attention(widths[level], text, heads) if level else nn.Identity())
                below = widths[level]
            if level:
                self.grow.append(nn.Conv2d(below, widths[level - 1], 3, padding=1))
                below = widths[level - 1]
        self.last_norm = nn.GroupNorm(16, widths[0])
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        self.blocks = tuple(blocks)

    def places(self) -> tuple[int, ...]:
        """Width of what each place gives: the blocks downwards, the middle one, and those upwards."""
        down = [block.second.out_channels for block in self.down]  # type: ignore[union-attr]
        up = [block.second.out_channels for block in self.up]  # type: ignore[union-attr]
        return (*down, self.middle.second.out_channels, *up)  # type: ignore[arg-type]

    def run(
        self,
        x: Tensor,
        time: Tensor,
        tokens: Tensor,
        mask: Tensor,
        pooled: Tensor,
        between: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Of x (b, channels, h, w), h and w multiples of 4; time (b,) in [0, 1]; the rest as in `TextStates`.

        Args:
            x: Noisy latents.
            time: Of each.
            tokens: See `TextStates`.
            mask: See `TextStates`.
            pooled: See `TextStates`.
            between: Is given what each of the `places` gives, with its number, and answers what goes on from there.
        """
        condition = F.silu(self.from_time(fourier(time.to(x.dtype), 128)) + self.from_text(pooled))
        tokens = self.token_norm(tokens)
        seen = mask.new_ones(len(x), 1)
        masks = [
            torch.cat([seen.expand(-1, (x.shape[2] >> level) * (x.shape[3] >> level)), mask], dim=1)
            for level in range(len(self.blocks))
        ]
        x = self.first(x)
        skips = [x]
        block = 0
        for level, count in enumerate(self.blocks):
            if level:
                x = self.shrink[level - 1](x)
                if self.layout is not None and level == len(self.blocks) - 1:
                    x = x + _stretched(self.layout(condition), x.shape[2:])
                skips.append(x)
            for _ in range(count):
                x = self.down[block](x, condition)
                if level:
                    x = self.down_attention[block](x, tokens, masks[level])
                if between is not None:
                    x = between(block, x)
                skips.append(x)
                block += 1
        x = self.middle(x, condition)
        if between is not None:
            x = between(block, x)
        place = block + 1
        block = 0
        for index, level in enumerate(reversed(range(len(self.blocks)))):
            for _ in range(self.blocks[level] + 1):
                x = self.up[block](torch.cat([x, skips.pop()], dim=1), condition)
                if level:
                    x = self.up_attention[block](x, tokens, masks[level])
                if between is not None:
                    x = between(place + block, x)
                block += 1
            if level:
                x = self.grow[index](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.last(F.silu(self.last_norm(x)))
        return out

    def forward(self, x: Tensor, time: Tensor, cond: TextStates) -> Tensor:
        """The same, with the text as one value."""
        return self.run(x, time, cond.tokens, cond.mask, cond.pooled)
