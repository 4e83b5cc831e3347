"""diffusers' autoencoder in tiles, giving what the whole gives.

Two things make tiles of a network differ from the whole. What a pixel depends on may lie outside its tile: so the
layers next to the latents, where attention sees everything, work on the whole (there they are small), and of a tile's
result only the middle is kept. And group norms divide by the deviation of what they are given: so all tiles are given
the statistics of all.

Statistics depend on the norms before, so they are gathered norm after norm: all tiles go through the network up to the
first norm that is not known yet, which is then, and so on. That the way to the last norm is not walked anew for each
norm of the network, it is cut into stages, one per resolution, and what is between two stages is kept whole. With six
or seven norms in a stage a tile is computed about four times as often as without that.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sdkit_diffusers.tiling import Place, Tiles
from sdkit_diffusers.wiring import twin

__all__ = ["SharedNorm", "decoded", "encoded"]


class Enough(Exception):  # no error: what a tile was run for is known
    """A norm whose statistics are not known yet has seen a tile."""


class SharedNorm(nn.Module):
    """A group norm that gathers the statistics of all tiles, and then uses them.

    Args:
        norm: The norm as it is, whose weights are used.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self._known: tuple[Tensor, Tensor] | None = None
        self._found: tuple[int, Tensor, Tensor] | None = None
        self._place: Place | None = None

    def gather(self, place: Place) -> None:
        """While statistics are not known, gather of the middle of a tile, which belongs to no other tile."""
        self._place = place

    def settle(self) -> None:
        """From now on use what was gathered, if anything was."""
        if self._found is not None:
            count, mean, squares = self._found
            self._known, self._found = (mean, squares / count), None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (batch, channels, height, width), normed.

        Raises:
            Enough: it was gathered of, and what comes after is not known yet.
        """
        if self._known is None:
            assert self._place is not None  # no tile is run before it is said which
            self._see(x[(..., *self._place.middle(x.shape[-2], x.shape[-1]))])
            raise Enough
        mean, variance = (each.repeat_interleave(x.shape[1] // self.norm.num_groups, 1) for each in self._known)
        scale = torch.rsqrt(variance + self.norm.eps) * self.norm.weight.float()
        shift = self.norm.bias.float() - mean * scale
        return torch.addcmul(shift[..., None, None], x.float(), scale[..., None, None]).to(x.dtype)

    def _see(self, x: Tensor) -> None:
        """Joins mean and squared deviations (Chan et al. 1979: no difference of large sums)."""
        flat = x.float().reshape(x.shape[0], self.norm.num_groups, -1)
        count, mean = flat.shape[-1], flat.mean(-1)
        squares = flat.var(-1, correction=0) * count
        if self._found is not None:
            before, old, kept = self._found
            away, total = mean - old, before + count
            squares = kept + squares + away**2 * (before * count / total)
            count, mean = total, old + away * (count / total)
        self._found = (count, mean, squares)


def decoded(network: Any, z: Tensor, tiles: Tiles) -> Tensor:
    """Pictures (batch, 3, height, width) of latents, as ``network.decode`` gives them.

    Args:
        network: diffusers' ``AutoencoderKL``.
        z: (batch, channels, height, width).
        tiles: How large pictures are cut.
    """
    decoder = network.decoder
    if tiles.hold(z) or len(decoder.up_blocks) < 2:
        whole: Tensor = network.decode(z, return_dict=False)[0]
        return whole
    x = z if network.post_quant_conv is None else network.post_quant_conv(z)
    x = _resnets(decoder.up_blocks[0], decoder.mid_block(decoder.conv_in(x)))
    made, norms = _sharing(decoder)
    for before, block in pairwise(made.up_blocks):

        def run(part: Tensor, before: Any = before, block: Any = block) -> Tensor:
            part = _resnets(block, _each(before.upsamplers, part))
            return made.conv_out(made.conv_act(made.conv_norm_out(part))) if block is made.up_blocks[-1] else part

        x = _stage(run, norms, x, tiles, unit=x.shape[-2] // z.shape[-2], factor=Fraction(2))
    return x


def encoded(network: Any, images: Tensor, tiles: Tiles) -> Tensor:
    """The means of the latents of pictures, as ``network.encode`` gives them; see `decoded`."""
    encoder = network.encoder
    unit = 2 ** (len(encoder.down_blocks) - 1)
    if tiles.hold(images, unit) or unit == 1:
        whole: Tensor = network.encode(images, return_dict=False)[0].mode()
        return whole
    (made, norms), x = _sharing(encoder), images
    for before, block in pairwise([None, *made.down_blocks[:-1]]):

        def run(part: Tensor, before: Any = before, block: Any = block) -> Tensor:
            return _resnets(block, made.conv_in(part) if before is None else _each(before.downsamplers, part))

        x = _stage(run, norms, x, tiles, unit=unit, factor=Fraction(1, 1 if before is None else 2))
        unit = unit if before is None else unit // 2
    # the last steps down and the block with attention are small, and see the whole
    x = _each(encoder.down_blocks[-2].downsamplers, x)
    x = encoder.mid_block(encoder.down_blocks[-1](x))
    x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))
    mean: Tensor = (x if network.quant_conv is None else network.quant_conv(x)).chunk(2, dim=1)[0]
    return mean


def _resnets(block: Any, x: Tensor) -> Tensor:
    for resnet in block.resnets:
        x = resnet(x, None)
    return x


def _each(modules: Any, x: Tensor) -> Tensor:
    for module in modules or ():
        x = module(x)
    return x


def _sharing(network: nn.Module) -> tuple[Any, list[SharedNorm]]:
    """The network with norms that share statistics; the one given is as it was, so that threads do not meet."""
    norms: list[SharedNorm] = []

    def change(made: nn.Module) -> None:
        for module in list(made.modules()):
            for name, child in module._modules.items():
                if isinstance(child, nn.GroupNorm):
                    norms.append(SharedNorm(child))
                    module._modules[name] = norms[-1]

    return twin(network, change), norms


def _stage(
    run: Callable[[Tensor], Tensor], norms: list[SharedNorm], x: Tensor, tiles: Tiles, *, unit: int, factor: Fraction
) -> Tensor:
    """``run`` of ``x`` in tiles, after all norms on its way have gathered."""
    places = list(tiles.places(x.shape[-2] // unit, x.shape[-1] // unit))
    while True:
        for place in places:
            for norm in norms:
                norm.gather(place)
            try:
                run(place.cut(x, unit))
            except Enough:
                continue
            return tiles.apply(run, x, factor=factor, unit=unit).to(x.dtype)
        for norm in norms:
            norm.settle()
