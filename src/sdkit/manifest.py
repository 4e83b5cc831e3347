"""What made this picture, written and read inside the file.

A PNG carries two text chunks: ``sdkit``, this manifest as JSON, and ``parameters``, the text that A1111, Civitai and
other tools read. No absolute paths are written. Input pictures travel inside the JSON, so that the file alone is
enough to make the picture again.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cattrs
from attrs import frozen

from sdkit.errors import FileError, ManifestError, ParameterError, SdkitError
from sdkit.levels import Grid, Level
from sdkit.plugins import registry, spelling
from sdkit.request import Picture, Request

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Manifest", "parameters_text", "read_manifest", "write_png"]

SCHEMA = 1
CHUNK = "sdkit"

Metadata = Literal["full", "a1111", "none"]


@frozen
class Manifest:
    """What made a picture.

    Attributes:
        request: Everything asked, with what the pipeline and the model filled in.
        grid: The levels walked, each (t, alpha, sigma).
        model: Name of the model.
        model_sha256: Hash of its weights, empty if not known.
        licence: Identifier of the model's licence.
        noise: Source of the noise.
        evaluations: Denoiser calls made.
        device: Kind of device it ran on.
        versions: Versions of the packages that matter for the numbers.
        pixels_sha256: Hash of each image's pixels.
        index: Which image of the request this file is.
        schema: Version of this form.
    """

    request: Request
    grid: Grid
    model: str
    model_sha256: str
    licence: str
    noise: str
    evaluations: int
    device: str
    versions: dict[str, str]
    pixels_sha256: tuple[str, ...]
    index: int = 0
    schema: int = SCHEMA

    def to_json(self) -> str:
        """This manifest as JSON text; non-finite numbers never occur in it."""
        return json.dumps(_converter().unstructure(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest that `to_json` wrote; unknown fields are an error.

        Raises:
            ManifestError: the text is none, or was written by a newer sdkit.
        """
        try:
            data = json.loads(text)
            version = data["schema"] if isinstance(data, dict) else None
        except (ValueError, KeyError, RecursionError) as error:
            raise ManifestError(f"This is not an sdkit manifest: {_first_line(error)}.") from error
        if version != SCHEMA:
            raise ManifestError(f"The manifest has schema {version!r}; this sdkit reads {SCHEMA}: update sdkit.")
        try:
            return _converter().structure(data, cls)
        except Exception as error:
            lines = "; ".join(cattrs.transform_error(error, format_exception=_reason))
            raise ManifestError(f"The manifest cannot be read: {lines}") from error


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Picture, lambda picture: base64.b64encode(picture.png).decode())
    converter.register_structure_hook(Picture, lambda text, _: Picture(base64.b64decode(text, validate=True)))
    converter.register_unstructure_hook(Level, lambda level: [level.t, level.alpha, level.sigma])
    converter.register_structure_hook(Level, lambda values, _: Level(*values))
    plain = cattrs.gen.make_dict_unstructure_fn(
        Request, converter, modifiers=cattrs.gen.override(unstruct_hook=lambda values: [_spelled(v) for v in values])
    )
    converter.register_unstructure_hook(Request, plain)
    converter.register_structure_hook(
        Request,
        cattrs.gen.make_dict_structure_fn(
            Request,
            converter,
            _cattrs_forbid_extra_keys=True,
            modifiers=cattrs.gen.override(struct_hook=lambda texts, _: tuple(_made(t) for t in texts)),
        ),
    )
    return converter


def _spelled(modifier: object) -> str:
    # A modifier that no plugin registers can be used, but not made again from a file: it stands there as its repr.
    return registry().spell("modifier", modifier) or repr(modifier)


def _made(text: object) -> Any:
    if not isinstance(text, str):
        raise ParameterError(f"A modifier is written as text, not {text!r}.")
    return registry().make("modifier", text)


def _reason(error: BaseException, kind: type | None) -> str:
    # Our own sentences say more than cattrs' "invalid value".
    return str(error).rstrip(".") if isinstance(error, SdkitError) else cattrs.v.format_exception(error, kind)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# Names other tools print for the core's samplers and spacings (scheduler-names: A1111 1.9 and later).
_A1111_SAMPLERS = {"euler": "Euler", "heun": "Heun", "dpmpp-2m": "DPM++ 2M", "ddim": "DDIM"}
_A1111_SCHEDULES = {"uniform": "Uniform", "trailing": "Simple", "karras": "Karras", "uniform-log-snr": "Exponential"}


def parameters_text(manifest: Manifest) -> str:
    """The ``parameters`` text other tools read: prompt, negative prompt, then one line of ``Key: value``."""
    request = manifest.request
    sampler, options = spelling.parse(request.scheduler or "")
    spacing, _ = spelling.parse(request.spacing or "")
    label = "Euler a" if sampler == "ddim" and options.get("eta") == 1 else _A1111_SAMPLERS.get(sampler, sampler)
    width, height = request.size or (0, 0)
    pairs: list[tuple[str, object]] = [
        ("Steps", request.steps),
        ("Sampler", label),
        ("Schedule type", _A1111_SCHEDULES.get(spacing, spacing)),
        ("CFG scale", 1 if request.guidance is None else f"{request.guidance:g}"),
        ("Seed", request.seeds[manifest.index]),
        ("Size", f"{width}x{height}"),
    ]
    if manifest.model_sha256:
        pairs.append(("Model hash", manifest.model_sha256[:10]))
    pairs.append(("Model", manifest.model))
    if sampler == "ddim" and options.get("eta") not in (None, 0, 1):
        pairs.append(("Eta", options["eta"]))
    if request.strength is not None:
        pairs.append(("Denoising strength", f"{request.strength:g}"))
    pairs.append(("Version", f"sdkit {manifest.versions.get('sdkit-core', '')}".strip()))
    lines = [request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def write_png(path: str | os.PathLike[str], image: Image, manifest: Manifest, *, metadata: Metadata = "full") -> Path:
    """Write a PNG with its manifest inside, to a temporary name that is renamed when all is written.

    Args:
        path: Must end in ``.png``.
        image: The picture.
        manifest: What made it, with its ``index``.
        metadata: ``"full"`` (both chunks), ``"a1111"`` (the ``parameters`` text only) or ``"none"``.

    Raises:
        FileError: the name is not a PNG's, or the file cannot be written; nothing is left behind.
    """
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise FileError(
            f"{path.name!r} does not end in .png, the one format sdkit writes its manifest into; for others take "
            "result.images[0].save(...), which writes the picture alone."
        )
    if metadata not in ("full", "a1111", "none"):
        raise ParameterError(f"metadata is 'full', 'a1111' or 'none', not {metadata!r}.")
    info = PngInfo()
    if metadata != "none":
        info.add_itxt("parameters", parameters_text(manifest))
    if metadata == "full":
        info.add_itxt(CHUNK, manifest.to_json(), zip=manifest.request.image is not None)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            image.save(file, "PNG", pnginfo=info)
        # mkstemp makes files only the owner can read; a picture gets the permissions any new file would get.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FileError(f"{path.name!r} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest inside a PNG that sdkit wrote.

    Raises:
        FileError: the file cannot be read as a picture.
        ManifestError: it carries no manifest of sdkit's.
    """
    from PIL import Image

    name = Path(path).name
    try:
        with Image.open(path) as image:
            image.load()
            chunks = dict(getattr(image, "text", None) or {})
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError(f"{name!r} cannot be read as a picture: {reason}.") from error
    if CHUNK not in chunks:
        other = " (it has `parameters` of another tool, which sdkit does not rerun)" if "parameters" in chunks else ""
        raise ManifestError(f"{name!r} carries no sdkit manifest{other}; only files sdkit saved with one can be rerun.")
    return Manifest.from_json(str(chunks[CHUNK]))


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter for the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("sdkit-core", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
