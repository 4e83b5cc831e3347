"""What made this picture, written and read inside the file.

A PNG carries two text chunks: ``sdkit``, this manifest as JSON, and ``parameters``, the text that A1111, Civitai and
other tools read. No absolute paths are written. Input pictures travel in chunks of their own (``sdIm``), so that the
file alone is enough to make the picture again; as text they would exceed what readers of PNG accept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from attrs import frozen

from sdkit.errors import FileError, ManifestError, ParameterError, SdkitError
from sdkit.files import write_whole
from sdkit.levels import Grid
from sdkit.plugins import registry, spelling
from sdkit.request import Request
from sdkit.wire import from_json, to_json

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Manifest", "parameters_text", "read_manifest", "write_png"]

SCHEMA = 1
CHUNK = "sdkit"
PICTURE_CHUNK = b"sdIm"  # lower case: not critical, private; upper, as PNG demands; lower: safe to copy
PICTURES = ("image", "mask")

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
        noise: Source of the noise, by the name that says which numbers it draws.
        evaluations: Denoiser calls made.
        device: Kind of device it ran on.
        versions: Versions of the packages that matter for the numbers.
        pixels_sha256: Hash of each image's pixels, one per seed.
        index: Which image of the request this file is.
        schema: Version of this form.

    Raises:
        ManifestError: the index is that of no image, or there is not one hash per seed.
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

    def __attrs_post_init__(self) -> None:
        count = len(self.request.seeds)
        if len(self.pixels_sha256) != count or not 0 <= self.index < count:
            raise ManifestError(
                f"A manifest of {count} seeds has as many hashes and an index below that, not "
                f"{len(self.pixels_sha256)} hashes and index {self.index}."
            )

    def to_json(self) -> str:
        """This manifest as JSON text, input pictures included."""
        return to_json(self)

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
            raise ManifestError("This is not an sdkit manifest: no JSON object with a schema.") from error
        if type(version) is not int or version != SCHEMA:
            raise ManifestError(f"The manifest has schema {version!r}; this sdkit reads {SCHEMA}: update sdkit.")
        return from_json(text, cls)


def parameters_text(manifest: Manifest) -> str:
    """The ``parameters`` text other tools read: prompt, negative prompt, then one line of ``Key: value``."""
    request = manifest.request
    sampler, options = _parsed(request.scheduler)
    spacing, _ = _parsed(request.spacing)
    label = "Euler a" if sampler == "ddim" and options.get("eta") == 1 else _label("scheduler", sampler)
    width, height = request.size or (0, 0)
    pairs: list[tuple[str, object]] = [
        ("Steps", request.steps),
        ("Sampler", label),
        ("Schedule type", _label("spacing", spacing)),
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


def _label(kind: str, name: str) -> str:
    """What A1111 (1.9 and later) prints for it, if it has it."""
    try:
        known = registry().find(kind, name).component.known_as
    except SdkitError:
        return name
    return next((label for tool, _, label, _ in known if tool == "a1111"), name)


def _parsed(text: str | None) -> tuple[str, dict[str, Any]]:
    try:
        return spelling.parse(text or "")
    except SdkitError:
        return text or "", {}


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
    if path.suffix.lower() != ".png" or not path.stem:
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
        data = json.loads(manifest.to_json())
        for name in PICTURES:
            if data["request"][name] is not None:
                png = base64.b64decode(data["request"][name])
                data["request"][name] = hashlib.sha256(png).hexdigest()
                info.add(PICTURE_CHUNK, png)
        info.add_itxt(CHUNK, json.dumps(data, ensure_ascii=False, separators=(",", ":")))

    def write(file: BinaryIO) -> None:
        image.save(file, "PNG", pnginfo=info)

    return write_whole(path, write)


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
            private = [chunk[1] for chunk in getattr(image, "private_chunks", ()) if chunk[0] == PICTURE_CHUNK]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError(f"{name!r} cannot be read as a picture: {reason}.") from error
    if CHUNK not in chunks:
        other = " (it has `parameters` of another tool, which sdkit does not rerun)" if "parameters" in chunks else ""
        raise ManifestError(f"{name!r} carries no sdkit manifest{other}; only files sdkit saved with one can be rerun.")
    return Manifest.from_json(_with_pictures(str(chunks[CHUNK]), private))


def _with_pictures(text: str, pngs: list[bytes]) -> str:
    """The JSON text with the pictures it names by their hashes put in."""
    found = {hashlib.sha256(png).hexdigest(): png for png in pngs}
    try:
        data = json.loads(text)
        for name in PICTURES:
            if data["request"][name] is not None:
                data["request"][name] = base64.b64encode(found[data["request"][name]]).decode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return text  # reading it will say what is wrong
    return json.dumps(data)


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter for the numbers: sdkit's own, its plugins', torch and numpy."""
    from importlib.metadata import PackageNotFoundError, version

    found = {p.distribution: p.version for p in registry().plugins if p.ok and p.distribution and p.version}
    for package in ("sdkit-core", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
