"""The front door: from names to models and pipelines."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from sdkit.errors import (
    FileError,
    InvalidRequest,
    ManifestError,
    ParameterError,
    PluginError,
    UnknownComponent,
    nearest,
)
from sdkit.levels import Grid
from sdkit.manifest import Manifest, read_manifest
from sdkit.model import Licence, Model
from sdkit.noise import NoiseMaker
from sdkit.pipelines import Pipeline, Result, pixels_sha256
from sdkit.plugins import registry
from sdkit.plugins.component import describe
from sdkit.plugins.discovery import call
from sdkit.protocols import Scheduler, Spacing

__all__ = ["load", "pipeline", "rerun"]


def load(reference: str | os.PathLike[str], *, device: str = "cpu", **options: Any) -> Model[Any]:
    """A model by its registered name, or from a folder or a ``.safetensors`` file.

    Args:
        reference: A registered name (``"emoji"``), or a path. What is written as a path (with a separator, or as a
            ``Path``) is one; anything else is looked for among the names first.
        device: Where to put the weights, as torch writes it.
        options: What the model's loader takes besides; unknown ones are an error.

    Raises:
        UnknownComponent: no model has that name and no such file exists.
        FileError: the file exists and no installed model family recognises it.
        InvalidRequest: the device does not exist.
        PluginError: the plugin behind it cannot be loaded.

    What a licence restricts, or that it is not known, is a warning of the logger ``sdkit``, once in a process.
    """
    _check_device(device)
    if not isinstance(reference, (str, os.PathLike)):
        raise InvalidRequest(f"A model is found by its name or path, not by {reference!r}.")
    text, known, options = os.fspath(reference), registry(), {"device": device, **options}
    # what is written as a path is one; anything else may also be a file's name, if no model is registered under it
    if not isinstance(reference, os.PathLike) and os.sep not in text and "/" not in text:
        try:
            entry = known.find("model", text)
        except UnknownComponent:
            pass
        else:
            return _model(call(f"model {text!r}", entry.component.load(), options), f"The model {entry.full_name}")
    path = Path(text)
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
    tried = []
    for entry in registry().entries("model-family"):
        try:
            family = entry.component.load()
            family = family() if isinstance(family, type) else family
            recognised = family.probe(path)
        except Exception as error:  # one broken family must not hide the others; if none knows the file, it is named
            tried.append(f"{entry.full_name} failed: {describe(error)}")
            continue
        if recognised:
            what = f"model family {entry.full_name}"
            return _model(call(what, family.load, {"path": path, **options}), f"The {what}")
        tried.append(entry.full_name)
    raise FileError(f"No model family recognises {path.name!r} (families: {', '.join(tried) or 'none is installed'}).")


def _model(made: object, what: str) -> Model[Any]:
    if not isinstance(made, Model):
        raise PluginError(f"{what} gave a {type(made).__name__}, not a sdkit Model.")
    if made.spec.licence.terms or made.spec.licence.id == "unknown":
        _tell(made.spec.licence)
    return made


@cache
def _tell(licence: Licence) -> None:
    """What a person needs to know of terms, once in a process; logged, so that an application can send it elsewhere."""
    logging.getLogger("sdkit").warning("Licence: %s. %s", licence.name, licence.summary)


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device)
        torch.zeros(1, device=kind).item()  # "meta" is a device, and holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidRequest(f"The device {device!r} cannot be used: {reason}") from error


def pipeline(
    model: Model[Any],
    *,
    scheduler: str | Scheduler[Any] | None = None,
    spacing: str | Spacing | Grid | None = None,
    noise: str | NoiseMaker = "addressed",
) -> Pipeline[str, Any, Any]:
    """A pipeline of a model's own parts.

    Args:
        model: From `load`.
        scheduler: A name, parameters may follow (``"ddim(eta=0.5)"``), a spacing too (``"DPM++ 2M Karras"``), or a
            scheduler; default: what the model recommends.
        spacing: A name, a spacing, or a grid used verbatim; default: what the model recommends.
        noise: A name, or what makes the noise of a run from its seeds and grid.

    Raises:
        UnknownComponent, ParameterError: a name means nothing, or not with these parameters.
    """
    if not isinstance(model, Model):
        raise InvalidRequest(f"A pipeline is made of a model, not of {model!r}; load it first: sdkit.load(...).")
    for name, value in (("scheduler", scheduler), ("spacing", spacing), ("noise", noise)):
        if isinstance(value, type):
            raise ParameterError(
                f"The {name} {value.__name__} is a class; give one of its objects: {value.__name__}()."
            )
    known = registry()
    scheduler = model.spec.scheduler if scheduler is None else scheduler
    if isinstance(scheduler, str):
        scheduler, spacing = known.pair(scheduler, spacing)
    spacing = model.spec.spacing if spacing is None else spacing
    spacing = tuple(spacing) if isinstance(spacing, list) else spacing
    return Pipeline(
        model.encoder,
        model.denoiser,
        known.make("scheduler", scheduler) if isinstance(scheduler, str) else scheduler,
        model.autoencoder,
        spacing=known.make("spacing", spacing) if isinstance(spacing, str) else spacing,
        noise=known.make("noise", noise) if isinstance(noise, str) else noise,
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


def rerun(path: str | os.PathLike[str], *, model: Model[Any] | None = None, device: str | None = None) -> Rerun:
    """Make the picture in a file again, from the manifest inside it.

    The whole batch it was part of is made again, so that even the last bits of its arithmetic are the same; the image
    of the file is ``result.images[manifest.index]``.

    Args:
        path: A PNG that sdkit saved.
        model: The model to use; by default the registered one that the manifest names. A path in a manifest is not
            followed: what a file from elsewhere opens is for you to say.
        device: Where to run it if it is loaded here; by default the kind of device the picture was made on.

    Raises:
        FileError, ManifestError: the file has no manifest to follow.
        UnknownComponent: the model or a component it names is not installed.
    """
    manifest = read_manifest(path)
    if model is None:
        entries = registry().entries("model")
        if manifest.model not in {name for entry in entries for name in (entry.component.name, entry.full_name)}:
            raise ManifestError(
                f"The picture was made with the model {manifest.model!r}, which is not registered here; load it and "
                "pass it as model."
            )
        model = load(manifest.model, device=device or manifest.device)
    if manifest.model_sha256 and model.spec.sha256 and manifest.model_sha256 != model.spec.sha256:
        raise ManifestError(
            f"The picture was made with weights {manifest.model_sha256[:10]}, but the model {model.spec.name!r} has "
            f"{model.spec.sha256[:10]}; install the release that made it, or ask for a new picture instead."
        )
    request, pipe = attrs.evolve(manifest.request, noise=manifest.noise), pipeline(model)
    if request.spacing == "grid":
        if request.image is not None:
            raise ManifestError("A picture that started from an image on a grid given by hand cannot be rerun yet.")
        pipe = pipeline(model, spacing=manifest.grid)
    elif pipe.plan(request).grid != manifest.grid:
        raise ManifestError(
            "The spacing gives other levels today than the manifest states; install the release that made the file."
        )
    result = pipe(request)
    image = result.images[manifest.index]
    return Rerun(result, manifest, pixels_sha256(image) == manifest.pixels_sha256[manifest.index])
