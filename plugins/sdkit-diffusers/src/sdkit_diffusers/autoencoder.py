"""Between pictures and latents."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from sdkit import LatentSpec
from sdkit_diffusers.pieces import decoded, encoded
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.tiling import Tiles

__all__ = ["Autoencoder"]


class Retry:
    """A float32 copy of a network, made when its float16 form has failed once, and used from then on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.network: Any = None

    def make(self, network: nn.Module, placement: Placement) -> Any:
        """The copy."""
        with self._lock:
            if self.network is None:
                made: Any = copy.deepcopy(network).float()
                placement.add(made)
                self.network = made
            return self.network


@frozen(eq=False)
class Autoencoder:
    """The variational autoencoder of latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

    Latents are ``(z - shift) * scale``. Encoding gives the mean of the distribution, so that the same picture always
    gives the same latents (diffusers draws from it).

    Attributes:
        network: diffusers' ``AutoencoderKL``.
        latent: What it reads.
        placement: Puts the network on the device.
        scale: See above.
        shift: See above.
        slicing: Whether the pictures of a batch are decoded one after the other.
        tiles: How large pictures are cut, or None.
    """

    network: Any = field(repr=False)
    latent: LatentSpec
    placement: Placement = field(repr=False)
    scale: float = 1.0
    shift: float = 0.0
    slicing: bool = False
    tiles: Tiles | None = None
    _retry: Retry = field(factory=Retry, repr=False, init=False)

    def __call__(self, latents: Tensor, /) -> Tensor:
        """Pictures (batch, 3, height, width) in [0, 1] of latents (batch, channels, height, width)."""
        z = latents.float() / self.scale + self.shift
        made = self._safe(self._decode, z)
        return (made / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor, /) -> Tensor:
        """Latents of pictures (batch, 3, height, width) in [0, 1]; sides are multiples of `latent.factor`."""
        z = self._safe(self._mean, images.float() * 2 - 1)
        return (z - self.shift) * self.scale

    def _decode(self, network: Any, z: Tensor) -> Tensor:
        if self.tiles is not None:
            return decoded(network, z, self.tiles)
        made: Tensor = network.decode(z, return_dict=False)[0]
        return made

    def _mean(self, network: Any, images: Tensor) -> Tensor:
        if self.tiles is not None:
            return encoded(network, images, self.tiles)
        made: Tensor = network.encode(images, return_dict=False)[0].mode()
        return made

    def _safe(self, function: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """``function`` of the network and ``x``, again in float32 where float16 was not enough."""
        network = self._retry.network or self.network
        made = self._run(function, network, x)
        # an estimate's tensors are of another type, and have no numbers to look at
        if network.dtype == torch.float16 and type(made) is Tensor and not bool(torch.isfinite(made).all()):
            warnings.warn(
                "The autoencoder gave NaN or infinity in float16; it works in float32 from now on (vae_dtype='float32' "
                "does so from the start).",
                stacklevel=4,
            )
            made = self._run(function, self._retry.make(self.network, self.placement), x)
        return made

    def _run(self, function: Callable[[Any, Tensor], Tensor], network: Any, x: Tensor) -> Tensor:
        with self.placement.use(network):
            rows = x.chunk(x.shape[0]) if self.slicing else (x,)
            return torch.cat([function(network, row.to(network.dtype)).float() for row in rows])
