"""How a model is to be loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import frozen

from sdkit import ParameterError
from sdkit_diffusers.tiling import Tiles

__all__ = ["Options"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VARIANTS = {"float32": "", "bfloat16": "bf16", "float16": "fp16"}


def _dtype(name: str, value: str) -> torch.dtype:
    if value not in DTYPES:
        raise ParameterError(f"{name} is one of {', '.join(DTYPES)}, not {value!r}.")
    return DTYPES[value]


@frozen
class Options:
    """How a model is to be loaded; see `sdkit_diffusers.family.StableDiffusion.load` for what each means."""

    device: str = "cpu"
    dtype: str = ""
    vae: Path | None = None
    vae_dtype: str = ""
    vae_slicing: bool = False
    vae_tiling: Tiles | None = None
    channels_last: bool = False
    compile: bool = False
    offload: str = ""
    prediction: str | None = None
    shift: float | None = None
    embedded_guidance: float | None = None
    t5_tokenizer: Path | None = None
    sha256: bool = True

    def __attrs_post_init__(self) -> None:
        if self.offload not in ("", "stages"):
            raise ParameterError(f"offload is 'stages' or nothing, not {self.offload!r}.")
        _ = self.network_dtype, self.autoencoder_dtype

    @property
    def _named(self) -> str:
        return self.dtype or "float32"

    @property
    def network_dtype(self) -> torch.dtype:
        """Of text encoders and denoiser."""
        return _dtype("dtype", self._named)

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """Of the autoencoder."""
        return _dtype("vae_dtype", self.vae_dtype or self._named)

    @property
    def variant(self) -> str:
        """The variant of the files in a folder that suits the precision."""
        return VARIANTS[self._named]

    @property
    def home(self) -> str:
        """Where weights are kept."""
        return "cpu" if self.offload else self.device
