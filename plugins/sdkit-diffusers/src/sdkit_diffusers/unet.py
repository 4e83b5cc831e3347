"""diffusers' conditional U-Net as a `sdkit.Network`, and the denoiser of models that paint into pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit import InvalidRequest, Level, NetworkDenoiser, NoiseSchedule
from sdkit_diffusers.autoencoder import Autoencoder
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.text import TextStates

__all__ = ["PaintingDenoiser", "UNet", "guidance_embedding"]


def guidance_embedding(scale: float, width: int) -> Tensor:
    """Sines and cosines (1, width) of a guidance scale, the input of models distilled with guidance.

    ``1000 (scale - 1)`` times frequencies from 1 down to 1/10000 (Luo et al. 2023, https://arxiv.org/abs/2310.04378,
    with the embedding of Vaswani et al. 2017).
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (scale - 1) * frequencies
    made = torch.cat([angles.sin(), angles.cos()])
    return F.pad(made, (0, width % 2))[None]


@frozen(eq=False)
class UNet:
    """``(x, time, cond) -> Tensor`` of a U-Net with cross-attention to text.

    Attributes:
        network: diffusers' ``UNet2DConditionModel``.
        placement: Puts it on the device.
        embedded: Embedded guidance scale (1, width), for models distilled with guidance.
        added: Further inputs from the latents and the text; see `sdkit_diffusers.sdxl.SizeConditions`.
        beside: Channels put behind those of the latents, (1 or batch, channels, height, width), or None.
    """

    network: Any = field(repr=False)
    placement: Placement = field(repr=False)
    embedded: Tensor | None = field(default=None, repr=False)
    added: Callable[[Tensor, TextStates], dict[str, Any]] | None = None
    beside: Tensor | None = field(default=None, repr=False)

    def __call__(self, x: Tensor, time: Tensor, cond: TextStates, /, **more: Any) -> Tensor:
        """What the network predicts.

        Args:
            x: Scaled latents (b, channels, height, width), in the network's dtype.
            time: (b,).
            cond: Encoded prompts, b of them.
            more: Further inputs of diffusers' network, such as the residuals of a control network.
        """
        if self.beside is not None:
            count = x.shape[0] // self.beside.shape[0]
            x = torch.cat([x, self.beside.to(x).repeat(count, 1, 1, 1)], dim=1)
        if self.embedded is not None:
            more = {"timestep_cond": self.embedded.to(x).expand(x.shape[0], -1), **more}
        if self.added is not None:
            more = {**self.added(x, cond), **more}
        with self.placement.use(self.network):
            made: Tensor = self.network(x, time, cond.states.to(x.dtype), return_dict=False, **more)[0]
        return made


@frozen(eq=False)
class PaintingDenoiser:
    """The denoiser of a model with extra channels for a mask and what is around it (9 channels with 4 of latents).

    Such a network sees what to paint into; until it is told (`painting`), it cannot work.

    Attributes:
        denoiser: Of the network, `UNet`.
        autoencoder: Encodes what is around the mask.
    """

    denoiser: NetworkDenoiser[TextStates]
    autoencoder: Autoencoder = field(repr=False)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        return self.denoiser.schedule

    def painting(self, image: Tensor, mask: Tensor) -> PaintingDenoiser:
        """The denoiser that paints into a picture.

        Args:
            image: (1, 3, height, width) in [0, 1].
            mask: (1, 1, height, width), 1 where to paint.
        """
        hole = (mask > 0.5).to(image.dtype)
        # grey, the middle of the range, is what training put where the picture is not to be seen
        around = self.autoencoder.encode(image * (1 - hole) + 0.5 * hole)
        beside = torch.cat([F.interpolate(hole, size=around.shape[-2:]).to(around), around], dim=1)
        return evolve(self, denoiser=evolve(self.denoiser, network=evolve(self._unet, beside=beside)))

    @property
    def _unet(self) -> UNet:
        return cast(UNet, self.denoiser.network)

    def __call__(self, x: Tensor, level: Level, cond: TextStates, /) -> Tensor:
        """The predicted clean latents.

        Raises:
            InvalidRequest: no picture was given.
        """
        if self._unet.beside is None:
            raise InvalidRequest("This model paints into pictures; give it an image and a mask.")
        return self.denoiser(x, level, cond)
