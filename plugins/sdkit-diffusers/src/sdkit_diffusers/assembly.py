"""What all families share in becoming a `sdkit.Model`: reading parts, placing them, and stating facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from attrs import evolve, field, frozen
from torch import nn

from sdkit import LatentSpec, Model, ModelSpec, NetworkDenoiser
from sdkit_diffusers.autoencoder import Autoencoder
from sdkit_diffusers.licences import licence
from sdkit_diffusers.options import Options
from sdkit_diffusers.parts import Plan, Source, fill, plan, weight_files
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.schedules import Trained
from sdkit_diffusers.singlefile import read_autoencoder
from sdkit_diffusers.tensors import sha256
from sdkit_diffusers.text import TextEncoder

__all__ = ["Built", "build", "finish", "side_of"]


@frozen(eq=False)
class Built:
    """The networks of a model, with their weights.

    Attributes:
        source: What they were read from.
        options: How.
        networks: By the name of the part.
        placement: Puts them on the device.
        sha256: Of the files, or empty.
    """

    source: Source
    options: Options
    networks: Mapping[str, Any] = field(repr=False)
    placement: Placement = field(repr=False)
    sha256: str

    def config(self, part: str) -> Any:
        """The configuration a network was built from."""
        return self.networks[part].config

    def text(self, part: str) -> TextEncoder | None:
        """A text encoder with its tokenizer, or None if the model came without it."""
        if part not in self.networks:
            return None
        return TextEncoder(self.networks[part], self.source.tokenizers[part], self.placement)

    def autoencoder(self, latent: LatentSpec) -> Autoencoder:
        """The autoencoder, as the options want it used."""
        config = self.config("vae")
        return Autoencoder(
            self.networks["vae"],
            latent,
            self.placement,
            scale=float(config.scaling_factor),
            shift=float(config.get("shift_factor") or 0.0),
            slicing=self.options.vae_slicing,
            tiles=self.options.vae_tiling,
        )


def build(source: Source, options: Options) -> Built:
    """All networks of a source. Every part is checked before the first tensor is read.

    Raises:
        FileError: a part is damaged or does not fit its configuration.
    """
    if options.vae is not None:
        source = evolve(source, parts={**source.parts, "vae": read_autoencoder(options.vae, source.family)})
    plans = {name: plan(part) for name, part in source.parts.items()}
    # hashing leaves the interpreter free, and what it has read from the disk need not be read again
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(sha256, weight_files(source.parts.values())) if options.sha256 else None
        networks: dict[str, nn.Module] = {}
        for name, planned in plans.items():
            dtype = _autoencoder_dtype(planned, source, options) if name == "vae" else options.network_dtype
            network = fill(planned, dtype=dtype, device=options.home)
            if options.channels_last and name in ("unet", "vae"):
                cast(Any, network).to(memory_format=torch.channels_last)
            if options.compile and name in ("unet", "transformer"):
                network.compile()
            networks[name] = network
        digest = hashed.result() if hashed else ""
    placement = Placement(options.device, tuple(networks.values()), stages=options.offload == "stages")
    return Built(source, options, networks, placement, digest)


def _autoencoder_dtype(planned: Plan, source: Source, options: Options) -> torch.dtype:
    """XL's first autoencoder gives NaN in float16 for certain, and says so (``force_upcast``)."""
    asked = options.autoencoder_dtype
    weak = source.family.startswith("sdxl") and planned.part.config.get("force_upcast", False)
    return torch.float32 if weak and asked == torch.float16 and not options.vae_dtype else asked


def side_of(built: Built, part: str) -> tuple[int, int]:
    """(factor of the autoencoder, default side of pictures in pixels)."""
    factor: int = 2 ** (len(built.config("vae").block_out_channels) - 1)
    size = built.config(part).get("sample_size") or 64
    return factor, factor * int(size if isinstance(size, int) else size[0])


def finish(
    built: Built,
    encoder: Any,
    network: Callable[..., Any],
    how: Trained,
    latent: LatentSpec,
    *,
    summary: str,
    guidance: float | None,
    steps: int,
    member: str,
    wrap: Callable[[NetworkDenoiser[Any], Autoencoder], Any] = lambda denoiser, autoencoder: denoiser,
    autoencoder: Any = None,
) -> Model[Any]:
    """The model of its parts.

    Args:
        built: Its networks.
        encoder: Prompts to conditioning.
        network: ``(x, time, cond) -> Tensor``.
        how: How it was trained.
        latent: Its latents.
        summary: One line for people.
        guidance: Recommended scale, or None.
        steps: Recommended number of steps.
        member: The family in the words of the licences, see `sdkit_diffusers.members`.
        wrap: Makes the denoiser from the plain one, where it needs the autoencoder.
        autoencoder: Where it is another than that of pictures.
    """
    name, family = built.source.path.name, member
    spec = ModelSpec(
        name=name.removesuffix(".safetensors"),
        family=family,
        latent=latent,
        licence=licence(family),
        summary=summary,
        prediction=how.prediction,
        scheduler=how.scheduler,
        spacing=how.spacing,
        steps=steps,
        guidance=guidance,
        sha256=built.sha256,
    )
    autoencoder = built.autoencoder(latent) if autoencoder is None else autoencoder
    denoiser = NetworkDenoiser(network, how.parametrization, how.schedule, built.options.network_dtype)
    return Model(
        spec,
        encoder,
        wrap(denoiser, autoencoder),
        autoencoder,
        how.schedule,
        built.options.device,
        on_close=built.placement.close,
    )
