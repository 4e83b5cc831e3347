"""Networks that work beside a model's own: found in files, checked against the model, loaded once for it.

A network is loaded in the model's precision, to where the model's weights are, and kept until the model is closed.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sdkit import FileError, InvalidRequest, ParameterError, Picture, Request
from sdkit_diffusers.folders import read_json, weight_files
from sdkit_diffusers.parts import Part, Plan, fill, plan, saved
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.tensors import Weights

__all__ = ["check_size", "fitted", "image_text", "kept", "number", "of_config", "part_in_folder", "picture", "pixels"]

DATA = "data:image/png;base64,"
_KEPT: WeakKeyDictionary[Placement, dict[Any, nn.Module]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number in a range.

    Raises:
        ParameterError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ParameterError(f"{name} is a number from {low:g} to {high:g}, not {value!r}.")
    return float(value)


def image_text(value: Any) -> str:
    """A picture as text that can travel in a request: a file's name, or the picture itself (a ``data:`` address).

    Raises:
        ParameterError: it is nothing of the kind.
    """
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str) and text:
            return text
    elif value is not None and not isinstance(value, (bool, int, float, bytes, tuple, list)):
        return DATA + base64.b64encode(Picture.of(value).png).decode()
    raise ParameterError(f"An image is a file's name, a Pillow image or a sdkit.Picture, not {value!r}.")


def picture(text: str) -> Picture:
    """The picture that `image_text` wrote.

    Raises:
        FileError: the file cannot be read.
    """
    if not text.startswith(DATA):
        return Picture.of(text)
    try:
        made = Picture(base64.b64decode(text.removeprefix(DATA), validate=True))
        made.image()
    except (ValueError, OSError, SyntaxError) as error:
        raise FileError(f"The image given as text cannot be read: {error}.") from error
    return made


def check_size(given: Picture, request: Request, *, fit: bool, what: str) -> None:
    """Refuses a picture of another size than a request's, which a pipeline's plan has filled in.

    Raises:
        InvalidRequest: it is of another size, and was not to be resized.
    """
    if not fit and request.size is not None:
        _same_size(given, request.size, what)


def _same_size(given: Picture, size: tuple[int, int], what: str) -> None:
    if given.size != size:
        raise InvalidRequest(
            f"The {what}'s image is {given.size[0]}x{given.size[1]} but the picture to make is {size[0]}x{size[1]}; "
            "resize the image, or say fit=True."
        )


def fitted(given: Picture, size: tuple[int, int], *, fit: bool, what: str) -> Picture:
    """The picture at a size (width, height), by Lanczos' filter.

    Raises:
        InvalidRequest: it is of another size, and was not to be resized.
    """
    if not fit:
        _same_size(given, size, what)
    if given.size == size:
        return given
    from PIL import Image

    return Picture.of(given.image().resize(size, Image.Resampling.LANCZOS))


def pixels(given: Picture, channels: int, like: Tensor) -> Tensor:
    """(1, channels, height, width) in [0, 1], where ``like`` is and in its precision; 1 channel is grey, 3 are RGB."""
    import numpy as np

    array = np.asarray(given.image().convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)[None].to(like)


def of_config(network: Any, config: Mapping[str, Any]) -> nn.Module:
    """A network of diffusers' from a configuration as saved, without the marks of its class and release."""
    made: nn.Module = network.from_config({name: value for name, value in config.items() if name[:1] != "_"})
    return made


def part_in_folder(folder: Path, makers: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]], what: str) -> Part:
    """A network in a folder with ``config.json``, which names its class.

    Raises:
        FileError: files are missing or damaged, or it is of another class.
    """
    config = read_json(folder / "config.json")
    kind = config.get("_class_name") or next(iter(config.get("architectures") or [None]))
    if kind not in makers:
        raise FileError(f"The folder {folder.name!r} holds a {kind}, which is no {what} ({', '.join(makers)}).")
    return Part(what, makers[kind], config, Weights.of(weight_files(folder, "")), saved)


def kept(call: Any, path: Path, kind: str, read: Callable[[], Sequence[tuple[Part, Callable[[Plan], None]]]]) -> Any:
    """The networks of a file or folder for a model: loaded at the first asking, then kept until the model is closed.

    Args:
        call: The model's own network, see `sdkit_diffusers.wiring.network_call`.
        path: The file or folder.
        kind: What it is read as.
        read: Its parts, each with a check that raises if it does not fit; called before memory is taken.

    Returns:
        A tuple of networks, one per part.

    Raises:
        FileError: nothing is there, or what is there is damaged or of another kind.
    """
    placement: Placement = call.placement
    weight = next(call.network.parameters())
    key = (kind, *_stamp(path))
    with _LOCK:
        found = _KEPT.setdefault(placement, {})
        if key not in found:
            plans = []
            for part, check in read():
                planned = plan(part)
                check(planned)
                plans.append(planned)
            home = "cpu" if placement.stages else placement.device
            networks = nn.ModuleList(fill(planned, dtype=weight.dtype, device=home) for planned in plans)
            placement.add(networks)
            found[key] = networks
        return tuple(found[key].children())


def _stamp(path: Path) -> tuple[Any, ...]:
    """What tells one state of a file or folder from another."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read ({error.strerror}).") from error
    return (str(path.resolve()), *stats)
