"""T2I-Adapter: a small network that reads a picture once and adds to a U-Net's features on the way down.

Source: Mou et al. 2023, https://arxiv.org/abs/2302.08453. Several act at once by adding up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor, nn

from sdkit import FileError, Grid, InvalidRequest, Parts, Picture, Request
from sdkit_diffusers.beside import (
    check_size,
    fitted,
    image_text,
    kept,
    number,
    of_config,
    part_in_folder,
    picture,
    pixels,
)
from sdkit_diffusers.parts import Plan
from sdkit_diffusers.wiring import Call, Joined, check_share, core, in_window, network_call, rewired, windowed

__all__ = ["T2I", "load_t2i", "with_t2i"]

WITHIN = "down_intrablock_additional_residuals"


def _weight(value: Any) -> float:
    return number("The weight of a T2I-Adapter", value, -100, 100)


@frozen
class T2I:
    """A T2I-Adapter with its picture, as a modifier. Several in one request act together.

    Attributes:
        file: A folder as diffusers saves it.
        image: What it reads (a sketch, depth, a pose, ...): a file's name, a Pillow image or a `sdkit.Picture`; of the
            size of the picture to make.
        weight: Factor of what it adds; 1 is as trained.
        start: Share of the way at which it begins.
        end: Share of the way at which it ends.
        fit: Resize the image to the size of the picture to make.

    Raises:
        InvalidRequest, ParameterError: a value is out of range.
    """

    file: str = field(converter=str)
    image: str = field(converter=image_text, repr=lambda text: repr(text[:40]))
    weight: float = field(default=1.0, converter=_weight, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    end: float = field(default=1.0, kw_only=True)
    fit: bool = field(default=False, kw_only=True, validator=attrs.validators.instance_of(bool))

    def __attrs_post_init__(self) -> None:
        check_share("T2I-Adapter", self.start, self.end)

    def check(self, request: Request, /) -> None:
        """Refuses a picture that is not of the size of the picture to make; asked when a request is planned.

        Raises:
            FileError: the picture cannot be read.
            InvalidRequest: it is of another size, and was not to be resized.
        """
        check_size(picture(self.image), request, fit=self.fit, what="T2I-Adapter")

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the adapter acts.

        Raises:
            FileError: a file cannot be read, or is no T2I-Adapter.
            InvalidRequest: the adapter was made for another family.
        """
        given = picture(self.image)
        network = load_t2i(parts.denoiser, self.file)
        changed = rewired(parts.denoiser, lambda inner: Joined(inner, T2IRule(given, self.weight, self.fit), network))
        yield in_window(parts, changed, self.start, self.end)


def load_t2i(denoiser: Any, file: str | Path) -> nn.Module:
    """The T2I-Adapter in a folder, for a model; kept until the model is closed.

    Raises:
        FileError: a file cannot be read, or is no T2I-Adapter.
        InvalidRequest: it was made for another family.
    """
    call, path = network_call(denoiser), Path(file)
    if path.is_file():
        raise FileError(f"A T2I-Adapter comes as a folder with config.json, and {path.name!r} is a file.")

    def check(planned: Plan) -> None:
        _check_family(path.name, planned.network, core(call.network))

    network: nn.Module = kept(
        call, path, "t2i", lambda: [(part_in_folder(path, {"T2IAdapter": _adapter}, "T2I-Adapter"), check)]
    )[0]
    return network


def _adapter(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.adapter import T2IAdapter

    return of_config(T2IAdapter, config)


def _check_family(name: str, adapter: Any, unet: Any) -> None:
    """Whether the adapter's features have the shapes of the U-Net's; both are asked without memory."""
    if not hasattr(unet, "down_blocks"):
        raise InvalidRequest(f"The T2I-Adapter {name!r} is for models with a U-Net, and this model has none.")
    side = 64  # of the latents; any that divides
    with torch.no_grad():
        given = torch.empty(1, int(adapter.config.in_channels), side * 8, side * 8, device="meta")
        features = [(int(one.shape[1]), int(one.shape[2])) for one in adapter(given)]
    wanted = []
    for block, width in zip(unet.down_blocks, unet.config.block_out_channels, strict=True):
        shrinks = bool(getattr(block, "downsamplers", None))
        attends = bool(getattr(block, "has_cross_attention", False))
        wanted.append((int(width), side // 2 if shrinks and not attends else side))
        side = side // 2 if shrinks else side
    if features[: len(wanted)] != wanted:
        raise InvalidRequest(
            f"The T2I-Adapter {name!r} was made for another family: it gives {features} (channels, side) for latents "
            f"of side 64, the model's U-Net takes {wanted}; take one made for this model's family."
        )


def with_t2i(
    denoiser: Any,
    network: nn.Module,
    image: Any,
    *,
    weight: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    grid: Grid = (),
    fit: bool = False,
) -> Any:
    """A denoiser under the control of a picture; see `sdkit_diffusers.control.with_control`, whose arguments these are.

    Raises:
        InvalidRequest: a share is none, or a part of the way is asked for without ``grid``.
    """
    check_share("T2I-Adapter", start, end)
    rule = T2IRule(picture(image_text(image)), _weight(weight), fit)
    return windowed(denoiser, rewired(denoiser, lambda inner: Joined(inner, rule, network)), start, end, grid)


@frozen(eq=False)
class T2IRule:
    """Adds an adapter's features, which are computed once, to a U-Net's.

    Attributes:
        image: What the adapter reads.
        weight: Factor of what it adds.
        fit: Whether the image is resized.
    """

    image: Picture = field(repr=False)
    weight: float
    fit: bool
    _features: dict[Any, list[Tensor]] = field(factory=dict, repr=False, init=False)

    @property
    def tokens(self) -> int:
        """None."""
        return 0

    def __call__(self, joined: Joined, args: tuple[Any, ...], more: dict[str, Any], /) -> Call:
        """The U-Net's arguments with features.

        Raises:
            InvalidRequest: the image is of another size than the picture, or the features do not fit another adapter's.
        """
        x = args[0]
        added = [feature.expand(x.shape[0], -1, -1, -1) for feature in self._read(joined.beside[0], x)]
        if WITHIN in more:
            before = more[WITHIN]
            if [one.shape for one in before] != [one.shape for one in added]:
                raise InvalidRequest("These two T2I-Adapters give features of other shapes and cannot act together.")
            added = [one + other for one, other in zip(before, added, strict=True)]
        return args, {**more, WITHIN: added}  # a list of its own, which diffusers' U-Net empties

    def _read(self, network: Any, x: Tensor) -> list[Tensor]:
        size = (x.shape[-1] * 8, x.shape[-2] * 8)
        key = (size, x.device, x.dtype)
        if key not in self._features:
            given = fitted(self.image, size, fit=self.fit, what="T2I-Adapter")
            made = network(pixels(given, int(network.config.in_channels), x))
            self._features[key] = [feature * self.weight for feature in made]
        return self._features[key]
