"""LTX-Video: a transformer over the latents of a whole clip.

Source: HaCohen et al. 2024, https://arxiv.org/abs/2501.00103. Latents are (batch, channels, frames, height, width); n
elements along time are ``8 (n - 1) + 1`` frames. One element is one picture, so by itself the model makes pictures; the
generator ``ltx`` asks for more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from sdkit import (
    AddressedNoise,
    FileError,
    InvalidRequest,
    LatentSpec,
    Level,
    Model,
    NetworkDenoiser,
    NoiseSchedule,
    ParameterError,
)
from sdkit_diffusers.assembly import Built, build, finish
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Source
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.schedules import flow
from sdkit_diffusers.text import TextEncoder

__all__ = [
    "ClipAutoencoder",
    "ClipText",
    "FirstFrame",
    "PromptEncoder",
    "Transformer",
    "assemble",
    "no_picture_options",
]

TEXT_LENGTH = 128
"""Tokens of a prompt, as trained."""
SIZE = (704, 480)
"""Default size of a clip in pixels."""
FPS = 25.0
"""Frames per second that the network is told by itself."""


@frozen(eq=False)
class ClipText:
    """A batch of encoded prompts.

    Attributes:
        states: T5's, (batch, tokens, width).
        mask: Which of them are of the prompt and not padding, bool (batch, tokens).
    """

    states: Tensor
    mask: Tensor


@frozen(eq=False)
class PromptEncoder:
    """Prompts to T5's states; padding is hidden from the transformer."""

    t5: TextEncoder

    def __call__(self, prompts: Sequence[str], /) -> ClipText:
        """Encoded prompts, one row each; what is beyond 127 tokens is cut off, and told."""
        rows = self.t5.rows(prompts, name="T5")
        states = self.t5.t5(rows)
        return ClipText(states, (rows != self.t5.tokenizer.pad).to(states.device))


@frozen(eq=False)
class Transformer:
    """``(x, time, cond) -> Tensor`` of the transformer.

    Attributes:
        network: diffusers' ``LTXVideoTransformer3DModel``.
        placement: Puts it on the device.
        factors: Frames and pixels per element of the latent, which with ``fps`` say where an element is.
        fps: Frames per second the network is told.
        begun: Whether the first element along time is clean, so that its time is 0.
    """

    network: Any = field(repr=False)
    placement: Placement = field(repr=False)
    factors: tuple[int, int]
    fps: float = FPS
    begun: bool = False

    def __call__(self, x: Tensor, time: Tensor, cond: ClipText, /, **more: Any) -> Tensor:
        """What the network predicts, for latents (b, channels, frames, height, width) and times (b,) from 0 to 1000.

        ``more`` are further inputs of diffusers' network.
        """
        _, _, frames, height, width = x.shape
        if self.begun:
            moving = torch.ones((1, frames, height * width), device=time.device, dtype=time.dtype)
            moving[:, 0] = 0
            time = time[:, None] * moving.flatten(1)
        with self.placement.use(self.network):
            made: Tensor = self.network(
                hidden_states=x.flatten(2).transpose(1, 2),
                encoder_hidden_states=cond.states.to(x.dtype),
                timestep=time,
                encoder_attention_mask=cond.mask,
                num_frames=frames,
                height=height,
                width=width,
                rope_interpolation_scale=(self.factors[0] / self.fps, self.factors[1], self.factors[1]),
                return_dict=False,
                **more,
            )[0]
        return made.transpose(1, 2).reshape(x.shape)


@frozen(eq=False)
class FirstFrame:
    """The denoiser of a clip whose first element along time is known: the network sees it clean, and it stays.

    As it *is* ``E[x0 | x]``, every solver that is exact on a point mass ends in it.

    Attributes:
        denoiser: Of `Transformer`.
        first: Its clean latent, (1, channels, 1, height, width).
    """

    denoiser: NetworkDenoiser[ClipText]
    first: Tensor = field(repr=False)

    @classmethod
    def of(cls, denoiser: NetworkDenoiser[ClipText], first: Tensor) -> FirstFrame:
        """Around a denoiser whose network is a `Transformer`, which is told."""
        network: Any = denoiser.network
        return cls(evolve(denoiser, network=evolve(network, begun=True)), first)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, level: Level, cond: ClipText, /) -> Tensor:
        """The predicted clean latents, the first element the known one."""
        known = self.first.to(x).expand(x.shape[0], -1, -1, -1, -1)
        # in the scale of the level, where the network's input is scaled back to that of straight lines
        given = torch.cat([known * (level.alpha + level.sigma), x[:, :, 1:]], dim=2)
        return torch.cat([known, self.denoiser(given, level, cond)[:, :, 1:]], dim=2)


@frozen(eq=False)
class ClipAutoencoder:
    """The causal autoencoder of clips. Latents are ``(z - mean) * scale / deviation``, channel by channel.

    Encoding gives the mean of the distribution, so that the same picture always gives the same latents.

    Attributes:
        network: diffusers' ``AutoencoderKLLTXVideo``.
        latent: What it reads.
        placement: Puts it on the device.
        time_factor: Frames per element along time.
        scale: See above.
        chunk: Most elements along time that are decoded together; 0 is all of a clip.
        overlap: Elements that two neighbouring parts have in common, over which one fades into the next.
        decode_time: What a decoder that takes off the last noise itself is told; others have no such input.
        decode_noise: The share of noise put on for it.
        generator: What makes clips with it.
    """

    network: Any = field(repr=False)
    latent: LatentSpec
    placement: Placement = field(repr=False)
    time_factor: int
    scale: float = 1.0
    chunk: int = 8
    overlap: int = 2
    decode_time: float = 0.05
    decode_noise: float = 0.025
    generator: str = field(default="ltx", init=False)

    def __call__(self, latents: Tensor, /) -> Tensor:
        """Clips (batch, 3, frames, height, width) in [0, 1]; pictures (batch, 3, height, width) of a single frame."""
        seeds = range(latents.shape[0])
        made = torch.cat([torch.cat(list(self.pieces(row[None], k)), 2) for k, row in zip(seeds, latents, strict=True)])
        return made[:, :, 0] if made.shape[2] == 1 else made

    def encode(self, images: Tensor, /) -> Tensor:
        """Latents (batch, channels, 1, height, width) of pictures (batch, 3, height, width) in [0, 1]."""
        with self.placement.use(self.network):
            given = (images.float() * 2 - 1)[:, :, None].to(self.network.dtype)
            z: Tensor = self.network.encode(given, return_dict=False)[0].mode().float()
        return (z - self._of("latents_mean")) * self.scale / self._of("latents_std")

    def pieces(self, latents: Tensor, seed: int, /) -> Iterator[Tensor]:
        """A clip (1, channels, frames, height, width), decoded a part at a time: each (1, 3, frames, height, width).

        A part begins ``overlap`` elements before the end of the one before, and fades in linearly over the frames they
        share. A clip of at most ``chunk`` elements is decoded as a whole.

        Args:
            latents: The clip.
            seed: Of the noise that a decoder is given which takes off the last noise itself.
        """
        z = latents.float() * self._of("latents_std") / self.scale + self._of("latents_mean")
        time = None
        if self.network.config.timestep_conditioning:
            noise = AddressedNoise((seed,), stream="decode").initial(z)
            z = z + (noise - z) * self.decode_noise
            time = torch.tensor([self.decode_time], device=z.device, dtype=self.network.dtype)
        total = z.shape[2]
        chunk = self.chunk or total
        shared = (self.overlap - 1) * self.time_factor + 1
        before: Tensor | None = None
        for start in range(0, max(total - self.overlap, 1), max(chunk - self.overlap, 1)):
            stop = min(start + chunk, total)
            part = self._decoded(z[:, :, start:stop], time)
            if before is not None:
                weights = torch.arange(1, shared + 1, device=part.device).reshape(1, 1, -1, 1, 1) / (shared + 1)
                part = torch.cat([before.lerp(part[:, :, :shared], weights), part[:, :, shared:]], dim=2)
            if stop == total:
                yield part
                return
            before = part[:, :, -shared:].clone()
            yield part[:, :, :-shared]

    def _decoded(self, z: Tensor, time: Tensor | None) -> Tensor:
        with self.placement.use(self.network):
            made: Tensor = self.network.decode(z.to(self.network.dtype), time, return_dict=False)[0].float()
        return (made / 2 + 0.5).clamp(0, 1)

    def _of(self, name: str) -> Tensor:
        """A row of numbers for the channels, shaped to act on latents."""
        found: Tensor = getattr(self.network, name)
        return found.to(self.placement.device).float().reshape(1, -1, 1, 1, 1)


def no_picture_options(options: Options, name: str) -> None:
    """Refuses options of a model's loading that mean something to models of pictures alone.

    Raises:
        ParameterError: one of them is given.
    """
    given = {
        "vae": options.vae is not None,
        "vae_slicing": options.vae_slicing,
        "vae_tiling": options.vae_tiling is not None,
        "channels_last": options.channels_last,
        "embedded_guidance": options.embedded_guidance is not None,
        "prediction": options.prediction is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise ParameterError(f"{option} means nothing to {name}, which makes clips; leave it out.")


def assemble(source: Source, options: Options) -> Model[ClipText]:
    """The model in a source.

    Raises:
        FileError: a part is missing, damaged, does not fit the others, or is of a kind that is not known here.
        ParameterError: an option is for models of pictures.
    """
    no_picture_options(options, "LTX-Video")
    _known(source)
    built = build(source, options)
    t5 = built.text("text_encoder")
    assert t5 is not None  # `_known` has seen it
    network = built.networks["vae"]
    time, space = int(network.temporal_compression_ratio), int(network.spatial_compression_ratio)
    latent = LatentSpec(int(built.config("transformer").in_channels), space, SIZE, frames=(1,))
    how = flow(
        source.scheduler,
        shift=options.shift,
        time_scale=1000.0,
        spacing="trailing",
        side=round(math.sqrt(SIZE[0] * SIZE[1]) / space),
        patch=1,
    )
    terminal = source.scheduler.get("shift_terminal")
    return finish(
        built,
        PromptEncoder(evolve(t5, tokenizer=evolve(t5.tokenizer, length=TEXT_LENGTH))),
        Transformer(built.networks["transformer"], built.placement, (time, space)),
        evolve(how, spacing=f"stretched(terminal={float(terminal)!r})") if terminal else how,
        latent,
        summary="LTX-Video",
        guidance=3.0,
        steps=50,
        member="ltx-video",
        autoencoder=_autoencoder(built, latent, time),
    )


def _autoencoder(built: Built, latent: LatentSpec, time: int) -> ClipAutoencoder:
    scale = float(built.config("vae").scaling_factor)
    return ClipAutoencoder(built.networks["vae"], latent, built.placement, time, scale)


def _known(source: Source) -> None:
    """Refuses what would not work, before memory is taken."""
    missing = [name for name in ("transformer", "vae", "text_encoder") if name not in source.parts]
    if missing:
        raise FileError(f"{source.path.name!r} lacks its {', '.join(missing)}.")
    transformer, vae = source.parts["transformer"].config, source.parts["vae"].config
    if transformer.get("patch_size", 1) != 1 or transformer.get("patch_size_t", 1) != 1:
        raise FileError("The transformer reads patches of several elements, which no published LTX-Video does.")
    if any(vae.get("decoder_inject_noise") or ()):
        raise FileError(
            "This autoencoder (of LTX-Video 0.9.1) draws noise of its own from torch's global state while it decodes, "
            "so a clip could not be made twice; take release 0.9.0, or 0.9.5 or later."
        )


def transformer_of(denoiser: Any) -> NetworkDenoiser[ClipText] | None:
    """The denoiser, if it is that of LTX-Video; None for any other.

    Raises:
        InvalidRequest: it is that of LTX-Video inside a wrapper, which what a clip is told does not get through.
    """
    if isinstance(denoiser, NetworkDenoiser):
        return denoiser if isinstance(denoiser.network, Transformer) else None
    inner = getattr(denoiser, "denoiser", None)
    if inner is not None and transformer_of(inner) is not None:
        raise InvalidRequest(f"A {type(denoiser).__name__} around LTX-Video's denoiser cannot be told of the clip.")
    return None
