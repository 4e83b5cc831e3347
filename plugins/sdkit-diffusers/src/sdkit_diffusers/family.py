"""The front of this package: recognises files and loads models. Importing it loads neither torch nor diffusers."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit import FileError
from sdkit_diffusers.folders import INDEX, read_family, read_folder
from sdkit_diffusers.singlefile import family_of_keys, read_file, unknown
from sdkit_diffusers.tensors import Weights

if TYPE_CHECKING:
    from sdkit import Licence, Model

__all__ = ["StableDiffusion"]

ASSEMBLIES = {
    "sd1": "sdkit_diffusers.sd",
    "sd2": "sdkit_diffusers.sd",
    "sdxl": "sdkit_diffusers.sdxl",
    "sdxl-refiner": "sdkit_diffusers.sdxl",
    "sd3": "sdkit_diffusers.sd3",
    "flux": "sdkit_diffusers.flux",
    "ltx-video": "sdkit_diffusers.ltx",
    "svd": "sdkit_diffusers.svd",
}
"""Modules with a function ``assemble(source, options) -> Model``, by family."""


class StableDiffusion:
    """Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, FLUX.1, from a diffusers folder or one file with original names.

    LTX-Video and Stable Video Diffusion, which make clips, from a diffusers folder.
    """

    def probe(self, path: Path) -> bool:
        """Whether the folder or file is a model of these families; reads an index or a header, no tensor.

        Raises:
            FileError: it is a safetensors file or a model's folder, but damaged or of no family known here; the
                sentence names what is in it.
        """
        path = Path(path)
        if path.is_dir():
            return (path / INDEX).is_file() and bool(read_family(path))
        if path.suffix.lower() != ".safetensors":
            return False
        weights = Weights.of([path])
        if family_of_keys(weights) is None:
            raise FileError(unknown(path, weights))
        return True

    def licence(self, path: Path) -> Licence:
        """The licence of a folder's or file's family, from an index or a header alone.

        Raises:
            FileError: it is damaged, or of no family known here.
        """
        from sdkit_diffusers.licences import licence
        from sdkit_diffusers.members import member_of

        return licence(member_of(Path(path)))

    def licences(self) -> dict[str, Licence]:
        """The licences of all families, by the name of the family."""
        from sdkit_diffusers.licences import licences

        return licences()

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        dtype: str = "",
        vae: str | os.PathLike[str] | None = None,
        vae_dtype: str = "",
        vae_slicing: bool = False,
        vae_tiling: bool | int = False,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - the name people look for
        offload: str = "",
        prediction: str | None = None,
        shift: float | None = None,
        embedded_guidance: float | None = None,
        t5_tokenizer: str | os.PathLike[str] | None = None,
        sha256: bool = True,
    ) -> Model[Any]:
        """Load a model. Everything that can be wrong with the files is found before memory is taken for weights.

        Args:
            path: A folder with ``model_index.json``, or a ``.safetensors`` file with original names.
            device: Where to compute, as torch writes it.
            dtype: Of text encoders and denoiser: ``"float32"`` (the default), ``"bfloat16"`` or ``"float16"``.
                Latents and the sampler's arithmetic stay float32.
            vae: Another autoencoder: a file or a folder of its own.
            vae_dtype: Of the autoencoder; default: as ``dtype``. One that gives NaN in float16 is used in float32
                from then on, with a warning.
            vae_slicing: Decode the pictures of a batch one after the other.
            vae_tiling: Decode and encode large pictures in overlapping tiles, which takes longer and less memory and
                gives the same picture (tiles of less than 16: nearly); a number is the side of a tile in elements of
                the latent, True is 64.
            channels_last: Keep weights of convolutions in torch's channels-last layout.
            compile: Compile the denoiser with ``torch.compile`` at its first use.
            offload: ``"stages"`` keeps weights on the CPU, and on the device only the part that works.
            prediction: What the network predicts (``"epsilon"``, ``"velocity"``, ``"sample"``), where the file does not
                say or says it wrongly. Files of Stable Diffusion 2 do not say; velocity is taken for granted.
            shift: Of a flow's noise schedule, where the family's own does not suit the size.
            embedded_guidance: The guidance scale that LCM and FLUX.1 dev read as an input.
            t5_tokenizer: A folder with T5's ``tokenizer.json``, for single files.
            sha256: Whether to hash the files, for the manifest (about half a second per gigabyte).

        Raises:
            FileError: a file is missing, damaged or of another kind; the sentence names the tensors.
            ParameterError: an option has a value that is not known.
        """
        from sdkit_diffusers.options import Options
        from sdkit_diffusers.tiling import Tiles

        side = 64 if vae_tiling is True else int(vae_tiling)
        options = Options(
            device=device,
            dtype=dtype,
            vae=None if vae is None else Path(vae),
            vae_dtype=vae_dtype,
            vae_slicing=vae_slicing,
            vae_tiling=Tiles(side, min(8, side // 2)) if side else None,
            channels_last=channels_last,
            compile=compile,
            offload=offload,
            prediction=prediction,
            shift=shift,
            embedded_guidance=embedded_guidance,
            t5_tokenizer=None if t5_tokenizer is None else Path(t5_tokenizer),
            sha256=sha256,
        )
        if Path(path).is_dir():
            source = read_folder(Path(path), precision=options.variant)
        else:
            without = frozenset(["vae"] if options.vae else [])
            source = read_file(Path(path), t5_tokenizer=options.t5_tokenizer, without=without)
        made: Model[Any] = import_module(ASSEMBLIES[source.family]).assemble(source, options)
        return made
