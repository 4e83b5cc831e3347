"""The front door: from names to models and pipelines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs

from sdkit.errors import FileError, InvalidRequest, ManifestError, PluginError, SdkitError, UnknownComponent, nearest
from sdkit.levels import Grid
from sdkit.manifest import Manifest, read_manifest
from sdkit.model import Model
from sdkit.pipelines import Pipeline, Result, pixels_sha256
from sdkit.plugins import registry
from sdkit.plugins.registry import call
from sdkit.protocols import Scheduler, Spacing

__all__ = ["load", "pipeline", "rerun"]


def load(reference: str | os.PathLike[str], *, device: str = "cpu", **options: Any) -> Model[Any]:
    """A model by its registered name, or from a folder or a ``.safetensors`` file.

    Args:
        reference: A registered name (``"emoji"``), or a path. A path that exists wins over a name only if it is
            written as one (with a separator or a suffix).
        device: Where to put the weights, as torch writes it.
        options: What the model's loader takes besides; unknown ones are an error.

    Raises:
        UnknownComponent: no model has that name and no such file exists.
        FileError: the file exists and no installed model family recognises it.
        InvalidRequest: the device does not exist.
        PluginError: the plugin behind it cannot be loaded.
    """
    _check_device(device)
    text = os.fspath(reference)
    known = registry()
    options = {"device": device, **options}
    path = Path(text)
    looks_like_path = isinstance(reference, os.PathLike) or os.sep in text or "/" in text or bool(path.suffix)
    if not looks_like_path:
        try:
            entry = known.find("model", text)
        except UnknownComponent:
            pass
        else:
            model = call(f"model {text!r}", entry.component.load(), options)
            if not isinstance(model, Model):
                raise PluginError(f"The model {entry.full_name} is a {type(model).__name__}, not a sdkit Model.")
            return model
    if not path.exists():
        found = known.find_model(text)
        if found is None:
            names = [entry.component.name for entry in known.entries("model")]
            raise UnknownComponent(
                f"There is no model {text!r}, neither registered nor a file or folder; {nearest(text, names)}"
            )
        path = found
    return _load_path(path, options)


def _load_path(path: Path, options: dict[str, Any]) -> Model[Any]:
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise FileError(
            f"{path.name!r} is a pickle file, which can run any code when it is opened; convert it to safetensors "
            "(with safetensors.torch.save_file in a sandbox), then load that."
        )
    families = registry().entries("model-family")
    for entry in families:
        family = entry.component.load()
        family = family() if isinstance(family, type) else family
        if family.probe(path):
            model = call(f"model family {entry.full_name}", family.load, {"path": path, **options})
            if not isinstance(model, Model):
                raise PluginError(f"The family {entry.full_name} gave a {type(model).__name__}, not a sdkit Model.")
            return model
    installed = ", ".join(entry.full_name for entry in families) or "none is installed"
    raise FileError(f"No model family recognises {path.name!r} (families: {installed}).")


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device)
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidRequest(f"The device {device!r} cannot be used: {reason}") from error


def pipeline(
    model: Model[Any],
    *,
    scheduler: str | Scheduler[Any] | None = None,
    spacing: str | Spacing | Grid | None = None,
) -> Pipeline[str, Any, Any]:
    """A pipeline of a model's own parts.

    Args:
        model: From `load`.
        scheduler: A name, parameters may follow (``"ddim(eta=0.5)"``), or a scheduler; default: what the model
            recommends.
        spacing: A name, a spacing, or a grid used verbatim; default: what the model recommends.

    Raises:
        UnknownComponent, ParameterError: a name means nothing, or not with these parameters.
    """
    known = registry()
    scheduler = model.spec.scheduler if scheduler is None else scheduler
    spacing = model.spec.spacing if spacing is None else spacing
    return Pipeline(
        model.encoder,
        model.denoiser,
        known.make("scheduler", scheduler) if isinstance(scheduler, str) else scheduler,
        model.autoencoder,
        spacing=known.make("spacing", spacing) if isinstance(spacing, str) else spacing,
        schedule=model.schedule,
        spec=model.spec,
        device=model.device,
    )


@attrs.frozen(eq=False)
class Rerun:
    """A picture made again.

    Attributes:
        result: All images of the request the file belongs to.
        manifest: The manifest that was read.
        same: Whether the pixels are those the manifest states, bit for bit.
    """

    result: Result
    manifest: Manifest
    same: bool


def rerun(path: str | os.PathLike[str], *, model: Model[Any] | None = None, device: str = "cpu") -> Rerun:
    """Make the picture in a file again, from the manifest inside it.

    The whole batch it was part of is made again, so that even the last bits of its arithmetic are the same; the image
    of the file is ``result.images[manifest.index]``.

    Args:
        path: A PNG that sdkit saved.
        model: The model to use; by default the one the manifest names is loaded.
        device: Where to run it if it is loaded here.

    Raises:
        FileError, ManifestError: the file has no manifest to follow.
        UnknownComponent: the model or a component it names is not installed.
    """
    manifest = read_manifest(path)
    if model is None:
        if not manifest.model:
            raise ManifestError("The manifest names no model: the picture came from a pipeline built by hand.")
        try:
            model = load(manifest.model, device=device)
        except SdkitError as error:
            error.add_note(f"the picture was made with the model {manifest.model!r}; pass it if it lies elsewhere")
            raise
    if manifest.model_sha256 and model.spec.sha256 and manifest.model_sha256 != model.spec.sha256:
        raise ManifestError(
            f"The picture was made with weights {manifest.model_sha256[:10]}, but the model {model.spec.name!r} has "
            f"{model.spec.sha256[:10]}; install the release that made it, or ask for a new picture instead."
        )
    # The grid is in the manifest, but a request walks it from its spacing; that both agree is checked here.
    pipe = pipeline(model)
    if manifest.request.spacing == "grid":
        request = attrs.evolve(manifest.request, spacing=None, steps=None, strength=None)
        if manifest.request.image is not None:
            raise ManifestError("A picture that started from an image on a grid given by hand cannot be rerun yet.")
        pipe = pipeline(model, spacing=manifest.grid)
    else:
        request = manifest.request
        planned = pipe.plan(request).grid
        if planned != manifest.grid:
            raise ManifestError(
                "The spacing gives other levels today than the manifest states; install the release that made the file."
            )
    result = pipe(request)
    image = result.images[manifest.index]
    return Rerun(result, manifest, pixels_sha256(image) == manifest.pixels_sha256[manifest.index])
