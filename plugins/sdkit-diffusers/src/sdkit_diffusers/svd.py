"""Stable Video Diffusion: a picture, moved.

Source: Blattmann et al. 2023, https://arxiv.org/abs/2311.15127. Latents are (batch, 4, frames, height, width); an
element along time is a frame. There is no text: the network is conditioned on a still (`Still`), which the generator
``svd`` tells it, so by itself the model makes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn import functional as F

from sdkit import (
    EdmSchedule,
    FileError,
    InvalidRequest,
    LatentSpec,
    Level,
    LevelError,
    Model,
    NetworkDenoiser,
    NoiseSchedule,
    Scaling,
    Velocity,
    concatenate,
    take,
)
from sdkit_diffusers.assembly import build, finish
from sdkit_diffusers.ltx import no_picture_options
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.schedules import Trained

__all__ = [
    "ContinuousVelocity",
    "FrameGuided",
    "FramesAutoencoder",
    "NoStill",
    "Still",
    "StillEncoder",
    "UNet",
    "Vision",
    "assemble",
]

SIZE = (1024, 576)
"""Default size of a clip in pixels, as trained."""
SEEN = 224
"""Side of the square that CLIP sees."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels CLIP was trained on."""


@frozen(eq=False)
class Still:
    """What the network is conditioned on; the first dimension of all is the batch.

    Attributes:
        seen: CLIP's vector of the still, (batch, 1, width).
        latents: Its latent, not scaled, with a little noise in its pixels, (batch, 4, height, width).
        told: Frames per second less one, the bucket of motion, and the share of that noise, (batch, 3).
    """

    seen: Tensor
    latents: Tensor
    told: Tensor


@frozen
class ContinuousVelocity:
    """`sdkit.Velocity` of a network that is told ``log(sigma / alpha) / 4``, as in EDM (Karras et al. 2022)."""

    def __call__(self, level: Level, /) -> Scaling:
        """The scaling at ``level``.

        Raises:
            LevelError: there is no noise, or nothing but noise, whose logarithm is not finite.
        """
        if level.alpha == 0 or level.sigma == 0:
            raise LevelError(f"A network that is told log(sigma) is undefined at {level}; it needs alpha and sigma.")
        return evolve(Velocity()(level), time=-level.log_snr / 4)

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """``(alpha * noise - sigma * x0) / n``."""
        return Velocity().target(x0, noise, level)


@frozen(eq=False)
class UNet:
    """``(x, time, cond) -> Tensor`` of the U-Net over frames.

    Attributes:
        network: diffusers' ``UNetSpatioTemporalConditionModel``.
        placement: Puts it on the device.
    """

    network: Any = field(repr=False)
    placement: Placement = field(repr=False)

    def __call__(self, x: Tensor, time: Tensor, cond: Still, /) -> Tensor:
        """What the network predicts, for scaled latents (b, 4, frames, height, width) and times (b,)."""
        still = cond.latents.to(x)[:, :, None].expand(-1, -1, x.shape[2], -1, -1)
        frames = torch.cat([x, still], dim=1).transpose(1, 2)
        with self.placement.use(self.network):
            made: Tensor = self.network(
                frames,
                time.to(x.dtype),
                encoder_hidden_states=cond.seen.to(x.dtype),
                added_time_ids=cond.told.to(x.dtype),
                return_dict=False,
            )[0]
        return made.transpose(1, 2)


@frozen(eq=False)
class FrameGuided:
    """Classifier-free guidance with a scale of its own for each frame, away from no still at all.

    Attributes:
        denoiser: What to guide.
        scales: One per frame.
    """

    denoiser: NetworkDenoiser[Still]
    scales: tuple[float, ...]

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, level: Level, cond: Still, /) -> Tensor:
        """The guided prediction, in one forward pass of twice the batch; in a plain one if every scale is 1."""
        if all(scale == 1 for scale in self.scales):
            return self.denoiser(x, level, cond)
        none = evolve(cond, seen=torch.zeros_like(cond.seen), latents=torch.zeros_like(cond.latents))
        both = self.denoiser(x.repeat(2, 1, 1, 1, 1), level, concatenate(cond, none))
        positive, negative = both.chunk(2)
        scales = torch.tensor(self.scales, device=x.device, dtype=x.dtype).reshape(1, 1, -1, 1, 1)
        return negative.lerp(positive, scales)


@frozen(eq=False)
class StillEncoder:
    """An encoder that answers every prompt with the same still."""

    still: Still

    def __call__(self, prompts: Sequence[str], /) -> Still:
        """The still, as often as there are prompts."""
        return take(self.still, [0] * len(prompts))


@frozen(eq=False)
class Vision:
    """CLIP's eye.

    Attributes:
        network: transformers' ``CLIPVisionModelWithProjection``.
        placement: Puts it on the device.
        mean: Of the pixels it was trained on.
        deviation: Of those.
    """

    network: Any = field(repr=False)
    placement: Placement = field(repr=False)
    mean: tuple[float, ...] = MEAN
    deviation: tuple[float, ...] = DEVIATION

    def __call__(self, image: Tensor) -> Tensor:
        """The vector (1, 1, width) of a picture (1, 3, height, width) in [0, 1], whatever its proportions."""
        small = shrunk(image.float() * 2 - 1, SEEN) / 2 + 0.5
        mean, deviation = (torch.tensor(row).reshape(1, 3, 1, 1).to(small) for row in (self.mean, self.deviation))
        with self.placement.use(self.network):
            made: Tensor = self.network(((small - mean) / deviation).to(self.network.dtype)).image_embeds
        return made[:, None].float()


def shrunk(image: Tensor, side: int) -> Tensor:
    """A picture (1, channels, height, width) as a square, blurred first where it shrinks.

    The blur is a Gaussian of deviation (factor - 1) / 2, cut off at about twice that, then bicubic sampling from corner
    to corner: what the network was trained on.
    """
    for axis in (2, 3):
        deviation = max((image.shape[axis] / side - 1) / 2, 0.001)
        size = int(max(4 * deviation, 3)) // 2 * 2 + 1
        places = torch.arange(size, device=image.device, dtype=image.dtype) - size // 2
        weights = torch.exp(-(places**2) / (2 * deviation**2))
        weights = weights / weights.sum()
        half = size // 2
        pad = (0, 0, half, half) if axis == 2 else (half, half, 0, 0)
        kernel = weights.reshape((-1, 1) if axis == 2 else (1, -1)).expand(image.shape[1], 1, -1, -1)
        image = F.conv2d(F.pad(image, pad, mode="reflect"), kernel, groups=image.shape[1])
    return F.interpolate(image, size=(side, side), mode="bicubic", align_corners=True)


@frozen(eq=False)
class NoStill:
    """The encoder of a model that reads no text, and CLIP's eye, by which the generator makes it what it does read.

    Attributes:
        vision: CLIP's eye.
    """

    vision: Vision = field(repr=False)

    def __call__(self, prompts: Sequence[str], /) -> Still:
        """Refuses.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest(
            "Stable Video Diffusion reads no text and makes no pictures; it moves one: sdkit animate svd --image FILE."
        )


@frozen(eq=False)
class FramesAutoencoder:
    """The autoencoder of latent diffusion, whose decoder looks along time. Latents are ``z * scale``.

    Attributes:
        network: diffusers' ``AutoencoderKLTemporalDecoder``.
        latent: What it reads.
        placement: Puts it on the device.
        scale: See above.
        chunk: Most frames that are decoded together; more are steadier, and take as much more memory. 0 is all.
        time_factor: Frames per element along time.
        generator: What makes clips with it.
    """

    network: Any = field(repr=False)
    latent: LatentSpec
    placement: Placement = field(repr=False)
    scale: float = 1.0
    chunk: int = 8
    time_factor: int = field(default=1, init=False)
    generator: str = field(default="svd", init=False)

    def __call__(self, latents: Tensor, /) -> Tensor:
        """Clips (batch, 3, frames, height, width) in [0, 1]; pictures (batch, 3, height, width) of a single frame."""
        made = torch.cat([torch.cat(list(self.pieces(row[None])), dim=2) for row in latents])
        return made[:, :, 0] if made.shape[2] == 1 else made

    def encode(self, images: Tensor, /) -> Tensor:
        """Latents (batch, channels, 1, height, width) of pictures (batch, 3, height, width) in [0, 1]."""
        return self.mean(images.float() * 2 - 1)[:, :, None] * self.scale

    def mean(self, images: Tensor) -> Tensor:
        """Latents (batch, channels, height, width), not scaled, of pictures in [-1, 1]."""
        with self.placement.use(self.network):
            made: Tensor = self.network.encode(images.to(self.network.dtype), return_dict=False)[0].mode()
        return made.float()

    def pieces(self, latents: Tensor, /) -> Iterator[Tensor]:
        """A clip (1, channels, frames, height, width), decoded a part at a time: each (1, 3, frames, height, width)."""
        z = (latents.float() / self.scale)[0].transpose(0, 1)
        length = self.chunk or len(z)
        for part in (z[start : start + length] for start in range(0, len(z), length)):
            with self.placement.use(self.network):
                made: Tensor = self.network.decode(part.to(self.network.dtype), len(part), return_dict=False)[0]
            yield (made.float() / 2 + 0.5).clamp(0, 1).transpose(0, 1)[None]


def denoiser_of(denoiser: Any) -> NetworkDenoiser[Still] | None:
    """The denoiser, if it is that of Stable Video Diffusion; None for any other."""
    return denoiser if isinstance(denoiser, NetworkDenoiser) and isinstance(denoiser.network, UNet) else None


def trained_frames(denoiser: NetworkDenoiser[Still]) -> int:
    """How many frames the network was trained to make together: 14, or 25 for the extended one."""
    network: Any = denoiser.network
    return int(network.network.config.num_frames)


def assemble(source: Source, options: Options) -> Model[Still]:
    """The model in a source.

    Raises:
        FileError: a part is missing, damaged, or does not fit the others.
        ParameterError: an option is for models of pictures.
    """
    no_picture_options(options, "Stable Video Diffusion")
    missing = [name for name in ("unet", "vae", "image_encoder") if name not in source.parts]
    if missing:
        raise FileError(f"{source.path.name!r} lacks its {', '.join(missing)}.")
    if source.parts["vae"].config.get("force_upcast", True) and options.dtype == "float16" and not options.vae_dtype:
        options = evolve(options, vae_dtype="float32")  # it gives NaN in float16, and its configuration says so
    built = build(source, options)
    channels = int(built.config("unet").out_channels)
    factor = 2 ** (len(built.config("vae").block_out_channels) - 1)
    latent = LatentSpec(channels, factor, SIZE, frames=(1,))
    scale = float(built.config("vae").scaling_factor)
    return finish(
        built,
        NoStill(Vision(built.networks["image_encoder"], built.placement, *_normed(source))),
        UNet(built.networks["unet"], built.placement),
        _trained(source.scheduler),
        latent,
        summary="Stable Video Diffusion",
        guidance=None,
        steps=25,
        member="svd",
        autoencoder=FramesAutoencoder(built.networks["vae"], latent, built.placement, scale),
    )


def _trained(config: Mapping[str, Any]) -> Trained:
    """How the network was trained, from what diffusers writes.

    Raises:
        FileError: it predicts something else than velocity at continuous levels.
    """
    told = (config.get("prediction_type"), config.get("timestep_type"))
    if told != ("v_prediction", "continuous"):
        raise FileError(
            f"The scheduler's prediction_type and timestep_type are {told[0]!r} and {told[1]!r}; Stable Video "
            "Diffusion has 'v_prediction' and 'continuous'."
        )
    schedule = EdmSchedule(float(config.get("sigma_min") or 0.002), float(config.get("sigma_max") or 700.0))
    return Trained(schedule, ContinuousVelocity(), "velocity", "euler", "karras")


def _normed(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels, as the folder states them."""
    path = source.path / "feature_extractor" / "preprocessor_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        rows = tuple(config.get("image_mean", MEAN)), tuple(config.get("image_std", DEVIATION))
        if any(len(row) != 3 or not all(math.isfinite(value) for value in row) for row in rows) or 0 in rows[1]:
            raise ValueError("image_mean and image_std are three numbers each")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise FileError(f"feature_extractor/preprocessor_config.json cannot be used: {error}") from error
    return rows
